"""The planned policy measured: solve and decision times, beliefs compared, hard budgets.

``python -m tests.benchmarks.planning --published FILE [--traces FILE ...] [--graph N] [--json FILE]``

On the published parameters everything is simulated. ``--traces`` names labelled traces of the example world
(``trim-graph collect --label-steps``): a step model is fitted on the first four fifths, beliefs are compared
on the rest. ``--graph`` then routes N fresh problems through the real models under each belief's plan.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.goodness import CutOff, batch_threshold, goodness_of_fit, least_distance, log_loss, losses
from trim_graph.config import build_parts, example_config
from trim_graph.evaluation.datasets import first_questions, make_dataset
from trim_graph.evaluation.runner import run_arm
from trim_graph.evaluation.traces import read_traces
from trim_graph.policies import threshold
from trim_graph.policies.base import Observation
from trim_graph.policies.pomdp import BELIEFS, Plan, pomdp
from trim_graph.training.fitting import fit, read_training_data
from trim_graph.training.planner import BatchPomdp, Beliefs, Terms, solve
from trim_graph.training.simulator import (
    BatchPolicy,
    Simulator,
    StatelessBatchPolicy,
    simulate,
)
from trim_graph.training.step_model import StepModel, load_published

COSTS = (0.02, 0.05, 0.1, 0.2)
"""Prices of the cut-off plans to choose from, and those the beliefs are compared at."""
FOUR = (0.2, 0.4, 0.6, 0.8)
FINE = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
BUDGETS = (60, 120, 240)
TUNING, TEST = 1, 2
"""Seeds: what is best of several is chosen on one and measured on the other."""


def interval(values: np.ndarray) -> dict[str, float]:
    """Returns a mean and the half-width of its 95 % interval."""
    return {"mean": float(values.mean()), "half_width": float(1.96 * values.std() / len(values) ** 0.5)}


def cpu(work: Callable[[], Any], repeats: int = 3) -> float:
    """Returns the least CPU seconds of several runs."""
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


def times(model: StepModel) -> dict[str, float]:
    """Measures solving and deciding."""
    found = {}
    for belief in ("carried_joint", "carried"):
        found[f"solve_seconds_{belief}"] = cpu(lambda b=belief: solve(model, Terms(0.05), belief=b))
        found[f"solve_seconds_{belief}_32_levels"] = cpu(
            lambda b=belief: solve(model, belief=b, budget=31 * 8, levels=32), 1
        )
    for belief, budget in (("carried", None), ("carried", 240), ("memoryless", 240)):
        policy = pomdp(solve(model, Terms(0.05), belief=belief, budget=budget))
        seen = simulated_observations(policy, model, budget, 300)

        def decide(policy: pomdp = policy, seen: list[Observation] = seen) -> None:
            for one in seen:
                policy.decide(one)

        name = f"decision_us_{belief}" + ("_budget" if budget else "")
        found[name] = 1e6 * cpu(decide, 10) / len(seen)
    return found


def simulated_observations(policy: pomdp, model: StepModel, budget: int | None, n: int) -> list[Observation]:
    """Gives what a policy sees over simulated solutions, as the graph would show it."""
    from trim_graph.budget import RemainingBudget

    limit = np.inf if budget is None else budget
    found: list[Observation] = []
    for seed in range(n):
        simulator = Simulator(model, 1, seed=seed, budget=limit)
        scores: list[float] = []
        writers: list[Any] = []
        memory = None
        while not simulator.done[0]:
            seen = simulator.observations
            if seen.by_large[0]:
                scores[-1] = float(seen.large_score[0])
            left = None if budget is None else int(seen.large_left[0])
            found.append(
                Observation(
                    question="",
                    index=int(seen.index[0]),
                    max_steps=64,
                    scores=tuple(scores),
                    tokens=(60,) * len(scores),
                    writers=tuple(writers),
                    score=float(seen.score[0]),
                    draft_tokens=int(seen.tokens[0]),
                    draft_ends=bool(seen.ends[0]),
                    budget_left=RemainingBudget(large_tokens=left),
                    memory=memory,
                )
            )
            choice = policy.decide(found[-1])
            memory = choice.memory
            number = {"accept": 0, "regenerate": 1, "handover": 2}[choice.value]
            scores.append(float(seen.score[0]))
            writers.append("large" if number else "small")
            simulator.step([number])
    return found


def played(model: StepModel, policy: BatchPolicy, n: int, seed: int, **settings: Any) -> dict[str, Any]:
    """Simulates, and sums up."""
    result = simulate(model, policy, n, seed=seed, **settings)
    return {"accuracy": interval(result.right.astype(float)), "large_tokens": interval(result.large_tokens)}


class Mixed:
    """Regenerates three drafts in ten at random, and looks at what several beliefs make of it."""

    def __init__(self, plans: dict[str, Plan]) -> None:
        self.beliefs = {name: Beliefs(plan) for name, plan in plans.items()}
        self.losses: dict[str, list[np.ndarray]] = {name: [] for name in plans}
        self.rng = np.random.default_rng(0)

    def begin(self, n: int) -> None:
        for belief in self.beliefs.values():
            belief.begin(n)

    def see(self, simulator: Simulator) -> None:
        under_way = ~simulator.done
        for name, belief in self.beliefs.items():
            found = log_loss(belief.see(simulator.observations), simulator.state)
            self.losses[name].append(np.where(under_way, found, np.nan))

    def decide(self, seen: Any) -> np.ndarray:
        return (self.rng.random(len(seen.score)) < 0.3).astype(int)


def beliefs(model: StepModel, n: int) -> dict[str, Any]:
    """Compares the beliefs where the least score is derived from the trajectory's own scores."""
    mixed = Mixed({belief: solve(model, belief=belief) for belief in BELIEFS})
    simulator = Simulator(model, n // 4, seed=TEST)
    mixed.begin(n // 4)
    while not simulator.done.all():
        mixed.see(simulator)
        simulator.step(mixed.decide(simulator.observations))
    found: dict[str, Any] = {}
    for belief in BELIEFS:
        per_solution = np.nanmean(np.stack(mixed.losses[belief]), axis=0)
        found[belief] = {"log_loss": interval(per_solution), "routing": {}}
        for cost in COSTS:
            policy = BatchPomdp(solve(model, Terms(cost), belief=belief))
            result = simulate(model, policy, n, seed=TEST)
            reward = 100.0 * result.right - cost * result.large_tokens
            found[belief]["routing"][str(cost)] = {
                "accuracy": float(result.right.mean()),
                "large_tokens": float(result.large_tokens.mean()),
                "reward": interval(reward),
            }
    return found


def budgets(model: StepModel, n: int, scores: str, belief: str) -> dict[str, Any]:
    """Compares under hard budgets one plan that knows the budget with cut-off plans and thresholds.

    The aware plan is solved once, for the largest budget, with no price on tokens.
    """
    families: dict[str, dict[str, BatchPolicy]] = {
        "cut_off_plans": {
            str(cost): CutOff(BatchPomdp(solve(model, Terms(cost), belief=belief))) for cost in COSTS
        },
        "thresholds_of_4": {str(t): batch_threshold(t) for t in FOUR},
        "thresholds_of_19": {str(t): batch_threshold(t) for t in FINE},
    }
    plan = solve(model, belief=belief, budget=max(BUDGETS))
    aware = BatchPomdp(plan)
    blind_end = BatchPomdp(solve(model, Terms(knows_end=False), belief=belief, budget=max(BUDGETS)))
    tuned = {
        name: {
            key: [
                float(simulate(model, policy, n // 4, seed=TUNING, scores=scores, budget=budget).right.mean())
                for budget in BUDGETS
            ]
            for key, policy in policies.items()
        }
        for name, policies in families.items()
    }
    found: dict[str, Any] = {}
    for place, budget in enumerate(BUDGETS):
        row = {
            "aware": played(model, aware, n, TEST, scores=scores, budget=budget),
            "aware_not_knowing_the_end": played(model, blind_end, n, TEST, scores=scores, budget=budget),
        }
        row["aware"]["planned"] = plan.start(budget) / 100
        for name, policies in families.items():
            by_key = tuned[name]
            for what, best in (
                (name, max(by_key, key=lambda key: by_key[key][place])),
                (f"{name}_one_for_all", max(by_key, key=lambda key: sum(by_key[key]))),
            ):
                row[what] = {
                    **played(model, policies[best], n, TEST, scores=scores, budget=budget),
                    "best": best,
                }
        found[str(budget)] = row
        for name, came in row.items():
            print(f"    {budget:>4} {name:30} {shown(came)}", flush=True)
    return found


def real(path: Path) -> tuple[StepModel, dict[str, Any]]:
    """Fit on four fifths of the traces; compare beliefs on the rest."""
    traces = list(read_traces(path))
    cut = len(traces) * 4 // 5
    model = fit(traces[:cut], made={"traces": path.name})
    found: dict[str, Any] = {
        "solutions": {"fitted": cut, "held_out": len(traces) - cut},
        "p_small": model.p_small,
        "p_large": model.p_large,
        "shrink": model.shrink.tolist(),
        "goodness_of_fit": goodness_of_fit(model, read_training_data(traces[cut:])),
        "log_loss": {},
    }
    per_trace = {}
    for belief in BELIEFS:
        policy = pomdp(solve(model, Terms(0.5), belief=belief))
        per_trace[belief] = [losses(policy, trace) for trace in traces[cut:]]
        every = np.concatenate(per_trace[belief])
        found["log_loss"][belief] = {"mean": float(every.mean()), "drafts": len(every)}
    sums = {belief: np.array([part.sum() for part in parts]) for belief, parts in per_trace.items()}
    counts = np.array([len(part) for part in per_trace["carried"]])
    draws = np.random.default_rng(0).integers(0, len(counts), (2000, len(counts)))
    for belief in BELIEFS:
        if belief != "carried":
            gap = (sums[belief] - sums["carried"])[draws].sum(1) / counts[draws].sum(1)
            found["log_loss"][belief]["above_carried_95"] = np.quantile(gap, [0.025, 0.975]).tolist()
    return model, found


def routed(model: StepModel, dataset: str, n: int, costs: tuple[float, ...]) -> dict[str, Any]:
    """Route fresh problems through the example models under each belief's plan, and under thresholds."""
    questions = list(first_questions(make_dataset(dataset, part="test", seed=0), n, default=n))
    arms: dict[str, Any] = {"threshold 0.5": threshold(0.5), "threshold 0.9": threshold(0.9)}
    for belief in BELIEFS:
        for cost in costs:
            arms[f"{belief} {cost}"] = pomdp(solve(model, Terms(cost), belief=belief))
    config = example_config({})
    parts = build_parts(config)
    found = {}
    for name, policy in arms.items():
        graph = graph_with(config, parts, policy)
        outcomes = asyncio.run(run_arm(graph, questions, concurrency=32))
        right = np.array([bool(outcome["correct"]) for outcome in outcomes], float)
        found[name] = {
            "accuracy": interval(right),
            "large_tokens": interval(np.array([float(outcome["large_tokens"]) for outcome in outcomes])),
            "errors": sum(outcome["error"] is not None for outcome in outcomes),
        }
        print(f"  {name:22} {shown(found[name])}", flush=True)
    return found


def graph_with(config: Any, parts: Any, policy: Any) -> Any:
    """Builds the configuration's graph with a policy that is an object."""
    from trim_graph import create_trim_graph

    return create_trim_graph(
        parts.small, parts.large, parts.scorer, policy=policy, **config.settings.model_dump()
    )


def shown(row: dict[str, Any]) -> str:
    """Says accuracy and large tokens in a line."""
    accuracy, tokens = row["accuracy"], row["large_tokens"]
    best = f"  (best: {row['best']})" if "best" in row else ""
    best += f"  (planned: {row['planned']:.4f})" if "planned" in row else ""
    return (
        f"{accuracy['mean']:.4f} ± {accuracy['half_width']:.4f} at {tokens['mean']:6.1f} large tokens{best}"
    )


def report(results: dict[str, Any]) -> None:
    """Prints what was measured on the published parameters."""
    for name, value in results["times"].items():
        print(f"{name:44} {value:.3f}")
    print(f"small alone, simulated: {shown(results['small_alone'])}")
    print(f"derived least scores, total variation from the tables: {results['least_distance']}")
    for belief, row in results["beliefs"].items():
        loss = row["log_loss"]
        print(f"{belief:14} log-loss {loss['mean']:.4f} ± {loss['half_width']:.4f}")
        for cost, came in row["routing"].items():
            reward = came["reward"]
            print(
                f"    cost {cost:5} accuracy {came['accuracy']:.4f} at {came['large_tokens']:6.1f} tokens, "
                f"reward {reward['mean']:.2f} ± {reward['half_width']:.2f}"
            )


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--published", type=Path, default=Path("../shared/data/trim_published_parameters.json")
    )
    parser.add_argument("--traces", type=Path, nargs="*", default=[])
    parser.add_argument("--graph", type=int, default=0, metavar="N")
    parser.add_argument("--dataset", default="arithmetic:standard:test", help="of --graph")
    parser.add_argument("--costs", type=float, nargs="*", default=[0.5, 2.0], help="of --graph")
    parser.add_argument("-n", type=int, default=100_000, help="simulated solutions")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "n": args.n,
    }
    print(f"{results['date']}  {results['machine']}")
    if args.n:
        model = load_published(args.published)
        spread = model.changed(tokens=(20, 40, 60, 80, 100))
        results["times"] = times(model)
        results["small_alone"] = played(
            model, StatelessBatchPolicy(lambda seen: 0 * seen.index), args.n, TEST
        )
        results["least_distance"] = least_distance(model, args.n // 2)
        results["beliefs"] = beliefs(model, args.n)
        report(results)
        settings = (
            ("independent scores, 60 tokens a step", model, "alone", "carried_alone"),
            ("scores given the least, 60 tokens a step", model, "given_min", "carried"),
            ("scores given the least, 20 to 100 tokens a step", spread, "given_min", "carried"),
        )
        results["budgets"] = {}
        for name, world, scores, belief in settings:
            print(f"hard budgets, {name}", flush=True)
            results["budgets"][name] = budgets(world, args.n, scores, belief)
    for path in args.traces:
        fitted, results[str(path.name)] = real(path)
        print(f"{path.name}: {json.dumps(results[str(path.name)]['log_loss'], indent=1)}", flush=True)
        if args.graph and path == args.traces[0]:
            results["graph"] = routed(fitted, args.dataset, args.graph, tuple(args.costs))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
