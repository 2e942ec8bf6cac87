"""Measure a pair of models on GSM8K, with a scorer trained on their own solutions.

    python -m trim_graph.examples.gsm8k.evaluate --data gsm8k --out runs

Prints the hours to expect, then runs `trim-graph eval` with three scorers that need no training, `label`,
`train scorer`, `eval` with the new scorer and with policies planned and trained on its scores, and writes
``RESULTS.md``. Equal calls of all evaluations are made once (``calls.db``). The same command resumes what was
interrupted; ``--stage`` runs some of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError
from trim_graph.examples import oracle_judge, own_pair
from trim_graph.examples.own_pair import Lengths
from trim_graph.examples.pair_results import write_results

CONFIG = Path(__file__).parent / "trim.yaml"
LENGTHS = Lengths(prompt=150, solution=310)
"""Roughly, by the tokenizer of Qwen2.5."""
STAGES = (
    "token_probability",
    "group_confidence",
    "judge",
    "own_scorer",
    "policies",
    "scorers",
    "processbench",
    "oracle",
    "report",
)
THRESHOLDS = {
    "token_probability": "0.85,0.9,0.95",
    "group_confidence": "0.7,0.78,0.86",
    "judge": "0.3,0.5,0.7,0.9",
    "own_scorer": "0.83,0.87,0.91,0.95",
}
LEARNED_THRESHOLDS = "0.3,0.5,0.75"
CHOSEN_ON, LOOKS = 64, 8
"""Validation questions on which the learned policy is chosen, and about how often each is run for that."""
COSTS_PER_TOKEN = ("0.02", "0.04", "0.06", "0.09")
"""Of planned policies, where a right answer is worth 100."""
LARGE_TOKEN_PRICE = "0.0005"
"""Lambda of the learned policy, where a right answer is worth 1."""
RANDOM_RATES = "0.3"
ORACLE_N = 100
"""Questions of the judge without error, which takes about twelve solutions of each."""


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
    parser.add_argument(
        "--held-out",
        type=int,
        default=100,
        help="further training questions, on which scorers are compared and policies planned and trained",
    )
    parser.add_argument("--validation", type=int, default=300, help="training questions for the query router")
    parser.add_argument(
        "--processbench", type=Path, help="gsm8k.json of ProcessBench, for first-error F1; default: left out"
    )
    parser.add_argument("--tuning", choices=["head", "lora", "full"], default="head", help="of the scorer")
    parser.add_argument("--base", help="of the scorer: folder or hub id; default: the small model")
    parser.add_argument(
        "--scorer-url", help="a vLLM server of runs/scorer; default: transformers, in process"
    )
    parser.add_argument(
        "--policy-scorer",
        choices=["token_probability", "own_scorer"],
        default="own_scorer",
        help="on whose scores policies are planned and trained",
    )
    parser.add_argument("--stage", action="append", choices=STAGES, help="may be repeated; default: all")
    given = parser.parse_args(arguments)
    own_pair.check(parser, given)
    for option in ("n", "labelled", "held_out", "validation"):
        if getattr(given, option) < 1:
            parser.error(f"--{option.replace('_', '-')} is {getattr(given, option)}: choose 1 or more")
    if given.processbench is None and "processbench" in (given.stage or ()):
        parser.error("--stage processbench: name its file by --processbench")
    given.stage = given.stage or [
        stage for stage in STAGES if stage != "processbench" or given.processbench is not None
    ]
    return given


def write_questions(data: Path, out: Path, labelled: int, held_out: int, validation: int) -> None:
    """Writes ``train``, ``held-out``, ``validation`` and ``test`` from the two files of GSM8K.

    Of the training questions the first are for the scorer, those after them are held out from it, and the
    last are for validation.

    Raises:
        InputError: A file is missing, or has too few questions.
    """
    lines = {}
    for part in ("train", "test"):
        file = data / f"gsm8k_{part}.jsonl"
        if not file.is_file():
            raise InputError(f"--data {data}: there is no {file.name} in it; README.md says where to get it")
        lines[part] = file.read_text("utf-8").splitlines(keepends=True)
    if labelled + held_out + validation > len(lines["train"]):
        raise InputError(
            f"--labelled {labelled}: {data / 'gsm8k_train.jsonl'} has {len(lines['train'])} questions, "
            f"of which {held_out} are held out and {validation} for validation"
        )
    parts = {
        "train": lines["train"][:labelled],
        "held-out": lines["train"][labelled : labelled + held_out],
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
    """Returns the scorer of each stage that has one, as a configuration names it."""
    return {
        "token_probability": {"type": "token_probability"},
        "group_confidence": {"type": "token_probability", "statistic": "lowest_window", "window": 8},
        "judge": {"type": "llm_judge", "model": own_pair.content(given)["large"], "scale": "yes_no"},
        "own_scorer": own_pair.trained_scorer(given, given.out / "scorer"),
    }


def commands(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the arguments of each `trim-graph` command, in their order."""
    for stage in THRESHOLDS:
        if stage in given.stage:
            if stage == "own_scorer":
                yield from _make_scorer(given)
            yield [*_evaluation(given, stage, stage), "--sweep", f"threshold:{THRESHOLDS[stage]}"]
    if {"policies", "scorers"} & set(given.stage):
        yield from _rate_held_out(given)
    if "policies" in given.stage:
        yield from _make_policies(given)
    if "processbench" in given.stage:
        for name in ("judge", "own_scorer"):
            yield ["eval-scorer", str(given.processbench), "--config", str(_config(given, name)),
                   "--out", str(given.out / "processbench" / name), *_concurrency(given)]  # fmt: skip


