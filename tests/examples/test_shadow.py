"""The example application with a shadow: its README runs as printed, and shadows say what the graph does."""

import json
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from trim_graph.cli.app import app
from trim_graph.examples.shadow.__main__ import main
from trim_graph.examples.shadow.study import NAMES, RESULT, study

README = (Path(__file__).parent.parent.parent / "examples/shadow/README.md").read_text("utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def test_the_commands_print_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answering, reporting = (shlex.split(line) for line in blocks("bash")[0].splitlines()[1:])
    main(answering[3:])
    shown_answers, shown_report = blocks("")
    assert capsys.readouterr().out == shown_answers
    printed = CliRunner().invoke(app, reporting[1:]).stdout

    def stable(text):
        return [line for line in text.splitlines() if "seconds saved" not in line]

    assert stable(printed) == stable(shown_report)
    assert "Answers of the application: 8 seen" in Path("shadow.html").read_text("utf-8")


def test_the_readmes_python_runs(capsys):
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("True") == 6


def test_shadows_of_the_example_models_find_what_the_graph_does():
    """The models take the likeliest token, so runs, and how often walks ask, are the graph's to the token."""
    found = study(5)
    walks, runs, small = (found["shadows"][name] for name in NAMES)
    routed = found["routed"]
    assert runs["share"] == routed["share"]
    assert runs["asked"]["value"] == small["asked"]["value"] == routed["asked"]["value"]
    assert runs["correct"]["routed"] == routed["accuracy"]
    assert walks["share"]["low"] <= routed["share"]["value"] <= walks["share"]["high"]
    assert walks["failed"] == runs["failed"] == small["failed"] == 0


def test_the_measured_study_of_200_questions_matches():
    kept = json.loads(RESULT.read_text("utf-8"))
    assert kept["n"] == 200
    assert set(kept["matches"].values()) == {True}
    assert {name.partition(":")[0] for name in kept["matches"]} == set(NAMES)
