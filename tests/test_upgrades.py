"""Runs in checkpoints resume in releases with the same schema; runs of other releases are refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from released.make import QUESTION, TEXT, build, on

from trim_graph import SettingsError, open_checkpointer
from trim_graph.state import SCHEMA_VERSION

RELEASED = sorted((Path(__file__).parent / "released").glob("runs-*.db.gz"))
OLD, READ = RELEASED[:1], RELEASED[1:]
"""Those of schema 1, and those that this release reads."""
CHARGED = "a call of the large model was cut off by a crash; 512 tokens were charged for it"


def opened(released, folder):
    file = folder / "runs.db"
    file.write_bytes(gzip.decompress(released.read_bytes()))
    return open_checkpointer(f"sqlite:{file}")


@pytest.fixture(params=READ, ids=lambda file: file.name)
def checkpointer(request, tmp_path):
    with opened(request.param, tmp_path) as saver:
        yield saver


@pytest.fixture(params=OLD, ids=lambda file: file.name)
def old_checkpointer(request, tmp_path):
    with opened(request.param, tmp_path) as saver:
        yield saver


def test_the_oldest_release_of_each_schema_is_kept():
    assert [file.name for file in RELEASED[:2]] == ["runs-0.1.0.db.gz", "runs-0.2.0.db.gz"]


@pytest.mark.parametrize("thread", ["draft", "large call"])
def test_a_run_of_an_older_schema_is_refused_before_any_model_is_called(make, old_checkpointer, thread):
    rig = make(checkpointer=old_checkpointer)
    with pytest.raises(SettingsError, match=r"older trim-graph: .* schema 1, this release reads 2"):
        rig.graph.invoke(None, on(thread), durability="sync")
    assert rig.unasked


@pytest.mark.parametrize("thread", ["draft", "finished"])
def test_a_thread_of_an_older_schema_takes_a_new_question(old_checkpointer, thread):
    result = build(old_checkpointer).invoke(QUESTION, on(thread), durability="sync")
    assert result["messages"][-1].text == TEXT
    assert result["trim"]["stopped"] == "finished"


@pytest.mark.parametrize(("thread", "notes"), [("draft", []), ("large call", [CHARGED])])
def test_a_run_that_was_under_way_is_finished(checkpointer, thread, notes):
    result = build(checkpointer).invoke(None, on(thread), durability="sync")
    assert result["messages"][-1].text == TEXT
    assert result["trim"]["decisions"] == {"accept": 2, "regenerate": 1}
    assert result["trim"]["notes"] == notes


def test_a_finished_thread_is_read_and_takes_a_second_question(checkpointer):
    graph = build(checkpointer)
    assert graph.get_state(on("finished")).values["messages"][-1].text == TEXT
    result = graph.invoke(QUESTION, on("finished"), durability="sync")
    assert [message.type for message in result["messages"]] == ["human", "ai", "human", "ai"]


def test_a_finished_thread_is_forked(checkpointer):
    graph = build(checkpointer)
    history = graph.get_state_history(on("finished"))
    scored = next(s for s in history if (s.values.get("draft") or {}).get("score") == 1.0)
    fork = graph.update_state(scored.config, {"draft": {**scored.values["draft"], "score": 0.0}})
    assert "SO it is" in graph.invoke(None, fork, durability="sync")["messages"][-1].text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": SCHEMA_VERSION + 1}, f"newer trim-graph: .* schema {SCHEMA_VERSION + 1}.*Upgrade"),
        ({"settings": {"no_such": 1}}, "stored settings of run .* are not valid: no_such"),
        ({"settings": {"max_steps": -1}}, r"max_steps: .*greater than or equal to 1 \(got -1\)"),
    ],
)
def test_a_state_that_is_not_ours_is_refused_before_any_model_is_called(make, checkpointer, change, match):
    rig = make(checkpointer=checkpointer)
    run = rig.graph.get_state(on("draft")).values["run"]
    rig.graph.update_state(on("draft"), {"run": {**run, **change}}, as_node="generate_step")
    with pytest.raises(SettingsError, match=match):
        rig.graph.invoke(None, on("draft"), durability="sync")
    assert rig.unasked
