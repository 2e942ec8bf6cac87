"""The course of an evaluation: the models alone, policies, random routing at the spend of each, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .arms import REFERENCES, Arm
from .equal_spend import Dial, Match, match_spends
from .harness import Harness
from .run_files import ArmSettings
from .summarising import LARGE

RANDOM = Dial("random", lambda rate: {"type": "random_rate", "rate": rate})


@dataclass
class Course:
    """What was run, and how the rest is run.

    Args:
        harness: Runs arms.
    """

    harness: Harness
    warnings: list[str] = field(default_factory=list)
    """What a reader of the summary should know."""

    async def references(self) -> None:
        """Run the models alone."""
        for arm in REFERENCES:
            await self.run(arm)

    async def run(self, arm: Arm) -> None:
        """Run one arm."""
        await self.harness.run(arm.name, arm.settings, arm.policy)

    def spend(self, arm: str) -> float:
        """Return the large tokens of an arm that was run, mean a question."""
        return self.harness.done[arm].plain["large_tokens"]

    async def beside(self, arms: Sequence[Arm]) -> None:
        """Run random routing at the spend of each of these."""
        await self.at_spends_of([arm.name for arm in arms], RANDOM, "random")

    async def at_spends_of(self, arms: Sequence[str], dial: Dial, kind: Any) -> None:
        """Run a dial at the spend of each of some arms; nothing where that is none: the small model alone."""
        harness, whole = self.harness, self.spend(LARGE)
        targets = {arm: target for arm in arms if (target := self.spend(arm)) > 0}

        async def at(number: float) -> float:
            name = dial.arm(number)
            settings = ArmSettings(kind=kind, family=dial.family, policy=dial.policy(number), dial=number)
            await harness.run(name, settings, settings["policy"])
            return self.spend(name)

        async def measure(numbers: Sequence[float]) -> list[float]:
            return [await at(number) for number in numbers]

        chosen = {arm: self._chosen(dial, arm, target) for arm, target in targets.items()}
        numbers = [number for number in dict.fromkeys(chosen.values()) if number is not None]
        known = dict(zip(numbers, await measure(numbers), strict=True))
        # A search that begins with what was chosen might go on and end elsewhere.
        sought = {arm: target for arm, target in targets.items() if chosen[arm] is None}
        searches = [Match(target, whole, self._found(dial, arm)) for arm, target in sought.items()]
        for arm, number in zip(sought, await match_spends(searches, measure, known=known), strict=True):
            self._belongs(dial, number, arm, targets[arm])

    def _chosen(self, dial: Dial, arm: str, target: float) -> float | None:
        """Return the number that an earlier run has chosen for an arm at this very spend."""
        for settings in self.harness.arms.values():
            same = arm in settings.get("beside", []) and settings.get("spends", {}).get(arm) == target
            if settings["family"] == dial.family and same:
                return settings.get("dial")
        return None

    def _found(self, dial: Dial, arm: str) -> float | None:
        """Return the number that an earlier run has found for an arm."""
        arms = self.harness.arms.values()
        of = (one for one in arms if one["family"] == dial.family and arm in one.get("beside", []))
        return next((one.get("dial") for one in of), None)

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
