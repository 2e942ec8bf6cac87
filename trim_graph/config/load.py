"""Reads a configuration file, builds what it describes, and writes it anew with another policy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from trim_graph.budget import Budget, Prices, Quotas
from trim_graph.budget.usage import unpriced_scorer
from trim_graph.errors import SettingsError
from trim_graph.policies.parsing import PolicyConfig, Quality
from trim_graph.savings import LargeAlone
from trim_graph.settings import ConfigSection

from .errors import explain, read_yaml
from .quality import QualityPoints, check_named, policy_by_name
from .schema import (
    CheckpointSpec,
    FileSettings,
    LedgerSpec,
    LLMJudgeScorer,
    ModelConfig,
    ResponseCachePath,
    ScorerConfig,
    scorer_parts,
)
from .shadow import AnswerWatcher, ShadowSection, policy_beside

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from trim_graph.budget.ledger import Ledger

EXAMPLE = """\
small: {type: transformers, model: Qwen/Qwen2.5-Math-1.5B-Instruct, device: auto}
large: {type: transformers, model: ./models/large, device: auto, dtype: bfloat16}
scorer: {type: transformers_prm, model: Qwen/Qwen2.5-Math-PRM-7B, device: auto}
policy: {type: threshold, t: 0.5}
budget: {large_tokens: 2000, seconds: 120}
prices: {large: {input: 0.5, output: 1.5}}
settings: {max_steps: 40, max_step_tokens: 512}
checkpoint: sqlite:runs.db
"""
"""Also: ``type: vllm`` (model, base_url, api_key_env) and ``vllm_prm`` for models behind vLLM servers, whose
``serve`` says how `trim-graph up` starts them; ``vllm_engine`` and ``vllm_engine_prm`` (model,
``gpu_memory_utilization`` or ``kv_cache_gib``, ``engine_args``) for vLLM in this process;
reward models of another ``format``: ``math_shepherd``, ``skywork`` or ``rlhflow`` (scorers of `train scorer`
need none);
``vllm_generative_prm`` (model, format) for one that says + or - on a server for generation;
``type: langchain`` (model, kwargs) for hosted models by the names LangChain has for them; scorers
``llm_judge`` (model, ``scale: yes_no``), ``token_probability`` (wants ``logprobs: true`` of the models; or
``statistic: lowest_window``), ``turn_signals`` (of an agent), ``cascade`` (first, second, ``unsure: [0.2,
0.8]``) and ``minimum`` (scorers); ``type: example`` for all three models (the arithmetic models that come
with trim-graph); policies
``small_only`` or ``small``, ``large_only`` or ``large``, a number (``threshold`` at it), ``advantage``
(minimum, price_per_token), ``random_rate`` (rate),
``entropy_probe`` (limit), ``by_pattern`` (pattern, rates), ``stay_on_large`` (policy, k), ``any_of`` and
``all_of`` (policies), or a policy file, ``plan.json``, of a learned one also with another threshold,
``{type: file, path: aggregate-0.02.json, threshold: 0.3}``, or an operating point by its name, ``{type:
quality, name: high}``, with ``quality: {high: {max_loss: 0.01}, fast: {save: 0.7}}``, which `trim-graph
calibrate --write` gives their policies;
in settings ``segmentation: {type: markdown}``, ``{type: pattern, pattern: ...}`` or ``{type: tokens, tokens:
64}`` (a PRM's steps are made as those it was trained on), ``max_repeats: 5`` (null looks for no loop),
``thinking: {routed: reasoning}``, ``ask_below: 0.2``, ``lookahead: true``, ``warm_large: true``;
``large_alone: {length_ratio: 1.1, seconds_per_token: 0.02}``, with which a run estimates its net savings;
``shadow: {answers: large, record: shadow.jsonl, rate: 0.1}``, with which the large model answers alone and
routing runs beside it; ``quotas: {user: {large_tokens: 20000}}`` with ``ledger: sqlite:spend.db`` (or what
checkpoint takes, but for none); checkpoint ``none``, ``memory``, ``sqlite:PATH``,
``postgresql://USER@HOST/DATABASE``, ``env:NAME``; ``response_cache: calls.db`` keeps the chat models'
responses, so that equal calls of several measurements are made once."""


class TrimConfig(ConfigSection):
    """A whole configuration.

    Attributes:
        small: The model that drafts every step.
        large: The model that writes a step again where the policy says so.
        scorer: Rates each step; needed by policies that use scores.
        policy: Decides on each draft.
        quality: Operating points by name, which `trim-graph calibrate` gives their policies.
        budget: Hard limits on the large model in one run.
        quotas: Limits of a thread and of a user over all their runs.
        ledger: Where usage under quotas is counted: ``sqlite:PATH``, ``memory``, ``postgresql://...`` or
            ``env:NAME``.
        prices: Price table, for the limit on cost and the cost of the summary.
        large_alone: What is known of the large model alone, for the net savings of the summary.
        shadow: Has one model answer alone, while routing runs beside it.
        settings: The other settings of a run.
        checkpoint: Where runs are stored: ``none``, ``memory``, ``sqlite:PATH``, ``postgresql://...`` or
            ``env:NAME``.
        response_cache: SQLite file that keeps the chat models' responses, for measurements; needs models at
            temperature 0.
    """

    small: ModelConfig
    large: ModelConfig
    scorer: ScorerConfig | None = None
    policy: PolicyConfig
    quality: QualityPoints = Field(default_factory=dict)
    budget: Budget = Budget()
    quotas: Quotas = Quotas()
    ledger: LedgerSpec = None
    prices: Prices = Prices()
    large_alone: LargeAlone = LargeAlone()
    settings: FileSettings = FileSettings()
    checkpoint: CheckpointSpec = "none"
    response_cache: ResponseCachePath = None
    shadow: ShadowSection | None = None

    @model_validator(mode="after")
    def _repeatable(self) -> TrimConfig:
        for name in ("small", "large") if self.response_cache is not None else ():
            kwargs = getattr(getattr(self, name), "kwargs", None)
            known = (
                getattr(getattr(self, name), "temperature", None)
                if kwargs is None
                else kwargs.get("temperature")
            )
            if known != 0:
                raise ValueError(
                    f"response_cache answers equal requests alike, and {name} draws (temperature "
                    f"{'not given' if known is None else known}): set its temperature to 0, "
                    "or leave the cache out"
                )
        return self

    _named = model_validator(mode="before")(policy_by_name)

    @model_validator(mode="after")
    def _known_quality(self) -> TrimConfig:
        if isinstance(self.policy, Quality):
            check_named(self.quality, self.policy.name)
        return self

    @model_validator(mode="after")
    def _counted(self) -> TrimConfig:
        if self.ledger is None and self.quotas.given:
            raise ValueError("quotas need a ledger that counts: add for example ledger: sqlite:spend.db")
        return self


class Parts(NamedTuple):
    """The models of a configuration, so that several graphs can share them."""

    small: Any
    large: Any
    scorer: Any


def load_config(path: str | os.PathLike[str], *, overrides: dict[str, Any] | None = None) -> TrimConfig:
    """Reads a configuration file.

    Args:
        path: A YAML file.
        overrides: Replaces whole top-level keys; a mapping is merged into one (``{"budget": {...}}``).

    Raises:
        SettingsError: There is no such file, it is not YAML, or a value in it is not valid. The message
            names the file, the line, the key, what was seen and the nearest valid key.
        ImportError: PyYAML is not installed.
    """
    file = Path(path)
    data, lines = read_yaml(file)
    return make_config(data, overrides=overrides, base=file.parent, name=str(path), lines=lines)


def make_config(
    data: dict[str, Any],
    *,
    overrides: dict[str, Any] | None = None,
    base: str | os.PathLike[str] = ".",
    name: str = "configuration",
    lines: Any = None,
) -> TrimConfig:
    """Validates a configuration that is a mapping already.

    Args:
        data: As in a file.
        overrides: As in `load_config`.
        base: What relative paths are relative to.
        name: What errors call it.
        lines: Finds the line of a key, if it came from a file.

    Raises:
        SettingsError: A value is not valid.
    """
    merged = dict(data)
    for key, value in (overrides or {}).items():
        old = merged.get(key)
        joins = key != "policy" and isinstance(value, dict) and isinstance(old, dict)
        merged[key] = {**old, **value} if joins and old else value
    try:
        return TrimConfig.model_validate(merged, context={"base": Path(base).absolute()})
    except ValidationError as error:
        schema = TrimConfig.model_json_schema()
        wrong = explain(error, merged, schema, name, lines, overrides or {})
    raise SettingsError(wrong)  # out of the except clause: pydantic's own words may repeat a secret


def example_config(overrides: dict[str, Any] | None = None) -> TrimConfig:
    """Returns the configuration of the example models, with the calibrated threshold.

    Args:
        overrides: As in `load_config`.
    """
    overrides = overrides or {}
    data: dict[str, Any] = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    if "policy" not in overrides:
        from trim_graph.examples.arithmetic.shipped import load_calibration

        data["policy"] = {"type": "threshold", "t": load_calibration().threshold}
    return make_config(data, overrides=overrides)


def for_measuring(config: TrimConfig) -> TrimConfig:
    """Returns a configuration for runs that measure: they draw from no user's account and ask nobody.

    They route, with a section ``shadow`` too.
    """
    budget = config.budget
    if budget.on_exhausted == "ask":
        budget = budget.model_copy(update={"on_exhausted": "small"})
    settings = config.settings.model_copy(update={"ask_below": None})
    return config.model_copy(
        update={"quotas": Quotas(), "budget": budget, "settings": settings, "shadow": None}
    )


def with_temperature(config: TrimConfig, temperature: float) -> TrimConfig:
    """Returns a configuration whose small model draws at this temperature, that of a provider's model too."""
    kwargs = getattr(config.small, "kwargs", None)
    drawn = {"temperature": temperature}
    setting: dict[str, Any] = drawn if kwargs is None else {"kwargs": {**kwargs, **drawn}}
    return config.model_copy(update={"small": config.small.model_copy(update=setting)})


def build_parts(config: TrimConfig) -> Parts:
    """Makes the adapters. Weights are loaded at the first call of each.

    Raises:
        SettingsError: A model cannot be used as configured.
    """
    made: dict[str, Any] = {"scorer": None}
    for part in ("small", "large"):
        made[part] = _built(part, lambda part=part: getattr(config, part).build(part))
    if config.response_cache is not None:
        from trim_graph.storage.response_cache import ResponseCache

        for part in ("small", "large"):
            made[part].cache = ResponseCache(config.response_cache, scope=part)
    if config.scorer is not None:
        made["scorer"] = _built("scorer", config.scorer.build)
    return Parts(**made)


def _built(part: str, build: Any) -> Any:
    try:
        return build()
    except ValueError as error:
        wrong = str(error)
    raise SettingsError(f"{part}: {wrong}")  # without a provider's own error, which may repeat a key


def build_graph(
    config: TrimConfig,
    checkpointer: Any = None,
    *,
    parts: Parts | None = None,
    ledger: Ledger | None = None,
    shadow: AnswerWatcher | None = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Builds the graph that a configuration describes.

    Args:
        config: From `load_config` or `make_config`.
        checkpointer: What `trim_graph.storage.checkpoint.open_checkpointer(config.checkpoint)` opened.
        parts: From `build_parts`, to share models between graphs; default: new ones.
        ledger: What `trim_graph.open_ledger(config.ledger)` opened, for a configuration with quotas.
        shadow: What `trim_graph.Shadow.from_config` built, for a configuration with a section ``shadow``. The
            graph then answers with one model, and the shadow routes beside it.

    Raises:
        SettingsError: Parts do not go together, such as a policy that needs scores and no scorer, quotas and
            no ledger, or a section ``shadow`` and no shadow.
    """
    from trim_graph.graph import create_trim_graph

    alone = policy_beside(config.shadow, shadow)
    policy = alone or config.policy.build()
    small, large, scorer = parts or build_parts(config)
    if policy.needs_score and scorer is None:
        raise SettingsError(
            f"the policy {config.policy.type} needs scores, and the configuration names no scorer: add one, "
            "such as scorer: {type: token_probability}, or choose a policy without scores"
        )
    return create_trim_graph(
        small,
        large,
        scorer,
        policy=policy,
        budget=config.budget,
        prices=config.prices,
        large_alone=config.large_alone,
        quotas=config.quotas,
        checkpointer=checkpointer,
        ledger=ledger,
        on_answer=None if shadow is None else shadow.observe,
        **config.settings.model_dump(),
    )


def judge_without_price(prices: Prices, *scorers: ScorerConfig | None) -> str | None:
    """Returns the sentence on an LLM judge whose price is missing beside others; None where there is none.

    Args:
        prices: Price table.
        scorers: Scorers that may be asked, in the form of a configuration.
    """
    parts = [part for one in scorers for part in scorer_parts(one)]
    if not prices.given or prices.scorer is not None:
        return None
    judged = any(isinstance(part, LLMJudgeScorer) for part in parts)
    return unpriced_scorer("an LLM judge writes tokens") if judged else None


def with_value(text: str, place: Sequence[str], value: Any) -> str:
    """Replaces a value in the text of a configuration file; comments outside of it stay where they are.

    A key of the whole that is missing is added at the end. Where a replacement cannot be done (an anchor that
    is used elsewhere), the whole is written anew, without comments.

    Args:
        text: YAML, a valid configuration.
        place: Keys that lead to the value, which is there if there are several.
        value: The new one, as a configuration names it.
    """
    import yaml

    wanted = yaml.safe_load(text)
    holder = wanted
    for key in place[:-1]:
        holder = holder[key]
    is_new = place[-1] not in holder
    holder[place[-1]] = value
    written = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    flow = written.removesuffix("\n").removesuffix("\n...").strip()
    if is_new:
        return _appended(text, f"{place[-1]}: {flow}\n", wanted)
    node: Any = yaml.compose(text)
    for key in place:
        name, node = next((name, inner) for name, inner in node.value if name.value == key)
    start, end = node.start_mark.index, node.end_mark.index
    # The end of a block shows where the next token begins: what lies between belongs to the next key.
    old = text[start:end]
    kept = old
    while (line := kept.rstrip("\n").rpartition("\n"))[1] and line[2].strip().startswith("#"):
        kept = line[0] + "\n"
    kept = kept.rstrip()
    new = f"{text[: name.end_mark.index]}: {flow}{old[len(kept) :]}{text[end:]}"
    return _checked(new, wanted)


def _appended(text: str, line: str, wanted: Any) -> str:
    """Returns a configuration with a further line, before the mark that ends a document."""
    kept = text.removesuffix("\n").removesuffix("\n...")
    return _checked(f"{kept}\n{line}", wanted)


def _checked(new: str, wanted: Any) -> str:
    """Returns the new text if it means what it should, else a text without comments that does."""
    import yaml

    try:
        if yaml.safe_load(new) == wanted:
            return new
    except yaml.YAMLError:
        pass
    return str(yaml.safe_dump(wanted, sort_keys=False, width=110))


def check_writable(out: Path, option: str = "") -> None:
    """Refuses a file that cannot be written.

    Args:
        out: The file.
        option: Stands before its name in an error.

    Raises:
        SettingsError: Its folder does not exist, or it cannot be written to.
    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"{option}{out}: the folder {folder} does not exist")
    if out.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        why = "a folder" if out.is_dir() else "no permission"
        raise SettingsError(f"{option}{out} cannot be written: {why}")


def check_place(source: Path | None, out: Path) -> None:
    """Refuses a place for a configuration where it would mean something else.

    Args:
        source: The configuration it is made of; None for that of the example models.
        out: Where it is to be written.

    Raises:
        SettingsError: The folder does not exist or cannot be written to, or relative paths in ``source``
            would lead elsewhere from there.
    """
    check_writable(out, "--out ")
    folder = out.absolute().parent
    if source is None or folder == source.absolute().parent:
        return
    data, _ = read_yaml(source)
    data.pop("policy", None)
    try:
        there: TrimConfig | None = make_config({**data, "policy": "small_only"}, base=folder)
    except SettingsError:
        there = None
    here = load_config(source, overrides={"policy": "small_only"})
    if there != here:
        raise SettingsError(
            f"--out {out}: relative paths in {source} lead elsewhere from there: choose a file beside it"
        )


def write_config(source: Path | None, out: Path, values: Mapping[tuple[str, ...], Any]) -> None:
    """Writes a configuration with other values.

    Args:
        source: The configuration it is made of; None for that of the example models.
        out: Where it goes; may be ``source``.
        values: By their places, such as ``("policy",)``. Below the keys of the whole, ``source`` has some
            there. Paths of policy files, at any depth, become relative to ``out``.
    """
    text = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\npolicy: small_only\n"
    if source is not None:
        text = source.read_text(encoding="utf-8")
    for place, value in values.items():
        text = with_value(text, place, _relative(value, out.absolute().parent))
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        load_config(beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _relative(policy: Any, folder: Path) -> Any:
    """Names policy files, at any depth, from a folder."""
    if isinstance(policy, list):
        return [_relative(inner, folder) for inner in policy]
    if not isinstance(policy, dict):
        return policy
    if policy.get("type") == "file":
        return {**policy, "path": os.path.relpath(policy["path"], folder)}
    return {key: _relative(value, folder) for key, value in policy.items()}
