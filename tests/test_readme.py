"""The Python of README and guides runs, the YAML of the README is valid; files that pages name exist."""

import inspect
import re
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from trim_graph import create_trim_chat_model, create_trim_graph
from trim_graph.config import TrimConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("tests/**/*.md")])


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "The answer is \\boxed{" in printed
    assert "'small_discarded'" in printed
    assert (tmp_path / "runs.db").exists()


def test_the_example_of_create_trim_graph_runs(capsys):
    (block,) = blocks("python", inspect.getdoc(create_trim_graph))
    exec(compile(dedent(block), "create_trim_graph", "exec"), {})
    text, steps = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert text == "12 * 12 is 12 * 10 + 12 * 2.\n\nThe answer is \\boxed{144}."
    assert steps == "{'small': 1, 'large': 1}"


def test_the_example_of_create_trim_chat_model_runs(capsys):
    (block,) = blocks("python", inspect.getdoc(create_trim_chat_model))
    exec(compile(dedent(block), "create_trim_chat_model", "exec"), {})
    assert capsys.readouterr().out == "12 * 12 is 12 * 10 + 12 * 2.\n\nThe answer is \\boxed{144}."


def test_the_configuration_is_valid():
    (block,) = blocks("yaml")
    TrimConfig.model_validate(yaml.safe_load(block))


# tests/examples/test_tutorial.py runs the tutorial, and compares what it prints.
@pytest.mark.parametrize(
    "guide", [guide for guide in GUIDES if guide.stem != "tutorial"], ids=lambda guide: guide.stem
)
def test_the_python_of_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python", guide.read_text("utf-8")):
        exec(compile(block, guide.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_it_links_to_or_names_by_its_path_exists(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    if page.name != "CHANGELOG.md":  # it names what has gone
        for path in re.findall(r"`((?:trim_graph|nodes|adapters|examples|tests)/[\w./-]+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), path
