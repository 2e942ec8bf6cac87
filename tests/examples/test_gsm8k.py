import json
import shlex
from pathlib import Path

import pytest
import yaml

from trim_graph.config import load_config
from trim_graph.evaluation.records import Question, WorkItem, new_record, row_of
from trim_graph.examples import oracle_judge
from trim_graph.examples import pair_results as results
from trim_graph.examples.arithmetic import PRM, stream_problems
from trim_graph.examples.gsm8k import evaluate

EXAMPLE = {part: {"type": "example"} for part in ("small", "large")}


def _rows(count, part):
    """Arithmetic problems in the shape of GSM8K, which the example models can solve."""
    drawn = stream_problems("standard", part=part, seed=0)
    return [
        {
            "question": problem.question,
            "answer": f"Steps are here.\n#### {problem.answer}",
        }
        for problem, _ in zip(drawn, range(count), strict=False)
    ]


@pytest.fixture
def data(tmp_path):
    for name, count in (("train", 140), ("test", 30)):
        lines = (json.dumps(row) + "\n" for row in _rows(count, name))
        (tmp_path / f"gsm8k_{name}.jsonl").write_text("".join(lines))
    content = yaml.safe_load(evaluate.CONFIG.read_text("utf-8"))
    content["settings"].pop("instruction")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**content, **EXAMPLE}))
    return tmp_path


def _given(data, *more):
    options = ["--data", str(data), "--out", str(data / "runs"), "--config", str(data / "own.yaml")]
    return [*options, "--labelled", "60", "--held-out", "10", "--validation", "70", "-n", "20", *more]


def test_one_command_measures_a_pair_and_resumes(data, capfd):
    stages = ("--stage", "own_scorer", "--stage", "report")

    assert evaluate.main(_given(data, *stages)) == 0

    page = (data / "runs/RESULTS.md").read_text("utf-8")
    document = json.loads((data / "runs/results.json").read_text("utf-8"))
    assert "20 questions" in page
    assert "## Scorer: own scorer" in page
    assert {"small", "large", "threshold-0.87"} <= {
        arm["arm"] for arm in document["runs"]["own_scorer"]["arms"]
    }
    assert "score_cascade" in page
    assert (data / "runs/results.png").stat().st_size > 10_000
    assert (data / "runs/calls.db").exists()
    assert (data / "runs/scorer/trim_scorer.json").exists()
    rows = (data / "runs/labels.jsonl").read_text("utf-8")
    capfd.readouterr()

    assert evaluate.main(_given(data, *stages)) == 0

    assert (data / "runs/RESULTS.md").read_text("utf-8") == page
    assert (data / "runs/labels.jsonl").read_text("utf-8") == rows


def test_the_hours_come_before_any_model(data, capfd):
    assert evaluate.main(_given(data, "--estimate")) == 0

    assert capfd.readouterr().out.startswith("Hours to expect: ")
    assert not list((data / "runs").glob("*.db"))


def test_no_training_question_is_a_validation_or_test_question(data):
    out = data / "parts"
    out.mkdir()
    evaluate.write_questions(data, out, 60, 10, 70)

    names = ("train", "held-out", "validation", "test")
    parts = [(out / f"{name}.jsonl").read_text().splitlines() for name in names]
    assert [len(rows) for rows in parts] == [60, 10, 70, 30]
    assert len(set().union(*parts)) == 170


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        (["--labelled", "70"], "--labelled 70: "),
        (["--data", "nowhere"], "--data nowhere: there is no gsm8k_train.jsonl in it"),
    ],
)
def test_wrong_data_is_named_before_any_model(data, capfd, more, reported):
    assert evaluate.main(_given(data, *more)) == 2
    assert reported in capfd.readouterr().err


def test_every_configuration_of_the_command_is_valid(tmp_path):
    (tmp_path / "scorer").symlink_to(PRM)  # as if it had been trained
    models = ["--small", "o/small", "--large", "o/large"]
    given = evaluate.parsed(["--data", "d", "--out", str(tmp_path), *models, "--processbench", "p.json"])

    listed = list(evaluate.commands(given))

    assert [options[0] for options in listed] == [
        *["eval", "eval", "eval", "label", "train", "eval"],
        *["label", "eval-scorer", "eval-scorer", "eval-scorer", "plan", "train", "eval"],
        *["eval-scorer", "eval-scorer"],
    ]
    for options in listed:
        if options[0] != "plan":
            config = load_config(options[options.index("--config") + 1])
            assert (config.small.model, config.large.model) == ("o/small", "o/large")
    assert config.scorer.type == "transformers_prm"
    judge = oracle_judge.parsed(evaluate.oracle(given))
    assert (judge.n, judge.beside, judge.out) == (100, tmp_path / "token_probability", tmp_path / "oracle")
    assert load_config(judge.config).large.model == "o/large"


def test_metrics_of_scorers_are_on_the_page(tmp_path):
    interval = [0.6, 0.8]
    metrics = {
        "solutions": 9,
        "first_error": {"f1": 0.5, "f1_interval": None},
        "steps": {"auc": 0.7, "auc_interval": interval},
        "whole": {"auc": None, "auc_interval": None},
    }
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "metrics.json").write_text(json.dumps({"sets": {"held-out": metrics}}))

    read = results.read_metrics(tmp_path)

    assert read == {"judge": metrics}
    _, table = results._scorers({"rated": read, "processbench": {}})
    assert table.splitlines()[-1] == "| judge | 0.700 (0.600 to 0.800) | - | 0.500 | 9 |"


