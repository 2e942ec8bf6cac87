"""Choose the threshold of the example models on validation problems: `python -m ...arithmetic.calibrate`.

The threshold is the one that recovers at least `ENOUGH` of the performance gap with the smallest share of
large tokens. With it goes the rate at which a random policy spends the same. Both are written, with the whole
curve, to ``calibrated.json`` beside this file, which ships with the package (`load_calibration`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.errors import SettingsError
from trim_graph.evaluation import (
    Outcome,
    Question,
    accuracy,
    performance_gap_recovered,
    run_arm,
    share_of_large_tokens,
)
from trim_graph.policies import Policy, large_only, random_rate, small_only, threshold

from . import LARGE, PRM, SMALL, Problem, Split, is_right, problems

if TYPE_CHECKING:
    from trim_graph.adapters import ScorableStep, ScorerReply

CALIBRATED = Path(__file__).parent / "calibrated.json"
THRESHOLDS = (*(i / 20 for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995, 0.999)
ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Point:
    """What a policy came to on the validation problems."""

    setting: float
    accuracy: float
    share: float
    pgr: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The settings of the example policies, and what they were chosen from."""

    threshold: float
    random_rate: float
    split: str
    n: int
    seed: int
    accuracy_small: float
    accuracy_large: float
    random: dict[str, Any]
    """The random policy at that rate, as a `Point`."""
    curve: list[dict[str, Any]]
    """One `Point` per threshold."""


def load_calibration(path: Path | None = None) -> Calibration:
    """Read what `calibrate` wrote.

    Args:
        path: Default: the file that ships with the package.

    Raises:
        SettingsError: There is no such file, or it is not one.
    """
    path = path or CALIBRATED
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(**{field.name: data[field.name] for field in fields(Calibration)})
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} is missing: python -m trim_graph.examples.arithmetic.calibrate makes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is damaged: python -m trim_graph.examples.arithmetic.calibrate makes it anew"
        ) from error


def choose(points: Sequence[Point], enough: float = ENOUGH) -> Point:
    """Return the point with the smallest share that recovers enough of the gap; else the best PGR.

    Raises:
        ValueError: No point has a PGR: the large model is no better than the small one.
    """
    known = [point for point in points if point.pgr is not None]
    if not known:
        raise ValueError("the large model is no better than the small one on these problems")
    good = [point for point in known if point.pgr is not None and point.pgr >= enough]
    if good:
        return min(good, key=lambda point: (point.share, point.setting))
    return max(known, key=lambda point: (point.pgr or 0.0, -point.share))


def as_questions(drawn: Sequence[Problem]) -> list[Question]:
    """Turn problems of the arithmetic world into questions with exact grading."""
    return [Question(p.question, lambda text, p=p: is_right(p, text), p.answer) for p in drawn]  # type: ignore[misc]


class _Remembering:
    """A scorer that reads no solution twice: the runs of a sweep have most of their prefixes in common."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer
        self.known: dict[tuple[str, ...], ScorerReply] = {}

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        key = (question, *(step["text"] for step in steps))
        if key not in self.known:
            self.known[key] = self.scorer.score(question, steps)
        return self.known[key]

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        key = (question, *(step["text"] for step in steps))
        if key not in self.known:
            self.known[key] = await self.scorer.ascore(question, steps)
        return self.known[key]


class Calibrator:
    """Measures policies on one set of questions; answers given once are remembered.

    Args:
        small: Chat model; must be greedy, so that the same call has the same answer.
        large: The same.
        scorer: Rates the steps.
        questions: To measure on.
        concurrency: Most questions under way at once.
        seed: Of the random policy.
    """

    def __init__(
        self,
        small: Any,
        large: Any,
        scorer: Any,
        questions: Sequence[Question],
        *,
        concurrency: int = 64,
        seed: int = 0,
    ) -> None:
        self.models = small, large, _Remembering(scorer)
        self.questions, self.concurrency, self.seed = questions, concurrency, seed

    async def measure(self) -> None:
        """Run the two models alone: what everything else is compared with."""
        small, large = await self._run(small_only()), await self._run(large_only())
        self.accuracy_small, self.accuracy_large = _accuracy(small), _accuracy(large)
        self.large_tokens = sum(outcome.large_tokens for outcome in large)

    async def point(self, policy: Policy, setting: float) -> Point:
        """Run one policy."""
        outcomes = await self._run(policy)
        acc = _accuracy(outcomes)
        share = share_of_large_tokens(sum(outcome.large_tokens for outcome in outcomes), self.large_tokens)
        pgr = performance_gap_recovered(acc, self.accuracy_small, self.accuracy_large)
        point = Point(setting, acc, share or 0.0, pgr)
        print(f"{policy!r}: {point}", file=sys.stderr, flush=True)
        return point

    async def matching_rate(self, share: float, *, rounds: int = 4, close: float = 0.002) -> Point:
        """Find the rate at which the random policy spends a share of large tokens."""
        # Every step is as likely to be the large model's, so the rate is close to the share; then correct.
        rate, best = share, None
        for _ in range(rounds):
            rate = round(min(max(rate, 0.0), 1.0), 4)
            found = await self.point(random_rate(rate), rate)
            if best is None or abs(found.share - share) < abs(best.share - share):
                best = found
            if abs(found.share - share) <= close:
                break
            rate += share - found.share
        assert best is not None
        return best

    async def _run(self, policy: Policy) -> list[Outcome]:
        from trim_graph.graph import create_trim_graph

        graph = create_trim_graph(*self.models, policy=policy, seed=self.seed)
        outcomes = await run_arm(graph, self.questions, concurrency=self.concurrency)
        failed = next((outcome.error for outcome in outcomes if outcome.error), None)
        if failed:
            raise RuntimeError(f"calibration cannot leave questions out: {failed}")
        return outcomes


def _accuracy(outcomes: Sequence[Outcome]) -> float:
    return accuracy([outcome.correct for outcome in outcomes]) or 0.0


async def calibrate(
    calibrator: Calibrator, *, split: Split, thresholds: Sequence[float] = THRESHOLDS
) -> Calibration:
    """Sweep the thresholds and choose.

    Raises:
        ValueError: The large model is no better than the small one.
    """
    await calibrator.measure()
    curve = [await calibrator.point(threshold(t), t) for t in thresholds]
    chosen = choose(curve)
    matched = await calibrator.matching_rate(chosen.share)
    return Calibration(
        threshold=chosen.setting,
        random_rate=matched.setting,
        split=split,
        n=len(calibrator.questions),
        seed=calibrator.seed,
        accuracy_small=calibrator.accuracy_small,
        accuracy_large=calibrator.accuracy_large,
        random=asdict(matched),
        curve=[asdict(point) for point in curve],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate the example models and write the file."""
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

    drawn = problems(given.split, given.n, part="validation", seed=given.seed)
    calibrator = Calibrator(
        ChatTransformers(model=str(SMALL), cache=InMemoryCache()),
        ChatTransformers(model=str(LARGE), cache=InMemoryCache()),
        TransformersProcessReward(PRM, max_batch_size=64),
        as_questions(drawn),
        concurrency=given.concurrency,
        seed=given.seed,
    )
    try:
        found = asyncio.run(calibrate(calibrator, split=given.split))
    except ValueError as error:
        sys.exit(f"nothing written: {error}")
    given.out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    print(f"threshold {found.threshold}, random rate {found.random_rate}: written to {given.out}")


if __name__ == "__main__":
    main()
