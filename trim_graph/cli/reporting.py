"""How a command fails: a line or two on stderr and an exit code, never a traceback for a user's mistake."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message is the line that installs it."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the message says what is left of the work."""


def need(extra: str, *modules: str) -> None:
    """Import the modules of an extra, or say how to get them.

    Args:
        extra: Names of extras, as pip takes them.
        modules: What the command is about to use.

    Raises:
        MissingExtra: One of them cannot be imported.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            why = "is not installed" if missing else f"cannot be imported ({error})"
            raise MissingExtra(f'{module} {why}: pip install "trim-graph[{extra}]"') from error


@contextmanager
def failures_reported() -> Iterator[None]:
    """Turn what a user can do something about into a message and an exit code."""
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
    else:
        return
    print(f"trim-graph: {message}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def _termination_interrupts() -> Iterator[list[int]]:
    """Take SIGTERM as Ctrl-C: what a command would keep then it keeps. The list is filled where one came."""
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
