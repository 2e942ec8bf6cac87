"""The models a command runs with: from a configuration, or those that come with trim-graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from trim_graph.config import Parts, TrimConfig, build_parts, example_config, load_config
from trim_graph.errors import InputError, SettingsError, TrimError
from trim_graph.redaction import may_be_shown

from .reporting import need


def chosen_config(file: Path | None, overrides: dict[str, Any]) -> TrimConfig:
    """Read the configuration, or put together the one of the example models."""
    if file is not None:
        return load_config(file, overrides=overrides)
    return example_config(overrides)


def parsed_option(option: str, given: str, example: str) -> Any:
    """Read an option that is a name or a YAML mapping.

    Raises:
        SettingsError: It is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        shown = f" {given!r}" if may_be_shown(given) else ""
    raise SettingsError(f"{option}{shown} is neither a name nor a mapping such as '{example}'")


def readable(problem: str, config: TrimConfig) -> str:
    """Check a problem before a model sees it.

    Raises:
        InputError: It is empty, or the example models cannot read it.
    """
    if not problem.strip():
        raise InputError('the problem is empty: trim-graph solve "PROBLEM"')
    if "example" not in (config.small.type, config.large.type):
        return problem
    from trim_graph.examples.arithmetic.readable import read_problem

    return read_problem(problem)


def load_parts(config: TrimConfig, *, rated: bool = False) -> Parts:
    """Make the models and load their weights, so that loading counts neither as a step nor as time spent.

    Args:
        config: Names them.
        rated: Whether the scorer is needed also where the policy looks at no score.

    Raises:
        SettingsError: A model cannot be loaded.
        MissingExtra: What runs models is not installed.
    """
    need_extras(config)
    parts = build_parts(config)
    with _loading() as tell:
        for name, model in (("small", parts.small), ("large", parts.large)):
            tell(f"loading the {name} model")
            with _refusing(name):
                load_chat_model(model)
        if loads_scorer(config) and (rated or config.policy.build().needs_score):
            tell("loading the scorer")
            with _refusing("scorer"):
                parts.scorer.score("1", [{"text": "1", "writer": "small"}])
    return parts


def load_scorer(config: TrimConfig) -> Any:
    """Make the scorer alone and load its weights.

    Raises:
        SettingsError: There is none, or it cannot be loaded.
        MissingExtra: What runs it is not installed.
    """
    if config.scorer is None:
        raise SettingsError("the configuration names no scorer")
    _need(_scorer_types(config))
    with _loading() as tell:
        tell("loading the scorer")
        with _refusing("scorer"):
            scorer = config.scorer.build()
            if loads_scorer(config):
                scorer.score("1", [{"text": "1", "writer": "small"}])
    return scorer


_HERE = {"transformers", "transformers_prm", "example"}
_ON_SERVERS = {"vllm", "vllm_prm"}
_ON_ENGINES = {"vllm_engine", "vllm_engine_prm"}


def need_extras(config: TrimConfig) -> None:
    """Import what the models of a configuration need, or say how to get it.

    Raises:
        MissingExtra: Something is not installed.
    """
    _need({config.small.type, config.large.type} | _scorer_types(config))


def _scorer_types(config: TrimConfig) -> set[str]:
    if config.scorer is None:
        return set()
    return {config.scorer.model.type if config.scorer.type == "llm_judge" else config.scorer.type}


def _need(types: set[str]) -> None:
    if types & _HERE:
        need("cli,local", "torch", "transformers", "safetensors")
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if types & _ON_SERVERS:
        need("cli,vllm", "httpx", "transformers")
    if types & _ON_ENGINES:
        from trim_graph.adapters.vllm_engine_start import vllm_module

        vllm_module()
    if "langchain" in types:
        need("cli,hosted", "langchain")


def load_chat_model(model: Any) -> None:
    """Load weights, or start an engine; a hosted model has nothing to load."""
    from langchain_core.messages import HumanMessage

    if hasattr(model, "start"):
        model.start()
    if hasattr(model, "count_prompt_tokens"):
        model.count_prompt_tokens([HumanMessage("1")])


def loads_scorer(config: TrimConfig) -> bool:
    """Tell whether the scorer has weights of its own to load."""
    return config.scorer is not None and config.scorer.type not in ("llm_judge", "token_probability")


def _loading() -> AbstractContextManager[Callable[[str], None]]:
    from .console import status

    return status("loading")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Name the model that cannot be loaded; libraries say why in their first line, and then at length."""
    try:
        yield
    except TrimError as error:
        raise SettingsError(f"{name}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingsError(f"{name}: the model cannot be loaded: {lines[0]}") from error
