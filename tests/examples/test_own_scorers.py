"""The study of scorers of labels without a checker: the command on a few problems, and what it measured."""

import json
import shutil
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from trim_graph import ScorableStep, SettingsError
from trim_graph.adapters import TransformersProcessReward
from trim_graph.adapters.prm.scorer_file import Stacking, read_scorer_file
from trim_graph.cli.collect import run_collect
from trim_graph.cli.options import CollectOptions
from trim_graph.evaluation.traces import read_traces
from trim_graph.examples.arithmetic.study import own_scorers
from trim_graph.examples.arithmetic.study.own_scorers import EXACT, GRADED, KINDS, MEASURED, METHODS, report
from trim_graph.examples.arithmetic.study.scorers import compare_auc, rescored
from trim_graph.examples.arithmetic.study.trees import Problems
from trim_graph.training.scorer import ScorerTraining, train_scorer


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the command has run once, and what it wrote."""
    folder = tmp_path_factory.mktemp("own")
    out = folder / "own_scorers.json"
    sizes = ["--questions", "30", "--validation", "12", "--test", "12", "--draws", "2"]
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
            for trace in read_traces(folder / f"labels 0, {name}.jsonl")
        ]
        for name in (*METHODS, "exact")
    }
    assert texts["exact"]
    assert len({json.dumps(found) for found in texts.values()}) == 1


def test_labels_have_what_a_combined_scorer_is_fitted_on(ran):
    folder, _ = ran
    for file in folder.glob("labels *.jsonl"):
        steps = [step for trace in read_traces(file) for step in trace["steps"]]
        assert all(0 < step["mean_token_probability"] <= 1 for step in steps)


def test_exact_labels_end_at_the_first_wrong_step(ran):
    folder, _ = ran
    for trace in read_traces(folder / "labels 0, exact.jsonl"):
        labels = [step["label"] for step in trace["steps"]]
        wrong = labels.index(False) if False in labels else len(labels)
        assert labels == [True] * wrong + [False] * (wrong < len(labels)) + [None] * (len(labels) - wrong - 1)
        assert [step.get("value") for step in trace["steps"]] == [
            None if label is None else float(label) for label in labels
        ]


def test_every_scorer_has_an_area_and_a_curve(ran):
    folder, document = ran
    trained = {f"{name}: {kind}" for name in (*METHODS, EXACT) for kind in KINDS}
    assert set(document["scorers"]) == {*trained, "token probability", "shipped PRM"}
    for found in document["scorers"].values():
        assert 0 <= found["auc"] <= 1
        assert found["curve"]["mean_ibc"]["value"] is not None
        for point in found["points"]:
            for name in ("share", "accuracy"):
                low, high = point[name]["interval"]
                assert low <= point[name]["value"] <= high
    assert {len(rows) for rows in document["advantage"].values()} == {len(own_scorers.SHARES)}
    assert set(document["stacking"]) == {*METHODS, EXACT}
    assert (folder / "own_scorers.png").read_bytes().startswith(b"\x89PNG")


def test_each_draw_labels_other_problems_and_compares_with_exact_labels(ran):
    folder, document = ran
    questions = [
        {trace["question"] for trace in read_traces(folder / f"labels {draw}, {EXACT}.jsonl")}
        for draw in range(2)
    ]
    assert not questions[0] & questions[1]
    assert [(one["kind"], one["draw"]) for one in document["draws"]] == [
        (kind, draw) for kind in KINDS for draw in range(2)
    ]
    for one in document["draws"]:
        if one["draw"] == 0:
            areas = [document["scorers"][f"{name}: {one['kind']}"]["auc"] for name in (GRADED, EXACT)]
            assert [one["over_exact"]["auc"], one["over_exact"]["auc_of_other"]] == areas


def test_a_combined_scorer_gets_the_token_probability_of_each_draft(ran, tmp_path):
    folder, _ = ran
    stacking = Stacking(intercept=0.5, score=0.7, token_probability=2.0)
    problems, head = Problems("standard", "test", 12), folder / f"scorer 0, {EXACT}, head"
    scorer = copied(head, tmp_path / "stacked", stacking)
    combined, alone = (rescored(problems, folder, place) for place in (scorer, head))
    for tree, other in zip(combined.trees, alone.trees, strict=True):
        for name, node in tree.nodes.items():
            draft = node.draft
            if draft is not None:
                step = ScorableStep(draft.text, mean_token_probability=draft.probability)
                expected = stacking.scores([other.nodes[name].draft_score], [step])
                assert node.draft_score == pytest.approx(expected[0], abs=1e-4)
    assert compare_auc(combined, alone)["difference"] != 0


def test_scores_of_another_combination_are_not_taken_over(ran, tmp_path):
    folder, _ = ran
    problems, head = Problems("standard", "test", 12), folder / f"scorer 0, {EXACT}, head"
    for weight in (1.0, 2.0):
        stacking = Stacking(intercept=0.0, score=1.0, token_probability=weight)
        scorer = copied(head, tmp_path / str(weight) / "same name", stacking)
        if weight == 1.0:
            rescored(problems, folder, scorer)
    with pytest.raises(SettingsError):
        rescored(problems, folder, scorer)


def copied(scorer: Path, place: Path, stacking: Stacking) -> Path:
    """Copies a scorer's folder, with another combination."""
    shutil.copytree(scorer, place)
    file = read_scorer_file(str(scorer))
    file.model_copy(update={"stacking": stacking}).write(place)
    return place


def test_a_second_run_trains_nothing(ran, monkeypatch):
    folder, document = ran
    monkeypatch.setattr("trim_graph.training.scorer.train_scorer", None)
    again = own_scorers.study(folder, questions=30, validation=12, test=12, draws=2)
    assert json.loads(json.dumps({**again, "date": document["date"]})) == document


def test_every_combined_scorer_that_was_measured_reads_the_token_probability():
    stacking = json.loads(MEASURED.read_text())["stacking"]
    assert all(stacking[name]["token_probability"] > 0 for name in (*METHODS, EXACT))


def test_the_guide_has_the_tables_of_what_was_measured():
    guide = (own_scorers.MEASURED.parents[2] / "guides" / "scorers.md").read_text()
    for table in report(json.loads(MEASURED.read_text())).split("\n\n"):
        assert table in guide


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
    """The study's comparison, on a run that a test can afford.

    Sampling has no seed, and so few problems spread: three runs with 200 questions, tested on 150, had areas
    of 0.63 to 0.73 by continuations and of 0.64 to 0.72 by the checker, with differences of 0.01, -0.04 and
    0.03. The tolerance is four times their spread. With 60 questions, all areas were 0.52 to 0.57: nothing to
    compare.
    """
    assert areas["monte_carlo"] > 0.5
    assert areas["monte_carlo"] > areas["exact"] - TOLERANCE
