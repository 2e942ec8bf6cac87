"""Checkpoints in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from trim_graph import SettingsError, TrimContext, create_trim_graph, open_checkpointer, open_ledger
from trim_graph.errors import StorageError
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = ["one is 1", "two is wrong", "three is 3", "the answer is \\boxed{3}"]
RIGHT = ["ONE IS 1", "TWO IS 2", "THREE IS 3", "THE ANSWER IS \\boxed{3}"]
TEXT = "one is 1\n\nTWO IS 2\n\nthree is 3\n\nthe answer is \\boxed{3}"
QUESTION = {"messages": [("user", "count to three")]}


def build(checkpointer):
    return create_trim_graph(
        ScriptedChatModel(script=STEPS),
        ScriptedChatModel(script=RIGHT),
        ScriptedScorer({"two is wrong": 0.1}),
        policy=threshold(0.5),
        checkpointer=checkpointer,
    )


def on(thread: str):
    return {"configurable": {"thread_id": thread}}


@pytest.fixture
def spec(database, monkeypatch) -> str:
    monkeypatch.setenv("TRIM_TEST_RUNS", database)
    return "env:TRIM_TEST_RUNS"


def test_a_run_is_inspected_resumed_and_forked_with_the_ordinary_calls(spec):
    with open_checkpointer(spec) as checkpointer:
        graph = build(checkpointer)
        graph.invoke(QUESTION, on("a"), interrupt_before=["score_step"], durability="sync")
        assert graph.get_state(on("a")).values["draft"]["text"] == "one is 1"
    with open_checkpointer(spec) as checkpointer:
        graph = build(checkpointer)
        assert graph.invoke(None, on("a"), durability="sync")["messages"][-1].text == TEXT
        history = list(graph.get_state_history(on("a")))
        scored = next(s for s in reversed(history) if (s.values.get("draft") or {}).get("score"))
        fork = graph.update_state(scored.config, {"draft": {**scored.values["draft"], "score": 0.0}})
        forked = graph.invoke(None, fork, durability="sync")
        assert forked["messages"][-1].text.startswith("ONE IS 1\n\nTWO IS 2")


def test_many_runs_at_once_share_the_pool(spec):
    async def run():
        async with open_checkpointer(spec) as checkpointer:
            graph = build(checkpointer)
            runs = (graph.ainvoke(QUESTION, on(str(n)), durability="sync") for n in range(40))
            return await asyncio.gather(*runs)

    assert {result["messages"][-1].text for result in asyncio.run(run())} == {TEXT}


def test_processes_that_start_together_make_the_tables_once(database, tmp_path):
    code = "import sys\nfrom trim_graph import open_checkpointer\nwith open_checkpointer('env:RUNS'): pass\n"
    environment = {**os.environ, "RUNS": database}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()


KILLED = """
import os, signal, sys
from trim_graph import create_trim_graph, open_checkpointer
from trim_graph.errors import StorageError
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel
from tests.postgres.test_checkpoint import QUESTION, RIGHT, STEPS, on

def score(question, steps):
    if len(steps) == 3 and sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.1 if "wrong" in step else 1.0 for step in steps]

with open_checkpointer("env:RUNS") as checkpointer:
    graph = create_trim_graph(
        ScriptedChatModel(script=STEPS), ScriptedChatModel(script=RIGHT), score,
        policy=threshold(0.5), checkpointer=checkpointer,
    )
    result = graph.invoke(QUESTION if sys.argv[1] == "die" else None, on("killed"), durability="sync")
    print(result["messages"][-1].text, end="")
