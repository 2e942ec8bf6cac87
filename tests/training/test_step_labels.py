"""Labels of scripted models, whose values are known exactly, and of the example models."""

import asyncio
import json
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.config import Parts, example_config
from trim_graph.errors import SettingsError, TrimError
from trim_graph.evaluation import Question
from trim_graph.evaluation.runner import LocalExecutor, Models
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.testing import ScriptedChatModel
from trim_graph.training.continuations import Continuations, Share
from trim_graph.training.judgements import Judgements
from trim_graph.training.step_labels import (
    LabelSettings,
    StepLabeller,
    interval_width,
    read_labels,
    reweighted,
)

SETTINGS = LabelSettings(rollouts=1, continuations=4, width=0.0, batch=2, target="soft", reweight=False)


def grade(solution):
    return solution.endswith("right")


QUESTION = Question("Which way?", grade, "right", id="q")


LAST = ("right", "wrong")


class Turns:
    """A small model by what it writes behind each text: in turn, and in the end the last again and again."""

    def __init__(self, written):
        self.written, self.seen = written, {}

    def __call__(self, prefix):
        place = prefix.strip().replace("\n\n", " ")
        turn = self.seen.get(place, 0)
        self.seen[place] = turn + 1
        steps = self.written[place]
        step = steps[min(turn, len(steps) - 1)]
        return step if step in LAST else f"{step}\n\n..."


def models(small, large=("L.", "right"), judge=None):
    config = example_config({"policy": "small_only"})
    parts = Parts(
        small if isinstance(small, ScriptedChatModel) else ScriptedChatModel(script=small),
        large if isinstance(large, ScriptedChatModel) else ScriptedChatModel(script=list(large)),
        None,
    )
    return Models(config, parts, judge)


def label(tmp_path, loaded, settings=SETTINGS, questions=(QUESTION,), judged=False, **given):
    recorded = Continuations(tmp_path / "runs.jsonl", {"of": "test"}, delimiter="\n\n", **given)
    judgements = Judgements(tmp_path / "judged.jsonl", {"of": "test"}) if judged else None
    try:
        labeller = StepLabeller(
            LocalExecutor(lambda: loaded), questions, recorded, settings, judgements=judgements
        )
        return asyncio.run(labeller.label()), list(recorded.records)
    finally:
        recorded.journal.close()
        if judgements is not None:
            judgements.journal.close()


def column(traces, key, place=0):
    return [step[key] for step in traces[place]["steps"]]


WRONG = ["a.", "b.", "c.", "wrong"]


def half_behind_a():
    """One rollout is WRONG, the others end right at once. Behind "a." every other one ends right, behind "b."
    none does."""
    behind_a = ["b.", *["right", "wrong"] * 20]
    return Turns({"": ["a.", "right"], "a.": behind_a, "a. b.": ["c.", "wrong"], "a. b. c.": ["wrong"]})


def right_until(last, steps):
    """One rollout has all steps. Up to the step of this number, what is written anew is right."""
    written = {"": [steps[0], "right"]}
    for end in range(1, len(steps)):
        written[" ".join(steps[:end])] = [steps[end], "right" if end <= last else "wrong"]
    return Turns(written)


def test_the_share_of_right_continuations_is_the_target_and_the_first_lost_step_is_found(tmp_path):
    # Two rollouts: one of them right, or the question would be dropped.
    loaded = models(half_behind_a())
    (traces, report), records = label(tmp_path, loaded, replace(SETTINGS, rollouts=2))
    wrong, right = traces
    assert [step["text"] for step in wrong["steps"]] == WRONG
    assert column(traces, "label") == [True, False, None, None]
    assert column(traces, "value")[1:] == [0.0, None, None]
    assert wrong["correct"] is False
    assert right["correct"] is True
    assert column(traces, "label", 1) == [True]
    assert column(traces, "value", 1) == [1.0]
    # Of "a." the first rollout, which ended wrong, and three continuations: right, wrong, right.
    assert column(traces, "value")[0] == 0.5
    assert wrong["policy"] == {
        "type": "labelled",
        "method": "monte_carlo",
        "generator": "small",
        "continuations": 4,
        "width": 0.0,
        "target": "soft",
        "tolerance": 0,
        "reweight": False,
    }
    assert (report.solutions, report.right, report.lost, report.steps) == (2, 1, 1, 3)
    assert len(records) == 2 + 3 + 3  # the third prefix, which is lost, was never continued


