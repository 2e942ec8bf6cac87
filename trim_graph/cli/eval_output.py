"""Output of `trim-graph eval`: the estimate before it starts; the result in 80 columns, verdict first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.errors import counted
from trim_graph.evaluation.forecast import MODELS, Spend, SpendEstimate
from trim_graph.evaluation.records import ArmSummary, CurveSummary, MatchedBudget, Metric, RunSummary
from trim_graph.evaluation.verdicts import unpriced_warning

if TYPE_CHECKING:
    from rich.table import Table

    from .common import Console

WIDTH = 80
LEGEND = (
    ("right", "accuracy in percent; in brackets the exact 95 % interval"),
    ("disc.", "tokens of discarded drafts; read: prompt tokens; all: read and written"),
    ("vs large", "accuracy minus that of the large model alone, in points; 95 % interval"),
    ("share", "large tokens in percent of those that the large model alone writes"),
    ("PGR", "performance gap recovered: 0 is the small model alone, 1 the large one"),
    ("IBC", "incremental benefit per cost: PGR / share; 1 is drawing a model by lot"),
    ("seconds", "of this run: intervals leave out machine load and runs at another time"),
    ("dIBC", "mean of IBC - 1 along the curve, up to CPT(95)"),
    ("vs query", "dIBC as a multiple of the best query-level baseline's, or minus it"),
    ("CPT", "cost-performance threshold: the least share for a PGR of 50, 80, 95 %"),
    ("score < t", "the large model rewrites steps that score below t (arm threshold-t)"),
    ("of steps", "that share of the steps is the large model's"),
    ("of tokens", "that share of the tokens is the large model's"),
)


def print_estimate(estimate: SpendEstimate, *, stderr: bool = False) -> None:
    """Prints what an evaluation will spend: at most, where no run has been measured."""
    console = _console(stderr=stderr)
    if not estimate.calls:
        console.print("Nothing is left to spend: all runs are in --out.")
        return
    title = "To spend" if estimate.lengths.measured else "To spend, at most"
    table = _table(title, "for", "runs", "calls", "tokens read", "tokens written")
    for name, spend in {**estimate.groups, "in all": estimate.total}.items():
        table.add_row(name, f"{spend.runs:,.0f}", *(f"{_whole(spend, key):,.0f}" for key in _KINDS))
    console.print(table)
    total, one = estimate.total, estimate.lengths
    written = ", ".join(f"{model} {total.written.get(model, 0):,.0f}" for model in MODELS)
    console.print(f"Tokens written: {written}.")
    if estimate.cost is not None:
        least = "at least " if estimate.unpriced else ""
        console.print(f"Cost at the prices given, no prompt cached: {least}{estimate.cost:.4g}.")
    if estimate.unpriced:
        console.print(f"warning: {unpriced_warning(estimate.unpriced)}")
    source = (
        "Measured on the runs in --out"
        if one.measured
        else "Assumed; after a few questions (-n 5) the same command measures it"
    )
    console.print(
        f"{source}: {one.prompt:.0f} tokens a question, {one.steps:.0f} steps and {one.tokens:.0f} tokens a "
        "solution."
    )


_KINDS = ("calls", "read", "written")


def _whole(spend: Spend, kind: str) -> float:
    return float(sum(getattr(spend, kind).values()))


def estimate_as_json(estimate: SpendEstimate) -> str:
    """Returns the estimate as one JSON object."""
    groups = {**estimate.groups, "in all": estimate.total}
    written = {
        name: {"runs": spend.runs, **{kind: dict(getattr(spend, kind)) for kind in _KINDS}}
        for name, spend in groups.items()
    }
    return json.dumps(
        {
            "groups": written,
            "cost": estimate.cost,
            "unpriced": list(estimate.unpriced),
            "measured": estimate.lengths.measured,
        }
    )


def print_summary(summary: RunSummary, folder: Path, *, as_json: bool) -> None:
    """Prints the verdict in a line, the tables, a legend, and the verdict on each policy."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    console = _console()
    console.print(summary["headline"]["text"])
    samples = f", {summary['samples']} samples of each" if summary["samples"] > 1 else ""
    count = counted(summary["n"], "question")
    dataset = summary["dataset"]
    console.print(
        f"\n{count} of {dataset.get('file', dataset['name'])}{samples}, {summary['concurrency']} at a time."
    )
    tables = [_accuracy_table(summary), _spend_table(summary), _savings_table(summary)]
    if any(arm["matched_budget"] for arm in summary["arms"]):
        tables.insert(1, _matched_table(summary))
    known = any(curve["delta_ibc"]["value"] is not None for curve in summary["curves"])
    for table in [*tables, *(_curve_tables(summary) if known else [])]:
        console.print(table)
    _print_legend(console, summary)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}")
    kinds = {arm["arm"]: arm["kind"] for arm in summary["arms"]}
    for verdict in summary["verdicts"]:
        if kinds[verdict["arm"]] != "baseline" and verdict["arm"] != summary["headline"]["arm"]:
            console.print(f"- {verdict['text']}")
    console.print(f"\n{summary['verdict']}")
    console.print(f"\nAll metrics: summary.json in {folder}; a page: trim-graph report {folder}")


def _console(*, stderr: bool = False) -> Console:
    from .common import Console

    console = Console(stderr=stderr, plain_width=WIDTH)
    console.width = min(console.width, WIDTH)
    return console


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"\n{title}",
        min_width=len(title),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _label(arm: ArmSummary) -> str:
    return arm.get("label", arm["arm"])


