import asyncio
import subprocess
import sys

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import SettingsError, create_trim_graph, open_checkpointer
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = ["one is 1", "two is wrong", "three is 3", "the answer is \\boxed{3}"]
RIGHT = ["ONE IS 1", "TWO IS 2", "THREE IS 3", "THE ANSWER IS \\boxed{3}"]
QUESTION = {"messages": [("user", "count to three")]}
THREAD = {"configurable": {"thread_id": "a"}}


def build(checkpointer, **options):
    return create_trim_graph(
        ScriptedChatModel(script=STEPS),
        ScriptedChatModel(script=RIGHT),
        ScriptedScorer({"two is wrong": 0.1}),
        policy=threshold(0.5),
        checkpointer=checkpointer,
        **options,
    )


@pytest.mark.parametrize("spec", [None, "none"])
def test_none_is_no_checkpointer(spec):
    with open_checkpointer(spec) as checkpointer:
        assert checkpointer is None
        assert build(checkpointer).invoke(QUESTION)["trim"]["answer"] == "3"


async def test_memory_works_with_both_kinds_of_with():
    with open_checkpointer("memory") as checkpointer:
        assert isinstance(checkpointer, InMemorySaver)
    async with open_checkpointer("memory") as checkpointer:
        result = await build(checkpointer).ainvoke(QUESTION, THREAD)
    assert result["trim"]["steps"] == {"small": 3, "large": 1}


def test_a_run_in_sqlite_is_inspected_resumed_and_forked_with_the_ordinary_calls(tmp_path):
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    with open_checkpointer(spec) as checkpointer:
        graph = build(checkpointer)
        graph.invoke(QUESTION, THREAD, interrupt_before=["score_step"], durability="sync")
        assert graph.get_state(THREAD).values["draft"]["text"] == "one is 1"
    with open_checkpointer(spec) as checkpointer:
        graph = build(checkpointer)
        result = graph.invoke(None, THREAD, durability="sync")
        text = result["messages"][-1].text
        assert text == "one is 1\n\nTWO IS 2\n\nthree is 3\n\nthe answer is \\boxed{3}"
        history = list(graph.get_state_history(THREAD))
        scored = next(s for s in reversed(history) if (s.values.get("draft") or {}).get("score"))
        fork = graph.update_state(scored.config, {"draft": {**scored.values["draft"], "score": 0.0}})
        forked = graph.invoke(None, fork, durability="sync")
        assert forked["messages"][-1].text.startswith("ONE IS 1\n\nTWO IS 2")


def test_an_asynchronous_run_resumes_in_sqlite(tmp_path):
    spec = f"sqlite:{tmp_path / 'runs.db'}"

    async def first():
        async with open_checkpointer(spec) as checkpointer:
            await build(checkpointer).ainvoke(QUESTION, THREAD, interrupt_after=["score_step"])

    async def second():
        async with open_checkpointer(spec) as checkpointer:
            return await build(checkpointer).ainvoke(None, THREAD)

    asyncio.run(first())
    assert asyncio.run(second())["trim"]["answer"] == "3"


@pytest.mark.parametrize(
    "spec", ["redis", "sqlite", "sqlite:", "memory:x", "none:x", "SQLITE:x", "postgresql:x", "env:"]
)
def test_an_unknown_specification_says_what_there_is(spec):
    with pytest.raises(SettingsError, match=r"choose none, memory, sqlite:PATH, postgresql://"):
        open_checkpointer(spec)


@pytest.mark.parametrize("path", ["runs.db", "data/my runs.sqlite3"])
def test_the_bare_name_of_a_file_gets_its_kind(path):
    with pytest.raises(
        SettingsError, match=f"checkpoint is '{path}', without its kind: write sqlite:{path}$"
    ):
        open_checkpointer(path)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [("sqllite:x", "sqlite"), ("SQLite:x", "sqlite"), ("postgres:x", "postgresql"), ("enf:X", "env")],
)
def test_a_misspelt_kind_names_the_one_that_is_meant(spec, meant):
    with pytest.raises(
        SettingsError, match=rf"is not one of the choices \(did you mean {meant}:\?\): choose"
    ):
        open_checkpointer(spec)


@pytest.mark.parametrize(
    "call",
    [
        lambda graph: graph.ainvoke(QUESTION, THREAD),
        lambda graph: anext(graph.astream(QUESTION, THREAD)),
        lambda graph: graph.aget_state(THREAD),
    ],
    ids=["ainvoke", "astream", "aget_state"],
)
async def test_a_checkpointer_for_invoke_says_how_one_is_opened_for_ainvoke(tmp_path, call):
    with open_checkpointer(f"sqlite:{tmp_path / 'runs.db'}") as checkpointer:
        graph = build(checkpointer)
        with pytest.raises(SettingsError, match=r"runs\.db is open for invoke .* by async with open_check"):
            await call(graph)
        assert graph.invoke(QUESTION, THREAD)["trim"]["answer"] == "3"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SettingsError, match="nowhere does not exist"):
        open_checkpointer(f"sqlite:{tmp_path / 'nowhere' / 'runs.db'}")


def test_without_the_extra_the_pip_line_is_printed():
    code = (
        "import sys; sys.modules['langgraph.checkpoint.sqlite'] = None\n"
        "from trim_graph import open_checkpointer\n"
        "open_checkpointer('sqlite:x.db').__enter__()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "trim-graph[sqlite]"' in done.stderr


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "postgres://h/d?password=secret"])
def test_a_password_is_refused_and_not_repeated(url):
    with pytest.raises(SettingsError, match="holds a password; set PGPASSWORD") as caught:
        open_checkpointer(url)
    assert "secret" not in str(caught.value)


async def test_an_environment_variable_may_name_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", f"sqlite:{tmp_path / 'runs.db'}")
    async with open_checkpointer("env:RUNS") as checkpointer:
        await build(checkpointer).ainvoke(QUESTION, THREAD)
    assert (tmp_path / "runs.db").exists()
    monkeypatch.setenv("RUNS", "rubbish")
    with pytest.raises(
        SettingsError, match="from the environment variable RUNS, is not one of the choices: choose none, "
    ):
        open_checkpointer("env:RUNS")
    monkeypatch.delenv("RUNS")
    with pytest.raises(SettingsError, match="the environment variable RUNS is not set"):
        open_checkpointer("env:RUNS")
