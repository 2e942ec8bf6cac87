"""The tutorial and the notebook, as a new user runs them: each prints what the page says."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from typer.testing import CliRunner

from trim_graph.cli.app import app
from trim_graph.config import make_config

EXAMPLES = Path(__file__).parents[2] / "examples"
TUTORIAL = (EXAMPLES / "guides/tutorial.md").read_text("utf-8")
NOTEBOOK = EXAMPLES / "notebook.ipynb"


def test_the_tutorial_prints_what_it_says(capsys):
    names = {}
    for language, block in re.findall(r"```(python|text)\n(.*?)```", TUTORIAL, re.DOTALL):
        if language == "python":
            exec(compile(block, "tutorial.md", "exec"), names)
        else:
            assert capsys.readouterr().out == block


def test_its_commands_evaluate_and_write_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL) for line in block.splitlines()
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("trim-graph")]
    assert [command[0] for command in commands] == ["eval", "report"]
    results = [CliRunner().invoke(app, command) for command in commands]
    assert [result.exit_code for result in results] == [0, 0], [result.output for result in results]
    assert (tmp_path / "run/report.html").is_file()


def test_its_configuration_is_valid():
    (block,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    make_config(yaml.safe_load(block))


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    text = "\n".join(cell.source for cell in notebook.cells)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.enable_socket  # to the kernel, at this machine
# Of the packages that run the kernel.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_prints_what_its_text_says(notebook, tmp_path):
    place = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, timeout=120, resources=place).execute()
    alone, routed, traced, evaluated = [
        "".join(one.text for one in cell.outputs if one.name == "stdout").splitlines()
        for cell in done.cells
        if cell.cell_type == "code"
    ][1:]
    assert [line.split(",")[0] for line in alone] == ["small: 13", "large: 2"]
    assert routed[-1] == "2, 32 large tokens"
    assert [line.split(" - ")[0] for line in traced if " - Step" in line] == [
        "small",
        "large",
        "large",
        "large",
    ]
    assert re.match(r"routed +accuracy 1\.00 .* PGR 1\.00 ", evaluated[-1])
