"""The reference, as Markdown made from the code.

``python -m trim_graph.examples.site.reference FOLDER`` writes its pages.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from .declared import (
    Declared,
    arguments_of,
    as_markdown,
    fields_of,
    keys_of,
    mappings_in,
    models_in,
    sentence,
    summary_of,
    table,
    type_name,
)

API: dict[str, tuple[str, ...]] = {
    "trim_graph": (),
    "trim_graph.policies": (),
    "trim_graph.adapters": (),
    "trim_graph.segmentation": ("delimiter", "markdown", "pattern", "token_cap", "Segmentation", "Thinking"),
    "trim_graph.events": (),
    "trim_graph.agents": (),
    "trim_graph.telemetry": ("TrimTelemetry",),
    "trim_graph.shadow": (),
    "trim_graph.config": (),
    "trim_graph.evaluation": (),
    "trim_graph.server": (),
    "trim_graph.testing": (),
    "trim_graph.examples.arithmetic": (),
}
"""Modules with a page, and the names on it where these are not the module's ``__all__``."""

PAGES_OF = {
    "trim_graph/settings.py": "reference/settings.md",
    "trim_graph/config/load.py": "reference/configuration.md",
    "trim_graph/cli/options.py": "reference/cli.md",
    "trim_graph/events.py": "reference/events.md",
    "trim_graph/state.py": "reference/summary.md",
}
"""Page that shows what a module declares: a guide links to the module, which it can on GitHub too."""

HEAD = ("setting", "meaning", "type", "default")


def pages() -> dict[str, str]:
    """Returns the Markdown of each page of the reference, by its path in the site."""
    return {
        "reference/settings.md": settings_page(),
        "reference/configuration.md": configuration_page(),
        "reference/cli.md": cli_page(),
        "reference/events.md": events_page(),
        "reference/summary.md": summary_page(),
        **{f"reference/api/{name.removeprefix('trim_graph.')}.md": api_page(name) for name in API},
    }


def settings_page() -> str:
    """Returns the page of the settings of a run: default, meaning, and where each is set."""
    from trim_graph import Budget, ModelPrice, Prices, Quota, Quotas, TrimContext, create_trim_graph
    from trim_graph.agents import TrimMiddleware
    from trim_graph.savings import LargeAlone
    from trim_graph.segmentation import Thinking
    from trim_graph.settings import Settings

    own = [one for one in fields_of(TrimContext) if one.name not in Settings.model_fields]
    graph = _others(create_trim_graph, Settings)
    agent = _others(TrimMiddleware, Settings)
    return _page(
        "Settings of a run",
        "Settings are given when a graph is built; the context of a call overrides some of them. The column "
        '"set in" names the places that take one:\n\n'
        "- **graph**: a keyword of `create_trim_graph` and `create_trim_chat_model`\n"
        "- **call**: a field of `TrimContext`, or a key under `trim` of an application's own context\n"
        "- **agent**: a keyword of `TrimMiddleware`\n"
        "- **file**: a key at the top of a configuration file; **settings**: a key of its mapping `settings`",
        table((*HEAD, "set in"), ((*_row(one), _places(one.name)) for one in fields_of(Settings))),
        "## Of a call only\n",
        table(HEAD, map(_row, own)),
        "## Of a graph only\n\nArguments of `create_trim_graph` that are no settings of a run.\n",
        table(HEAD, map(_row, graph)),
        "## Of an agent only\n\nArguments of `TrimMiddleware` that are no settings of a run.\n",
        table(HEAD, map(_row, agent)),
        *(
            f"## {title}\n\n{summary_of(kind)}\n\n{table(HEAD, map(_row, fields_of(kind)))}"
            for title, kind in (
                ("Budget", Budget),
                ("Quotas", Quotas),
                ("Quota", Quota),
                ("Prices", Prices),
                ("ModelPrice", ModelPrice),
                ("LargeAlone", LargeAlone),
                ("Thinking", Thinking),
            )
        ),
    )


