"""Join what was measured fold by fold: each question with a scorer that knows none on its database."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trim_graph.config import TrimConfig
from trim_graph.errors import InputError
from trim_graph.evaluation.datasets import Dataset
from trim_graph.evaluation.experiment import ExperimentRunner, RunConfig
from trim_graph.evaluation.records import (
    SETTINGS,
    SUMMARY,
    ArmSettings,
    Row,
    Run,
    journal_of,
    read_run,
    write_json,
    write_rows,
)
from trim_graph.evaluation.runner import LocalExecutor
from trim_graph.evaluation.scorer_metrics import (
    LabelledSolution,
    Paired,
    Rated,
    against_token_probability,
    best_threshold,
    compute_scorer_metrics,
    read_labelled,
    step_rows,
)
from trim_graph.evaluation.traces import Trace, read_traces
from trim_graph.evaluation.verdicts import CostModel, summarise_run
from trim_graph.storage.journal import differences, replace_journal
from trim_graph.storage.rows import read_rows


def split_labels(labels: Path, tested: Mapping[int, set[str]], folder: Path) -> None:
    """Writes for each fold the labelled solutions to train on, ``labels-K``, and the others, ``held-out-K``.

    Args:
        labels: File of `trim-graph label`.
        tested: Texts of the questions that each fold tests.
        folder: Where the files go.
    """
    solutions = [values for _, values in read_rows(labels)]
    for fold, questions in tested.items():
        held_out = [one for one in solutions if one["question"] in questions]
        others = [one for one in solutions if one["question"] not in questions]
        for name, part in ((f"labels-{fold}", others), (f"held-out-{fold}", held_out)):
            lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in part)
            (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


def join_ratings(rated: Mapping[Path, Path], out: Path) -> Paired | None:
    """Writes the metrics of scorers that have each rated the solutions of a fold.

    Args:
        rated: By file of labelled solutions, the traces with scores that `trim-graph eval-scorer` made of it.
        out: Folder of the metrics; made if it is not there.

    Returns:
        The comparison with the token probability.

    Raises:
        InputError: A file cannot be read, or a solution has no scores.
    """
    solutions, scored = list[LabelledSolution](), list[Rated]()
    for file, traces in rated.items():
        labelled = list(read_labelled(file))
        scores = [_scores(trace) for trace in read_traces(traces)]
        if len(scores) < len(labelled):
            lacking = len(labelled) - len(scores)
            raise InputError(
                f"{traces} lacks {lacking} of {len(labelled)} solutions: trim-graph eval-scorer with "
                "--retry-errors rates them again"
            )
        solutions += labelled
        scored += [
            Rated(one, tuple(solution["labels"])) for one, solution in zip(scores, labelled, strict=True)
        ]
    threshold = best_threshold(scored)
    metrics = compute_scorer_metrics(scored, 0.5 if threshold is None else threshold)
    compared = against_token_probability(
        step_rows(
            (solution["question"], solution["steps"], solution["token_probabilities"], one)
            for solution, one in zip(solutions, scored, strict=True)
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    sets = {"labels": {**metrics, "against_token_probability": compared}}
    write_json(out / "metrics.json", {"threshold": threshold, "sets": sets})
    return compared


def _scores(trace: Trace) -> tuple[float, ...]:
    scores = tuple(step["score"] for step in trace["steps"] if step["score"] is not None)
    if len(scores) < len(trace["steps"]):
        raise InputError(f"solution {trace['id']}: a step has no score: rate it by trim-graph eval-scorer")
    return scores


def is_complete(folder: Path) -> bool:
    """Returns whether a run of `trim-graph eval` has ended, and was not begun again."""
    return (folder / SETTINGS).exists() and read_run(folder).summary is not None


def join_runs(folders: Sequence[Path], out: Path, *, dataset: Dataset, config: TrimConfig) -> None:
    """Writes a run of all questions from those of the folds, with the arms that all of these have.

    Args:
        folders: Complete runs of `trim-graph eval`, each on the questions of a fold.
        out: Folder of the run; an earlier one is replaced.
        dataset: All questions, which have ids.
        config: Of one of the runs.

    Raises:
        InputError: The runs have other models or settings, or a question is in none or in two.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:]:
        if others := differences(_common(runs[0]), _common(run)):
            raise InputError(
                f"{run.folder} and {runs[0].folder} were run with other settings: {'; '.join(others)}. "
                "Remove one of them, and run its fold again"
            )
    places = {question.id or "": index for index, question in enumerate(dataset.questions())}
    beside = out.with_name(f".{out.name}")
    shutil.rmtree(beside, ignore_errors=True)
    run_config = _run_config(runs, dataset, len(places), config)
    runner = ExperimentRunner(beside, run_config, _no_models(), timed=False)
    summaries = [run.summary for run in runs if run.summary is not None]
    complete = [{arm["arm"] for arm in summary["arms"]} for summary in summaries]
    for arm in runs[0].settings["arms"]:
        if all(arm in arms for arms in complete):
            runner.note(arm, _arm_settings(runs, arm))
            journal = journal_of(beside, arm)
            journal.parent.mkdir(exist_ok=True)
            replace_journal(journal, run_config.settings, _rows(runs, arm, places))
            runner.take(arm)
    write_rows(beside, list(runner.arms))
    warnings = [one for one in summaries[0]["warnings"] if all(one in each["warnings"] for each in summaries)]
    command = "python -m trim_graph.examples.text_to_sql.evaluate --data DATA --out OUT --stage own_scorer"
    summary = summarise_run(runner, config, CostModel(config.prices.given), warnings, command=command)
    write_json(beside / SUMMARY, summary)
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


def _common(run: Run) -> dict[str, Any]:
    """Returns the settings of a run that those of all folds share."""
    return {key: one for key, one in run.settings["settings"].items() if key not in ("dataset", "scorer")}


def _run_config(runs: Sequence[Run], dataset: Dataset, n: int, config: TrimConfig) -> RunConfig:
    first = runs[0].settings["settings"]
    scorers = [run.settings["settings"]["scorer"] for run in runs]
    settings = {**first, "dataset": dataset.identity(), "scorer": scorers}
    return RunConfig(dataset, n, 1, config.settings.seed or 0, first["concurrency"], config.prices, settings)


def _arm_settings(runs: Sequence[Run], arm: str) -> ArmSettings:
    """Returns the settings of an arm; limits that each fold has fitted for itself are all in its policy."""
    settings = [run.settings["arms"][arm] for run in runs]
    policies = [one["policy"] for one in settings]
    fitted = any(one != policies[0] for one in policies)
    return ArmSettings(
        kind=settings[0]["kind"],
        family=settings[0]["family"],
        policy={"type": policies[0].get("type"), "folds": policies} if fitted else policies[0],
    )


def _rows(runs: Sequence[Run], arm: str, places: Mapping[str, int]) -> Iterator[Row]:
    for run in runs:
        for row in run.rows(arm):
            if row["id"] not in places:
                raise InputError(f"{run.folder}: the question {row['id']} is none of the dataset")
            yield Row(**{**row, "index": places[row["id"]]})


def _no_models() -> LocalExecutor:
    def load() -> NoReturn:
        raise AssertionError("runs that have ended call no model")

    return LocalExecutor(load)
