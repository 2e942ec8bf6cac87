"""Rich consoles and moving displays in which other people's text is neither markup nor control characters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import rich.console
from rich.progress import TextColumn
from rich.segment import Segment
from rich.text import Text

from .terminal import guarded, unguarded, visible

Display = TypeVar("Display", bound=AbstractContextManager[Any])


class Console(rich.console.Console):
    """The console of every command.

    Args:
        stderr: Whether it writes to stderr.
        plain_width: Width where the stream is no terminal.
        options: Further options of rich's console.
    """

    def __init__(self, *, stderr: bool = False, plain_width: int | None = None, **options: Any) -> None:
        stream = unguarded(sys.stderr if stderr else sys.stdout)
        super().__init__(file=stream, markup=False, emoji=False, highlight=False, **options)
        if plain_width is not None and not self.is_terminal:
            self.width = plain_width

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text that rich can lay out; before rich drops some control characters unseen."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with nothing left in a text that acts on a terminal; rich's own moves are apart from it."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def text_column(form: str) -> TextColumn:
    """Make a column of a moving display, whose text is no markup."""
    return TextColumn(form, markup=False)


@contextmanager
def live(display: Display) -> Iterator[Display]:
    """Show a display that moves.

    Rich takes the place of stdout and stderr meanwhile, and would read escape sequences out of what is
    printed: a guard goes before it.
    """
    with display, guarded():
        yield display


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is under way; yields a function that says what is next."""
    with live(Console(stderr=True).status(Text(visible(text)))) as shown:
        yield lambda text: shown.update(Text(visible(text)))
