"""A process reward model (PRM) on a vLLM engine in this process as scorer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from trim_graph.adapters.base import ScorableStep, ScorerReply, step_texts
from trim_graph.adapters.event_loop import run_aside, run_sync
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import FormatName, Head, PRMFormat, PRMInput
from trim_graph.adapters.prm.scorer_file import FormatChoice, StackedReward, chosen_format
from trim_graph.adapters.prm.scores import read_pooled, serve_options
from trim_graph.adapters.settings import VLLMEnginePRMSettings
from trim_graph.errors import ModelServerError, ScorerError

from .engine import CallRefused, EngineHandle, EngineSpec, EngineUser, VLLMEngine, engine_options, vllm_module
from .plugin import is_allowed, is_installed, serves
from .step_scores import StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIX = "engine_args must leave the pooler as it is"


@dataclass(frozen=True, slots=True)
class _Ready:
    """Facts from the tokenizer alone, without the engine."""

    format: PRMFormat
    choice: FormatChoice
    handle: EngineHandle


class VLLMEngineProcessReward(StackedReward, EngineUser, VLLMEnginePRMSettings):
    """Scores steps with a process reward model on vLLM's asynchronous engine in this process.

    Where the format allows it, the engine scores an input at its end (pooling type LAST), its prefix cache
    holds the tokens before, and a pass reads the newest step only; see `VLLMProcessReward`. Token ids and
    positions are made here, so that special tokens in a text stay text. For the engine see
    `ChatVLLMEngine`, for the formats `TransformersProcessReward`; a checkpoint with a value head has to be
    converted for vLLM (``trim-graph convert-prm``).

    Settings, by keyword but for ``model``: `trim_graph.adapters.settings.VLLMEnginePRMSettings`.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    _loading: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _ready: _Ready | None = PrivateAttr(default=None)
    _known: StepScores = PrivateAttr()

    if not TYPE_CHECKING:

        def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
            super().__init__(model=model, **settings)

    def model_post_init(self, context: Any) -> None:
        """Makes room for scores; the engine is started at the first call."""
        self._known = StepScores(self.cache_size)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in self if value not in (None, "auto", {}))

    def __reduce__(self) -> Any:
        """Pickles the settings; the engine is started anew on the other side."""
        return partial(type(self), **self.model_dump()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Returns a copy that shares the engine."""
        copy = type(self)(**self.model_dump())
        copy._ready = self._ready
        copy._known = self._known
        return copy

    def close(self) -> None:  # noqa: D102 - see `EngineUser`
        if self._ready is not None:
            self._ready.handle.release()

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step.

        Args:
            question: Question that the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens in the engine's inputs, those that it
            took from its cache among them.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, an engine that did
                not start or has died, or one that does not give one probability per step.
        """
        return run_sync(self._score(question, steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step without blocking the event loop; see `score`."""
        return await run_aside(self._score(question, steps))

    async def _score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        ready = await asyncio.to_thread(self._load)
        texts = step_texts(steps)
        try:
            engine = ready.handle.engine()
            longest = await engine.max_model_len()
            asked = await asyncio.to_thread(ready.format.encode, question, texts, max_tokens=longest)
            if await engine.pools_last():
                reply = await self._newest_steps(engine, asked, ready.format.head)
                return replace(reply, scores=ready.choice.stacked(reply.scores, steps))
            rows = await _pooled(engine, asked.ids, "token_classify")
        except (ModelServerError, CallRefused) as error:
            raise ScorerError(f"the PRM {self.model} gave no scores: {error}") from error
        scores = read_pooled(rows, asked, ready.format.head, at=self.model, fix=_FIX)
        return ScorerReply(scores=ready.choice.stacked(scores, steps), input_tokens=len(asked.ids))

    async def _newest_steps(self, engine: VLLMEngine, asked: PRMInput, head: Head) -> ScorerReply:
        """Scores the steps that were not scored before, each at the end of an input."""
        pending = self._known.pending(asked)
        rows = await asyncio.gather(*(_pooled(engine, ids, "classify") for ids in pending.prefixes))
        scores = self._known.settle(pending, rows, head, at=self.model)
        return ScorerReply(scores=scores, input_tokens=pending.tokens)

    async def _start(self) -> None:
        ready = await asyncio.to_thread(self._load)
        await ready.handle.engine().max_model_len()

    def _load(self) -> _Ready:
        with self._loading:
            if self._ready is None:
                vllm_module()
                choice = chosen_format(self, self.model)
                tokenizer = load_tokenizer(self.model, chat=choice.needs_chat_template)
                layout = choice.layout(tokenizer)
                plugin = is_installed() and is_allowed() and serves(self.model)
                plugin = plugin and not {"hf_overrides", "pooler_config"} & self.engine_args.keys()
                pooling = pooling_options(choice.name, tokenizer, choice.step_token, plugin=plugin)
                options = {**pooling, **engine_options(self)}
                handle = EngineHandle(EngineSpec(self.model, "pooling", options))
                self._ready = _Ready(layout, choice, handle)
            return self._ready


def pooling_options(
    format: FormatName, tokenizer: PreTrainedTokenizerBase, step_token: str | None, *, plugin: bool = False
) -> dict[str, Any]:
    """Returns `serve_options` as fields of vLLM's ``AsyncEngineArgs``, plain values all of them."""
    words = serve_options(format, tokenizer=tokenizer, step_token=step_token, plugin=plugin)
    options: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options[name.removeprefix("--").replace("-", "_")] = (
            json.loads(value) if value.startswith("{") else value
        )
    del options["runner"]
    return options


async def _pooled(engine: VLLMEngine, ids: list[int], task: str) -> Any:
    params = vllm_module("vllm").PoolingParams(task=task, use_activation=True)
    output = await engine.encode(ids, params)
    return output.outputs.data.tolist()
