"""A process reward model (PRM) that says + or - as scorer, on a vLLM server that serves it for generation."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PrivateAttr

from trim_graph.adapters.base import ScorableStep, ScorerReply, step_texts
from trim_graph.adapters.event_loop import AsyncLazy, run_sync
from trim_graph.adapters.known_scores import KnownScores, KnownSteps
from trim_graph.adapters.prm.formats import PRMFormat, check_length
from trim_graph.adapters.settings import VLLMGenerativePRMSettings
from trim_graph.errors import FailedAttempts, ModelServerError, ScorerError

from .replicas import Route
from .scorer import ServedReward, load_format

PATH = "/generative_scoring"
MIN_MASS = 0.1
"""Probability that + and - have together behind a step of a PRM; less, and the model is probably none."""

_MISSING = (404, 405, 501)
"""Statuses of a server without the route, or whose model is not served for generation."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """Facts about the served PRM."""

    format: PRMFormat
    labels: list[int]
    """The tokens (right, wrong)."""
    longest: int
    """Most tokens of a prompt."""


@dataclass(slots=True)
class _Spent:
    """Tokens of one call's requests."""

    read: int = 0
    written: int = 0


class VLLMGenerativeProcessReward(ServedReward, VLLMGenerativePRMSettings):
    """Scores steps with a PRM of format ``math_shepherd`` or ``rlhflow`` that a server has for generation.

    A causal language model that answers + or - needs no second copy for pooling: ``POST /generative_scoring``
    (vLLM 0.32 and later) reads the two tokens' probabilities behind a step, with the prefix cache on, and the
    score is that of + against -. Each step is asked about once, so a draft costs its own tokens; several
    missing steps go as one request. Token ids are made here, so that special tokens in a text stay text. The
    scores are those of `VLLMProcessReward` on the same weights.

    The first scoring also reads how much probability both tokens have together, and a warning names a model
    that would write something else.

    Settings, by keyword but for ``model``: `trim_graph.adapters.settings.VLLMGenerativePRMSettings`.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    rates_some: ClassVar[bool] = True
    """Declares that a call may ask about some of the steps only."""

    _ready: AsyncLazy[_Ready] = PrivateAttr()
    _scores: KnownScores = PrivateAttr()
    _checked: bool = PrivateAttr(default=False)

    def model_post_init(self, context: Any) -> None:
        """Connects the parts; nothing is sent."""
        super().model_post_init(context)
        self._ready = AsyncLazy(self._get_ready)
        self._scores = KnownScores(self.cache_size)

    def score(
        self, question: str, steps: Sequence[ScorableStep], *, only: Sequence[int] | None = None
    ) -> ScorerReply:
        """Scores every step that was not scored before.

        Args:
            question: Question that the steps answer.
            steps: All steps so far, in order.
            only: Indices of the steps to score; the reply has the scores of these. None: all.

        Returns:
            One probability in [0, 1] per step; the tokens read, those served from the cache included, and one
            token written for each step asked about.

        Raises:
            ScorerError: No steps, an empty question, an input longer than the PRM takes, a server that is not
                there, refuses or lacks the route, or an answer that is no probability.
        """
        return run_sync(self.ascore(question, steps, only=only))

    async def ascore(
        self, question: str, steps: Sequence[ScorableStep], *, only: Sequence[int] | None = None
    ) -> ScorerReply:
        """Scores every step that was not scored before without blocking the event loop; see `score`."""
        known = KnownSteps(question, steps, self._scores, only)
        route, spent = self._server.route(question), _Spent()
        try:
            ready = await self._ready.get()
            if known.missing or not steps:
                prompts = await asyncio.to_thread(_prompts, ready, question, steps, known.missing)
                await self._check_labels(route, ready, prompts[0], spent)
                for first in range(0, len(prompts), self.max_batch_size):
                    chunk = slice(first, first + self.max_batch_size)
                    scores = await self._ask(route, ready.labels, prompts[chunk], spent)
                    for index, score in zip(known.missing[chunk], scores, strict=True):
                        known.keep(index, score)
        except ModelServerError as error:
            why = f"the PRM {self.model} gave no scores: {error}"
            if error.status in _MISSING:
                why += (
                    f". {PATH} needs vLLM 0.32 or later and a model that is served for generation; a server "
                    "of the pooling runner is a scorer of type vllm_prm (VLLMProcessReward)"
                )
            failed = ScorerError(why)
            failed.attempts = FailedAttempts(
                count=max(route.failures, 1),
                input_tokens=spent.read,
                output_tokens=spent.written,
                unknown=0,
            )
            raise failed from error
        return ScorerReply(known.whole(), spent.read, route.failures, spent.written)

    async def _check_labels(self, route: Route, ready: _Ready, prompt: list[int], spent: _Spent) -> None:
        """Warns, once, of a model that gives the two labels hardly any probability behind a step."""
        if self._checked:
            return
        masses = [
            (await self._ask(route, labels, [prompt], spent, softmax=False))[0]
            for labels in (ready.labels, ready.labels[::-1])
        ]
        self._checked = True
        if (mass := sum(masses)) < MIN_MASS:
            warnings.warn(
                f"{self.model} at {route.root} gives + and - together {mass:.1%} of the probability behind a "
                f"step: it is probably no PRM of the format {self.format}, and its scores mean nothing",
                RuntimeWarning,
                stacklevel=2,
            )

    async def _ask(
        self,
        route: Route,
        labels: Sequence[int],
        prompts: Sequence[list[int]],
        spent: _Spent,
        *,
        softmax: bool = True,
    ) -> list[float]:
        """Returns the probability of the first label behind each prompt.

        Args:
            route: Of the call.
            labels: Token ids.
            prompts: Token ids; each of them begins as the first does, but for its last token.
            spent: Gets the tokens of all attempts.
            softmax: Whether it is the probability among the labels, not among all tokens.
        """
        shared = len(prompts[0]) - 1
        body = {
            "model": self.model,
            "query": prompts[0][:shared],
            "items": [prompt[shared:] for prompt in prompts],
            "label_token_ids": list(labels),
            "apply_softmax": softmax,
        }
        begun = route.begun
        try:
            answer = await route.retrying(lambda: route.post_once(PATH, body))
        finally:
            # What a broken attempt has read, nobody reports: all of it, at most.
            spent.read += (route.begun - begun) * sum(map(len, prompts))
            spent.written += (route.begun - begun) * len(prompts)
        usage = answer.get("usage") or {}
        spent.read += int(usage.get("prompt_tokens") or sum(map(len, prompts)))
        spent.written += int(usage.get("completion_tokens") or len(prompts))
        return _read(answer.get("data"), len(prompts), route.root)

    async def _get_ready(self) -> _Ready:
        served = await self._server.served(self.model)
        longest = served.get("max_model_len")
        if not isinstance(longest, int):
            raise ScorerError(
                f"the server at {self._server.root} does not report max_model_len, and {PATH} cuts what is "
                "longer without a word: vLLM reports it in /v1/models; have the gateway let it through"
            )
        place = self.tokenizer or str(served.get("root") or self.model)
        choice, tokenizer = await asyncio.to_thread(load_format, self, place)
        layout = choice.layout(tokenizer)
        assert layout.answer_ids is not None  # by the settings' check
        wrong, right = layout.answer_ids
        return _Ready(layout, [right, wrong], longest - 1)


def _prompts(
    ready: _Ready, question: str, steps: Sequence[ScorableStep], missing: Sequence[int]
) -> list[list[int]]:
    """Returns the token ids up to and with the position of each missing step's score."""
    texts = step_texts(steps)
    asked = ready.format.encode(question, texts)
    prompts = [asked.ids[: asked.step_positions[index] + 1] for index in missing]
    check_length(prompts[-1], texts, ready.longest)
    return prompts


def _read(data: Any, expected: int, at: str) -> list[float]:
    entries = data if isinstance(data, list) and all(isinstance(one, dict) for one in data) else []
    found = {entry.get("index"): entry.get("score") for entry in entries}
    scores = [found.get(number) for number in range(expected)]
    for number, score in enumerate(scores):
        if not isinstance(score, int | float) or not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ScorerError(
                f"the server at {at} answered {PATH} with the score {score!r} for item {number} of {expected}"
                ", not with a probability in [0, 1]"
            )
    return [float(score) for score in scores if score is not None]
