"""The command line: `solve`, `demo`, `doctor` and `up` for servers, `convert-prm`; see ``--help``.

Nothing heavy is imported here, nor by ``--help``: the commands import what they need when they run.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of the script ``trim-graph``."""
    try:
        from .reporting import need

        need("cli", "typer", "rich", "yaml")
        from .app import app
    except ImportError as error:
        print(f"trim-graph: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("trim-graph: interrupted", file=sys.stderr)
        sys.exit(130)
    app(prog_name="trim-graph")
