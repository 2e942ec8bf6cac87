"""Join what was measured fold by fold: each question with a scorer that knows none on its database."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from trim_graph.config import TrimConfig
from trim_graph.errors import InputError
from trim_graph.evaluation.datasets import Dataset
from trim_graph.evaluation.experiment import ExperimentRunner, RunConfig
from trim_graph.evaluation.records import (
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
    Rated,
    against_token_probability,
    best_threshold,
    compute_scorer_metrics,
    read_labelled,
    step_rows,
)
from trim_graph.evaluation.traces import Trace, read_traces, write_traces
from trim_graph.evaluation.verdicts import CostModel, summarise_run
from trim_graph.storage.journal import replace_journal
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


def join_ratings(traces: Sequence[Path], out: Path) -> None:
    """Writes the metrics of scorers that have each rated the solutions of a fold.

    Args:
        traces: Of `trim-graph eval-scorer`, one file a fold.
        out: Folder of the metrics; made if it is not there.

    Raises:
        InputError: A file cannot be read, or a step has no score.
    """
    labelled = [solution for file in traces for solution in read_labelled(file)]
    scored = list(read_traces(*traces))
    rated = [
        Rated(_scores(trace), tuple(solution["labels"]))
        for trace, solution in zip(scored, labelled, strict=True)
    ]
    rows = step_rows(
        (solution["question"], solution["steps"], solution["token_probabilities"], one)
        for solution, one in zip(labelled, rated, strict=True)
    )
    threshold = best_threshold(rated)
    metrics = compute_scorer_metrics(rated, 0.5 if threshold is None else threshold)
    out.mkdir(parents=True, exist_ok=True)
    write_traces(out / "labels.traces.jsonl", scored)
    document = {**metrics, "against_token_probability": against_token_probability(rows)}
    write_json(out / "metrics.json", {"threshold": threshold, "sets": {"labels": document}})


def _scores(trace: Trace) -> tuple[float, ...]:
    scores = tuple(step["score"] for step in trace["steps"] if step["score"] is not None)
    if len(scores) < len(trace["steps"]):
        raise InputError(f"solution {trace['id']}: a step has no score: rate it by trim-graph eval-scorer")
    return scores


def join_runs(folders: Sequence[Path], out: Path, *, dataset: Dataset, config: TrimConfig) -> None:
    """Writes a run of all questions from those of the folds.

    Args:
        folders: Runs of `trim-graph eval`, each on the questions of a fold, with the same arms.
        out: Folder of the run; an earlier one is replaced.
        dataset: All questions, which have ids.
        config: Of one of the runs.

    Raises:
        InputError: A run has not ended, or they have other arms, or a question is in none or in two.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.summary is None:
            raise InputError(f"{run.folder} has not ended: run its fold again")
        if [*run.settings["arms"]] != [*runs[0].settings["arms"]]:
            raise InputError(f"{run.folder} and {runs[0].folder} have different arms: take one set for all")
    shutil.rmtree(out, ignore_errors=True)
    places = {question.id or "": index for index, question in enumerate(dataset.questions())}
    runner = ExperimentRunner(out, _run_config(runs, dataset, len(places), config), _no_models(), timed=False)
    for arm in runs[0].settings["arms"]:
        runner.note(arm, _arm_settings(runs, arm))
        journal = journal_of(out, arm)
        journal.parent.mkdir(exist_ok=True)
        replace_journal(journal, runner.run_config.settings, _rows(runs, arm, places))
        runner.take(arm)
    write_rows(out, list(runner.arms))
    warnings = {warning: None for run in runs if run.summary for warning in run.summary["warnings"]}
    command = "python -m trim_graph.examples.text_to_sql.evaluate --stage own_scorer"
    summary = summarise_run(runner, config, CostModel(config.prices.given), list(warnings), command=command)
    write_json(out / SUMMARY, summary)


def _run_config(runs: Sequence[Run], dataset: Dataset, n: int, config: TrimConfig) -> RunConfig:
    first = runs[0].settings["settings"]
    scorers = [run.settings["settings"]["scorer"] for run in runs]
    settings = {**first, "dataset": dataset.identity(), "scorer": scorers}
    assert runs[0].summary is not None
    concurrency, seed = runs[0].summary["concurrency"], runs[0].summary["seed"]
    return RunConfig(dataset, n, 1, seed, concurrency, config.prices, settings)


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
