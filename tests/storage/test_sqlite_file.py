"""Tests of damaged and foreign files: they are refused by name, or the run resumes right."""

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from trim_graph import SettingsError, create_trim_graph, open_checkpointer, open_ledger
from trim_graph.budget.ledger import LargeUsage
from trim_graph.errors import StorageError, TrimError
from trim_graph.policies import threshold
from trim_graph.storage.sqlite_file import open_file
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

THREAD = {"configurable": {"thread_id": "a"}}
QUESTION = {"messages": [("user", "count to three")]}
ANSWER = "ONE\n\nTWO\n\nTHREE is \\boxed{3}"
NOT_DATABASES = {
    "empty": (b"", "is an empty file"),
    "text": (b"no database at all " * 300, "file is not a database; it is damaged"),
    "header": (
        b"SQLite format 3\0" + b"\xff" * 4000,
        "it is damaged: restore it from a copy, or name another",
    ),
}


def graph(checkpointer):
    return create_trim_graph(
        ScriptedChatModel(script=["one", "two", "three is \\boxed{3}"]),
        ScriptedChatModel(script=["ONE", "TWO", "THREE is \\boxed{3}"]),
        ScriptedScorer(default=0.0),
        policy=threshold(0.5),
        checkpointer=checkpointer,
    )


def resume(file):
    with open_checkpointer(f"sqlite:{file}") as saver:
        return graph(saver).invoke(None, THREAD, durability="sync")["messages"][-1].text


