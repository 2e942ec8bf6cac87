"""The reference names all that the code declares, with a meaning; all pages are in the navigation."""

import re
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from trim_graph import Budget, Quota, Quotas, Settings, Step, Summary, TrimContext
from trim_graph.budget.usage import ModelPrice, Prices, Usage, WriterUsage
from trim_graph.cli.app import app
from trim_graph.config import TrimConfig
from trim_graph.config.schema import FileSettings, ModelConfig, ScorerConfig, Serve
from trim_graph.events import EVENTS
from trim_graph.examples.site.declared import fields_of, keys_of, type_name
from trim_graph.examples.site.reference import PAGES_OF, pages
from trim_graph.policies.parsing import PolicyConfig
from trim_graph.savings import LargeAlone, Savings
from trim_graph.state import Stopped

ROOT = Path(__file__).parents[2]
SITE = ROOT / "examples/site"
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))


@pytest.fixture(scope="module")
def made():
    return pages()


def rows(text):
    """The name in the first cell, and all cells, of each row of the tables of a page."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [(row[0].strip(" `"), row) for row in cells]


def part(text, heading):
    """The part of a page below a heading of the second level."""
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def models(hint):
    if isinstance(hint, type):
        return [hint] if issubclass(hint, BaseModel) else []
    return [one for inner in get_args(hint) for one in models(inner)]


def test_each_setting_of_a_run_has_default_meaning_and_place(made):
    table = {
        name: [cell.strip() for cell in row]
        for name, row in rows(made["reference/settings.md"].split("\n## ")[0])
    }
    assert set(table) == set(Settings.model_fields)
    assert all(len(row) == 5 and all(row) for row in table.values())
    assert table["max_steps"][3] == "`32`"
    assert table["max_steps"][4] == "graph, call, agent, settings"
    assert table["delimiter"][4] == "graph, settings"
    assert table["quotas"][4] == "graph, call, agent, file"
    for name, row in table.items():
        places = set(row[4].split(", "))
        assert ("settings" in places) == (name in FileSettings.model_fields)
        assert ("call" in places) == (name in TrimContext.model_fields)
        assert ("file" in places) == (name in TrimConfig.model_fields)


@pytest.mark.parametrize(
    "kind", [Budget, Quotas, Quota, Prices, ModelPrice, LargeAlone], ids=lambda k: k.__name__
)
def test_each_field_of_a_mapping_of_settings_is_in_its_table(made, kind):
    assert {name for name, _ in rows(part(made["reference/settings.md"], kind.__name__))} == set(
        kind.model_fields
    )


def test_each_key_of_a_configuration_and_of_what_it_names_by_type_is_in_the_reference(made):
    text = made["reference/configuration.md"]
    assert {name for name, _ in rows(part(text, "Keys"))} == set(TrimConfig.model_fields)
    for heading, hint in (
        ("Chat models", ModelConfig),
        ("Scorers", ScorerConfig),
        ("Policies", PolicyConfig),
    ):
        parts = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", "\n" + part(text, heading), re.M | re.S))
        for kind in models(hint):
            names = ", ".join(get_args(kind.model_fields["type"].annotation))
            assert {name for name, _ in rows(parts[names])} == set(kind.model_fields) - {"type"}
    assert {name for name, _ in rows(part(text, "Serve"))} == set(Serve.model_fields)


def test_each_event_has_its_keys(made):
    for name, kind in EVENTS.items():
        keys = {key.name for key in keys_of(kind)} - {"type", "event"}
        assert {key for key, _ in rows(part(made["reference/events.md"], name))} == keys


@pytest.mark.parametrize("kind", [Summary, Savings, Usage, WriterUsage, Step], ids=lambda kind: kind.__name__)
def test_each_field_of_the_summary_is_in_its_table(made, kind):
    found = {name for name, _ in rows(part(made["reference/summary.md"], kind.__name__))}
    assert found == set(kind.__annotations__)


def test_each_reason_to_stop_is_in_the_reference(made):
    found = {name for name, _ in rows(part(made["reference/summary.md"], "Reasons to stop"))}
    assert found == set(get_args(Stopped))


def commands(one, name):
    inner = getattr(one, "commands", None)
    if inner is None:
        return [(name, one)]
    return [found for key, sub in inner.items() for found in commands(sub, f"{name} {key}")]


def test_each_command_has_its_options(made):
    parts = re.split(r"^## ", made["reference/cli.md"], flags=re.MULTILINE)[1:]
    text = {part.split("\n", 1)[0]: part for part in parts}
    for name, one in commands(typer.main.get_command(app), "trim-graph"):
        for given in one.params:
            flag = given.opts[0] if given.param_type_name == "option" else given.name
            assert f"`{flag}" in text[name] or f"`{given.name.upper()}" in text[name], (name, flag)


def test_each_row_of_the_reference_has_a_meaning(made):
    for page, text in made.items():
        assert not [name for name, row in rows(text) if not row[1].strip()], page


def test_bounds_bars_and_missing_documentation_are_shown_as_they_are():
    class Shown(BaseModel):
        plain: int

    (field,) = fields_of(Shown)
    assert (field.default, field.meaning) == ("required", "")
    assert type_name(int | None) == "`int` or `null`"
    assert [one.kind for one in fields_of(Budget) if one.name == "min_tokens"] == ["`int`, ≥ 1"]


def test_each_guide_and_page_of_the_reference_is_in_the_navigation(made):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    config = yaml.load((SITE / "mkdocs.yml").read_text("utf-8"), Loader)

    def leaves(nav):
        for one in nav:
            for value in one.values():
                yield from leaves(value) if isinstance(value, list) else [value]

    shown = set(leaves(config["nav"]))
    assert {guide.relative_to(ROOT).as_posix() for guide in GUIDES} <= shown
    assert set(made) <= shown
    assert set(PAGES_OF.values()) <= set(made)
    assert all((ROOT / source).is_file() for source in PAGES_OF)
