"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "hint", "fault", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: ``ok``; ``hint``: works, but could be better, or could not be told; ``fault``: does not do
            what a run needs; ``skipped``: an earlier fault leaves nothing to check.
        found: What was seen, one sentence without a full stop.
        mend: What to do about a fault or a hint.
        ends: Whether further checks of the same part would say nothing more.
        part: ``small``, ``large``, ``scorer`` or ``set-up``; with its address, where a part has replicas.
        check: Name of the check.
    """

    status: Status
    found: str
    mend: str = ""
    ends: bool = False
    part: str = ""
    check: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong and how to mend it, in full."""
        mend = f"; mend it: {self.mend}" if self.mend else ""
        return f"{self.part}, {self.check}: what is wrong: {self.found}{mend}"


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def hint(found: str, mend: str = "") -> Finding:
    """Not a fault, but worth knowing."""
    return Finding("hint", found, mend)


def fault(found: str, mend: str = "", *, ends: bool = False) -> Finding:
    """A run would fail or go wrong."""
    return Finding("fault", found, mend, ends)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def faults(self) -> list[Finding]:
        """Those that a run would trip over."""
        return [finding for finding in self.findings if finding.status == "fault"]

    @property
    def hints(self) -> list[Finding]:
        """Those worth knowing."""
        return [finding for finding in self.findings if finding.status == "hint"]

    @property
    def verdict(self) -> str:
        """The whole in a sentence."""
        hints = f", {_counted(len(self.hints), 'hint')}" if self.hints else ""
        if not self.faults:
            return f"no fault{hints}: this set-up does what a run needs"
        parts = ", ".join(dict.fromkeys(finding.part for finding in self.faults))
        return f"{_counted(len(self.faults), 'fault')} ({parts}){hints}: mend them before a run"

    def record(self) -> dict[str, Any]:
        """The report, JSON-native."""
        return {
            "faults": len(self.faults),
            "hints": len(self.hints),
            "verdict": self.verdict,
            "checks": [
                {name: getattr(finding, name) for name in ("part", "check", "status", "found", "mend")}
                for finding in self.findings
            ],
        }

    def without(self, secrets: Iterable[str]) -> Report:
        """The same with every secret masked, should a server have echoed one."""
        hidden = [secret for secret in secrets if secret]

        def masked(text: str) -> str:
            for secret in hidden:
                text = text.replace(secret, "***")
            return text

        return Report(
            tuple(
                Finding(f.status, masked(f.found), masked(f.mend), f.ends, f.part, f.check)
                for f in self.findings
            )
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