def configuration_page() -> str:
    """Returns the page of a configuration file: its keys, and each part that it may name by ``type``."""
    from trim_graph import Budget, Prices, Quotas
    from trim_graph.config.load import EXAMPLE, TrimConfig
    from trim_graph.config.schema import FileSettings, ModelConfig, ScorerConfig, Serve
    from trim_graph.policies.parsing import PolicyConfig
    from trim_graph.savings import LargeAlone

    ways = models_in(FileSettings.model_fields["segmentation"].annotation)
    elsewhere = {Budget, Quotas, Prices, LargeAlone, FileSettings}
    sections: list[type[BaseModel]] = [
        kind
        for field in TrimConfig.model_fields.values()
        for kind in models_in(field.annotation)
        if kind not in elsewhere and "type" not in kind.model_fields
    ]
    sections.append(Serve)
    return _page(
        "Configuration file",
        f"A YAML file that `trim-graph` reads by `--config`, and Python by "
        f"`trim_graph.config.load_config`:\n\n```yaml\n{EXAMPLE}```\n\nRelative paths start at the folder of "
        "the file. An unknown key is an error.",
        "## Keys\n",
        table(HEAD, map(_row, fields_of(TrimConfig))),
        "The keys of `settings`, `budget`, `quotas`, `prices` and `large_alone` are in "
        "[Settings of a run](settings.md).",
        "## Chat models\n\nOf `small`, `large` and the model of a judge.",
        *_typed(models_in(ModelConfig)),
        "## Scorers",
        *_typed(models_in(ScorerConfig)),
        "## Policies\n\nA number in [0, 1] is short for `threshold` at it, `small` and `large` are short for "
        "that model alone, and the name of a policy file for `{type: file, path: NAME}`.",
        *_typed(models_in(PolicyConfig)),
        "## Segmentation",
        *_typed(ways),
        *(
            f"## {kind.__name__}\n\n{summary_of(kind)}\n\n{table(HEAD, map(_row, fields_of(kind)))}"
            for kind in sections
        ),
    )


def cli_page() -> str:
    """Returns the page of the command line: each command with its help and options."""
    from trim_graph.cli.app import app

    shared = "Every command has `--help`. Errors go to stderr, with exit code 2 for bad input."
    return _page("Command line", f"{sentence(str(app.info.help))}\n\n{shared}", *_commands(app, "trim-graph"))


def events_page() -> str:
    """Returns the page of the step events."""
    from trim_graph.events import EVENTS

    return _page(
        "Events",
        'What `graph.stream(..., stream_mode="custom")` yields, one JSON object each. The key `type` of each '
        "is `trim`, and `event` is its name. As classes: [trim_graph.events](api/events.md). "
        "An embedded graph streams them with `subgraphs=True`.",
        *(
            f"## {name}\n\n{summary_of(kind)}\n\n"
            + _keys(key for key in keys_of(kind) if key.name not in ("type", "event"))
            for name, kind in EVENTS.items()
        ),
    )


def summary_page() -> str:
    """Returns the page of a summary with the mappings within it, of a step, and of the reasons to stop."""
    from trim_graph import Step, Summary
    from trim_graph.routing.explain import STOP_REASONS

    return _page(
        "Summary",
        'The value of `result["trim"]`, of the event `finished`, and of `response_metadata["trim"]` in the '
        "message of a graph or a chat model: plain JSON.",
        *(
            f"## {kind.__name__}\n\n{summary_of(kind)}\n\n{_keys(keys_of(kind))}"
            for kind in (*mappings_in(Summary), Step)
        ),
        "## Reasons to stop\n\nOf a run, by the `stopped` of its summary.\n",
        table(
            ("reason", "meaning"),
            ((f"`{name}`", sentence(reason.sentence)) for name, reason in STOP_REASONS.items()),
        ),
    )


def api_page(name: str) -> str:
    """Returns the page of a module's public names, which mkdocstrings fills from their docstrings."""
    module = import_module(name)
    public = sorted(API[name] or module.__all__, key=str.lower)
    entries = [f"::: {name}.{one}" for one in public if one != "__version__"]
    return _page(name, as_markdown(inspect.getdoc(module) or ""), *entries)


