"""The chat models a configuration file may name, and how each is built."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .adapters.model_source import check_model
from .budget import Writer
from .config_places import Dtype, ModelPlace, Part, ServerURL


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
    entropy_logprobs: int = Field(default=20, ge=1)
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


ModelConfig = Annotated[TransformersModel | VLLMModel | ExampleModel, Field(discriminator="type")]
