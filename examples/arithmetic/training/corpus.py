"""Fresh training batches: conversations about problems of the training part, loss on the answer only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trim_graph.conversation import DEFAULT_INSTRUCTION
from trim_graph.examples.arithmetic.chains import LENGTHS, draw_chain
from trim_graph.examples.arithmetic.problems import Problem, Split, part_of
from trim_graph.examples.arithmetic.words import draw_words

from .foreign import REPLY, draw_foreign
from .tokenizer import END_OF_TEXT, STEP, TURN_END, TURN_START

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

BATCHES_A_POOL = 8
"""Batches drawn together and cut by length, so that little padding is computed."""

_SYSTEMS = ("You are a helpful assistant.", "You are good at arithmetic.", "Answer briefly.")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Settings of a corpus.

    Attributes:
        hard: Share of ``hard`` chains.
        words: Share of word problems; the rest are ``standard`` chains.
        foreign: Share of conversations that end in text of another kind.
        earlier_turns: Share of conversations with a solved problem before the question.
        full_earlier_turns: Whether chains in earlier turns have their full length.
    """

    hard: float = 0.22
    words: float = 0.38
    foreign: float = 0.02
    earlier_turns: float = 0.05
    full_earlier_turns: bool = False


def draw_training_problem(rng: random.Random, mixture: Mixture, progress: float = 1.0) -> Problem:
    """Draws a problem of the training part; chains grow to full length over the first third.

    Args:
        rng: Source of randomness.
        mixture: Shares of the families.
        progress: Share of the training done, in [0, 1].
    """
    while True:
        shape = rng.random()
        if shape < mixture.words:
            problem = draw_words(rng)
        else:
            split: Split = "hard" if shape < mixture.words + mixture.hard else "standard"
            low, high = LENGTHS[split]
            length = None
            if progress < 0.3:
                grown = progress / 0.3
                length = rng.randint(max(1, round(low * grown)), max(2, round(high * grown)))
            problem = draw_chain(rng, split, length)
        if part_of(problem.combination) == "train":
            return problem


def _conversation(rng: random.Random, mixture: Mixture, progress: float) -> tuple[str, str]:
    """Returns the prompt (template applied) and the answer."""
    turns: list[tuple[str, str]] = []
    shape = rng.random()
    if shape < 0.75:
        turns.append(("system", DEFAULT_INSTRUCTION))
    elif shape < 0.85:
        turns.append(("system", f"{rng.choice(_SYSTEMS)}\n\n{DEFAULT_INSTRUCTION}"))
    elif shape < 0.9:
        turns.append(("system", rng.choice(_SYSTEMS)))
    if rng.random() < mixture.earlier_turns:
        earlier = draw_training_problem(rng, mixture, float(mixture.full_earlier_turns))
        turns += [("user", earlier.question), ("assistant", earlier.solution)]
    if rng.random() < mixture.foreign:
        question, answer = draw_foreign(rng), REPLY
    else:
        problem = draw_training_problem(rng, mixture, progress)
        question, answer = problem.question, problem.solution
    turns.append(("user", question))
    return chat_prompt(turns), answer


