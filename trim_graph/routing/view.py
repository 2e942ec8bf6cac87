"""`RunView`: what one execution of a node reads from the state of a run, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property, lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trim_graph.budget.limits import Budget, RemainingBudget
from trim_graph.budget.usage import Prices, Usage
from trim_graph.errors import SettingsError
from trim_graph.policies.base import Policy
from trim_graph.segmentation import DelimiterSteps, FunctionSteps, Segmentation, TokenSteps
from trim_graph.settings import Settings, describe
from trim_graph.state import SCHEMA_VERSION, Draft, Run, Step, StepRequest, TrimState, check_schema

CountPrompt = Callable[[Sequence[Step], str], int]
"""Gets accepted steps and the partial text of the next one; returns an upper bound of the large model's
prompt in tokens. Raises `trim_graph.prompt_size.UnboundedPrompt` if there is no bound."""


def settings_of(run: Run) -> Settings:
    """Returns the settings of a run, as they were stored when it began.

    Raises:
        SettingsError: Another release began the run, or the stored settings are not valid (an edited state).
    """
    if run["schema"] != SCHEMA_VERSION:
        check_schema(run)
    for known, settings in _recent:
        if known == run["settings"]:
            return settings
    return _read(run["settings"], run["id"])


_recent: tuple[tuple[dict[str, Any], Settings], ...] = ()
"""Settings read last, newest first: every node reads them, and most runs have the same ones."""
_RECENT_KEPT = 8


def _read(stored: dict[str, Any], run: str) -> Settings:
    global _recent
    try:
        settings = Settings.model_validate(stored)
    except ValidationError as error:
        raise SettingsError(f"the stored settings of run {run} are not valid: {describe(error)}") from error
    # A copy, since the owner of the state may change it in place.
    _recent = ((deepcopy(stored), settings), *_recent[: _RECENT_KEPT - 1])
    return settings


def policy_of(settings: Settings, own: Policy | None) -> Policy:
    """Returns the policy of a run: the one that its context names, or the graph's own.

    Raises:
        SettingsError: The context's policy is not valid.
    """
    if settings.policy is not None:
        return _built(json.dumps(settings.policy, sort_keys=True))
    assert own is not None
    return own


@lru_cache(maxsize=64)
def _built(spec: str) -> Policy:
    from trim_graph.policies.parsing import (  # slow to import, and most calls name none
        PolicyConfig,
        invalid_policy,
    )

    try:
        policy: Policy = TypeAdapter[Any](PolicyConfig).validate_python(json.loads(spec)).build()
    except ValidationError as error:
        raise invalid_policy("the context's policy", error) from error
    return policy


def segmentation_of(settings: Settings, own: Segmentation | None) -> Segmentation:
    """Returns the segmentation of a run.

    Args:
        settings: Settings of the run, which hold only the name of a user's function.
        own: The graph's segmentation.

    Raises:
        SettingsError: The run began with a function that this graph does not have.
    """
    chosen = settings.segmentation
    if chosen is None:
        return _delimiter_steps(settings.delimiter)
    if not isinstance(chosen, FunctionSteps):
        return chosen
    if not isinstance(own, FunctionSteps) or own.name != chosen.name:
        raise SettingsError(
            f"this run was begun with the segmentation function {chosen.name}; build the graph "
            "with it to resume it"
        )
    return own


def step_tokens_of(settings: Settings) -> int:
    """Returns the most tokens of one step."""
    most, chosen = settings.max_step_tokens, settings.segmentation
    return min(most, chosen.tokens) if isinstance(chosen, TokenSteps) else most


@lru_cache(maxsize=64)
def _delimiter_steps(delimiter: str) -> Segmentation:
    return DelimiterSteps(delimiter=delimiter)


class RunView:
    """A run, as one execution of a node reads it from the state.

    Args:
        state: State of the run; not changed.
        policy: The graph's policy, which the run's settings may override; only the router needs it.
        segmentation: The graph's segmentation.
        accounts_left: What is left in each account of the run; only the router needs it.
        count_prompt: Bounds the large model's prompt; only the router needs it, if prompts have a price.
    """

    def __init__(
        self,
        state: TrimState,
        policy: Policy | None = None,
        segmentation: Segmentation | None = None,
        *,
        accounts_left: Mapping[str, RemainingBudget] | None = None,
        count_prompt: CountPrompt | None = None,
    ) -> None:
        self.state = state
        self.run: Run = state["run"]
        self.settings = settings_of(self.run)
        self.budget: Budget = self.settings.budget
        self.prices: Prices = self.settings.prices
        self.accounts: Mapping[str, Mapping[str, Any]] = self.run.get("accounts") or {}
        self.usage: Usage = state["usage"]
        self.steps: Sequence[Step] = state["steps"]
        self.draft: Draft | None = state.get("draft")
        self.request: StepRequest | None = state.get("request")
        self.accounts_left: Mapping[str, RemainingBudget] = accounts_left or {}
        self.count_prompt = count_prompt
        self._own_policy, self._own_segmentation = policy, segmentation

    def after(self, state: TrimState) -> RunView:
        """Returns the view of the same run in a later state; what the change leaves alone is kept.

        Args:
            state: With the same ``run``, and no account to draw from.
        """
        view = object.__new__(RunView)
        view.__dict__.update(self.__dict__)
        view.state, view.steps, view.usage = state, state["steps"], state["usage"]
        view.draft, view.request = state.get("draft"), state.get("request")
        view.__dict__.pop("scores", None)
        if view.usage is not self.usage:
            view.__dict__.pop("left", None)
        return view

    @cached_property
    def policy(self) -> Policy:
        """The policy in effect."""
        return policy_of(self.settings, self._own_policy)

    @cached_property
    def segmentation(self) -> Segmentation:
        """Segmentation of the run, which finds the ends of steps."""
        return segmentation_of(self.settings, self._own_segmentation)

    @property
    def step_tokens(self) -> int:
        """Most tokens of one step."""
        return step_tokens_of(self.settings)

    @cached_property
    def left(self) -> RemainingBudget:
        """What is left of the limits of the run."""
        return self.budget.left(self.usage, self.prices)

    @property
    def seconds_left(self) -> float | None:
        """What is left of the active seconds of the run; None without a limit."""
        return None if self.budget.seconds is None else self.left.seconds

    @cached_property
    def scores(self) -> tuple[float | None, ...]:
        """One score in [0, 1] per accepted step; None for a step that was never scored."""
        scores = self.state["scores"]
        return tuple([scores.get(str(index)) for index in range(len(self.steps))])
