"""The large calls that a shadow may make: whole runs are admitted or refused, none is cut short.

A run that were cut when the budget ends would be a long one, so the runs left would be the short ones, and
every share computed from them too small. So a run is admitted only if the most that it may use is left.
"""

from __future__ import annotations

from trim_graph.budget import Budget, Quota
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.usage import LargeUsage
from trim_graph.errors import SettingsError
from trim_graph.routing.router import step_tokens_of
from trim_graph.settings import Settings

ACCOUNT = "shadow"
"""Account of the ledger that shadows draw from."""


class Allowance:
    """A shadow's budget, and the most that one run may use of it.

    Its methods block as long as the ledger does; they are called in the shadow's own thread.

    Args:
        quota: Limits of all runs together.
        ledger: Counts what they use.
        settings: Settings of a run.
        steps: Most steps of a run that the large model may write.

    Raises:
        SettingsError: The quota limits cost, and nothing limits the cost of one run; or no run fits into it.
    """

    def __init__(self, quota: Quota, ledger: Ledger, settings: Settings, *, steps: int) -> None:
        self._quota, self._ledger, self._budget = quota, ledger, settings.budget
        self._most = _most_of_a_run(quota, settings, steps)

    def reserve(self, entry: str) -> LargeUsage | None:
        """Reserves what a run may use at most; returns None if that is not left."""

        def decide(used: LargeUsage) -> LargeUsage | None:
            left = self._quota.left(used)
            for name in LargeUsage._fields:
                limit = getattr(left, name)
                if limit is not None and limit < getattr(self._most, name):
                    return None
            return self._most

        return self._ledger.reserve(ACCOUNT, entry, decide)

    def settle(self, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a run by what it has used."""
        self._ledger.settle(ACCOUNT, entry, used)

    def budget(self) -> Budget:
        """Returns the budget of one run, within what was reserved for it."""
        limited = [name for name in LargeUsage._fields if getattr(self._quota, name) is not None]
        return self._budget.model_copy(update={name: getattr(self._most, name) for name in limited})


def _most_of_a_run(quota: Quota, settings: Settings, steps: int) -> LargeUsage:
    budget = settings.budget
    tokens, calls = steps * step_tokens_of(settings), steps
    if budget.large_tokens is not None:
        tokens = min(tokens, budget.large_tokens)
    if budget.large_calls is not None:
        calls = min(calls, budget.large_calls)
    if quota.large_cost is not None and budget.large_cost is None:
        raise SettingsError(
            f"shadow_budget.large_cost is {quota.large_cost:g}, but nothing limits the cost of one run, so "
            "none could be begun safely: give budget=Budget(large_cost=...) too"
        )
    most = LargeUsage(tokens, calls, budget.large_cost or 0.0)
    for name in LargeUsage._fields:
        limit = getattr(quota, name)
        if limit is not None and limit < getattr(most, name):
            raise SettingsError(
                f"shadow_budget.{name} is {limit:g}, but one run may use {getattr(most, name):g}: raise it, "
                f"or lower budget.{name}, max_steps or max_step_tokens"
            )
    return most
