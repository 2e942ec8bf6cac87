"""Evaluate a pair of models on defog's text-to-SQL questions, with a scorer trained on their own solutions.

    python -m trim_graph.examples.text_to_sql.evaluate --data defog --out runs

Makes the databases, says which gold queries run and how many hours to expect, then runs `trim-graph eval`
with token probability, `label`, and for each fold of databases `train scorer`, `eval-scorer` and `eval` with
the new scorer, and writes ``RESULTS.md``. Equal calls of all evaluations are made once (``calls.db``). The
same command resumes what was interrupted; ``--stage`` runs some of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trim_graph.cli.eval_scorer import verdict
from trim_graph.config import load_config
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.examples import own_pair
from trim_graph.examples.own_pair import Lengths
from trim_graph.examples.pair_results import write_results

from .data import FOLDS, Prepared, Row, prepare, write_rows
from .folds import is_complete, join_ratings, join_runs, split_labels

CONFIG = Path(__file__).parent / "trim.yaml"
GRADER = "trim_graph.examples.text_to_sql.grading:grade"
STAGES = ("token_probability", "train_scorers", "own_scorer", "report")
THRESHOLDS = "0.82,0.86,0.9,0.93"
OWN_THRESHOLDS = "0.5,0.65,0.8"
RATES = "0.2,0.4"
"""Of random routing."""
LENGTHS = Lengths(prompt=600, solution=80)
"""Roughly, by the tokenizer of Qwen2.5; the question has its schema with it."""


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of defog's files, see README.md")
    parser.add_argument("--out", type=Path, required=True, help="folder for databases, questions and runs")
    own_pair.add_options(parser, CONFIG)
    parser.add_argument("--policy", action="append", default=[], help="besides the thresholds, as of eval")
    parser.add_argument("--thresholds", default=THRESHOLDS, help="on token probability")
    parser.add_argument("--own-thresholds", default=OWN_THRESHOLDS, help="on the scorers of your own")
    parser.add_argument("--random-rates", default=RATES, help="as of eval")
    parser.add_argument("--rollouts", type=int, default=16, help="solutions of each question to be labelled")
    parser.add_argument("--tuning", choices=["head", "lora", "full"], default="head", help="of the scorers")
    parser.add_argument("--base", help="of the scorers: folder or hub id; default: the small model")
    parser.add_argument(
        "--scorer-url",
        help="a vLLM server of runs/folds/scorer-K, for one --fold K; default: transformers, in process",
    )
    parser.add_argument(
        "--fold",
        type=int,
        action="append",
        choices=range(FOLDS),
        help="of the stages train_scorers and own_scorer; may be repeated; default: all",
    )
    parser.add_argument("--stage", action="append", choices=STAGES, help="may be repeated; default: all")
    given = parser.parse_args(arguments)
    own_pair.check(parser, given)
    if given.rollouts < 1:
        parser.error(f"--rollouts is {given.rollouts}: choose 1 or more")
    given.fold = given.fold or list(range(FOLDS))
    if given.scorer_url and len(given.fold) > 1:
        parser.error("--scorer-url is of the scorer of one fold: name it by --fold")
    given.stage = given.stage or list(STAGES)
    return given


def summarize(prepared: Prepared) -> str:
    """Says which questions can be graded."""
    count = len(prepared.rows)
    lines = [f"{count} of {count + len(prepared.left_out)} questions have a gold query that gives rows."]
    lines += [f"  left out: {id}: {reason}" for id, reason in prepared.left_out.items()]
    return "\n".join(lines)


def write_parts(rows: Sequence[Row], out: Path) -> None:
    """Writes all questions, and of each fold those to test on and those to train on."""
    write_rows(rows, out / "questions.jsonl")
    for fold in range(FOLDS):
        write_rows([row for row in rows if row["fold"] == fold], out / f"test-{fold}.jsonl")
        write_rows([row for row in rows if row["fold"] != fold], out / f"train-{fold}.jsonl")


def dataset(path: Path) -> str:
    """Returns the questions of a file as an option names them."""
    mapping = {"type": "file", "path": str(path), "question": "question", "answer": "answer", "id": "id"}
    return json.dumps({**mapping, "grader": GRADER})


def scorer_folder(given: argparse.Namespace, fold: int) -> Path:
    """Returns where the scorer of a fold lies."""
    return Path(given.out).resolve() / "folds" / f"scorer-{fold}"


def scorer(given: argparse.Namespace, fold: int) -> dict[str, Any]:
    """Returns the scorer of a fold as a configuration names it."""
    return own_pair.trained_scorer(given, scorer_folder(given, fold))


def configuration(given: argparse.Namespace, fold: int | None = None) -> Path:
    """Writes the configuration with the scorer of a fold, or with token probability; returns its path."""
    own = {"type": "token_probability"} if fold is None else scorer(given, fold)
    name = "token_probability" if fold is None else f"own_scorer-{fold}"
    cache = str((given.out / "calls.db").resolve())
    return own_pair.write_configuration(given, name, scorer=own, response_cache=cache)


def token_probability(given: argparse.Namespace) -> list[str]:
    """Returns the arguments of the evaluation of thresholds on token probability, with ``--policy``."""
    policies = [part for policy in given.policy for part in ("--policy", policy)]
    questions = dataset(given.out / "questions.jsonl")
    return ["eval", "--config", str(configuration(given)), "--dataset", questions, "--yes",
            "--out", str(given.out / "token_probability"), "--sweep", f"threshold:{given.thresholds}",
            *policies, "--random-rates", given.random_rates, "--baselines", "cascade,score_cascade",
            *_concurrency(given)]  # fmt: skip


def _concurrency(given: argparse.Namespace) -> list[str]:
    return ["--concurrency", str(given.concurrency)]


def label(given: argparse.Namespace) -> list[str]:
    """Returns the arguments that label solutions of all questions."""
    config = str(own_pair.write_configuration(given, "label"))
    return ["label", "--config", config, "--dataset", dataset(given.out / "questions.jsonl"),
            "--out", str(given.out / "labels.jsonl"), "--rollouts", str(given.rollouts),
            "--continuations", "4", *_concurrency(given)]  # fmt: skip


def train_scorer(given: argparse.Namespace, fold: int) -> Iterator[list[str]]:
    """Yields the command that trains the scorer of a fold, unless it is trained.

    Raises:
        SettingsError: It was trained on other labels, or with another base or tuning.
    """
    labels, folder = given.out / "folds" / f"labels-{fold}.jsonl", scorer_folder(given, fold)
    base = str(given.base or own_pair.content(given)["small"].get("model"))
    digest = hashlib.sha256(labels.read_bytes()).hexdigest()
    wanted, record = {"labels": digest, "base": base, "tuning": given.tuning}, folder.with_suffix(".json")
    if _is_trained(folder):
        if not record.exists() or json.loads(record.read_text("utf-8")) != wanted:
            raise SettingsError(
                f"{folder} was trained on other labels, or with another --base or --tuning: remove "
                f"{folder.parent}, or choose another --out"
            )
        return
    record.write_text(json.dumps(wanted) + "\n", "utf-8")
    own = ["--base", given.base] if given.base else ["--config", str(given.out / "label.yaml")]
    yield ["train", "scorer", "--labels", str(labels), *own, "--test", "0", "--tuning", given.tuning,
           "--out", str(folder)]  # fmt: skip


def _is_trained(folder: Path) -> bool:
    return (folder / "trim_scorer.json").exists()  # written after the weights


def rate_fold(given: argparse.Namespace, fold: int) -> list[str]:
    """Returns the arguments that have the scorer of a fold rate labelled solutions of its questions."""
    solutions, own = given.out / "folds" / f"held-out-{fold}.jsonl", json.dumps(scorer(given, fold))
    folder = solutions.with_name(f"rated-{fold}")
    return ["eval-scorer", str(solutions), "--scorer", own, "--out", str(folder), *_concurrency(given)]


def evaluate_fold(given: argparse.Namespace, fold: int) -> list[str]:
    """Returns the arguments of the evaluation of a fold's scorer on the questions that it tests.

    Raises:
        SettingsError: The scorer is not trained.
    """
    if not _is_trained(scorer_folder(given, fold)):
        raise SettingsError(f"{scorer_folder(given, fold)} is not trained: --stage train_scorers trains it")
    return ["eval", "--config", str(configuration(given, fold)),
            "--dataset", dataset(given.out / f"test-{fold}.jsonl"), "--out", str(run_of(given, fold)),
            "--sweep", f"threshold:{given.own_thresholds}", "--baselines", "score_cascade,router", "--yes",
            "--validation", dataset(given.out / f"train-{fold}.jsonl"), *_concurrency(given)]  # fmt: skip


def run_of(given: argparse.Namespace, fold: int) -> Path:
    """Returns the folder of the evaluation of a fold's scorer."""
    return Path(given.out) / "folds" / f"own_scorer-{fold}"


