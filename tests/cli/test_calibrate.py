import json

import pytest

from trim_graph import SettingsError
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.arithmetic.calibrate import (
    Calibrator,
    Point,
    as_questions,
    calibrate,
    choose,
    load_calibration,
)


def point(setting, share, pgr):
    return Point(setting, 0.5, share, pgr)


def test_the_cheapest_that_recovers_enough_is_chosen():
    points = [point(0.1, 0.1, 0.5), point(0.5, 0.3, 0.96), point(0.6, 0.2, 0.95), point(0.9, 0.9, 1.0)]
    assert choose(points).setting == 0.6


def test_where_none_recovers_enough_the_best_is_chosen():
    assert choose([point(0.1, 0.1, 0.5), point(0.5, 0.5, 0.8), point(0.6, 0.4, 0.8)]).setting == 0.6


def test_without_a_gap_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match="no better than the small one"):
        choose([point(0.1, 0.1, None)])


@pytest.fixture
def calibrator(world):
    from trim_graph.cli.solving import load_parts

    small, large, judge = load_parts(None)
    questions = as_questions(problems("standard", 40, part="validation"))
    return Calibrator(small, large, judge, questions, concurrency=8)


async def test_sweep(calibrator):
    found = await calibrate(calibrator, split="standard", thresholds=(0.05, 0.5, 0.95))
    assert [row["pgr"] for row in found.curve] == [0, 1, 1]
    assert found.threshold == 0.5
    assert found.curve[2]["share"] > 0.99  # everything is regenerated
    assert found.random["share"] == pytest.approx(found.curve[1]["share"], abs=0.03)
    assert found.random_rate == found.random["setting"]
    assert (found.n, found.split, found.accuracy_large) == (40, "standard", 1)


async def test_no_solution_is_scored_twice(calibrator):
    calls = []
    scorer = calibrator.models[2].scorer
    calibrator.models[2].scorer = type(
        "Counting", (), {"ascore": lambda self, q, s: (calls.append(1), scorer.ascore(q, s))[1]}
    )()
    await calibrate(calibrator, split="standard", thresholds=(0.5,))
    once = len(calls)
    await calibrate(calibrator, split="standard", thresholds=(0.5,))
    assert len(calls) == once


async def test_failures_are_not_left_out(calibrator):
    calibrator.models[2].score = calibrator.models[2].ascore = None
    with pytest.raises(RuntimeError, match="cannot leave questions out: TypeError"):
        await calibrate(calibrator, split="standard", thresholds=(0.5,))


def test_loading(tmp_path):
    with pytest.raises(SettingsError, match=r"calibrate makes it$"):
        load_calibration(tmp_path / "nix.json")
    for text in ("{", "[]", json.dumps({"threshold": 0.5})):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(SettingsError, match="is damaged"):
            load_calibration(tmp_path / "a.json")
