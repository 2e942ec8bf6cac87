"""Choose the threshold of the example models on validation problems: `python -m ...study.calibrate`.

The threshold is the one that recovers at least `ENOUGH` of the performance gap with the smallest share of
large tokens. With it goes the rate at which a random policy spends the same. Both are written, with the whole
curve, to ``calibrated.json``, which ships with the package (`load_calibration` in ``shipped.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.errors import TrimError
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.examples.arithmetic.problems import Split
from trim_graph.examples.arithmetic.shipped import CALIBRATED, Calibration

if TYPE_CHECKING:
    from trim_graph.evaluation import Question
    from trim_graph.evaluation.calibration import Calibrator, MeasuredPoint

THRESHOLDS = (*(i / 20 for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995, 0.999)
ENOUGH = 0.95


def example_calibrator(
    small: Any, large: Any, scorer: Any, questions: Sequence[Question], *, concurrency: int, seed: int = 0
) -> Calibrator:
    """Makes a calibrator of three models.

    Args:
        small: Chat model; must be greedy, so that the same call has the same answer.
        large: The large model.
        scorer: Rates the steps.
        questions: Questions to measure on.
        concurrency: Most questions under way at once.
        seed: Seed of the random policy.
    """
    from trim_graph.evaluation.arms import policy_config
    from trim_graph.evaluation.calibration import CachedScorer, Calibrator
    from trim_graph.graph import create_trim_graph

    cached = CachedScorer(scorer)
    return Calibrator(
        lambda policy: create_trim_graph(
            small, large, cached, policy=policy_config(policy).build(), seed=seed
        ),
        questions,
        scores=cached.draft_scores,
        concurrency=concurrency,
        on_point=lambda point: print(point, file=sys.stderr, flush=True),
    )


async def calibrate(
    calibrator: Calibrator, *, split: Split, seed: int = 0, thresholds: Sequence[float] = THRESHOLDS
) -> Calibration:
    """Sweeps the thresholds and chooses, then finds the rate at which a random policy spends the same.

    Raises:
        ValueError: The large model is no better than the small one.
        TrimError: A question failed.
    """
    from trim_graph.evaluation import accuracy
    from trim_graph.evaluation.arms import FAMILIES
    from trim_graph.evaluation.calibration import Target, choose
    from trim_graph.evaluation.comparison import graded

    await calibrator.measure()
    curve = [await calibrator.point(FAMILIES["threshold"], t) for t in thresholds]
    chosen = choose(curve, Target("pgr", ENOUGH))
    matched = await calibrator.find(FAMILIES["random_rate"], Target("large_share", chosen.share or 1.0))
    return Calibration(
        threshold=float(chosen.setting),
        random_rate=float(matched.setting),
        split=split,
        n=len(calibrator.questions),
        seed=seed,
        accuracy_small=accuracy(graded(calibrator.small or ())) or 0.0,
        accuracy_large=accuracy(graded(calibrator.large or ())) or 0.0,
        random=_row(matched),
        curve=[_row(point) for point in curve],
    )


def _row(point: MeasuredPoint) -> dict[str, Any]:
    return {key: value for key, value in asdict(point).items() if key not in ("cost", "paired")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrates the example models and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=600, help="validation problems")
    parser.add_argument("--split", choices=("standard", "hard", "words"), default="standard")
    parser.add_argument("--seed", type=int, default=0, help="draws the problems, and the random policy")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, default=CALIBRATED)
    given = parser.parse_args(arguments)
    from langchain_core.caches import InMemoryCache

    from trim_graph.adapters import ChatTransformers, TransformersProcessReward
    from trim_graph.evaluation.datasets import arithmetic_question

    drawn = problems(given.split, given.n, part="validation", seed=given.seed)
    calibrator = example_calibrator(
        ChatTransformers(model=str(SMALL), cache=InMemoryCache()),
        ChatTransformers(model=str(LARGE), cache=InMemoryCache()),
        TransformersProcessReward(str(PRM), max_batch_size=64),
        [arithmetic_question(problem) for problem in drawn],
        concurrency=given.concurrency,
        seed=given.seed,
    )
    try:
        found = asyncio.run(calibrate(calibrator, split=given.split, seed=given.seed))
    except (ValueError, TrimError) as error:
        sys.exit(f"nothing written: {error}")
    given.out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    print(f"threshold {found.threshold}, random rate {found.random_rate}: written to {given.out}")


if __name__ == "__main__":
    main()
