import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trim_graph.config import load_config
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.evaluation.records import read_run
from trim_graph.examples.math import evaluate
from trim_graph.examples.math.hours import Arms, Rates, gpu_hours

HERE = Path(evaluate.__file__).parent
DATA = Path(__file__).parents[3] / "shared" / "data"
README = (HERE / "README.md").read_text("utf-8")


def test_it_runs_from_end_to_end_with_other_models_in_place(tmp_path, monkeypatch, capsys):
    """The example models solve problems of their own in place of mathematics, as the README says."""
    monkeypatch.chdir(tmp_path)
    given = ["--models", "example", "--math", "arithmetic:standard", "--aime", "arithmetic:hard", "-n", "1"]
    given += ["--validation", "none", "--thresholds", "1", "--baselines", "cascade", "--out", "runs"]
    assert evaluate.main(given) == 0
    reported = capsys.readouterr().out
    assert reported.startswith("GPU hours to expect with Qwen2.5 on one GPU of 80 GB: ")
    assert "Estimated, not measured" in reported
    for name in ("math", "aime"):
        rows = list(read_run(f"runs/{name}").rows())
        assert {row["arm"].partition("-")[0] for row in rows} == {
            "small",
            "large",
            "threshold",
            "random",
            "cascade",
        }
        assert not any(row["error"] for row in rows)
    before = {
        (row["arm"], row["index"]): row["seconds"] for row in read_run("runs/math").rows("small", "large")
    }
    assert evaluate.main(given) == 0
    after = {
        (row["arm"], row["index"]): row["seconds"] for row in read_run("runs/math").rows("small", "large")
    }
    assert after == before


def test_the_commands_are_those_of_eval(tmp_path):
    from trim_graph.cli.app import app

    given = evaluate.parsed(["--out", "runs", "--policy", "plan.json", "-n", "5"])
    options = evaluate.command(given, "math", given.math)
    assert options[:2] == ["eval", "--config"]
    assert options[options.index("--policy") + 1] == "plan.json"
    # Everything is read; what is wrong with it is the policy file, which is not there.
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "plan.json" in result.stderr


@pytest.mark.parametrize("name", ["qwen", "example"])
def test_the_configurations_load_with_logprobs_and_prices(name):
    config = load_config(evaluate.CONFIGS[name])
    assert config.small.logprobs
    assert config.large.logprobs  # type: ignore[union-attr]
    assert config.prices.large.output > config.prices.small.output


def test_what_is_said_of_qwen_is_marked():
    assert "**Not run by us.**" in README
    assert "Not run by us" in evaluate.CONFIGS["qwen"].read_text("utf-8")
    assert "Not run by us with Qwen" in str(evaluate.__doc__)


def test_the_readme_is_as_printed():
    estimate = evaluate.report(evaluate.parsed(["--out", "runs"]))
    assert estimate in README
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("python -m trim_graph.examples.math")]
    assert len(commands) == 2
    for command in commands:
        given = evaluate.parsed(shlex.split(command)[3:])
        for dataset in evaluate.datasets(given).values():
            known = ("arithmetic",) if given.models == "example" else ("hub", "file")
            assert make_dataset(dataset).type in known


def test_gpu_hours_are_the_sum_over_arms():
    rates = Rates(small=1, large=1, reading=1)
    nothing = Arms(scored=0, judged=0, unscored=0, validation=0)
    assert gpu_hours(1, nothing, rates) == pytest.approx((401 + 495 + 300) / 3600)
    more = Arms(scored=1, judged=0, unscored=0, validation=0)
    read = 8 * (150 + 495 / 2)
    assert gpu_hours(1, more, rates) - gpu_hours(1, nothing, rates) == pytest.approx(
        (496 + 171 + 300 + read) / 3600
    )
    assert gpu_hours(2, more, rates, factor=2.5) == pytest.approx(5 * gpu_hours(1, more, rates))
