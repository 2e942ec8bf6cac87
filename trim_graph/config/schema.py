"""The models and scorers that a configuration file may name, their servers, and how each is built."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trim_graph.adapters.cascade import UNSURE, check_limits
from trim_graph.adapters.model_source import check_model
from trim_graph.adapters.settings import (
    Dtype,
    JudgeSettings,
    TransformersPRMSettings,
    TransformersSettings,
    TurnSignalsSettings,
    VLLMEnginePRMSettings,
    VLLMEngineSettings,
    VLLMGenerativePRMSettings,
    VLLMServerPRMSettings,
    VLLMServerSettings,
)
from trim_graph.budget import Writer
from trim_graph.errors import SECRET_NAME
from trim_graph.segmentation import DelimiterSteps, MarkdownSteps, PatternSteps, TokenSteps
from trim_graph.settings import ConfigSection, StepSettings, base_folder
from trim_graph.storage.checkpoint import CHOICES, LEDGERS, checkpoint_place


def beside_file(value: Any, info: ValidationInfo) -> Any:
    """Finds a model's folder beside the configuration file; anything else may be a hub id."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = base_folder(info) / text
    # The adapters would look in the working directory, where a folder of that name is another one.
    is_path = text.startswith(("./", "../", "/")) or place.exists() or Path(text).exists()
    return check_model(place if is_path else text)


ModelPlace = Annotated[str, BeforeValidator(beside_file)]


class FileSettings(StepSettings, ConfigSection):
    """The mapping ``settings``: as a graph's, but a file names no function."""

    segmentation: DelimiterSteps | PatternSteps | MarkdownSteps | TokenSteps | None = Field(
        default=None, discriminator="type", description=StepSettings.model_fields["segmentation"].description
    )


def _placed(value: Any, info: ValidationInfo, setting: str) -> str:
    """Checks a specification; a relative path is relative to the file."""
    if not isinstance(value, str | None):
        raise ValueError(f"{setting} is not a text: choose {CHOICES if setting == 'checkpoint' else LEDGERS}")
    place = checkpoint_place(value, setting)
    if place.kind != "sqlite":
        return place.spec
    return f"sqlite:{base_folder(info) / os.path.expanduser(place.place)}"


def placed_checkpoint(value: Any, info: ValidationInfo) -> str:
    """Checks a checkpoint's specification."""
    return _placed(value, info, "checkpoint")


def placed_ledger(value: Any, info: ValidationInfo) -> str | None:
    """Checks a ledger's specification, as a checkpoint's; null is none."""
    if value is None:
        return None
    placed = _placed(value, info, "ledger")
    if placed == "none":
        raise ValueError(f"ledger cannot be none: choose {LEDGERS}")
    return placed


CheckpointSpec = Annotated[str, BeforeValidator(placed_checkpoint)]
LedgerSpec = Annotated[str | None, BeforeValidator(placed_ledger)]


def placed_beside(value: Any, info: ValidationInfo) -> Any:
    """Finds a file that is written from the folder of the configuration file."""
    return base_folder(info) / Path(value).expanduser() if isinstance(value, str | os.PathLike) else value


ResponseCachePath = Annotated[Path | None, BeforeValidator(placed_beside)]
"""SQLite file of `trim_graph.storage.response_cache.ResponseCache`."""


_OWNED = {
    "--model": "the setting model, or path in serve",
    "--served-model-name": "the setting model",
    "--host": "base_url",
    "--port": "base_url",
    "--dtype": "dtype in serve",
    "--max-model-len": "max_model_len in serve",
    "--gpu-memory-utilization": "memory_share in serve",
    "--kv-cache-memory-bytes": "kv_cache_gb in serve",
    "--runner": "type: vllm is a chat model, vllm_prm a process reward model",
}
"""Arguments that the configuration says elsewhere, and where."""


def _weights_beside_file(value: Any, info: ValidationInfo) -> Any:
    """Makes the path of an existing folder beside the file absolute; anything else may be a hub id.

    Nothing has to exist: the same file also serves on machines that only ask the servers.
    """
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = base_folder(info) / text
    return os.path.normpath(place) if text.startswith((".", "/")) or place.is_dir() else text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


_GPU = Annotated[int, Field(ge=0)]


