import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing

import ledgers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.budget.ledger import LargeUsage, MemoryLedger, SqliteLedger, open_ledger


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path):
    with open_ledger("memory" if request.param == "memory" else f"sqlite:{tmp_path / 'spend.db'}") as opened:
        yield opened


def test_a_call_sets_aside_and_settles(ledger):
    ledgers.check_one_call(ledger)


def test_a_question_that_fails_changes_nothing(ledger):
    ledgers.check_a_failing_question(ledger)


def test_runs_at_once_never_exceed_the_limit_together(ledger):
    ledgers.check_concurrent_runs(ledger)


def test_what_is_set_aside_is_listed_and_given_back(ledger):
    ledgers.check_reservations(ledger)


@pytest.mark.parametrize("place", ["memory", "sqlite"])
def test_what_has_expired_counts_in_full_and_may_be_settled_late(place, tmp_path):
    spec = place if place == "memory" else f"sqlite:{tmp_path / 'spend.db'}"
    with open_ledger(spec, reservation_s=1e-9) as ledger:
        ledgers.check_expired(ledger)


TestMemoryLedger = ledgers.LedgerMachine.TestCase
TestMemoryLedger.settings = settings(max_examples=60, deadline=None)


class _SqliteMachine(ledgers.LedgerMachine):
    def make(self):
        self.folder = tempfile.TemporaryDirectory()
        return SqliteLedger(f"{self.folder.name}/spend.db", 1e-9)

    def teardown(self):
        self.folder.cleanup()


TestSqliteLedger = _SqliteMachine.TestCase
TestSqliteLedger.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)


OLD = """
CREATE TABLE trim_accounts (
    account TEXT PRIMARY KEY, large_tokens INTEGER, large_calls INTEGER, large_cost REAL);
CREATE TABLE trim_reserved (
    account TEXT, entry TEXT, large_tokens INTEGER, large_calls INTEGER, large_cost REAL,
    PRIMARY KEY (account, entry));
INSERT INTO trim_accounts VALUES ('user:ada', 40, 4, 0.5);
INSERT INTO trim_reserved VALUES ('user:ada', 'run.4', 8, 1, 0.25);
"""


def test_a_ledger_of_an_earlier_release_goes_on(tmp_path):
    with closing(sqlite3.connect(tmp_path / "spend.db")) as connection:
        connection.executescript(OLD)
    for _ in range(2):
        with open_ledger(f"sqlite:{tmp_path / 'spend.db'}") as ledger:
            assert ledger.used("user:ada") == LargeUsage(48, 5, 0.75)
            (old,) = ledger.reservations()
            assert (old.owner, old.since, old.expires, old.expired()) == (None, None, None, True)
    with open_ledger(f"sqlite:{tmp_path / 'spend.db'}") as ledger:
        ledger.settle("user:ada", "run.4", LargeUsage(3, 1, 0.0))
        assert ledger.used("user:ada") == LargeUsage(43, 5, 0.5)
        assert ledger.reserve("user:ada", "new", ledgers.up_to(50, 9)) == LargeUsage(7, 1, 0.007)
        assert ledger.reservations()[0].owner is not None


def test_a_table_that_is_none_of_a_ledger_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("CREATE TABLE trim_reserved (account TEXT, seats INTEGER)")
    with pytest.raises(
        SettingsError, match=r"x\.db cannot be opened: its table trim_reserved has the columns account, seats"
    ):
        open_ledger(f"sqlite:{tmp_path / 'x.db'}")


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_the_time_of_a_reservation_is_checked(seconds):
    with pytest.raises(SettingsError, match="reservation_s is"):
        open_ledger("memory", reservation_s=seconds)


def test_processes_share_a_file(tmp_path, pytestconfig):
    code = """
    import sys
    from ledgers import up_to
    from trim_graph.budget.ledger import LargeUsage, open_ledger
    with open_ledger(f"sqlite:{sys.argv[1]}") as ledger:
        for call in range(40):
            entry = f"{sys.argv[2]}.{call}"
            if ledger.reserve("shared", entry, up_to(300, 7)):
                ledger.settle("shared", entry, LargeUsage(5, 1, 0.0))
    """
    environment = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath / "tests")}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "spend.db")]
    started = [subprocess.Popen([*command, str(name)], env=environment) for name in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    with open_ledger(f"sqlite:{tmp_path / 'spend.db'}") as ledger:
        # 60 calls of 5 tokens; the last ones are granted less than 7 but used 5, as this script says.
        assert 295 <= ledger.used("shared").large_tokens <= 304


def test_what_was_set_aside_outlives_the_process(tmp_path):
    spec = f"sqlite:{tmp_path / 'spend.db'}"
    with open_ledger(spec) as ledger:
        ledger.reserve("a", "1", ledgers.up_to(100, 60))
    with open_ledger(spec) as ledger:
        assert ledger.used("a").large_tokens == 60
        ledger.settle("a", "1", LargeUsage(10, 1, 0.0))
        assert ledger.used("a").large_tokens == 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_the_limit_holds_whatever_is_asked(calls):
    ledger = MemoryLedger()
    open_calls = {}
    for number, (kind, wanted, part) in enumerate(calls):
        if kind and open_calls:
            entry, granted = open_calls.popitem()
            ledger.settle("a", entry, LargeUsage(int(granted * part), 1, 0.0))
        else:
            got = ledger.reserve("a", str(number), ledgers.up_to(100, wanted))
            if got:
                open_calls[str(number)] = got.large_tokens
        assert sum(open_calls.values()) <= ledger.used("a").large_tokens <= 100


@pytest.mark.parametrize("spec", ["none", "rubbish"])
def test_an_unknown_specification_says_what_there_is(spec):
    with pytest.raises(SettingsError, match="choose"):
        open_ledger(spec)


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / "x.db").write_text("this is not a database at all, whatever its name says" * 20)
    with pytest.raises(SettingsError, match=r"x\.db cannot be opened: file is not a database"):
        open_ledger(f"sqlite:{tmp_path / 'x.db'}")
