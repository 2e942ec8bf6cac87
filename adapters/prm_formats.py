"""How a question and its steps are laid out for a process reward model (PRM): what a format is, and Qwen's.

The other formats are in ``prm_format_*.py``; what becomes of a model's answer is in ``prm_scores.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from trim_graph.errors import ContextLengthError, ScorerError

from .special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""System prompt that the model card of Qwen2.5-Math-PRM-7B uses."""


FormatName = Literal["qwen", "math_shepherd", "skywork", "rlhflow"]
"""The formats there are."""

STEP_TOKENS = {"qwen": "<extra_0>", "math_shepherd": "ки"}
"""The token after each step of those formats that have one to choose, unless another is chosen."""

Head = Literal["labels", "value", "tokens"]
"""What the model gives at a step: logits of two labels (wrong, right), one value, or next-token logits."""


@dataclass(frozen=True, slots=True)
class PRMInput:
    """What a PRM reads.

    Attributes:
        ids: Token ids.
        step_positions: Index into ``ids`` of the token that holds each step's score, in order.
    """

    ids: list[int]
    step_positions: list[int]


class PRMFormat(Protocol):
    """A layout and the head it is read from.

    Attributes:
        head: What the model gives at a step's position.
        answer_ids: The tokens that say (wrong, right) where the head is ``tokens``, else None.
    """

    head: Head
    answer_ids: tuple[int, int] | None

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lay out one solution.

        Nothing is truncated. The positions are those where this function has put them: no text in the
        question or in a step can add, move or stand for one.

        Args:
            question: What the solution answers.
            steps: The steps without their delimiters.
            max_tokens: Longest input the model takes.

        Returns:
            Token ids and one position per step.

        Raises:
            ScorerError: No steps, an empty question, or more than ``max_tokens`` tokens.
        """
        ...


def prm_format(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    step_token: str | None = None,
    system_prompt: str | None = "auto",
) -> PRMFormat:
    """Make the format of this name.

    Args:
        name: One of `FormatName`.
        tokenizer: The PRM's tokenizer.
        step_token: The token after each step; None: the format's own.
        system_prompt: First turn of a chat; None leaves it to the chat template, ``auto`` is the format's
            own: Qwen's as on its model card, none for the others.

    Raises:
        ValueError: The name is not known, the format has no such setting, or the tokenizer does not fit.
    """
    check_format(name, step_token=step_token, system_prompt=system_prompt)
    token = step_token or STEP_TOKENS.get(name, "")
    prompt = None if system_prompt == "auto" else system_prompt
    if name == "qwen":
        prompt = QWEN_SYSTEM_PROMPT if system_prompt == "auto" else system_prompt
        return QwenPRMFormat(tokenizer, system_prompt=prompt, step_token=token)
    if name == "math_shepherd":
        from .prm_format_math_shepherd import MathShepherdPRMFormat

        return MathShepherdPRMFormat(tokenizer, step_token=token)
    if name == "skywork":
        from .prm_format_skywork import SkyworkPRMFormat

        return SkyworkPRMFormat(tokenizer)
    from .prm_format_rlhflow import RLHFlowPRMFormat

    return RLHFlowPRMFormat(tokenizer, system_prompt=prompt)


def check_format(name: str, *, step_token: str | None = None, system_prompt: str | None = "auto") -> None:
    """Check the settings of a format without a tokenizer; see `prm_format`.

    Raises:
        ValueError: The name is not known, or the format has no such setting.
    """
    if name not in get_args(FormatName):
        raise ValueError(f"format={name!r} is not known; choose one of {', '.join(get_args(FormatName))}")
    if step_token is not None and name not in STEP_TOKENS:
        own = "a line break ends" if name == "skywork" else "turns of the chat template end"
        raise ValueError(f"step_token={step_token!r}: the format {name} has none to choose, {own} a step")
    if step_token is not None and not step_token.strip():
        raise ValueError(f"step_token={step_token!r} is nothing but white space")
    if system_prompt not in (None, "auto") and name in ("math_shepherd", "skywork"):
        raise ValueError(f"system_prompt: the format {name} is no chat and has no system prompt")


def is_chat(name: str) -> bool:
    """Whether the format needs the chat template of the PRM's tokenizer."""
    return name in ("qwen", "rlhflow")


def check_texts(question: str, steps: Sequence[str]) -> None:
    """Refuse what no PRM can rate.

    Raises:
        ScorerError: No steps, or an empty question.
    """
    if not question.strip():
        raise ScorerError("the question is empty; a PRM rates steps of an answer to a question")
    if not steps:
        raise ScorerError("there are no steps to score")


def check_length(ids: Sequence[int], steps: Sequence[str], max_tokens: int | None) -> None:
    """Refuse what the model cannot read whole.

    Raises:
        ScorerError: More than ``max_tokens`` tokens.
    """
    if max_tokens is not None and len(ids) > max_tokens:
        said = (
            f"question and {len(steps)} steps make {len(ids)} tokens; the PRM takes {max_tokens}. "
            "Nothing was truncated: shorten the question or score fewer steps"
        )
        raise ScorerError(said) from ContextLengthError(said)


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

    head: Head = "labels"
    answer_ids: tuple[int, int] | None = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = QWEN_SYSTEM_PROMPT,
        step_token: str = STEP_TOKENS["qwen"],
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
        """Lay out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
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
        check_length(ids, steps, max_tokens)
        positions = [i for i, token in enumerate(ids) if token == self._step_id]
        if len(positions) != len(steps):
            raise ScorerError(
                f"{len(steps)} steps came out with {len(positions)} step tokens {self._step_token!r}: "
                "the PRM's chat template changes the text of the assistant's turn"
            )
        return PRMInput(ids, positions)
