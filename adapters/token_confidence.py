"""Confidence of a model in its tokens: the entropy of one token, and a scorer of mean probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trim_graph.errors import ScorerError

from .base import ScorableStep, ScorerReply
from .capabilities import bound_setting, chat_model_inside

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


_FIX = "set logprobs=True on both chat models (ChatTransformers, ChatVLLM, ChatVLLMEngine, ChatOpenAI)"


class TokenProbability:
    """Scores each step with the mean probability of its tokens under the model that wrote it.

    It needs no further model, and no call: the chat models report the figure with ``logprobs=True``. It
    measures how sure a writer was, not whether it was right; scores of the two models are on different
    scales. A step that a human wrote by hand scores 1.
    """

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Looks up the probabilities.

        Raises:
            ScorerError: A model did not report them.
        """
        scores = []
        for index, step in enumerate(steps):
            probability = 1.0 if step["writer"] == "human" else step.get("mean_token_probability")
            if probability is None:
                raise ScorerError(
                    f"step {index}, by the {step['writer']} model, came without a token probability: {_FIX}"
                )
            scores.append(probability)
        return ScorerReply(scores)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Looks up the probabilities; see `score`."""
        return self.score(question, steps)

    def check_writer(self, writer: str, model: Any) -> None:
        """Refuses a chat model that is set not to report its token probabilities.

        Raises:
            ValueError: It has a setting ``logprobs``, and that is off.
        """
        known = "logprobs" in getattr(type(chat_model_inside(model)), "model_fields", {})
        if known and not bound_setting(model, "logprobs"):
            raise ValueError(
                f"the scorer TokenProbability needs token probabilities: {_FIX}; {writer} has not"
            )
