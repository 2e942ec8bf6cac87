"""Tests of engines in this process, without vLLM: which are shared, and their options."""

from trim_graph.adapters.settings import EngineSettings
from trim_graph.adapters.vllm.engine import EngineHandle, EngineSpec, engine_options
from trim_graph.examples.arithmetic import SMALL


def test_equal_specs_share_an_engine_until_the_last_lets_go():
    def handle(**options):
        return EngineHandle(EngineSpec(str(SMALL), "generate", options))

    first, same, other = handle(seed=1), handle(seed=1), handle(seed=2)
    engine = first.engine()
    assert same.engine() is engine
    assert other.engine() is not engine
    first.release()
    first.release()
    assert engine.usable
    assert same.engine() is engine
    same.release()
    assert not engine.usable
    assert first.engine() is not engine
    for one in (first, other):
        one.release()


def test_options_of_an_engine():
    assert engine_options(EngineSettings(model="org/m")) == {"dtype": "auto"}
    shared = EngineSettings(
        model="org/m", gpu_memory_utilization=0.25, kv_cache_gib=1.5, engine_args={"dtype": "half", "seed": 1}
    )
    assert engine_options(shared) == {
        "dtype": "half",
        "gpu_memory_utilization": 0.25,
        "kv_cache_memory_bytes": 3 * 2**29,
        "seed": 1,
    }
