"""Evaluate a pair of models on defog's text-to-SQL questions, with thresholds and baselines.

    python -m trim_graph.examples.text_to_sql.evaluate --data defog --out runs

Makes the databases, says which gold queries run and how many hours to expect, then runs `trim-graph eval`.
The same command resumes what was interrupted. ``--fold K`` tests on the databases of one fold and gives those
of the others to the baselines that are fitted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trim_graph.errors import TrimError
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.baselines import SHARES
from trim_graph.examples.math.hours import Rates

from .data import FOLDS, Prepared, Row, prepare, write_rows

CONFIG = Path(__file__).parent / "trim.yaml"
GRADER = "trim_graph.examples.text_to_sql.grading:grade"
THRESHOLDS = "0.5,0.6,0.7,0.8,0.9,0.95"
PROMPT, SOLUTION = 700, 120
"""Tokens of a question with its schema and of a solution, roughly, by the tokenizer of Qwen2.5."""


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of defog's files, see README.md")
    parser.add_argument("--out", type=Path, required=True, help="folder for databases, questions and runs")
    parser.add_argument("--config", type=Path, default=CONFIG, help="a configuration of your own")
    parser.add_argument("--small", help="instead of the configuration's model: hub id or folder")
    parser.add_argument("--large", help="likewise")
    parser.add_argument(
        "--run",
        choices=["servers", "engine", "transformers"],
        default="servers",
        help="where --small and --large run: behind vLLM servers, on vLLM or transformers in this process",
    )
    parser.add_argument("--small-url", default="http://localhost:8101", help="of its server")
    parser.add_argument("--large-url", default="http://localhost:8102", help="likewise")
    parser.add_argument("--device", default="cpu", help="of transformers: cpu, cuda, cuda:1")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="test on the databases of this fold")
    parser.add_argument("--policy", action="append", default=[], help="besides the thresholds, as of eval")
    parser.add_argument("--thresholds", default=THRESHOLDS)
    parser.add_argument("-n", type=int, help="questions, the first of the file; default: all")
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--small-rate", type=float, default=30, help="tokens a second, for the hours")
    parser.add_argument("--large-rate", type=float, default=11, help="likewise")
    parser.add_argument("--reading-rate", type=float, default=90, help="likewise")
    parser.add_argument("--estimate", action="store_true", help="end before a model is called")
    given = parser.parse_args(arguments)
    if (given.small is None) != (given.large is None):
        parser.error("give --small and --large, or neither")
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


def hours(given: argparse.Namespace, questions: int, validation: int) -> float:
    """Returns the hours to expect.

    Args:
        given: The command line.
        questions: To test on.
        validation: Run by both models alone, and scored.
    """
    rates = Rates(given.small_rate, given.large_rate, given.reading_rate)
    alone = rates.seconds(SOLUTION, SOLUTION, 2 * PROMPT)
    # Half of the steps by either model; a prompt is read once by each, the rest is in its cache.
    routed = rates.seconds(SOLUTION, SOLUTION / 2, 2 * PROMPT)
    fitted = 2 if given.fold is not None else 0
    arms = (
        len(given.thresholds.split(",")) + len(given.policy) + len(RANDOM_RATES) + (1 + fitted) * len(SHARES)
    )
    return (questions * (alone + arms * routed) + validation * alone) / 3600


def configuration(given: argparse.Namespace) -> Path:
    """Returns the configuration to use; with models of the command line it is written to the folder."""
    if given.small is None:
        own: Path = given.config
        return own
    import yaml

    content = yaml.safe_load(given.config.read_text("utf-8"))
    for writer in ("small", "large"):
        content[writer] = model(given, getattr(given, writer), getattr(given, f"{writer}_url"))
    path = Path(given.out) / "trim.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return path


def model(given: argparse.Namespace, name: str, url: str) -> dict[str, Any]:
    """Returns a model as a configuration names it."""
    place = str(Path(name).resolve()) if Path(name).is_dir() else name
    if given.run == "servers":
        return {"type": "vllm", "model": name, "base_url": url, "read_timeout": 1800, "logprobs": True}
    if given.run == "engine":
        return {"type": "vllm_engine", "model": place, "gpu_memory_utilization": 0.4, "logprobs": True}
    return {"type": "transformers", "model": place, "device": given.device, "logprobs": True}


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
    for policy in given.policy:
        options += ["--policy", policy]
    if fold is None:
        options += ["--baselines", "cascade"]
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
    expected = hours(given, min(given.n or count, count), rest)
    print(
        f"Hours to expect: {expected:.1f}. Assumed: the small model writes {given.small_rate:g} tokens a "
        f"second, the large one {given.large_rate:g}, and {given.reading_rate:g} are read (--small-rate, "
        f"--large-rate, --reading-rate); {PROMPT} tokens a question, {SOLUTION} a solution.",
        flush=True,
    )
    if given.estimate:
        return 0
    from trim_graph.cli.app import app

    options = command(given, configuration(given))
    print(f"\ntrim-graph {shlex.join(options)}", flush=True)
    return int(app(options, prog_name="trim-graph", standalone_mode=False) or 0)


if __name__ == "__main__":
    sys.exit(main())
