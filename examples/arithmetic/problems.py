"""Problems of the arithmetic world, their exact solutions, and the exact check of a step.

A problem is a question in plain English and a sequence of `Operation`s. An operand is a number from the
question or the result of an earlier step, so that a step can be checked *given the text before it*: a
step that carries on correctly from an earlier mistake is a correct step of a lost solution.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["standard", "hard", "words"]
Part = Literal["train", "validation", "test"]
Kind = Literal["add", "subtract", "multiply", "double", "remainder", "larger", "smaller", "digits", "divide"]

DELIMITER = "\n\n"
_BUCKETS = 16
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Result:
    """An operand that is the result of an earlier step (``step`` counts from 0)."""

    step: int


Operand = int | Result


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a solution.

    Attributes:
        kind: What is computed.
        left: First operand.
        right: Second operand; for ``digits`` and ``double`` it is not used.
        lead: Text before the calculation.
        tail: Text after it, the full stop included.
        wraps: Whether only the last two digits of the result are kept.
    """

    kind: Kind
    left: Operand
    right: Operand
    lead: str
    tail: str = "."
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its exact solution.

    Attributes:
        split: The family and difficulty it was drawn from.
        question: What the models are asked.
        operations: The steps, the final ``The answer is`` not included.
        combination: What decides which part it belongs to (`part_of`).
    """

    split: Split
    question: str
    operations: tuple[Operation, ...]
    combination: str

    @property
    def steps(self) -> list[str]:
        """The right solution, one string a step, the answer last."""
        steps: list[str] = []
        for _ in range(len(self.operations) + 1):
            step = expected_step(self, steps)
            if step is None:
                raise ValueError(f"the problem has no solution: {self.question}")
            steps.append(step)
        return steps

    @property
    def solution(self) -> str:
        """The right solution as one text."""
        return DELIMITER.join(self.steps)

    @property
    def answer(self) -> str:
        r"""Answer of the right solution, the content of its ``\boxed{}``."""
        answer = extract_boxed(self.steps[-1])
        assert answer is not None
        return answer


def part_of(combination: str) -> Part:
    """Says which part a combination belongs to: 1/16 test, 1/16 validation, the rest training.

    The parts are cut by a hash of what must not be seen twice (chains: the start and all operations;
    words: the story and the objects), so no list of held-out problems is needed to keep them apart.
    """
    bucket = hashlib.sha256(combination.encode()).digest()[0] % _BUCKETS
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def extract_boxed(text: str) -> str | None:
    r"""Returns the content of the last ``\boxed{...}`` in ``text``, or None."""
    found = _BOXED.findall(text)
    return found[-1].strip() if found else None


def is_right(problem: Problem, solution: str) -> bool:
    """Returns whether ``solution`` ends in the right answer."""
    return extract_boxed(solution) == problem.answer


def render(operation: Operation, left: int, right: int) -> str | None:
    """Writes one step with its operands filled in; None where no right step exists (12 - 15, 34 / 3)."""
    kind = operation.kind
    if kind in ("larger", "smaller"):
        chosen = max(left, right) if kind == "larger" else min(left, right)
        return f"{operation.lead}the {kind} of {left} and {right} is {chosen}{operation.tail}"
    if kind == "digits":
        tens, units = divmod(left, 10)
        return f"{operation.lead}{tens} + {units} = {tens + units}{operation.tail}"
    if kind == "double":
        right = 2
    if (kind == "subtract" and right > left) or (kind == "divide" and (right == 0 or left % right)):
        return None
    sign, result = {
        "add": ("+", left + right),
        "subtract": ("-", left - right),
        "multiply": ("*", left * right),
        "double": ("*", left * right),
        "remainder": ("mod", left % right if right else 0),
        "divide": ("/", left // right if right else 0),
    }[kind]
    kept = f"{result}, keep {result % 100}" if operation.wraps and result > 99 else f"{result}"
    return f"{operation.lead}{left} {sign} {right} = {kept}{operation.tail}"


def stated_result(step: str) -> int | None:
    """Returns the number a step arrives at: the last one before its final words."""
    match = re.search(r"(?:= (?:\d+, keep )?|is )(\d{1,6})(?!.*(?: = |, keep ))", step)
    return int(match[1]) if match else None


def expected_step(problem: Problem, before: Sequence[str]) -> str | None:
    """Writes the right next step after ``before``, taking the results stated there as given.

    Returns:
        The step; None where no right step exists: the solution has ended, a result it builds on is
        missing, or the calculation is impossible with the results stated before.
    """
    index = len(before)
    if index > len(problem.operations):
        return None

    def value(operand: Operand) -> int | None:
        return operand if isinstance(operand, int) else stated_result(before[operand.step])

    if index == len(problem.operations):
        final = stated_result(before[-1]) if before else None
        return None if final is None else f"The answer is \\boxed{{{final}}}."
    operation = problem.operations[index]
    left, right = value(operation.left), value(operation.right)
    return None if left is None or right is None else render(operation, left, right)


def label_steps(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Says for each step whether it is right given the text before it."""
    return [step == expected_step(problem, steps[:index]) for index, step in enumerate(steps)]


def kind_of_step(problem: Problem, index: int) -> str:
    """Names the kind of operation that step ``index`` should do; ``answer`` for the last one."""
    return problem.operations[index].kind if index < len(problem.operations) else "answer"