class Serve(ConfigSection):
    """Settings of the vLLM server that `trim-graph up` starts; the rest follows from the part itself.

    Attributes:
        gpu: Index of the GPU, or several, over which the model is split; empty: the first that is visible.
        cpu: Whether it runs on the CPU instead.
        memory_share: Share of each GPU's memory; None: what `trim_graph.serving.plan` works out.
        kv_cache_gb: Memory for keys and values, in GiB; None: what the share leaves, on a CPU 4.
        dtype: Of the weights in memory.
        max_model_len: Longest sequence, in tokens; None: the model's own.
        path: Weights, a folder or hub id, where `model` is but a name.
        example: Weights that come with trim-graph, in place of ``path``.
        args: Further arguments of ``vllm serve``; relative paths in them are relative to the file.
    """

    gpu: Annotated[list[_GPU], BeforeValidator(_listed, json_schema_input_type=_GPU | list[_GPU])] = Field(
        default_factory=list
    )
    cpu: bool = False
    memory_share: float | None = Field(default=None, gt=0, le=0.95)
    kv_cache_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    dtype: Dtype = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    path: Annotated[str, BeforeValidator(_weights_beside_file)] | None = None
    example: Literal["small", "large", "prm"] | None = None
    args: list[str] = Field(default_factory=list)

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: list[str]) -> list[str]:
        for arg in args:
            flag = arg.partition("=")[0].replace("_", "-")
            # vLLM takes unambiguous beginnings of a flag, too.
            if len(flag) > 5 and "--api-key".startswith(flag):
                raise ValueError(
                    "args holds --api-key, which every user of the machine could read; put the key into an "
                    "environment variable and name that in api_key_env"
                )
            if flag == "--hf-token":
                raise ValueError(
                    "args holds --hf-token, which every user of the machine could read; put the token into "
                    "the environment variable HF_TOKEN"
                )
            if flag in _OWNED:
                raise ValueError(f"args holds {flag}, which {_OWNED[flag]} says")
        return args

    @model_validator(mode="after")
    def _check_whole(self) -> Serve:
        if self.path is not None and self.example is not None:
            raise ValueError("path and example both name the weights: give one of them")
        if self.cpu and self.gpu:
            raise ValueError("gpu and cpu contradict each other: give one of them")
        if len(set(self.gpu)) < len(self.gpu):
            raise ValueError(f"gpu names one GPU twice: {self.gpu}")
        return self

    @property
    def weights(self) -> str | None:
        """The weights named; None: the model's name is theirs."""
        if self.example is not None:
            from trim_graph.examples import arithmetic

            folders: dict[str, Path] = {
                "small": arithmetic.SMALL,
                "large": arithmetic.LARGE,
                "prm": arithmetic.PRM,
            }
            return str(folders[self.example])
        return self.path


class TransformersModel(TransformersSettings, ConfigSection):
    """A chat model in this process (`trim_graph.adapters.ChatTransformers`)."""

    type: Literal["transformers"]
    model: ModelPlace

    def build(self, writer: Writer) -> Any:
        """Makes the adapter; the weights are loaded at the first call."""
        from trim_graph.adapters import ChatTransformers

        return ChatTransformers(**self.model_dump(exclude={"type"}))


class VLLMModel(VLLMServerSettings, ConfigSection):
    """A chat model behind a vLLM server (`trim_graph.adapters.ChatVLLM`)."""

    type: Literal["vllm"]
    serve: Serve = Serve()
    """How `trim-graph up` starts the server."""

    def build(self, writer: Writer) -> Any:
        """Makes the adapter; the server is asked at the first call."""
        from trim_graph.adapters import ChatVLLM

        return ChatVLLM(**self.model_dump(exclude={"type", "serve"}))


class VLLMEngineModel(VLLMEngineSettings, ConfigSection):
    """A chat model on a vLLM engine in this process (`trim_graph.adapters.ChatVLLMEngine`)."""

    type: Literal["vllm_engine"]
    model: ModelPlace

    def build(self, writer: Writer) -> Any:
        """Makes the adapter; the engine starts at the first call."""
        from trim_graph.adapters import ChatVLLMEngine

        return ChatVLLMEngine(**self.model_dump(exclude={"type"}))


