"""What a policy gets to see, from the state of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trim_graph.budget import BudgetLeft
from trim_graph.policies.base import Observation
from trim_graph.state import Draft, Run, Step


def observation(
    asked: str,
    run: Run,
    steps: Sequence[Step],
    scores: Sequence[float | None],
    *,
    left: BudgetLeft,
    memory: Any,
    draft: Draft | None = None,
    entropy: float | None = None,
) -> Observation:
    """Put together what a policy is asked about.

    Args:
        asked: ``next_writer`` or ``decide``; makes random draws of the two differ.
        run: What was fixed when the run began.
        steps: The accepted ones.
        scores: One entry per accepted step.
        left: Of the budget.
        memory: What the policy returned last.
        draft: What is to be decided on.
        entropy: What a probe has found, in nats.
    """
    index = len(steps)
    return Observation(
        question=run["question"],
        index=index,
        max_steps=run["settings"]["max_steps"],
        scores=tuple(scores),
        tokens=tuple(step["tokens"] for step in steps),
        writers=tuple(step["writer"] for step in steps),
        score=draft["score"] if draft else None,
        draft=draft["text"] if draft else None,
        draft_tokens=draft["tokens"] if draft else 0,
        draft_probability=draft["mean_token_probability"] if draft else None,
        draft_ends=draft["end"] == "eos" if draft else False,
        part=draft.get("part") if draft else None,
        probe_entropy=entropy,
        budget_left=left,
        memory=memory,
        seed=f"{run['seed']}:{index}:{asked}",
    )
