"""The plugin for vLLM where there is none, and its entry point; `tests/vllm` and `tests/engine` run it."""

import importlib
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from trim_graph.adapters.prm.scores import PLUGIN_ARCHITECTURE
from trim_graph.adapters.vllm import plugin
from trim_graph.examples.arithmetic import PRM, SMALL

ROOT = Path(__file__).parents[3]


class Registry:
    """What the plugin uses of vLLM's registry of models."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, name, place):
        assert name not in self.models
        self.models[name] = place


def test_the_entry_point_is_the_function_that_registers():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    ((name, value),) = points[plugin.GROUP].items()
    assert name == plugin.NAME
    assert EntryPoint(name, value, plugin.GROUP).load() is plugin.register


def test_without_vllm_it_does_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    plugin.register()


def test_with_vllm_it_registers_once_without_loading_the_class(monkeypatch):
    vllm = ModuleType("vllm")
    vllm.ModelRegistry = registry = Registry()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    plugin.register()
    plugin.register()  # in a process that has loaded its plugins before
    place = f"trim_graph.adapters.vllm.plugin_model:{PLUGIN_ARCHITECTURE}"
    assert registry.models == {PLUGIN_ARCHITECTURE: place}
    assert "trim_graph.adapters.vllm.plugin_model" not in sys.modules
    module = ROOT / "adapters" / "vllm" / "plugin_model.py"
    assert f"class {PLUGIN_ARCHITECTURE}(" in module.read_text("utf-8")


def test_it_imports_neither_vllm_nor_torch(monkeypatch):
    for name in ("vllm", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(plugin)


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [({}, True), ({"VLLM_PLUGINS": ""}, False), ({"VLLM_PLUGINS": "a,trim_graph"}, True)],
)
def test_vllms_variable_decides_which_plugins_are_loaded(environment, allowed, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert plugin.is_allowed() is allowed


def test_it_serves_the_layout_of_qwens_reward_models(tmp_path):
    assert plugin.serves(str(PRM))
    assert plugin.serves("Qwen/Qwen2.5-Math-PRM-7B")
    assert not plugin.serves(str(SMALL))
    assert not plugin.serves("org/unknown")
    for text in ("[]", "{", '{"architectures": null}'):
        (tmp_path / "config.json").write_text(text)
        assert not plugin.serves(str(tmp_path))
