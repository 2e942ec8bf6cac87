"""Compare scorers trained on labels that need no checker: `python -m ...study.own_scorers FOLDER`.

Rollouts of training problems are labelled by Monte Carlo continuations alone (soft and hard targets), by the
advantage of the large model's step, and by the exact checker. A scorer is trained on each, in the same way.
On test problems each has its AUC by the exact checker, and the curve of a threshold on its scores. FOLDER
keeps what is recorded and trained, and an interrupted run resumes there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.evaluation import Question
from trim_graph.evaluation.scorer_metrics import labels_from
from trim_graph.evaluation.traces import Trace, read_traces, write_traces
from trim_graph.examples.arithmetic import LARGE

from .families import THRESHOLD, at_spend
from .figures import difference
from .trees import Problems, recorded_trees, weights_identity

if TYPE_CHECKING:
    from .worlds import World

MEASURED = Path(__file__).parent / "own_scorers.json"
QUESTIONS, VALIDATION, TEST = 300, 300, 600
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


def label(folder: Path, questions: int) -> dict[str, Path]:
    """Labels the same rollouts by each method.

    Args:
        folder: Keeps rollouts, continuations and labels.
        questions: Training problems.

    Returns:
        The file of each method's labels, ``exact`` among them.
    """
    from trim_graph.config import build_parts, example_config
    from trim_graph.evaluation.datasets import make_dataset
    from trim_graph.evaluation.runner import LocalExecutor, Models
    from trim_graph.training.continuations import Continuations
    from trim_graph.training.step_labels import LabelSettings, StepLabeller

    config = example_config({"small": {"type": "example", "temperature": TEMPERATURE}})
    executor = LocalExecutor(lambda: Models(config, build_parts(config)))
    dataset = make_dataset("arithmetic:standard:train")
    drawn = list(islice(dataset.questions(), questions))
    identity = {"weights": weights_identity(), "dataset": dataset.identity(), "temperature": TEMPERATURE}
    files, delimiter = dict[str, Path](), config.settings.delimiter
    with Continuations(folder / "continuations.jsonl", identity, delimiter=delimiter) as recorded:
        for name, settings in METHODS.items():
            chosen = LabelSettings(rollouts=3, continuations=6, **settings)
            traces, report = asyncio.run(StepLabeller(executor, drawn, recorded, chosen).label())
            files[name] = folder / f"labels, {name}.jsonl"
            write_traces(files[name], traces)
            print(
                f"{name}: {report.solutions} solutions, {report.steps} targets", file=sys.stderr, flush=True
            )
    files["exact"] = folder / "labels, exact.jsonl"
    write_traces(files["exact"], exact_labels(files["monte_carlo"], drawn))
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


def train(folder: Path, name: str, labels: Path) -> Path:
    """Trains the scorer of one method, unless the folder has it; returns its folder."""
    from trim_graph.training.scorer import ScorerTraining, train_scorer

    out = folder / f"scorer, {name}"
    if not (out / "trim_scorer.json").exists():
        train_scorer(
            [labels], base=str(BASE), out=out, training=ScorerTraining(validation=HELD_OUT, test=0.0)
        )
        print(f"{name}: trained", file=sys.stderr, flush=True)
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


def study(folder: Path, *, questions: int, validation: int, test: int) -> dict[str, Any]:
    """Makes what the folder does not hold yet, and measures it."""
    from .measuring import study_scorers
    from .scorers import by_token_probability, rescored
    from .worlds import World

    drawn = [Problems("standard", "validation", validation, 3), Problems("standard", "test", test, 0)]
    for problems in drawn:
        recorded_trees(problems, folder)
    worlds: dict[str, tuple[World, World]] = {}
    for name, labels in label(folder, questions).items():
        scorer = train(folder, name, labels)
        worlds[name] = (rescored(drawn[0], folder, scorer), rescored(drawn[1], folder, scorer))
    bare = [by_token_probability(problems, folder) for problems in drawn]
    shipped = [World("standard", recorded_trees(problems, folder)) for problems in drawn]
    worlds |= {"token probability": (bare[0], bare[1]), "shipped PRM": (shipped[0], shipped[1])}
    return {
        "questions": questions,
        "validation": validation,
        "test": test,
        "scorers": study_scorers(worlds),
        "advantage_against_exact": compare(
            worlds["advantage"][1], worlds["exact"][1], worlds["advantage"][0]
        ),
        "advantage_against_monte_carlo": compare(
            worlds["advantage"][1], worlds["monte_carlo, hard"][1], worlds["advantage"][0]
        ),
    }


def table(document: Mapping[str, Any]) -> str:
    """Writes the scorers as Markdown."""
    lines = ["| labels of the scorer | AUC | mean IBC | CPT(80) |", "|---|---|---|---|"]
    for name, found in document["scorers"].items():
        curve = found["curve"]
        lines.append(
            f"| {name} | {found['auc']:.3f} | {_cell(curve['mean_ibc'])} | {_cell(curve['cpt_80'])} |"
        )
    return "\n".join(lines)


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None or figure["interval"] is None:
        return "not reached"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes ``own_scorers.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="keeps what was recorded and trained")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="training problems to label")
    parser.add_argument("--validation", type=int, default=VALIDATION, help="problems that choose thresholds")
    parser.add_argument("--test", type=int, default=TEST, help="problems that are measured")
    parser.add_argument("--out", type=Path, default=MEASURED)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    document = study(given.folder, questions=given.questions, validation=given.validation, test=given.test)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