def expected_hours(given: argparse.Namespace, rows: Sequence[Row]) -> float:
    """Returns the hours to expect; what the folds need of the models alone is in the cache of responses."""
    count, alone, routed = len(rows), 0, 0
    if "token_probability" in given.stage:
        rates = {"usual": len(RANDOM_RATES), "none": 0}.get(
            given.random_rates, given.random_rates.count(",") + 1
        )
        alone = count
        routed += count * (given.thresholds.count(",") + 1 + len(given.policy) + rates)
    if "own_scorer" in given.stage:
        alone = count
        tested = sum(row["fold"] in given.fold for row in rows)
        routed += tested * (given.own_thresholds.count(",") + 1)
    # A label takes its solution and about as much in continuations.
    drafted = 2 * given.rollouts * count * ("train_scorers" in given.stage)
    return own_pair.hours(given, LENGTHS, routed=routed, alone=alone, drafted=drafted)


def work(given: argparse.Namespace) -> Iterator[own_pair.Work]:
    """Prepares the data, prints the hours, then yields what is to be done.

    Raises:
        TrimError: The data or the configuration cannot be used, or a stage lacks what another one makes.
    """
    own_pair.content(given)
    prepared = prepare(given.data, given.out / "databases")
    rows = prepared.rows
    write_parts(rows, given.out)
    print(summarize(prepared))
    if {"train_scorers", "own_scorer"} & {*given.stage} and len({row["fold"] for row in rows}) < FOLDS:
        raise InputError(f"{given.data} has questions on fewer than {FOLDS} databases, one for each fold")
    expected = expected_hours(given, rows)
    print(f"Hours to expect: {expected:.1f}. {own_pair.assumption(given, LENGTHS)}", flush=True)
    if given.estimate:
        return
    if "token_probability" in given.stage:
        yield token_probability(given)
    if "train_scorers" in given.stage:
        yield from _train_scorers(given, rows)
    if "own_scorer" in given.stage:
        for fold in given.fold:
            yield evaluate_fold(given, fold)
        yield lambda: _join_runs(given)
    if "report" in given.stage:
        yield lambda: _report(given)


