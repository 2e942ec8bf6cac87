"""A process reward model (PRM) as scorer, in this process with transformers."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from .batching import Job
from .model_source import check_dtype, check_model, shared_engine
from .prm_formats import QWEN_SYSTEM_PROMPT, PRMInput, QwenPRMFormat
from .protocols import ScorableStep, ScorerError, ScorerReply

if TYPE_CHECKING:
    import torch

    from .reward_engine import RewardEngine


class RewardJob(Job[list[float]]):
    """One solution to be scored.

    Args:
        prm_input: Token ids and step positions.
        batch_limit: Most solutions to share a batch with, this one included.
    """

    def __init__(self, prm_input: PRMInput, *, batch_limit: int) -> None:
        super().__init__(batch_limit=batch_limit)
        self.input = prm_input


class TransformersProcessReward:
    """Scores steps with a PRM in the Qwen2.5-Math-PRM layout (see `trim_graph.adapters.prm_head`).

    A step's score is the softmax probability of label 1 (right) at the step token behind it. Weights are
    loaded on the first call. Calls made at the same time run as one batch; instances with the same model,
    device and dtype share weights and batches.

    Args:
        model: Folder with safetensors, or hub id, such as ``Qwen/Qwen2.5-Math-PRM-7B``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: CUDA where there is one.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights are stored.
        format: Layout of the input; ``qwen`` is the one there is.
        step_token: The token after each step.
        system_prompt: First turn of the input; None leaves it to the chat template.
        max_batch_size: Most solutions to run as one batch.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "cpu",
        dtype: str = "float32",
        format: Literal["qwen"] = "qwen",
        step_token: str = "<extra_0>",
        system_prompt: str | None = QWEN_SYSTEM_PROMPT,
        max_batch_size: int = 16,
    ) -> None:
        if format != "qwen":
            raise ValueError(f"format={format!r} is not known; 'qwen' is the one there is")
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size={max_batch_size!r} must be 1 or more")
        self.model = check_model(model)
        self.device = device
        self.dtype = check_dtype(dtype)
        self.format = format
        self.step_token = step_token
        self.system_prompt = system_prompt
        self.max_batch_size = max_batch_size
        self._loaded: tuple[RewardEngine, QwenPRMFormat] | None = None

    def __repr__(self) -> str:
        names = ("model", "device", "dtype", "format", "step_token", "max_batch_size")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings; the weights are loaded anew on the other side."""
        return {**self.__dict__, "_loaded": None}

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Score every step.

        Args:
            question: What the steps answer.
            steps: All steps so far, in order.

        Returns:
            One probability in [0, 1] per step, and the number of tokens read.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, or a PRM that
                answers with something that is not a probability.
        """
        engine, prm_format = self._load()
        with engine.worker.preparing():
            job = self._job(engine, prm_format, question, steps)
            engine.worker.submit(job)
        try:
            return _reply(job, job.future.result())
        finally:
            job.future.cancel()

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Score every step without blocking the event loop; see `score`."""
        loaded = self._loaded
        engine, prm_format = loaded if loaded is not None else await asyncio.to_thread(self._load)
        with engine.worker.preparing():
            job = await asyncio.to_thread(self._job, engine, prm_format, question, steps)
            engine.worker.submit(job)
        return _reply(job, await asyncio.wrap_future(job.future))

    def _load(self) -> tuple[RewardEngine, QwenPRMFormat]:
        if self._loaded is None:
            engine = shared_engine(_build_engine, self.model, self.device, self.dtype)
            prm_format = QwenPRMFormat(
                engine.tokenizer, system_prompt=self.system_prompt, step_token=self.step_token
            )
            self._loaded = engine, prm_format
        return self._loaded

    def _job(
        self,
        engine: RewardEngine,
        prm_format: QwenPRMFormat,
        question: str,
        steps: Sequence[ScorableStep],
    ) -> RewardJob:
        texts = [step["text"] for step in steps]
        prm_input = prm_format.encode(question, texts, max_tokens=engine.max_positions)
        return RewardJob(prm_input, batch_limit=self.max_batch_size)


def _build_engine(model: str, device: torch.device, dtype: str) -> RewardEngine:
    from .reward_engine import RewardEngine

    return RewardEngine(model, device, dtype)


def _reply(job: RewardJob, scores: list[float]) -> ScorerReply:
    expected = len(job.input.step_positions)
    if len(scores) != expected:
        raise ScorerError(f"the PRM gave {len(scores)} scores for {expected} steps")
    for i, score in enumerate(scores):
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ScorerError(
                f"the PRM's score of step {i + 1} of {expected} is {score}, not a probability in [0, 1]; "
                "with dtype='float16' an overflow is likely, float32 or bfloat16 would be right"
            )
    return ScorerReply(scores=scores, input_tokens=len(job.input.ids))
