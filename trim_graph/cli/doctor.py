"""`trim-graph doctor`: what is wrong with a set-up, as a table and in sentences."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from trim_graph.adapters import ScorableStep
from trim_graph.config import TrimConfig
from trim_graph.config.schema import models_of
from trim_graph.errors import SettingsError, TrimError

from .common import chosen_config, load_chat_model, loads_scorer, need_extras
from .options import DoctorOptions

if TYPE_CHECKING:
    from trim_graph.doctor.subjects import Finding, Report

ERRORS = 1
"""Exit code where there are errors."""
WIDTH = 120
"""Width of the table where stdout is no terminal."""
_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}


def run_doctor(options: DoctorOptions) -> int:
    """Checks a configuration and prints what was found.

    Returns:
        The exit code: 0, or 1 where there are errors.

    Raises:
        TrimError: The configuration is not valid.
        MissingExtra: What the models need is not installed.
    """
    config = chosen_config(options.config, {})
    entries = [config.small, config.large, *models_of(config.scorer)]
    need_extras(config)
    report = _examined(config, options.timeout).without(_keys(entries))
    if options.as_json:
        place = None if options.config is None else str(options.config)
        print(json.dumps({"what": "trim-graph doctor", "config": place, **report.record()}, indent=1))
    else:
        _show(report)
    return ERRORS if report.errors else 0


def _examined(config: TrimConfig, timeout: float) -> Report:
    from trim_graph.doctor.examination import examine

    from .common import status

    with status("loading models") as show:
        unusable, loaded = _load(config)
        try:
            return asyncio.run(examine(config, limit=timeout, on_check=show, unusable=unusable))
        finally:
            loaded.clear()


def _load(config: TrimConfig) -> tuple[list[Finding], list[Any]]:
    """Loads the models that run in this process, so that no check is charged for it.

    Returns:
        Which cannot be loaded; and what was, to be kept: an engine ends with the last that uses it.
    """
    from trim_graph.doctor.subjects import Finding

    found: list[Finding] = []
    loaded: list[Any] = []
    for part in ("small", "large", "scorer"):
        entry: Any = getattr(config, part)
        if entry is None or hasattr(entry, "base_url"):
            continue
        try:
            if part != "scorer":
                loaded.append(entry.build(part))
                load_chat_model(loaded[-1])
            elif loads_scorer(config):
                loaded.append(entry.build())
                loaded[-1].score("1", [ScorableStep("1")])
        except (TrimError, OSError, ValueError, RuntimeError, AttributeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            fix = "" if isinstance(error, SettingsError) else "see what it says"
            found.append(Finding("error", lines[0], fix, part=part, check="loading"))
    return found, loaded


def _keys(entries: list[Any]) -> list[str]:
    names = {getattr(entry, "api_key_env", None) for entry in entries}
    return [os.environ.get(name, "").strip() for name in names if name]


def _show(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from .common import Console

    console = Console(plain_width=WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "check", "", "what was found"):
        table.add_column(column, overflow="fold")
    before = None
    for finding in report.findings:
        # A line for each check that an earlier error has left pointless would bury that error.
        if finding.status == "skipped" and before is not None and before.status == "skipped":
            continue
        check = "all further checks" if finding.status == "skipped" else finding.check
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(finding.part, check, status, finding.found)
        before = finding
    console.print(table)
    for finding in report.errors:
        console.print(f"\n{finding.sentence}.", soft_wrap=True)
    advised = [finding for finding in report.warnings if finding.fix]
    for finding in advised:
        line = f"\nwarning, {finding.part}, {finding.check}: {finding.found}; {finding.fix}."
        console.print(line, soft_wrap=True)
    console.print(f"\n{report.verdict}", style="bold", soft_wrap=True)
