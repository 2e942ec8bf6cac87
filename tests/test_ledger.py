import os
import subprocess
import sys
import textwrap

import ledgers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.ledger import Amount, MemoryLedger, open_ledger


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


def test_processes_share_a_file(tmp_path, pytestconfig):
    code = """
    import sys
    from ledgers import up_to
    from trim_graph.ledger import Amount, open_ledger
    with open_ledger(f"sqlite:{sys.argv[1]}") as ledger:
        for call in range(40):
            entry = f"{sys.argv[2]}.{call}"
            if ledger.reserve("shared", entry, up_to(300, 7)):
                ledger.settle("shared", entry, Amount(5, 1, 0.0))
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
        ledger.settle("a", "1", Amount(10, 1, 0.0))
        assert ledger.used("a").large_tokens == 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_the_limit_holds_whatever_is_asked(calls):
    ledger = MemoryLedger()
    open_calls = {}
    for number, (kind, wanted, part) in enumerate(calls):
        if kind and open_calls:
            entry, granted = open_calls.popitem()
            ledger.settle("a", entry, Amount(int(granted * part), 1, 0.0))
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
