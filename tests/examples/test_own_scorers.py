"""The study of scorers of labels without a checker: the command on a few problems, and what it measured."""

import json

import pytest
from sklearn.metrics import roc_auc_score

from trim_graph import ScorableStep
from trim_graph.adapters import TransformersProcessReward
from trim_graph.cli.collect import run_collect
from trim_graph.cli.options import CollectOptions
from trim_graph.evaluation.traces import read_traces
from trim_graph.examples.arithmetic.study import own_scorers
from trim_graph.examples.arithmetic.study.own_scorers import MEASURED, METHODS, table
from trim_graph.training.scorer import ScorerTraining, train_scorer


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the command has run once, and what it wrote."""
    folder = tmp_path_factory.mktemp("own")
    out = folder / "own_scorers.json"
    sizes = ["--questions", "30", "--validation", "12", "--test", "12"]
    with pytest.MonkeyPatch.context() as patch:
        # Sampling has no seed: of fewer problems all steps may be right, which trains nothing.
        patch.setattr(own_scorers, "HELD_OUT", 0.5)
        own_scorers.main([str(folder), *sizes, "--out", str(out)])
    return folder, json.loads(out.read_text())


def test_each_method_labels_the_same_solutions(ran):
    folder, _ = ran
    texts = {
        name: [
            [step["text"] for step in trace["steps"]]
            for trace in read_traces(folder / f"labels, {name}.jsonl")
        ]
        for name in (*METHODS, "exact")
    }
    assert texts["exact"]
    assert len({json.dumps(found) for found in texts.values()}) == 1


def test_exact_labels_end_at_the_first_wrong_step(ran):
    folder, _ = ran
    for trace in read_traces(folder / "labels, exact.jsonl"):
        labels = [step["label"] for step in trace["steps"]]
        wrong = labels.index(False) if False in labels else len(labels)
        assert labels == [True] * wrong + [False] * (wrong < len(labels)) + [None] * (len(labels) - wrong - 1)
        assert [step.get("value") for step in trace["steps"]] == [
            None if label is None else float(label) for label in labels
        ]


def test_every_scorer_has_an_area_and_a_curve(ran):
    _, document = ran
    assert set(document["scorers"]) == {*METHODS, "exact", "token probability", "shipped PRM"}
    for found in document["scorers"].values():
        assert 0 <= found["auc"] <= 1
        assert found["curve"]["mean_ibc"]["value"] is not None
    assert len(document["advantage_against_exact"]) == len(own_scorers.SHARES)


def test_a_second_run_trains_nothing(ran, monkeypatch):
    folder, document = ran
    monkeypatch.setattr("trim_graph.training.scorer.train_scorer", None)
    again = own_scorers.study(folder, questions=30, validation=12, test=12)
    assert json.loads(json.dumps(again)) == document


def test_labels_without_a_checker_come_near_exact_ones():
    document = json.loads(MEASURED.read_text())
    areas = {name: found["auc"] for name, found in document["scorers"].items()}
    assert areas["monte_carlo, hard"] > areas["exact"] - 0.03
    for name in document["scorers"]:
        assert f"| {name} |" in table(document)


QUESTIONS, TESTED = 200, 100
TOLERANCE = 0.15


def area(scorer, traces):
    """AUC of a scorer by the exact checker, over the steps up to the first wrong one."""
    rated = list[tuple[bool, float]]()
    for trace in traces:
        labels = [step["label"] for step in trace["steps"]]
        steps = [ScorableStep(step["text"]) for step in trace["steps"]]
        scores = scorer.score(trace["question"], steps).scores
        end = labels.index(False) + 1 if False in labels else len(labels)
        rated += zip(labels[:end], scores[:end], strict=True)
    return roc_auc_score(*zip(*rated, strict=True))


@pytest.fixture(scope="module")
def areas(tmp_path_factory):
    """AUC on new problems of heads that learned the same solutions, by either kind of labels."""
    folder = tmp_path_factory.mktemp("areas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_scorers, "METHODS", {"monte_carlo": METHODS["monte_carlo, hard"]})
        files = own_scorers.label(folder, QUESTIONS)
    tested = folder / "tested.jsonl"
    run_collect(
        CollectOptions(
            dataset="arithmetic:standard:test", policy="small_only", n=TESTED, label_steps=True, out=tested
        )
    )
    found = dict[str, float]()
    for name, file in files.items():
        out = folder / f"scorer, {name}"
        training = ScorerTraining(validation=0.3, test=0.0)
        train_scorer([file], base=str(own_scorers.BASE), out=out, training=training)
        found[name] = area(TransformersProcessReward(out), read_traces(tested))
    return found


def test_continuations_alone_train_a_scorer_near_that_of_the_exact_checker(areas):
    """The study's claim, 0.03, on a run that a test can afford.

    Sampling has no seed, and so few problems spread: three runs with 200 questions, tested on 150, had areas
    of 0.63 to 0.73 by continuations and of 0.64 to 0.72 by the checker, with differences of 0.01, -0.04 and
    0.03. The tolerance is four times their spread. With 60 questions, all areas were 0.52 to 0.57: nothing to
    compare.
    """
    assert areas["monte_carlo"] > 0.5
    assert areas["monte_carlo"] > areas["exact"] - TOLERANCE
