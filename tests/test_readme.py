"""The README's Python and YAML do what it says, as printed and in order."""

import re
from pathlib import Path

import yaml

from trim_graph.config import TrimConfig

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "The answer is \\boxed{" in printed
    assert "'small_discarded'" in printed
    assert (tmp_path / "runs.db").exists()


def test_the_configuration_is_valid():
    (block,) = blocks("yaml")
    TrimConfig.model_validate(yaml.safe_load(block))


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
