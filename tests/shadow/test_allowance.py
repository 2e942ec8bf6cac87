"""Tests of the large calls that a shadow may make: whole runs are admitted or refused."""

from tests.shadow.conftest import build
from trim_graph import Quota
from trim_graph.shadow import read_shadow


def test_a_run_that_may_exceed_the_shadows_budget_is_not_begun_but_walked(file):
    shadow, own, _ = build(
        file, run_rate=1.0, shadow_budget=Quota(large_tokens=70), max_steps=8, max_step_tokens=8
    )
    with shadow:
        model = shadow.watch(own)
        for _ in range(9):
            model.invoke("What is 2 + 2?")
            shadow.drain(10)
    records = list(read_shadow(file))
    kinds = [record["kind"] for record in records]
    spent = sum(record["spent"]["large_tokens"] for record in records)
    assert kinds == ["run"] * 3 + ["walk"] * 6  # 64 are reserved, 3 are used: the fourth would reach 73
    assert spent == 9
    assert {record["refused"] for record in records} == {None, "budget"}


def test_a_ledger_keeps_the_budget_over_restarts(file, tmp_path):
    from trim_graph import open_ledger

    kinds = []
    for _ in range(2):
        with open_ledger(f"sqlite:{tmp_path}/spend.db") as ledger:
            options = {"max_steps": 8, "max_step_tokens": 8, "ledger": ledger}
            shadow, own, _ = build(file, run_rate=1.0, shadow_budget=Quota(large_tokens=66), **options)
            with shadow:
                shadow.watch(own).invoke("What is 2 + 2?")
                shadow.drain(10)
    kinds = [record["kind"] for record in read_shadow(file)]
    assert kinds == ["run", "walk"]
