"""Layouts of a question and its steps for process reward models (PRM).

The formats: Qwen's, Math-Shepherd's, Skywork's, RLHFlow's, and that of scorers trained here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from langchain_core.messages import HumanMessage, SystemMessage

from trim_graph.adapters.tokenization import SpecialTokenGuard, encode_chat
from trim_graph.errors import ContextLengthError, ScorerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""System prompt that the model card of Qwen2.5-Math-PRM-7B uses."""


FormatName = Literal["qwen", "math_shepherd", "skywork", "rlhflow", "trim"]
"""The formats there are."""

STEP_TOKENS = {"qwen": "<extra_0>", "math_shepherd": "ки"}
"""The token after each step of those formats that have one to choose, unless another is chosen. The format
``trim`` takes the tokenizer's ``eos_token``."""

TOKEN_FORMATS = ("math_shepherd", "rlhflow")
"""Formats of language models that answer + or -, in a token of the vocabulary."""

Head = Literal["labels", "value", "tokens"]
"""Output of the model at a step: logits of two labels (wrong, right), one value, or next-token logits."""


@dataclass(frozen=True, slots=True)
class PRMInput:
    """Input of a PRM.

    Attributes:
        ids: Token ids.
        step_positions: Index into ``ids`` of the token that holds each step's score, in order.
    """

    ids: list[int]
    step_positions: list[int]


class PRMFormat(Protocol):
    """A layout, and the head that scores are read from.

    Attributes:
        head: Output of the model at a step's position.
        answer_ids: The tokens that say (wrong, right) where the head is ``tokens``, else None.
    """

    head: Head
    answer_ids: tuple[int, int] | None

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lays out one solution.

        Nothing is truncated. The positions are those of this function: no text in the question or in a step
        can add, move or imitate one.

        Args:
            question: Question that the solution answers.
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
    """Makes the format of this name.

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
        return MathShepherdPRMFormat(tokenizer, step_token=token)
    if name == "skywork":
        return SkyworkPRMFormat(tokenizer)
    if name == "trim":
        return TrimPRMFormat(tokenizer, step_token=step_token, system_prompt=prompt)
    return RLHFlowPRMFormat(tokenizer, system_prompt=prompt)


def check_format(name: str, *, step_token: str | None = None, system_prompt: str | None = "auto") -> None:
    """Checks the settings of a format without a tokenizer; see `prm_format`.

    Raises:
        ValueError: The name is not known, or the format has no such setting.
    """
    if name not in get_args(FormatName):
        raise ValueError(f"format={name!r} is not known; choose one of {', '.join(get_args(FormatName))}")
    if step_token is not None and name not in (*STEP_TOKENS, "trim"):
        own = "a line break ends" if name == "skywork" else "turns of the chat template end"
        raise ValueError(f"step_token={step_token!r}: the format {name} has none to choose, {own} a step")
    if step_token is not None and not step_token.strip():
        raise ValueError(f"step_token={step_token!r} is nothing but white space")
    if system_prompt not in (None, "auto") and name in ("math_shepherd", "skywork"):
        raise ValueError(f"system_prompt: the format {name} is no chat and has no system prompt")


def is_chat(name: str) -> bool:
    """Returns whether the format needs the chat template of the PRM's tokenizer."""
    return name in ("qwen", "rlhflow")


def check_texts(question: str, steps: Sequence[str]) -> None:
    """Refuses input that no PRM can rate.

    Raises:
        ScorerError: No steps, or an empty question.
    """
    if not question.strip():
        raise ScorerError("the question is empty; a PRM rates steps of an answer to a question")
    if not steps:
        raise ScorerError("there are no steps to score")


def check_length(ids: Sequence[int], steps: Sequence[str], max_tokens: int | None) -> None:
    """Refuses input longer than the model takes.

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
        """Lays out one solution; see `PRMFormat.encode`."""
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
    token. A tag in the question or in a step is spelled with two smaller tokens.

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
        """Lays out one solution; see `PRMFormat.encode`."""
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
        """Returns the text, and the offset in it where each step's tag ends."""
        text = question
        ends = []
        for number, step in enumerate(steps):
            body = _END.sub("", step)
            joint = "\n" if number else " " * bool(body)
            text += f"{joint}{body} {self._tag}"
            ends.append(len(text))
        return text, ends


