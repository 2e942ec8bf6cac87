"""The trained policies that ship with the example: they load, route, and are in the measured table."""

import asyncio
import json

import pytest

from trim_graph import create_trim_graph
from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.evaluation import run_arm
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.examples.arithmetic.shipped import CHOSEN, load_chosen
from trim_graph.examples.arithmetic.study.families import STEP_MODEL
from trim_graph.examples.arithmetic.study.measure_learned import MEASURED, POLICIES, measure, table
from trim_graph.examples.arithmetic.study.trees import example_expander
from trim_graph.examples.arithmetic.study.worlds import World
from trim_graph.policies import load_policy, threshold
from trim_graph.training.planner import Terms, solve
from trim_graph.training.step_model import StepModel

FILES = sorted(file for kind in ("aggregate", "sequence") for file in POLICIES.glob(f"{kind}-0.*.json"))
PLANS = sorted(POLICIES.glob("pomdp-[0-9]*.json"))


def test_there_is_a_family_of_each():
    assert {file.stem.split("-")[0] for file in FILES} == {"aggregate", "sequence"}
    assert len(FILES) >= 8
    assert len(PLANS) >= 4
    assert sum(file.stat().st_size for file in POLICIES.iterdir()) < 1_100_000


def test_the_plans_are_those_of_the_step_model_that_ships():
    model = StepModel.load(STEP_MODEL)
    for file in PLANS:
        shipped = load_policy(file).plan
        again = solve(model, Terms(cost_per_token=shipped.cost_per_token))
        assert shipped.settings() == again.settings()
        assert all((array == again.arrays()[name]).all() for name, array in shipped.arrays().items())


def test_the_demo_shows_the_cheapest_of_those_that_recover_enough():
    chosen = json.loads(CHOSEN.read_text())
    assert (chosen["part"], chosen["n"]) == ("validation", 1000)
    assert all(one["pgr"] >= 0.95 for one in chosen["policies"].values())
    assert [file.is_file() for file in load_chosen().values()] == [True] * 3


def test_all_of_them_are_measured_on_two_thousand_problems():
    measured = json.loads(MEASURED.read_text())
    assert measured["n"] >= 2000
    assert {file.stem for file in [*FILES, *PLANS]} <= {row["policy"] for row in measured["rows"]}


@pytest.fixture(scope="module")
def models():
    return (
        ChatTransformers(model=str(SMALL)),
        ChatTransformers(model=str(LARGE)),
        TransformersProcessReward(PRM),
    )


@pytest.mark.parametrize("file", ["aggregate-0.01", "sequence-0.01", "pomdp-1"])
def test_they_route_the_example_models(file, models):
    policy = load_policy(POLICIES / f"{file}.json")
    graph = create_trim_graph(*models, policy=policy)
    questions = [arithmetic_question(problem) for problem in problems("standard", 8, part="test", seed=9)]
    outcomes = asyncio.run(run_arm(graph, questions))
    assert [outcome["error"] for outcome in outcomes] == [None] * 8
    assert sum(bool(outcome["correct"]) for outcome in outcomes) >= 7
    assert 0 < sum(outcome["large_tokens"] for outcome in outcomes) < 8 * 62.6 / 2


def test_the_measurement_pairs_a_policy_with_the_threshold_that_spends_no_less():
    questions = [arithmetic_question(problem) for problem in problems("standard", 4, part="test", seed=8)]
    expander = example_expander("standard")
    world = World("standard", [asyncio.run(expander.expand(question)) for question in questions])
    rows = measure(world, {"like a threshold": threshold(0.7)})
    found = next(row for row in rows if row["policy"] == "like a threshold")
    assert found["beside"]["large_tokens"] >= found["large_tokens"]
    same = next(row for row in rows if row["policy"] == "threshold(0.7)")
    assert (found["accuracy"], found["large_tokens"]) == (same["accuracy"], same["large_tokens"])
    assert len(table(rows).splitlines()) == len(rows) + 2
