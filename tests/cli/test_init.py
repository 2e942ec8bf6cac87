"""`trim-graph init` and `trim-graph schema`."""

import json
import shlex

import pytest
import yaml
from jsonschema import Draft202012Validator

from trim_graph.cli import init
from trim_graph.cli.app import app
from trim_graph.config import load_config


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("models", ["servers", "hosted", "local", "example"])
def test_a_file_and_its_schema_are_written_and_the_next_commands_named(run, folder, models):
    done = run("init", "--models", models)
    assert done.exit_code == 0, done.output
    text = (folder / "trim.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=trim.schema.json"
    load_config("trim.yaml")
    schema = json.loads((folder / "trim.schema.json").read_text())
    Draft202012Validator(schema).validate(yaml.safe_load(text))
    assert "trim-graph doctor --config trim.yaml" in done.stdout
    assert "trim-graph solve --config trim.yaml" in done.stdout
    assert ("trim-graph up --config trim.yaml" in done.stdout) == (models == "servers")
    assert ("OPENAI_API_KEY" in done.stdout) == (models == "hosted")


def test_the_example_has_nothing_to_warn_of(run):
    assert run("init", "--models", "example").exit_code == 0
    done = run("doctor", "--config", "trim.yaml")
    assert done.exit_code == 0, done.output
    assert "no error: this set-up does what a run needs" in done.output
    assert "warning" not in done.output


def test_options_name_models_and_scorer(run):
    named = ("--small", "org/s", "--large", "org/l", "--prm", "org/p")
    assert run("init", "mine.yaml", "--models", "local", "--scorer", "prm", *named).exit_code == 0
    config = load_config("mine.yaml")
    assert (config.small.model, config.large.model, config.scorer.model) == ("org/s", "org/l", "org/p")


def test_a_terminal_is_asked_for_what_is_left_open(folder, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setattr(init, "at_terminal", lambda: True)
    answers = "nothing\nhosted\njudge\nopenai:gpt-4.1-nano\n\n"
    done = CliRunner().invoke(app, ["init"], input=answers)
    assert done.exit_code == 0, done.output
    config = load_config("trim.yaml")
    assert config.scorer.type == "llm_judge"
    assert (config.small.model, config.large.model) == ("openai:gpt-4.1-nano", "openai:gpt-4.1")
    assert "Please select one of the available options" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (),
            "--models is missing, and there is no terminal to ask on: choose servers, hosted, local, example",
        ),
        (
            ("--models", "hosted", "--scorer", "prm"),
            "scorer is prm, which does not go with models hosted: choose",
        ),
        (("--models", "hosted", "--small", "gpt"), "small.model: is 'gpt'; name the provider too"),
        (("--models", "local", "--large", "./missing"), "no such folder"),
        (("--models", "example", "--small", "a"), "--small goes with other --models"),
        (("--models", "local", "--scorer", "judge", "--prm", "a"), "--prm names a process reward model, and"),
        (("missing/trim.yaml", "--models", "example"), "the folder"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(run, folder, options, said):
    done = run("init", *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert list(folder.iterdir()) == []


def test_a_file_that_exists_stays_unless_it_is_to_be_replaced(run, folder):
    (folder / "trim.yaml").write_text("mine")
    done = run("init", "--models", "example")
    assert (done.exit_code, (folder / "trim.yaml").read_text()) == (2, "mine")
    assert "trim.yaml exists: choose another name, or --replace" in done.stderr
    assert run("init", "--models", "example", "--replace").exit_code == 0
    load_config("trim.yaml")


def test_a_schema_that_exists_stays_too(run, folder):
    (folder / "trim.schema.json").write_text("mine")
    assert run("init", "--models", "example").exit_code == 2
    assert (folder / "trim.schema.json").read_text() == "mine"
    assert not (folder / "trim.yaml").exists()


def test_the_question_that_is_printed_is_one_that_the_example_models_answer(run, folder):
    said = run("init", "--models", "example").stdout
    command = next(line for line in said.splitlines() if "trim-graph solve" in line)
    assert run(*shlex.split(command)[1:]).exit_code == 0


def test_the_schema_is_printed_or_written(run, folder):
    printed = run("schema").stdout
    assert json.loads(printed)["title"] == "trim-graph configuration"
    assert run("schema", "--out", "a.json").exit_code == 0
    assert (folder / "a.json").read_text() == printed
    assert run("schema", "--out", "missing/a.json").exit_code == 2
