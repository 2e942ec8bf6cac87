"""Trees expanded node by node equal those that runs of the graph record, and survive a file."""

import asyncio
import json
from dataclasses import replace

import pytest
from toy import ToyModel, ToyScorer, build, questions

from trim_graph import InputError
from trim_graph.policies import random_rate, threshold
from trim_graph.settings import Settings
from trim_graph.testing import ScriptedChatModel
from trim_graph.training.rollout_collection import ExpandingRollouts, TreeExpander
from trim_graph.training.rollouts import (
    RolloutError,
    Rollouts,
    Tree,
    evaluate_offline,
    from_record,
    to_record,
)

N = 8


def expander(**settings):
    small, large = ToyModel(writer="small"), ToyModel(writer="large")
    return TreeExpander(small, large, ToyScorer(), Settings(**settings))


def expanded(of, question):
    return asyncio.run(of.expand(question))


def known(tree):
    """All that a rollout reads of a tree, but for what a recorded run shows only by what follows."""
    nodes = {}
    for steps, node in tree.nodes.items():
        children = [None if child is None else child.steps for child in (node.accepted, node.regenerated)]
        score = None if node.ended else node.score  # of a last step: no decision follows
        draft = node.draft and replace(node.draft, ends=None)
        nodes[steps] = (node.ended, node.correct, score, node.draft_score, draft, node.large, children)
    return nodes


def drafts_end(tree):
    return {steps: node.draft.ends for steps, node in tree.nodes.items() if node.draft}


@pytest.mark.parametrize("max_steps", [32, 3])
def test_a_tree_is_the_one_that_the_graph_finds(max_steps):
    rollouts = Rollouts(
        questions(N),
        lambda policy: build(policy, settings={"max_steps": max_steps}),
        max_steps=max_steps,
    )
    assert asyncio.run(rollouts.explore(40)) == 0
    for tree, question in zip(rollouts.trees, questions(N), strict=True):
        by_nodes = expanded(expander(max_steps=max_steps), question)
        assert known(by_nodes) == known(tree)
        for steps, ends in drafts_end(by_nodes).items():
            # The last node allowed is the end, whatever the draft says.
            if len(steps) + 1 < max_steps:
                assert ends is tree.nodes[steps].accepted.ended


def test_a_tree_survives_a_file():
    for question in questions(N):
        tree = expanded(expander(), question)
        again = from_record(question, json.loads(json.dumps(to_record(tree))))
        assert (known(again), drafts_end(again)) == (known(tree), drafts_end(tree))
        assert again.root is again.nodes[()]
        assert again.unexplored() is None


def test_a_tree_expanded_where_policies_go_gives_the_results_of_the_whole_tree():
    whole = ExpandingRollouts([expanded(expander(), question) for question in questions(N)], expander())
    small, large = ToyModel(writer="small"), ToyModel(writer="large")
    meagre = TreeExpander(small, large, ToyScorer(), max_nodes=2)
    trees = [expanded(meagre, question) for question in questions(N)]
    assert all(tree.unexplored() is not None for tree in trees)
    kept = [
        from_record(q, json.loads(json.dumps(to_record(t)))) for q, t in zip(questions(N), trees, strict=True)
    ]
    for partial in (ExpandingRollouts(trees, meagre), ExpandingRollouts(kept, meagre)):
        for policy in (threshold(0.5), threshold(0.8), random_rate(0.5)):
            results = [
                [(one.correct, one.large_tokens, one.scores) for one in evaluate_offline(rollouts, policy)]
                for rollouts in (whole, partial)
            ]
            assert results[0] == results[1]
        assert partial.expanded == set(range(N))
    assert not whole.expanded


def test_a_damaged_record_or_another_question_is_refused():
    one, other = questions(2)
    record = to_record(expanded(expander(), one))
    with pytest.raises(InputError, match="of the question 'question 0'; expected 'question 1'"):
        from_record(other, record)
    with pytest.raises(InputError, match="tree of 'question 0' is damaged"):
        from_record(one, {**record, "nodes": record["nodes"][:-1]})


@pytest.mark.parametrize(
    "script", [["a step without an end, cut by the limit"], ["a step", "..."]], ids=["cut", "no step"]
)
def test_what_only_the_graph_can_follow_is_not_expanded(script):
    small = ScriptedChatModel(script="\n\n".join(script), name="small")
    of = TreeExpander(small, ToyModel(writer="large"), ToyScorer(), Settings(max_step_tokens=3))
    assert expanded(of, questions(1)[0]) is None


def test_a_model_that_fails_is_an_error():
    of = TreeExpander(ToyModel(writer="small", fails=True), ToyModel(writer="large"), ToyScorer())
    with pytest.raises(RuntimeError, match="the toy is broken"):
        expanded(of, questions(1)[0])


def test_unexplored_branches_are_expanded_for_all_questions_at_a_time(monkeypatch):
    rollouts = ExpandingRollouts([Tree(question) for question in questions(N)], expander())
    asked = []
    monkeypatch.setattr(
        rollouts,
        "expand",
        lambda scripts: asked.append(len(scripts)) or ExpandingRollouts.expand(rollouts, scripts),
    )
    ended = evaluate_offline(rollouts, threshold(0.5))
    assert asked[0] == N
    # At the root and where each decision leads; not where a draft leads that a decision does not take.
    assert len(asked) <= max(len(one.scores) for one in ended)


def test_a_branch_that_stays_unexplored_is_an_error_and_not_an_endless_search(monkeypatch):
    rollouts = ExpandingRollouts([Tree(question) for question in questions(1)], expander())
    monkeypatch.setattr(rollouts, "expand", lambda scripts: None)
    with pytest.raises(RolloutError, match="wrote something else when asked again"):
        evaluate_offline(rollouts, threshold(0.5))


def test_a_tree_ends_where_a_run_ends_in_a_loop():
    looping = ScriptedChatModel(script=lambda prefix: "1 + 1 is what is to be looked at\n\n")
    tree = expanded(TreeExpander(looping, looping, ToyScorer(), Settings(max_repeats=2)), questions(1)[0])
    assert [len(steps) for steps, node in tree.nodes.items() if node.ended] == [3]
