"""The study of scorers of labels without a checker: the command on a few problems, and what it measured."""

import json

import pytest

from trim_graph.evaluation.traces import read_traces
from trim_graph.examples.arithmetic.study import own_scorers
from trim_graph.examples.arithmetic.study.own_scorers import MEASURED, METHODS, table


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the command has run once, and what it wrote."""
    folder = tmp_path_factory.mktemp("own")
    out = folder / "own_scorers.json"
    sizes = ["--questions", "60", "--validation", "20", "--test", "20"]
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
    again = own_scorers.study(folder, questions=60, validation=20, test=20)
    assert json.loads(json.dumps(again)) == document


def test_labels_without_a_checker_come_near_exact_ones():
    document = json.loads(MEASURED.read_text())
    areas = {name: found["auc"] for name, found in document["scorers"].items()}
    assert areas["monte_carlo, hard"] > areas["exact"] - 0.03
    for name in document["scorers"]:
        assert f"| {name} |" in table(document)
