"""Tests of policies as such: combinations, memory, what they observe, and answers that are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.errors import SettingsError
from trim_graph.policies import (
    Choice,
    Observation,
    Policy,
    as_policy,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)

SEEN = Observation(question="q", index=0, max_steps=9, draft="x")


class Says(Policy):
    """Answers the same each time and counts, in its memory, how often it was asked."""

    def __init__(self, decision: str = "accept", writer: str = "small") -> None:
        self.decision, self.writer = decision, writer

    def next_writer(self, observation: Observation) -> Choice:
        return Choice(self.writer, (observation.memory or 0) + 1)

    def decide(self, observation: Observation) -> Choice:
        return Choice(self.decision, (observation.memory or 0) + 1)


def value(answer: str | Choice) -> str:
    return answer.value if isinstance(answer, Choice) else answer


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        (threshold(0.5) | random_rate(0.1), "(threshold(0.5) | random_rate(0.1))"),
        (small_only() & large_only(), "(small_only() & large_only())"),
        (stay_on_large(max, 2), "stay_on_large(max, k=2)"),
    ],
)
def test_a_policy_shows_how_it_was_made(policy, shown):
    assert repr(policy) == shown


# Combinations

decisions = st.sampled_from(["accept", "regenerate", "handover"])


writers = st.sampled_from(["small", "large", "large_to_end"])


@given(decisions, decisions)
def test_or_takes_the_dearer_and_and_the_cheaper_decision(left, right):
    dear = ("accept", "regenerate", "handover").index
    either, both = Says(left) | Says(right), Says(left) & Says(right)
    assert value(either.decide(SEEN)) == max(left, right, key=dear)
    assert value(both.decide(SEEN)) == min(left, right, key=dear)


@given(writers, writers)
def test_the_same_goes_for_the_next_writer(left, right):
    dear = ("small", "large", "large_to_end").index
    either, both = Says(writer=left) | Says(writer=right), Says(writer=left) & Says(writer=right)
    assert value(either.next_writer(SEEN)) == max(left, right, key=dear)
    assert value(both.next_writer(SEEN)) == min(left, right, key=dear)


def test_each_policy_of_a_combination_has_a_memory_of_its_own():
    policy = (Says() | Says("regenerate")) & (lambda o: "regenerate")
    memory = None
    for asked in range(1, 4):
        memory = json.loads(json.dumps(policy.decide(replace(SEEN, memory=memory)).memory))
        assert memory == [[asked, asked], None]


def test_the_parts_of_a_combination_draw_independently():
    both = random_rate(0.5) & random_rate(0.5)
    answers = [value(both.decide(replace(SEEN, seed=str(step)))) for step in range(400)]
    assert 60 < answers.count("regenerate") < 140
    assert answers == [value(both.decide(replace(SEEN, seed=str(step)))) for step in range(400)]


def test_a_combination_needs_what_either_part_needs():
    assert (threshold(0.5) | small_only()).needs_score
    assert not (random_rate(0.5) & small_only()).needs_score
    assert (random_rate(0.5) | large_only()).decides
    assert not (small_only() | large_only()).decides


def test_a_function_joins_from_the_right():
    combined = threshold(0.1) | (lambda o: "handover" if o.index else "accept")
    assert value(combined.decide(replace(SEEN, score=1.0, index=1))) == "handover"


# What a graph makes of policies


def writers_of(rig, **options):
    return [event["writer"] for event in rig.steps(**options)]


def test_a_plain_function_is_a_policy(make):
    rig = make(policy=lambda o: "regenerate" if o.score < 0.5 else "accept")
    assert writers_of(rig) == ["small", "large", "small", "small"]


def test_handover_lets_the_large_model_write_all_that_remains(make):
    rig = make(policy=lambda o: "handover" if o.score < 0.5 else "accept")
    result = rig.ask()
    assert [call["stop"] for call in rig.large.calls] == [None]
    assert result["trim"]["steps"] == {"small": 1, "large": 3}
    assert result["trim"]["decisions"] == {"accept": 1, "handover": 1}
    assert result["messages"][-1].content == "\n\n".join(["small one", *rig.large.script[1:]])


class Recording(Policy):
    """Remembers, for the test, every observation."""

    def __init__(self):
        self.seen = []

    def next_writer(self, observation):
        self.seen.append(("next_writer", observation))
        return "small"

    def decide(self, observation):
        self.seen.append(("decide", observation))
        return "regenerate" if observation.score < 0.5 else "accept"


def test_a_policy_is_asked_both_questions_once_a_step(make):
    policy = Recording()
    make(policy=policy).ask()
    asked = [(question, observation.index) for question, observation in policy.seen]
    assert asked == [(question, step) for step in range(4) for question in ("next_writer", "decide")]


def test_a_policy_sees_scores_tokens_writers_and_the_draft(make):
    policy = Recording()
    make(policy=policy, budget={"large_tokens": 100}).ask()
    last = policy.seen[-1][1]
    assert last.scores == (1.0, 1.0, 1.0)
    assert last.writers == ("small", "large", "small")
    assert last.tokens == (3, 3, 3)
    assert (last.draft, last.draft_tokens, last.draft_ends) == ("so it is \\boxed{4}", 5, True)
    assert (last.question, last.score) == ("What is 2 + 2?", 1.0)
    assert last.budget_left.large_tokens == 97
    before = policy.seen[4][1]  # the large step was not scored yet when the third was begun
    assert (before.index, before.scores, before.draft) == (2, (1.0, None), None)


def test_memory_is_kept_from_question_to_question_and_from_run_to_run_forgotten(make):
    seen = []

    class Counting(Says):
        def decide(self, observation):
            seen.append(observation.memory)
            return super().decide(observation)

    rig = make(policy=Counting())
    rig.ask()
    assert seen == [1, 3, 5, 7]
    rig.ask()
    assert seen[4:] == [1, 3, 5, 7]


@pytest.mark.parametrize("answer", ["keep", True, 1, None, ["accept"], Choice("large")])
def test_an_answer_that_is_no_decision_is_refused(make, answer):
    with pytest.raises(SettingsError, match=r"answered .*expected one of accept, regenerate, handover"):
        make(policy=lambda o: answer).ask()


def test_an_answer_that_names_no_writer_is_refused(make):
    with pytest.raises(SettingsError, match="expected one of small, large, large_to_end"):
        make(policy=Says(writer="regenerate")).ask()


@pytest.mark.parametrize("memory", [{1, 2}, object(), b"x"])
def test_memory_that_json_cannot_hold_is_refused(make, memory):
    with pytest.raises(SettingsError, match="remember"):
        make(policy=lambda o: Choice("accept", memory)).ask()


async def _apolicy(observation):
    return "accept"


@pytest.mark.parametrize(
    ("wrong", "named"), [(threshold, "class threshold"), (1.5, "policy is 1.5"), (_apolicy, "async")]
)
def test_what_is_no_policy_is_refused(wrong, named):
    with pytest.raises(SettingsError, match=named):
        as_policy(wrong)


def test_a_policy_without_a_repr_of_its_own_is_called_by_its_class():
    class Mine(Policy):
        """Keeps every draft."""

    assert repr(Mine() | threshold(0.5)) == "(Mine | threshold(0.5))"
