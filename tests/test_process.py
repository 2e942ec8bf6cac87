"""Tests of the name of a process: no other process has it."""

import os
import subprocess
import sys
import warnings

import pytest

from trim_graph import process

SHOWN = "from trim_graph.process import NAME; print(NAME)"


def test_two_processes_have_different_names():
    names = [subprocess.check_output([sys.executable, "-c", SHOWN], text=True) for _ in range(2)]
    assert len({*names, f"{process.NAME}\n"}) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_has_a_name_of_its_own_and_its_parent_keeps_its():
    before = process.NAME
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test's process has threads
        pid = os.fork()
    if not pid:
        os.write(writing, process.NAME.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        child = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert child.startswith(f"{pid}-")
    assert child != before == process.NAME


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    import trim_graph

    assert trim_graph.__version__ == process.__version__ == version("trim-graph")
