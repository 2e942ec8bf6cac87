"""Tests of the main module of engine processes, without vLLM: which get it, and when it ends them."""

import multiprocessing
import runpy
import signal
import subprocess
import sys
import time
from multiprocessing import spawn

from trim_graph.adapters.vllm import engine as vllm_engine


class TestEngineProcess:
    """The main module of vLLM's processes, in processes of our own."""

    def test_only_vllms_processes_get_it(self):
        with vllm_engine._own_main():
            for name in ("EngineCore", "EngineCore_DP0"):
                data = spawn.get_preparation_data(name)
                assert data["init_main_from_path"] == vllm_engine._CHILD
                assert "init_main_from_name" not in data
            assert spawn.get_preparation_data("Process-1") == spawn.get_preparation_data.__closure__[
                0
            ].cell_contents("Process-1")
        assert spawn.get_preparation_data.__module__ == "multiprocessing.spawn"

    def test_imported_it_does_nothing(self):
        before = multiprocessing.active_children()
        runpy.run_path(vllm_engine._CHILD, run_name="x")
        assert multiprocessing.active_children() == before

    def test_it_ends_when_its_parent_is_killed(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import multiprocessing, time\n"
            "from trim_graph.adapters.vllm.engine import _own_main\n"
            "context = multiprocessing.get_context('spawn')\n"
            "with _own_main():\n"
            "    child = context.Process(target=time.sleep, args=(600,), name='EngineCore')\n"
            "    child.start()\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        time.sleep(1)
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        deadline = time.monotonic() + 20
        while _runs(child):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
