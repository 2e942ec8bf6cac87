"""Trees grown place by place are those that runs of the graph find, and survive a file."""

import asyncio
import json
from dataclasses import replace

import pytest
from toy import ToyModel, ToyScorer, build, questions

from trim_graph import InputError
from trim_graph.policies import random_rate, threshold
from trim_graph.settings import Settings
from trim_graph.testing import ScriptedChatModel
from trim_graph.training.rollout_collection import Grower, GrowingRollouts
from trim_graph.training.rollouts import RolloutError, Rollouts, Tree, from_record, solve, to_record

N = 8


def grower(**settings):
    small, large = ToyModel(writer="small"), ToyModel(writer="large")
    return Grower(small, large, ToyScorer(), Settings(**settings))


def grown(of, question):
    return asyncio.run(of.grow(question))


def known(tree):
    """All that a rollout reads of a tree, but for what a recorded run shows only by what follows."""
    places = {}
    for steps, node in tree.nodes.items():
        behind = [None if way is None else way.steps for way in (node.accepted, node.regenerated)]
        score = None if node.ended else node.score  # of a last step: no decision follows
        draft = node.draft and replace(node.draft, ends=None)
        places[steps] = (node.ended, node.correct, score, node.draft_score, draft, node.large, behind)
    return places


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
        of_places = grown(grower(max_steps=max_steps), question)
        assert known(of_places) == known(tree)
        for steps, ends in drafts_end(of_places).items():
            # The last place allowed is the end, whatever the draft says.
            if len(steps) + 1 < max_steps:
                assert ends is tree.nodes[steps].accepted.ended


def test_a_tree_survives_a_file():
    for question in questions(N):
        tree = grown(grower(), question)
        again = from_record(question, json.loads(json.dumps(to_record(tree))))
        assert (known(again), drafts_end(again)) == (known(tree), drafts_end(tree))
        assert again.root is again.nodes[()]
        assert again.unknown() is None


def test_a_tree_that_grows_on_where_policies_go_gives_what_the_whole_one_gives():
    whole = GrowingRollouts([grown(grower(), question) for question in questions(N)], grower())
    small, large = ToyModel(writer="small"), ToyModel(writer="large")
    meagre = Grower(small, large, ToyScorer(), most=2)
    trees = [grown(meagre, question) for question in questions(N)]
    assert all(tree.unknown() is not None for tree in trees)
    kept = [
        from_record(q, json.loads(json.dumps(to_record(t)))) for q, t in zip(questions(N), trees, strict=True)
    ]
    for partial in (GrowingRollouts(trees, meagre), GrowingRollouts(kept, meagre)):
        for policy in (threshold(0.5), threshold(0.8), random_rate(0.5)):
            ways = [
                [(one.correct, one.large_tokens, one.scores) for one in solve(rollouts, policy)]
                for rollouts in (whole, partial)
            ]
            assert ways[0] == ways[1]
        assert partial.grown == set(range(N))
    assert not whole.grown


def test_a_damaged_record_or_another_question_is_refused():
    one, other = questions(2)
    record = to_record(grown(grower(), one))
    with pytest.raises(InputError, match="of the question 'question 0'; expected 'question 1'"):
        from_record(other, record)
    with pytest.raises(InputError, match="tree of 'question 0' is damaged"):
        from_record(one, {**record, "places": record["places"][:-1]})


@pytest.mark.parametrize(
    "script", [["a step without an end, cut by the limit"], ["a step", "..."]], ids=["cut", "no step"]
)
def test_what_only_the_graph_can_follow_is_not_grown(script):
    small = ScriptedChatModel(script="\n\n".join(script), name="small")
    of = Grower(small, ToyModel(writer="large"), ToyScorer(), Settings(max_step_tokens=3))
    assert grown(of, questions(1)[0]) is None


def test_a_model_that_fails_is_an_error():
    of = Grower(ToyModel(writer="small", fails=True), ToyModel(writer="large"), ToyScorer())
    with pytest.raises(RuntimeError, match="the toy is broken"):
        grown(of, questions(1)[0])


def test_what_many_questions_lack_is_grown_for_all_of_them_at_a_time(monkeypatch):
    rollouts = GrowingRollouts([Tree(question) for question in questions(N)], grower())
    asked = []
    monkeypatch.setattr(
        rollouts, "find", lambda plans: asked.append(len(plans)) or GrowingRollouts.find(rollouts, plans)
    )
    ended = solve(rollouts, threshold(0.5))
    assert asked[0] == N
    # At the root and where each decision leads; not where a draft leads that a decision does not take.
    assert len(asked) <= max(len(one.scores) for one in ended)


def test_a_way_that_stays_unknown_is_an_error_and_not_an_endless_search(monkeypatch):
    rollouts = GrowingRollouts([Tree(question) for question in questions(1)], grower())
    monkeypatch.setattr(rollouts, "find", lambda plans: None)
    with pytest.raises(RolloutError, match="wrote something else when asked again"):
        solve(rollouts, threshold(0.5))


def test_a_tree_ends_where_a_run_ends_in_a_loop():
    looping = ScriptedChatModel(script=lambda prefix: "1 + 1 is what is to be looked at\n\n")
    tree = grown(Grower(looping, looping, ToyScorer(), Settings(max_repeats=2)), questions(1)[0])
    assert [len(steps) for steps, node in tree.nodes.items() if node.ended] == [3]
