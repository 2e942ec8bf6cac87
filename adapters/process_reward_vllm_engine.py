"""A process reward model (PRM) on a vLLM engine in this process as scorer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trim_graph.errors import ModelServerError, ScorerError

from .background import run_aside, run_sync
from .model_source import check_dtype, check_model, load_tokenizer
from .prm_formats import FormatName, PRMFormat, check_format, is_chat, prm_format
from .prm_scores import read_pooled
from .prm_serving import serve_options
from .protocols import ScorableStep, ScorerReply
from .vllm_engine import CallRefused, EngineHold, VLLMEngine
from .vllm_engine_start import EngineSpec, memory_options, vllm_module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HINT = "engine_args must leave the pooler as it is"


@dataclass(frozen=True, slots=True)
class _Ready:
    """What the tokenizer tells; none of it needs the engine to run."""

    format: PRMFormat
    hold: EngineHold


class VLLMEngineProcessReward:
    """Scores steps with a process reward model on vLLM's asynchronous engine in this process.

    Token ids and positions are made here, so that special tokens in a text stay text. For the engine see
    `ChatVLLMEngine`, for the formats `TransformersProcessReward`; a checkpoint with a value head has to be
    converted for vLLM (``trim-graph convert-prm``).

    Args:
        model: Folder with safetensors, or hub id, such as ``Qwen/Qwen2.5-Math-PRM-7B``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as vLLM chooses it for the weights.
        format: ``qwen``, ``math_shepherd``, ``skywork`` or ``rlhflow``.
        step_token: The token after each step; None: the format's own.
        system_prompt: First turn of a chat; None leaves it to the chat template, ``auto``: the format's own.
        gpu_memory_utilization: Share of a GPU's whole memory, or of the machine's; None: vLLM's default.
        kv_cache_gib: Size of the key-value cache in GiB instead, besides the weights.
        max_model_len: Longest input in tokens; None: the model's own.
        engine_args: Further fields of vLLM's ``AsyncEngineArgs``.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        format: FormatName = "qwen",
        step_token: str | None = None,
        system_prompt: str | None = "auto",
        gpu_memory_utilization: float | None = None,
        kv_cache_gib: float | None = None,
        max_model_len: int | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        check_format(format, step_token=step_token, system_prompt=system_prompt)
        if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization={gpu_memory_utilization!r} must be above 0, 1 at most")
        if kv_cache_gib is not None and not 0 < kv_cache_gib < float("inf"):
            raise ValueError(f"kv_cache_gib={kv_cache_gib!r} must be a number of GiB above 0")
        if max_model_len is not None and max_model_len < 1:
            raise ValueError(f"max_model_len={max_model_len!r} must be 1 or more")
        self.model = check_model(model)
        self.format: FormatName = format
        self.step_token = step_token
        self.system_prompt = system_prompt
        self._options = {
            "dtype": check_dtype(dtype),
            **memory_options(gpu_memory_utilization, kv_cache_gib),
            **({} if max_model_len is None else {"max_model_len": max_model_len}),
            **(engine_args or {}),
        }
        self._settings = {
            "model": self.model,
            "dtype": dtype,
            "format": format,
            "step_token": step_token,
            "system_prompt": system_prompt,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_gib": kv_cache_gib,
            "max_model_len": max_model_len,
            "engine_args": engine_args,
        }
        self._loading = threading.Lock()
        self._ready: _Ready | None = None

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._settings.items() if value not in (None, "auto")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> Any:
        """Pickle the settings; the engine is started anew on the other side."""
        return _rebuild, (self._settings,)

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMEngineProcessReward:
        """A copy shares the engine."""
        copy = _rebuild(self._settings)
        copy._ready = self._ready
        return copy

    def start(self) -> None:
        """Start the engine now; a call does it otherwise.

        Raises:
            ImportError: vllm is not installed.
            ValueError: vLLM refuses an option, or the tokenizer does not fit the format.
            ModelServerError: The engine did not start.
        """
        run_sync(self._start())

    async def astart(self) -> None:
        """`start` without blocking the event loop."""
        await run_aside(self._start())

    def close(self) -> None:
        """Let go of the engine; it ends, unless other adapters use it. A later call starts it anew."""
        if self._ready is not None:
            self._ready.hold.release()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Score every step.

        Args:
            question: What the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens read.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, an engine that did
                not start or has died, or one that does not give one probability per step.
        """
        return run_sync(self._score(question, steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Score every step without blocking the event loop; see `score`."""
        return await run_aside(self._score(question, steps))

    async def _score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        ready = await asyncio.to_thread(self._load)
        texts = [step["text"] for step in steps]
        try:
            engine = ready.hold.engine()
            longest = await engine.max_model_len()
            asked = await asyncio.to_thread(ready.format.encode, question, texts, max_tokens=longest)
            rows = await _pooled(engine, asked.ids)
        except (ModelServerError, CallRefused) as error:
            raise ScorerError(f"the PRM {self.model} gave no scores: {error}") from error
        scores = read_pooled(rows, asked, ready.format.head, at=self.model, hint=_HINT)
        return ScorerReply(scores=scores, input_tokens=len(asked.ids))

    async def _start(self) -> None:
        ready = await asyncio.to_thread(self._load)
        await ready.hold.engine().max_model_len()

    def _load(self) -> _Ready:
        with self._loading:
            if self._ready is None:
                vllm_module()
                tokenizer = load_tokenizer(self.model, chat=is_chat(self.format))
                layout = prm_format(
                    self.format, tokenizer, step_token=self.step_token, system_prompt=self.system_prompt
                )
                options = {**pooling_options(self.format, tokenizer, self.step_token), **self._options}
                self._ready = _Ready(layout, EngineHold(EngineSpec(self.model, "pooling", options)))
            return self._ready


def pooling_options(
    format: FormatName, tokenizer: PreTrainedTokenizerBase, step_token: str | None
) -> dict[str, Any]:
    """`serve_options` as fields of vLLM's ``AsyncEngineArgs``, plain values all of them."""
    words = serve_options(format, tokenizer=tokenizer, step_token=step_token)
    options: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options[name.removeprefix("--").replace("-", "_")] = (
            json.loads(value) if value.startswith("{") else value
        )
    del options["runner"]
    return options


async def _pooled(engine: VLLMEngine, ids: list[int]) -> Any:
    params = vllm_module("vllm").PoolingParams(task="token_classify", use_activation=True)
    output = await engine.encode(ids, params)
    return output.outputs.data.tolist()


def _rebuild(settings: dict[str, Any]) -> VLLMEngineProcessReward:
    return VLLMEngineProcessReward(**settings)