async def aresume(file):
    async with open_checkpointer(f"sqlite:{file}") as saver:
        result = await graph(saver).ainvoke(None, THREAD, durability="sync")
        return result["messages"][-1].text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that was stopped within a step, in one piece."""
    file = tmp_path_factory.mktemp("runs") / "whole.db"
    with open_checkpointer(f"sqlite:{file}") as saver:
        graph(saver).invoke(QUESTION, THREAD, durability="sync", interrupt_before=["score_step"])
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


@pytest.fixture
def runs(whole, tmp_path):
    return Path(shutil.copy(whole, tmp_path / "runs.db"))


def change(file, statement, *values):
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(statement, values).rowcount


@pytest.mark.parametrize("content", NOT_DATABASES)
@pytest.mark.parametrize("opened", [open_checkpointer, open_ledger])
def test_what_is_no_database_is_refused(opened, content, tmp_path):
    file = tmp_path / "x.db"
    held, why = NOT_DATABASES[content]
    file.write_bytes(held)
    with pytest.raises(StorageError, match=rf"x\.db .*{why}"), opened(f"sqlite:{file}"):
        pass
    assert file.read_bytes() == held


def damaged(content, seed):
    """The bytes, cut off somewhere or with some of them changed."""
    draw = random.Random(seed)
    changed = bytearray(content)
    if seed % 4 == 0:
        return bytes(changed[: draw.randrange(len(changed))])
    for _ in range(draw.choice([1, 20, 400])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_damaged_file_is_refused_by_name_or_goes_on_right(whole, tmp_path, asynchronously):
    content, refused = whole.read_bytes(), 0
    for seed in range(40):
        file = tmp_path / f"{seed}.db"
        file.write_bytes(damaged(content, seed))
        try:
            said = asyncio.run(aresume(file)) if asynchronously else resume(file)
        except StorageError as error:
            said, refused = str(error), refused + 1
        assert said == ANSWER or f"{seed}.db" in said
    assert refused > 15


@pytest.mark.parametrize(
    ("statement", "value", "why"),
    [
        ("UPDATE checkpoints SET checkpoint = ?", b"\xc1\xff\x00", "a value that cannot be read"),
        ("UPDATE checkpoints SET checkpoint = ?", b"\x01", "a checkpoint is no mapping"),
        ("UPDATE checkpoints SET checkpoint = ?", b"\x80", "the key v of a checkpoint is missing"),
        ("UPDATE checkpoints SET type = ?", "mgpack", "Unknown serialization type: mgpack"),
        ("UPDATE checkpoints SET metadata = ?", b"\xff\xfe{", "it is damaged"),
        ("UPDATE checkpoints SET metadata = ?", b"{", "a value that cannot be read"),
        ("UPDATE checkpoints SET metadata = ?", b"[]", "metadata of a checkpoint are no mapping"),
        ("UPDATE checkpoints SET checkpoint_id = checkpoint_id || ?", "x", "another id than its row"),
    ],
)
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_value_that_cannot_be_read_is_named(runs, statement, value, why, asynchronously):
    change(runs, statement, value)
    with pytest.raises(StorageError, match=rf"the checkpoint .*runs\.db .*{why}.*restore it from a copy"):
        asyncio.run(aresume(runs)) if asynchronously else resume(runs)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_step_that_cannot_be_read_is_named(tmp_path, asynchronously):
    file = tmp_path / "runs.db"
    with open_checkpointer(f"sqlite:{file}") as saver:
        graph(saver).invoke(QUESTION, THREAD, durability="sync", interrupt_before=["finalize"])
    change(file, "UPDATE writes SET value = ? WHERE channel = 'steps'", b"\xc1")
    with pytest.raises(StorageError, match=r"runs\.db holds a value that cannot be read"):
        asyncio.run(aresume(file)) if asynchronously else resume(file)


def test_so_it_is_where_checkpoints_are_listed(runs):
    change(runs, "UPDATE checkpoints SET checkpoint = ?", b"\xc1")
    with open_checkpointer(f"sqlite:{runs}") as saver:
        with pytest.raises(StorageError, match=r"runs\.db"):
            list(graph(saver).get_state_history(THREAD))
        with pytest.raises(StorageError, match=r"runs\.db"):
            graph(saver).get_state(THREAD)

    async def listed():
        async with open_checkpointer(f"sqlite:{runs}") as saver:
            return [one async for one in graph(saver).aget_state_history(THREAD)]

    with pytest.raises(StorageError, match=r"runs\.db"):
        asyncio.run(listed())


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_file_that_breaks_in_the_middle_of_a_run_is_named(tmp_path, asynchronously):
    file = tmp_path / "runs.db"

    def breaking(question, steps):
        change_schema(file)
        return [0.0] * len(steps)

    def built(saver):
        small, large = (ScriptedChatModel(script=["one", "two"]) for _ in range(2))
        return create_trim_graph(
            small, large, breaking, policy=threshold(0.5), checkpointer=saver, on_scorer_error="raise"
        )

    def run():
        with open_checkpointer(f"sqlite:{file}") as saver:
            built(saver).invoke(QUESTION, THREAD, durability="sync")

    async def arun():
        async with open_checkpointer(f"sqlite:{file}") as saver:
            await built(saver).ainvoke(QUESTION, THREAD, durability="sync")

    with pytest.raises(StorageError, match=r"the checkpoint .*runs\.db cannot be used: no such table"):
        asyncio.run(arun()) if asynchronously else run()


def change_schema(file):
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS writes")


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize(
    "table",
    ["checkpoints (a)", "writes (thread_id, idx)", "checkpoints (checkpoint_id PRIMARY KEY, metadata)"],
)
def test_tables_of_another_program_are_refused_and_left_alone(tmp_path, table, asynchronously):
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE {table}")
    before = file.read_bytes()
    with pytest.raises(StorageError, match=r"other\.db .*its table \w+ has the columns .* another program"):
        asyncio.run(aresume(file)) if asynchronously else resume(file)
    assert file.read_bytes() == before


def test_a_ledger_beside_an_applications_own_tables_is_welcome(tmp_path):
    file = tmp_path / "own.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE users (name)")
    with open_ledger(f"sqlite:{file}") as ledger, open_checkpointer(f"sqlite:{file}") as saver:
        assert ledger.used("a") == LargeUsage()
        assert graph(saver).invoke(QUESTION, THREAD)["messages"][-1].text == ANSWER


@pytest.mark.parametrize(
    "table",
    [
        "trim_accounts (a)",
        "trim_accounts (account, large_tokens, large_calls, large_cost)",
        "trim_reserved (account TEXT PRIMARY KEY, entry TEXT)",
    ],
)
def test_a_ledger_of_another_program_is_refused(tmp_path, table):
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE {table}")
    with pytest.raises(StorageError, match=r"the ledger .*other\.db .*its table trim_\w+ has the columns"):
        open_ledger(f"sqlite:{file}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("large_tokens", "many"), ("large_tokens", None), ("large_calls", -1), ("large_cost", b"\x00")],
)
@pytest.mark.parametrize("table", ["trim_accounts", "trim_reserved"])
def test_an_amount_that_is_no_number_is_not_nothing(tmp_path, table, column, value):
    file = tmp_path / "spend.db"
    with open_ledger(f"sqlite:{file}") as ledger:
        for entry in "12":
            ledger.reserve("user-7", entry, lambda used: LargeUsage(5, 1, 0.5))
        ledger.settle("user-7", "1", LargeUsage(5, 1, 0.5))
    change(file, f"UPDATE {table} SET {column} = ?", value)
    with pytest.raises(StorageError, match=rf"spend\.db .*account 'user-7' in table {table} has .*numbers"):
        open_ledger(f"sqlite:{file}")


def test_a_ledger_that_breaks_later_is_named_by_each_method(tmp_path):
    file = tmp_path / "spend.db"
    with open_ledger(f"sqlite:{file}") as ledger:
        file.write_bytes(b"no database " * 1000)
        for suffix in ("-wal", "-shm"):
            Path(f"{file}{suffix}").unlink(missing_ok=True)
        for use in (
            lambda: ledger.used("a"),
            lambda: ledger.reserve("a", "1", lambda used: LargeUsage(1)),
            lambda: ledger.settle("a", "1", LargeUsage(1)),
        ):
            with pytest.raises(StorageError, match=r"the ledger .*spend\.db cannot be used: .* damaged"):
                use()


def test_a_file_that_is_locked_is_not_called_damaged(tmp_path, monkeypatch):
    file = tmp_path / "spend.db"
    with open_ledger(f"sqlite:{file}") as ledger, closing(sqlite3.connect(file)) as other:
        monkeypatch.setattr("trim_graph.budget.ledger.BUSY_S", 0.0)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=r"spend\.db .*locked; another process has kept it") as caught:
            ledger.reserve("a", "1", lambda used: LargeUsage(1))
        assert "damaged" not in str(caught.value)


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot be opened"):
        open_file("ledger", str(tmp_path / "nowhere" / "x.db"), {})
    with pytest.raises(SettingsError, match="cannot be opened"):
        open_ledger(f"sqlite:{tmp_path}")


def test_of_a_large_file_the_schema_is_checked(runs, monkeypatch):
    monkeypatch.setattr("trim_graph.storage.sqlite_file.CHECKED_UP_TO", 100)
    assert resume(runs) == ANSWER
    runs.write_bytes(b"x" + runs.read_bytes()[1:])
    with pytest.raises(StorageError, match=r"runs\.db cannot be opened"):
        resume(runs)


def test_errors_are_those_of_the_package():
    assert issubclass(StorageError, SettingsError)
    assert issubclass(StorageError, TrimError)


OPENING = """
import sys, time
from pathlib import Path
from trim_graph import open_checkpointer, open_ledger
import langgraph.checkpoint.sqlite.aio
Path(f"ready{sys.argv[1]}").touch()
while not Path("go").exists():
    time.sleep(0.001)
for attempt in range(20):
    with open_checkpointer(f"sqlite:{attempt}.db") as saver, open_ledger(f"sqlite:{attempt}.db") as ledger:
        ledger.used("a")
        saver.get_tuple({"configurable": {"thread_id": "a"}})
"""


def test_processes_that_begin_a_file_together_see_no_half_of_it(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENING, str(number)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    while len(list(tmp_path.glob("ready*"))) < len(workers) and all(one.poll() is None for one in workers):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [worker.communicate(timeout=60)[1] for worker in workers] == [""] * len(workers)
    assert not list(tmp_path.glob("*.new*"))
