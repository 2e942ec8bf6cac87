import json

import pytest
from step_worlds import PUBLISHED, traces_from, world, write

from trim_graph.policies import load_policy
from trim_graph.training.step_model import StepModel


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world(made={"by": "a test"}).save(tmp_path / "model.json")
    return "model.json"


def test_a_plan_for_each_price(model, run, tmp_path):
    result = run(
        "plan", model, "-o", "plan.json", "--cost-per-token", 0.2, "--cost-per-token", 2, "--simulate", 2000
    )
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.glob("plan*.json")) == ["plan-0.2.json", "plan-2.json"]
    rows = [
        line.split() for line in result.stdout.splitlines() if line.startswith((" plan", " small", " large"))
    ]
    spent = {row[-1]: float(row[-3]) for row in rows}
    assert 0 < spent["plan-2.json"] < spent["plan-0.2.json"]
    accuracy = {row[-1]: float(row[2]) for row in rows if row[0] == "plan"}
    small, large = (float(row[3]) for row in rows if row[1] == "alone")
    assert small < accuracy["plan-2.json"] < accuracy["plan-0.2.json"]
    assert small < large
    assert load_policy("plan-2.json").plan.cost_per_token == 2
    made = json.loads((tmp_path / "plan-2.json").read_text())["made"]
    assert (made["source"], made["step_model"]["by"]) == ("model.json", "a test")


def test_a_plan_within_a_budget_has_the_options_that_were_given(model, run):
    result = run(
        *("plan", model, "-o", "plan.json", "--budget", 40, "--belief", "carried_alone", "--no-handover"),
        *("--p-large", 0.99, "--tokens", 10, "--simulate", 500),
    )
    assert result.exit_code == 0, result.output
    assert "at most 40 large tokens" in result.stdout
    assert "large alone, no limit" in result.stdout
    assert "0.990 by the large one" in result.stdout
    plan = load_policy("plan.json").plan
    assert (plan.belief, plan.handover, plan.p_large, plan.mean_tokens) == ("carried_alone", False, 0.99, 10)
    assert plan.start(40) > plan.start(10) > plan.start(0)


def test_a_plan_from_traces_fits_their_step_model(model, run, tmp_path):
    write("traces.jsonl", traces_from(world(), 400))
    result = run(
        *("plan", "traces.jsonl", "-o", "plan.json", "--cost-per-token", 0.5, "--simulate", 500, "--bins", 5),
        *("--model-out", "fitted.json", "--plot", "fitted.png"),
    )
    assert result.exit_code == 0, result.output
    fitted = StepModel.load("fitted.json")
    assert fitted.p_small == pytest.approx(0.8, abs=0.05)
    assert (fitted.bins, fitted.made["traces"]) == (5, "traces.jsonl")
    assert (tmp_path / "fitted.png").stat().st_size > 1000
    assert load_policy("plan.json").plan.p_small == fitted.p_small


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published parameters are not here")
def test_from_the_published_parameters(model, run):
    result = run("plan", PUBLISHED, "-o", "plan.json", "--budget", 120, "--simulate", 2000)
    assert result.exit_code == 0, result.output
    assert "0.866 by the small model, 0.970 by the large one" in result.stdout
    assert load_policy("plan.json").plan.unit == pytest.approx(60 / 15, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("model.json",), "give --cost-per-token or --budget"),
        (("other.json", "--budget", 9), "other.json does not exist"),
        (("model.json", "--budget", 0), "budget=0"),
        (("model.json", "--cost-per-token", -1), "--cost-per-token is -1.0: choose 0 or more"),
        (("model.json", "--budget", 9, "--belief", "mine"), "--belief mine: choose one of carried, "),
        (("model.json", "--budget", 9, "--belief-step", 0.3), "belief_step is 0.3"),
        (("model.json", "--budget", 9, "--p-large", 2), "p_large is 2.0"),
        (("model.json", "--budget", 9, "--simulate", 0), "--simulate is 0"),
        (
            ("model.json", "--budget", 9, "--model-out", "no/model.json"),
            "--model-out no/model.json: the folder",
        ),
        (("thing.json", "--budget", 9), "neither traces"),
        (("model.json", "--budget", 9, "--bins", 7), "--bins"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(model, run, tmp_path, arguments, complaint):
    (tmp_path / "thing.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    result = run("plan", *arguments, "-o", "plan.json")
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_name_of_the_file(model, run):
    result = run("plan", model, "-o", "plan.yaml", "--budget", 9)
    assert (result.exit_code, "must end in .json" in result.stderr) == (2, True)
