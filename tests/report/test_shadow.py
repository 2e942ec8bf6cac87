"""The page of a shadow: figures, verdict, and no text of a model that becomes markup."""

import json

import pytest

from trim_graph.errors import InputError
from trim_graph.report.shadow import text_of_summary, write_shadow_report
from trim_graph.shadow.records import open_sink, text_of
from trim_graph.shadow.runner import new_record


def a_record(*, text="<script>alert(1)</script>", agree=False):
    record = new_record("large", priced=False)
    record |= {"kind": "run", "session": "s", "counts": {"seen": 3, "recorded": 1}, "agree": agree}
    record["question"] = record["routed"] = text_of(text, kept=True)
    record["answered"] = {
        "answer": text_of(text, kept=True),
        "model": text,
        "input_tokens": 1,
        "output_tokens": 10,
        "seconds": None,
        "cost": None,
        "steps": 1,
    }
    record["would"] = {
        "stopped": "finished",
        "steps": {},
        "large_tokens": 5,
        "small_tokens": 3,
        "scorer_tokens": 3,
        "share": 0.5,
        "cost": None,
        "seconds": 1.0,
        "first_large": 2,
        "decisions": {},
        "scores": [],
        "places": [2],
    }
    return record


@pytest.fixture
def file(tmp_path):
    sink = open_sink(tmp_path / "shadow.db")
    sink.write(a_record())
    sink.close()
    return tmp_path / "shadow.db"


def test_the_page_shows_figures_verdict_and_answers_that_differ(file):
    page, summary = write_shadow_report(file)
    text = page.read_text("utf-8")
    assert page == file.with_suffix(".html")
    assert summary["groups"][0]["share"]["value"] == 0.5
    for shown in ("50 %", "undecided", "Answers that differ (1)", "3 seen", "step 2"):
        assert shown in text
    assert [path.name for path in file.parent.iterdir()].count(".shadow.html") == 0


def test_no_text_becomes_markup(file):
    page, _ = write_shadow_report(file)
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "default-src 'none'" in text


def test_half_a_pair_of_surrogates_is_written_as_a_reference(tmp_path):
    sink = open_sink(tmp_path / "shadow.jsonl")
    (tmp_path / "shadow.jsonl").write_text(json.dumps(a_record(text="\ud800")) + "\n")
    sink.close()
    page, _ = write_shadow_report(tmp_path / "shadow.jsonl")
    page.read_text("utf-8")


def test_the_text_for_a_terminal_has_the_same_figures(file):
    _, summary = write_shadow_report(file)
    text = text_of_summary(summary)
    assert "large tokens of routing" in text
    assert "The large model answers. Routed" in text


def test_a_file_without_records_is_refused(tmp_path):
    open_sink(tmp_path / "shadow.jsonl").close()
    with pytest.raises(InputError, match="has no records yet"):
        write_shadow_report(tmp_path / "shadow.jsonl")
