"""What `trim-graph eval` prints: a table of the arms, one of the curves, the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.evaluation.run_summary import ArmSummary, Figure, RunSummary

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 150
"""Of the tables where stdout is no terminal."""
_SPREAD_FROM = 50
"""Fewest questions for which the table shows intervals; below, they say little but noise."""


def show(summary: RunSummary, folder: Path, *, as_json: bool) -> None:
    """Print the summary."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    from .console import Console

    console = Console(plain_width=WIDTH)
    samples = f", {summary['samples']} samples of each" if summary["samples"] > 1 else ""
    console.print(
        f"{summary['n']} questions of {summary['dataset']['name']}{samples}, {summary['concurrency']} at "
        "a time; 95 % intervals by bootstrap, paired between arms"
    )
    console.print(_accuracy(summary))
    console.print(_spend(summary))
    if summary["curves"]:
        console.print(_curves(summary))
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}")
    kinds = {arm["arm"]: arm["kind"] for arm in summary["arms"]}
    for verdict in summary["verdicts"]:
        if kinds[verdict["arm"]] != "baseline":
            console.print(f"- {verdict['text']}")
    console.print(f"\n{summary['verdict']}")
    console.print(f"\nrows and summary in {folder}")


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _accuracy(summary: RunSummary) -> Table:
    table = _table(
        "accuracy and spend",
        "arm",
        "accuracy",
        "beside large",
        "large tokens",
        "share",
        "PGR",
        "IBC",
        "over random",
    )
    spread = summary["n"] >= _SPREAD_FROM
    for arm in summary["arms"]:
        own = arm["figures"]
        beside = arm["differences"].get("large", {}).get("accuracy")
        table.add_row(
            arm["arm"],
            _told(own["accuracy"], spread=spread),
            _told(beside, signed=True, spread=spread),
            _told(own["large_tokens"], digits=1),
            _told(own["share"], spread=spread),
            _told(own["pgr"], spread=spread),
            _told(own["ibc"], digits=2),
            _over_random(arm, spread=spread),
        )
    table.caption = (
        "over random: accuracy minus that of random routing with as many large tokens, read off the straight "
        "lines between its rates"
    )
    return table


def _spend(summary: RunSummary) -> Table:
    table = _table(
        "a question", "arm", "small tokens", "discarded", "scorer", "prefill small/large", "cached",
        "calls s/l/score", "cost", "seconds median", "p95", "first step", "p95",
    )  # fmt: skip
    for arm in summary["arms"]:
        own = arm["figures"]
        table.add_row(
            arm["arm"],
            *(_told(own[f"{name}_tokens"], digits=1) for name in ("small", "discarded", "scorer")),
            _joined(arm, "small_prefill", "large_prefill"),
            _joined(arm, "small_cached_prefill", "large_cached_prefill"),
            _joined(arm, "small_calls", "large_calls", "scorer_calls", digits=1),
            _told(own["cost"], digits=6) if summary["priced"] else "-",
            *(_told(own[name], digits=2) for name in ("seconds_median", "seconds_p95")),
            *(_told(own[name], digits=2) for name in ("first_step_median", "first_step_p95")),
        )
    return table


def _curves(summary: RunSummary) -> Table:
    budgets = list(summary["budgets"])
    table = _table(
        "curves", "family", "arms", "mean IBC", "CPT 50 %", "80 %", "95 %",
        *(f"accuracy at {100 * float(budget):g} %" for budget in budgets),
    )  # fmt: skip
    spread = summary["n"] >= _SPREAD_FROM
    for curve in summary["curves"]:
        table.add_row(
            curve["family"],
            str(len(curve["points"])),
            _told(curve["mean_ibc"], digits=2, spread=spread),
            *(_told(figure) for figure in curve["cpt"].values()),
            *(_told(curve["budgeted_accuracy"][budget]) for budget in budgets),
        )
    table.caption = "CPT and accuracy within a budget: large tokens as a share of the large model's own"
    return table


def _told(figure: Figure | None, *, digits: int = 3, signed: bool = False, spread: bool = False) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    sign = "+" if signed else ""
    told = f"{figure['value']:{sign}.{digits}f}"
    if spread and figure["interval"] is not None:
        told += f" ({figure['interval'][0]:{sign}.{digits}f} to {figure['interval'][1]:{sign}.{digits}f})"
    return told


def _over_random(arm: ArmSummary, *, spread: bool) -> str:
    found = arm["matched_budget"].get("random")
    if found is not None and found["curve_ends"] is not None:
        return f"beyond {found['curve_ends']:.1f}"
    return _told(found and found["difference"], signed=True, spread=spread)


def _joined(arm: ArmSummary, *names: str, digits: int = 0) -> str:
    return "/".join(_told(arm["figures"][name], digits=digits) for name in names)
