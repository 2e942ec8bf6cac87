"""What a report counts, without a browser."""

import json
import re

import pytest
from written_runs import ARMS, a_row, a_summary, usual_rows, write_run

from trim_graph import InputError
from trim_graph.report import write_report
from trim_graph.report.gathering import Calibration, Gathered, Places
from trim_graph.report.page import DIFFERS, FAILED, LIMITED, differs, index_of, trace_of


def step(text, score=None, label=None, writer="small", discarded=None):
    return {"text": text, "score": score, "label": label, "writer": writer, "discarded": discarded}


def test_what_arms_have_in_common_is_rated_once_and_nothing_behind_a_wrong_step():
    found = Calibration()
    bad = {"text": "b", "score": 0.2, "label": False}
    for _ in range(3):
        found.add(
            a_row("small", 0, steps=[step("a", 0.9, True), step("b", 0.2, False), step("c", 0.8, False)])
        )
    found.add(a_row("threshold-0.5", 0, steps=[step("a", 0.9, True), step("B", 0.7, True, "large", bad)]))
    found.add(a_row("small", 1, steps=[step("a", 0.9, True)]))
    kind, metrics = found.metrics()
    # Twice "a" (another question), "b" once though it was discarded too, "B".
    assert (kind, metrics["n"], metrics["right"]) == ("steps", 4, 3)


def test_without_labels_of_steps_solutions_are_rated():
    found = Calibration()
    for index, correct in ((0, True), (1, False), (2, None)):
        found.add(a_row("small", index, correct=correct, steps=[step("a", 0.9), step("b", 0.3 + index / 10)]))
    kind, metrics = found.metrics()
    assert (kind, metrics["n"], metrics["right"]) == ("solutions", 2, 1)
    assert [one["mean_score"] for one in metrics["bins"]] == pytest.approx([0.3, 0.4])
    assert Calibration().metrics() is None


def test_places_weigh_steps_by_their_part_of_a_solution():
    places = Places()
    places.add([step("a", writer="large"), step("b"), step("c"), step("d", writer="large")])
    shares = places.shares()
    assert shares.by_step == [1, 0, 0, 1]
    # A quarter is two and a half tenths.
    assert shares.by_place == pytest.approx([1, 1, 0.5, 0, 0, 0, 0, 0.5, 1, 1])
    for _ in range(9):
        places.add([step("a")])
    assert places.shares().by_step == [0.1, None, None, None]  # one solution of ten says little


@pytest.mark.parametrize(
    ("mine", "large", "expected"),
    [
        ({"correct": True, "answer": "1/2"}, {"correct": True, "answer": "0.5"}, False),
        ({"correct": False, "answer": "3"}, {"correct": True, "answer": "2"}, True),
        ({"correct": False, "answer": "3"}, {"correct": False, "answer": "3"}, False),
        ({"correct": False, "answer": "3"}, {"correct": False, "answer": None}, True),
        ({"correct": None, "answer": " 3"}, {"correct": None, "answer": "3"}, False),
    ],
)
def test_disagreeing_with_the_large_model(mine, large, expected):
    assert differs(a_row("small", 0, **mine), a_row("large", 0, **large)) is expected


def test_flags_are_of_the_same_sample():
    arms = {"large": 0, "small": 1}
    rows = [
        a_row("large", 0, 0, answer="2"),
        a_row("large", 0, 1, answer="3", correct=False),
        a_row("small", 0, 0, answer="3", correct=False),
        a_row("small", 0, 1, answer="3", correct=False, stopped="budget", error="E"),
    ]
    assert [run[4] for run in index_of(rows, arms)["r"]] == [0, 0, DIFFERS, FAILED | LIMITED]


def test_a_text_of_several_arms_is_stored_once():
    rows = [a_row(arm, 1) for arm in ARMS]
    traced = trace_of(rows, {arm: at for at, arm in enumerate(ARMS)})
    assert len(traced["texts"]) == len(set(traced["texts"]))
    for row, run in zip(rows, traced["runs"], strict=True):
        assert [traced["texts"][one["text"]] for one in run["steps"]] == [one["text"] for one in row["steps"]]


def test_rows_come_by_question_and_the_last_of_two_counts(tmp_path):
    rows = [a_row(arm, index) for arm in ("small", "large") for index in (7, 0, 3)]
    gathered = Gathered([*rows, a_row("small", 3, answer="new")], tmp_path / "spool")
    found = list(gathered.by_question())
    gathered.close()
    assert [[(row["arm"], row["index"]) for row in those] for those in found] == [
        [("large", index), ("small", index)] for index in (0, 3, 7)
    ]
    assert found[1][1]["answer"] == "new"


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page.read_text("utf-8"))
    return json.loads(text)


def test_a_run_that_goes_on_and_one_that_has_ended_in_parquet(tmp_path):
    running = write_run(tmp_path / "running", usual_rows(3)[:-4])
    files = write_report(running, tmp_path / "page.html")
    data = data_of(files[0])
    assert data["summary"] is None
    assert data["warnings"] == ["This evaluation has not ended: metrics are missing.", "No rows of random."]
    assert data["limit"] == 48  # what the large model alone uses
    assert {file.name for file in (tmp_path / "page-plots").iterdir()} == {file.name for file in files[1:]}
    ended = write_run(
        tmp_path / "ended", usual_rows(3), summary=a_summary(3, warnings=["few"]), parquet=True, budget=9
    )
    page, *plots = write_report(ended)
    assert page == ended / "report.html"
    data = data_of(page)
    assert (data["warnings"], data["limit"], len(data["questions"])) == (["few"], 9, 3)
    names = {"accuracy", "calibration", "large_by_place", "large_by_step"}
    assert {file.name for file in plots} == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    for file in plots:
        begin = file.read_bytes()[:100]
        assert begin.startswith(b"\x89PNG") if file.suffix == ".png" else b"<?xml" in begin


def test_a_report_of_fewer_questions_than_the_folder_has_shows_those(tmp_path):
    write_run(tmp_path / "run", usual_rows(9), summary=a_summary(4))
    page = write_report(tmp_path / "run")[0].read_text()
    assert 'id="row-3"' in page
    assert 'id="row-4"' not in page


def test_a_summary_of_an_earlier_release_has_no_savings_and_is_shown(tmp_path):
    summary = a_summary(1)
    for arm in summary["arms"]:
        del arm["savings"]
    assert "large_alone" not in summary
    write_run(tmp_path / "run", usual_rows(1), summary=summary)
    assert data_of(write_report(tmp_path / "run")[0])["summary"]["arms"] == summary["arms"]


def test_what_is_no_run_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no folder of an evaluation"):
        write_report(tmp_path)
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(InputError, match="has no rows yet"):
        write_report(empty)
    broken = write_run(tmp_path / "broken", usual_rows(1))
    (broken / "rows" / "small.jsonl").write_text('{"arm": 3}\n')
    with pytest.raises(InputError, match=r"small\.jsonl, line 1: not a row"):
        write_report(broken)
    for summary, message in (([], "accuracy|arms"), (a_summary(1, version=3), "version 3")):
        other = write_run(tmp_path / f"summary-{message[:3]}", usual_rows(1), summary=summary)
        with pytest.raises(InputError, match=rf"summary\.json is no summary of this release: .*({message})"):
            write_report(other)
    assert not list(tmp_path.rglob("*.html*"))