def _train_scorers(given: argparse.Namespace, rows: Sequence[Row]) -> Iterator[own_pair.Work]:
    folder, labels = given.out / "folds", given.out / "labels.jsonl"
    yield label(given)
    folder.mkdir(exist_ok=True)
    tested = {fold: {row["question"] for row in rows if row["fold"] == fold} for fold in range(FOLDS)}
    split_labels(labels, tested, folder)
    for fold in given.fold:
        yield from train_scorer(given, fold)
        if (folder / f"held-out-{fold}.jsonl").stat().st_size:
            yield rate_fold(given, fold)
    yield ["eval-scorer", str(labels), "--scorer", json.dumps({"type": "token_probability"}),
           "--out", str(given.out / "rated" / "token_probability"), *_concurrency(given)]  # fmt: skip
    yield lambda: _join_ratings(given)


def _join_ratings(given: argparse.Namespace) -> None:
    folder, rated = given.out / "folds", dict[Path, Path]()
    for fold in range(FOLDS):
        solutions = folder / f"held-out-{fold}.jsonl"
        if solutions.stat().st_size:
            rated[solutions] = folder / f"rated-{fold}" / f"held-out-{fold}.traces.jsonl"
    if left := [traces.parent.name for traces in rated.values() if not traces.exists()]:
        print(f"not rated yet: {', '.join(left)}; the ratings are joined when all folds are done")
        return
    compared = join_ratings(rated, given.out / "rated" / "own_scorer")
    print(verdict(compared))


def _join_runs(given: argparse.Namespace) -> None:
    folders = [run_of(given, fold) for fold in range(FOLDS)]
    if left := [folder.name for folder in folders if not is_complete(folder)]:
        print(f"not run yet: {', '.join(left)}; the runs are joined when all folds are done")
        return
    questions = make_dataset(json.loads(dataset(given.out / "questions.jsonl")))
    config = load_config(configuration(given, given.fold[0]))
    join_runs(folders, given.out / "own_scorer", dataset=questions, config=config)


def _report(given: argparse.Namespace) -> None:
    write_results(given.out, given.out, title="Text to SQL", note=own_pair.made_by(given))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the data, prints the hours, runs the commands, writes the results."""
    return own_pair.run(work(parsed(arguments)))


if __name__ == "__main__":
    sys.exit(main())
