"""The scorers a configuration file may name, and how each is built."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .adapters.prm_formats import FormatName, check_format
from .config_models import ModelConfig
from .config_places import Dtype, KeyVariable, ModelPlace, ServerURLs
from .config_serve import Serve
from .part import Part


class FormattedPRM(Part):
    """What a process reward model reads (`trim_graph.adapters.prm_formats`)."""

    format: FormatName = "qwen"
    step_token: str | None = None
    system_prompt: str | None = "auto"

    @model_validator(mode="after")
    def _the_format_has_these_settings(self) -> Self:
        check_format(self.format, step_token=self.step_token, system_prompt=self.system_prompt)
        return self


class TransformersPRM(FormattedPRM):
    """A process reward model in this process (`trim_graph.adapters.TransformersProcessReward`)."""

    type: Literal["transformers_prm"]
    model: ModelPlace
    device: str = "cpu"
    dtype: Dtype = "float32"
    max_batch_size: int = Field(default=16, ge=1)

    def build(self) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import TransformersProcessReward

        return TransformersProcessReward(**self.model_dump(exclude={"type"}))


class VLLMPRM(FormattedPRM):
    """A process reward model behind a vLLM server (`trim_graph.adapters.VLLMProcessReward`)."""

    type: Literal["vllm_prm"]
    model: str = Field(min_length=1)
    base_url: ServerURLs = "http://localhost:8000/v1"
    api_key_env: KeyVariable = "VLLM_API_KEY"
    tokenizer: ModelPlace | None = None
    max_batch_size: int = Field(default=64, ge=1)
    max_requests: int = Field(default=2, ge=1)
    max_retries: int = Field(default=3, ge=0)
    read_timeout: float = Field(default=600.0, gt=0)
    serve: Serve = Serve()

    def build(self) -> Any:
        """Make the adapter; the server is asked at the first call."""
        from .adapters import VLLMProcessReward

        return VLLMProcessReward(**self.model_dump(exclude={"type", "serve"}))


class VLLMEnginePRM(FormattedPRM):
    """A process reward model on a vLLM engine here (`trim_graph.adapters.VLLMEngineProcessReward`)."""

    type: Literal["vllm_engine_prm"]
    model: ModelPlace
    dtype: Dtype = "auto"
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    kv_cache_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_model_len: int | None = Field(default=None, ge=1)
    engine_args: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Any:
        """Make the adapter; the engine starts at the first call."""
        from .adapters import VLLMEngineProcessReward

        return VLLMEngineProcessReward(**self.model_dump(exclude={"type"}))


class ExamplePRM(Part):
    """The arithmetic process reward model that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"

    def build(self) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import TransformersProcessReward
        from .examples import arithmetic

        return TransformersProcessReward(arithmetic.PRM, device=self.device, max_batch_size=64)


class LLMJudgeScorer(Part):
    """A chat model that rates each step from 0 to 9 (`trim_graph.adapters.LLMJudge`)."""

    type: Literal["llm_judge"]
    model: ModelConfig
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int = Field(default=1, ge=1)
    cache_size: int = Field(default=4096, ge=1)
    concurrency: int = Field(default=8, ge=1)

    def build(self) -> Any:
        """Make the scorer and its model; the model is asked at the first draft."""
        from .adapters import LLMJudge

        settings = self.model_dump(exclude={"type", "model"})
        return LLMJudge(self.model.build("large"), **settings)


class TokenProbabilityScorer(Part):
    """How sure the writer was of its tokens (`trim_graph.adapters.TokenProbability`); costs nothing."""

    type: Literal["token_probability"]

    def build(self) -> Any:
        """Make the scorer."""
        from .adapters import TokenProbability

        return TokenProbability()


ScorerConfig = Annotated[
    TransformersPRM | VLLMPRM | VLLMEnginePRM | LLMJudgeScorer | TokenProbabilityScorer | ExamplePRM,
    Field(discriminator="type"),
]
