"""The beginning of a run: what is checked, fixed and reset before the first step."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from .budget import nothing_spent
from .context import Settings, overridden
from .conversation import question_of, require_answerable
from .errors import SettingsError
from .state import SCHEMA_VERSION, Run, TrimState

SCORED_ROUND = 6
"""Supersteps kept for a draft that may be regenerated: generate, score, route, generate, route, finalize."""
PLAIN_ROUND = 3
"""Supersteps kept for a step on which no decision hangs: generate, route, finalize."""
RECURSION_FLOOR = 1 + SCORED_ROUND + 1
"""Lowest recursion limit a run can begin with: the first `route`, one round, LangGraph's last look."""


def begin_run(given: TrimState, limit: int, settings: Settings, context: Any) -> TrimState:
    """Check the input and set up the state of a new run, before any model is called.

    Args:
        given: The channels of the input: ``messages`` and perhaps ``question``.
        limit: The recursion limit, counted in supersteps.
        settings: The graph's own.
        context: Of the call; may hold overrides.

    Raises:
        SettingsError: The recursion limit is too low for one step, or the overrides are not valid.
        InputError: The conversation cannot be answered.
    """
    if limit < RECURSION_FLOOR:
        raise SettingsError(
            f"recursion_limit={limit} is too low for a single step: trim-graph needs at least "
            f"{RECURSION_FLOOR} supersteps, and 3 to 5 more for every further step"
        )
    settings = overridden(settings, context)
    messages = given.get("messages", [])
    question = given.get("question") or question_of(messages)
    require_answerable(messages, question)
    run_id = uuid.uuid4().hex
    seed = run_id
    if settings.seed is not None:
        said = "\x00".join(str(message.text) for message in messages)
        seed = f"{settings.seed}:{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()}"
    run = Run(
        schema=SCHEMA_VERSION,
        id=run_id,
        message_id=f"trim-{run_id}",
        seed=seed,
        question=question,
        settings=settings.model_dump(mode="json"),
    )
    return TrimState(
        messages=messages,
        run=run,
        steps=[],
        scores={},
        decisions=[],
        draft=None,
        order=None,
        in_flight=None,
        memory=None,
        spend=nothing_spent(),
        stopped="",
        notes=[],
        remaining_steps=limit - 1,
    )
