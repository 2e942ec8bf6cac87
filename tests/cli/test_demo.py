import json
import signal
import time

import pytest
from made_records import a_record

from trim_graph.cli import demo
from trim_graph.examples.arithmetic.shipped import load_chosen


def test_the_demo_prints_a_table_and_writes_a_file(world, run):
    result = run("demo", "-n", "30", "--json", "out.json", "--concurrency", "5")
    assert result.exit_code == 0, result.output
    assert "30 held-out problems, split standard, seed 0" in result.stdout
    shipped = [file.stem for file in load_chosen().values()]
    assert [name.split("-")[0] for name in shipped] == ["pomdp", "aggregate", "sequence"]
    for name in ("small alone", "large alone", "threshold 0.5", *shipped, "random 0."):
        assert name in result.stdout
    assert " to " not in result.stdout
    assert "━" in result.stderr or "small" in result.stderr
    found = json.loads((world / "out.json").read_text())
    assert found["partial"] is False
    assert (found["n"], found["seed"], found["split"], found["part"]) == (30, 0, "standard", "test")
    assert found["machine"]["cpu_count"] >= 1
    assert found["versions"]["langgraph"]
    assert found["date"].endswith("+00:00")
    arms = found["arms"]
    assert arms["large"]["accuracy"] == arms["threshold"]["accuracy"] == 1
    assert arms["threshold"]["pgr"] == 1
    assert arms["small"]["large_tokens"] == 0
    for name in ("planned", "aggregate", "sequence"):
        # They were made for the scores of the shipped reward model, not for this world's.
        assert arms[name]["accuracy"] >= arms["small"]["accuracy"]
        assert 0 < arms[name]["share"] < 0.9
    assert 0 < arms["threshold"]["share"] < 0.7
    assert arms["random"]["share"] == pytest.approx(arms["threshold"]["share"], abs=0.05)
    assert arms["random"]["policy"] == {"type": "random_rate", "rate": found["random_rate"]}
    assert len(arms["random"]["outcomes"]) == 30
    assert arms["small"]["outcomes"][7]["question"].startswith(("Start", "Take", "Begin", "Let"))
    low, high = found["threshold_minus_random"]["interval"]
    assert 0 < low <= found["threshold_minus_random"]["accuracy"] <= high


def test_intervals_where_there_are_questions_enough(world, run, monkeypatch):
    assert demo.INTERVALS_FROM == 200
    monkeypatch.setattr("trim_graph.cli.demo.INTERVALS_FROM", 20)
    assert " to " not in run("demo", "-n", "19").stdout
    result = run("demo", "-n", "20")
    assert result.exit_code == 0, result.output
    assert "95 % intervals, paired bootstrap, 2000 resamples" in result.stdout
    assert "1.000 (0.832 to 1.000)" in result.stdout  # 20 of 20, by Clopper and Pearson
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_the_same_seed_gives_the_same_metrics(world, run):
    for name in ("a.json", "b.json"):
        assert run("demo", "-n", "8", "--json", name, "--concurrency", "3").exit_code == 0
    a, b = (json.loads((world / name).read_text()) for name in ("a.json", "b.json"))
    for arm in a["arms"]:
        for key in ("accuracy", "large_tokens", "share", "pgr_interval"):
            assert a["arms"][arm][key] == b["arms"][arm][key]


def test_failing_questions_are_counted(world, run, monkeypatch):
    from trim_graph.evaluation import runner

    run_question = runner.run_question

    async def sometimes(graph, item):
        record = await run_question(graph, item)
        return a_record(item.index, False, error="E: x") if item.index == 2 else record

    monkeypatch.setattr(runner, "run_question", sometimes)
    result = run("demo", "-n", "5")
    assert "large: 1 of 5 questions failed and count as wrong" in result.stdout


def test_nothing_but_failures_is_an_error(world, run, monkeypatch):
    from trim_graph.evaluation import runner

    async def never(graph, item):
        return a_record(item.index, False, error="OSError: gone")

    monkeypatch.setattr(runner, "run_question", never)
    result = run("demo", "-n", "2", "--json", "out.json")
    assert result.exit_code == 2
    assert "every question of the arm small failed; the first: OSError: gone" in result.stderr
    assert json.loads((world / "out.json").read_text())["partial"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", "0"), "-n is 0: choose 1 or more"),
        (("-n", "-3"), "-n is -3: choose 1 or more"),
        (("--concurrency", "0"), "--concurrency is 0"),
        (("--split", "hrad"), "--split is 'hrad': choose one of standard, hard, words"),
        (("--threshold", "7"), "policy.t: is 7.0"),
        (("--json", "nix/out.json"), "--json nix/out.json: the folder /"),
        (("--json", "."), "--json . is a folder"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(world, run, arguments, said):
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_or_damaged_calibration_is_refused(world, run):
    (world / "calibrated.json").unlink()
    result = run("demo")
    assert result.exit_code == 2
    assert "python -m trim_graph.examples.arithmetic.study.calibrate makes it" in result.stderr
    (world / "calibrated.json").write_text("{}")
    assert "is damaged" in run("demo").stderr


def test_without_the_choice_of_policies(world, run, monkeypatch):
    monkeypatch.setattr("trim_graph.examples.arithmetic.shipped.CHOSEN", world / "none.json")
    result = run("demo")
    assert result.exit_code == 2
    assert "python -m trim_graph.examples.arithmetic.study.choose_policies makes it" in result.stderr


@pytest.mark.parametrize("with_file", [True, False])
def test_ctrl_c_keeps_what_is_there(start, tmp_path, with_file):
    file = ("--json", "out.json") if with_file else ()
    process = start("demo", "-n", "200", "--concurrency", "2", *file, delay=0.005)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # the whole takes ten seconds at least
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    kept = "; what is there is in out.json, marked partial" if with_file else ""
    assert err.splitlines()[-1] == f"trim-graph: interrupted{kept}"
    if with_file:
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["partial"] is True
        assert len(found["arms"]["small"]["outcomes"]) > 0
