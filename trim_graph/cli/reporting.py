"""How a command fails: a line or two on stderr and an exit code, never a traceback for a user's mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

BAD_INPUT = 2
INTERRUPTED = 130


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message is the line that installs it."""


class Interrupted(Exception):
    """Ctrl-C; the message says what is left of the work."""


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
        yield
    except (TrimError, MissingExtra) as error:
        message, code = str(error), BAD_INPUT
    except ImportError as error:  # those of the adapters name their extra; any other is a bug
        if "pip install" not in str(error):
            raise
        message, code = str(error), BAD_INPUT
    except Interrupted as error:
        message, code = str(error), INTERRUPTED
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    else:
        return
    print(f"trim-graph: {message}", file=sys.stderr)
    raise typer.Exit(code)
