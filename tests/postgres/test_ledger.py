"""A ledger in a real PostgreSQL."""

import ledgers
import pytest

from trim_graph.ledger import open_ledger


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
