"""Compare scorers trained on labels that need no checker: `python -m ...study.own_scorers FOLDER`.

Rollouts of training problems are labelled by Monte Carlo continuations alone (soft and hard targets), by the
advantage of the large model's step, and by the exact checker. On each a head is trained in one way, alone and
combined with the small model's token probability. On test problems each scorer has its AUC by the exact
checker, and the curve of a threshold on its scores. Hard targets are compared with exact labels on further
draws too, each of other training problems. FOLDER keeps what is recorded and trained, and an interrupted run
resumes there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.adapters.prm.scorer_file import read_scorer_file
from trim_graph.evaluation import Question
from trim_graph.evaluation.scorer_metrics import labels_from
from trim_graph.evaluation.traces import Trace, read_traces, write_traces
from trim_graph.examples.arithmetic import LARGE

from .families import THRESHOLD, at_spend
from .figures import difference
from .report import figure, signed, table
from .scorers import TOKEN_PROBABILITY, by_token_probability, compare_auc, rescored
from .trees import Problems, recorded_trees, weights_identity

if TYPE_CHECKING:
    from .worlds import World

MEASURED = Path(__file__).parent / "own_scorers.json"
QUESTIONS, VALIDATION, TEST = 1000, 300, 600
DRAWS = 2
"""Draws of training problems on which `GRADED` is compared with `EXACT`."""
SHARES = (0.1, 0.15, 0.2, 0.3, 0.4)
"""Shares of large tokens at which two scorers are compared."""
TEMPERATURE = 0.7
"""Of the small model's rollouts and continuations."""
BASE = LARGE
"""Model that the scorers are made of: the small one's hidden states hold too little."""
HELD_OUT = 0.15
"""Share of the labelled problems that calibrate a scorer."""
METHODS: dict[str, dict[str, Any]] = {
    "monte_carlo": {"method": "monte_carlo", "target": "soft", "reweight": False},
    "monte_carlo, hard": {"method": "monte_carlo", "target": "hard"},
    "advantage": {"method": "advantage", "places": 2},
}
GRADED, EXACT, ADVANTAGE = "monte_carlo, hard", "exact", "advantage"
SHIPPED = "shipped PRM"
KINDS = {"head": False, "combined": True}
"""Kinds of scorers: the head alone, and combined with the token probability."""
SHOWN = {
    "monte_carlo": "`monte_carlo`, soft targets, `--no-reweight`",
    GRADED: "`monte_carlo`, hard targets",
    ADVANTAGE: "`advantage`, 2 places",
    EXACT: "exact checker",
    TOKEN_PROBABILITY: "none: token probability",
    SHIPPED: "many more exact ones: the shipped PRM",
}
"""Labels of each scorer, as tables and the picture show them."""


def label(folder: Path, questions: int, draw: int = 0) -> dict[str, Path]:
    """Labels the same rollouts by each method.

    Args:
        folder: Keeps rollouts, continuations and labels.
        questions: Training problems.
        draw: Number of the draw; draws have no problem in common. Those after the first are labelled by
            `GRADED` and the checker only.

    Returns:
        The file of each method's labels, `EXACT` among them.
    """
    from trim_graph.config import build_parts, example_config
    from trim_graph.evaluation.datasets import make_dataset
    from trim_graph.evaluation.runner import LocalExecutor, Models
    from trim_graph.training.continuations import Continuations
    from trim_graph.training.step_labels import LabelSettings, StepLabeller

    small = {"type": "example", "temperature": TEMPERATURE, "logprobs": True}
    config = example_config({"small": small})
    executor = LocalExecutor(lambda: Models(config, build_parts(config)))
    dataset = make_dataset("arithmetic:standard:train")
    drawn = list(islice(dataset.questions(), draw * questions, (draw + 1) * questions))
    identity = {
        "weights": weights_identity(),
        "dataset": dataset.identity(),
        "small": small,
        "begin": draw * questions,  # a continuation is found by its problem's number in the draw
    }
    methods = METHODS if draw == 0 else {GRADED: METHODS[GRADED]}
    files, delimiter = dict[str, Path](), config.settings.delimiter
    with Continuations(folder / f"continuations {draw}.jsonl", identity, delimiter=delimiter) as recorded:
        for name, settings in methods.items():
            chosen = LabelSettings(rollouts=3, continuations=6, **settings)
            traces, report = asyncio.run(StepLabeller(executor, drawn, recorded, chosen).label())
            files[name] = folder / f"labels {draw}, {name}.jsonl"
            write_traces(files[name], traces)
            print(
                f"draw {draw}, {name}: {report.solutions} solutions, {report.steps} targets",
                file=sys.stderr,
                flush=True,
            )
    same_solutions = next(iter(files.values()))
    files[EXACT] = folder / f"labels {draw}, {EXACT}.jsonl"
    write_traces(files[EXACT], exact_labels(same_solutions, drawn))
    return files


