"""The format of Skywork-o1-Open-PRM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .prm_formats import Head, PRMInput, check_length, check_texts
from .special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SkyworkPRMFormat:
    r"""The question, then the steps line by line, each line followed by the token of a line break.

    The model puts one value at every token; a step's score is its sigmoid at the line break that ends the
    step. Source: ``prepare_input`` and ``ValueHead`` in the authors'
    https://github.com/SkyworkAI/skywork-o1-prm-inference, which the model cards of
    Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B use: the tokenizer's ``bos_token``, the question, a line
    break; then every line of the response tokenised by itself.

    The tokens are those of ``prepare_input`` for the steps joined by line breaks. The authors' code takes
    each line for a step; here a step of several lines has one score, the one behind its last line.

    Args:
        tokenizer: The PRM's tokenizer.

    Raises:
        ValueError: The tokenizer has no ``bos_token``, or a line break is not one token.
    """

    head: Head = "value"
    answer_ids: tuple[int, int] | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.bos_token_id is None:
            raise ValueError("the tokenizer has no bos_token, with which the format skywork begins")
        self._bos_id = int(tokenizer.bos_token_id)
        self._guard = SpecialTokenGuard(tokenizer)
        line_break = self._guard.encode("", "\n")
        if len(line_break) != 1:
            raise ValueError(f"a line break makes the tokens {line_break}; the format skywork needs one")
        self._break_id = line_break[0]

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lay out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
        ids = [self._bos_id, *self._guard.encode("", question + "\n")]
        positions = []
        for step in steps:
            for line in step.split("\n"):
                ids += [*self._guard.encode("", line), self._break_id]
            positions.append(len(ids) - 1)
        check_length(ids, steps, max_tokens)
        return PRMInput(ids, positions)