class ExampleModel(ConfigSection):
    """The arithmetic model of this size that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: CUDA where there is one."""
    logprobs: bool = False
    """Whether answers report their mean token probability."""
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 takes the likeliest token."""

    def build(self, writer: Writer) -> Any:
        """Makes the adapter; the weights are loaded at the first call."""
        from trim_graph.adapters import ChatTransformers
        from trim_graph.examples import arithmetic

        folder = arithmetic.SMALL if writer == "small" else arithmetic.LARGE
        settings = self.model_dump(exclude={"type"})
        return ChatTransformers(model=check_model(folder), **settings)


class LangChainModel(ConfigSection):
    """Any chat model that LangChain knows by name; one that cannot continue a text is asked by prompt.

    Keys come from the environment, by the provider's usual variable (``OPENAI_API_KEY``).
    """

    type: Literal["langchain"]
    model: str
    """Provider and name, as in ``openai:gpt-4.1-mini``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the provider's class, such as ``{temperature: 0}``."""

    @field_validator("model")
    @classmethod
    def _has_provider(cls, model: str) -> str:
        provider, _, name = model.partition(":")
        if not provider or not name:
            raise ValueError("name the provider too, as in openai:gpt-4.1-mini")
        return model

    @field_validator("kwargs")
    @classmethod
    def _no_keys(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        if (place := _secret_in(kwargs)) is not None:
            # Not by a message that shows what was seen.
            raise ValueError(
                f"kwargs{place} does not belong into a file: set the provider's variable, "
                "such as OPENAI_API_KEY, in the environment"
            )
        return kwargs

    def build(self, writer: Writer) -> Any:
        """Makes the chat model.

        Raises:
            ImportError: The extra ``hosted`` or the provider's package is not installed.
        """
        from trim_graph.adapters.by_name import chat_model_by_name

        return chat_model_by_name(self.model, **self.kwargs)


_USERINFO = re.compile(r"://[^/?#]*@")


def _secret_in(value: Any, place: str = "") -> str | None:
    """Finds the place of the first secret: what is named as one, or a URL with a user name or password."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key}"
            if SECRET_NAME.search(str(key)):
                return here
            if (found := _secret_in(inner, here)) is not None:
                return found
    if isinstance(value, list):
        for index, inner in enumerate(value):
            if (found := _secret_in(inner, f"{place}[{index}]")) is not None:
                return found
    return place if isinstance(value, str) and _USERINFO.search(value) else None


ModelConfig = Annotated[
    TransformersModel | VLLMModel | VLLMEngineModel | LangChainModel | ExampleModel,
    Field(discriminator="type"),
]


class TransformersPRM(TransformersPRMSettings, ConfigSection):
    """A process reward model in this process (`trim_graph.adapters.TransformersProcessReward`)."""

    type: Literal["transformers_prm"]
    model: ModelPlace

    def build(self) -> Any:
        """Makes the adapter; the weights are loaded at the first call."""
        from trim_graph.adapters import TransformersProcessReward

        return TransformersProcessReward(**self.model_dump(exclude={"type"}))


class VLLMPRM(VLLMServerPRMSettings, ConfigSection):
    """A process reward model behind a vLLM server (`trim_graph.adapters.VLLMProcessReward`)."""

    type: Literal["vllm_prm"]
    tokenizer: ModelPlace | None = None
    serve: Serve = Serve()
    """How `trim-graph up` starts the server."""

    def build(self) -> Any:
        """Makes the adapter; the server is asked at the first call."""
        from trim_graph.adapters import VLLMProcessReward

        return VLLMProcessReward(**self.model_dump(exclude={"type", "serve"}))


class VLLMGenerativePRM(VLLMGenerativePRMSettings, ConfigSection):
    """A PRM that says + or -, on a vLLM server for generation (`VLLMGenerativeProcessReward`)."""

    keeps_scores: ClassVar[bool] = True

    type: Literal["vllm_generative_prm"]
    tokenizer: ModelPlace | None = None
    serve: Serve = Serve()
    """How `trim-graph up` starts the server."""

    def build(self) -> Any:
        """Makes the adapter; the server is asked at the first call."""
        from trim_graph.adapters import VLLMGenerativeProcessReward

        return VLLMGenerativeProcessReward(**self.model_dump(exclude={"type", "serve"}))


class VLLMEnginePRM(VLLMEnginePRMSettings, ConfigSection):
    """A process reward model on a vLLM engine here (`trim_graph.adapters.VLLMEngineProcessReward`)."""

    type: Literal["vllm_engine_prm"]
    model: ModelPlace

    def build(self) -> Any:
        """Makes the adapter; the engine starts at the first call."""
        from trim_graph.adapters import VLLMEngineProcessReward

        return VLLMEngineProcessReward(**self.model_dump(exclude={"type"}))


class ExamplePRM(ConfigSection):
    """The arithmetic process reward model that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: CUDA where there is one."""

    def build(self) -> Any:
        """Makes the adapter; the weights are loaded at the first call."""
        from trim_graph.adapters import TransformersProcessReward
        from trim_graph.examples import arithmetic

        return TransformersProcessReward(str(arithmetic.PRM), device=self.device, max_batch_size=64)


class LLMJudgeScorer(JudgeSettings, ConfigSection):
    """A chat model that rates each step from 0 to 9 (`trim_graph.adapters.LLMJudge`)."""

    keeps_scores: ClassVar[bool] = True

    type: Literal["llm_judge"]
    model: ModelConfig
    """The chat model that is asked."""

    def build(self) -> Any:
        """Makes the scorer and its model; the model is asked at the first draft."""
        from trim_graph.adapters import LLMJudge

        settings = self.model_dump(exclude={"type", "model"})
        return LLMJudge(self.model.build("large"), **settings)


class TokenProbabilityScorer(ConfigSection):
    """Scorer by the writer's token probabilities (`trim_graph.adapters.TokenProbability`); no extra call."""

    type: Literal["token_probability"]
    statistic: Literal["mean", "lowest_window"] = "mean"
    window: int | None = Field(default=None, ge=1, strict=True)

    @model_validator(mode="after")
    def _the_statistic_has_a_window(self) -> TokenProbabilityScorer:
        self.build()
        return self

    def build(self) -> Any:
        """Makes the scorer."""
        from trim_graph.adapters import TokenProbability

        return TokenProbability(self.statistic, window=self.window)


def _checked_limits(unsure: list[float]) -> list[float]:
    return list(check_limits(unsure))


Limits = Annotated[list[float], AfterValidator(_checked_limits)]


class CascadeScorerConfig(ConfigSection):
    """A cheap scorer, and a costly one where it is unsure (`trim_graph.adapters.CascadeScorer`)."""

    keeps_scores: ClassVar[bool] = True

    type: Literal["cascade"]
    first: ScorerConfig
    second: ScorerConfig
    unsure: Limits = Field(default_factory=lambda: list(UNSURE))
    cache_size: int = Field(default=4096, ge=0, strict=True)

    def build(self) -> Any:
        """Makes both scorers and what they ask; models are asked at the first draft."""
        from trim_graph.adapters import CascadeScorer

        low, high = self.unsure
        first, second = self.first.build(), self.second.build()
        return CascadeScorer(first, second, unsure=(low, high), cache_size=self.cache_size)


class TurnSignalsScorer(TurnSignalsSettings, ConfigSection):
    """Failed tools, invalid, repeated and empty calls of an agent (`trim_graph.adapters.TurnSignals`)."""

    type: Literal["turn_signals"]

    def build(self) -> Any:
        """Makes the scorer."""
        from trim_graph.adapters import TurnSignals

        return TurnSignals(**self.model_dump(exclude={"type"}))


class MinimumOfScorers(ConfigSection):
    """The lowest score of several scorers (`trim_graph.adapters.MinimumScorer`)."""

    type: Literal["minimum"]
    scorers: list[ScorerConfig] = Field(min_length=2)
    """Two or more."""

    def build(self) -> Any:
        """Makes the scorers."""
        from trim_graph.adapters import MinimumScorer

        return MinimumScorer(*(scorer.build() for scorer in self.scorers))


ScorerConfig = Annotated[
    TransformersPRM
    | VLLMPRM
    | VLLMGenerativePRM
    | VLLMEnginePRM
    | LLMJudgeScorer
    | TokenProbabilityScorer
    | TurnSignalsScorer
    | CascadeScorerConfig
    | MinimumOfScorers
    | ExamplePRM,
    Field(discriminator="type"),
]
CascadeScorerConfig.model_rebuild()
MinimumOfScorers.model_rebuild()


def scorer_parts(scorer: Any) -> list[Any]:
    """Returns the scorers that a configuration's scorer combines, or the scorer itself; none for None."""
    if isinstance(scorer, CascadeScorerConfig):
        return [*scorer_parts(scorer.first), *scorer_parts(scorer.second)]
    if isinstance(scorer, MinimumOfScorers):
        return [part for one in scorer.scorers for part in scorer_parts(one)]
    return [] if scorer is None else [scorer]


def named_scorers(scorer: Any) -> dict[str, Any]:
    """Returns a scorer as ``scorer``, or the parts of one that combines several as ``scorer-1`` and on."""
    parts = scorer_parts(scorer)
    return {f"scorer-{n}" if len(parts) > 1 else "scorer": part for n, part in enumerate(parts, 1)}


def asked_by(scorer: Any) -> Any:
    """Returns what a scorer asks: the model of a judge, another scorer itself."""
    return scorer.model if isinstance(scorer, LLMJudgeScorer) else scorer


def models_of(scorer: Any) -> list[Any]:
    """Returns what a scorer consists of: the models of its judges, and other scorers themselves."""
    return [asked_by(part) for part in scorer_parts(scorer)]
