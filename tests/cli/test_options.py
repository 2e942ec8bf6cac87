"""Options of commands: one object for the command line and for Python."""

from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from trim_graph.cli.options import (
    CollectOptions,
    DoctorOptions,
    EvalOptions,
    LabelOptions,
    Options,
    PlanOptions,
    QueryRouterOptions,
    ScorerOptions,
    SequenceOptions,
    command,
)
from trim_graph.errors import SettingsError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalOptions(dataset="d", out="o", validation_n=0), "--validation-n is 0: choose 1 or more"),
        (lambda: EvalOptions(dataset="d", out="o", cost_per_second=-1.5), "--cost-per-second is -1.5"),
        (lambda: CollectOptions(dataset="d", out="o", n=0), "-n is 0: choose 1 or more"),
        (lambda: DoctorOptions(timeout=0.0), "--timeout is 0: choose a number of seconds above 0"),
        (lambda: SequenceOptions(out="o", prices=[0.1, 2.0]), "--lambda is 2.0: choose a cost"),
        (lambda: EvalOptions(dataset="d", out="o", prices=3), "prices is 3: give a text as on the command"),
        (lambda: QueryRouterOptions(traces=[], out="o", share=[1.0]), "--share is 1.0: choose a share"),
        (lambda: LabelOptions(dataset="d", out="o", rollouts=0), "--rollouts is 0: choose 1 or more"),
        (
            lambda: LabelOptions(dataset="d", out="o", target="firm"),
            "--target is 'firm': choose soft or hard",
        ),
        (lambda: SequenceOptions(out="o", prices=[0.1], patience=0), "--patience is 0: choose 1 or more"),
        (lambda: SequenceOptions(out="o", prices=[0.1], rounds=0), "--rounds is 0: choose 1 or more"),
        (lambda: SequenceOptions(out="o", prices=[0.1], steps=-1), "--steps is -1: choose 0 or more"),
        (lambda: ScorerOptions(labels=[], out="o", learning_rate=0.0), "--learning-rate is 0.0: choose a"),
        (lambda: PlanOptions(source="t.jsonl", out="p.json", bins=0), "--bins is 0: choose 2 or more"),
    ],
)
def test_python_callers_get_the_errors_of_the_command_line(make, message):
    with pytest.raises(SettingsError) as error:
        make()
    assert str(error.value).startswith(message)


def test_python_callers_may_give_mappings_for_yaml_and_texts_for_paths():
    given = EvalOptions(
        dataset={"type": "file", "path": "q.jsonl"},
        out="o",
        sweep="threshold:0.5",
        prices={"large": {"input": 1}},
    )
    assert (yaml.safe_load(given.dataset), given.out) == ({"type": "file", "path": "q.jsonl"}, Path("o"))
    assert (given.sweep, yaml.safe_load(given.prices)) == (["threshold:0.5"], {"large": {"input": 1}})


def test_a_command_gets_the_object_with_its_defaults():
    app, seen = typer.Typer(), []

    @command(app, short_help="Train.")
    def train_router(options: QueryRouterOptions) -> int:
        """Trains a router."""
        seen.append(options)
        return 3

    result = CliRunner().invoke(app, ["--traces", "a.jsonl", "--traces", "b.jsonl", "--out", "r.json"])
    assert result.exit_code == 3
    assert [path.name for path in seen[0].traces] == ["a.jsonl", "b.jsonl"]
    assert (seen[0].share, seen[0].validation) == ([0.5], 0.2)
    given = CliRunner().invoke(app, ["--traces", "a", "--out", "r", "--share", "0.2", "--share", "0.4"])
    assert (given.exit_code, seen[1].share) == (3, [0.2, 0.4])
    assert "Trains a router." in CliRunner().invoke(app, ["--help"]).output


def classes(base):
    return [base, *(one for sub in base.__subclasses__() for one in classes(sub))]


@pytest.mark.parametrize(
    "kind", [one for one in classes(Options) if one.settings], ids=lambda kind: kind.__name__
)
def test_each_setting_with_a_help_is_an_option_with_its_default(kind):
    app = typer.Typer()

    def run(options):
        """Runs."""

    run.__annotations__["options"] = kind
    command(app, short_help="Run.")(run)
    shown = {one.name: one for one in typer.main.get_command(app).params}
    helps = {one.name: one.metadata.get("help") for one in fields(kind.settings)}
    assert any(helps.values())
    for name, text in helps.items():
        if text:
            assert (shown[name].help, shown[name].default) == (text, getattr(kind.settings, name))
