"""With TRIM_NO_SKIP=1 a skipped test fails the run, unless `allowed_skips.txt` lists it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_LIST = Path(__file__).parent / "allowed_skips.txt"


class NoSkips:
    """A pytest plugin; `conftest.py` registers it."""

    def __init__(self) -> None:
        lines = _LIST.read_text("utf-8").splitlines()
        self.allowed = {line for line in map(str.strip, lines) if line and not line.startswith("#")}
        self.skipped: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and report.nodeid not in self.allowed:
            self.skipped.append(f"{report.nodeid}: {report.longrepr}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.skipped:
            terminalreporter.write_line(f"SKIPPED with TRIM_NO_SKIP=1, not in {_LIST.name}: {line}", red=True)


def register(config: pytest.Config) -> None:
    """Takes effect where the environment asks for it."""
    if os.environ.get("TRIM_NO_SKIP") == "1":
        config.pluginmanager.register(NoSkips())
