"""Evaluate a pair of models on defog's text-to-SQL questions, with thresholds and baselines.

    python -m trim_graph.examples.text_to_sql.evaluate --data defog --out runs

Makes the databases, says which gold queries run and how many hours to expect, runs `trim-graph eval`, and
writes ``RESULTS.md``. The same command resumes what was interrupted. ``--fold K`` tests on the databases of
one fold and gives those of the others to the baselines that are fitted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trim_graph.errors import TrimError
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.baselines import SHARES
from trim_graph.examples import own_pair
from trim_graph.examples.own_pair import Lengths

from .data import FOLDS, Prepared, Row, prepare, write_rows

CONFIG = Path(__file__).parent / "trim.yaml"
GRADER = "trim_graph.examples.text_to_sql.grading:grade"
THRESHOLDS = "0.5,0.6,0.7,0.8,0.9,0.95"
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
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="test on the databases of this fold")
    parser.add_argument("--policy", action="append", default=[], help="besides the thresholds, as of eval")
    parser.add_argument("--thresholds", default=THRESHOLDS)
    parser.add_argument("-n", type=int, help="questions, the first of the file; default: all")
    given = parser.parse_args(arguments)
    own_pair.check(parser, given)
    if given.n is not None and given.n < 1:
        parser.error(f"-n is {given.n}: choose 1 or more")
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


def count_arms(given: argparse.Namespace) -> int:
    """Returns how many arms are run beside the models alone."""
    fitted = 2 if given.fold is not None else 0
    swept = len(given.thresholds.split(",")) + len(given.policy) + len(RANDOM_RATES)
    return swept + fitted * len(SHARES)


def configuration(given: argparse.Namespace) -> Path:
    """Returns the configuration to use; with models of the command line it is written to the folder."""
    own: Path = given.config
    return own if given.small is None else own_pair.write_configuration(given, "trim")


def dataset(path: Path) -> str:
    """Returns the questions of a file as an option names them."""
    mapping = {"type": "file", "path": str(path), "question": "question", "answer": "answer", "id": "id"}
    return json.dumps({**mapping, "grader": GRADER})


def command(given: argparse.Namespace, config: Path) -> list[str]:
    """Returns the arguments of `trim-graph`."""
    fold, out = given.fold, given.out
    name = "questions" if fold is None else f"test-{fold}"
    options = ["eval", "--config", str(config), "--dataset", dataset(out / f"{name}.jsonl")]
    options += ["--out", str(out / ("eval" if fold is None else f"eval-{fold}"))]
    options += ["--sweep", f"threshold:{given.thresholds}", "--concurrency", str(given.concurrency)]
    options += ["--random-rates", "usual", "--yes"]
    for policy in given.policy:
        options += ["--policy", policy]
    if fold is None:
        options += ["--baselines", "cascade,score_cascade"]
    else:
        options += ["--baselines", "all", "--validation", dataset(out / f"train-{fold}.jsonl")]
    if given.n is not None:
        options += ["-n", str(given.n)]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the data, prints the hours, runs the evaluation."""
    given = parsed(arguments)
    try:
        prepared = prepare(given.data, given.out / "databases")
    except TrimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_parts(prepared.rows, given.out)
    print(summarize(prepared))
    tested = [row for row in prepared.rows if given.fold in (None, row["fold"])]
    count, rest = len(tested), len(prepared.rows) - len(tested)
    questions = min(given.n or count, count)
    expected = own_pair.hours(given, LENGTHS, questions=questions, arms=count_arms(given), alone=rest)
    print(f"Hours to expect: {expected:.1f}. {own_pair.assumption(given, LENGTHS)}", flush=True)
    if given.estimate:
        return 0
    from trim_graph.cli.app import app

    options = command(given, configuration(given))
    print(f"\ntrim-graph {shlex.join(options)}", flush=True)
    if code := int(app(options, prog_name="trim-graph", standalone_mode=False) or 0):
        return code
    if given.fold is None:
        from trim_graph.examples.pair_results import write_results

        write_results(given.out, given.out, title="Text to SQL", note=own_pair.made_by(given))
        print(f"written: RESULTS.md, results.json and results.png in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
