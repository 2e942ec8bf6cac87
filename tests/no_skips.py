"""With TRIM_NO_SKIP=1 a skipped test fails the run, unless `allowed_skips.txt` lists it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

_LIST = Path(__file__).parent / "allowed_skips.txt"


class NoSkips:
    """A pytest plugin; `conftest.py` registers it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        lines = _LIST.read_text("utf-8").splitlines()
        self.allowed = {line for line in map(str.strip, lines) if line and not line.startswith("#")}
        self.skipped: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        line = f"{report.nodeid}: {report.longrepr}"
        if report.skipped and report.nodeid not in self.allowed and line not in self.skipped:
            self.skipped.append(line)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A process does not tell by itself which files it skipped as it collected them.
        told = getattr(node, "workeroutput", {}).get("skipped", [])
        self.skipped += [line for line in told if line not in self.skipped]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["skipped"] = self.skipped
        elif self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.skipped:
            terminalreporter.write_line(f"SKIPPED with TRIM_NO_SKIP=1, not in {_LIST.name}: {line}", red=True)


def register(config: pytest.Config) -> None:
    """Take effect where the environment asks for it."""
    if os.environ.get("TRIM_NO_SKIP") == "1":
        config.pluginmanager.register(NoSkips(config))
