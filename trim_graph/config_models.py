"""The chat models a configuration file may name, and how each is built."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .adapters.model_source import check_model
from .budget import Writer
from .config_places import Dtype, KeyVariable, ModelPlace, ServerURLs
from .config_serve import Serve
from .part import Part
from .redaction import SECRET_NAME


class TransformersModel(Part):
    """A chat model in this process (`trim_graph.adapters.ChatTransformers`)."""

    type: Literal["transformers"]
    model: ModelPlace
    device: str = "cpu"
    dtype: Dtype = "float32"
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    logprobs: bool = False
    max_batch_size: int = Field(default=64, ge=1)

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import ChatTransformers

        return ChatTransformers(**self.model_dump(exclude={"type"}))


class VLLMModel(Part):
    """A chat model behind a vLLM server (`trim_graph.adapters.ChatVLLM`)."""

    type: Literal["vllm"]
    model: str = Field(min_length=1)
    base_url: ServerURLs = "http://localhost:8000/v1"
    api_key_env: KeyVariable = "VLLM_API_KEY"
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    logprobs: bool = False
    max_retries: int = Field(default=3, ge=0)
    max_connections: int = Field(default=256, ge=1)
    read_timeout: float = Field(default=600.0, gt=0)
    entropy_logprobs: int = Field(default=20, ge=1)
    continuation: Literal["auto", "chat", "raw"] = "auto"
    max_batch_size: int = Field(default=1, ge=1)
    batch_patience: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    extra_body: dict[str, Any] = Field(default_factory=dict)
    serve: Serve = Serve()

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the server is asked at the first call."""
        from .adapters import ChatVLLM

        return ChatVLLM(**self.model_dump(exclude={"type", "serve"}))


class VLLMEngineModel(Part):
    """A chat model on a vLLM engine in this process (`trim_graph.adapters.ChatVLLMEngine`)."""

    type: Literal["vllm_engine"]
    model: ModelPlace
    dtype: Dtype = "auto"
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    kv_cache_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_model_len: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    entropy_logprobs: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    engine_args: dict[str, Any] = Field(default_factory=dict)
    sampling_params: dict[str, Any] = Field(default_factory=dict)

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the engine starts at the first call."""
        from .adapters import ChatVLLMEngine

        return ChatVLLMEngine(**self.model_dump(exclude={"type"}))


class ExampleModel(Part):
    """The arithmetic model of this size that comes with trim-graph."""

    type: Literal["example"]
    device: str = "cpu"
    logprobs: bool = False

    def build(self, writer: Writer) -> Any:
        """Make the adapter; the weights are loaded at the first call."""
        from .adapters import ChatTransformers
        from .examples import arithmetic

        folder = arithmetic.SMALL if writer == "small" else arithmetic.LARGE
        return ChatTransformers(model=check_model(folder), device=self.device, logprobs=self.logprobs)


class LangChainModel(Part):
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
        """Make the chat model.

        Raises:
            ImportError: The extra ``hosted`` or the provider's package is not installed.
        """
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            raise ImportError('type: langchain needs pip install "trim-graph[hosted]"') from error
        try:
            return init_chat_model(self.model, **self.kwargs)
        except ImportError:
            raise
        except Exception as error:  # each provider's class has its own for a missing key or a wrong setting
            wrong = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{self.model}: {wrong}")


_USERINFO = re.compile(r"://[^/?#]*@")


def _secret_in(value: Any, place: str = "") -> str | None:
    """Find the place of the first secret: what is named as one, or a URL with a user name or password."""
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