"""


def test_a_killed_run_goes_on_in_another_process(database, pytestconfig):
    environment = {**os.environ, "RUNS": database, "PYTHONPATH": str(pytestconfig.rootpath)}

    def run(how):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), how],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("die").returncode == -signal.SIGKILL
    done = run("resume")
    assert (done.returncode, done.stdout) == (0, TEXT), done.stderr


def test_a_database_that_is_not_there_is_named_without_its_password(database, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RUNS", f"{database}_not")
    with (
        pytest.raises(SettingsError, match=r"PostgreSQL database host=127.0.0.1 .* does not exist") as caught,
        open_checkpointer("env:RUNS"),
    ):
        pass
    password = psycopg.conninfo.conninfo_to_dict(database)["password"]
    assert password not in str(caught.value) + caplog.text


async def test_a_server_that_is_not_there_is_said_at_once():
    with pytest.raises(SettingsError, match=r"cannot be opened: .*refused"):
        async with open_checkpointer("postgresql://nobody@127.0.0.1:9/runs"):
            pass


def test_the_password_may_come_from_the_environment(database, monkeypatch):
    parts = psycopg.conninfo.conninfo_to_dict(database)
    monkeypatch.setenv("PGPASSWORD", parts["password"])
    spec = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}"
    with open_checkpointer(spec) as checkpointer:
        assert build(checkpointer).invoke(QUESTION, on("a"))["messages"][-1].text == TEXT


def test_a_thread_is_deleted_whole_or_refused(spec):
    with open_checkpointer(spec) as checkpointer:
        graph = build(checkpointer)
        for thread in ("a", "b"):
            graph.invoke(QUESTION, on(thread), durability="sync")
        with pytest.raises(NotImplementedError, match="DeltaChannel"):
            checkpointer.prune(["a"])
        checkpointer.prune(["a"], strategy="delete")
        checkpointer.delete_thread("b")
        assert not graph.get_state(on("a")).values
        assert not graph.get_state(on("b")).values


def test_runs_on_many_threads_share_an_account_of_the_same_database(spec):
    with open_checkpointer(spec) as checkpointer, open_ledger(spec) as ledger:
        graph = create_trim_graph(
            ScriptedChatModel(script=STEPS),
            ScriptedChatModel(script=RIGHT),
            lambda question, steps: [0.0] * len(steps),
            policy=threshold(0.5),
            checkpointer=checkpointer,
            ledger=ledger,
            quotas={"user": {"large_calls": 5}},
        )
        ada = TrimContext(user="ada")
        with ThreadPoolExecutor(4) as threads:
            runs = [threads.submit(graph.invoke, QUESTION, on(str(n)), context=ada) for n in range(4)]
            calls = [run.result()["trim"]["usage"]["large"]["calls"] for run in runs]
        assert sum(calls) == ledger.used("user:ada").large_calls == 5


def columns_of(database, table):
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
        )
        return {name for (name,) in rows}


@pytest.mark.parametrize(
    ("opened", "table"), [(open_checkpointer, "checkpoints"), (open_ledger, "trim_accounts")]
)
def test_tables_of_another_program_are_refused_and_left_alone(spec, database, opened, table):
    with psycopg.connect(database) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(f"CREATE TABLE {table} (a INTEGER)")
    try:
        message = rf"database host=.* cannot be opened: its table {table} has the columns a, where "
        with pytest.raises(StorageError, match=message), opened(spec):
            pass
        assert columns_of(database, table) == {"a"}
    finally:
        with psycopg.connect(database) as connection:
            connection.execute(f"DROP TABLE {table}")
            connection.execute("DROP TABLE IF EXISTS checkpoint_migrations")


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_value_that_cannot_be_read_is_named_with_its_database(spec, database, asynchronously):
    thread = on(f"damaged{asynchronously}")
    with open_checkpointer(spec) as checkpointer:
        build(checkpointer).invoke(QUESTION, thread, interrupt_before=["finalize"], durability="sync")
    with psycopg.connect(database) as connection:
        for table in ("checkpoint_blobs", "checkpoint_writes"):
            connection.execute(
                f"UPDATE {table} SET blob = %s WHERE thread_id = %s", [b"\xc1", f"damaged{asynchronously}"]
            )

    def resume():
        with open_checkpointer(spec) as checkpointer:
            build(checkpointer).invoke(None, thread)

    async def aresume():
        async with open_checkpointer(spec) as checkpointer:
            await build(checkpointer).ainvoke(None, thread)

    with pytest.raises(
        StorageError, match=r"the PostgreSQL database host=.* holds a value that cannot be read"
    ):
        asyncio.run(aresume()) if asynchronously else resume()


def test_a_table_that_is_gone_is_named_with_its_database(spec, database):
    with open_ledger(spec) as ledger:
        with psycopg.connect(database) as connection:
            connection.execute("ALTER TABLE trim_reserved RENAME TO elsewhere")
        try:
            with pytest.raises(
                StorageError, match=r"database host=.* cannot be used: relation .*trim_reserved"
            ):
                ledger.used("a")
        finally:
            with psycopg.connect(database) as connection:
                connection.execute("ALTER TABLE elsewhere RENAME TO trim_reserved")
