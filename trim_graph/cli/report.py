"""`trim-graph report`: the page of an evaluation, or of the records of a shadow."""

from __future__ import annotations

import json

from trim_graph.errors import InputError, SettingsError

from .options import ReportOptions
from .terminal import need


def run_report(options: ReportOptions) -> None:
    """Writes the page and the plots, and says where.

    Raises:
        TrimError: There is no run, or the page cannot be written.
    """
    from trim_graph.shadow.records import is_shadow

    run, out = options.run, options.out
    if not run.exists():
        raise InputError(
            f"{run} does not exist: name the folder of an evaluation, or a file of shadow records"
        )
    shadow = is_shadow(run)
    if shadow:
        need("cli,eval", "scipy")
    else:
        need("cli,eval", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "latex2mathml")
    if out is not None and out.suffix not in (".html", ".htm"):
        raise SettingsError(f"--out {out}: the name must end in .html")
    if not shadow and (options.max_loss is not None or options.as_json):
        given = "--json" if options.as_json else "--max-loss"
        raise SettingsError(f"{given} is for a file of shadow records, and {run} is none")
    try:
        if shadow:
            _report_shadow(options)
        else:
            _report_run(options)
    except OSError as error:
        raise SettingsError(f"{error.filename or out or run} cannot be written: {error.strerror}") from error


def _report_run(options: ReportOptions) -> None:
    from trim_graph.report import write_report

    page, *plots = write_report(options.run, options.out)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    if plots:
        print(f"{len(plots)} plots in {plots[0].parent}")


def _report_shadow(options: ReportOptions) -> None:
    from trim_graph.evaluation.noninferiority import MAX_LOSS
    from trim_graph.report.shadow import text_of_summary, write_shadow_report

    page, summary = write_shadow_report(
        options.run, options.out, max_loss=MAX_LOSS if options.max_loss is None else options.max_loss
    )
    if options.as_json:
        print(json.dumps(summary))
        return
    print(text_of_summary(summary))
    print(f"Page: {page}")