def _ending_at(spans: Sequence[tuple[int, int]], ends: Sequence[int], length: int) -> list[int | None]:
    """Returns for each place the token that ends there and holds but the tag and the space before it."""
    found = {end: number for number, (start, end) in enumerate(spans) if end - start in (length, length + 1)}
    return [found.get(end) for end in ends]


def _added_by(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Returns the tokens that the tokenizer puts before and after any text."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> list[int] | None:
    """Returns two tokens that together spell this one; None where there are none."""
    vocabulary = tokenizer.get_vocab()
    name = str(tokenizer.convert_ids_to_tokens(token))
    splits = ((name[:at], name[at:]) for at in range(1, len(name)))
    return next(
        ([vocabulary[a], vocabulary[b]] for a, b in splits if a in vocabulary and b in vocabulary), None
    )


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
        """Lays out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
        text, starts = self._text(question, steps)
        ids, spans = self._guard.encode_spans(text)
        check_length(ids, steps, max_tokens)
        assert self.answer_ids is not None
        at = {start: number for number, (start, end) in enumerate(spans) if end == start + 1}
        answers = [at.get(start, 0) for start in starts]
        if any(number == 0 or ids[number] != self.answer_ids[1] for number in answers):
            raise ScorerError(
                "the answer + is not a token of its own in the PRM's chat template, so no position is "
                "known to hold a score"
            )
        return PRMInput(ids, [number - 1 for number in answers])

    def _text(self, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
        """Returns the rendered chat, and the offset of each answer in it."""
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
        """Lays out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
        ids = [self._bos_id, *self._guard.encode("", question + "\n")]
        positions = []
        for step in steps:
            for line in step.split("\n"):
                ids += [*self._guard.encode("", line), self._break_id]
            positions.append(len(ids) - 1)
        check_length(ids, steps, max_tokens)
        return PRMInput(ids, positions)


class TrimPRMFormat:
    """The format of scorers trained here: the question, then the steps, a step tag after each.

    It works with the tokenizer of any causal model. With a chat template the question is a user's turn and
    the steps begin the assistant's; without one the question, and a system prompt before it, end in a blank
    line. The model puts one value at every token; a step's score is its sigmoid at the step's tag.

    Question and steps are tokenised one by one, so the ids up to a step's tag are the same whatever follows:
    a prefix cache keeps them. Special tokens in a text, the tag among them, stay text.

    Args:
        tokenizer: The scorer's tokenizer.
        step_token: The tag after each step; None: the tokenizer's ``eos_token``.
        system_prompt: First turn; None leaves it to the chat template.

    Raises:
        ValueError: The tag is not a token of its own, or none is given and the tokenizer has no
            ``eos_token``.
    """

    head: Head = "value"
    answer_ids: tuple[int, int] | None = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step_token: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        chosen = step_token or tokenizer.eos_token
        if chosen is None:
            raise ValueError("the tokenizer has no eos_token; give step_token, the token after each step")
        self.step_token = str(chosen)
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._guard = SpecialTokenGuard(tokenizer, also=[self.step_token])
        if self.step_token not in self._guard.ids:
            raise ValueError(
                f"step_token={self.step_token!r} is not an added token of this tokenizer, so no position can "
                f"hold a score; its special tokens are {sorted(self._guard.ids)}"
            )
        self._tag_id = self._guard.ids[self.step_token]
        self._before = [] if tokenizer.chat_template else _added_by(tokenizer)[0]

    def encode(self, question: str, steps: Sequence[str], *, max_tokens: int | None = None) -> PRMInput:
        """Lays out one solution; see `PRMFormat.encode`."""
        check_texts(question, steps)
        ids = self._prompt(question)
        positions = []
        for step in steps:
            ids += [*self._guard.encode("", step), self._tag_id]
            positions.append(len(ids) - 1)
        check_length(ids, steps, max_tokens)
        return PRMInput(ids, positions)

    def _prompt(self, question: str) -> list[int]:
        system = [] if self._system_prompt is None else [self._system_prompt]
        if not self._tokenizer.chat_template:
            text = "".join(f"{part}\n\n" for part in [*system, question])
            return [*self._before, *self._guard.encode("", text)]
        turns = [*map(SystemMessage, system), HumanMessage(question)]
        try:
            return encode_chat(turns, self._tokenizer, self._guard)
        except ValueError as error:
            raise ScorerError(f"the scorer cannot read this question: {error}") from error
