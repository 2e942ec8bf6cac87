"""Confidence of a model in its tokens: the entropy of one token, and a scorer of token probabilities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.runnables import Runnable

from trim_graph.errors import ScorerError

from .base import ScorableStep, ScorerReply, reads_token_probability
from .capabilities import bound_setting, capable, chat_model_inside, continues_exactly

TOP_LOGPROBS = 20
"""Number of likeliest tokens to request: the most that OpenAI's API reports, and a vLLM server without
``--max-logprobs``."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """Entropy of a distribution over tokens.

    Attributes:
        nats: In nats; a lower bound where ``unobserved_probability`` is above 0.
        unobserved_probability: Probability of the tokens that were not observed.
    """

    nats: float
    unobserved_probability: float = 0.0


def entropy_of_likeliest(logprobs: Sequence[float], chosen: float | None = None) -> Entropy:
    """Returns a lower bound of the entropy, from the log-probabilities of the likeliest tokens.

    The tokens not observed share the probability ``rest``, and none is likelier than the least likely one
    observed, so they add at least ``-rest * log(min(least, rest))``. Renormalising the others gives a
    lower bound too, but a worse one: it would call the flattest distribution over 100 000 tokens no less
    certain than one over 20. Exact where all are observed.

    Args:
        logprobs: Natural logarithms of probabilities.
        chosen: That of the token generated. A server reports it too where it is none of the likeliest. As the
            least likely one it therefore says nothing of those not observed.

    Raises:
        ValueError: There are none, or one is no log-probability.
    """
    if not logprobs or any(math.isnan(value) or value > 1e-3 for value in logprobs):
        raise ValueError(f"these are not log-probabilities: {list(logprobs)[:5]}")
    ordered = sorted(map(float, logprobs), reverse=True)
    observed = [(math.exp(value), value) for value in ordered]
    nats = -sum(p * value for p, value in observed if p > 0)
    rest = max(0.0, 1.0 - math.fsum(p for p, _ in observed))
    bounding = ordered[:-1] if chosen is not None and ordered[-1] == chosen else ordered
    if rest > 0:
        least = math.exp(bounding[-1]) if bounding else 1.0
        nats -= rest * math.log(min(least, rest)) if least > 0 else rest * math.log(rest)
    return Entropy(max(0.0, nats), rest)


def lowest_window_mean(probabilities: Sequence[float], window: int) -> float | None:
    """Returns the lowest mean of ``window`` consecutive probabilities, None of none.

    Of fewer than ``window`` it is the mean of all. Source: the lowest group confidence of "Deep Think with
    Confidence" (arXiv 2508.15260), the lowest mean over a sliding window of tokens. There a token counts by
    the negative mean log-probability of its likeliest alternatives; here by the probability of the token
    itself, so that the value is in [0, 1] and, with a window as long as the step, its mean token
    probability.

    Args:
        probabilities: Those of the tokens generated, in order.
        window: Tokens of a window, 1 or more; 1 gives the least probable token.
    """
    if not probabilities:
        return None
    width = min(window, len(probabilities))
    starts = range(len(probabilities) - width + 1)
    return min(math.fsum(probabilities[start : start + width]) / width for start in starts)


DEFAULT_WINDOW = 16
"""Tokens of a window unless another number is given: a clause or one calculation."""

_FIX = "set logprobs=True on both chat models (ChatTransformers, ChatVLLM, ChatVLLMEngine, ChatOpenAI)"


class TokenProbability:
    """Scores each step with the probability of its tokens under the model that wrote it.

    It needs no further model, and no call. It measures how sure a writer was, not whether it was right;
    scores of the two models are on different scales. A step that a human wrote by hand scores 1.

    ``mean``: the mean over the step, which the chat models report with ``logprobs=True``.

    ``lowest_window``: the lowest mean of ``window`` consecutive tokens (`lowest_window_mean`), so that one
    doubtful place counts also in a long step. The graph asks the chat models for it with each call, by the
    call setting ``probability_window``, and our adapters report it without ``logprobs=True``.

    Args:
        statistic: ``mean`` or ``lowest_window``.
        window: Tokens of a window; None: `DEFAULT_WINDOW`. Only ``lowest_window`` has one.

    Attributes:
        probability_window: Tokens of the window that the scorer reads; None: it reads none.

    Raises:
        ValueError: A setting is wrong.
    """

    def __init__(
        self, statistic: Literal["mean", "lowest_window"] = "mean", *, window: int | None = None
    ) -> None:
        if statistic not in ("mean", "lowest_window"):
            raise ValueError(f"statistic={statistic!r} is neither mean nor lowest_window")
        if window is not None and statistic == "mean":
            raise ValueError(f"window={window!r}: only statistic='lowest_window' has a window")
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ValueError(f"window={window!r} is not a whole number of tokens, 1 or more")
        self.statistic = statistic
        self.probability_window = None if statistic == "mean" else (window or DEFAULT_WINDOW)

    def __repr__(self) -> str:
        shown = (
            "" if self.probability_window is None else f"'lowest_window', window={self.probability_window}"
        )
        return f"TokenProbability({shown})"

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Looks up the probabilities.

        Raises:
            ScorerError: A model did not report them.
        """
        return ScorerReply([self._score(index, step) for index, step in enumerate(steps)])

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Looks up the probabilities; see `score`."""
        return self.score(question, steps)

    def _score(self, index: int, step: ScorableStep) -> float:
        if step.writer == "human":
            return 1.0
        if self.probability_window is None:
            probability, what, fix = step.mean_token_probability, "token probability", _FIX
        else:
            probability = step.lowest_window_probability
            what, fix = "lowest_window_probability", self._window_fix
        if probability is None:
            raise ScorerError(f"step {index}, by the {step.writer} model, came without a {what}: {fix}")
        return probability

    @property
    def _window_fix(self) -> str:
        return (
            "it is known only of steps written under a scorer of this statistic, by ChatTransformers, "
            "ChatVLLM, ChatVLLMEngine, or one that reports its logprobs as ChatOpenAI does (logprobs=True)"
        )

    def check_writer(self, writer: str, model: Any) -> None:
        """Refuses a chat model that does not report its token probabilities, as far as that is known.

        Raises:
            ValueError: It has a setting ``logprobs``, and that is off; or it continues exactly, and does not
                know the call setting ``probability_window``.
        """
        if self.probability_window is not None and continues_exactly(model):
            if not capable(model, "reports_window"):
                raise ValueError(
                    f"the scorer {self!r} needs a writer that takes the call setting probability_window and "
                    f"declares reports_window = True; {writer}, "
                    f"{type(chat_model_inside(model) or model).__name__}, does not"
                )
            return
        known = "logprobs" in getattr(type(chat_model_inside(model)), "model_fields", {})
        if known and not bound_setting(model, "logprobs"):
            raise ValueError(f"the scorer {self!r} needs token probabilities: {_FIX}; {writer} has not")


def reporting(
    model: Runnable[Any, Any], scorer: Any, writer: Literal["small", "large"]
) -> Runnable[Any, Any]:
    """Returns a writer that reports with every call what a scorer reads of its tokens.

    Args:
        model: A chat model. It takes the call setting ``probability_window`` if the scorer reads a window.
        scorer: Any scorer. One that reads a window has the attribute ``probability_window``, in tokens; one
            that reads the small model's mean token probabilities has ``reads_token_probability``.
        writer: Which of the two it is.
    """
    window = getattr(scorer, "probability_window", None)
    if window is not None and bound_setting(model, "probability_window") != window:
        model = model.bind(probability_window=window)
    if writer == "small" and reads_token_probability(scorer):
        model = _reporting_probabilities(model)
    return model


def _reporting_probabilities(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Returns a small model that reports its token probabilities, if it is known to take ``logprobs``."""
    inside: Any = chat_model_inside(model)
    asked: Any = getattr(inside, "model", None)
    if isinstance(asked, Runnable):  # a model that continues by prompt asks another one
        changed = _reporting_probabilities(asked)
        if changed is asked or inside is not model:
            return model
        wrapper: Any = model
        copied: Runnable[Any, Any] = wrapper.model_copy(update={"model": changed})
        return copied
    if bound_setting(model, "logprobs"):
        return model
    if "logprobs" in getattr(type(inside), "model_fields", {}):
        return model.bind(logprobs=True)
    warnings.warn(
        "the scorer weighs the small model's token probabilities, which "
        f"{type(inside or model).__name__} is not known to report; a step without one has the score of the "
        "scorer's head alone (train scorer --no-token-probability makes such a scorer)",
        RuntimeWarning,
        stacklevel=2,
    )
    return model
