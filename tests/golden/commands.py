"""Commands on the models that are shipped, with seeds and a handful of questions, and what they write."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

from tests.golden.normal import encode
from trim_graph.cli import main
from trim_graph.examples.arithmetic import WEIGHTS

VARYING = frozenset(
    {
        "seconds",
        "seconds_median",
        "seconds_per_token",
        "seconds_p95",
        "first_step_seconds",
        "first_step_median",
        "first_step_p95",
        "date",
        "machine",
        "versions",
        "sha256",
    }
)
"""Keys whose values are measured, or depend on the machine; they become ``<KEY>``."""
CHAIN = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)
LINES = 3
"""Of a JSONL file so many are recorded, and how many there are."""
ASKING = """
small: {type: example}
large: {type: example}
scorer: {type: example}
policy: {type: threshold, t: 0.9}
budget: {large_calls: 1, on_exhausted: ask}
prices: {large: {input: 0.5, output: 1.5}}
settings: {max_steps: 12}
checkpoint: sqlite:runs.db
"""
CONFIDENT = """
small: {type: example, logprobs: true}
large: {type: example, logprobs: true}
scorer: {type: example}
policy: {type: threshold, t: 0.5}
prices: {large: {input: 0.5, output: 1.5}, small: {input: 0.05, output: 0.15}, scorer: {input: 0}}
"""


class Command(NamedTuple):
    """One command.

    Attributes:
        line: What is typed behind ``trim-graph``.
        files: What it writes that is recorded.
        prints: Whether what it prints is recorded: not where measured times are in its tables.
    """

    line: str
    files: tuple[str, ...] = ()
    prints: bool = True


STEP_MODEL = WEIGHTS.parent / "policies" / "pomdp-step-model.json"
PLAN = "--cost-per-token 0.1 --belief-step 0.1 --simulate 300"
COMMANDS = {
    "solve": Command(f"solve '{CHAIN}' --json"),
    "solve, as text": Command(f"solve '{CHAIN}' --policy '{{type: random_rate, rate: 1}}' --large-calls 2"),
    "solve, asks": Command(f"solve '{CHAIN}' --config asking.yaml --thread a --json"),
    "solve, answered": Command(
        "solve --config asking.yaml --thread a --resume --answer '{continue_with: small}' --json"
    ),
    "solve, wrong policy": Command(f"solve '{CHAIN}' --policy nonsense"),
    "demo": Command("demo -n 2 --concurrency 1 --json demo.json", ("demo.json",), prints=False),
    "eval": Command(
        "eval --dataset arithmetic:words --out eval -n 2 --concurrency 1 --config confident.yaml "
        "--policy '{type: threshold, t: 0.5}' --sweep threshold:0.9 --random-rates usual "
        "--baselines prm,cascade,entropy",
        ("eval/summary.json", "eval/settings.json", "eval/rows.parquet"),
        prints=False,
    ),
    "collect": Command(
        "collect --dataset arithmetic:hard --out traces.jsonl -n 9 --concurrency 1 --label-steps "
        "--policy '{type: random_rate, rate: 0.3}'",
        ("traces.jsonl",),
    ),
    "plan": Command(f"plan '{STEP_MODEL}' -o plan.json {PLAN}", ("plan.json", "plan.safetensors")),
    "plan from traces": Command(
        f"plan traces.jsonl -o own.json --bins 3 --model-out model.json {PLAN}",
        ("own.json", "own.safetensors", "model.json"),
    ),
}


def record(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Runs the commands in one folder, in order, and returns the records of those that are wanted.

    Some read what earlier ones have written, so all run up to the last one that is wanted.
    """
    names = list(COMMANDS)
    last = max((index for index, name in enumerate(names) if wanted(name)), default=-1)
    with _folder():
        records = {name: _run(COMMANDS[name]) for name in names[: last + 1]}
    return {name: one for name, one in records.items() if wanted(name)}


@contextmanager
def _folder() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # or sums depend on the number of cores
    try:
        with TemporaryDirectory() as folder, chdir(folder), mock.patch.dict(os.environ, {"COLUMNS": "120"}):
            Path("asking.yaml").write_text(ASKING, "utf-8")
            Path("confident.yaml").write_text(CONFIDENT, "utf-8")
            yield
    finally:
        torch.set_num_threads(threads)


def _run(command: Command) -> dict[str, Any]:
    printed, complained = io.StringIO(), io.StringIO()
    code: Any = 0
    arguments = ["trim-graph", *shlex.split(command.line)]
    with mock.patch.object(sys, "argv", arguments), redirect_stdout(printed), redirect_stderr(complained):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    found: dict[str, Any] = {"exit": code or 0}
    if command.prints:
        found["stdout"] = _read_json(printed.getvalue())
    if code:
        found["stderr"] = complained.getvalue()
    found |= {name: _read(Path(name)) for name in command.files if Path(name).exists()}
    return encode(found, VARYING)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.splitlines()


def _read(file: Path) -> Any:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(file).to_pylist()
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {
            name: {"shape": array.shape, "type": str(array.dtype), "sum": float(array.sum(dtype="float64"))}
            for name, array in load_file(file).items()
        }
    text = file.read_text("utf-8")
    if file.suffix == ".jsonl":
        lines = text.splitlines()
        return {"lines": len(lines), "first": [json.loads(line) for line in lines[:LINES]]}
    return json.loads(text)
