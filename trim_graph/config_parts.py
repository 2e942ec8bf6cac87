"""The parts of a configuration file: what each may hold, and how it is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from .adapters.model_source import check_model
from .adapters.prm_formats import QWEN_SYSTEM_PROMPT
from .budget import Writer
from .checkpoint import CHOICES, checkpoint_place
from .context import OnLargeError, OnScorerError, OnSmallError
from .policies import Policy, large_only, random_rate, small_only, stay_on_large, threshold
from .prompts import DEFAULT_INSTRUCTION
from .segment import DEFAULT_DELIMITER


class Part(BaseModel):
    """A mapping in the file; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _beside_file(value: Any, info: ValidationInfo) -> Any:
    """Find a model's folder beside the configuration file; anything else may be a hub id."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.path.expanduser(os.fspath(value))
    place = _base(info) / text
    # The adapters would look in the working directory, where a folder of that name is another one.
    is_path = text.startswith(("./", "../", "/")) or place.exists() or Path(text).exists()
    return check_model(place if is_path else text)


def _base(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("base", "."))


ModelPlace = Annotated[str, BeforeValidator(_beside_file)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class TransformersModel(Part):
    """A chat model in this process (`trim_graph.adapters.ChatTransformers`)."""

    type: Literal["transformers"]
    model: ModelPlace
    device: str = "cpu"
    dtype: Dtype = "float32"
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    max_batch_size: int = Field(default=64, ge=1)

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import ChatTransformers

        return ChatTransformers(**self.model_dump(exclude={"type"}))


def _server_url(value: str) -> str:
    from .adapters.vllm_server import check_base_url

    check_base_url(value)
    return value


ServerURL = Annotated[str, AfterValidator(_server_url)]


class VLLMModel(Part):
    """A chat model behind a vLLM server (`trim_graph.adapters.ChatVLLM`)."""

    type: Literal["vllm"]
    model: str = Field(min_length=1)
    base_url: ServerURL = "http://localhost:8000/v1"
    api_key_env: str | None = "VLLM_API_KEY"
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    max_retries: int = Field(default=3, ge=0)
    max_connections: int = Field(default=256, ge=1)
    read_timeout: float = Field(default=600.0, gt=0)
    continuation: Literal["auto", "chat", "raw"] = "auto"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    extra_body: dict[str, Any] = Field(default_factory=dict)

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the server is asked at the first call."""
        from .adapters import ChatVLLM

        return ChatVLLM(**self.model_dump(exclude={"type"}))


class ExampleModel(Part):
    """The arithmetic model of this size that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import ChatTransformers
        from .examples import arithmetic

        folder = arithmetic.SMALL if writer == "small" else arithmetic.LARGE
        return ChatTransformers(model=check_model(folder), device=self.device)


class TransformersPRM(Part):
    """A process reward model in this process (`trim_graph.adapters.TransformersProcessReward`)."""

    type: Literal["transformers_prm"]
    model: ModelPlace
    device: str = "cpu"
    dtype: Dtype = "float32"
    format: Literal["qwen"] = "qwen"
    step_token: str = "<extra_0>"
    system_prompt: str | None = QWEN_SYSTEM_PROMPT
    max_batch_size: int = Field(default=16, ge=1)

    def build(self) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import TransformersProcessReward

        return TransformersProcessReward(**self.model_dump(exclude={"type"}))


class VLLMPRM(Part):
    """A process reward model behind a vLLM server (`trim_graph.adapters.VLLMProcessReward`)."""

    type: Literal["vllm_prm"]
    model: str = Field(min_length=1)
    base_url: ServerURL = "http://localhost:8000/v1"
    api_key_env: str | None = "VLLM_API_KEY"
    tokenizer: ModelPlace | None = None
    format: Literal["qwen"] = "qwen"
    step_token: str = "<extra_0>"
    system_prompt: str | None = QWEN_SYSTEM_PROMPT
    max_batch_size: int = Field(default=64, ge=1)
    max_retries: int = Field(default=3, ge=0)
    read_timeout: float = Field(default=600.0, gt=0)

    def build(self) -> Any:
        """Make the adapter; the server is asked at the first call."""
        from .adapters import VLLMProcessReward

        return VLLMProcessReward(**self.model_dump(exclude={"type"}))


class ExamplePRM(Part):
    """The arithmetic process reward model that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"

    def build(self) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import TransformersProcessReward
        from .examples import arithmetic

        return TransformersProcessReward(arithmetic.PRM, device=self.device, max_batch_size=64)


class SmallOnly(Part):
    """`trim_graph.policies.small_only`."""

    type: Literal["small_only"]

    def build(self) -> Policy:
        """Make the policy."""
        return small_only()


class LargeOnly(Part):
    """`trim_graph.policies.large_only`."""

    type: Literal["large_only"]

    def build(self) -> Policy:
        """Make the policy."""
        return large_only()


class Threshold(Part):
    """`trim_graph.policies.threshold`."""

    type: Literal["threshold"]
    t: float = Field(ge=0, le=1)

    def build(self) -> Policy:
        """Make the policy."""
        return threshold(self.t)


class RandomRate(Part):
    """`trim_graph.policies.random_rate`."""

    type: Literal["random_rate"]
    rate: float = Field(ge=0, le=1)

    def build(self) -> Policy:
        """Make the policy."""
        return random_rate(self.rate)


class StayOnLarge(Part):
    """`trim_graph.policies.stay_on_large`."""

    type: Literal["stay_on_large"]
    policy: PolicyConfig
    k: int = Field(ge=0)

    def build(self) -> Policy:
        """Make the policy."""
        return stay_on_large(self.policy.build(), self.k)


class Combined(Part):
    """Several policies joined by ``|`` (``any_of``) or ``&`` (``all_of``)."""

    type: Literal["any_of", "all_of"]
    policies: list[PolicyConfig] = Field(min_length=1)

    def build(self) -> Policy:
        """Make the policy."""
        first, *others = [policy.build() for policy in self.policies]
        for other in others:
            first = first | other if self.type == "any_of" else first & other
        return first


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


ModelConfig = Annotated[TransformersModel | VLLMModel | ExampleModel, Field(discriminator="type")]
ScorerConfig = Annotated[TransformersPRM | VLLMPRM | ExamplePRM, Field(discriminator="type")]
PolicyConfig = Annotated[
    SmallOnly | LargeOnly | Threshold | RandomRate | StayOnLarge | Combined,
    Field(discriminator="type"),
    BeforeValidator(_named),
]


class RunSettings(Part):
    """What a run goes by; as in `trim_graph.context.Settings`."""

    max_steps: int = Field(default=32, ge=1)
    max_step_tokens: int = Field(default=512, ge=1)
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1)
    instruction: str | None = DEFAULT_INSTRUCTION
    seed: int | None = None
    on_scorer_error: OnScorerError = "raise"
    on_large_error: OnLargeError = "raise"
    on_small_error: OnSmallError = "raise"


def placed_checkpoint(value: Any, info: ValidationInfo) -> Any:
    """Check a checkpoint's specification; a relative path is relative to the file."""
    if not isinstance(value, str | None):
        raise ValueError(f"choose {CHOICES}")
    place = checkpoint_place(value)
    if place.kind != "sqlite":
        return str(place)
    return f"sqlite:{_base(info) / os.path.expanduser(place.place)}"


CheckpointSpec = Annotated[str, BeforeValidator(placed_checkpoint)]

for _recursive in (StayOnLarge, Combined):
    _recursive.model_rebuild()
