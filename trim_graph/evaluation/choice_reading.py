r"""Letters of multiple-choice questions in solutions.

Every letter from A to J is read by the same rules, capital or small: since a word behind a letter makes it an
article or a pronoun ("a triangle", "I believe"), it makes no letter a choice. A box is one choice or none:
``\boxed{\text{(A)}}`` and ``\boxed{A) 14}`` are, ``\boxed{A, B}`` is not.
"""

from __future__ import annotations

import re

from trim_graph.summary import extract_answer

# What changes the look of a text only.
_STYLE = re.compile(r"\\(?:text(?:bf|rm|it|normal)?|math(?:bf|rm|it)|mbox|boldsymbol|bm)\s*\{([^{}]*)\}")
_LOOK = re.compile(
    r"\*\*|__|[$`\"\u201c\u201d]|\\[()\[\],;:! ]|~|\\(?:left|right|q?quad|displaystyle)(?![A-Za-z])"
)
_QUOTED = re.compile(r"(?<!\w)['\u2018]([(\[]?[A-Ja-j][)\]]?[.,]?)['\u2019](?!\w)")

_BRACKETED = r"[(\[]\s*([A-Ja-j])\s*[)\]]"
_OPTION = r"(?:(?:option|choice|letter)\s*:?\s*)"
_BOXED = re.compile(
    rf"(?i:(?:answer\s*:?\s*)?{_OPTION}?)(?:{_BRACKETED}|([A-Ja-j])(?=\s*$|\s*[.):]))(.*)", re.DOTALL
)
_SECOND = re.compile(rf"{_BRACKETED}|\b(?:or|and)\s+[A-Ja-j]\s*$")

_BECAUSE = r"(?:is|as|because|since|for|by|so|due|which|where|from|that|with|given)\b"
_ENDS = rf"(?![\w'\u2019])(?=\s*$|\s*[.,;:!?)\]\n]|\s*[-\u2013\u2014]\s|\s+{_BECAUSE})"
_LETTER = rf"(?:{_BRACKETED}(?!\s*(?:or|and|,)\s*[(\[])|\b([A-Ja-j]){_ENDS})"
_ANSWER_IS = (
    r"\b(?:answer|(?:correct|right|best|final|only)\s+(?:option|choice|letter|one))\s*"
    rf"(?:(?:is|are|(?:would|must|should|has\s+to)\s+be|[:=])\s*)*(?:the\s+)?{_OPTION}?"
)
_IS_RIGHT = (
    r"\s+(?:is|must\s+be|would\s+be)\s+(?:(?:the|therefore|thus)\s+)*(?:correct|right|best|answer|true)\b"
)
_CHOSEN = re.compile(
    rf"(?i:{_ANSWER_IS}){_LETTER}|(?<![\w(\[])(?:{_BRACKETED}|([A-Ja-j]))(?i:{_IS_RIGHT})"
    rf"|\b(?i:choose|pick|select)\s+(?i:{_OPTION})?(?:{_BRACKETED}|([A-J]){_ENDS})"
)
_NOT = r"(?<!not )(?<!not be )(?<!n['\u2019]t )(?<!n['\u2019]t be )"
_ALONE = re.compile(
    rf"{_NOT}(?:(?<![\w)]){_BRACKETED}|(?<![\w'\u2019(\[])([A-J]){_ENDS}"
    rf"|\b(?i:{_OPTION}(?:is\s+)?){_LETTER})"
)
_AFTER_ANOTHER = re.compile(r"\b[A-Ja-j][)\]]?,?\s+(?:or|and)\s*(?i:option|choice)?\s*$")


def read_choice(text: str) -> str | None:
    r"""Return the letter a solution chooses, as a capital, or None.

    The last ``\boxed{}`` decides where there is one. Else it is the letter behind the last "answer is", "best
    option:" and the like, or before "is correct"; else the last one that stands alone.
    """
    boxed = extract_answer(text)
    if boxed is not None:
        return read_boxed_choice(boxed)
    plain = _plain(text)
    *_, chosen = [None, *_CHOSEN.finditer(plain)]
    if chosen:
        return _letter(chosen)
    *_, alone = [None, *_ALONE.finditer(plain)]
    if alone is None or _AFTER_ANOTHER.search(plain[: alone.start()][-20:]):
        return None
    return _letter(alone)


def read_boxed_choice(content: str) -> str | None:
    """Return the letter that a box is, perhaps with the text of the choice behind it, or None."""
    match = _BOXED.fullmatch(_plain(content).strip(" \n{}"))
    return None if match is None or _SECOND.search(match[3]) else _letter(match)


def _plain(text: str) -> str:
    """Return a text without what changes its look only, with one space or line break between words."""
    text = re.sub(r"[^\S\n]+", " ", _LOOK.sub(" ", _STYLE.sub(r"\1", _QUOTED.sub(r"\1", text))))
    return re.sub(r" ?(?:\n ?)+", "\n", text).strip()


def _letter(match: re.Match[str]) -> str:
    return next(letter for letter in match.groups() if letter).upper()
