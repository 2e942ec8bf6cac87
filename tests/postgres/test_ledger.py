"""A ledger in a real PostgreSQL."""

import ledgers
import psycopg
import pytest

from trim_graph import SettingsError
from trim_graph.budget.ledger import LargeUsage, open_ledger


@pytest.fixture
def ledger(database, monkeypatch):
    monkeypatch.setenv("TRIM_TEST_LEDGER", database)
    with open_ledger("env:TRIM_TEST_LEDGER") as opened:
        yield opened


def test_a_call_sets_aside_and_settles(ledger):
    ledgers.check_one_call(ledger)


def test_a_question_that_fails_changes_nothing(ledger):
    ledgers.check_a_failing_question(ledger)


def test_runs_at_once_never_exceed_the_limit_together(ledger):
    ledgers.check_concurrent_runs(ledger)


def test_what_is_set_aside_is_listed_and_given_back(ledger):
    ledgers.check_reservations(ledger)


def test_what_has_expired_counts_in_full_and_may_be_settled_late(database, monkeypatch):
    monkeypatch.setenv("TRIM_TEST_LEDGER", database)
    with open_ledger("env:TRIM_TEST_LEDGER", reservation_s=1e-9) as ledger:
        ledgers.check_expired(ledger)


OLD = """
CREATE TABLE trim_accounts (
    account TEXT PRIMARY KEY, large_tokens BIGINT NOT NULL DEFAULT 0, large_calls BIGINT NOT NULL DEFAULT 0,
    large_cost DOUBLE PRECISION NOT NULL DEFAULT 0);
CREATE TABLE trim_reserved (
    account TEXT NOT NULL, entry TEXT NOT NULL, large_tokens BIGINT NOT NULL, large_calls BIGINT NOT NULL,
    large_cost DOUBLE PRECISION NOT NULL, PRIMARY KEY (account, entry));
INSERT INTO trim_accounts VALUES ('user:ada', 40, 4, 0.5);
INSERT INTO trim_reserved VALUES ('user:ada', 'run.4', 8, 1, 0.25);
"""


def test_a_ledger_of_an_earlier_release_goes_on(database, monkeypatch):
    monkeypatch.setenv("TRIM_TEST_LEDGER", database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(OLD, prepare=False)
    for _ in range(2):
        with open_ledger("env:TRIM_TEST_LEDGER") as ledger:
            assert ledger.used("user:ada") == LargeUsage(48, 5, 0.75)
            (old,) = ledger.reservations()
            assert (old.owner, old.since, old.expired()) == (None, None, True)
    with open_ledger("env:TRIM_TEST_LEDGER") as ledger:
        assert ledger.reserve("user:ada", "new", ledgers.up_to(50, 9)) == LargeUsage(2, 1, 0.002)
        assert ledger.release("user:ada", "run.4")
        assert ledger.used("user:ada") == LargeUsage(42, 5, 0.502)


def test_a_table_that_is_none_of_a_ledger_is_refused(database, monkeypatch):
    monkeypatch.setenv("TRIM_TEST_LEDGER", database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE trim_reserved (account TEXT, seats INTEGER)")
    with pytest.raises(SettingsError, match="its table trim_reserved has the columns account, seats"):
        open_ledger("env:TRIM_TEST_LEDGER").__enter__()
