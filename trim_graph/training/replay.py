"""Go through traces again as a policy would have seen them: what it would have believed of every draft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trim_graph.policies.base import Observation, remembering
from trim_graph.policies.pomdp import pomdp

from .routing import log_loss
from .step_model import LOST, RIGHT, SLIP, Floats


def drafts_of(trace: Mapping[str, Any]) -> Iterator[tuple[Observation, int | None]]:
    """Give each draft of the small model as it was seen, thrown-away ones included, with its true state.

    The state is None where labels do not tell it. The large model's steps are not given; the observations
    behind them hold their scores.
    """
    lost, known = False, True
    steps = trace["steps"]
    for index, step in enumerate(steps):
        before = steps[:index]
        draft = step["discarded"] or (step if step["writer"] == "small" else None)
        if draft is not None:
            state = LOST if lost else {True: RIGHT, False: SLIP}.get(draft["label"])
            seen = Observation(
                question=trace["question"],
                index=index,
                max_steps=max(len(steps), 1),
                scores=tuple(other["score"] for other in before),
                tokens=tuple(other["tokens"] for other in before),
                writers=tuple(other["writer"] for other in before),
                score=draft["score"],
                draft=draft["text"],
                draft_tokens=draft["tokens"],
                draft_ends=index == len(steps) - 1 and trace["stopped"] == "finished",
            )
            yield seen, state if known else None
        known = known and (lost or step["label"] is not None)
        lost = lost or step["label"] is False


def losses(policy: pomdp, trace: Mapping[str, Any]) -> Floats:
    """Return the log-loss of the true state, in nats, at each draft whose state is known."""
    beliefs, states, memory = [], [], None
    for seen, state in drafts_of(trace):
        placed = remembering(seen, memory)
        if state is not None:
            beliefs.append(policy.belief(placed))
            states.append(state)
        memory = policy.decide(placed).memory
    if not states:
        return np.zeros(0)
    return log_loss(np.array(beliefs).T, np.array(states))
