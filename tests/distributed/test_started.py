"""Ray on this machine, for as long as a command runs; a module takes Ray's place, which starts nothing."""

import signal
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from trim_graph.config import make_config
from trim_graph.distributed import open_local_executor

CONFIG = {
    "small": {"type": "vllm", "model": "s", "base_url": "http://127.0.0.1:1/v1"},
    "large": {"type": "vllm", "model": "l", "base_url": "http://127.0.0.1:2/v1"},
    "policy": {"type": "small_only"},
}


@pytest.fixture
def ray(monkeypatch):
    """A module that notes how it is started and ended, and takes SIGTERM over as Ray does."""

    def init(**options):
        module.initialized.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    module = SimpleNamespace(initialized=[], ended=0, connected=False)
    module.init, module.is_initialized = init, lambda: module.connected
    module.nodes, module.cluster_resources = lambda: [{"Alive": True}], lambda: {}
    module.shutdown = lambda: setattr(module, "ended", module.ended + 1)
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return module


def interrupted_use():
    """Takes the executor, is interrupted; returns the workers it was opened with."""
    with suppress(KeyboardInterrupt), open_local_executor(lambda: None, make_config(CONFIG), count=3) as one:
        count, handler = one.count, signal.getsignal(signal.SIGTERM)
        print("from Ray")
        raise KeyboardInterrupt
    return count, handler


def test_ray_starts_with_a_place_for_each_worker_and_ends_with_the_context(ray, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    assert interrupted_use() == (3, handler)
    (options,) = ray.initialized
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", 3, False)
    assert ray.ended == 1
    assert signal.getsignal(signal.SIGTERM) is handler
    assert capsys.readouterr() == ("", "from Ray\n")


def test_an_application_on_a_cluster_has_its_workers_there(ray):
    ray.connected = True
    with open_local_executor(lambda: None, make_config(CONFIG), count=2) as executor:
        assert executor.count == 2
    assert (ray.initialized, ray.ended) == ([], 0)
