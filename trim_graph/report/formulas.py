"""LaTeX in texts of models as MathML, which browsers draw: nothing is loaded, and the page stays small.

A formula becomes a tree of ``[tag, attributes, content]``, with the tags and attributes of MathML that are
listed here: nothing in it can act. What is no LaTeX, or not understood, stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

Tree = list[Any]
"""``[tag, attributes, content]``; the content is a text or a list of trees."""

LONGEST_TEXT, LONGEST = 20_000, 1_000
"""Letters of a text, and of a formula, above which nothing is drawn."""
_DEEPEST = 30
_UNCLOSED = 20
"""Boxes without an end after which a text is no longer searched."""
_TAGS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "ms",
        "mtext",
        "mspace",
        "mfrac",
        "msqrt",
        "mroot",
        "msub",
        "msup",
        "msubsup",
        "munder",
        "mover",
        "munderover",
        "mtable",
        "mtr",
        "mtd",
        "mstyle",
        "menclose",
        "mpadded",
        "mphantom",
    ]
)
_ATTRIBUTES = frozenset(
    [
        "display",
        "displaystyle",
        "scriptlevel",
        "accent",
        "accentunder",
        "stretchy",
        "fence",
        "form",
        "separator",
        "largeop",
        "movablelimits",
        "linethickness",
        "columnalign",
        "lspace",
        "rspace",
        "width",
        "height",
        "depth",
        "mathvariant",
        "notation",
        "minsize",
        "maxsize",
    ]
)
_SHORT = re.compile(r"[\w.#%+-]{1,20}")
_FORMULA = re.compile(
    rf"\$\$(?P<shown>.{{1,{LONGEST}}}?)\$\$"
    rf"|\\\[(?P<bracket>.{{1,{LONGEST}}}?)\\\]"
    rf"|\\\((?P<inline>.{{1,{LONGEST}}}?)\\\)"
    # A dollar that is money: a space behind the first, or a digit behind the last.
    rf"|(?<![\\$\w])\$(?![\s$])(?P<dollar>[^$\n]{{1,{LONGEST}}}?)(?<![\s\\])\$(?![\d$])"
    r"|(?P<boxed>\\boxed\s?\{)",
    re.DOTALL,
)
_MATRIX = re.compile(r"\\(begin|end)\{(aligned|align\*?|gathered|gather\*?|split|eqnarray\*?)\}")


def formulas_of(text: str) -> list[tuple[int, int, Tree]]:
    """Returns begin, end and tree of each formula in a text; places are in UTF-16 units, as in JavaScript."""
    if len(text) > LONGEST_TEXT or not ("$" in text or "\\" in text):
        return []
    found, place, units = [], 0, 0
    for start, end, latex, block in _spans(text):
        tree = tree_of(latex, block=block)
        if tree is not None:
            units += _units(text[place:start])
            begin, units, place = units, units + _units(text[start:end]), end
            found.append((begin, units, tree))
    return found


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _spans(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """Yields start, end and LaTeX of each formula, and whether it is a display formula."""
    place = unclosed = 0
    while (match := _FORMULA.search(text, place)) is not None:
        kind = str(match.lastgroup)
        if kind == "boxed":
            end = _closing(text, match.end())
            if end is None:
                place, unclosed = match.end(), unclosed + 1
                if unclosed == _UNCLOSED:
                    return
                continue
            yield match.start(), end, text[match.start() : end], False
            place = end
        else:
            yield match.start(), match.end(), match[kind], kind in ("display", "bracket")
            place = match.end()


def _closing(text: str, start: int) -> int | None:
    """Returns the place behind the brace that closes one before ``start``."""
    depth = 1
    for place in range(start, min(len(text), start + LONGEST)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return place + 1
    return None


@lru_cache(maxsize=4096)
def tree_of(latex: str, *, block: bool = False) -> Tree | None:
    """Returns the tree of a formula; None where it is not understood.

    Args:
        latex: Without the signs around it.
        block: Whether it is a display formula.
    """
    from latex2mathml.converter import convert_to_element

    if len(latex) > LONGEST or _depth(latex) > _DEEPEST:
        return None
    try:
        element = convert_to_element(
            _MATRIX.sub(r"\\\1{matrix}", latex), display="block" if block else "inline"
        )
        return _tree(element)
    except Exception:  # the library raises whatever a broken formula leads it to
        return None


def _depth(latex: str) -> int:
    depth = deepest = 0
    for sign in latex:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        deepest = max(deepest, depth)
    return max(deepest, latex.count("\\left"), latex.count("^"), latex.count("\\sqrt"))


def _tree(element: Element) -> Tree:
    """Returns an element as a tree.

    Raises:
        ValueError: It holds a command that the library does not know.
    """
    tag = element.tag.rpartition("}")[2]
    text = unescape(element.text or "")
    if text.startswith("\\") and len(text) > 1:
        raise ValueError(f"{text} is no command that is known")
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _SHORT.fullmatch(value)
    }
    return [tag if tag in _TAGS else "mrow", attributes, [_tree(child) for child in element] or text]
