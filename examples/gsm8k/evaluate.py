"""Measure a pair of models on GSM8K, with a scorer trained on their own solutions.

    python -m trim_graph.examples.gsm8k.evaluate --data gsm8k --out runs

Prints the hours to expect, then runs `trim-graph eval` with two scorers that need no training, `label`,
`train scorer`, and `eval` with the new scorer, and writes ``RESULTS.md``. Equal calls of all evaluations are
made once (``calls.db``). The same command resumes what was interrupted; ``--stage`` runs some of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError, TrimError
from trim_graph.evaluation.baselines import SHARES
from trim_graph.examples import own_pair
from trim_graph.examples.own_pair import Lengths

CONFIG = Path(__file__).parent / "trim.yaml"
LENGTHS = Lengths(prompt=150, solution=160)
"""Roughly, by the tokenizer of Qwen2.5."""
STAGES = ("token_probability", "judge", "own_scorer", "report")
THRESHOLDS = {
    "token_probability": "0.8,0.85,0.9,0.95",
    "judge": "0.3,0.5,0.7,0.9",
    "own_scorer": "0.2,0.4,0.6,0.8",
}
RANDOM_RATES = "0.2,0.4,0.7"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of gsm8k_train.jsonl, gsm8k_test.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for questions, runs and results")
    own_pair.add_options(parser, CONFIG)
    parser.add_argument("-n", type=int, default=300, help="test questions, the first of the file")
    parser.add_argument("--labelled", type=int, default=400, help="training questions for the scorer")
    parser.add_argument("--validation", type=int, default=300, help="training questions for the query router")
    parser.add_argument("--tuning", choices=["head", "lora", "full"], default="head", help="of the scorer")
    parser.add_argument("--base", help="of the scorer: folder or hub id; default: the small model")
    parser.add_argument(
        "--scorer-url", help="a vLLM server of runs/scorer; default: transformers, in process"
    )
    parser.add_argument("--stage", action="append", choices=STAGES, help="may be repeated; default: all")
    given = parser.parse_args(arguments)
    own_pair.check(parser, given)
    for option in ("n", "labelled", "validation"):
        if getattr(given, option) < 1:
            parser.error(f"--{option} is {getattr(given, option)}: choose 1 or more")
    given.stage = given.stage or list(STAGES)
    return given


def write_questions(data: Path, out: Path, labelled: int, validation: int) -> None:
    """Writes ``train``, ``validation`` and ``test`` from the two files of GSM8K.

    Of the training questions the first are labelled, and the last are for validation.

    Raises:
        InputError: A file is missing, or has too few questions.
    """
    lines = {}
    for part in ("train", "test"):
        file = data / f"gsm8k_{part}.jsonl"
        if not file.is_file():
            raise InputError(f"--data {data}: there is no {file.name} in it; README.md says where to get it")
        lines[part] = file.read_text("utf-8").splitlines(keepends=True)
    if labelled + validation > len(lines["train"]):
        raise InputError(
            f"--labelled {labelled}: {data / 'gsm8k_train.jsonl'} has {len(lines['train'])} questions, and "
            f"{validation} of them are for validation"
        )
    parts = {
        "train": lines["train"][:labelled],
        "validation": lines["train"][-validation:],
        "test": lines["test"],
    }
    for name, rows in parts.items():
        (out / f"{name}.jsonl").write_text("".join(rows), "utf-8")


def dataset(path: Path) -> str:
    """Returns the questions of a file as an option names them."""
    return json.dumps(
        {"type": "file", "path": str(path), "question": "question", "answer": "answer", "grader": "numeric"}
    )


def scorers(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the scorer of each stage, as a configuration names it."""
    folder = str((given.out / "scorer").resolve())
    served = {"type": "vllm_prm", "model": folder, "base_url": given.scorer_url, "read_timeout": 1800}
    here = {"type": "transformers_prm", "model": folder, "device": given.device}
    return {
        "token_probability": {"type": "token_probability"},
        "judge": {"type": "llm_judge", "model": own_pair.content(given)["large"], "scale": "yes_no"},
        "own_scorer": served if given.scorer_url else here,
    }


def commands(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the arguments of each `trim-graph` command, in their order."""
    out = given.out
    cache = str((out / "calls.db").resolve())
    for stage, scorer in scorers(given).items():
        if stage not in given.stage:
            continue
        written = own_pair.write_configuration(given, stage, scorer=scorer, response_cache=cache)
        config = str(written)
        concurrency = ["--concurrency", str(given.concurrency)]
        if stage == "own_scorer":
            labels, base = str(out / "labels.jsonl"), str(own_pair.write_configuration(given, "label"))
            yield ["label", "--config", base, "--dataset", dataset(out / "train.jsonl"), "--out", labels,
                   "--rollouts", "2", "--continuations", "4", *concurrency]  # fmt: skip
            if not (out / "scorer" / "trim_scorer.json").exists():  # written after the weights
                own = ["--base", given.base] if given.base else ["--config", base]
                yield ["train", "scorer", "--labels", labels, *own, "--tuning", given.tuning,
                       "--out", str(out / "scorer")]  # fmt: skip
        baselines = "cascade,score_cascade,router" if stage == "token_probability" else "score_cascade"
        options = ["eval", "--config", config, "--dataset", dataset(out / "test.jsonl"), "-n", str(given.n),
                   "--out", str(out / stage), "--sweep", f"threshold:{THRESHOLDS[stage]}",
                   "--random-rates", RANDOM_RATES, "--baselines", baselines, *concurrency]  # fmt: skip
        if "router" in baselines:
            options += ["--validation", dataset(out / "validation.jsonl")]
        yield options


def count_arms(given: argparse.Namespace) -> int:
    """Returns how many arms call the models beside the models alone; random routing is run once."""
    swept = [THRESHOLDS[stage] for stage in scorers(given) if stage in given.stage]
    return (
        sum(len(thresholds.split(",")) for thresholds in swept) + len(RANDOM_RATES.split(",")) + len(SHARES)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the hours, runs the commands, writes the results."""
    given = parsed(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        write_questions(given.data, given.out, given.labelled, given.validation)
    except TrimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A label takes two solutions and some continuations, about as much as six solutions of the small model.
    alone = given.validation + 3 * given.labelled * ("own_scorer" in given.stage)
    expected = own_pair.hours(given, LENGTHS, questions=given.n, arms=count_arms(given), alone=alone)
    print(f"Hours to expect: {expected:.1f}. {own_pair.assumption(given, LENGTHS)}", flush=True)
    if given.estimate:
        return 0
    from trim_graph.cli.app import app

    for options in commands(given):
        print(f"\ntrim-graph {shlex.join(options)}", flush=True)
        if code := int(app(options, prog_name="trim-graph", standalone_mode=False) or 0):
            return code
    if "report" in given.stage:
        from .results import write_results

        write_results(given.out, given.out)
        print(f"written: RESULTS.md, results.json and results.png in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
