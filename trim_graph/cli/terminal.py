"""What reaches the terminal: text, in which nobody else's control characters act.

Models, servers, datasets and file names may hold escape sequences that move the cursor, change the title,
hide text or forge a line. All that a command prints passes a `GuardedStream`; a
`trim_graph.cli.console.Console` guards its texts itself, and adds escape sequences of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT = "\n\t"
_C0_AND_C1 = (*range(0x20), *range(0x7F, 0xA0))
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)
"""No encoding has them, so that writing one would raise."""
_VISIBLE = {
    **{code: f"\\x{code:02x}" for code in _C0_AND_C1 if chr(code) not in _KEPT},
    **{code: f"\\u{code:04x}" for code in (*_BIDI, *_SURROGATES)},
}


def visible(text: str) -> str:
    r"""Return a text with every control character but newline and tab as its escape, such as ``\x1b``.

    Control characters are those of C0 and C1, DELETE, and those that override the direction of writing. Lines
    that end in carriage return and newline end in newline.
    """
    return text.replace("\r\n", "\n").translate(_VISIBLE)


class GuardedStream:
    """A text stream that writes what is `visible`.

    Args:
        stream: Gets it. Everything but writing is its own.

    Attributes:
        unguarded: The stream itself.
    """

    def __init__(self, stream: Any) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write a text."""
        self.unguarded.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard() -> None:
    """Guard stdout and stderr until the process ends, so that a traceback is guarded, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))


@contextmanager
def guarded() -> Iterator[None]:
    """Guard stdout and stderr for a while."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unguarded(stream: Any) -> Any:
    """Return the stream under all guards, and under what rich puts in its place while a display moves."""
    while True:
        inner = getattr(stream, "unguarded", None) or getattr(stream, "rich_proxied_file", None)
        if inner is None:
            return stream
        stream = inner
