"""Tests of recorded judgements: what a judge is asked, what is kept, and what is found again."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from trim_graph.config import Parts, example_config
from trim_graph.errors import InputError
from trim_graph.evaluation.runner import Models
from trim_graph.testing import ScriptedChatModel, ScriptedScorer
from trim_graph.training.judgements import Judgements, JudgeSolutions, Reading

STEPS = tuple({"text": text, "writer": writer} for text, writer in (("a", "small"), ("b", "large")))
READING = Reading(3, "What is it?", "digest", STEPS)


def judged(judge=None, large="9"):
    model = ScriptedChatModel(script=lambda prefix: large)
    models = Models(example_config({"policy": "small_only"}), Parts(model, model, None), judge)

    async def work():
        return await JudgeSolutions().setup(models)(READING)

    return asyncio.run(work())


def own(scorer):
    return SimpleNamespace(config=SimpleNamespace(build=lambda: scorer), writer=None)


@pytest.fixture
def opened(tmp_path):
    journals = []

    def open_again(**options):
        if journals:
            journals[-1].__exit__(None, None, None)
        journals.append(Judgements(tmp_path / "judged.jsonl", {}, **options))
        return journals[-1]

    yield open_again
    journals[-1].__exit__(None, None, None)


def test_a_configured_judge_is_asked_once_about_all_steps_with_their_writers():
    asked = []

    def judge(question, steps):
        asked.append((question, [(str(step), step.writer) for step in steps]))
        return [0.25, 0.75]

    record = judged(own(judge))
    assert asked == [("What is it?", [("a", "small"), ("b", "large")])]
    assert (record["scores"], record["error"]) == ([0.25, 0.75], None)
    assert (record["question"], record["solution"]) == (3, "digest")


def test_without_a_judge_the_large_model_rates_each_step():
    record = judged(large="9")
    assert record["scores"] == [1.0, 1.0]
    assert record["error"] is None
    assert record["read"] > 0 < record["written"]


@pytest.mark.parametrize("scores", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_scores_that_are_not_one_probability_a_step_are_an_error_of_the_record(scores):
    record = judged(own(lambda question, steps: scores))
    assert record["scores"] == []
    assert record["error"].startswith("ScorerError: ")


def test_a_judge_that_fails_is_an_error_of_the_record():
    def judge(question, steps):
        raise OSError("gone")

    record = judged(own(judge))
    assert (record["scores"], record["error"]) == ([], "OSError: gone")


def test_what_was_judged_is_found_by_question_and_solution_also_when_it_is_opened_again(opened):
    found = opened()
    found.keep(judged(own(ScriptedScorer({"b": 0.1}))))
    for again in (found, opened()):
        assert again.scores(3, "digest") == [1.0, 0.1]
        assert again.scores(3, "another") is None
        assert again.scores(4, "digest") is None
        assert [one["index"] for one in again.records] == [0]
    again.keep({**judged(own(ScriptedScorer({}))), "question": 4})
    assert [one["index"] for one in opened().records] == [0, 1]


def test_a_failed_judgement_has_no_scores_and_is_dropped_where_it_is_tried_again(opened):
    found = opened()
    found.keep({**judged(own(ScriptedScorer({}))), "error": "OSError: gone", "scores": []})
    assert found.scores(3, "digest") is None
    assert found.of(3, "digest")["error"] == "OSError: gone"
    assert opened().failed == {3: "OSError: gone"}
    again = opened(retry_errors=True)
    assert again.failed == {}
    assert again.of(3, "digest") is None


def test_a_record_that_is_no_judgement_is_refused_by_name(tmp_path):
    (tmp_path / "judged.jsonl").write_text('{"index": 0}\n')
    (tmp_path / "judged.jsonl.settings.json").write_text(json.dumps({"version": 1, "settings": {}}))
    with pytest.raises(InputError, match=r"judged\.jsonl, line 1: no judgement: question"):
        Judgements(tmp_path / "judged.jsonl", {})
