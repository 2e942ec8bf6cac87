"""Runs MATH-500 and AIME with Qwen2.5-1.5B/7B-Instruct and Qwen2.5-Math-PRM-7B, all policies and baselines.

    python -m trim_graph.examples.math.evaluate --out runs

Prints the GPU hours to expect and what they are estimated from, then runs `trim-graph eval` for either
dataset. The same command resumes what was interrupted. Not run by us with Qwen; with
``--models example --math arithmetic:standard --aime none`` the arithmetic models solve problems of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.baselines import SHARES
from trim_graph.examples import own_pair

from .hours import AIME_FACTOR, Arms, Rates, gpu_hours

HERE = Path(__file__).parent
CONFIGS = {"qwen": HERE / "qwen.yaml", "example": HERE / "example.yaml"}
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
QUESTIONS = {"math": 500, "aime": 482}
VALIDATION = 500


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    rates = Rates()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--models", choices=CONFIGS, default="qwen")
    parser.add_argument("--config", type=Path, help="a configuration of your own in place of --models")
    parser.add_argument("--math", default="HuggingFaceH4/MATH-500:test", help="dataset; none leaves it out")
    parser.add_argument("--aime", default="di-zhang-fdu/AIME_1983_2024:train", help="likewise")
    parser.add_argument(
        "--validation", default="DigitalLearningGmbH/MATH-lighteval:train", help="for router and kind"
    )
    parser.add_argument("--validation-n", type=int, default=VALIDATION)
    parser.add_argument("--policy", action="append", default=[], help="besides the thresholds, as of eval")
    parser.add_argument("--thresholds", default=",".join(f"{t:g}" for t in THRESHOLDS))
    parser.add_argument("--baselines", default="all")
    parser.add_argument("-n", type=int, help="questions of each dataset; default: all")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--small-rate", type=float, default=rates.small, help="tokens a second, assumed")
    parser.add_argument("--large-rate", type=float, default=rates.large, help="likewise")
    parser.add_argument("--reading-rate", type=float, default=rates.reading, help="likewise")
    parser.add_argument("--estimate", action="store_true", help="only print the GPU hours")
    return parser.parse_args(arguments)


def datasets(given: argparse.Namespace) -> dict[str, str]:
    """Returns the datasets to run, by name."""
    return {name: getattr(given, name) for name in QUESTIONS if getattr(given, name) != "none"}


def estimate(given: argparse.Namespace) -> dict[str, float]:
    """Returns the GPU hours of each dataset."""
    policies = len(given.thresholds.split(",")) + len(given.policy)
    every = given.baselines == "all"
    validation = given.validation_n if every else 0
    arms = Arms(
        scored=policies + every,
        judged=int(every),
        unscored=len(RANDOM_RATES) + 2 * len(SHARES) * every,
        validation=validation,
    )
    rates = Rates(given.small_rate, given.large_rate, given.reading_rate)
    return {
        name: gpu_hours(
            given.n or QUESTIONS[name], arms, rates, factor=AIME_FACTOR if name == "aime" else 1.0
        )
        for name in datasets(given)
    }


def report(given: argparse.Namespace) -> str:
    """Says what to expect, and that it is a guess."""
    hours = estimate(given)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
    return (
        f"GPU hours to expect with Qwen2.5 on one GPU of 80 GB: {sum(hours.values()):.1f} ({parts}).\n"
        "Estimated, not measured: tokens a question from the published measurements, and an assumed "
        f"{given.small_rate:g} tokens a second written by the small model, {given.large_rate:g} by the large "
        f"one, {given.reading_rate:g} read (--small-rate, --large-rate, --reading-rate)."
    )


def command(given: argparse.Namespace, name: str, dataset: str) -> list[str]:
    """Returns the arguments of `trim-graph` for one dataset."""
    config = given.config or CONFIGS[given.models]
    options = ["eval", "--config", str(config), "--dataset", dataset, "--out", str(given.out / name)]
    for policy in given.policy:
        options += ["--policy", policy]
    options += [
        "--sweep",
        f"threshold:{given.thresholds}",
        "--random-rates",
        "usual",
        "--baselines",
        given.baselines,
        "--judge",
        "large",
    ]
    if given.validation != "none":
        options += ["--validation", given.validation, "--validation-n", str(given.validation_n)]
    if given.n is not None:
        options += ["-n", str(given.n)]
    return [*options, "--concurrency", str(given.concurrency), "--yes"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the estimate, then runs each dataset."""
    given = parsed(arguments)
    print(report(given), flush=True)
    if given.estimate:
        return 0
    return own_pair.run(command(given, name, dataset) for name, dataset in datasets(given).items())


if __name__ == "__main__":
    sys.exit(main())
