"""Whether the example models can read a problem: they know two families of text and nothing else.

Every sentence of a problem is compared with the sentences that the generators write, and the problem's length
with theirs. Whether the numbers work out is left to the models.
"""

from __future__ import annotations

import random
import re
from functools import cache

from trim_graph.errors import InputError

from .chains import _ENDINGS, _OPENINGS, _PHRASES, _RULES
from .words import _DISTRACTIONS, _NAMES, STORIES, _Impossible, _Story

CHAIN_EXAMPLE = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)
WORDS_EXAMPLE = (
    "Tom has 23 apples. Then Tom buys 4 packs of 6 apples. Tom gives 15 apples to Mia. "
    "How many apples does Tom have now?"
)
SHORTEST_CHAIN, LONGEST_CHAIN = 4, 12
"""Steps of the chains that the models were trained on; they fail at others."""
_NUMBERS = 3
"""Fewest numbers in a story: those of two calculations, the fewest that the models were trained on."""
_SENTENCE = re.compile(r"(?<=[.?!]) (?!$)")
_STEP = re.compile(r"Step (\d+): (.*)\.")
_SLOT = re.compile(r"\\\{(\w+)\\\}")


def read_problem(text: str) -> str:
    """Returns the problem in the form that the models are trained on: one space between words.

    Raises:
        InputError: They cannot read it; the message says which sentence, and shows both forms.
    """
    problem = " ".join(text.split())
    sentences = _SENTENCE.split(problem)
    unread = _unread_in_chain(sentences) if re.search(r"Step \d", problem) else _unread_in_words(sentences)
    if unread is None:
        return problem
    raise InputError(
        f"the example models cannot read this problem: {unread}\n"
        "They know two kinds. A chain of operations on a number up to 99:\n"
        f"  {CHAIN_EXAMPLE}\n"
        "and a short word problem that keeps to the phrases of its story:\n"
        f"  {WORDS_EXAMPLE}\n"
        "For other problems name your own models: --config trim.yaml (see --help)."
    )


def _unread_in_chain(sentences: list[str]) -> str | None:
    opening, *middle, ending = sentences if len(sentences) > 1 else [*sentences, ""]
    if not any(_matches(form, opening) for form in _OPENINGS):
        return f"a chain opens as {_OPENINGS[0].format(v=34)!r}, not as {_short(opening)}"
    if ending not in _ENDINGS:
        return f"a chain ends as {_ENDINGS[0]!r}, not as {_short(ending)}"
    if not middle or middle[-1] not in _RULES:
        return f"the rule {_RULES[0]!r} is missing before the question"
    phrases = [phrase for forms in _PHRASES.values() for phrase in forms]
    steps = middle[:-1]
    for number, sentence in enumerate(steps, 1):
        step = _STEP.fullmatch(sentence)
        if not step or int(step[1]) != number:
            return f"{_short(sentence)} stands where 'Step {number}: ...' should"
        if not any(_matches(phrase, step[2]) for phrase in phrases):
            return f"{_short(sentence)} is not an operation they know"
    if not SHORTEST_CHAIN <= len(steps) <= LONGEST_CHAIN:
        count = f"{len(steps)} step{'' if len(steps) == 1 else 's'}"
        return (
            f"it has {count}; they were trained on chains of {SHORTEST_CHAIN} to {LONGEST_CHAIN} steps and "
            "fail at others"
        )
    return None


def _unread_in_words(sentences: list[str]) -> str | None:
    """Returns the errors by the story that fits best."""
    readings = []
    for forms in _stories():
        strange = [s for s in sentences if not any(form.fullmatch(s) for form in (*forms, *_facts()))]
        readings.append((len(strange), strange))
    strange = min(readings)[1]
    if strange:
        return f"{_short(strange[0])} belongs to none of their stories"
    if len(sentences) < 3 or not sentences[-1].endswith("?"):
        return "a story has at least two facts and ends with its question"
    facts = [s for s in sentences if not any(form.fullmatch(s) for form in _facts())]
    if len(re.findall(r"\d+", " ".join(facts))) < _NUMBERS:
        return "it takes one calculation; they were trained on stories of two to four and fail at others"
    return None


@cache
def _stories() -> tuple[tuple[re.Pattern[str], ...], ...]:
    """Returns, for every story, a pattern for each of its possible sentences."""
    stories = []
    for tell, objects in STORIES.values():
        forms: set[str] = set()
        for attempt in range(100):  # enough to come by every branch of a story
            story = _Listener(random.Random(f"readable:{attempt}"), objects[attempt % len(objects)], forms)
            try:
                tell(story)
            except _Impossible:
                continue
        stories.append(tuple(_pattern(form, objects=tuple(objects)) for form in sorted(forms)))
    return tuple(stories)


class _Listener(_Story):
    """Notes every phrasing of a sentence, not only the one that is drawn."""

    def __init__(self, rng: random.Random, objects: str, forms: set[str]) -> None:
        super().__init__(rng, objects)
        self.forms = forms

    def say(self, *phrasings: str, **numbers: int) -> None:
        self.forms.update(phrasings)
        super().say(*phrasings, **numbers)


@cache
def _facts() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(form) for form in _DISTRACTIONS)


def _matches(form: str, text: str) -> bool:
    return _pattern(form).fullmatch(text) is not None


@cache
def _pattern(form: str, objects: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Makes a pattern of a form such as ``{name} has {n} {obj}.``."""
    known = {"name": _NAMES, "other": _NAMES, "obj": objects}

    def slot(found: re.Match[str]) -> str:
        words = known.get(found[1])
        return f"(?:{'|'.join(map(re.escape, words))})" if words else r"\d{1,2}"

    return re.compile(_SLOT.sub(slot, re.escape(form)))


def _short(sentence: str) -> str:
    return repr(sentence if len(sentence) <= 60 else f"{sentence[:57]}...")
