"""The format of RLHFlow's process reward models (PRMs)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trim_graph.errors import ScorerError

from .prm_formats import Head, PRMInput, check_length, check_texts
from .special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RLHFlowPRMFormat:
    """A chat: the user says the question and the first step, then step after step; each answer is ``+``.

    The model is a causal language model; a step's score is the probability of ``+`` against ``-`` as the
    first token of the answer. Source: ``select_sample`` in ``math-rm/prm_evaluate.py`` of
    https://github.com/RLHFlow/RLHF-Reward-Modeling, for RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and
    -Mistral-Data. It runs the model once for each step, on the conversation up to there; attention looks
    back only, so one run over the whole conversation gives the same. As there, steps are stripped.

    Args:
        tokenizer: The PRM's tokenizer, with its chat template.
        system_prompt: First turn; None leaves it to the chat template.

    Raises:
        ValueError: ``+`` or ``-`` is not one token in this tokenizer.
    """

    head: Head = "tokens"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._guard = SpecialTokenGuard(tokenizer)
        right, wrong = (self._guard.encode("", sign) for sign in "+-")
        if len(right) != 1 or len(wrong) != 1:
            raise ValueError(f'"+" and "-" make the tokens {right} and {wrong}; the format needs one each')
        self.answer_ids: tuple[int, int] | None = (wrong[0], right[0])

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lay out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
        text, starts = self._text(question, steps)
        ids, spans = self._guard.encode_spans(text)
        check_length(ids, steps, max_tokens)
        assert self.answer_ids is not None
        at = {start: number for number, (start, end) in enumerate(spans) if end == start + 1}
        answers = [at.get(start, 0) for start in starts]
        if any(number == 0 or ids[number] != self.answer_ids[1] for number in answers):
            raise ScorerError(
                "the answer + is not a token of its own in the PRM's chat template, so nothing says where a "
                "score stands"
            )
        return PRMInput(ids, [number - 1 for number in answers])

    def _text(self, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
        """The rendered chat, and where in it each answer stands."""
        mark = f"answer{secrets.token_hex(8)}"
        turns = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        for number, step in enumerate(steps):
            said = step.strip() if number else f"{question} {step.strip()}"
            turns += [{"role": "user", "content": said}, {"role": "assistant", "content": mark}]
        shield = self._guard.shield
        turns = [{**turn, "content": shield(turn["content"])} for turn in turns]
        rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        parts = self._guard.unshielded(str(rendered)).split(mark)
        if len(parts) != len(steps) + 1:
            raise ScorerError(
                f"{len(steps)} steps came out with {len(parts) - 1} answers: the PRM's chat template drops "
                "or repeats turns of the assistant"
            )
        starts = []
        text = parts[0]
        for part in parts[1:]:
            starts.append(len(text))
            text += "+" + part
        return text, starts
