"""What every ledger must do; `test_ledger.py` and `postgres/test_ledger.py` run it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from trim_graph.ledger import Amount, Ledger


def up_to(limit: int, wanted: int):
    """Ask for tokens under a limit, in one call."""

    def ask(used: Amount) -> Amount | None:
        granted = min(wanted, limit - used.large_tokens)
        return Amount(granted, 1, granted / 1000) if granted > 0 else None

    return ask


def check_one_call(ledger: Ledger) -> None:
    assert ledger.used("a") == Amount()
    assert ledger.reserve("a", "1", up_to(100, 70)) == Amount(70, 1, 0.07)
    assert ledger.used("a") == Amount(70, 1, 0.07)
    assert ledger.reserve("a", "1", up_to(100, 70)) == Amount(70, 1, 0.07), "asked again after a crash"
    assert ledger.reserve("a", "2", up_to(100, 70)) == Amount(30, 1, 0.03)
    assert ledger.reserve("a", "3", up_to(100, 70)) is None
    ledger.settle("a", "1", Amount(20, 1, 0.5))
    assert ledger.used("a") == Amount(50, 2, 0.53)
    ledger.settle("a", "1", Amount(20, 1, 0.5))
    assert ledger.used("a") == Amount(50, 2, 0.53), "settled twice"
    ledger.settle("a", "never", Amount(20, 1, 0.5))
    assert ledger.used("a") == Amount(50, 2, 0.53)
    assert ledger.used("b") == Amount(), "another account"


def check_a_failing_question(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        ledger.reserve("f", "1", lambda used: 1 / 0)
    assert ledger.used("f") == Amount()
    assert ledger.reserve("f", "2", up_to(10, 4)) == Amount(4, 1, 0.004)


def check_concurrent_runs(ledger: Ledger, *, limit: int = 500, runs: int = 8, calls: int = 25) -> None:
    """Runs at the same time: never over the limit at any moment, and the sum is what was used."""
    over: list[Amount] = []

    def run(name: int) -> int:
        draw, spent = random.Random(name), 0
        for call in range(calls):
            granted = ledger.reserve("shared", f"{name}.{call}", up_to(limit, draw.randint(1, 40)))
            if ledger.used("shared").large_tokens > limit:
                over.append(ledger.used("shared"))
            if granted is not None:
                used = draw.randint(0, granted.large_tokens)
                ledger.settle("shared", f"{name}.{call}", Amount(used, 1, 0.0))
                spent += used
        return spent

    with ThreadPoolExecutor(runs) as threads:
        spent = sum(threads.map(run, range(runs)))
    assert not over
    assert ledger.used("shared").large_tokens == spent <= limit
    assert spent > limit * 0.9, "the limit was hardly touched, so nothing was tried"