def test_a_binary_search_continues_few_prefixes_of_a_long_solution(tmp_path):
    steps = [f"{number}." for number in range(15)] + ["wrong"]
    settings = replace(SETTINGS, rollouts=2, target="hard")
    (traces, _), records = label(tmp_path, models(right_until(9, steps)), settings)
    assert column(traces, "label") == [True] * 9 + [False] + [None] * 6
    assert column(traces, "value") == [1.0] * 9 + [0.0] + [None] * 6
    assert len({record["prefix"] for record in records} - {""}) == 4


def test_steps_before_the_first_lost_one_keep_their_share_within_the_tolerance(tmp_path):
    steps = ["a.", "b.", "c.", "d.", "wrong"]
    settings = replace(SETTINGS, rollouts=2, target="hard", tolerance=1)
    (traces, _), _ = label(tmp_path, models(right_until(2, steps)), settings)
    assert column(traces, "label") == [True, True, False, None, None]
    # Behind the second step the first rollout ended wrong, and three continuations end right.
    assert column(traces, "value") == [1.0, 0.75, 0.0, None, None]


def test_a_share_counts_in_relation_to_that_of_the_questions_rollouts(tmp_path):
    """One of three rollouts ends right; behind each of the first two steps, one of four continuations."""
    behind_b = ["c.", "wrong", "right", "wrong"]
    written = {
        "": ["a.", "right", "wrong"],
        "a.": ["b.", "wrong", "wrong", "right", "wrong"],
        "a. b.": behind_b,
        "a. b. c.": ["wrong"],
    }
    settings = replace(SETTINGS, rollouts=3)
    values = {}
    for name, changes in {
        "raw": {},
        "soft": {"reweight": True},
        "scan": {"reweight": True, "target": "hard", "tolerance": 1},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (traces, _), _ = label(folder, models(Turns(written)), replace(settings, **changes))
        assert column(traces, "label") == [True, True, False, None]
        values[name] = column(traces, "value")
    assert values["raw"] == [0.25, 0.25, 0.0, None]
    assert values["soft"] == [pytest.approx(0.75), pytest.approx(0.75), 0.0, None]
    assert values["scan"] == [1.0, pytest.approx(0.75), 0.0, None]


@given(st.floats(0, 1), st.floats(0, 1, exclude_min=True))
def test_a_reweighted_share_is_a_target_and_never_below_the_share(share, confidence):
    found = reweighted(share, confidence)
    assert share <= found <= 1
    assert reweighted(confidence, confidence) == 1


def test_continuations_end_early_where_the_interval_is_narrow(tmp_path):
    steps = ["a.", "b.", "right"]
    settings = replace(SETTINGS, continuations=40, width=0.5)
    (traces, _), records = label(tmp_path, models(ScriptedChatModel(script=steps)), settings)
    assert column(traces, "value") == [1.0, 1.0, 1.0]
    per_prefix = [sum(r["prefix"] == prefix for r in records) for prefix in {r["prefix"] for r in records}]
    assert max(per_prefix) == 4


def test_the_interval_is_wilsons():
    # z = 1.959964: p = (8 + z^2/2) / (16 + z^2), half = z sqrt(16/4 + z^2/4) / (16 + z^2)
    assert interval_width(Share(8, 16)) == pytest.approx(0.4400, abs=1e-3)
    assert interval_width(Share(0, 8)) == pytest.approx(0.3244, abs=1e-3)


def test_what_is_recorded_is_never_made_again_and_other_methods_use_it(tmp_path):
    small, settings = half_behind_a(), replace(SETTINGS, rollouts=2)
    first, records = label(tmp_path, models(small), settings)
    silent = models(ScriptedChatModel(script=lambda prefix: 1 / 0))
    again, same = label(tmp_path, silent, settings)
    assert same == records
    assert again == first
    other = replace(settings, method="advantage", places=4)
    (traces, _), more = label(tmp_path, models(small, ScriptedChatModel(script=lambda _: "right")), other)
    assert more[: len(records)] == records
    assert [(r["writer"], r["one_step"]) for r in more[len(records) :] if r["one_step"]] == [
        ("large", True)
    ] * 4
    assert column(traces, "label") == [True, False, None, None]


def test_an_advantage_is_half_where_both_steps_are_worth_the_same(tmp_path):
    settings = replace(SETTINGS, rollouts=2, method="advantage", places=4)
    small = half_behind_a()
    small.written |= {"a. L.": ["right"], "a. b. L.": ["wrong"], "a. b. c. L.": ["right", "wrong"]}
    large = ScriptedChatModel(script=lambda prefix: "L.\n\n..." if prefix else "a.\n\n...")
    (traces, _), _ = label(tmp_path, models(small, large), settings)
    # The large model writes "a." too. Its step behind "a." leads to a right end always, behind "b." never.
    assert column(traces, "value")[:3] == [0.5, 0.0, 0.5]
    # Behind "c." one of four continuations of its step is right, and the small model's step ends wrong.
    assert column(traces, "value")[3] == (1 + 0 - 0.25) / 2
    assert traces[0]["policy"]["method"] == "advantage"


def test_a_step_of_the_large_model_that_ends_the_solution_is_graded(tmp_path):
    settings = replace(SETTINGS, rollouts=2, method="advantage", places=4)
    large = ScriptedChatModel(script=lambda prefix: "right")
    (traces, _), records = label(tmp_path, models(half_behind_a(), large), settings)
    assert column(traces, "value")[1] == 0.0  # (1 + 0 - 1) / 2
    assert column(traces, "value")[0] == 0.25  # (1 + 0.5 - 1) / 2
    assert {r["correct"] for r in records if r["one_step"]} == {True}


def test_places_are_drawn_once(tmp_path):
    settings = replace(SETTINGS, rollouts=2, method="advantage", places=2)
    loaded = models(half_behind_a(), ScriptedChatModel(script=lambda prefix: "right"))
    (traces, report), records = label(tmp_path, loaded, settings)
    assert [sum(v is not None for v in column(traces, "value", at)) for at in (0, 1)] == [2, 1]
    assert report.steps == 3
    assert label(tmp_path, loaded, settings)[1] == records


class Reader(ScriptedChatModel):
    """A judge that rates a step by its text."""

    ratings: dict[str, int]

    def _generate(self, messages, *args, **kwargs):
        step = messages[-1].text.rpartition("Next step:\n")[2].splitlines()[1]
        answering = ScriptedChatModel(script=[str(self.ratings[step])])
        return answering._generate(messages, *args, **kwargs)


RATINGS = {"a.": 9, "b.": 3, "c.": 9, "wrong": 0, "right": 9}


def reader(**changed):
    return Reader(script=[], ratings={**RATINGS, **changed})


def test_agreement_is_the_judges_probability_and_needs_no_grader(tmp_path):
    question = Question("Which way?")
    small = ScriptedChatModel(script=WRONG)
    settings = replace(SETTINGS, method="agreement")
    (traces, report), _ = label(tmp_path, models(small, reader()), settings, [question], judged=True)
    assert column(traces, "value") == [1.0, 3 / 9, 1.0, 0.0]
    assert column(traces, "label") == [True, False, None, None]
    assert traces[0]["correct"] is None
    assert report.hopeless == 0
    silent = models(ScriptedChatModel(script=lambda prefix: 1 / 0), ScriptedChatModel(script=lambda _: 1 / 0))
    assert label(tmp_path, silent, settings, [question], judged=True)[0].traces == traces


@pytest.mark.parametrize(("rating", "kept"), [({}, 2), ({"a.": 1}, 1)])
def test_consensus_keeps_solutions_whose_first_lost_step_the_judge_finds_too(tmp_path, rating, kept):
    settings = replace(SETTINGS, rollouts=2, consensus=True)
    loaded = models(half_behind_a(), reader(**rating))
    (traces, report), _ = label(tmp_path, loaded, settings, judged=True)
    assert (len(traces), report.disagreed) == (kept, 2 - kept)


def test_questions_that_no_rollout_solves_are_dropped(tmp_path):
    small = ScriptedChatModel(script=WRONG)
    (traces, report), records = label(tmp_path, models(small), replace(SETTINGS, rollouts=3))
    assert (traces, report.hopeless) == ([], 1)
    assert len(records) == 3


def test_questions_that_few_rollouts_solve_are_dropped_where_that_is_wanted(tmp_path):
    settings = replace(SETTINGS, rollouts=2, min_confidence=0.6)
    (traces, report), _ = label(tmp_path, models(half_behind_a()), settings)
    assert (traces, report.unsure) == ([], 1)


def test_equal_rollouts_are_labelled_once(tmp_path):
    small = ScriptedChatModel(script=["a.", "right"])
    (traces, report), _ = label(tmp_path, models(small), replace(SETTINGS, rollouts=3))
    assert (len(traces), report.repeated) == (1, 2)


def test_solutions_of_the_large_model_are_continued_by_the_small_one(tmp_path):
    settings = replace(SETTINGS, generators=("large",), rollouts=1)
    small = ScriptedChatModel(script=lambda prefix: "right")
    large = ScriptedChatModel(script=["L.", "wrong"])
    (traces, _), records = label(tmp_path, models(small, large), settings)
    assert [step["writer"] for step in traces[0]["steps"]] == ["large", "large"]
    assert column(traces, "label") == [True, False]
    assert column(traces, "value") == [1.0, 0.0]
    assert traces[0]["policy"]["generator"] == "large"
    assert sorted(r["writer"] for r in records) == ["large", *["small"] * (1 + 4)]


def test_a_question_that_fails_is_left_out_until_it_is_tried_again(tmp_path):
    broken = Question("Broken", grade, id="broken")

    class Fails(ScriptedChatModel):
        def _generate(self, messages, *args, **kwargs):
            if "Broken" in messages[-1].text or "Broken" in messages[-2].text:
                raise RuntimeError("no model")
            return super()._generate(messages, *args, **kwargs)

    loaded = models(Fails(script=["a.", "right"]))
    (traces, report), _ = label(tmp_path, loaded, questions=(broken, QUESTION))
    assert [trace["id"] for trace in traces] == ["q"]
    assert (report.failed, report.error) == (1, "RuntimeError: no model")
    good = models(ScriptedChatModel(script=["a.", "right"]))
    again, _ = label(tmp_path, good, questions=(broken, QUESTION))
    assert again.report.failed == 1
    retried, _ = label(tmp_path, good, questions=(broken, QUESTION), retry_errors=True)
    assert [trace["id"] for trace in retried.traces] == ["broken", "q"]


def test_many_failures_in_a_row_end_the_work(tmp_path):
    loaded = models(ScriptedChatModel(script=lambda prefix: 1 / 0))
    questions = [Question(f"q{n}", grade) for n in range(40)]
    with pytest.raises(TrimError, match="20 calls failed in a row, the last with ZeroDivisionError"):
        label(tmp_path, loaded, questions=questions)


def test_a_method_that_grades_needs_a_grader_and_a_judged_one_judgements(tmp_path):
    loaded = models(ScriptedChatModel(script=WRONG))
    with pytest.raises(SettingsError, match="needs a grader, and question 0 has none"):
        label(tmp_path, loaded, questions=[Question("?")])
    with pytest.raises(SettingsError, match="ask for a judge: give judgements"):
        label(tmp_path, loaded, replace(SETTINGS, method="agreement"))


def test_labels_are_written_and_read_as_traces(tmp_path):
    (traces, _), _ = label(tmp_path, models(half_behind_a()), replace(SETTINGS, rollouts=2))
    write_traces(tmp_path / "labels.jsonl", traces)
    assert list(read_traces(tmp_path / "labels.jsonl")) == traces


def test_labelled_solutions_get_targets_up_to_the_first_wrong_step(tmp_path):
    rows = [
        {"id": "a", "problem": "p", "steps": ["x", "y", "z"], "label": 1, "generator": "G"},
        {"input": "i", "steps": ["s", "t"], "mistake_index": None, "target": "(A)", "answer": "(A)"},
    ]
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_labels(file)
    assert column([first], "value") == [1.0, 0.0, None]
    assert column([first], "label") == [True, False, None]
    assert first["policy"] == {"type": "labelled", "method": "labelled", "generator": "G"}
    assert (second["question"], second["correct"], column([second], "value")) == ("i", True, [1.0, 1.0])


def test_labels_of_the_example_models_agree_with_the_exact_checker(tmp_path):
    from sklearn.metrics import roc_auc_score

    from trim_graph.config import build_parts
    from trim_graph.evaluation.datasets import make_dataset

    config = example_config({"small": {"type": "example", "temperature": 0.4}, "policy": "small_only"})
    questions = list(islice(make_dataset("arithmetic:standard:train").questions(), 48))
    settings = LabelSettings(rollouts=2, continuations=4, target="soft")
    (traces, _), _ = label(tmp_path, Models(config, build_parts(config)), settings, questions)
    exact, values = list[bool](), list[float]()
    for trace in traces:
        checked = questions[trace["index"]].label_steps([step["text"] for step in trace["steps"]])
        for step, right in zip(trace["steps"], checked, strict=True):
            if step["value"] is not None and right is not None:
                exact.append(right)
                values.append(step["value"])
            if not right:
                break
    assert len(exact) >= 20
    assert roc_auc_score(exact, values) > 0.55  # 0.73, with a standard deviation of 0.06
