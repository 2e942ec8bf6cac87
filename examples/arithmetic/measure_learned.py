"""Measure learned policies beside the threshold on test problems: `python -m ...arithmetic.measure_learned`.

Every way that a solution can take is recorded once with the real graph (`trim_graph.training.rollouts`); what
a policy comes to is then read off exactly. Each learned policy is compared with the threshold that spends as
many large tokens on the same problems or more: the nearest above, so that the threshold is never the poorer
one. A few policies are run through the graph as well, to see that it is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.evaluation import Outcome, accuracy_difference, interval, resampled_means, run_arm
from trim_graph.policies import Policy, load_policy, small_only, threshold

from . import problems

if TYPE_CHECKING:
    from trim_graph.training.rollouts import Rollouts

POLICIES = Path(__file__).parent / "policies"
MEASURED = POLICIES / "measured.json"
SHOWN = (0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds in the table."""
CHECKED = ("threshold(0.9)", "aggregate-0.02", "sequence-0.02")
"""What is also run through the graph, on the first problems."""


class Regenerate(Policy):
    """The large model writes every step: what shares are shares of."""

    def decide(self, observation: Any) -> str:
        """Ask the large model."""
        return "regenerate"


def outcomes_of(rollouts: Rollouts, policy: Policy) -> list[Outcome]:
    """Let a policy decide on every problem."""
    from trim_graph.training.solving import solve

    return [
        Outcome(index, one.correct, large_tokens=one.large_tokens)
        for index, one in enumerate(solve(rollouts, policy))
    ]


def thresholds_of(rollouts: Rollouts, count: int = 400) -> list[float]:
    """Return thresholds between which the scores of drafts are evenly spread."""
    nodes = (node for tree in rollouts.trees for node in tree.nodes.values())
    scores = sorted(node.draft_score for node in nodes if node.draft_score is not None)
    return sorted({round(scores[at * len(scores) // count], 6) for at in range(count)} | {1.0, *SHOWN})


def row(name: str, outcomes: Sequence[Outcome], whole: int) -> dict[str, Any]:
    """Return the figures of one policy, with a 95 % interval of its accuracy."""
    correct = [float(bool(outcome.correct)) for outcome in outcomes]
    tokens = sum(outcome.large_tokens for outcome in outcomes)
    low_high = interval(resampled_means({"correct": correct})["correct"])
    return {
        "policy": name,
        "accuracy": sum(correct) / len(correct),
        "interval": low_high,
        "large_tokens": tokens / len(outcomes),
        "share": tokens / whole,
    }


def measure(rollouts: Rollouts, policies: dict[str, Policy]) -> list[dict[str, Any]]:
    """Return a row for each policy, learned ones with the threshold that spends the same."""
    whole = sum(outcome.large_tokens for outcome in outcomes_of(rollouts, Regenerate()))
    curve = [(t, outcomes_of(rollouts, threshold(t))) for t in thresholds_of(rollouts)]
    spends = [(sum(outcome.large_tokens for outcome in found), t, found) for t, found in curve]
    rows = [row("small alone", outcomes_of(rollouts, small_only()), whole)]
    rows += [row(f"threshold({t})", found, whole) for t, found in curve if t in SHOWN]
    for name, policy in policies.items():
        outcomes = outcomes_of(rollouts, policy)
        found = row(name, outcomes, whole)
        spend = sum(outcome.large_tokens for outcome in outcomes)
        above = [each for each in spends if each[0] >= spend] or [max(spends)]
        beside = min(above, key=lambda each: (each[0], each[1]))
        found["beside"] = row(f"threshold({beside[1]})", beside[2], whole)
        found["difference"] = accuracy_difference(outcomes, beside[2])
        rows.append(found)
    rows.append(row("large, every step", outcomes_of(rollouts, Regenerate()), whole))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as Markdown."""
    lines = [
        "| policy | accuracy | large tokens | share | threshold at that spend | difference |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        low, high = one["interval"]
        cells = [
            one["policy"],
            f"{one['accuracy']:.3f} ({low:.3f} to {high:.3f})",
            f"{one['large_tokens']:.2f}",
            f"{one['share']:.3f}",
            "",
            "",
        ]
        if "beside" in one:
            beside, (low, high) = one["beside"], one["difference"]["interval"]
            cells[4] = f"{beside['accuracy']:.3f} for {beside['large_tokens']:.2f}"
            cells[5] = f"{one['difference']['accuracy']:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the policies beside this file and write ``measured.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=1000, help="test problems")
    parser.add_argument("--split", choices=("standard", "hard", "words"), default="standard")
    parser.add_argument("--seed", type=int, default=0, help="draws the problems")
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--check", type=int, default=200, help="problems to run through the graph as well")
    parser.add_argument("--rollouts", type=Path, help="file that keeps what was recorded (.jsonl)")
    parser.add_argument("--policies", type=Path, default=POLICIES, help="folder of policy files")
    parser.add_argument("--out", type=Path, default=MEASURED)
    given = parser.parse_args(arguments)
    from trim_graph.config import build_parts, example_config
    from trim_graph.evaluation.datasets import arithmetic_question
    from trim_graph.training.recording import graph_builder
    from trim_graph.training.rollouts import Rollouts
    from trim_graph.training.traces import read_traces, write_traces

    files = sorted(given.policies.glob("aggregate-*.json")) + sorted(given.policies.glob("sequence-*.json"))
    policies = {file.stem: load_policy(file) for file in files if not file.stem.endswith("-curves")}
    questions = [arithmetic_question(p) for p in problems(given.split, given.n, part="test", seed=given.seed)]
    config = example_config({})
    build = graph_builder(config, build_parts(config))
    rollouts = Rollouts(questions, build, concurrency=given.concurrency)
    if given.rollouts is not None and given.rollouts.exists():
        rollouts.add(read_traces(given.rollouts))

    def tell(turn: int, left: int) -> None:
        print(f"{rollouts.runs} runs, {left} problems with unknown ways", file=sys.stderr, flush=True)

    asyncio.run(rollouts.explore(1000, tell))
    if given.rollouts is not None and rollouts.runs:
        write_traces(given.rollouts, rollouts.traces)
    rows = measure(rollouts, policies)
    checks = {}
    for name in CHECKED if given.check else ():
        policy = policies.get(name) or threshold(0.9)
        some = questions[: given.check]
        ran = asyncio.run(run_arm(build(policy), some, concurrency=given.concurrency))
        pairs = list(zip(ran, outcomes_of(rollouts, policy), strict=False))
        same = sum((a.correct, a.large_tokens) == (b.correct, b.large_tokens) for a, b in pairs)
        checks[name] = f"{same} of {len(pairs)} problems came out the same in the graph"
        print(f"{name}: {checks[name]}", file=sys.stderr, flush=True)
    document = {"split": given.split, "n": given.n, "seed": given.seed, "rows": rows, "checks": checks}
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