def _config(given: argparse.Namespace, scorer: str) -> Path:
    """Writes the configuration with this scorer."""
    cache = str((given.out / "calls.db").resolve())
    return own_pair.write_configuration(given, scorer, scorer=scorers(given)[scorer], response_cache=cache)


def _concurrency(given: argparse.Namespace) -> list[str]:
    return ["--concurrency", str(given.concurrency)]


def _evaluation(given: argparse.Namespace, name: str, scorer: str) -> list[str]:
    """Returns an evaluation on the test questions without its policies."""
    known = scorers(given)[scorer]["type"] == "token_probability"
    baselines = "cascade,score_cascade,router" if known else "score_cascade,router"
    return ["eval", "--config", str(_config(given, scorer)), "--dataset", dataset(given.out / "test.jsonl"),
            "-n", str(given.n), "--out", str(given.out / name), "--random-rates", RANDOM_RATES,
            "--baselines", baselines, "--yes", *_concurrency(given),
            "--validation", dataset(given.out / "validation.jsonl")]  # fmt: skip


def _label(given: argparse.Namespace, questions: str, labels: str, *more: str) -> list[str]:
    """Returns the command that labels solutions of training questions."""
    config = str(own_pair.write_configuration(given, "label"))
    return ["label", "--config", config, "--dataset", dataset(given.out / f"{questions}.jsonl"),
            "--out", str(given.out / f"{labels}.jsonl"), "--rollouts", "4", "--continuations", "4",
            *more, *_concurrency(given)]  # fmt: skip


