"""The page with its plots: one HTML file that loads nothing, in which no text of a model can become markup.

It knows of every question what is needed to filter and sort without reading its text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NotRequired, get_origin, get_type_hints

from trim_graph.errors import InputError
from trim_graph.evaluation.plots import (
    COLOURS,
    ArmPoint,
    draw_accuracy,
    draw_places,
    draw_reliability,
    draw_steps,
    positions_of,
    save_plot,
    svg_of,
)
from trim_graph.evaluation.records import (
    SUMMARY,
    SUMMARY_VERSION,
    ArmSettings,
    ArmSummary,
    RecordStep,
    Row,
    Run,
    RunSummary,
    read_run,
)
from trim_graph.routing.explain import STOP_REASONS

from .formulas import formulas_of, tree_of
from .gathering import Gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPTS = ("data.js", "text.js", "summary.js", "trace.js", "questions.js")
PLOTS = "plots"
"""Folder of the plots of ``report.html``, beside it."""


def write_report(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Writes the page of a run, and its plots as PNG and SVG.

    Args:
        folder: Of the run, as ``trim-graph eval --out`` wrote it; it may still be running.
        out: The page; default: ``report.html`` in the folder. Plots go into ``plots`` beside
            that page, those of another ``NAME.html`` into ``NAME-plots``.

    Returns:
        What was written, the page first.

    Raises:
        InputError: ``folder`` is no run, has no rows, or a row in it cannot be read.
        ImportError: The extra ``eval`` is not installed.
        OSError: The files cannot be written.
    """
    run = _checked(read_run(folder))
    page = Path(folder) / "report.html" if out is None else Path(out)
    beside = page.with_name(f".{page.name}.{os.getpid()}")
    with TemporaryDirectory() as spool:
        gathered = Gathered(_rows(run), Path(spool) / "rows.db")
        try:
            if not gathered.count:
                raise InputError(f"{folder} has no rows yet: nothing to show")
            plots = list(plots_of(gathered, run.summary, run.settings["arms"]))
            with beside.open("w", encoding="utf-8", newline="\n") as stream:
                command = ["trim-graph", "report", str(folder), *(["--out", str(out)] if out else [])]
                for part in _parts(run, gathered, plots, shlex.join(command)):
                    stream.write(part)
            beside.replace(page)
        finally:
            gathered.close()
            beside.unlink(missing_ok=True)
    written = [page]
    if plots:
        place = page.with_name(PLOTS if page.stem == "report" else f"{page.stem}-{PLOTS}")
        place.mkdir(exist_ok=True)
        written += [file for plot in plots for file in plot.save(place)]
    return written


def _rows(run: Run) -> Iterator[Row]:
    """Gives the rows that the summary is of: a folder may hold those of more questions, from before."""
    n, samples = (run.summary["n"], run.summary["samples"]) if run.summary else (inf, inf)
    arms = run.summary["arms"] if run.summary else []
    is_timed = not arms or any(arm["metrics"]["seconds"]["value"] is not None for arm in arms)
    for row in run.rows():
        if row["index"] < n and row["sample"] < samples:
            # A cache that answered took no time that says anything of the models.
            yield row if is_timed else Row(**{**row, "seconds": nan})


def _checked(run: Run) -> Run:
    """Refuses a summary that is not one this release wrote or knows."""
    if run.summary is not None:
        given = run.summary if isinstance(run.summary, dict) else {}
        # Of annotations that are strings, `__required_keys__` does not know which are NotRequired.
        hints = get_type_hints(RunSummary, include_extras=True)
        missing = {name for name, hint in hints.items() if get_origin(hint) is not NotRequired} - given.keys()
        if missing or given["version"] > SUMMARY_VERSION:
            seen = f"{', '.join(sorted(missing))} missing" if missing else f"version {given['version']}"
            raise InputError(f"{run.folder / SUMMARY} is no summary of this release: {seen}")
    return run


