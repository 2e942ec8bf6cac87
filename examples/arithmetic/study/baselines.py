"""Measure the query-level router and the entropy probe on the example models, beside the threshold.

    python -m trim_graph.examples.arithmetic.study.baselines

The router is trained on problems of the training part, with the outcomes of both models alone; its AUC and
every policy's accuracy and share of large tokens are measured on test problems. Nothing is chosen by what is
measured: the limits and thresholds span their range.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trim_graph.evaluation import Question, Record, compare, run_arm
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.evaluation.query_router import Example, TrainedRouter, auc_of, train_query_router
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.policies import (
    Policy,
    entropy_probe,
    large_only,
    query_router,
    random_rate,
    save_policy,
    small_only,
    threshold,
)

ENTROPIES = (0.002, 0.004, 0.006, 0.01, 0.02, 0.1)
THRESHOLDS = (0.5, 0.9)
SHARES = (0.25, 0.5, 0.75)
RATES = (0.3, 0.6)


@dataclass
class Baselines:
    """The models, and what has been measured with them.

    Args:
        models: Small, large and scorer.
        concurrency: Most questions under way at once.
        seed: Seed of the random policies.
    """

    models: Sequence[Any]
    concurrency: int = 64
    seed: int = 0
    arms: dict[str, list[Record]] = field(default_factory=dict)

    async def run(self, policy: Policy, questions: Sequence[Question]) -> list[Record]:
        """Runs one policy.

        Raises:
            RuntimeError: A question failed.
        """
        from trim_graph.graph import create_trim_graph

        graph = create_trim_graph(*self.models, policy=policy, seed=self.seed)
        outcomes = await run_arm(graph, questions, concurrency=self.concurrency)
        failed = next((record["error"] for record in outcomes if record["error"]), None)
        if failed:
            raise RuntimeError(f"a comparison cannot leave questions out: {failed}")
        print(
            f"{policy!r}: {sum(bool(o['correct']) for o in outcomes)} of {len(outcomes)}",
            file=sys.stderr,
            flush=True,
        )
        return outcomes

    async def examples(self, questions: Sequence[Question]) -> list[Example]:
        """Asks both models alone."""
        small, large = await self.run(small_only(), questions), await self.run(large_only(), questions)
        return [
            Example(question.text, float(bool(s["correct"])), float(bool(g["correct"])))
            for question, s, g in zip(questions, small, large, strict=True)
        ]

    async def measure(
        self, questions: Sequence[Question], router: query_router, limits: Sequence[float]
    ) -> None:
        """Runs every policy on the test questions."""
        self.arms["small"] = await self.run(small_only(), questions)
        self.arms["large"] = await self.run(large_only(), questions)
        for one in map(router.with_limit, limits):
            self.arms[repr(one)] = self._routed(one, questions)
        policies: list[Policy] = [
            *map(threshold, THRESHOLDS),
            *map(random_rate, RATES),
            *map(entropy_probe, ENTROPIES),
        ]
        for policy in policies:
            self.arms[repr(policy)] = await self.run(policy, questions)

    def _routed(self, router: query_router, questions: Sequence[Question]) -> list[Record]:
        """Takes each question's outcome from the model that gets all of it: greedy models answer the same."""
        arms = self.arms["small"], self.arms["large"]
        return [
            large if router.probability(question.text) > router.limit else small
            for question, small, large in zip(questions, *arms, strict=True)
        ]

    def table(self) -> str:
        """Returns accuracy with its interval, share of large tokens and PGR of each arm, in Markdown."""
        rows = [
            "| policy | accuracy | large tokens, share | gap recovered | small tokens discarded |",
            "|---|---|---|---|---|",
        ]
        for name, figures in compare(self.arms, seed=self.seed).items():
            within = figures["accuracy_interval"]
            accuracy = f"{figures['accuracy']:.3f}" + (
                f" ({within.low:.3f} to {within.high:.3f})" if within else ""
            )
            wasted = sum(o["tokens"]["small_discarded"] for o in self.arms[name]) / len(self.arms[name])
            share, pgr = _plain(figures["share"]), _plain(figures["pgr"])
            rows.append(f"| {name} | {accuracy} | {share} | {pgr} | {wasted:.1f} |")
        return "\n".join(rows)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def limits_of(router: query_router, questions: Sequence[str]) -> list[float]:
    """Returns the limits that give `SHARES` of these questions to the large model."""
    import numpy as np

    probabilities = [router.probability(question) for question in questions]
    return [round(float(np.quantile(probabilities, 1 - share)), 4) for share in SHARES]


async def measure(models: Sequence[Any], given: argparse.Namespace) -> tuple[Baselines, TrainedRouter]:
    """Trains and measures everything, and prints the results."""
    baselines = Baselines(models, given.concurrency, given.seed)
    drawn = problems(given.split, given.train, part="train", seed=given.seed)
    examples = await baselines.examples([arithmetic_question(problem) for problem in drawn])
    trained = train_query_router(examples, seed=given.seed)
    test = [
        arithmetic_question(problem)
        for problem in problems(given.split, given.n, part="test", seed=given.seed)
    ]
    others = problems(given.split, given.n, part="validation", seed=given.seed)
    limits = limits_of(trained.policy, [problem.question for problem in others])
    await baselines.measure(test, trained.policy, limits)
    small, large = baselines.arms["small"], baselines.arms["large"]
    seen = [
        Example(q.text, float(bool(s["correct"])), float(bool(g["correct"])))
        for q, s, g in zip(test, small, large, strict=True)
    ]
    auc, benefit = auc_of(trained.policy, seen), sum(example.benefits for example in seen)
    print(
        f"query router, trained on {trained.trained_on} problems of the training part (C = {trained.c:g}): "
        f"AUC {trained.auc:.3f} on {trained.validated_on} others of it, {auc:.3f} on {len(seen)} test "
        f"problems, of which {benefit} benefit from the large model"
    )
    print(f"\n{baselines.table()}")
    return baselines, trained


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the baselines on the example models and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=500, help="test problems")
    parser.add_argument("--train", type=int, default=600, help="training problems of the router")
    parser.add_argument("--split", choices=("standard", "hard", "words"), default="standard")
    parser.add_argument("--seed", type=int, default=0, help="draws the problems, and the random policies")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the router to this .json file")
    given = parser.parse_args(arguments)
    from langchain_core.caches import InMemoryCache

    from trim_graph.adapters import ChatTransformers, TransformersProcessReward

    models = (
        # The policies have most of their prefixes in common, and greedy answers repeat.
        ChatTransformers(model=str(SMALL), cache=InMemoryCache()),
        ChatTransformers(model=str(LARGE), cache=InMemoryCache()),
        TransformersProcessReward(str(PRM), max_batch_size=64),
    )
    _, trained = asyncio.run(measure(models, given))
    if given.out is not None:
        save_policy(trained.policy, given.out)


if __name__ == "__main__":
    main()