def _make_scorer(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the commands from training questions to a scorer."""
    yield _label(given, "train", "labels")
    if not (given.out / "scorer" / "trim_scorer.json").exists():  # written after the weights
        own = ["--base", given.base] if given.base else ["--config", str(given.out / "label.yaml")]
        # Its test are the held-out questions, so none of these is needed for that.
        yield ["train", "scorer", "--labels", str(given.out / "labels.jsonl"), *own, "--test", "0",
               "--tuning", given.tuning, "--out", str(given.out / "scorer")]  # fmt: skip


def _rate_held_out(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the commands that score labelled solutions of questions that no scorer has learned from."""
    # The large model's solutions say how often its steps are right, which a plan needs.
    yield _label(given, "held-out", "held-out-labels", "--generator", "small", "--generator", "large")
    every = ("token_probability", "judge", "own_scorer")
    for name in every if "scorers" in given.stage else (given.policy_scorer,):
        yield ["eval-scorer", str(given.out / "held-out-labels.jsonl"), "--config", str(_config(given, name)),
               "--out", str(given.out / "rated" / name), *_concurrency(given)]  # fmt: skip


def _make_policies(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the commands that plan and train policies on a scorer's scores, and test them."""
    scorer = given.policy_scorer
    traces = str(given.out / "rated" / scorer / "held-out-labels.traces.jsonl")
    folder, config = given.out / f"policies-{scorer}", str(_config(given, scorer))
    folder.mkdir(exist_ok=True)
    costs = [part for cost in COSTS_PER_TOKEN for part in ("--cost-per-token", cost)]
    yield ["plan", traces, "--out", str(folder / "planned.json"), *costs]
    learned = folder / f"aggregate-{LARGE_TOKEN_PRICE}.json"
    if not learned.exists():
        yield ["train", "aggregate", "--config", config, "--dataset", dataset(given.out / "held-out.jsonl"),
               "--validation-dataset", dataset(given.out / "validation.jsonl"), "-n", str(given.held_out),
               "--validation", str(min(given.validation, CHOSEN_ON)), "--simulator", traces,
               "--steps", "0", "--rounds", "1", "--lambda", LARGE_TOKEN_PRICE, "--out", str(folder),
               "--rollouts", str(given.out / "rollouts"), *_concurrency(given)]  # fmt: skip
    planned = [part for file in planned_files(folder) for part in ("--policy", str(file))]
    yield [*_evaluation(given, f"policies_on_{scorer}", scorer), *planned,
           "--sweep", f"{learned}:{LEARNED_THRESHOLDS}"]  # fmt: skip


def oracle(given: argparse.Namespace) -> list[str]:
    """Returns the arguments of `oracle_judge`, beside the first scorer's run."""
    return ["--config", str(_config(given, "token_probability")),
            "--dataset", dataset(given.out / "test.jsonl"), "-n", str(min(ORACLE_N, given.n)),
            "--beside", str(given.out / "token_probability"), "--out", str(given.out / "oracle"),
            *_concurrency(given)]  # fmt: skip


def planned_files(folder: Path) -> list[Path]:
    """Returns the files that `plan` writes, one for each cost of a token."""
    return [folder / f"planned-{cost}.json" for cost in COSTS_PER_TOKEN]


def count_arms(given: argparse.Namespace) -> int:
    """Returns how many arms call the models beside the models alone; random routing is run once."""
    arms = sum(len(swept.split(",")) for stage, swept in THRESHOLDS.items() if stage in given.stage)
    if "policies" in given.stage:
        arms += len(COSTS_PER_TOKEN) + len(LEARNED_THRESHOLDS.split(","))
    return arms + len(RANDOM_RATES.split(","))


def expected_hours(given: argparse.Namespace) -> float:
    """Returns the hours to expect."""
    # A label takes four solutions and some continuations, about as much as eight of the small model's.
    drafted = 8 * given.labelled * ("own_scorer" in given.stage)
    drafted += 8 * given.held_out * bool({"policies", "scorers"} & set(given.stage))
    drafted += 12 * min(ORACLE_N, given.n) * ("oracle" in given.stage)
    routed, alone = given.n * count_arms(given), given.n + given.validation
    if "policies" in given.stage:
        routed += given.held_out + LOOKS * min(given.validation, CHOSEN_ON)
    return own_pair.hours(given, LENGTHS, routed=routed, alone=alone, drafted=drafted)


def work(given: argparse.Namespace) -> Iterator[own_pair.Work]:
    """Writes the questions, prints the hours, then yields what is to be done."""
    given.out.mkdir(parents=True, exist_ok=True)
    write_questions(given.data, given.out, given.labelled, given.held_out, given.validation)
    print(f"Hours to expect: {expected_hours(given):.1f}. {own_pair.assumption(given, LENGTHS)}", flush=True)
    if given.estimate:
        return
    yield from commands(given)
    if "oracle" in given.stage:
        yield lambda: oracle_judge.measure(oracle_judge.parsed(oracle(given)))
    if "report" in given.stage:
        yield lambda: report(given)


def report(given: argparse.Namespace) -> None:
    """Writes the page of results."""
    write_results(given.out, given.out, title="GSM8K", note=own_pair.made_by(given))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the hours, runs the commands, writes the results."""
    return own_pair.run(work(parsed(arguments)))


if __name__ == "__main__":
    sys.exit(main())
