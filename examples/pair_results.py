"""Write RESULTS.md, results.json and results.png from the runs of a pair of models.

    python -m trim_graph.examples.pair_results RUNS --title GSM8K --out FOLDER

Reads the ``summary.json`` and the rows of each run below RUNS, one for each scorer. Where there are any, it
reads too the metrics of scorers in RUNS/rated, RUNS/rated_later and RUNS/processbench, those of the judge
without error in RUNS/oracle, and the runs in RUNS/times, which no cache of responses has answered. The note
of an earlier results.json is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trim_graph.cli.common import make_folder
from trim_graph.errors import InputError
from trim_graph.evaluation.comparison import LARGE, QUERY_LEVEL, SMALL
from trim_graph.evaluation.metrics import RESAMPLES, Interval, interval
from trim_graph.evaluation.plots import ArmPoint, draw_accuracy, save_plot
from trim_graph.evaluation.records import Row, read_rows_of
from trim_graph.examples import oracle_judge, own_pair

TARGETS = ("50", "80", "95")
SOLUTIONS = {
    "rated": "solutions of questions that no scorer has learned from, labelled by continuations",
    "rated_later": "further such solutions, labelled later",
    "processbench": "ProcessBench: solutions of GSM8K by other models, labelled by people",
}
"""Folders with metrics of scorers, and what was rated there."""
POLICIES_ON = "policies_on_"
"""Begins the folder of policies that were planned or trained on a scorer's scores."""
PAPER = "the paper, MATH-500: 4.75 beside 0.95"
PAPER_CPT = "the paper: 17.2 %"
LEGEND = (
    "In brackets 95 % intervals: of accuracies exact ones, of paired differences in accuracy score "
    "intervals, of all else by a bootstrap over questions, paired between arms. Share: tokens written by "
    "the large model as a share of what it writes alone. PGR: the part of the gap in accuracy between the "
    "models that is recovered. CPT(x): the least share that recovers x % of the gap, on lines between "
    "the points. Delta IBC: how much more of the gap is recovered than by drawing a model for each "
    "question at the same spend, its mean up to CPT(95)."
)
HINDSIGHT = (
    "What no router can beat: each question takes what is right with the fewest large tokens, and the "
    "cheapest questions are solved first. Of all arms it is too low a bound, since of many answers some are "
    "right by chance."
)

WHOLE = "cascades, query router"
"""Label of the methods that route whole questions, in the picture."""

TIMES = (
    "Wall clock: seconds of all questions together. Tokens a second: what both models wrote in that time, "
    "drafts that were not kept included."
)


def read_runs(folder: Path) -> dict[str, Any]:
    """Returns the summary of each run, by the name of its folder.

    Raises:
        InputError: There is none, or runs are of different questions.
    """
    runs = {
        file.parent.name: json.loads(file.read_text("utf-8"))
        for file in sorted(folder.glob("*/summary.json"))
    }
    if not runs:
        raise InputError(f"{folder} holds no run with a summary.json: run the evaluation first")
    # Not by the digest of the file, which may name places of the machine.
    asked = {
        (run["n"], *sorted((row["index"], row["question"]) for row in read_rows_of(folder / name, SMALL)))
        for name, run in runs.items()
    }
    if len(asked) > 1:
        sizes = ", ".join(f"{name}: {run['n']} of {run['dataset']['name']}" for name, run in runs.items())
        raise InputError(f"the runs of {folder} are of different questions ({sizes}): take one -n for all")
    return runs


