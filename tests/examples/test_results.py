"""The measured results of the example world: the command, on a handful of problems, and its figures."""

import json

import numpy as np
import pytest

from trim_graph import SettingsError
from trim_graph.examples.arithmetic.study import results
from trim_graph.examples.arithmetic.study import trees as recordings
from trim_graph.examples.arithmetic.study.claims import claims
from trim_graph.examples.arithmetic.study.families import (
    RANDOM,
    SHARES,
    THRESHOLD,
    Family,
    at_spend,
    operating_points,
)
from trim_graph.examples.arithmetic.study.figures import Draws, Figure, difference, over_random_questions
from trim_graph.examples.arithmetic.study.paper_test import BY_QUESTION
from trim_graph.examples.arithmetic.study.report import report
from trim_graph.examples.arithmetic.study.trees import Problems, recorded_trees
from trim_graph.examples.arithmetic.study.worlds import Arm, World
from trim_graph.policies import threshold
from trim_graph.training.rollout_collection import TreeExpander

OPTIONS = ["--split", "standard", "--at-most", "5", "--check", "2", "--resamples", "25"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder in which the command has run once, and what it wrote."""
    folder = tmp_path_factory.mktemp("results")
    out = tmp_path_factory.mktemp("out")
    results.main([str(folder), *OPTIONS, "--out", str(out)])
    return folder, out


@pytest.fixture(scope="module")
def world(kept):
    return World("standard", recorded_trees(Problems("standard", "test", 5), kept[0]))


def test_the_command_writes_report_metrics_and_plot(kept):
    _, out = kept
    document = json.loads((out / "results.json").read_text())
    assert document["worlds"]["standard"]["n"] == 5
    assert {found["same"] == found["n"] == 2 for found in document["checks"].values()} == {True}
    assert set(document["scorers"]) == {"prm", "prm_early", "token probability"}
    families = document["worlds"]["standard"]["families"]
    assert len(families) == 11
    assert all(family["points"] for family in families.values())
    text = (out / "RESULTS.md").read_text()
    assert text == report(document)
    for said in ("5 test, 5 validation", "cores", "Seeds: test 0", *families):
        assert said in text
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_test_is_in_the_document(kept):
    document = json.loads((kept[1] / "results.json").read_text())
    world = document["worlds"]["standard"]
    measured = world["over_query_level"]
    assert {found["beside"] for found in measured.values()} <= set(BY_QUESTION)
    assert not set(measured) & {*BY_QUESTION, "random steps"}


def test_a_report_is_written_anew_without_measuring(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "study", None)
    document = json.loads((kept[1] / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(document))
    results.main(["--rewrite", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert (tmp_path / "RESULTS.md").read_text() == (kept[1] / "RESULTS.md").read_text()
    assert "nothing was measured" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        results.main(["--out", str(tmp_path)])
    assert "name the FOLDER" in capsys.readouterr().err


def test_a_second_run_asks_no_model_and_finds_the_same(kept, tmp_path, monkeypatch):
    async def refuse(self, question):
        raise AssertionError("the models were asked again")

    monkeypatch.setattr(TreeExpander, "expand", refuse)
    monkeypatch.setattr("trim_graph.examples.arithmetic.study.router._alone", refuse)
    for file in kept[0].glob("study-*.json"):
        file.unlink()
    results.main([str(kept[0]), *OPTIONS, "--check", "0", "--out", str(tmp_path)])
    first, second = (json.loads((out / "results.json").read_text()) for out in (kept[1], tmp_path))
    for key in ("worlds", "transfer", "scorers"):
        assert first[key] == second[key]


def test_what_was_measured_of_a_world_is_taken_from_there(kept, tmp_path, monkeypatch):
    def refuse(world, resamples):
        raise AssertionError("it was measured again")

    monkeypatch.setattr("trim_graph.examples.arithmetic.study.measuring.study_world", refuse)
    results.main([str(kept[0]), *OPTIONS, "--out", str(tmp_path)])
    monkeypatch.setattr(results, "_code", lambda: "changed")
    with pytest.raises(AssertionError, match="measured again"):
        results.main([str(kept[0]), *OPTIONS, "--out", str(tmp_path)])


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    expand, asked = TreeExpander.expand, []

    async def fails_once(self, question):
        asked.append(question.text)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return await expand(self, question)

    monkeypatch.setattr(TreeExpander, "expand", fails_once)
    drawn = Problems("standard", "test", 4)
    with pytest.raises(KeyboardInterrupt):
        recorded_trees(drawn, tmp_path, concurrency=1)
    trees = recorded_trees(drawn, tmp_path, concurrency=1)
    assert [tree.question.text for tree in trees] == [question.text for question in drawn.questions()]
    assert len(asked) == 5  # two before the interrupt are kept; the third and the fourth follow


def test_recordings_of_other_weights_are_refused(kept, monkeypatch):
    monkeypatch.setattr(recordings, "weights_identity", lambda: {"small": "retrained"})
    with pytest.raises(SettingsError, match=r"was begun with other settings.*weights"):
        recorded_trees(Problems("standard", "test", 5), kept[0])


def test_what_cannot_be_recorded_is_an_error(tmp_path, monkeypatch):
    async def nothing(self, question):
        return None

    monkeypatch.setattr(TreeExpander, "expand", nothing)
    with pytest.raises(recordings.TrimError, match="cannot be recorded"):
        recorded_trees(Problems("standard", "test", 1), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at-most", "0"], "--at-most is 0: choose 1 or more"),
        (["--resamples", "0"], "--resamples is 0"),
        (["--out", "nowhere"], "--out nowhere: name a folder that exists"),
        (["--split", "easy"], "invalid choice: 'easy'"),
    ],
)
def test_what_cannot_work_is_refused_first(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        results.main(["kept", *arguments])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


# The figures


def test_an_oracle_and_hindsight_bound_what_a_policy_can_do(world):
    oracle = world.oracle()
    floor = world.floor(world.large.accuracy)
    assert oracle.accuracy >= world.large.accuracy
    assert floor <= world.share(oracle) < 1
    for t in (0.3, 0.7, 0.9, 1.0):
        arm = world.solved(threshold(t))
        assert world.floor(arm.accuracy) <= world.share(arm) + 1e-9
    assert world.floor(world.small.accuracy) == 0
    assert 0 < world.steps_right() < 1


def test_the_ends_of_the_threshold_are_the_models_alone(world):
    for setting, alone in ((0.0, world.small), (1.0, world.large)):
        arm = THRESHOLD.on(world, setting)
        assert arm.accuracy == alone.accuracy
    assert THRESHOLD.on(world, 0.0).spent == 0


def listed(world, results):
    """A family whose settings gave these numbers of right answers and large tokens."""
    arms = {
        number: Arm(np.arange(len(world)) < right, np.full(len(world), tokens))
        for number, (right, tokens) in enumerate(results)
    }
    return Family("listed", lambda _: list(arms), lambda _, setting: arms[setting], object())


def test_an_operating_point_is_the_best_within_its_share(world):
    each = world.large.spent / len(world)
    family = listed(world, [(1, 0.08 * each), (3, 0.18 * each), (2, 0.19 * each), (3, 0.17 * each)])
    points = {point.target: point.setting for point in operating_points(family, world, [0.05, 0.1, 0.2])}
    assert points == {0.1: 0, 0.2: 3}
    assert len(SHARES) == 19


def test_the_arm_at_equal_spend_is_never_the_poorer_one(world):
    settings = RANDOM.settings(world)
    for tokens in (0, world.large.spent // 4, world.large.spent // 2):
        rate, arm = at_spend(RANDOM, world, settings, tokens)
        assert arm.spent >= tokens
        assert rate == 0 or tokens > 0


def test_a_ratio_is_reported_only_where_the_denominator_is_clear_of_zero():
    draws = np.linspace(0.5, 1.5, 101)
    one, wide = Figure(2.0, 2 * draws), Figure(1.0, draws - 1)
    assert one.over(wide) is None
    ratio = one.over(Figure(1.0, draws))
    assert (ratio.value, *ratio.interval) == pytest.approx((2, 2, 2))
    assert one.minus(one).interval == (0, 0)


def test_the_straight_line_has_an_ibc_of_one(world):
    half = [world.split_by(np.arange(len(world)) < count) for count in range(len(world) + 1)]
    draws = Draws(world, {str(number): arm for number, arm in enumerate(half)}, resamples=10)
    ends = draws.curve(["0", str(len(world))])
    assert ends["mean_ibc"].value == pytest.approx(1)
    assert ends["mean_delta_ibc"].value == pytest.approx(0)
    assert ends["cpt_80"].value == pytest.approx(0.8)


def test_random_questions_gain_nothing_over_themselves(world):
    found = over_random_questions(world, world.large)
    assert found["accuracy"] == pytest.approx(0)
    low, high = difference(world.large, world.large)["interval"]
    assert low == -high < 0


def test_claims_are_judged_by_their_intervals(kept):
    document = json.loads((kept[1] / "results.json").read_text())
    best = document["worlds"]["standard"]["best"]["within"]
    best["share"]["value"], best["below_large"]["accuracy"] = 0.199, -0.01
    assert any("within 1% for 20% of its tokens: reached" in line for line in claims(document))
    best["share"]["value"] = 0.201
    assert any("**not reached**" in line for line in claims(document))
    measures = document["worlds"]["standard"]["against"]["query router"]["mean_ibc"]
    for interval, verdict in (((5.1, 6), "it holds"), ((4, 6), "open"), ((2, 4.9), "it does not hold")):
        measures["ratio"] = {"value": 5.0, "interval": interval}
        assert any(verdict in line for line in claims(document) if "cost efficiency" in line)


def test_the_papers_test_holds_by_the_ratio_to_the_best_query_level_method(kept):
    document = json.loads((kept[1] / "results.json").read_text())
    world = document["worlds"]["standard"]
    world["families"]["cascade, least PRM score"]["curve"]["delta_ibc"] = metric(0.4, 0.3, 0.5)

    def said(ratio):
        found = {"beside": "cascade, least PRM score", "difference": metric(1.0, 0.5, 2.0), "ratio": ratio}
        world["over_query_level"] = {"threshold": found}
        return next(line for line in claims(document) if "the paper's test" in line)

    assert "it holds for the threshold" in said(metric(6.0, 5.1, 7.0))
    assert "it does not hold for the threshold" in said(metric(4.0, 3.0, 4.9))
    assert "open: the interval holds both for the threshold" in said(metric(5.0, 4.0, 6.0))
    assert "no ratio can be reported for the threshold" in said(None)


def metric(value, low, high):
    return {"value": value, "interval": [low, high]}


def test_a_probability_of_a_whole_answer_is_weighed_by_tokens(world):
    for tree, found in zip(world.trees, world.confidence(), strict=True):
        drafts = [node.draft for node in world.alone(tree)]
        tokens = [probability for draft in drafts for probability in [draft.probability] * draft.tokens]
        assert found == pytest.approx(sum(tokens) / len(tokens))