def test_a_model_that_was_run_again_has_a_row_for_each_result():
    def run(accuracy):
        metrics = {"accuracy": {"value": accuracy, "interval": None}}
        metrics |= {f"{model}_tokens": {"value": 300.0} for model in ("small", "large")}
        return {"arms": [{"arm": model, "metrics": metrics} for model in ("small", "large")]}

    same = results._alone({"judge": run(0.3), "own_scorer": run(0.3)})
    assert list(same) == [["small", "0.300", "300"], ["large", "0.300", "300"]]
    rows = list(results._alone({"judge": run(0.3), "own_scorer": run(0.4)}))
    assert rows[:2] == [["small (judge)", "0.300", "300"], ["small (own scorer)", "0.400", "300"]]


def test_hindsight_solves_the_cheapest_questions_by_the_cheapest_right_arm():
    def arm(name, *outcomes):
        return [
            {"arm": name, "sample": 0, "index": index, "correct": right, "large_tokens": tokens}
            for index, (right, tokens) in enumerate(outcomes)
        ]

    small = arm("small", (True, 0), (False, 0), (False, 0), (False, 0), (True, 0))
    large = arm("large", (True, 40), (True, 100), (True, 30), (True, 30), (False, 0))
    routed = arm("threshold-0.9", (False, 9), (True, 10), (None, 5), (True, 40), (False, 9))
    further_sample = [{**row, "sample": 1, "correct": True, "large_tokens": 0} for row in routed]

    found = results.hindsight([*small, *large, *routed, *further_sample], 5)

    # From two right to four: three for 50 %, four for 80 and 95 %. The large model alone writes 200 tokens.
    models, arms = ({key: bound["value"] for key, bound in one.items()} for one in found.values())
    assert models == {"accuracy": 1.0, "50": 0.15, "80": 0.3, "95": 0.3}
    assert arms == {"accuracy": 1.0, "50": 0.05, "80": 0.2, "95": 0.2}
    low, high = found["models"]["80"]["interval"]
    assert 0 <= low < 0.3 < high


@pytest.mark.parametrize(
    ("at_once", "wall_clock"), [(3, "3 | 13"), (24, "3 | 13"), (1, "6 | 6"), (2, "- | -")]
)
def test_what_runs_without_a_cache_took_is_in_one_table(tmp_path, at_once, wall_clock):
    tokens = {"small_tokens": {"value": 9}, "large_tokens": {"value": 4}}
    large = {"arm": "large", "metrics": {**tokens, "seconds": {"value": 2.0, "interval": None}}}
    large["differences"] = {}
    faster = {"seconds": {"value": -0.5, "interval": [-0.7, -0.2]}}
    routed = {**large, "arm": "threshold-0.9", "differences": {"large": faster}}
    run = {"n": 3, "concurrency": at_once, "arms": [large, routed]}
    for name in ("plain", "read_ahead"):
        (tmp_path / name / "rows").mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(run))
        for arm in ("large", "threshold-0.9"):
            lines = []
            for index, seconds in enumerate((1.0, 2.0, 3.0)):
                item = WorkItem(index, 0, Question("What?"))
                longer = seconds if arm == "large" or name == "plain" else 2 * seconds
                lines.append(json.dumps(row_of(new_record(item, seconds=longer), arm)) + "\n")
            (tmp_path / name / "rows" / f"{arm}.jsonl").write_text("".join(lines))

    said, table = results._times(results._read_times(tmp_path))

    assert said == f"3 questions, {at_once} at once."
    rows = table.splitlines()[2:]
    if wall_clock == "- | -":  # nothing tells when each of three began
        assert rows[1:] == ["| threshold-0.9 | plain | 2.0 | -0.5 (-0.7 to -0.2) | 9 | 4 | - | - |"]
    else:
        assert rows[:2] == [
            f"| large | plain | 2.0 | - | 9 | 4 | {wall_clock} |",
            f"| threshold-0.9 | plain | 2.0 | -0.5 (-0.7 to -0.2) | 9 | 4 | {wall_clock} |",
        ]
        (slower,) = rows[2:]
        assert slower.startswith("| threshold-0.9 | read ahead |")


def test_runs_of_different_questions_make_no_page(tmp_path):
    for name, n in (("one", 10), ("two", 20)):
        (tmp_path / name).mkdir()
        run = {"dataset": {"name": "q"}, "n": n}
        (tmp_path / name / "summary.json").write_text(json.dumps(run))

    assert results.main([str(tmp_path), "--title", "Q"]) == 2
    with pytest.raises(results.InputError, match=r"different questions \(one: 10 of q, two: 20 of q\)"):
        results.read_runs(tmp_path)


def test_the_commands_of_the_readme_are_those_of_the_example():
    text = (Path(evaluate.__file__).parent / "README.md").read_text("utf-8")
    blocks = [block.replace("\\\n", " ") for block in text.split("```bash\n")[1:]]
    commands = [line for block in blocks for line in block.split("```")[0].splitlines()]
    own = [line for line in commands if "gsm8k.evaluate" in line]

    stages = text.partition("| stage |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split("`")[1] for line in stages] == [*evaluate.STAGES]
    assert own
    for line in own:
        evaluate.parsed(shlex.split(line.partition("#")[0])[3:])
