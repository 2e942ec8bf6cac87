"""Plugin of vLLM: registers a model class that serves Qwen2.5-Math-PRM with vLLM's prefix cache.

vLLM calls `register` in each of its processes, by the entry point group ``vllm.general_plugins``, where
trim-graph is installed beside it. Imports vllm only there.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points

from trim_graph.adapters.model_source import local_file
from trim_graph.adapters.prm.scores import PLUGIN_ARCHITECTURE

GROUP = "vllm.general_plugins"
"""Entry point group that vLLM loads in each of its processes."""
NAME = "trim_graph"
"""Name of the entry point; vLLM's variable ``VLLM_PLUGINS`` lists the names that it loads, if it is set."""
LAYOUT = "Qwen2ForProcessRewardModel"
"""Architecture in config.json of the PRMs that the class serves."""
PUBLISHED = ("Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-72B", "Qwen/Qwen2.5-Math-7B-PRM800K")
"""Published PRMs of this layout."""


def register() -> None:
    """Registers the model class; does nothing where vLLM is not installed or has it already."""
    try:
        from vllm import ModelRegistry
    except ImportError:
        return
    if PLUGIN_ARCHITECTURE not in ModelRegistry.get_supported_archs():
        place = f"trim_graph.adapters.vllm.plugin_model:{PLUGIN_ARCHITECTURE}"
        ModelRegistry.register_model(PLUGIN_ARCHITECTURE, place)


def is_installed() -> bool:
    """Returns whether a vLLM in this Python environment finds the plugin."""
    return any(point.name == NAME for point in entry_points(group=GROUP))


def is_allowed() -> bool:
    """Returns whether a vLLM with this process's environment variables loads the plugin that it finds."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is None or NAME in allowed.split(",")


def serves(model: str) -> bool:
    """Returns whether the plugin's class serves a model; False where no config.json is on this machine.

    Args:
        model: Folder or hub id.
    """
    if model in PUBLISHED:
        return True
    config = local_file(model, "config.json")
    try:
        found = json.loads(config.read_text("utf-8")) if config else None
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and LAYOUT in (found.get("architectures") or [])
