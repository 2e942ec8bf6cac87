"""Let a policy solve recorded questions: the graph's own router, replayed on rollout trees.

All that a policy may answer is followed: who writes the next step, the decision on a draft, a handover. Large
tokens are counted step by step, also where the graph has the large model go on to the end in one call.
"""

from __future__ import annotations

import hashlib
from typing import cast

from trim_graph.budget.usage import nothing_spent
from trim_graph.policies import Policy
from trim_graph.routing import Action, Router, RunView
from trim_graph.settings import Settings
from trim_graph.state import SCHEMA_VERSION, Draft, Order, Run, TrimState, applied

from .rollout_tree import RolloutError
from .rollouts import Rollout, Rollouts, in_rounds

_ROUTER = Router()
_NO_LIMIT = 1_000_000
"""Supersteps: a rollout has none."""


def solve(rollouts: Rollouts, policy: Policy, *, seed: int = 0) -> list[Rollout]:
    """Let a policy decide on every question, and return the ended rollouts in their order.

    Args:
        rollouts: Of the questions.
        policy: Any.
        seed: Of random policies: they draw as in a graph with this seed in its settings.

    Raises:
        RolloutError: The policy asks for a probe, and no entropy was recorded.
    """
    # Where a solution ends is recorded, loops included.
    settings = Settings(max_steps=rollouts.max_steps, max_repeats=None, thinking=None).model_dump(mode="json")

    def lead(rollout: Rollout) -> None:
        state = _begun(rollout, settings, seed)
        while not rollout.ended:
            action = _ROUTER.next(RunView(state, policy))
            if "steps" in action.update:
                rollout.decide(action.update["steps"][0]["writer"] == "large")
            state = _written(rollout, policy, applied(state, action.update), action)

    return in_rounds(rollouts, lead)


def _begun(rollout: Rollout, settings: dict[str, object], seed: int) -> TrimState:
    question = rollout.rollouts.trees[rollout.index].question.text
    # The seed of `trim_graph.run.begin_run`.
    own = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
    return TrimState(
        messages=[],
        run=Run(
            schema=SCHEMA_VERSION,
            id="",
            message_id="",
            seed=f"{seed}:{own}",
            question=question,
            settings=settings,
        ),
        steps=[],
        scores={},
        decisions=[],
        spend=nothing_spent(),
        remaining_steps=_NO_LIMIT,
    )


def _written(rollout: Rollout, policy: Policy, state: TrimState, action: Action) -> TrimState:
    """Return the state with what the ordered writer has written, as it was recorded."""
    order = state.get("order")
    while order is not None and order["to_end"] and not rollout.ended:
        rollout.decide(True)
    if order is None or rollout.ended:
        return state
    if "probe" in order:
        entropy = rollout.node.entropy
        if entropy is None:
            raise RolloutError(f"policy {policy!r} asks for a probe, and no entropy was recorded")
        probed = Order(**{**order, "probe": {"entropy": entropy, "untold": None}})
        return cast(TrimState, {**state, "order": probed})
    draft = _draft(rollout, order)
    if not order["scored"]:
        return cast(TrimState, {**state, "draft": draft})
    # A step of the large model is scored together with the draft that follows.
    scores = {str(index): score for index, score in enumerate(rollout.scores) if score is not None}
    return cast(TrimState, {**state, "draft": draft, "scores": scores})


def _draft(rollout: Rollout, order: Order) -> Draft:
    node, large = rollout.node, order["writer"] == "large"
    written = node.large if large else node.draft
    assert written is not None
    return Draft(
        text=written.text,
        writer=order["writer"],
        model="",
        tokens=written.tokens,
        mean_token_probability=None if large else written.probability,
        end="eos" if rollout.ends(large) else "delimiter",
        score=node.draft_score if order["scored"] else None,
    )