def exact_labels(file: Path, drawn: Sequence[Question]) -> Iterator[Trace]:
    """Yields the same solutions labelled by the exact checker, up to the first wrong step."""
    for trace in read_traces(file):
        check = drawn[trace["index"]].label_steps
        assert check is not None
        right = list(check([step["text"] for step in trace["steps"]]))
        labels = labels_from(right.index(False) if False in right else -1, len(right))
        for step, known in zip(trace["steps"], labels, strict=True):
            step["label"], step["value"] = known, None if known is None else float(known)
        yield trace


def train(labels: Path, kind: str) -> Path:
    """Trains a scorer of some labels, unless their folder has it; returns its own folder.

    Args:
        labels: File of the labels.
        kind: One of `KINDS`.
    """
    from trim_graph.training.scorer import ScorerTraining, train_scorer

    out = labels.with_name(f"{labels.stem}, {kind}".replace("labels", "scorer", 1))
    if not (out / "trim_scorer.json").exists():
        training = ScorerTraining(validation=HELD_OUT, test=0.0, token_probability=KINDS[kind])
        train_scorer([labels], base=str(BASE), out=out, training=training)
        print(f"{out.name}: trained", file=sys.stderr, flush=True)
    return out


def compare(ours: World, theirs: World, validation: World) -> list[dict[str, Any]]:
    """Compares a threshold on one scorer with a threshold on another that spends as much or slightly more.

    Args:
        ours: Test problems with the one's scores.
        theirs: The same problems with the other's.
        validation: Problems with the one's scores, on which its thresholds are chosen.
    """
    rows = []
    for target in SHARES:
        tokens = int(target * validation.large.spent)
        setting, _ = at_spend(THRESHOLD, validation, THRESHOLD.settings(validation), tokens)
        arm = THRESHOLD.on(ours, setting)
        _, beside = at_spend(THRESHOLD, theirs, THRESHOLD.settings(theirs), arm.spent)
        rows.append(
            {
                "share": ours.share(arm),
                "accuracy": arm.accuracy,
                "other_share": theirs.share(beside),
                "other_accuracy": beside.accuracy,
                "difference": difference(arm, beside),
            }
        )
    return rows


def study(folder: Path, *, questions: int, validation: int, test: int, draws: int = DRAWS) -> dict[str, Any]:
    """Makes what the folder does not hold yet, and measures it.

    Args:
        folder: Keeps what is recorded and trained.
        questions: Training problems of a draw.
        validation: Problems that choose thresholds.
        test: Problems that are measured.
        draws: Draws of training problems; all methods are measured on the first.
    """
    from .measuring import study_scorers
    from .results import machine, rounded
    from .worlds import World

    choosing, measured = Problems("standard", "validation", validation, 3), Problems("standard", "test", test)
    for problems in (choosing, measured):
        recorded_trees(problems, folder)
    bare = [by_token_probability(problems, folder) for problems in (choosing, measured)]
    shipped = [World("standard", recorded_trees(problems, folder)) for problems in (choosing, measured)]
    scorers = {
        (draw, name, kind): train(file, kind)
        for draw in range(draws)
        for name, file in label(folder, questions, draw).items()
        for kind in KINDS
    }
    tested = {key: rescored(measured, folder, scorer) for key, scorer in scorers.items()}
    worlds = {
        f"{name}: {kind}": (rescored(choosing, folder, scorer), tested[draw, name, kind])
        for (draw, name, kind), scorer in scorers.items()
        if draw == 0
    }
    worlds |= {TOKEN_PROBABILITY: (bare[0], bare[1]), SHIPPED: (shipped[0], shipped[1])}
    drawn = [
        {
            "draw": draw,
            "kind": kind,
            "over_exact": compare_auc(tested[draw, GRADED, kind], tested[draw, EXACT, kind]),
            "over_token_probability": compare_auc(tested[draw, GRADED, kind], bare[1]),
        }
        for kind in KINDS
        for draw in range(draws)
    ]
    choosing_world, ours = worlds[f"{ADVANTAGE}: head"]
    advantage = {
        other: compare(ours, worlds[f"{other}: head"][1], choosing_world) for other in (EXACT, GRADED)
    }
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "questions": questions,
        "validation": validation,
        "test": test,
        "small": shipped[1].small.accuracy,
        "large": shipped[1].large.accuracy,
        "scorers": study_scorers(worlds),
        "stacking": {
            name: _stacking(scorer)
            for (draw, name, kind), scorer in scorers.items()
            if (draw, kind) == (0, "combined")
        },
        "draws": drawn,
        "advantage": advantage,
    }
    found: dict[str, Any] = rounded(document)
    return found


