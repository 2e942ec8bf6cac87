"""The format of Math-Shepherd's process reward model (PRM)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trim_graph.errors import ScorerError

from .prm_formats import STEP_TOKENS, Head, PRMInput, check_length, check_texts
from .special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SentencePiece writes U+2581 for a space, and takes the character itself for one.
_END = re.compile(r"[\s\u2581]+\Z")


class MathShepherdPRMFormat:
    r"""Question and steps as plain text, a step tag after every step: ``Q Step 1: ... ки\nStep 2: ... ки``.

    The model is a causal language model that says ``+`` or ``-`` after each tag; a step's score is the
    probability of ``+`` against ``-`` there. Source: Wang et al., Math-Shepherd (arXiv 2312.08935), and the
    usage example on the model card of https://huggingface.co/peiyi9979/math-shepherd-mistral-7b-prm, whose
    tokens (``+`` is 648, ``-`` 387, the tag 12902) come out of the same expressions here:
    ``encode("+ -")`` and the tag after a space.

    White space at the end of the question and of a step is dropped, so that a tag always makes the same
    token. A tag that stands in the question or in a step is spelled with two smaller tokens.

    Args:
        tokenizer: The PRM's tokenizer.
        step_token: The tag after each step; the authors' is a rare token of Mistral's vocabulary.

    Raises:
        ValueError: The tag, ``+`` or ``-`` is not one token in this tokenizer.
    """

    head: Head = "tokens"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, step_token: str = STEP_TOKENS["math_shepherd"]
    ) -> None:
        self._guard = SpecialTokenGuard(tokenizer, also=[step_token])
        self._step_token = step_token
        self._tag = self._guard.renamed(step_token)
        self._before, self._after = _added_by(tokenizer)
        answers = tokenizer.encode("+ -", add_special_tokens=False)
        if len(answers) != 2:
            raise ValueError(f'"+ -" makes the tokens {answers} with this tokenizer; the format needs two')
        self.answer_ids: tuple[int, int] | None = (answers[1], answers[0])
        text, ends = self._text("a", ["b", "c"])
        ids, spans = self._guard.encode_spans(text)
        tags = {None if number is None else ids[number] for number in _ending_at(spans, ends, len(self._tag))}
        tag_id = tags.pop()
        if tag_id is None or tags:
            raise ValueError(
                f"step_token={step_token!r} is not one token in this tokenizer, so no position holds a score"
            )
        self._tag_id: int = tag_id
        self._spelled = _spelled(tokenizer, self._tag_id) or [self._tag_id]

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lay out one solution; see `PRMFormat.encode`."""
        question = _END.sub("", question)
        check_texts(question, steps)
        text, ends = self._text(question, steps)
        plain, spans = self._guard.encode_spans(text)
        ours = set(_ending_at(spans, ends, len(self._tag)))
        ids = list(self._before)
        positions = []
        for number, token in enumerate(plain):
            if number in ours:
                positions.append(len(ids))
            ids += self._spelled if token == self._tag_id and number not in ours else [token]
        ids += self._after
        check_length(ids, steps, max_tokens)
        if [ids[position] for position in positions] != [self._tag_id] * len(steps):
            raise ScorerError(f"the step tag {self._step_token!r} came out as other tokens behind a step")
        return PRMInput(ids, positions)

    def _text(self, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
        """The text, and where in it each step's tag ends."""
        text = question
        ends = []
        for number, step in enumerate(steps):
            body = _END.sub("", step)
            joint = "\n" if number else " " * bool(body)
            text += f"{joint}{body} {self._tag}"
            ends.append(len(text))
        return text, ends


def _ending_at(spans: Sequence[tuple[int, int]], ends: Sequence[int], length: int) -> list[int | None]:
    """The token that ends at each of these places and holds no more than the tag and the space before it."""
    found = {end: number for number, (start, end) in enumerate(spans) if end - start in (length, length + 1)}
    return [found.get(end) for end in ends]


def _added_by(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after any text."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> list[int] | None:
    """Two tokens that together spell this one; None where there are none."""
    vocabulary = tokenizer.get_vocab()
    name = str(tokenizer.convert_ids_to_tokens(token))
    splits = ((name[:at], name[at:]) for at in range(1, len(name)))
    return next(
        ([vocabulary[a], vocabulary[b]] for a, b in splits if a in vocabulary and b in vocabulary), None
    )
