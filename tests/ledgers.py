"""What every ledger must do; `test_ledger.py` and `postgres/test_ledger.py` run it."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trim_graph.budget.ledger import LargeUsage, Ledger, MemoryLedger, this_owner


def up_to(limit: int, wanted: int):
    """Asks for tokens under a limit, in one call."""

    def ask(used: LargeUsage) -> LargeUsage | None:
        granted = min(wanted, limit - used.large_tokens)
        return LargeUsage(granted, 1, granted / 1000) if granted > 0 else None

    return ask


def check_one_call(ledger: Ledger) -> None:
    assert ledger.used("a") == LargeUsage()
    assert ledger.reserve("a", "1", up_to(100, 70)) == LargeUsage(70, 1, 0.07)
    assert ledger.used("a") == LargeUsage(70, 1, 0.07)
    assert ledger.reserve("a", "1", up_to(100, 70)) == LargeUsage(70, 1, 0.07), "asked again after a crash"
    assert ledger.reserve("a", "2", up_to(100, 70)) == LargeUsage(30, 1, 0.03)
    assert ledger.reserve("a", "3", up_to(100, 70)) is None
    ledger.settle("a", "1", LargeUsage(20, 1, 0.5))
    assert ledger.used("a") == LargeUsage(50, 2, 0.53)
    ledger.settle("a", "1", LargeUsage(20, 1, 0.5))
    assert ledger.used("a") == LargeUsage(50, 2, 0.53), "settled twice"
    ledger.settle("a", "never", LargeUsage(20, 1, 0.5))
    assert ledger.used("a") == LargeUsage(50, 2, 0.53)
    assert ledger.used("b") == LargeUsage(), "another account"


def check_a_failing_question(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        ledger.reserve("f", "1", lambda used: 1 / 0)
    assert ledger.used("f") == LargeUsage()
    assert ledger.reserve("f", "2", up_to(10, 4)) == LargeUsage(4, 1, 0.004)


def check_concurrent_runs(ledger: Ledger, *, limit: int = 500, runs: int = 8, calls: int = 25) -> None:
    """Runs at the same time: never over the limit at any moment, and the sum is what was used."""
    over: list[LargeUsage] = []

    def run(name: int) -> int:
        draw, spent = random.Random(name), 0
        for call in range(calls):
            granted = ledger.reserve("shared", f"{name}.{call}", up_to(limit, draw.randint(1, 40)))
            if ledger.used("shared").large_tokens > limit:
                over.append(ledger.used("shared"))
            if granted is not None:
                used = draw.randint(0, granted.large_tokens)
                ledger.settle("shared", f"{name}.{call}", LargeUsage(used, 1, 0.0))
                spent += used
        return spent

    with ThreadPoolExecutor(runs) as threads:
        spent = sum(threads.map(run, range(runs)))
    assert not over
    assert ledger.used("shared").large_tokens == spent <= limit
    assert spent > limit * 0.9, "the limit was hardly touched, so nothing was tried"


def check_reservations(ledger: Ledger) -> None:
    """What is listed, given back, and settled late."""
    for account, entry in (("l", "1"), ("m", "1"), ("l", "2")):
        ledger.reserve(account, entry, up_to(100, 30))
    listed = ledger.reservations()
    assert sorted((one.account, one.entry) for one in listed) == [("l", "1"), ("l", "2"), ("m", "1")]
    (first, second), (other,) = ledger.reservations("l"), ledger.reservations("m")
    assert (first.entry, second.entry, other.account) == ("1", "2", "m")
    assert first.amount == LargeUsage(30, 1, 0.03)
    assert first.owner == this_owner()
    assert first.since <= second.since < second.expires
    assert (first.expired(), first.expired(first.expires)) == (False, True)
    assert ledger.release("l", "1")
    assert not ledger.release("l", "1")
    assert not ledger.release("nobody", "2")
    assert ledger.used("l") == LargeUsage(30, 1, 0.03)
    ledger.settle("l", "1", LargeUsage(9, 1, 0.0))
    assert ledger.used("l") == LargeUsage(30, 1, 0.03), "what was given back is nobody's"
    ledger.settle("l", "2", LargeUsage(9, 1, 0.0))
    assert ledger.used("l") == LargeUsage(9, 1, 0.0)
    assert ledger.reservations("l") == []
    ledger.settle("m", "1", LargeUsage())


def check_expired(ledger: Ledger) -> None:
    """Of a ledger whose reservations expire at once: they count in full, and are settled all the same."""
    ledger.reserve("x", "1", up_to(100, 60))
    time.sleep(0.01)
    assert ledger.reservations("x")[0].expired()
    assert ledger.used("x").large_tokens == 60
    assert ledger.reserve("x", "2", up_to(100, 60)) == LargeUsage(40, 1, 0.04)
    ledger.settle("x", "1", LargeUsage(10, 1, 0.0))
    assert ledger.used("x").large_tokens == 50


class LedgerMachine(RuleBasedStateMachine):
    """Calls that reserve, end, crash, continue beside each other and are cleared away, in any order.

    ``generated`` is what models really wrote. It may pass the limit only by what they wrote beyond what they
    were granted.
    """

    LIMIT = 100

    def make(self) -> Ledger:
        return MemoryLedger(reservation_s=1e-9)

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.make()
        self.number = self.generated = self.overshoot = self.settled = 0
        self.calls: dict[str, int] = {}  # under way: granted
        self.lost: dict[str, int] = {}  # crashed: granted

    @rule(wanted=st.integers(1, 60))
    def begin(self, wanted: int) -> None:
        self.number += 1
        entry = f"run.{self.number % 3}.{self.number}"
        granted = self.ledger.reserve("a", entry, up_to(self.LIMIT, wanted))
        assert self.ledger.reserve("a", entry, up_to(self.LIMIT, wanted)) == granted or granted is None
        if granted is not None:
            self.calls[entry] = granted.large_tokens

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), part=st.floats(0, 1), over=st.sampled_from([0, 0, 0, 7]))
    def end(self, data: st.DataObject, part: float, over: int) -> None:
        entry = data.draw(st.sampled_from(sorted(self.calls)))
        granted = self.calls.pop(entry)
        used = granted + over if over else int(granted * part)
        self.generated, self.overshoot = self.generated + used, self.overshoot + over
        self.settled += used
        for _ in range(data.draw(st.integers(1, 2))):  # reported twice changes nothing
            self.ledger.settle("a", entry, LargeUsage(used, 1, 0.0))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), part=st.floats(0, 1))
    def crash(self, data: st.DataObject, part: float) -> None:
        entry = data.draw(st.sampled_from(sorted(self.calls)))
        self.lost[entry] = granted = self.calls.pop(entry)
        self.generated += int(granted * part)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def charge(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(sorted(self.lost)))
        granted = self.lost.pop(entry)
        self.settled += granted
        self.ledger.settle("a", entry, LargeUsage(granted, 1, 0.0))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def never_made(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(sorted(self.calls)))
        del self.calls[entry]
        assert self.ledger.release("a", entry)

    @invariant()
    def the_limit_holds(self) -> None:
        used = self.ledger.used("a").large_tokens
        live = sum(self.calls.values()) + sum(self.lost.values())
        assert used == self.settled + live
        assert self.generated <= used <= self.LIMIT + self.overshoot
        assert {one.entry for one in self.ledger.reservations("a")} == self.calls.keys() | self.lost.keys()
