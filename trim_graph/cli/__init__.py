"""The command line: `solve`, `demo`, `doctor` and `up` for servers, `convert-prm`; see ``--help``.

Nothing heavy is imported here, nor by ``--help``: the commands import what they need when they run.
"""

from __future__ import annotations

import atexit
import os
import sys

INTERRUPTED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM."""


def main() -> None:
    """Runs the command line; the entry point of the script ``trim-graph``."""
    from .terminal import guard

    guard()
    ended = list[int]()
    atexit.register(_leave, ended)  # registered first, it runs after all others
    try:
        from .terminal import need

        need("cli", "typer", "rich", "yaml")
        from .app import app
    except ImportError as error:
        print(f"trim-graph: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("trim-graph: interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        app(prog_name="trim-graph")
    except SystemExit as end:
        if end.code in INTERRUPTED:
            ended.append(int(end.code))
        raise


def _leave(ended: list[int]) -> None:
    """Leaves at once after an interrupt: a thread within a model's call would abort the interpreter's end."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])