def write_results(folder: Path, out: Path, *, title: str, note: str | None = None) -> None:
    """Writes the three files, and says so.

    Args:
        folder: Holds the runs.
        out: Where the files go.
        title: Of the page.
        note: Says which models these are, and when, where and how they ran; default: that of an earlier
            results.json in ``out``.
    """
    runs, file = read_runs(folder), out / "results.json"
    if note is None:
        note = json.loads(file.read_text("utf-8"))["note"] if file.exists() else ""
    document = {
        "title": title,
        "note": note,
        "runs": {
            name: {**_kept(run), "hindsight": hindsight(read_rows_of(folder / name), run["n"])}
            for name, run in runs.items()
        },
        "oracle": _read_oracle(folder / "oracle"),
        "scorers": {part: read_metrics(folder / part) for part in SOLUTIONS},
        "times": _read_times(folder / "times"),
    }
    file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (out / "RESULTS.md").write_text(page(document), "utf-8")
    draw(document, out / "results")
    print(f"written: RESULTS.md, results.json and results.png in {out}")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns by scorer the metrics that `trim-graph eval-scorer` wrote; empty where there are none."""
    kept = {}
    for file in sorted(folder.glob("*/metrics.json")):
        (found,) = json.loads(file.read_text("utf-8"))["sets"].values()
        kept[file.parent.name] = {key: found[key] for key in ("solutions", "first_error", "steps", "whole")}
    return kept


def _read_oracle(folder: Path) -> dict[str, Any] | None:
    """Returns what `oracle_judge` measured; None where it was not run."""
    file = folder / oracle_judge.METRICS
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _read_times(folder: Path) -> list[dict[str, Any]]:
    """Returns what each run took; empty where none was timed."""
    kept, found = ("seconds", "large_tokens", "small_tokens"), []
    for file in sorted(folder.glob("*/summary.json")):
        run = json.loads(file.read_text("utf-8"))
        arms = [
            {
                "arm": arm["arm"],
                "metrics": {name: arm["metrics"][name] for name in kept},
                "beside_large": arm["differences"].get(LARGE, {}).get("seconds"),
                "wall_clock": _wall_clock(read_rows_of(file.parent, arm["arm"]), run),
            }
            for arm in run["arms"]
        ]
        taken = {key: run[key] for key in ("n", "concurrency")}
        found.append({"run": file.parent.name, **taken, "arms": arms})
    return found


def _wall_clock(rows: Iterable[Row], run: Mapping[str, Any]) -> float | None:
    """Returns the seconds of an arm; None where only some of its questions were under way at once."""
    seconds = [row["seconds"] for row in rows]
    if run["concurrency"] == 1:
        return sum(seconds)
    return max(seconds) if len(seconds) <= run["concurrency"] else None


def _kept(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page is written from."""
    metrics = ("accuracy", "share", "pgr", "large_tokens", "small_tokens", "scorer_tokens", "cost")
    return {
        **{key: run[key] for key in ("n", "models", "dataset", "curves", "priced", "warnings")},
        "arms": [
            {
                **{key: arm[key] for key in ("arm", "kind", "family", "errors")},
                "metrics": {name: arm["metrics"][name] for name in metrics},
                "beside_large": arm["differences"].get(LARGE, {}).get("accuracy"),
            }
            for arm in run["arms"]
        ],
    }


def hindsight(rows: Iterable[Row], n: int) -> dict[str, dict[str, Any]]:
    """Returns with what share of the large tokens hindsight reaches each target.

    Each question takes the arm that is right with the fewest large tokens, and the cheapest questions are
    solved until the target is reached; the small model has the others. Without hindsight no choice among
    these arms reaches it for less.

    Args:
        rows: Rows of a run; of several samples of a question the first counts.
        n: How many questions.

    Returns:
        For the choice between the ``models`` alone and that among all ``arms``: by target, in percent of the
        gap in accuracy, the share; under ``accuracy`` the share of questions that an arm solves. 95 %
        intervals are by a bootstrap over questions.
    """
    correct, tokens = dict[str, Any](), dict[str, Any]()
    for row in rows:
        if row["sample"] == 0:
            correct.setdefault(row["arm"], np.zeros(n, bool))[row["index"]] = row["correct"] is True
            tokens.setdefault(row["arm"], np.zeros(n))[row["index"]] = row["large_tokens"]
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    bounds = {}
    for name, arms in {"models": (SMALL, LARGE), "arms": tuple(correct)}.items():
        costs = np.min([np.where(correct[arm], tokens[arm], np.inf) for arm in arms], axis=0)
        columns = costs, correct[SMALL], correct[LARGE], tokens[LARGE]
        value = _least_shares(*columns)
        drawn = [_least_shares(*(column[draw] for column in columns)) for draw in draws]
        bounds[name] = {
            key: {"value": value[key], "interval": interval([one[key] for one in drawn])} for key in value
        }
    return bounds