def _accuracy_table(summary: RunSummary) -> Table:
    table = _table("Accuracy", "arm", "right, %", "vs large", "share", "PGR", "IBC")
    for arm in summary["arms"]:
        own = arm["metrics"]
        table.add_row(
            _label(arm),
            _percent(own["accuracy"]),
            _percent(arm["differences"].get("large", {}).get("accuracy"), signed=True),
            _percent(own["share"], spread=False),
            _number(own["pgr"], 2),
            _number(own["ibc"], 2),
        )
    return table


def _matched_table(summary: RunSummary) -> Table:
    """Returns how much more often an arm is right than others at its spend."""
    families = list(dict.fromkeys(family for arm in summary["arms"] for family in arm["matched_budget"]))
    table = _table(
        "Accuracy, minus what others reach with as many large tokens",
        "arm", *(f"vs {family.replace('_', ' ')}" for family in families),
    )  # fmt: skip
    for arm in summary["arms"]:
        if arm["matched_budget"]:
            table.add_row(_label(arm), *(_over(arm["matched_budget"].get(family)) for family in families))
    return table


def _spend_table(summary: RunSummary) -> Table:
    table = _table(
        "Tokens and seconds a question", "arm", "large", "small", "disc.", "scorer", "read",
        "cost" if summary["priced"] else "all", "s, p50", "p95",
    )  # fmt: skip
    for arm in summary["arms"]:
        own = arm["metrics"]
        read = [own[f"{writer}_prefill"]["value"] for writer in ("small", "large")]
        table.add_row(
            _label(arm),
            *(_number(own[f"{kind}_tokens"], 1) for kind in ("large", "small", "discarded", "scorer")),
            f"{sum(value or 0.0 for value in read):.0f}",
            _number(own["cost"], 6) if summary["priced"] else _number(own["tokens"], 0),
            *(_number(own[name], 2) for name in ("seconds_median", "seconds_p95")),
        )
    return table


def _savings_table(summary: RunSummary) -> Table:
    """Returns what each arm saves net, with what a configuration may say of the large model alone."""
    table = _table(
        "Net savings a question, against the large model alone",
        "arm", "large tokens", "tokens in all", "cost", "seconds",
    )  # fmt: skip
    for arm in summary["arms"]:
        if arm["arm"] != "large":
            saved = arm.get("savings", {})
            digits = {"large_tokens": 1, "tokens": 1, "cost": 6, "seconds": 2}
            table.add_row(_label(arm), *(_number(saved.get(kind), digits[kind]) for kind in digits))
    known = {key: round(value, 5) for key, value in summary.get("large_alone", {}).items() if value}
    if known:
        stated = ", ".join(f"{key}: {value:g}" for key, value in known.items())
        table.caption = (
            "scorer, discarded drafts and prompts are spent too; runs estimate their own savings best with "
            f"large_alone: {{{stated}}} in the configuration, as measured here"
        )
    return table


def _curve_tables(summary: RunSummary) -> list[Table]:
    budgets = list(summary["budgets"])
    curves = _table("Curves", "family", "points", "dIBC", "vs query", "CPT 50", "CPT 80", "CPT 95")
    within = _table(
        "Percent right within a share of the large tokens",
        "family", *(f"{100 * float(budget):g} %" for budget in budgets),
    )  # fmt: skip
    for curve in summary["curves"]:
        curves.add_row(
            curve["family"].replace("_", " "),
            str(len(curve["points"])),
            _number(curve["delta_ibc"], 2),
            _over_query_level(curve),
            *(_percent(metric, spread=False) for metric in curve["cpt"].values()),
        )
        reached = (_percent(curve["budgeted_accuracy"][budget], spread=False) for budget in budgets)
        within.add_row(curve["family"].replace("_", " "), *reached)
    return [curves, within]


def _over_query_level(curve: CurveSummary) -> str:
    """Returns the factor over the best query-level method, or the difference where no factor is known."""
    over = curve["over_query_level"]
    if over is None:
        return "-"
    family, ratio = over["family"].replace("_", " "), over["ratio"]["value"]
    if ratio is not None:
        return f"{ratio:.1f}x {family}"
    more = over["difference"]["value"]
    return "-" if more is None else f"{more:+.2f} {family}"


def _print_legend(console: Console, summary: RunSummary) -> None:
    console.print()
    labels = " ".join(map(_label, summary["arms"]))
    conditional = {"score < t": "score <", "of steps": "of steps", "of tokens": "of tokens"}
    for word, meaning in LEGEND:
        needed = conditional.get(word)
        if needed is None or needed in labels:
            console.print(f"{word:<10}{meaning}", no_wrap=True, overflow="ignore", crop=False)
    console.print()


def _percent(metric: Metric | None, *, signed: bool = False, spread: bool = True) -> str:
    """Returns a share in percent with its interval: ``41.7 (28, 55)``."""
    if metric is None or metric["value"] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{100 * metric['value']:{sign}.1f}"
    found: Sequence[float] | None = metric["interval"]
    return (
        text
        if not spread or found is None
        else f"{text} ({', '.join(f'{100 * x:{sign}.0f}' for x in found)})"
    )


def _number(metric: Metric | None, digits: int) -> str:
    return "-" if metric is None or metric["value"] is None else f"{metric['value']:.{digits}f}"


def _over(found: MatchedBudget | None) -> str:
    if found is not None and found["curve_ends"] is not None:
        return f"beyond {found['curve_ends']:.1f} tokens"
    return _percent(found and found["difference"], signed=True)
