"""`trim-graph report`: the page of an evaluation."""

from __future__ import annotations

from trim_graph.errors import SettingsError

from .options import ReportOptions
from .terminal import need


def run_report(options: ReportOptions) -> None:
    """Writes the page and the plots, and says where.

    Raises:
        TrimError: There is no run, or the page cannot be written.
    """
    run, out = options.run, options.out
    need("cli,eval", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow")
    if out is not None and out.suffix not in (".html", ".htm"):
        raise SettingsError(f"--out {out}: the name must end in .html")
    from trim_graph.report import write_report

    try:
        page, *plots = write_report(run, out)
    except OSError as error:
        raise SettingsError(f"{error.filename or out or run} cannot be written: {error.strerror}") from error
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    if plots:
        print(f"{len(plots)} plots in {plots[0].parent}")