def _stacking(scorer: Path) -> dict[str, float] | None:
    """Returns the weights of a trained scorer's combination; None where it has none."""
    file = read_scorer_file(str(scorer))
    return None if file is None or file.stacking is None else file.stacking.model_dump()


def report(document: Mapping[str, Any]) -> str:
    """Writes the three tables of the guide as Markdown."""
    return "\n\n".join((_scorers(document), _draws(document), _advantage(document)))


def _scorers(document: Mapping[str, Any]) -> str:
    rows = []
    for name, found in document["scorers"].items():
        labels, _, kind = name.partition(": ")
        over, curve = found["over_token_probability"], found["curve"]
        itself = name == TOKEN_PROBABILITY
        rows.append(
            [
                SHOWN[labels],
                kind,
                f"{found['auc']:.3f}",
                "" if itself else _area(over["auc"]),
                figure(curve["mean_ibc"], 2),
                "" if itself else _change(over["mean_ibc"]),
                figure(curve["cpt_80"]) or "not reached",
            ]
        )
    less = "less that of token probability"
    return table(["labels", "scorer", "AUC", less, "mean IBC", less, "CPT(80)"], rows)


def _draws(document: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{one['draw'] + 1}, {one['kind']}",
            f"{one['over_exact']['auc']:.3f}",
            f"{one['over_exact']['auc_of_other']:.3f}",
            _area(one["over_exact"]),
            _area(one["over_token_probability"]),
        ]
        for one in document["draws"]
    ]
    heads = ["draw, scorer", "AUC by hard targets", "by exact labels", "difference"]
    return table([*heads, "hard targets less token probability"], rows)


def _advantage(document: Mapping[str, Any]) -> str:
    compared = document["advantage"]
    rows = [
        [f"{target:g}", *(signed(one["difference"]) for one in row)]
        for target, row in zip(SHARES, zip(*compared.values(), strict=True), strict=True)
    ]
    return table(["share of large tokens", *(f"less {SHOWN[name]}" for name in compared)], rows)


def _area(found: Mapping[str, Any]) -> str:
    return _change({"value": found["difference"], "interval": found["difference_interval"]})


def _change(found: Mapping[str, Any]) -> str:
    if found["value"] is None or found["interval"] is None:
        return ""
    return signed({"accuracy": found["value"], "interval": found["interval"]})


def draw_picture(document: Mapping[str, Any], file: Path) -> None:
    """Draws accuracy against the share of large tokens, one panel a kind of scorer."""
    from .picture import Panel, draw_panels

    points = {name: found["points"] for name, found in document["scorers"].items()}
    shown = {name: text.replace("`", "") for name, text in SHOWN.items()}
    panels = [
        Panel(
            f"{title}, {document['test']} test problems",
            (document["small"], document["large"]),
            {text: points.get(f"{name}: {kind}") or points[name] for name, text in shown.items()},
        )
        for kind, title in (("head", "head alone"), ("combined", "with token probability"))
    ]
    draw_panels(panels, {text: f"C{at}" for at, text in enumerate(shown.values())}, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes ``own_scorers.json`` and ``own_scorers.png``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="keeps what was recorded and trained")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="training problems of a draw")
    parser.add_argument("--validation", type=int, default=VALIDATION, help="problems that choose thresholds")
    parser.add_argument("--test", type=int, default=TEST, help="problems that are measured")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of training problems")
    parser.add_argument("--out", type=Path, default=MEASURED, help="JSON; the picture is written beside it")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(given, name) for name in ("questions", "validation", "test", "draws")}
    document = study(given.folder, **sizes)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw_picture(document, given.out.with_suffix(".png"))
    print(report(document))


if __name__ == "__main__":
    main()
