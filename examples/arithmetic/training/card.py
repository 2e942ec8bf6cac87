"""The model card of the example models, written from measured metrics."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

_HEAD = """# Small, large and process reward model of the arithmetic world

Three transformers trained from scratch on synthetic multi-step arithmetic, to show step-level routing at work
in seconds and to give every test real models. They are good for nothing else.

| model | architecture | trained on |
|---|---|---|
| `small` | Qwen2, 64 wide, 2 layers | chains, few word problems; stopped early |
| `large` | Qwen2, 96 wide, 4 layers | chains and word problems, at last in longer conversations |
| `prm` | Qwen2.5-Math-PRM layout: `large` widened, two layers on top | exact labels of solutions of both |
| `prm_early` | the same after a tenth of its training | for the study of a worse judge |

Both scorers are stored in float16 and computed in float32.
All use one byte-level BPE tokenizer (ChatML; numbers digit by digit). A score is the probability that a step
is right *given the steps before it*: carrying on correctly from an earlier mistake is right.
Licence: MIT, as the package.

## What they solve

Problems as their generator draws them (`chains.py`, `words.py`), and few others. A chain has 4 to 12 steps,
in the phrases of the generator, and starts at 11 to 99; each result keeps its last two digits. Below 13 the
only operation is to add: other operations on a small value were never trained on, nor operands out of these
ranges, and the large model fails at them ("0 - 1 = 1").

| operation | operand | value before it |
|---|---|---|
| add | 2 to 69 | any |
| subtract | 1 to the value | 13 or more |
| multiply by | 3 to 9 | 13 or more |
| remainder after dividing by | 3 to 12 | 13 or more |
| larger, smaller of it and | 5 to 95 | 13 or more |
| double, add its digits | none | 13 or more |
"""


def write_card(path: Path, metrics: dict[str, Any], *, n: int, seed: int, seconds: dict[str, int]) -> None:
    """Writes the card.

    Args:
        path: The file.
        metrics: By model and split, as `train.measure` returns them.
        n: Test problems a split.
        seed: Seed of the training.
        seconds: Wall-clock seconds of each training of this run; empty if it only measured.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        _HEAD,
        "## Figures",
        "",
        f"Greedy decoding on {n} test problems a split, never trained on; measured {today} by "
        f"`python -m trim_graph.examples.arithmetic.training.train --only measure`, "
        f"{platform.machine()}, {os.cpu_count()} cores, seed {seed}.",
        "",
        "| split | small right | large right | small, steps right | large, steps right |",
        "|---|---|---|---|---|",
    ]
    for split in metrics["small"]:
        small, large = metrics["small"][split], metrics["large"][split]
        cells = (small["accuracy"], large["accuracy"], small["step_accuracy"], large["step_accuracy"])
        lines.append(f"| {split} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
    lines += [
        "",
        "Steps are counted up to the first wrong one of a solution.",
        "",
        'AUC for spotting a wrong step in the small model\'s solutions; "within" compares only steps of the '
        "same kind of operation, so that knowing which kinds are hard gains nothing.",
        "",
        "| split | steps | wrong | prm AUC | prm AUC within | prm_early AUC | prm_early AUC within |",
        "|---|---|---|---|---|---|---|",
    ]
    for split in metrics["prm"]:
        prm, early = metrics["prm"][split], metrics["prm_early"][split]
        aucs = (prm["auc"], prm["auc_within_kind"], early["auc"], early["auc_within_kind"])
        lines.append(
            f"| {split} | {prm['steps']} | {100 * prm['wrong_share']:.1f} % | "
            + " | ".join(f"{auc:.4f}" for auc in aucs)
            + " |"
        )
    if seconds:
        spent = ", ".join(f"{name} {value} s" for name, value in seconds.items())
        lines += ["", f"Training took: {spent}."]
    path.write_text("\n".join(lines) + "\n", "utf-8")
