"""The ways over HTTP (three vLLM servers) and in process (three engines), on the example models."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from langchain_core.messages import AIMessage

from tests.vllm.conftest import EXAMPLES, IN_ENGINE, KEY, KEY_ENV, Server
from trim_graph.adapters import (
    ChatVLLM,
    ChatVLLMEngine,
    VLLMEngineProcessReward,
    VLLMProcessReward,
)
from trim_graph.adapters.event_loop import run_aside
from trim_graph.adapters.vllm.engine import vllm_module
from trim_graph.adapters.vllm.engine_chat import prompt_tokens, sampling_params
from trim_graph.segmentation import DEFAULT_DELIMITER

from .load import cpu_of
from .lockstep import EngineBatches, ServerBatches, conversation, solve_all
from .ways import MAX_STEP_TOKENS, Models, Solved, Written

ON_CPUS: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_gib": 0.5,
    "engine_args": {
        "enforce_eager": True,
        "max_num_seqs": 64,
        "distributed_executor_backend": IN_ENGINE,
    },
}
# CUDA graphs without torch.compile, which takes minutes; a pooling model has no such steps.
_GRAPHS = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}


def on_a_gpu(name: str) -> dict[str, Any]:
    """How the engine of a model is started on a GPU that it shares with two others."""
    return {
        "dtype": "bfloat16",
        "kv_cache_gib": 6,
        "gpu_memory_utilization": 0.25,
        "engine_args": {"max_num_seqs": 256, **({"enforce_eager": True} if name == "prm" else _GRAPHS)},
    }


def server_options(name: str) -> list[str]:
    """Gives a server on a GPU the settings of an engine in this process."""
    engine = on_a_gpu(name)
    reported = {
        "dtype": engine["dtype"],
        "kv_cache_memory_bytes": int(engine["kv_cache_gib"] * 2**30),
        "gpu_memory_utilization": engine["gpu_memory_utilization"],
        **engine["engine_args"],
    }
    words: list[str] = []
    for option, value in reported.items():
        words.append(f"--{option.replace('_', '-')}")
        if value is not True:
            words.append(value if isinstance(value, str) else json.dumps(value))
    return words


class Servers:
    """Three servers. Each run has a prefix cache of its own: no run profits from what another one asked.

    Args:
        servers: By the names of the models.
        together: Most calls that go as one request.
        wait_factor: How long a call waits for others, in the time that calls take; None: adaptive.
    """

    def __init__(self, servers: dict[str, Server], *, together: int, wait_factor: float | None) -> None:
        os.environ[KEY_ENV] = KEY
        self._urls = {name: server.url for name, server in servers.items()}
        self._processes = [psutil.Process(server.process.pid) for server in servers.values()]
        self._together, self._wait_factor = together, wait_factor

    def elsewhere(self) -> float:
        """CPU seconds of the servers and their engines so far."""
        return cpu_of(self._processes)

    async def fresh(self) -> Models:
        """Adapters for a run."""
        salt = {
            "extra_body": {"cache_salt": uuid.uuid4().hex},
            "max_batch_size": self._together,
            "batch_wait_factor": self._wait_factor,
        }
        return Models(
            ChatVLLM(model="small", base_url=self._urls["small"], **salt),
            ChatVLLM(model="large", base_url=self._urls["large"], api_key_env=KEY_ENV, **salt),
            VLLMProcessReward("prm", base_url=self._urls["prm"], max_requests=1),
        )

    @asynccontextmanager
    async def lock_step(self, questions: Sequence[str]) -> Any:
        """The loop for these questions; what their prompts begin with is rendered on entry."""
        writers = {
            "small": ChatVLLM(model="small", base_url=self._urls["small"], continuation="raw"),
            "large": ChatVLLM(
                model="large", base_url=self._urls["large"], api_key_env=KEY_ENV, continuation="raw"
            ),
        }
        scorer = VLLMProcessReward("prm", base_url=self._urls["prm"])
        heads = [
            {name: await _head(model, question) for name, model in writers.items()} for question in questions
        ]
        layout = (await scorer._ready.get()).format
        async with httpx.AsyncClient(timeout=None) as client:
            roots = {name: url.removesuffix("/v1") for name, url in self._urls.items()}
            salt = {"cache_salt": uuid.uuid4().hex}
            batches = ServerBatches(client, roots, {"large": KEY}, salt, layout)

            async def loop() -> list[Solved]:
                return await solve_all(questions, heads, batches, lambda _, head, text: head + text)

            yield loop


async def _head(model: ChatVLLM, question: str) -> str:
    _, body = await model._prompts.request(conversation(question), model._settings(None, {}))
    return str(body["prompt"])


class Engines:
    """Three engines in this process. Their prefix caches are emptied before each run.

    Args:
        weights: Folders by the names of the models.
        options: Of a model's engine.
    """

    def __init__(
        self,
        weights: Mapping[str, Path] = EXAMPLES,
        options: Callable[[str], dict[str, Any]] = lambda name: ON_CPUS,
    ) -> None:
        self._small = ChatVLLMEngine(model=str(weights["small"]), **options("small"))
        self._large = ChatVLLMEngine(model=str(weights["large"]), **options("large"))
        self._scorer = VLLMEngineProcessReward(weights["prm"], **options("prm"))
        for model in (self._small, self._large, self._scorer):
            model.start()

    def elsewhere(self) -> float:
        """CPU seconds of the engines' own processes so far."""
        return cpu_of(psutil.Process().children())

    def close(self) -> None:
        """End them."""
        for model in (self._small, self._large, self._scorer):
            model.close()

    async def fresh(self) -> Models:
        """Adapters for a run."""
        for model in (self._small, self._large):
            await run_aside(model._handle.engine()._llm.reset_prefix_cache())
        return Models(self._small, self._large, self._scorer)

    @asynccontextmanager
    async def lock_step(self, questions: Sequence[str]) -> Any:
        """The loop for these questions."""
        await self.fresh()
        engines = {"small": self._small._handle.engine(), "large": self._large._handle.engine()}
        ready = self._scorer._load()
        pooling = ready.handle.engine()

        def write_by(model: ChatVLLMEngine) -> Callable[[list[int]], Awaitable[Written]]:
            settings = model._settings([DEFAULT_DELIMITER], {"max_tokens": MAX_STEP_TOKENS})

            async def write(prompt: list[int]) -> Written:
                params = sampling_params(settings, {}, whole=True)
                async for output in model._handle.engine().generate(prompt, params):
                    choice = output.outputs[0]
                return Written(choice.text, choice.stop_reason is None, len(choice.token_ids))

            return write

        async def encode(ids: list[int]) -> Any:
            params = vllm_module("vllm").PoolingParams(task="token_classify", use_activation=True)
            return (await pooling.encode(ids, params)).outputs.data.tolist()

        def join(writer: str, head: Any, prefix: str) -> list[int]:
            asked = [*head, AIMessage(prefix)] if prefix else head
            return prompt_tokens(engines[writer], asked, {})

        writers = {"small": write_by(self._small), "large": write_by(self._large)}
        batches = EngineBatches(writers, encode, ready.format, run_aside)
        heads = [dict.fromkeys(writers, conversation(question)) for question in questions]

        async def loop() -> list[Solved]:
            return await solve_all(questions, heads, batches, join)

        yield loop
        await asyncio.sleep(0)
