"""A process reward model (PRM) as scorer, in this process with transformers."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from trim_graph.adapters.base import ScorableStep, ScorerReply, step_texts
from trim_graph.adapters.model_source import load_tokenizer, require_local_extra, shared_engine
from trim_graph.adapters.prm.formats import PRMFormat
from trim_graph.adapters.prm.scorer_file import FormatChoice, StackedReward, chosen_format
from trim_graph.adapters.settings import TransformersPRMSettings
from trim_graph.errors import ScorerError

from .batching import RewardJob

if TYPE_CHECKING:
    import torch

    from trim_graph.adapters.prm.heads import RewardEngine


class TransformersProcessReward(StackedReward, TransformersPRMSettings):
    """Scores steps with a process reward model.

    ``format`` says what the PRM reads and how a score is read from it:

    - ``qwen``: Qwen2.5-Math-PRM, a classifier at a step token (`trim_graph.adapters.prm.formats`).
    - ``math_shepherd``: a language model that answers + or - behind a step tag.
    - ``skywork``: Skywork-o1-Open-PRM, a value head at line breaks.
    - ``rlhflow``: a chat model that answers + or - to every step.
    - ``trim``: a scorer of ``trim-graph train scorer``, a value head at step tags.
    - ``auto``: ``trim`` for a folder of ``trim-graph train scorer``, else ``qwen``.

    See `trim_graph.adapters.prm.formats`. Weights come from safetensors and are loaded on the first call; no
    code that comes with them is run. Calls made at the same time run as one batch; instances
    with the same model, device, dtype and kind of head share weights and batches.

    Settings, by keyword but for ``model``: `trim_graph.adapters.settings.TransformersPRMSettings`.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    _loaded: Any = PrivateAttr(default=None)

    if not TYPE_CHECKING:

        def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
            super().__init__(model=model, **settings)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        names = ("model", "device", "dtype", "format", "step_token", "max_batch_size")
        return ((name, getattr(self, name)) for name in names)

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles the settings; the weights are loaded anew on the other side."""
        state = super().__getstate__()
        return {**state, "__pydantic_private__": {"_loaded": None}}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Returns a copy that shares the weights."""
        return self.__copy__()

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step.

        Args:
            question: Question that the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens read.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, or a PRM that
                answers with something that is not a probability.
        """
        engine, layout, choice = self._load()
        with engine.worker.preparing():
            job = self._job(engine, layout, question, steps)
            engine.worker.submit(job)
        try:
            return _reply(job, job.future.result(), choice, steps)
        finally:
            job.future.cancel()

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step without blocking the event loop; see `score`."""
        loaded = self._loaded
        engine, layout, choice = loaded if loaded is not None else await asyncio.to_thread(self._load)
        with engine.worker.preparing():
            job = await asyncio.to_thread(self._job, engine, layout, question, steps)
            engine.worker.submit(job)
        return _reply(job, await asyncio.wrap_future(job.future), choice, steps)

    def _load(self) -> tuple[RewardEngine, PRMFormat, FormatChoice]:
        if self._loaded is None:
            require_local_extra()
            choice = chosen_format(self, self.model)
            layout = choice.layout(load_tokenizer(self.model, chat=choice.needs_chat_template))
            self._loaded = self._engine(layout), layout, choice
        loaded: tuple[RewardEngine, PRMFormat, FormatChoice] = self._loaded
        return loaded

    def _engine(self, layout: PRMFormat) -> RewardEngine:
        def build(model: str, device: torch.device, dtype: str) -> RewardEngine:
            from trim_graph.adapters.prm.heads import RewardEngine

            return RewardEngine(model, device, dtype, head=layout.head, answer_ids=layout.answer_ids)

        variant = f"{layout.head} {layout.answer_ids}"
        return shared_engine(build, self.model, self.device, self.dtype, variant=variant)

    def _job(
        self,
        engine: RewardEngine,
        layout: PRMFormat,
        question: str,
        steps: Sequence[ScorableStep],
    ) -> RewardJob:
        texts = step_texts(steps)
        prm_input = layout.encode(question, texts, max_tokens=engine.max_positions)
        return RewardJob(prm_input, batch_limit=self.max_batch_size)


def _reply(
    job: RewardJob, scores: list[float], choice: FormatChoice, steps: Sequence[ScorableStep]
) -> ScorerReply:
    expected = len(job.input.step_positions)
    if len(scores) != expected:
        raise ScorerError(f"the PRM gave {len(scores)} scores for {expected} steps")
    for i, score in enumerate(scores):
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ScorerError(
                f"the PRM's score of step {i + 1} of {expected} is {score}, not a probability in [0, 1]; "
                "with dtype='float16' an overflow is likely, float32 or bfloat16 would be right"
            )
    return ScorerReply(scores=choice.stacked(scores, steps), input_tokens=len(job.input.ids))