def _least_shares(costs: Any, small: Any, large: Any, tokens: Any) -> dict[str, float | None]:
    """Returns the accuracy that is possible, and by target the least share; None without tokens."""
    costs = np.sort(costs)
    found: dict[str, float | None] = {"accuracy": float(np.isfinite(costs).mean())}
    gap, total = max(0, int(large.sum()) - int(small.sum())), float(tokens.sum())
    for target in TARGETS:
        solved = math.ceil(int(small.sum()) + int(target) * gap / 100 - 1e-9)
        found[target] = float(costs[:solved].sum()) / total if total else None
    return found


def page(document: Mapping[str, Any]) -> str:
    """Returns the page as Markdown."""
    runs = document["runs"]
    first = next(iter(runs.values()))
    parts = [
        f"# {document['title']}: what step-level routing saves and loses",
        f"{first['n']} questions. {document['note']}".strip(),
        LEGEND,
        "![accuracy against the share of large tokens](results.png)",
        "## The models alone",
        _table(["model", "accuracy", "tokens a question"], _alone(runs)),
        "## The paper's claims here",
        "\n".join(f"- {line}" for line in claims(runs)),
        "## With hindsight",
        HINDSIGHT,
        _table(["choice", "accuracy possible", *(f"CPT({target})" for target in TARGETS)], _bounds(runs)),
    ]
    if document["oracle"] is not None:
        parts += _oracle(document["oracle"])
    if any(document["scorers"].values()):
        parts += ["## How good the scorers are", *_scorers(document["scorers"])]
    if document["times"]:
        parts += ["## How long it takes", TIMES, *_times(document["times"])]
    for name, run in runs.items():
        scorer = name.removeprefix(POLICIES_ON).replace("_", " ")
        heading = f"Policies on scorer: {scorer}" if name.startswith(POLICIES_ON) else f"Scorer: {scorer}"
        parts += [f"## {heading}", _points(run), _curves(run)]
    return "\n\n".join(parts) + "\n"


