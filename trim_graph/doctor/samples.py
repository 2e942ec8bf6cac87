"""Questions with right steps and a wrong one, to see whether a scorer tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

from trim_graph.adapters.protocols import ScorableStep


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, the steps of a right solution as far as given, and a wrong form of the last of them."""

    question: str
    right: tuple[str, ...]
    wrong: str

    @property
    def right_steps(self) -> list[ScorableStep]:
        """The right solution as a scorer takes it."""
        return [_step(text) for text in self.right]

    @property
    def wrong_steps(self) -> list[ScorableStep]:
        """The same with the last step wrong."""
        return [_step(text) for text in (*self.right[:-1], self.wrong)]


def _step(text: str) -> ScorableStep:
    return {"text": text, "writer": "small", "mean_token_probability": 0.9}


GENERAL = (
    Sample(
        "A baker fills 6 boxes with 8 rolls each and sells 15 rolls. How many rolls are left?",
        (
            "The baker has 6 * 8 = 48 rolls in the boxes.",
            "After selling 15 rolls, 48 - 15 = 33 rolls are left. The answer is \\boxed{33}.",
        ),
        "After selling 15 rolls, 48 - 15 = 43 rolls are left. The answer is \\boxed{43}.",
    ),
    Sample(
        "Solve 3x + 7 = 22 for x.",
        (
            "Subtract 7 from both sides: 3x = 15.",
            "Divide both sides by 3: x = 5. The answer is \\boxed{5}.",
        ),
        "Multiply both sides by 3: x = 45. The answer is \\boxed{45}.",
    ),
    Sample(
        "A train travels 180 km in 3 hours. How far does it travel in 5 hours at the same speed?",
        (
            "The speed of the train is 180 / 3 = 60 km per hour.",
            "In 5 hours it travels 60 * 5 = 300 km. The answer is \\boxed{300}.",
        ),
        "In 5 hours it travels 60 + 5 = 65 km. The answer is \\boxed{65}.",
    ),
    Sample(
        "What is the area of a rectangle with a perimeter of 26 and a width of 4?",
        (
            "Half of the perimeter is 13, so the length is 13 - 4 = 9.",
            "The area is 9 * 4 = 36. The answer is \\boxed{36}.",
        ),
        "The area is 26 * 4 = 104. The answer is \\boxed{104}.",
    ),
    Sample(
        "A coat costs 80 dollars. It is reduced by 25 percent. What does it cost now?",
        (
            "The reduction is 25 percent of 80 dollars, which is 0.25 * 80 = 20 dollars.",
            "The coat now costs 80 - 20 = 60 dollars. The answer is \\boxed{60}.",
        ),
        "The coat now costs 80 + 20 = 100 dollars. The answer is \\boxed{100}.",
    ),
    Sample(
        "How many positive divisors does 12 have?",
        (
            "The prime factorisation is 12 = 2^2 * 3.",
            "The number of divisors is (2 + 1)(1 + 1) = 6. The answer is \\boxed{6}.",
        ),
        "The number of divisors is 2 + 1 = 3. The answer is \\boxed{3}.",
    ),
)
"""For any model that has learnt mathematics. Each wrong step is wrong beyond doubt."""

_LAST_TWO = "Always keep only the last two digits. What is the result?"
ARITHMETIC = (
    Sample(
        f"Let the number be 66. Step 1: add 28. Step 2: add 34. Step 3: double the result. {_LAST_TWO}",
        ("Step 1: 66 + 28 = 94.", "Step 2: 94 + 34 = 128, keep 28."),
        "Step 2: 94 + 34 = 138, keep 38.",
    ),
    Sample(
        f"Let the number be 87. Step 1: subtract 61. Step 2: increase it by 37. {_LAST_TWO}",
        ("Step 1: 87 - 61 = 26.",),
        "Step 1: 87 - 61 = 16.",
    ),
    Sample(
        f"Let the number be 49. Step 1: take the remainder after dividing by 4. Step 2: add 50. {_LAST_TWO}",
        ("Step 1: 49 mod 4 = 1.",),
        "Step 1: 49 mod 4 = 3.",
    ),
    Sample(
        f"Begin with 22. Step 1: add 68. Step 2: take it twice. Step 3: subtract 16. {_LAST_TWO}",
        ("Step 1: 22 + 68 = 90.",),
        "Step 1: 22 + 68 = 80.",
    ),
    Sample(
        f"Let the number be 72. Step 1: multiply by 5. Step 2: add 4. Step 3: double the result. {_LAST_TWO}",
        ("Step 1: 72 * 5 = 360, keep 60.", "Step 2: 60 + 4 = 64.", "Step 3: 64 * 2 = 128, keep 28."),
        "Step 3: 64 * 4 = 256, keep 56.",
    ),
    Sample(
        f"Start with 67. Step 1: subtract 3. Step 2: multiply by 6. Step 3: decrease it by 13. {_LAST_TWO}",
        ("Step 1: 67 - 3 = 64.", "Step 2: 64 * 6 = 384, keep 84."),
        "Step 2: 64 * 6 = 394, keep 94.",
    ),
)
"""For the arithmetic models, which read nothing else; the wrong steps are some that their small one wrote."""

PROBE_TEXT = "Start with 47. Step 1: add 38, so 47 + 38 = 85.\n\nThen \\boxed{85}."
"""Tells one tokenizer from another."""


def reads_arithmetic(tokens: list[int]) -> bool:
    """Whether these are the tokens of `PROBE_TEXT` by the tokenizer of the arithmetic models."""
    from tokenizers import Tokenizer

    from trim_graph.examples.arithmetic import SMALL

    own = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
    return bool(own.encode(PROBE_TEXT, add_special_tokens=False).ids == tokens)
