"""How a question and its steps are laid out for a process reward model (PRM), one class a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .protocols import ScorerError
from .special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""System prompt that the model card of Qwen2.5-Math-PRM-7B uses."""


@dataclass(frozen=True, slots=True)
class PRMInput:
    """What a PRM reads.

    Attributes:
        ids: Token ids.
        step_positions: Index into ``ids`` of the token that holds each step's score, in order.
    """

    ids: list[int]
    step_positions: list[int]


class QwenPRMFormat:
    """The format of Qwen2.5-Math-PRM: one ChatML turn, a step token after every step.

    Source: the usage example of the model card, https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B. Special
    tokens in the question or in a step, the step token among them, stay plain text and move no score.

    Args:
        tokenizer: The PRM's tokenizer, with its chat template.
        system_prompt: First turn; None leaves it to the chat template.
        step_token: The token after each step.

    Raises:
        ValueError: The step token is not a token of its own in this tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = QWEN_SYSTEM_PROMPT,
        step_token: str = "<extra_0>",
    ) -> None:
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._step_token = step_token
        self._guard = SpecialTokenGuard(tokenizer, also=[step_token])
        if step_token not in self._guard.ids:
            raise ValueError(
                f"step_token={step_token!r} is not an added token of this tokenizer, so no position can hold "
                f"a score; its special tokens are {sorted(self._guard.ids)}"
            )
        self._step_id = self._guard.ids[step_token]

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lay out one solution.

        Args:
            question: What the solution answers.
            steps: The steps without their delimiters.
            max_tokens: Longest input the model takes.

        Returns:
            Token ids and one position per step.

        Raises:
            ScorerError: No steps, an empty question, or more than ``max_tokens`` tokens.
        """
        if not question.strip():
            raise ScorerError("the question is empty; a PRM rates steps of an answer to a question")
        if not steps:
            raise ScorerError("there are no steps to score")
        guard = self._guard
        turns = [
            {"role": "user", "content": guard.shield(question)},
            {
                "role": "assistant",
                "content": "".join(guard.shield(step) + self._step_token for step in steps),
            },
        ]
        if self._system_prompt is not None:
            turns.insert(0, {"role": "system", "content": guard.shield(self._system_prompt)})
        rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        ids = guard.encode(str(rendered))
        if max_tokens is not None and len(ids) > max_tokens:
            raise ScorerError(
                f"question and {len(steps)} steps make {len(ids)} tokens; the PRM takes {max_tokens}. "
                "Nothing was truncated: shorten the question or score fewer steps"
            )
        positions = [i for i, token in enumerate(ids) if token == self._step_id]
        if len(positions) != len(steps):
            raise ScorerError(
                f"{len(steps)} steps came out with {len(positions)} step tokens {self._step_token!r}: "
                "the PRM's chat template changes the text of the assistant's turn"
            )
        return PRMInput(ids, positions)