def _page(title: str, *parts: str) -> str:
    text = "\n\n".join((f"# {title}", *(part.strip("\n") for part in parts))) + "\n"
    for name in re.findall(r"^## ([A-Z]\w+)$", text, re.MULTILINE):
        text = re.sub(rf"(\| (?:[^|\n]* )?)`{name}`(?= )", rf"\1[`{name}`](#{name.lower()})", text)
    return text


def _row(one: Declared) -> tuple[str, str, str, str]:
    return f"`{one.name}`", one.meaning, one.kind, one.default


def _keys(keys: Iterable[Declared]) -> str:
    return table(("key", "meaning", "type"), ((f"`{one.name}`", one.meaning, one.kind) for one in keys))


def _places(name: str) -> str:
    """Returns where a setting of a run is set."""
    from trim_graph import TrimContext, create_trim_graph
    from trim_graph.agents import TrimMiddleware
    from trim_graph.config.load import TrimConfig
    from trim_graph.config.schema import FileSettings
    from trim_graph.settings import RunSettings, TurnSettings

    def keywords(function: Any, more: Any) -> set[str]:
        return {*inspect.signature(function).parameters, *get_type_hints(more)}

    places = {
        "graph": keywords(create_trim_graph, RunSettings),
        "call": TrimContext.model_fields,
        "agent": keywords(TrimMiddleware, TurnSettings),
        "file": TrimConfig.model_fields,
        "settings": FileSettings.model_fields,
    }
    return ", ".join(place for place, names in places.items() if name in names)


def _others(function: Any, settings: type[BaseModel]) -> list[Declared]:
    parameters = inspect.signature(function).parameters.values()
    names = [
        one.name
        for one in parameters
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        and (one.name == "policy" or one.name not in settings.model_fields)
    ]
    return arguments_of(function, only=names)


def _typed(kinds: Iterable[type[BaseModel]]) -> Iterator[str]:
    """Yields a part for each class that a file names by ``type``."""
    for kind in kinds:
        names = get_args(kind.model_fields["type"].annotation)
        yield f"### {', '.join(names)}\n\n{summary_of(kind)}"
        if rows := [_row(one) for one in fields_of(kind, skip=("type",))]:
            yield table(HEAD, rows)


def _commands(app: typer.Typer, path: str) -> Iterator[str]:
    for info in app.registered_commands:
        assert info.callback is not None
        parameters = [_parameter(one) for one in inspect.signature(info.callback).parameters.values()]
        words = [path, str(info.name), "[OPTIONS]", *(one.name for one in parameters if one.name.isupper())]
        yield f"## {' '.join(words[:2])}\n\n```text\n{' '.join(words)}\n```\n"
        yield _prose(info.callback.__doc__ or "")
        yield table(("option", "meaning", "type", "default"), map(_row, parameters))
        if info.epilog:
            yield _prose(info.epilog)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, f"{path} {group.typer_instance.info.name}")


def _parameter(one: inspect.Parameter) -> Declared:
    """Returns an option or argument as its annotation declares it."""
    hint, *extras = get_args(one.annotation)
    info = next(extra for extra in extras if isinstance(extra, OptionInfo | ArgumentInfo))
    if isinstance(info, ArgumentInfo):
        name = info.metavar or one.name.upper()
    else:
        # Typer keeps the first flag of an annotation where a default would be.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
        name = ", ".join(flags) or f"--{one.name.replace('_', '-')}"
    needed = one.default is one.empty
    default = "required" if needed else "" if one.default in (None, False) else f"`{one.default}`"
    kind = "flag" if hint is bool else type_name(hint).removesuffix(" or `null`")
    return Declared(name, kind, default, _escaped(info.help or ""))


def _prose(text: str) -> str:
    """Returns a help text as Markdown; what typer is not to wrap becomes a block."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            paragraphs.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        else:
            paragraphs.append(_escaped(" ".join(paragraph.split())))
    return "\n\n".join(paragraphs)


def _escaped(text: str) -> str:
    for mark in "\\`*_<[":
        text = text.replace(mark, "\\" + mark)
    return text


def main(folder: str) -> None:
    """Writes the pages into a folder."""
    for name, text in pages().items():
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