def _alone(runs: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    """Yields a row for each model; several, with the runs that each is of, where it was run again."""
    for model in (SMALL, LARGE):
        found = dict[tuple[str, str], list[str]]()
        for name, run in runs.items():
            arm = _arm(run, model)
            found.setdefault((_value(arm, "accuracy"), _tokens(arm)), []).append(name.replace("_", " "))
        for cells, names in found.items():
            yield [model if len(found) == 1 else f"{model} ({', '.join(names)})", *cells]


def claims(runs: Mapping[str, Any]) -> list[str]:
    """Says for each scorer which claims of the paper hold."""
    lines = []
    for name, run in runs.items():
        for curve in run["curves"]:
            beside = curve["over_query_level"]
            if beside is None or curve["family"].startswith("random"):
                continue
            ratio, difference = beside["ratio"], beside["difference"]
            own, other = _metric(curve["delta_ibc"], 2), f"`{beside['family']}`"
            if ratio["value"] is not None:
                shown = f"{_metric(ratio, 1)} times that of {other}"
            else:
                more = _metric(difference, 2, signed=True)
                shown = f"{more} beside {other}, whose own is not clear of 0"
            lines.append(
                f"{name.replace('_', ' ')}, {curve['family']}: Delta IBC {own}, {shown} ({PAPER}); "
                f"CPT(95) {_cpt(curve, '95')} ({PAPER_CPT})."
            )
    return lines or ["No query-level baseline was run."]


def _bounds(runs: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    """Yields a row for the choice between the models, then one for that among the arms of each run."""
    for which in ("models", "arms"):
        found = dict[tuple[str, ...], list[str]]()
        for name, run in runs.items():
            bound = run["hindsight"][which]
            cells = tuple(_metric(bound[key], 3) for key in ("accuracy", *TARGETS))
            found.setdefault(cells, []).append(name.replace("_", " "))
        what = "a model for each question" if which == "models" else "an arm for each question"
        for cells, names in found.items():
            yield [f"{what} ({', '.join(names)})", *cells]


def _oracle(found: Mapping[str, Any]) -> Iterable[str]:
    """Yields what the judge without error is, and a table of it beside the models alone."""
    arms = found["arms"]
    yield (
        f"A judge without error, on the first {arms[LARGE]['n']} questions: a draft is right where one of "
        f"{found['continuations']} continuations by the small model ends right (temperature "
        f"{found['temperature']}); all others are regenerated."
    )
    rows = [
        [
            "judge without error" if arm == oracle_judge.ORACLE else arm,
            *(
                _metric({"value": values[key], "interval": values[f"{key}_interval"]}, digits)
                for key, digits in (("accuracy", 3), ("share", 3), ("pgr", 2))
            ),
        ]
        for arm, values in arms.items()
    ]
    yield _table(["arm", "accuracy", "share", "PGR"], rows)


def _scorers(found: Mapping[str, Any]) -> Iterable[str]:
    """Yields for each set of solutions what was rated, and a table of the scorers."""
    heads = ["scorer", "AUC, steps", "AUC, solutions by their least score", "first-error F1", "solutions"]
    for part, scorers in found.items():
        if not scorers:
            continue
        rows = [
            [
                name.replace("_", " "),
                _area(metrics["steps"], "auc"),
                _area(metrics["whole"], "auc"),
                _area(metrics["first_error"], "f1"),
                str(metrics["solutions"]),
            ]
            for name, metrics in scorers.items()
        ]
        yield f"{SOLUTIONS[part][0].upper()}{SOLUTIONS[part][1:]}."
        yield _table(heads, rows)


def _area(metrics: Mapping[str, Any], key: str) -> str:
    return _metric({"value": metrics[key], "interval": metrics[f"{key}_interval"]}, 3)


def _times(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yields a table of all runs on as many questions, as many at once; equal arms have one row."""
    heads = ["arm", "run", "seconds a question", "beside large alone", "small tokens", "large tokens",
             "wall clock", "tokens a second"]  # fmt: skip
    for n, at_once in sorted({(run["n"], run["concurrency"]) for run in found}, reverse=True):
        rows: dict[str, list[str]] = {}
        for run in found:
            if (run["n"], run["concurrency"]) != (n, at_once):
                continue
            for arm in run["arms"]:
                rows.setdefault(json.dumps(arm), [arm["arm"], run["run"].replace("_", " "), *_time(arm, n)])
        yield f"{n} questions, {at_once} at once."
        yield _table(heads, rows.values())


def _time(arm: Mapping[str, Any], n: int) -> Iterable[str]:
    written = [arm["metrics"][key]["value"] for key in ("small_tokens", "large_tokens")]
    yield _metric(arm["metrics"]["seconds"], 1)
    yield _metric(arm["beside_large"], 1, signed=True)
    yield from (f"{tokens:.0f}" for tokens in written)
    wall = arm["wall_clock"]
    yield "-" if wall is None else f"{wall:.0f}"
    yield "-" if wall is None else f"{sum(written) * n / wall:.0f}"


def _points(run: Mapping[str, Any]) -> str:
    rows = [
        [
            arm["arm"],
            _value(arm, "accuracy"),
            _metric(arm["beside_large"], 3, signed=True),
            _value(arm, "share"),
            _value(arm, "pgr", 2),
            *(f"{arm['metrics'][key]['value']:.0f}" for key in ("small_tokens", "large_tokens")),
            f"{1e6 * arm['metrics']['cost']['value']:.1f}" if run["priced"] else "-",
        ]
        for arm in run["arms"]
    ]
    heads = ["arm", "accuracy", "beside large alone", "share", "PGR", "small tokens", "large tokens"]
    return _table([*heads, "cost of a million questions"], rows)


def _curves(run: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{curve['family']}{' (whole questions)' if curve['family'] in QUERY_LEVEL else ''}",
            _metric(curve["delta_ibc"], 2),
            *(_cpt(curve, target) for target in TARGETS),
        ]
        for curve in run["curves"]
    ]
    return _table(["family", "Delta IBC", *(f"CPT({target})" for target in TARGETS)], rows)


def _cpt(curve: Mapping[str, Any], target: str) -> str:
    """Returns a CPT; where no measured point recovers as much, only the large model alone does."""
    reached = any((point["pgr"] or 0.0) >= int(target) / 100 for point in curve["points"])
    return _metric(curve["cpt"][target], 3) if reached else "not reached"


def _arm(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(arm for arm in run["arms"] if arm["arm"] == name)
    return found


def _value(arm: Mapping[str, Any], key: str, digits: int = 3) -> str:
    return _metric(arm["metrics"][key], digits)


def _tokens(arm: Mapping[str, Any]) -> str:
    key = "large_tokens" if arm["arm"] == LARGE else "small_tokens"
    return f"{arm['metrics'][key]['value']:.0f}"


def _metric(metric: Mapping[str, Any] | None, digits: int, *, signed: bool = False) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{metric['value']:{sign}.{digits}f}"
    spread = metric["interval"]
    return (
        text if spread is None else f"{text} ({spread[0]:{sign}.{digits}f} to {spread[1]:{sign}.{digits}f})"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(document: Mapping[str, Any], stem: Path) -> None:
    """Draws accuracy against share: sweeps, policies and random routing; beside them methods of questions."""
    runs, steps, whole = document["runs"], list[ArmPoint](), list[ArmPoint]()
    drawn: dict[str, str] = {}
    for name, run in runs.items():
        scorer = name.removeprefix(POLICIES_ON).replace("_", " ")
        for arm in run["arms"]:
            kind = arm["kind"]
            if kind == "reference":
                continue
            if arm["family"] in QUERY_LEVEL:
                whole.append(_point(arm, WHOLE)._replace(accuracy_interval=None))
            elif kind not in ("sweep", "policy"):
                if drawn.setdefault(arm["family"], name) == name:  # it reads no scores: one run will do
                    named = "random routing of steps" if arm["family"] == "random" else arm["family"]
                    steps.append(_point(arm, named))
            elif name.startswith(POLICIES_ON):
                steps.append(_point(arm, "learned policy" if kind == "sweep" else "planned policies"))
            else:
                steps.append(_point(arm, scorer))
    first = next(iter(runs.values()))
    small, large = (_point(_arm(first, name), name) for name in (SMALL, LARGE))
    for file in save_plot(draw_accuracy(steps, small, large, beside=whole), stem):
        if file.suffix != ".png":
            file.unlink()


def _point(arm: Mapping[str, Any], family: str) -> ArmPoint:
    accuracy, share = (arm["metrics"][key] for key in ("accuracy", "share"))
    spread = accuracy["interval"]
    return ArmPoint(family, share["value"] or 0.0, accuracy["value"], None, spread and Interval(*spread))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder whose subfolders are runs of trim-graph eval")
    parser.add_argument("--out", type=Path, help="folder of the three files; default: RUNS")
    parser.add_argument("--title", required=True)
    parser.add_argument("--note", help="which models these are, and when, where and how they ran")
    given = parser.parse_args(arguments)
    out = given.out or given.runs

    def write() -> None:
        make_folder("--out", out)
        write_results(given.runs, out, title=given.title, note=given.note)

    return own_pair.run([write])


if __name__ == "__main__":
    sys.exit(main())
