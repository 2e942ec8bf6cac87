"""`trim-graph ledger`: what calls have set aside, and giving it back."""

import json

import pytest

from trim_graph.budget.ledger import LargeUsage, open_ledger


@pytest.fixture
def spend(world):
    with open_ledger("sqlite:spend.db", reservation_s=1e-9) as ledger:
        ledger.reserve("user:ada", "run.0.a", lambda used: LargeUsage(30, 1, 0.5))
        ledger.reserve("user:eve", "run.1.b", lambda used: LargeUsage(7, 1, 0.0))
    with open_ledger("sqlite:spend.db") as ledger:
        ledger.reserve("user:ada", "run.2.c", lambda used: LargeUsage(1, 1, 0.0))
        yield ledger


def test_what_is_set_aside_is_listed(spend, run):
    reported = run("ledger", "list", "sqlite:spend.db")
    assert reported.exit_code == 0, reported.output
    first, second, third, total = reported.stdout.splitlines()
    assert first.startswith("user:ada run.0.a, 30 tokens, cost 0.5, 0 s old, ")
    assert first.endswith("; expired")
    assert second.startswith("user:eve run.1.b, 7 tokens, 0 s old, ")
    assert third.startswith("user:ada run.2.c, 1 token, ")
    assert not third.endswith("expired")
    assert total == "3 reservations, 2 of them expired; all of them count as used in full"
    assert "run.1.b" not in run("ledger", "list", "sqlite:spend.db", "--account", "user:ada").stdout
    rows = json.loads(run("ledger", "list", "sqlite:spend.db", "--json").stdout)
    assert rows[0]["amount"] == {"large_tokens": 30, "large_calls": 1, "large_cost": 0.5}
    assert [row["expired"] for row in rows] == [True, True, False]


def test_one_is_given_back(spend, run):
    reported = run("ledger", "release", "sqlite:spend.db", "--account", "user:ada", "--entry", "run.2.c")
    assert reported.stdout.splitlines()[-1] == "1 reservation given back"
    assert spend.used("user:ada") == LargeUsage(30, 1, 0.5)


def test_those_that_have_expired_are_given_back_or_charged(spend, run):
    options = ("ledger", "release", "sqlite:spend.db", "--expired")
    reported = run(*options, "--account", "user:ada", "--charge")
    assert reported.stdout.splitlines()[-1] == "1 reservation charged in full"
    assert run(*options, "--account", "user:eve").stdout.splitlines()[-1] == "1 reservation given back"
    assert spend.used("user:ada") == LargeUsage(31, 2, 0.5)
    assert spend.used("user:eve") == LargeUsage()
    assert [one.entry for one in spend.reservations()] == ["run.2.c"]
    assert run(*options, "--account", "user:eve").stdout == "0 reservations given back\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "memory"), "memory is no ledger that lasts: give sqlite:PATH"),
        (("list", "sqlite:none.db"), "none.db: no such file"),
        (("list", "rubbish"), "ledger is not one of the choices: choose memory, sqlite:PATH"),
        (("list", "postgresql://me:secret@host/spend"), "ledger holds a password; set PGPASSWORD"),
        (
            ("release", "sqlite:spend.db", "--account", "user:ada"),
            "say which reservations: --entry ENTRY, or",
        ),
        (
            ("release", "sqlite:spend.db", "--account", "a", "--entry", "b", "--expired"),
            "say which reservations",
        ),
        (("release", "sqlite:spend.db", "--account", "a", "--entry", "b"), "a has no reservation b: see"),
    ],
)
def test_what_cannot_be_done_is_a_line(spend, run, arguments, said):
    reported = run("ledger", *arguments)
    assert reported.exit_code == 2
    assert reported.stdout == ""
    assert said in reported.stderr
    assert len(reported.stderr.splitlines()) == 1


def test_a_name_with_a_line_break_makes_no_line(spend, run):
    spend.reserve("user:ada\nuser:bob", "run.3.d", lambda used: LargeUsage(1, 1, 0.0))
    reported = run("ledger", "list", "sqlite:spend.db")
    assert len(reported.stdout.splitlines()) == 5
    assert "user:ada\\nuser:bob run.3.d" in reported.stdout
