"""The beginning of a run: what is checked, fixed and reset before the first step."""

from __future__ import annotations

import hashlib
import json
import uuid
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .budget import nothing_spent
from .context import Settings, check_prices, describe, overridden
from .conversation import question_of, require_answerable
from .errors import SettingsError
from .policies import Policy
from .segment import DelimiterSteps, FunctionSteps, Segmentation
from .state import SCHEMA_VERSION, Run, TrimState

SCORED_ROUND = 6
"""Supersteps kept for a draft that may be regenerated: generate, score, route, generate, route, finalize."""
PLAIN_ROUND = 3
"""Supersteps kept for a step on which no decision hangs: generate, route, finalize."""
PROBE = 2
"""Supersteps that a probe adds to a step: generate, route."""
RECURSION_FLOOR = 1 + PROBE + SCORED_ROUND + 1
"""Lowest recursion limit a run can begin with: the first `route`, the longest round, the last look."""


def settings_of(run: Run) -> Settings:
    """Return what a run goes by, as it was stored when it began.

    Raises:
        SettingsError: A newer release began the run, or its settings are none (an edited state).
    """
    if run["schema"] > SCHEMA_VERSION:
        raise SettingsError(
            f"run {run['id']} was begun by a newer trim-graph: its state has the schema {run['schema']}, "
            f"this release reads up to {SCHEMA_VERSION}. Upgrade trim-graph to go on with it"
        )
    try:
        return Settings.model_validate(run["settings"])
    except ValidationError as error:
        raise SettingsError(
            f"the stored settings of run {run['id']} are not valid: {describe(error)}"
        ) from error


def policy_of(settings: Settings, own: Policy) -> Policy:
    """Return the policy a run goes by: the graph's own, or the one its context named.

    Raises:
        SettingsError: The context's is not valid.
    """
    return own if settings.policy is None else _built(json.dumps(settings.policy, sort_keys=True))


def segmentation_of(settings: Settings, own: Segmentation | None) -> Segmentation:
    """Return how a run finds where a step ends.

    Args:
        settings: Of the run. They name a user's function, but cannot hold it.
        own: The graph's own.

    Raises:
        SettingsError: The run was begun with a function that this graph does not have.
    """
    chosen = settings.segmentation
    if chosen is None:
        return DelimiterSteps(delimiter=settings.delimiter)
    if not isinstance(chosen, FunctionSteps):
        return chosen
    if not isinstance(own, FunctionSteps) or own.name != chosen.name:
        raise SettingsError(
            f"this run was begun with the segmentation function {chosen.name}; build the graph "
            "with it to go on"
        )
    return own


@lru_cache(maxsize=64)
def _built(spec: str) -> Policy:
    from .config_policies import PolicyConfig

    try:
        policy: Policy = TypeAdapter[Any](PolicyConfig).validate_python(json.loads(spec)).build()
    except ValidationError as error:
        raise SettingsError(f"the context's policy is not valid: {describe(error)}") from error
    return policy


def begin_run(
    given: TrimState, limit: int, settings: Settings, context: Any, *, policy: Policy, has_scorer: bool
) -> TrimState:
    """Check the input and set up the state of a new run, before any model is called.

    Args:
        given: The channels of the input: ``messages`` and perhaps ``question``.
        limit: The recursion limit, counted in supersteps.
        settings: The graph's own.
        context: Of the call; may hold overrides.
        policy: The graph's own.
        has_scorer: Whether the graph has a scorer, which a context's policy may need.

    Raises:
        SettingsError: The recursion limit is too low for one step, or the overrides are not valid.
        InputError: The conversation cannot be answered.
    """
    if limit < RECURSION_FLOOR:
        raise SettingsError(
            f"recursion_limit={limit} is too low for a single step: trim-graph needs at least "
            f"{RECURSION_FLOOR} supersteps, and 3 to 5 more for every further step (2 more with a probe)"
        )
    settings = check_prices(overridden(settings, context))
    routing = policy_of(settings, policy)
    if routing.needs_score and not has_scorer:
        raise SettingsError(
            f"the context's policy {settings.policy} needs scores, but the graph was built without a scorer"
        )
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
        failed=None,
        memory=None,
        spend=nothing_spent(),
        stopped="",
        notes=[],
        remaining_steps=limit - 1,
    )
