"""The report of a shadow: one HTML page that loads nothing, and the same figures as text for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError, counted
from trim_graph.evaluation.noninferiority import MAX_LOSS
from trim_graph.shadow.estimates import Estimate, Group, ShadowSummary, summarise_shadow
from trim_graph.shadow.records import ShadowRecord, read_shadow

from .page import content_policy, source

MOST_SHOWN = 100
"""Most questions of which both answers are shown."""
_KINDS = {"run": "routed runs", "walk": "walks along the answers", "turn": "turns of an agent"}
_ANSWERS = {"large": "The large model answers", "small": "The small model answers"}


def write_shadow_report(
    records: str | Path, out: str | Path | None = None, *, max_loss: float = MAX_LOSS
) -> tuple[Path, ShadowSummary]:
    """Writes the page of a file of shadow records.

    Args:
        records: The file, as a `trim_graph.Shadow` wrote it; it may still be written to.
        out: The page; default: beside the file, with the ending ``.html``.
        max_loss: Loss of accuracy that is acceptable, as a share of the questions.

    Returns:
        The page, and its figures.

    Raises:
        InputError: There are no records, or one cannot be read.
        ImportError: The extra ``eval`` is not installed.
        OSError: The page cannot be written.
    """
    different: list[ShadowRecord] = []
    summary = summarise_shadow(_noting(read_shadow(records), different), max_loss=max_loss)
    if not summary["groups"]:
        raise InputError(f"{records} has no records yet: nothing to show")
    page = Path(records).with_suffix(".html") if out is None else Path(out)
    beside = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        beside.write_text("".join(_page(summary, different)), "utf-8", "xmlcharrefreplace", "\n")
        beside.replace(page)
    finally:
        beside.unlink(missing_ok=True)
    return page, summary


def _noting(records: Iterable[ShadowRecord], different: list[ShadowRecord]) -> Iterator[ShadowRecord]:
    """Gives the records, and keeps the first whose answers differ and are there as text."""
    for record in records:
        routed = record["routed"]
        if record["agree"] is False and routed and routed.get("text") and len(different) < MOST_SHOWN:
            different.append(record)
        yield record


def rows_of(group: Group) -> list[tuple[str, str, str]]:
    """Returns the figures of a group as name, value and interval."""
    whole: list[tuple[str, Estimate, float, str]] = [
        ("large tokens of routing, of the application's", group["share"], 100, " %"),
        ("questions in which the large model writes", group["asked"], 100, " %"),
        ("answers that agree", group["agreement"], 100, " %"),
        ("accuracy of the application", group["correct"].get("application", _NONE), 100, " %"),
        ("accuracy of routing", group["correct"].get("routed", _NONE), 100, " %"),
        ("difference of accuracy", group["correct"].get("difference", _NONE), 100, " points"),
        ("large tokens saved an answer", group["large_tokens_saved"], 1, ""),
        ("small tokens an answer", group["small_tokens"], 1, ""),
        ("scorer tokens an answer", group["scorer_tokens"], 1, ""),
        ("cost saved an answer, net", group["cost_saved"], 1, ""),
        ("seconds saved an answer", group["seconds_saved"], 1, " s"),
        *(
            (f"{name} saved an answer, by the runs' own estimate", one, 1, "")
            for name, one in group["savings"].items()
        ),
    ]
    return [
        (name, f"{scale * one['value']:.4g}{unit}", _interval(one, scale))
        for name, one, scale, unit in whole
        if one["value"] is not None
    ]


_NONE = Estimate(value=None, low=None, high=None, n=0)


def _interval(one: Estimate, scale: float) -> str:
    if one["low"] is None or one["high"] is None:
        return ""
    return f"{scale * one['low']:.4g} to {scale * one['high']:.4g}"


def heading_of(group: Group) -> str:
    """Returns what the records of a group are, and how many."""
    questions, kind = group["questions"], _KINDS[group["kind"]]
    return f"{_ANSWERS[group['application']]}: {kind}, {counted(questions, 'question')}"


def text_of_summary(summary: ShadowSummary) -> str:
    """Returns the figures and the verdicts as text."""
    lines: list[str] = []
    for group in summary["groups"]:
        rows = rows_of(group)
        width = max((len(name) for name, *_ in rows), default=0)
        lines.append(heading_of(group))
        lines += [f"  {name:<{width}}  {value:>12}  {interval}".rstrip() for name, value, interval in rows]
        lines.append("")
    lines += [f"Note: {warning}." for warning in summary["warnings"]]
    lines += [f"{_ANSWERS[one['application']]}. {one['text']}" for one in summary["verdicts"]]
    return "\n".join(lines)


def _page(summary: ShadowSummary, different: list[ShadowRecord]) -> Iterator[str]:
    style = source("page.css")
    policy = content_policy("", style)
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>trim-graph shadow report</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<header class="top"><p class="kicker">trim-graph shadow mode</p>'
        f'<h1>What routing would have done</h1><p class="muted">{escape(_counted(summary))}</p></header>\n'
        "<main>\n"
    )
    for verdict in summary["verdicts"]:
        yield (
            f'<section class="card verdict"><p>{_ANSWERS[verdict["application"]]}: '
            f"<strong>{escape(verdict['use'])}</strong></p><p>{escape(verdict['text'])}</p></section>\n"
        )
    if summary["warnings"]:
        items = "".join(f"<li>{escape(warning)}.</li>" for warning in summary["warnings"])
        yield f'<section class="card warning"><ul class="plain">{items}</ul></section>\n'
    for group in summary["groups"]:
        yield _table(group)
    if different:
        yield f"<h2>Answers that differ ({len(different)})</h2>\n"
        yield from map(_pair, different)
    yield "</main>\n</body>\n</html>\n"


def _counted(summary: ShadowSummary) -> str:
    counts = summary["counts"]
    names = ("seen", "skipped", "submitted", "recorded", "failed", "dropped")
    return "Answers of the application: " + ", ".join(f"{counts.get(name, 0)} {name}" for name in names)


def _table(group: Group) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td><td>{escape(interval)}</td></tr>'
        for name, value, interval in rows_of(group)
    )
    first = "".join(
        f'<tr><th scope="row">step {escape(index)}</th><td>{count}</td><td></td></tr>'
        for index, count in group["first_large"].items()
    )
    places = (
        '<details><summary>Where the large model would have written first</summary><div class="scroll">'
        f"<table><tbody>{first}</tbody></table></div></details>"
        if first
        else ""
    )
    return (
        f'<section class="card"><h2>{escape(heading_of(group))}</h2><div class="scroll"><table><thead><tr>'
        '<th scope="col">figure</th><th scope="col">value</th><th scope="col">95 % interval</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{places}</section>\n"
    )


def _pair(record: ShadowRecord) -> str:
    answered: Any = record["answered"]
    routed: Any = record["routed"]
    parts = (
        ("Question", record["question"]["text"]),
        ("Application", answered["answer"]["text"]),
        ("Routing", routed["text"]),
    )
    shown = "".join(f"<h3>{name}</h3><pre>{escape(str(text or ''))}</pre>" for name, text in parts)
    return f'<section class="card">{shown}</section>\n'
