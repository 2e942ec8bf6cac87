"""Output to the terminal: text without control characters of others, and errors in a line or two.

A user's mistake ends in a message on stderr and an exit code, never in a traceback.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
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


def at_terminal() -> bool:
    """Returns whether a person can be asked: input and messages are a terminal's."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def visible(text: str) -> str:
    r"""Returns a text with every control character but newline and tab as its escape, such as ``\x1b``.

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
        """Writes a text."""
        self.unguarded.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard() -> None:
    """Guards stdout and stderr until the process ends, so that a traceback is guarded, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))


@contextmanager
def guarded() -> Iterator[None]:
    """Guards stdout and stderr for a while."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unguarded(stream: Any) -> Any:
    """Returns the stream under all guards, and under what rich puts in its place while a display moves."""
    while True:
        inner = getattr(stream, "unguarded", None) or getattr(stream, "rich_proxied_file", None)
        if inner is None:
            return stream
        stream = inner


BAD_INPUT = 2
UNDECIDED = 3
"""The questions do not decide what was asked; nothing has failed."""
INTERRUPTED = 130
TERMINATED = 143


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message is the line that installs it."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the message says what is left of the work."""


def need(extra: str, *modules: str) -> None:
    """Imports the modules of an extra, or says how to get them.

    Args:
        extra: Names of extras, as pip takes them.
        modules: What the command is about to use.

    Raises:
        MissingExtra: One of them cannot be imported.
    """
    for module in modules:
        try:
            _import(module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            why = "is not installed" if missing else f"cannot be imported ({error})"
            raise MissingExtra(f'{module} {why}: pip install "trim-graph[{extra}]"') from error


def _import(module: str) -> None:
    if module == "transformers":
        from trim_graph.adapters.model_source import import_transformers

        import_transformers()
    else:
        import_module(module)


@contextmanager
def failures_reported() -> Iterator[None]:
    """Turns what a user can do something about into a message and an exit code."""
    import typer

    from trim_graph.errors import TrimError

    try:
        with _termination_interrupts() as terminated:
            yield
    except (TrimError, MissingExtra) as error:
        message, code = str(error), BAD_INPUT
    except ImportError as error:  # those of the adapters name their extra; any other is a bug
        if "pip install" not in str(error):
            raise
        message, code = str(error), BAD_INPUT
    except (Interrupted, KeyboardInterrupt) as error:
        message = str(error) or "interrupted"
        code = TERMINATED if terminated else INTERRUPTED
    except Exception as error:
        from trim_graph.adapters.provider_errors import in_one_line, is_of_client

        if not is_of_client(error):
            raise
        message, code = in_one_line(error), BAD_INPUT
    else:
        return
    print(f"trim-graph: {message}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def _termination_interrupts() -> Iterator[list[int]]:
    """Takes SIGTERM as Ctrl-C: what a command would keep then it keeps. The list is filled where one came."""
    terminated: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        terminated.append(number)
        signal.raise_signal(signal.SIGINT)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield terminated
        return
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:  # a shell's job in the background: Ctrl-C is not meant for it, SIGTERM is
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
