"""Evaluate a pair of models on defog's text-to-SQL questions, with a scorer trained on their own solutions.

    python -m trim_graph.examples.text_to_sql.evaluate --data defog --out runs

Makes the databases, says which gold queries run and how many hours to expect, then runs `trim-graph eval`
with token probability, `label`, and for each fold of databases `train scorer`, `eval-scorer` and `eval` with
the new scorer, and writes ``RESULTS.md``. Equal calls of all evaluations are made once (``calls.db``). The
same command resumes what was interrupted; ``--stage`` runs some of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trim_graph.errors import TrimError
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.examples import own_pair
from trim_graph.examples.own_pair import Lengths

from .data import FOLDS, Prepared, Row, prepare, write_rows

CONFIG = Path(__file__).parent / "trim.yaml"
GRADER = "trim_graph.examples.text_to_sql.grading:grade"
STAGES = ("token_probability", "scorers", "own_scorer", "report")
THRESHOLDS = "0.5,0.6,0.7,0.8,0.9,0.95"
OWN_THRESHOLDS = "0.3,0.5,0.7,0.85"
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
    parser.add_argument("--random-rates", default="usual", help="as of eval")
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
        help="of the stages scorers and own_scorer; may be repeated; default: all",
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


def configuration(given: argparse.Namespace, fold: int | None = None) -> Path:
    """Writes the configuration with the scorer of a fold, or with token probability; returns its path."""
    cache = str((given.out / "calls.db").resolve())
    if fold is None:
        scorer: dict[str, Any] = {"type": "token_probability"}
        return own_pair.write_configuration(given, "token_probability", scorer=scorer, response_cache=cache)
    scorer = {"type": "transformers_prm", "model": str(scorer_folder(given, fold)), "device": given.device}
    if given.scorer_url:
        scorer |= {"type": "vllm_prm", "base_url": given.scorer_url, "read_timeout": 1800}
        del scorer["device"]
    return own_pair.write_configuration(given, f"own_scorer-{fold}", scorer=scorer, response_cache=cache)


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


def make_scorer(given: argparse.Namespace, fold: int) -> Iterator[list[str]]:
    """Yields the commands that train the scorer of a fold and rate solutions of the questions it tests."""
    labels, folder = given.out / "folds", scorer_folder(given, fold)
    if not (folder / "trim_scorer.json").exists():  # written after the weights
        base = ["--base", given.base] if given.base else ["--config", str(given.out / "label.yaml")]
        yield ["train", "scorer", "--labels", str(labels / f"labels-{fold}.jsonl"), *base, "--test", "0",
               "--tuning", given.tuning, "--out", str(folder)]  # fmt: skip
    scorer = json.dumps({"type": "transformers_prm", "model": str(folder), "device": given.device})
    held_out = labels / f"held-out-{fold}.jsonl"
    if held_out.stat().st_size:
        yield ["eval-scorer", str(held_out), "--scorer", scorer, "--out", str(labels), *_concurrency(given)]


def evaluate_fold(given: argparse.Namespace, fold: int) -> list[str]:
    """Returns the arguments of the evaluation of a fold's scorer on the questions that it tests."""
    return ["eval", "--config", str(configuration(given, fold)),
            "--dataset", dataset(given.out / f"test-{fold}.jsonl"), "--out", str(_run_of(given, fold)),
            "--sweep", f"threshold:{given.own_thresholds}", "--baselines", "score_cascade,router", "--yes",
            "--validation", dataset(given.out / f"train-{fold}.jsonl"), *_concurrency(given)]  # fmt: skip


def _run_of(given: argparse.Namespace, fold: int) -> Path:
    return Path(given.out) / "folds" / f"own_scorer-{fold}"


def steps(given: argparse.Namespace, rows: Sequence[Row]) -> Iterator[list[str] | Callable[[], None]]:
    """Yields what is to be done, in order: arguments of `trim-graph`, or work of this example's own."""
    if "token_probability" in given.stage:
        yield token_probability(given)
    if "scorers" in given.stage:
        yield label(given)
        yield lambda: _split(given, rows)
        for fold in given.fold:
            yield from make_scorer(given, fold)
        yield lambda: _join_ratings(given)
    if "own_scorer" in given.stage:
        for fold in given.fold:
            yield evaluate_fold(given, fold)
        yield lambda: _join_runs(given)
    if "report" in given.stage:
        yield lambda: _report(given)


def _split(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    from .folds import split_labels

    (given.out / "folds").mkdir(exist_ok=True)
    tested = {fold: {row["question"] for row in rows if row["fold"] == fold} for fold in range(FOLDS)}
    split_labels(given.out / "labels.jsonl", tested, given.out / "folds")


def _join_ratings(given: argparse.Namespace) -> None:
    from .folds import join_ratings

    labels = [given.out / "folds" / f"held-out-{fold}.jsonl" for fold in range(FOLDS)]
    wanted = [file.with_suffix(".traces.jsonl") for file in labels if file.stat().st_size]
    if left := [file.name for file in wanted if not file.exists()]:
        print(f"not rated yet: {', '.join(left)}; the ratings are joined when all folds are done")
        return
    join_ratings(wanted, given.out / "rated" / "own_scorer")


def _join_runs(given: argparse.Namespace) -> None:
    from trim_graph.config import load_config
    from trim_graph.evaluation.datasets import make_dataset

    from .folds import join_runs

    folders = [_run_of(given, fold) for fold in range(FOLDS)]
    if left := [folder.name for folder in folders if not (folder / "summary.json").exists()]:
        print(f"not run yet: {', '.join(left)}; the runs are joined when all folds are done")
        return
    questions = make_dataset(json.loads(dataset(given.out / "questions.jsonl")))
    config = load_config(configuration(given, given.fold[0]))
    join_runs(folders, given.out / "own_scorer", dataset=questions, config=config)


def _report(given: argparse.Namespace) -> None:
    from trim_graph.examples.pair_results import write_results

    write_results(given.out, given.out, title="Text to SQL", note=own_pair.made_by(given))
    print(f"written: RESULTS.md, results.json and results.png in {given.out}")


def count_arms(given: argparse.Namespace) -> int:
    """Returns how many arms call the models beside the models alone."""
    arms = 0
    if "token_probability" in given.stage:
        rates = len(RANDOM_RATES) if given.random_rates == "usual" else len(given.random_rates.split(","))
        arms += len(given.thresholds.split(",")) + len(given.policy) + rates
    if "own_scorer" in given.stage:
        arms += len(given.own_thresholds.split(","))
    return arms


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the data, prints the hours, runs the commands, writes the results."""
    given = parsed(arguments)
    try:
        prepared = prepare(given.data, given.out / "databases")
    except TrimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_parts(prepared.rows, given.out)
    print(summarize(prepared))
    # A label takes its solution and about as much in continuations.
    labelled = 2 * given.rollouts * len(prepared.rows) * ("scorers" in given.stage)
    questions, arms = len(prepared.rows), count_arms(given)
    expected = own_pair.hours(given, LENGTHS, questions=questions, arms=arms, alone=labelled)
    print(f"Hours to expect: {expected:.1f}. {own_pair.assumption(given, LENGTHS)}", flush=True)
    if given.estimate:
        return 0
    from trim_graph.cli.app import app

    for step in steps(given, prepared.rows):
        if callable(step):
            step()
            continue
        print(f"\ntrim-graph {shlex.join(step)}", flush=True)
        if code := int(app(step, prog_name="trim-graph", standalone_mode=False) or 0):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
