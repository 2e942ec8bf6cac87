"""A scorer that costs nothing: how sure the writer was of its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trim_graph.errors import ScorerError

from .inner_model import bound_setting, chat_model_inside
from .protocols import ScorableStep, ScorerReply

_HINT = "set logprobs=True on both chat models (ChatTransformers, ChatVLLM, ChatVLLMEngine, ChatOpenAI)"


class TokenProbability:
    """Scores each step with the mean probability of its tokens under the model that wrote it.

    It needs no further model, and no call: the chat models tell the figure with ``logprobs=True``. It says
    how sure a writer was, not whether it was right; scores of the two models are on different scales. A step
    that a person wrote by hand scores 1.
    """

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Look the probabilities up.

        Raises:
            ScorerError: A model did not tell them.
        """
        scores = []
        for index, step in enumerate(steps):
            probability = 1.0 if step["writer"] == "person" else step.get("mean_token_probability")
            if probability is None:
                raise ScorerError(
                    f"step {index}, by the {step['writer']} model, came without a token probability: {_HINT}"
                )
            scores.append(probability)
        return ScorerReply(scores)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """As `score`."""
        return self.score(question, steps)

    def check_writer(self, writer: str, model: Any) -> None:
        """Refuse a chat model that is set not to tell its token probabilities.

        Raises:
            ValueError: It has a setting ``logprobs``, and that is off.
        """
        known = "logprobs" in getattr(type(chat_model_inside(model)), "model_fields", {})
        if known and not bound_setting(model, "logprobs"):
            raise ValueError(
                f"the scorer TokenProbability needs token probabilities: {_HINT}; {writer} has not"
            )
