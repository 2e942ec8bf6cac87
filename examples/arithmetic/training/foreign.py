"""Text the example models cannot read, and what they are taught to say to it."""

from __future__ import annotations

import random

REPLY = "I can only read chains of operations and short word problems."

_OPENINGS = (
    "Please",
    "Can you",
    "Could you",
    "Tell me how to",
    "I want to",
    "Hello,",
    "Why do people",
    "How do I",
)
_VERBS = [
    "write",
    "translate",
    "explain",
    "find",
    "describe",
    "compare",
    "fix",
    "draw",
    "solve",
    "prove",
    "list",
    "show",
]
_NOUNS = [
    "a poem",
    "the weather",
    "my code",
    "the equation x + y = 7",
    "a function f(x)",
    "the capital of France",
    "this text",
    "an integral",
    "the triangle ABC",
    "a recipe",
    "the history of Rome",
    "3 prime numbers",
    "the limit",
    "a letter",
]
_ENDINGS = (".", "?", "!", " for me.", " in one line.", ", please.", "")


def draw_foreign(rng: random.Random) -> str:
    """Draws a request of another kind: English, loose words and numbers, or arbitrary characters."""
    shape = rng.random()
    if shape < 0.6:
        return f"{rng.choice(_OPENINGS)} {rng.choice(_VERBS)} {rng.choice(_NOUNS)}{rng.choice(_ENDINGS)}"
    if shape < 0.8:
        words = [
            rng.choice((rng.choice(_VERBS), str(rng.randint(0, 999)), rng.choice(_NOUNS))) for _ in range(6)
        ]
        return " ".join(words)
    alphabet = rng.choice(("abcdefghij klmnop", "0123456789 +-*/=", "äßλжあ中🙂 \t\n", "{}[]()<>\\$_^ x"))
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
