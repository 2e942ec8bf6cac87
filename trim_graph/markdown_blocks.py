r"""Blocks of Markdown: which lines belong together though blank lines stand between them.

A block of code between fences, display math and a LaTeX environment reach to their end, a table to its last
row, and a heading belongs to what follows it.
"""

from __future__ import annotations

import re

_CONTAINERS = r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+|>[ \t]*)*"
"""List markers and quote marks in front of a block."""
_OPENING = re.compile(rf"{_CONTAINERS}(?P<marks>`{{3,}}|~{{3,}})(?P<info>.*)")
_CLOSING = re.compile(r"[ \t>]*(?P<marks>`{3,}|~{3,})[ \t\r]*$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*$")
_TABLE_RULE = re.compile(r"\s*\|[\s:|]*-[\s:|-]*$")
"""The line below a table's head. Without one, lines that begin with ``|`` may be ``|x| < 3``."""
_LATEX = re.compile(
    r"`+|\\[\\$]|\$\$|\\\[|\\\]|\\begin\s*\{(?P<begin>[^{}\n]*)\}|\\end\s*\{(?P<end>[^{}\n]*)\}"
)

DEEPEST = 100
"""Environments within each other; what is opened within the innermost of them is not looked for."""


class Blocks:
    """Reads the lines of a text in order, and knows what the lines so far have left open.

    A fence within open math ends that math, so that a stray ``$$`` reaches no further than the next block of
    code.
    """

    def __init__(self) -> None:
        self._fence: tuple[str, int] | None = None
        """Its marks, and the deepest column at which they may close it."""
        self._math: list[str] = []
        """What would close the math and the environments that are open, the innermost last."""
        self._heading = self._table = self._paragraph = False
        """What the last line was part of; a paragraph may become a heading by the line under it."""

    def may_end(self, line: str) -> bool:
        """Tell whether a block ends at the blank lines just read.

        Args:
            line: The one that follows them, as far as it is known; its first letter will do.
        """
        within_table = self._table and line.lstrip().startswith("|")
        return not (self._fence or self._math or self._heading or within_table)

    def add_blank(self) -> None:
        """Read a blank line."""
        self._paragraph = False

    def add(self, line: str) -> None:
        """Read a line that is not blank, whole."""
        after_paragraph, after_table = self._paragraph, self._table
        self._heading = self._table = self._paragraph = False
        if self._fence is not None:
            self._close_fence(line, *self._fence)
        elif self._open_fence(line):
            self._math.clear()
        else:
            within = bool(self._math)
            self._read_latex(line)
            if not within and not self._math:
                underlined = after_paragraph and _UNDERLINE.match(line) is not None
                self._heading = underlined or _HEADING.match(line) is not None
                row = line.lstrip().startswith("|")
                self._table = row and (after_table or _TABLE_RULE.match(line) is not None)
                self._paragraph = not self._heading

    def _open_fence(self, line: str) -> bool:
        found = _OPENING.match(line)
        if found is None or (found["marks"][0] == "`" and "`" in found["info"]):
            return False
        self._fence = found["marks"], _column(line, found.start("marks")) + 3
        return True

    def _close_fence(self, line: str, marks: str, deepest: int) -> None:
        found = _CLOSING.match(line)
        if (
            found is not None
            and found["marks"].startswith(marks)
            and _column(line, found.start("marks")) <= deepest
        ):
            self._fence = None

    def _read_latex(self, line: str) -> None:
        tokens = list(_LATEX.finditer(line))
        # The last run of backticks of each length: without a later one like it, a run opens no code.
        last = {token[0]: index for index, token in enumerate(tokens) if token[0][0] == "`"}
        code = None
        for index, token in enumerate(tokens):
            sign = token[0]
            if code is not None:
                code = None if sign == code else code
            elif sign[0] == "`":
                code = sign if not self._math and last[sign] > index else None
            else:
                self._read_sign(sign, token["begin"], token["end"])

    def _read_sign(self, sign: str, begin: str | None, end: str | None) -> None:
        closes = f"\\end{{{end}}}" if end is not None else sign
        if len(self._math) == DEEPEST and closes not in self._math:
            return
        if closes in self._math:
            while self._math.pop() != closes:
                pass  # what was left open within it
        elif begin is not None:
            self._math.append(f"\\end{{{begin}}}")
        elif sign in ("$$", "\\["):
            self._math.append("$$" if sign == "$$" else "\\]")


def _column(line: str, place: int) -> int:
    return len(line[:place].expandtabs(4))
