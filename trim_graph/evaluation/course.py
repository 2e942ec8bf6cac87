"""The course of an evaluation: the models alone, policies, random routing at the spend of each, baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arms import REFERENCES, Arm
from .equal_spend import Dial, match_spend
from .harness import Harness
from .run_files import ArmSettings
from .running import Graph
from .summarising import LARGE

Build = Callable[..., Graph]
"""From a policy, as a configuration names it, to its graph; ``scorer`` and ``prices`` replace the usual."""

RANDOM = Dial("random", lambda rate: {"type": "random_rate", "rate": rate})


@dataclass
class Course:
    """What was run, and how the rest is run.

    Args:
        harness: Runs arms.
        build: Makes graphs.
    """

    harness: Harness
    build: Build
    warnings: list[str] = field(default_factory=list)
    """What a reader of the summary should know."""
    _measured: dict[str, dict[float, float]] = field(default_factory=dict)

    async def references(self) -> None:
        """Run the models alone."""
        for arm in REFERENCES:
            await self.run(arm)

    async def run(self, arm: Arm) -> None:
        """Run one arm."""
        await self.harness.run(arm.name, arm.settings, lambda: self.build(arm.policy))

    def spend(self, arm: str) -> float:
        """Return the large tokens of an arm that was run, mean a question."""
        return self.harness.done[arm].plain["large_tokens"]

    async def beside(self, arms: Sequence[Arm]) -> None:
        """Run random routing at the spend of each of these."""
        for arm in arms:
            await self.at_spend_of(arm.name, RANDOM, "random")

    async def at_spend_of(self, arm: str, dial: Dial, kind: Any) -> str | None:
        """Run a dial at the spend of an arm.

        Returns:
            The arm that has it; None where nothing is spent, which is the small model alone.
        """
        target, harness = self.spend(arm), self.harness
        if target <= 0:
            return None
        known = self._measured.setdefault(dial.family, {})

        async def measure(number: float) -> float:
            name = dial.arm(number)
            settings = ArmSettings(kind=kind, family=dial.family, policy=dial.policy(number), dial=number)
            await harness.run(name, settings, lambda: self.build(settings["policy"]))
            return self.spend(name)

        chosen = self._chosen(dial, arm, target)
        if chosen is not None:  # a search that begins with it might go on and end elsewhere
            known[chosen] = await measure(chosen)
            return dial.arm(chosen)
        found = (
            settings.get("dial")
            for settings in harness.arms.values()
            if settings["family"] == dial.family and arm in settings.get("beside", [])
        )
        number = await match_spend(target, self.spend(LARGE), measure, known=known, first=next(found, None))
        self._belongs(dial, number, arm, target)
        return dial.arm(number)

    def _chosen(self, dial: Dial, arm: str, target: float) -> float | None:
        """Return the number that an earlier run has chosen for this arm at this very spend."""
        for settings in self.harness.arms.values():
            same = arm in settings.get("beside", []) and settings.get("spends", {}).get(arm) == target
            if settings["family"] == dial.family and same:
                return settings.get("dial")
        return None

    def _belongs(self, dial: Dial, number: float, arm: str, target: float) -> None:
        """Write down which arm of a dial has the spend of this one."""
        chosen = dial.arm(number)
        for name, settings in self.harness.arms.items():
            if settings["family"] == dial.family and "beside" in settings:
                settings["beside"] = [one for one in settings["beside"] if one != arm or name == chosen]
        own = self.harness.arms[chosen]
        own["beside"] = list(dict.fromkeys([*own.get("beside", []), arm]))
        own["spends"] = {**own.get("spends", {}), arm: target}
        self.harness.write_settings()
