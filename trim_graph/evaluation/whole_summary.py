"""Put the summary of an evaluation together."""

from __future__ import annotations

from collections.abc import Sequence

from trim_graph.config import TrimConfig

from .harness import Harness
from .run_summary import BUDGETS, VERSION, RunSummary
from .summarising import LARGE, SMALL, Comparison
from .verdicts import Worth, judge, overall


def summarise_run(harness: Harness, config: TrimConfig, worth: Worth, warnings: Sequence[str]) -> RunSummary:
    """Return figures, curves and verdicts of all arms that are complete.

    Args:
        harness: After its last arm.
        config: Whose models they are.
        worth: What things are worth.
        warnings: What a reader should know besides.
    """
    plan = harness.plan
    done = {name: harness.done[name] for name in (SMALL, LARGE)} | harness.done
    comparison = Comparison(done, harness.arms, n=plan.n)
    verdicts = judge(comparison, worth)
    whole = done[LARGE].plain["large_tokens"]
    failed = {name: arm.errors for name, arm in done.items() if arm.errors}
    told = [
        f"{count} runs of {name} failed: they count as wrong, and as free" for name, count in failed.items()
    ]
    return RunSummary(
        version=VERSION,
        dataset={"name": plan.dataset.name, **plan.dataset.identity()},
        n=plan.n,
        samples=plan.samples,
        seed=plan.seed,
        concurrency=plan.concurrency,
        priced=worth.priced,
        models={
            part: config.model_dump(mode="json", include={part})[part]
            for part in ("small", "large", "scorer")
        },
        budgets={f"{share:g}": share * whole for share in BUDGETS},
        arms=comparison.summaries(),
        curves=comparison.curves(),
        verdicts=verdicts,
        verdict=overall(verdicts, comparison),
        warnings=[*warnings, *told],
    )
