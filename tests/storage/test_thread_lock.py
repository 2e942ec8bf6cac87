"""One process at a time on a thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trim_graph import SettingsError, open_checkpointer
from trim_graph.storage.thread_lock import lock_thread

HOLDS = """
import sys
from trim_graph import open_checkpointer
from trim_graph.storage.thread_lock import lock_thread

with lock_thread(open_checkpointer(sys.argv[1]).place, sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(spec, thread):
    """Has another process lock a thread, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, spec, thread], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    return process


def check(spec):
    """A thread is one process's until it ends, in whatever way; others are free."""
    place = open_checkpointer(spec).place
    for killed in (False, True):
        with hold(spec, "a") as process:
            taken = pytest.raises(SettingsError, match="somebody else is at work on thread 'a'")
            with taken, lock_thread(place, "a"):
                pass
            with lock_thread(place, "b"):
                pass
            if killed:
                process.kill()
        with lock_thread(place, "a"):
            pass


def test_a_thread_beside_a_sqlite_file_is_locked_for_one_process(tmp_path):
    check(f"sqlite:{tmp_path / 'runs.db'}")
    assert [file.stat().st_size for file in (tmp_path / "runs.db.locks").iterdir()] == [0, 0]


def test_a_place_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "runs.db.locks").write_text("no folder")
    lock = lock_thread(open_checkpointer(f"sqlite:{tmp_path / 'runs.db'}").place, "a")
    with pytest.raises(SettingsError, match=r"runs\.db\.locks.* cannot be opened"), lock:
        pass


def test_without_the_extra_the_pip_line_is_printed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    lock = lock_thread(open_checkpointer(f"sqlite:{tmp_path / 'runs.db'}").place, "a")
    with pytest.raises(SettingsError, match=r'pip install "trim-graph\[sqlite\]"'), lock:
        pass


def test_where_no_other_process_can_see_the_thread():
    place = open_checkpointer("memory").place
    with lock_thread(place, "a"), lock_thread(place, "a"):
        pass


def test_other_runs_of_this_process_are_kept_off_too(tmp_path):
    """And a lock that ends leaves the others of the process in place."""
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    place = open_checkpointer(spec).place
    with lock_thread(place, "a"):
        with lock_thread(place, "b"):
            pass
        with pytest.raises(SettingsError, match="somebody else"), lock_thread(place, "a"):
            pass
        other = subprocess.run(
            [sys.executable, "-c", HOLDS, spec, "a"], input=b"", capture_output=True, check=False
        )
        assert b"somebody else is at work on thread 'a'" in other.stderr
    with lock_thread(place, "a"):
        pass
