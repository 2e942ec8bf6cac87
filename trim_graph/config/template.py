"""A new configuration file with comments, from a kind of models and a kind of scorer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, get_args

from trim_graph.errors import SettingsError

ModelKind = Literal["servers", "hosted", "local", "example"]
"""vLLM servers, models of a provider, models in this process, or those that come with trim-graph."""
ScorerKind = Literal["prm", "judge", "token_probability", "cascade"]
"""A process reward model, a chat model that rates, the writers' own token probabilities, or these first and a
judge where they leave it open."""

SCHEMA_LINE = "# yaml-language-server: $schema={name}\n"
"""First line of a file, by which editors find the schema of its keys."""

_QWEN = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
_PRM = "Qwen/Qwen2.5-Math-PRM-7B"
_WRITERS: dict[ModelKind, tuple[str, str]] = {
    "servers": _QWEN,
    "local": _QWEN,
    "hosted": ("openai:gpt-4.1-mini", "openai:gpt-4.1"),
    "example": ("", ""),
}
_DIGIT_7 = 0.77
"""Threshold that keeps the digits 7 to 9 of a judge, whose score is the expected digit over 9."""
_THRESHOLDS: dict[ScorerKind, float] = {
    "prm": 0.5,
    "judge": _DIGIT_7,
    "token_probability": 0.8,
    "cascade": _DIGIT_7,
}


@dataclass(frozen=True, slots=True)
class Choices:
    """What a new configuration names.

    Attributes:
        models: Kind of both chat models.
        scorer: Kind of the scorer.
        small: Small model: a hub id or folder, of a server the name it serves, of a provider its name for
            LangChain.
        large: Large model, as ``small``.
        prm: Process reward model, a hub id or folder; read for the scorer ``prm`` only.
    """

    models: ModelKind
    scorer: ScorerKind
    small: str
    large: str
    prm: str


def default_models(models: ModelKind) -> tuple[str, str, str]:
    """Returns the names that a configuration of a kind begins with: small, large and reward model."""
    return (*_WRITERS[models], "" if models == "example" else _PRM)


def scorer_kinds(models: ModelKind) -> tuple[ScorerKind, ...]:
    """Returns the scorers that go with a kind of models, the one to begin with first."""
    kinds: tuple[ScorerKind, ...] = get_args(ScorerKind)
    if models == "hosted":  # no provider rates with a reward model
        return ("judge", "token_probability", "cascade")
    return ("prm", "token_probability") if models == "example" else kinds


def config_text(choices: Choices, *, schema: str | None = None) -> str:
    """Returns the text of a new configuration file.

    Args:
        choices: What it names.
        schema: Name of the schema's file, relative to the configuration; None names none.

    Raises:
        SettingsError: The scorer does not go with the models.
    """
    known = scorer_kinds(choices.models)
    if choices.scorer not in known:
        raise SettingsError(
            f"scorer is {choices.scorer}, which does not go with models {choices.models}: choose "
            f"{', '.join(known)}"
        )
    head = "" if schema is None else SCHEMA_LINE.format(name=schema)
    t = _THRESHOLDS[choices.scorer]
    # The example models take 2048 tokens.
    steps, tokens = (24, 64) if choices.models == "example" else (32, 512)
    text = f"""\
# The small model drafts each step, the scorer rates it, and the large model rewrites what scores too low.
# Relative paths are relative to this file. Check it: trim-graph doctor --config FILE

{_ABOUT[choices.models]}
{_writer("small", choices)}
{_writer("large", choices)}

{_scorer(choices)}

# A draft that scores below the threshold is rewritten by the large model. Find the threshold for your
# questions: trim-graph calibrate --config FILE --dataset QUESTIONS --max-loss 0.02 --write
policy: {{type: threshold, t: {t}}}

# Hard limits of one question on the large model; on_exhausted: small (the small model finishes), stop or ask.
budget: {{large_tokens: 2000, seconds: 300}}
# Prices per million tokens, for the cost of each answer and for limits on it; your provider's own:
# prices: {{small: {{input: 0.4, output: 1.6}}, large: {{input: 2, output: 8}}{_judge_price(choices)}}}

settings:
  max_steps: {steps}          # of one solution
  max_step_tokens: {tokens}
  # on_scorer_error: accept  # a draft that cannot be scored stays; by default the run ends with the error
  # ask_below: 0.1       # a draft that scores below it is shown to a human first; needs a checkpoint

