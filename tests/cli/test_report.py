import json
import re

from written_runs import a_summary, usual_rows, write_run

from trim_graph.evaluation.records import read_run


def test_a_report_of_a_run_is_a_page_with_plots(run, tmp_path):
    write_run(tmp_path / "run", usual_rows(3), summary=a_summary(3))
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "report.html: 0." in result.stdout
    assert "8 plots in" in result.stdout
    assert (tmp_path / "run/report.html").read_text("utf-8").startswith("<!doctype html>")


def test_a_report_of_what_eval_wrote(world, run):
    reported = ("eval", "--dataset", "arithmetic:standard", "-n", 6, "--baselines", "none", "--out", "run")
    assert run(*reported, "--sweep", "threshold:0.3,0.9").exit_code == 0
    result = run("report", "run", "-o", "page.html")
    assert result.exit_code == 0, result.output
    page = (world / "page.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*)</script>', page)[1])
    names = [arm["name"] for arm in data["arms"]]
    assert names[:4] == ["small", "large", "threshold-0.3", "threshold-0.9"]
    assert data["summary"]["arms"][0]["arm"] == "small"
    assert len(data["questions"]) == 6
    rows = {(row["arm"], row["index"]): row for row in read_run("run").rows()}
    for position, question in enumerate(data["questions"]):
        trace = json.loads(re.search(rf'id="row-{position}">(.*)</script>', page)[1])
        for short, whole in zip(question["r"], trace["runs"], strict=True):
            row = rows[names[short[0]], position]
            assert (short[2], short[3]) == (int(row["correct"]), row["large_tokens"])
            assert short[5] == "".join(step["writer"][0] for step in row["steps"])
            assert [trace["texts"][step["text"]] for step in whole["steps"]] == [
                step["text"] for step in row["steps"]
            ]
    assert {file.name for file in (world / "page-plots").glob("*.png")} >= {"accuracy.png", "calibration.png"}


def test_what_cannot_be_reported_is_refused_and_leaves_no_page(run, tmp_path):
    write_run(tmp_path / "run", usual_rows(1))
    for arguments, complaint in (
        ((tmp_path,), "is no folder of an evaluation"),
        ((tmp_path / "shadow.jsonl",), "shadow.jsonl does not exist"),
        ((tmp_path / "shadow.db", "--max-loss", "0.1"), "shadow.db does not exist"),
        ((tmp_path / "run", "--out", tmp_path / "page.txt"), "must end in .html"),
        ((tmp_path / "run", "--out", tmp_path / "no/page.html"), "cannot be written: No such file"),
    ):
        result = run("report", *arguments)
        assert (result.exit_code, complaint in result.stderr) == (2, True), result.output
    assert not list(tmp_path.rglob("*.html*"))


def test_a_report_of_a_shadow(run, tmp_path):
    from trim_graph.shadow.records import open_sink
    from trim_graph.shadow.runner import new_record

    for name in ("shadow.jsonl", "shadow.db"):
        sink = open_sink(tmp_path / name)
        sink.write({**new_record("large", priced=True), "error": "ScorerError"})
        sink.close()
        result = run("report", tmp_path / name, "--max-loss", 0.01)
        assert result.exit_code == 0, result.output
        assert "1 of 1 record failed (application=large, kind=walk), by ScorerError (1)" in result.stdout
        assert "Undecided" in result.stdout
        assert (tmp_path / "shadow.html").read_text("utf-8").startswith("<!doctype html>")
        assert json.loads(run("report", tmp_path / name, "--json").stdout)["max_loss"] == 0.02


def test_options_of_a_shadow_are_refused_for_an_evaluation(run, tmp_path):
    write_run(tmp_path / "run", usual_rows(1))
    for arguments in (("--json",), ("--max-loss", 0.1)):
        result = run("report", tmp_path / "run", *arguments)
        assert (result.exit_code, "is for a file of shadow records" in result.stderr) == (2, True)
    assert "--max-loss is 2" in run("report", tmp_path / "run", "--max-loss", 2).stderr
