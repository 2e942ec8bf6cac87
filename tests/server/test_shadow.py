"""A server whose configuration has the section ``shadow``: one model answers, and routing runs beside it."""

import httpx
import pytest

from tests.server.conftest import LARGE, SMALL, config_of, parts_of, wait_until
from trim_graph.cli.options import ServeOptions
from trim_graph.cli.serve import run_serve
from trim_graph.errors import SettingsError
from trim_graph.server.operating_points import OperatingPoints
from trim_graph.shadow import read_shadow


@pytest.fixture
def shadowed(serve, tmp_path):
    return serve(parts_of(), shadow={"answers": "large", "record": str(tmp_path / "shadow.jsonl")})


def counts(server):
    return httpx.get(f"{server.root}/health").json()["shadow"]


def test_the_models_own_answer_is_given_and_routing_is_recorded(shadowed, tmp_path):
    for stream in (False, True):
        answer = shadowed.ask(stream=stream)
        assert answer.headers["x-trim-operating-point"] == "shadow"
    assert shadowed.ask().json()["choices"][0]["message"]["content"] == "\n\n".join(LARGE)
    wait_until(lambda: counts(shadowed)["recorded"] == 3)
    for record in read_shadow(tmp_path / "shadow.jsonl"):
        assert (record["error"], record["would"]["places"]) == (None, [1])
        assert record["question"]["text"] is None


def test_answers_to_other_operating_points_and_cut_ones_are_no_records(shadowed):
    assert shadowed.ask(model="small").json()["choices"][0]["message"]["content"] == "\n\n".join(SMALL)
    assert shadowed.ask(model="trim:0.5").json()["trim"]["steps"] == {"small": 3, "large": 1}
    assert shadowed.ask(trim={"threshold": 0.05}).json()["trim"]["operating_point"] == "0.05"
    assert counts(shadowed)["seen"] == 0
    assert shadowed.ask(max_tokens=2).json()["choices"][0]["finish_reason"] == "length"
    assert (counts(shadowed)["seen"], counts(shadowed)["unsuitable"]) == (1, 1)
    assert shadowed.ask(stop=["two"]).json()["choices"][0]["finish_reason"] == "stop"
    assert (counts(shadowed)["seen"], counts(shadowed)["unsuitable"]) == (2, 2)


def test_the_name_of_the_pair_stands_for_one_model(tmp_path):
    points = OperatingPoints(config_of(shadow={"answers": "small", "record": str(tmp_path / "s.db")}), "trim")
    assert points.of_model("trim") == ("shadow", "shadow", {"policy": {"type": "small_only"}})
    assert points.of_model("trim:0.5").kind == "threshold"


def test_a_shadow_budget_over_several_processes_needs_a_ledger(tmp_path):
    (tmp_path / "trim.yaml").write_text(
        "small: {type: example}\nlarge: {type: example}\npolicy: small_only\n"
        "shadow: {answers: small, record: s.db, run_rate: 0.1, budget: {large_calls: 500}}\n"
    )
    with pytest.raises(SettingsError, match=r"shadow\.budget would hold for each of --workers by itself"):
        run_serve(ServeOptions(config=tmp_path / "trim.yaml", workers=2))