# Keeps runs, so that they resume: none, memory, sqlite:PATH, postgresql://USER@HOST/DATABASE, env:NAME.
# checkpoint: sqlite:runs.db
"""
    return head + text


_ABOUT: dict[ModelKind, str] = {
    "servers": """\
# vLLM servers. `trim-graph up --config FILE` starts those at localhost, on the first GPU unless serve says
# otherwise: serve: {gpu: 1}, or {cpu: true}. A server elsewhere is left alone; its key is in api_key_env.""",
    "hosted": """\
# Models of a provider, by LangChain's names for them. Keys come from the environment (OPENAI_API_KEY). They
# cannot continue a text, so each step is asked for by prompt, and reads the conversation again.""",
    "local": """\
# Models in this process, with transformers: simple, and slower than vLLM. device: auto takes a GPU where
# there is one. Weights come from a folder or, at the first run, from the Hugging Face hub.""",
    "example": """\
# The arithmetic models that come with trim-graph. They solve problems as their generator draws them: chains
# of 4 to 12 steps that start at 11 to 99 and only add (2 to 69) to a value below 13. They fail at many
# others; ranges of all operations: trim_graph/examples/arithmetic/weights/README.md.""",
}


def _writer(part: Literal["small", "large"], choices: Choices) -> str:
    name = _quoted(choices.small if part == "small" else choices.large)
    logprobs = _first_rates_tokens(choices)
    if choices.models == "servers":
        port, more = (8001 if part == "small" else 8002), "\n  logprobs: true" if logprobs else ""
        return f"{part}:\n  type: vllm\n  model: {name}\n  base_url: http://localhost:{port}/v1{more}"
    return f"{part}: {_in_braces(choices.models, name, ', logprobs: true' if logprobs else '')}"


def _in_braces(models: ModelKind, name: str, more: str = "") -> str:
    """Returns a chat model that needs no server, with further settings."""
    if models == "hosted":
        return f"{{type: langchain, model: {name}, kwargs: {{temperature: 0{more}}}}}"
    if models == "local":
        return f"{{type: transformers, model: {name}, device: auto, dtype: auto{more}}}"
    return f"{{type: example{more}}}"


def _first_rates_tokens(choices: Choices) -> bool:
    # The example models report probabilities at no cost, and eval's cascade needs them.
    return choices.models == "example" or choices.scorer in ("token_probability", "cascade")


def _scorer(choices: Choices) -> str:
    if choices.scorer == "prm":
        return _reward_model(choices)
    if choices.scorer == "token_probability":
        return (
            "# The mean probability of a step's tokens under its writer: no call, and a weak signal.\n"
            "scorer: {type: token_probability}"
        )
    judge = f"{{type: llm_judge, model: {_judge(choices)}}}"
    if choices.scorer == "judge":
        return f"# The large model rates each step from 0 to 9; one short call a step.\nscorer: {judge}"
    return (
        "# The token probabilities of a step, and where they are between the two limits the judge.\n"
        "scorer:\n  type: cascade\n  first: {type: token_probability}\n"
        f"  second: {judge}\n  unsure: [0.6, 0.95]"
    )


def _judge_price(choices: Choices) -> str:
    """Returns the price of the judge, which is the large model, to add to a table; empty without a judge."""
    return ", scorer: {input: 2, output: 8}" if choices.scorer in ("judge", "cascade") else ""


def _judge(choices: Choices) -> str:
    name = _quoted(choices.large)
    if choices.models == "servers":
        return f'{{type: vllm, model: {name}, base_url: "http://localhost:8002/v1"}}'
    return _in_braces(choices.models, name)


def _reward_model(choices: Choices) -> str:
    about = (
        "# A process reward model. format: qwen, math_shepherd, skywork or rlhflow; a folder of\n"
        "# `trim-graph train scorer` says its own."
    )
    name = _quoted(choices.prm)
    if choices.models == "servers":
        return f"{about}\nscorer:\n  type: vllm_prm\n  model: {name}\n  base_url: http://localhost:8003/v1"
    if choices.models == "local":
        return f"{about}\nscorer: {{type: transformers_prm, model: {name}, device: auto, dtype: auto}}"
    return "scorer: {type: example}"


def _quoted(name: str) -> str:
    """Returns a name as YAML that is the same inside and outside of a mapping in braces."""
    import yaml

    return str(yaml.safe_dump(name, default_style='"', allow_unicode=True, width=sys.maxsize)).removesuffix(
        "\n"
    )
