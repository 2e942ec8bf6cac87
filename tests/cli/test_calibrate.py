import json

import pytest

from trim_graph import SettingsError, TrimError
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.arithmetic.shipped import load_calibration
from trim_graph.examples.arithmetic.study.calibrate import calibrate, example_calibrator


@pytest.fixture
def models(world):
    from trim_graph.cli.solve import load_parts

    return load_parts(None)


@pytest.fixture
def calibrator(models):
    questions = [arithmetic_question(problem) for problem in problems("standard", 40, part="validation")]
    return example_calibrator(*models, questions, concurrency=8)


async def test_a_sweep_chooses_the_threshold_that_reaches_enough(calibrator):
    found = await calibrate(calibrator, split="standard", thresholds=(0.05, 0.5, 0.95))
    assert [row["pgr"] for row in found.curve] == [0, 1, 1]
    assert found.threshold == 0.5
    assert found.curve[2]["share"] > 0.99  # everything is regenerated
    assert found.random["share"] == pytest.approx(found.curve[1]["share"], abs=0.03)
    assert found.random_rate == found.random["setting"]
    assert (found.n, found.split, found.accuracy_large) == (40, "standard", 1)


async def test_failures_are_not_left_out(models):
    def broken(question, steps):
        raise OSError("gone")

    questions = [arithmetic_question(problem) for problem in problems("standard", 3, part="validation")]
    calibrator = example_calibrator(models.small, models.large, broken, questions, concurrency=8)
    with pytest.raises(TrimError, match="cannot leave questions out: OSError: gone"):
        await calibrate(calibrator, split="standard", thresholds=(0.5,))


def test_what_ships_is_what_calibrate_writes():
    shipped = load_calibration()
    chosen = min((row for row in shipped.curve if row["pgr"] >= 0.95), key=lambda row: row["share"])
    assert chosen["setting"] == shipped.threshold
    assert shipped.random["setting"] == shipped.random_rate


def test_a_missing_or_damaged_calibration_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"calibrate makes it$"):
        load_calibration(tmp_path / "nix.json")
    for text in ("{", "[]", json.dumps({"threshold": 0.5})):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(SettingsError, match="is damaged"):
            load_calibration(tmp_path / "a.json")