def chat_prompt(turns: list[tuple[str, str]]) -> str:
    """Applies the chat template by hand, for speed; a test compares it with the tokenizer's."""
    body = "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in turns)
    return f"{body}{TURN_START}assistant\n"


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and where the loss is taken.

    Attributes:
        ids: int64, shape (rows, length).
        targets: int64, same shape: the token that each position should predict, or the class of the step
            that ends there; -100 where there is no loss.
    """

    ids: torch.Tensor
    targets: torch.Tensor


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


class LanguagePools:
    """Map-style dataset (torch DataLoader): item ``i`` is a list of `Batch`, the same for the same seed."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seed: int,
        steps: int,
        rows: int,
        mixture: Mixture,
        grow: bool = True,
    ) -> None:
        backend: Any = tokenizer.backend_tokenizer
        self._encode = backend.encode_batch
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._seed, self._steps, self._rows, self._mixture = seed, steps, rows, mixture
        self._grow = grow

    def __len__(self) -> int:
        return -(-self._steps // BATCHES_A_POOL)

    def __getitem__(self, pool: int) -> list[Batch]:
        rng = random.Random(f"{self._seed}:language:{pool}")
        progress = pool / len(self) if self._grow else 1.0
        drawn = [_conversation(rng, self._mixture, progress) for _ in range(self._rows * BATCHES_A_POOL)]
        prompts = [e.ids for e in self._encode([p for p, _ in drawn])]
        answers = [e.ids for e in self._encode([a for _, a in drawn])]
        end = self._ids[TURN_END]
        pairs = sorted(zip(prompts, answers, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [
            self._batch(pairs[start : start + self._rows], end) for start in range(0, len(pairs), self._rows)
        ]
        rng.shuffle(batches)
        return batches

    def _batch(self, pairs: list[tuple[list[int], list[int]]], end: int) -> Batch:
        ids = [prompt + answer for prompt, answer in pairs]
        targets = [[-100] * (len(prompt) - 1) + answer + [end] for prompt, answer in pairs]
        return Batch(_padded(ids, self._ids[END_OF_TEXT]), _padded(targets, -100))


def stream(dataset: Any, steps: int, workers: int) -> Iterator[Batch]:
    """Yields ``steps`` batches in a fixed order, drawn by worker processes."""
    from torch.utils.data import DataLoader

    loader: DataLoader[list[Batch]] = DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )
    done = 0
    for pool in loader:
        for batch in pool:
            if done == steps:
                return
            done += 1
            yield batch


def judged_prompt(system: str, question: str, steps: list[str]) -> str:
    """Writes a solution the way a Qwen2.5-Math-PRM reads it: a step token after every step."""
    body = "".join(f"{step}{STEP}" for step in steps)
    prompt = chat_prompt([("system", system), ("user", question)])
    return f"{prompt}{body}{TURN_END}\n"


@dataclass(frozen=True, slots=True)
class Judged:
    """A solution to learn judging from.

    Attributes:
        question: What was asked.
        steps: What a solver wrote.
        expected: The right step at each place, given the steps before; None where there is none.
    """

    question: str
    steps: list[str]
    expected: list[str | None]


SO_FAR = 2
"""Added to the class of a token inside a step: whether the step is right up to there."""


class JudgedPools:
    """Map-style dataset of judged solutions.

    The class (0 wrong, 1 right) is at every step token, where the published layout reads it. Inside a
    step every token has the class of what is written so far plus `SO_FAR`: it shows which digit is wrong,
    from which a judge learns many times faster than from one verdict a step.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        solutions: list[Judged],
        *,
        system: str,
        seed: int,
        steps: int,
        rows: int,
    ) -> None:
        backend: Any = tokenizer.backend_tokenizer
        self._encode = backend.encode_batch
        vocabulary = tokenizer.get_vocab()
        self._pad, self._step = vocabulary[END_OF_TEXT], vocabulary[STEP]
        self._solutions, self._system = solutions, system
        self._seed, self._steps, self._rows = seed, steps, rows

    def __len__(self) -> int:
        return -(-self._steps // BATCHES_A_POOL)

    def __getitem__(self, pool: int) -> list[Batch]:
        size = self._rows * BATCHES_A_POOL
        picked: list[Judged] = []
        for index in range(pool * size, (pool + 1) * size):
            epoch, place = divmod(index, len(self._solutions))
            picked.append(self._solutions[_permuted(place, len(self._solutions), f"{self._seed}:{epoch}")])
        encoded = self._encode([judged_prompt(self._system, one.question, one.steps) for one in picked])
        rows = [(e.ids, self._classes(one, e)) for one, e in zip(picked, encoded, strict=True)]
        rows.sort(key=lambda row: len(row[0]))
        batches = [self._batch(rows[start : start + self._rows]) for start in range(0, size, self._rows)]
        random.Random(f"{self._seed}:{pool}").shuffle(batches)
        return batches

    def _classes(self, solution: Judged, encoding: Any) -> list[int]:
        classes = [-100] * len(encoding.ids)
        begin = len(judged_prompt(self._system, solution.question, [])) - len(f"{TURN_END}\n")
        spans = []
        for step, right in zip(solution.steps, solution.expected, strict=True):
            spans.append((begin, begin + len(step), step, right))
            begin += len(step) + len(STEP)
        ahead = iter(spans)
        start, stop, step, right = next(ahead, (0, 0, "", None))
        for place, (token, (left, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
            if token == self._step:
                classes[place] = int(step == right)
                start, stop, step, right = next(ahead, (end, end, "", None))
            elif start <= left and end <= stop:
                classes[place] = SO_FAR + int(right is not None and right.startswith(step[: end - start]))
        return classes

    def _batch(self, rows: list[tuple[list[int], list[int]]]) -> Batch:
        return Batch(_padded([ids for ids, _ in rows], self._pad), _padded([c for _, c in rows], -100))


_permutations: dict[tuple[int, str], list[int]] = {}


def _permuted(place: int, size: int, key: str) -> int:
    if (size, key) not in _permutations:
        order = list(range(size))
        random.Random(key).shuffle(order)
        _permutations[(size, key)] = order
    return _permutations[(size, key)][place]