def _parts(run: Run, gathered: Gathered, plots: Sequence[Plot], command: str) -> Iterator[str]:
    """Gives the page piece by piece; of the rows one question is in memory at a time."""
    style, script = source("page.css"), "\n".join(map(source, SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    yield _filled(
        source("page.html"),
        {
            "policy": content_policy(script, style),
            "style": style,
            "plots": "".join(plot.html() for plot in plots),
        },
    )
    names = list(dict.fromkeys([*run.settings["arms"], *sorted(gathered.places)]))
    ran = [name for name in names if name in gathered.places]
    arms = {name: place for place, name in enumerate(ran)}
    questions = []
    for position, rows in enumerate(gathered.by_question()):
        rows.sort(key=lambda row: (arms[row["arm"]], row["sample"]))
        questions.append(index_of(rows, arms))
        yield _data(f"row-{position}", trace_of(rows, arms))
    spots = [[arms[arm], x, y] for plot in plots for arm, x, y in plot.spots() if arm in arms]
    yield _data("data", {**_document(run, ran, questions), "spots": spots, "made": _made(run, command)})
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _document(run: Run, arms: list[str], questions: list[dict[str, Any]]) -> dict[str, Any]:
    settings, summary = run.settings["settings"], run.summary
    known = run.settings["arms"]
    kinds = {name: known[name]["kind"] if name in known else "baseline" for name in arms}
    warnings = (
        list(summary["warnings"]) if summary else ["This evaluation has not ended: metrics are missing."]
    )
    if missing := [name for name in known if name not in arms]:
        warnings.append(f"No rows of {', '.join(missing)}.")
    return {
        "title": _dataset_name(settings.get("dataset")),
        "about": _about(run, len(questions)),
        "summary": finite(summary),
        "warnings": warnings,
        "arms": [{"name": name, "kind": kinds[name]} for name in arms],
        "chosen": arms.index(_shown_first(run, kinds)),
        "limit": _limit(settings, questions, arms),
        "questions": questions,
    }


def _shown_first(run: Run, kinds: Mapping[str, str]) -> str:
    """Returns an arm that is worth it, else the first policy, the middle of a sweep, whatever there is."""
    verdicts = run.summary["verdicts"] if run.summary else []
    worth = [verdict["arm"] for verdict in verdicts if verdict["use"] == "yes" and verdict["arm"] in kinds]
    of = {kind: [name for name in kinds if kinds[name] == kind] for kind in ("policy", "sweep")}
    middle = of["sweep"][len(of["sweep"]) // 2 :]
    others = [name for name in kinds if name not in (SMALL, LARGE)]
    return next(iter([*worth, *of["policy"], *middle, *others, *kinds]))


def _limit(settings: Mapping[str, Any], questions: list[dict[str, Any]], arms: list[str]) -> int:
    """Returns the budget to look at first: the run's, else what the large model alone uses on average."""
    budget = (settings.get("budget") or {}).get("large_tokens")
    if isinstance(budget, int):
        return budget
    large = arms.index(LARGE) if LARGE in arms else None
    spent = [run[3] for question in questions for run in question["r"] if run[0] == large]
    return round(sum(spent) / len(spent)) if spent else 0


def _about(run: Run, questions: int) -> str:
    settings = run.settings["settings"]
    facts = [f"{questions} question{'' if questions == 1 else 's'}"]
    if run.summary is not None:
        facts[0] += f", {run.summary['samples']} sample{'' if run.summary['samples'] == 1 else 's'} of each"
        facts.append(f"seed {run.summary['seed']}")
    for part in (SMALL, LARGE, "scorer"):
        if isinstance(model := settings.get(part), dict):
            facts.append(f"{part}: {model.get('model') or model.get('type')}")
    return "; ".join(map(str, facts))


def _made(run: Run, command: str) -> list[str]:
    """Returns the commands that made the run and its page."""
    own = run.summary.get("command") if run.summary is not None else None
    return [*([own] if own else []), command]


def _dataset_name(dataset: Any) -> str:
    if not isinstance(dataset, dict):
        return "An evaluation"
    keys = {"arithmetic": ("type", "split", "part"), "hub": ("path", "config", "split")}
    named = keys.get(str(dataset.get("type")), ("file",))
    return ":".join(str(dataset[key]) for key in named if dataset.get(key)) or "An evaluation"


def _data(name: str, values: Any) -> str:
    """Returns a script element that holds data; nothing in it can end it or begin another."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def content_policy(script: str, style: str) -> str:
    """Returns the policy of a page that runs this script and style, and loads nothing."""
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("script", script), ("style", style))
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )


def _filled(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def source(name: str) -> str:
    """Returns the text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


FAILED, LIMITED, DIFFERS = 1, 2, 4
WRONG, RIGHT, UNKNOWN = 0, 1, 2
OPENING = 160
"""Letters of a question in the list."""
MOST_WRITERS = 40
"""Steps in the list's strip."""
_LIMITS = {name for name, reason in STOP_REASONS.items() if reason.of_budget}


def index_of(rows: Sequence[Row], arms: Mapping[str, int]) -> dict[str, Any]:
    """Packs what the list and the filters need of one question.

    Args:
        rows: Of every arm and sample.
        arms: Their places in the page's list of arms.

    Returns:
        ``i``: its name; ``q``: how it begins; ``r``: of each row arm, sample, verdict, large tokens, flags
        and the writers of its steps, ``s`` or ``l``.
    """
    references = {row["sample"]: row for row in rows if row["arm"] == LARGE}
    runs = []
    for row in rows:
        flags = (row["error"] is not None) * FAILED + (row["stopped"] in _LIMITS) * LIMITED
        flags += differs(row, references.get(row["sample"])) * DIFFERS
        verdict = UNKNOWN if row["correct"] is None else int(row["correct"])
        writers = "".join(step["writer"][0] for step in row["steps"][:MOST_WRITERS])
        runs.append([arms[row["arm"]], row["sample"], verdict, row["large_tokens"], flags, writers])
    return {"i": rows[0]["id"], "q": " ".join(rows[0]["question"][:OPENING].split()), "r": runs}


def differs(row: Row, large: Row | None) -> bool:
    """Returns whether an answer is another than the large model's alone: not both right, and not the same."""
    if large is None or row["arm"] == LARGE or (row["correct"] and large["correct"]):
        return False
    if row["correct"] is not None and large["correct"] is not None and row["correct"] != large["correct"]:
        return True
    return (row["answer"] or "").strip() != (large["answer"] or "").strip()


def trace_of(rows: Sequence[Row], arms: Mapping[str, int]) -> dict[str, Any]:
    """Packs everything the page shows of one question; arms have many texts in common, so each is in once."""
    texts: dict[str, int] = {}

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    first = rows[0]
    runs = [_run_of(row, arms[row["arm"]], place) for row in rows]
    answers = {row["answer"] for row in rows} | {first["expected"]}
    return {
        "id": first["id"],
        "question": first["question"],
        "question_formulas": formulas_of(first["question"]),
        "expected": first["expected"],
        "runs": runs,
        "texts": list(texts),
        "formulas": {at: found for text, at in texts.items() if (found := formulas_of(text))},
        "answers": {text: tree for text in answers if text and (tree := _answer(text)) is not None},
    }


def _answer(text: str) -> list[Any] | None:
    """Returns the tree of an answer that is LaTeX; None of others."""
    return tree_of(text) if "\\" in text else None


def _run_of(row: Row, arm: int, place: Callable[[str], int]) -> dict[str, Any]:
    tokens = row["tokens"]
    return {
        "arm": arm,
        "sample": row["sample"],
        "verdict": UNKNOWN if row["correct"] is None else int(row["correct"]),
        "failed": row["error"] is not None,
        "answer": row["answer"],
        "error": row["error"],
        "stopped": row["stopped"],
        "notes": row["notes"],
        "seconds": finite(row["seconds"]),
        "large_tokens": row["large_tokens"],
        "small_tokens": tokens.get("small", 0) + tokens.get("small_discarded", 0),
        "cost": finite(row["cost"]),
        "steps": [_step_of(step, place) for step in row["steps"]],
        # Only where there are no steps to show it by.
        "solution": place(row["solution"]) if row["solution"] and not row["steps"] else None,
    }


def _step_of(step: RecordStep, place: Callable[[str], int]) -> dict[str, Any]:
    draft = step["discarded"]
    return {
        "text": place(step["text"]),
        "writer": step["writer"],
        "tokens": step["tokens"],
        "score": step["score"],
        "decision": step["decision"],
        "label": step["label"],
        "part": step.get("part"),
        "discarded": draft
        and {
            "text": place(draft["text"]),
            "tokens": draft["tokens"],
            "score": draft["score"],
            "label": draft["label"],
        },
    }


def finite(value: Any) -> Any:
    """Replaces every infinity and NaN, at any depth, by None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Plots

SMALL, LARGE = "small", "large"
"""Names of the arms of one model alone."""
_MOST_ARMS = len(COLOURS)
_USUAL = ("policy", "sweep", "random", "baseline")
"""Whose places are shown first, where there are more arms than colours."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot.

    Attributes:
        name: Of its files.
        caption: What it shows, as HTML without markup.
        draw: Draws it for a light or a dark ground.
        points: Arms that are points of it.
    """

    name: str
    caption: str
    draw: Callable[[bool], Figure]
    points: Sequence[tuple[str, ArmPoint]] = ()

    def spots(self) -> Iterator[tuple[str, float, float]]:
        """Yields the arm of each point, and where it lies: shares of width and height, from top left."""
        if self.points:
            places = positions_of(self.draw(False), [point for _, point in self.points])
            for (arm, _), (x, y) in zip(self.points, places, strict=True):
                yield arm, round(x, 4), round(y, 4)

    def save(self, folder: Path) -> list[Path]:
        """Writes it as PNG and SVG."""
        return save_plot(self.draw(False), folder / self.name)

    def html(self) -> str:
        """Returns it for a page, light or dark as the reader has it."""
        light, dark = (base64.b64encode(svg_of(self.draw(ground))).decode() for ground in (False, True))
        kind = "data:image/svg+xml;base64,"
        dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{kind}{dark}">'
        return (
            f'<figure class="card" id="plot-{self.name}"><picture>{dark_source}'
            f'<img alt="{self.caption}" src="{kind}{light}"></picture>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )


def plots_of(
    gathered: Gathered, summary: RunSummary | None, arms: Mapping[str, ArmSettings]
) -> Iterator[Plot]:
    """Gives the plots for which there is something to show."""
    if summary is not None and (accuracy := _accuracy(summary)) is not None:
        yield accuracy
    if (calibration := gathered.calibration.metrics()) is not None:
        kind, found = calibration
        shown = {"scores of steps" if kind == "steps" else "least score of a solution": found}
        caption = (
            "Calibration of the scorer: of the steps that scored so much, the share that was right."
            if kind == "steps"
            else "Calibration of the scorer: of the solutions whose least score was so much, the share that "
            "was right. The single steps have no labels."
        )
        yield Plot("calibration", caption, lambda dark: draw_reliability(shown, dark=dark))
    known = {name: found for name, found in gathered.places.items() if found.solutions}
    places = {name: known[name].shares() for name in _by_interest(arms) if name in known}
    if places := dict(list(places.items())[:_MOST_ARMS]):
        caption = "Where in a solution the large model writes"
        yield Plot(
            "large_by_place",
            f"{caption}: its share of each tenth, steps taken as equally long.",
            lambda dark: draw_places(places, dark=dark),
        )
        yield Plot(
            "large_by_step", f"{caption}: its share of each step.", lambda dark: draw_steps(places, dark=dark)
        )


def _by_interest(arms: Mapping[str, ArmSettings]) -> list[str]:
    routed = [name for name, arm in arms.items() if arm["kind"] in _USUAL]
    return sorted(routed, key=lambda name: _USUAL.index(arms[name]["kind"]))


def _accuracy(summary: RunSummary) -> Plot | None:
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    ends = [_point(arms[name], at) for name, at in ((SMALL, 0.0), (LARGE, 1.0)) if name in arms]
    known = [end for end in ends if end is not None]
    if len(known) < 2:
        return None
    named = [
        (arm["arm"], point)
        for arm in summary["arms"]
        if arm["kind"] != "reference" and (point := _point(arm)) is not None
    ]
    points = [point for _, point in named]
    small, large = known[0]._replace(family="small alone"), known[1]._replace(family="large alone")
    return Plot(
        "accuracy",
        "Accuracy against the share of large tokens, with 95 % intervals. On the dashed line: whole "
        "questions given to one of the two models at random. A point opens the questions of its arm.",
        lambda dark: draw_accuracy(points, small, large, dark=dark),
        [(SMALL, small), *named, (LARGE, large)],
    )


def _point(arm: ArmSummary, share: float | None = None) -> ArmPoint | None:
    accuracy, spent = arm["metrics"]["accuracy"], arm["metrics"]["share"]
    at = spent["value"] if share is None else share
    if accuracy["value"] is None or at is None:
        return None
    spread = None if share is not None else spent["interval"]
    return ArmPoint(arm["family"], at, accuracy["value"], spread, accuracy["interval"])
