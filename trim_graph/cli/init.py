"""`trim-graph init` and `trim-graph schema`: a new configuration, and the schema of all of them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from trim_graph.config import load_config, make_config
from trim_graph.config.json_schema import config_schema
from trim_graph.config.load import check_writable
from trim_graph.config.template import (
    Choices,
    ModelKind,
    ScorerKind,
    config_text,
    default_models,
    scorer_kinds,
)
from trim_graph.errors import SettingsError

from .options import InitOptions, SchemaOptions
from .terminal import at_terminal, need

_KINDS = {
    "servers": "vLLM servers",
    "hosted": "a provider's models, by LangChain's names",
    "local": "in this process, with transformers",
    "example": "the arithmetic models that come with trim-graph",
}
_SCORERS = {
    "prm": "a process reward model",
    "judge": "the large model rates each step",
    "token_probability": "the writer's own token probabilities, no further call",
    "cascade": "token probabilities, and a judge where they leave it open",
}


def run_init(options: InitOptions) -> None:
    """Writes a configuration and its schema beside it.

    Raises:
        SettingsError: An option is not valid, the file exists, or nothing says which models and nobody can
            be asked.
        MissingExtra: PyYAML is not installed.
    """
    need("cli", "yaml")
    import yaml

    out = options.out
    schema = out.with_name(f"{out.stem}.schema.json")
    for file in (out, schema):
        _check_place(file, replace=options.replace)
    choices = _choices(options)
    text = config_text(choices, schema=schema.name)
    make_config(yaml.safe_load(text), base=out.absolute().parent, name=str(out))
    _write(schema, _schema_text())
    _write(out, text)
    load_config(out)
    print(f"{out} and its schema, {schema}, are written. Next:")
    for line in _next(choices, out):
        print(f"  {line}")


def run_schema(options: SchemaOptions) -> None:
    """Prints the schema, or writes it.

    Raises:
        SettingsError: The file cannot be written.
    """
    text = _schema_text()
    if options.out is None:
        print(text, end="")
        return
    check_writable(options.out)
    _write(options.out, text)


def _schema_text() -> str:
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _check_place(out: Path, *, replace: bool) -> None:
    check_writable(out)
    if out.exists() and not replace:
        raise SettingsError(f"{out} exists: choose another name, or --replace to write over it")


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from error


def _choices(options: InitOptions) -> Choices:
    """Returns what the options name; asks on a terminal for what they leave open.

    Raises:
        SettingsError: ``--models`` is missing and there is no terminal to ask on.
    """
    asks = options.models is None and at_terminal()
    if options.models is None and not asks:
        raise SettingsError(
            "--models is missing, and there is no terminal to ask on: choose "
            f"{', '.join(get_args(ModelKind))}"
        )
    models: ModelKind = options.models or _asked_kind("Models", _KINDS, get_args(ModelKind))
    kinds = scorer_kinds(models)
    scorer: ScorerKind = options.scorer or (_asked_kind("Scorer", _SCORERS, kinds) if asks else kinds[0])
    names = dict(zip(("small", "large", "prm"), default_models(models), strict=True))
    for part, default in names.items():
        if (given := getattr(options, part)) is not None:
            names[part] = _checked_name(part, given, models, scorer)
        elif asks and default and (part != "prm" or scorer == "prm"):
            names[part] = _asked(_LABELS[part], default)
    return Choices(models, scorer, **names)


_LABELS = {"small": "Small model", "large": "Large model", "prm": "Process reward model"}


def _checked_name(part: str, given: str, models: str, scorer: str) -> str:
    if models == "example":
        raise SettingsError(f"--{part} goes with other --models: the example models have no names")
    if part == "prm" and scorer != "prm":
        raise SettingsError(f"--prm names a process reward model, and --scorer is {scorer}: leave one out")
    return given


def _asked_kind(what: str, texts: dict[str, str], kinds: tuple[str, ...]) -> Any:
    for kind in kinds:
        print(f"  {kind:<18}{texts[kind]}", file=sys.stderr)
    return _asked(what, kinds[0], choices=list(kinds))


def _asked(what: str, default: str, **options: Any) -> str:
    from rich.prompt import Prompt

    from .common import Console

    return Prompt.ask(what, default=default, console=Console(stderr=True), show_choices=False, **options)


def _next(choices: Choices, out: Path) -> list[str]:
    """Returns the commands that follow."""
    file = shlex.quote(str(out))
    first: dict[str, list[str]] = {
        "servers": [f"trim-graph up --config {file}        # in another terminal: starts the servers"],
        "hosted": [f"export {_key(choices.small)}=...        # the provider's key"],
    }
    problem = (
        "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
        "Step 4: take the larger of it and 20. "
        "Always keep only the last two digits. What is the final number?"
    )
    if choices.models != "example":
        problem = "What is 12 * 12?"
    return [
        *first.get(choices.models, []),
        f"trim-graph doctor --config {file}    # checks models and scorer, and says what is wrong",
        f'trim-graph solve --config {file} "{problem}"',
    ]


def _key(model: str) -> str:
    return f"{model.partition(':')[0].upper().replace('-', '_')}_API_KEY"
