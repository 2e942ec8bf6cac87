"""Settings of chat models and scorers: an adapter inherits them, and so does its mapping in a file.

An adapter's other fields are not for a file: secrets, and settings that the graph gives with each call.
Nothing here loads what an adapter needs to run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from trim_graph.errors import KnownFields, check_variable_name

from .model_source import check_dtype, check_model
from .prm.formats import TOKEN_FORMATS, FormatName, check_format
from .token_confidence import TOP_LOGPROBS


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _checked_urls(value: Any) -> Any:
    from .vllm.replicas import check_base_urls

    urls = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    if not all(isinstance(url, str) for url in urls):
        raise ValueError("base_url should be an address or a list of addresses")
    check_base_urls(value)
    return value


def _checked_variable(name: str | None) -> str | None:
    return check_variable_name("api_key_env", name)


def _checked_name(value: Any) -> Any:
    if value != "auto":
        check_format(value)
    return value


Weights = Annotated[str, BeforeValidator(_as_text), AfterValidator(check_model)]
"""Folder in the transformers layout, or id on the Hugging Face hub."""
Dtype = Annotated[str, AfterValidator(check_dtype)]
ServerURLs = Annotated[str | list[str], BeforeValidator(_checked_urls)]
"""One address, or those of several replicas of a server."""
KeyVariable = Annotated[str | None, AfterValidator(_checked_variable)]
"""Name of an environment variable that holds a key."""
Signal = Annotated[float, Field(ge=0.0, le=1.0)] | None
"""Score in [0, 1] of a turn that shows a signal; None ignores the signal."""


class SamplingSettings(KnownFields):
    """Sampling of a chat model, and what it reports of its tokens."""

    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that make up this probability."""
    seed: int | None = None
    """Makes sampling repeatable: each call with this seed draws the same."""
    logprobs: bool = False
    """Whether answers report their mean token probability."""


class TransformersSettings(SamplingSettings):
    """Settings of `ChatTransformers`."""

    model: Weights
    """Folder in the transformers layout, or id on the Hugging Face hub."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: CUDA where there is one."""
    dtype: Dtype = "float32"
    """``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights are stored."""
    max_batch_size: int = Field(default=64, ge=1)
    """Most calls to run as one batch."""


class VLLMSettings(SamplingSettings):
    """Settings that `ChatVLLM` and `ChatVLLMEngine` share."""

    entropy_logprobs: int = Field(default=TOP_LOGPROBS, ge=1)
    """Number of likeliest tokens that an entropy is computed from: at most vLLM's ``max_logprobs``, which is
    20 unless set. The entropy is exact with as many as the vocabulary has."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the chat template, such as ``{"enable_thinking": False}``."""
    min_answer_tokens: int | None = Field(default=None, ge=1)
    """Tokens that a model that thinks keeps for its answer: vLLM ends the reasoning in a run of a graph while
    so many, and the steps that they may fill, are left of the run's limits. vLLM needs
    ``--reasoning-parser`` or ``--reasoning-config`` for that. None: reasoning may take all that is left."""


class VLLMServerSettings(VLLMSettings):
    """Settings of `ChatVLLM`."""

    model: str = Field(min_length=1)
    """Name that the server serves the model by."""
    base_url: ServerURLs = "http://localhost:8000/v1"
    """The server's address, with or without ``/v1``; a list names replicas, which serve the same model. All
    steps of a solution go to one of them, by a hash of its conversation; to the next if that one fails."""
    api_key_env: KeyVariable = "VLLM_API_KEY"
    """Environment variable that holds the key, if the server wants one. It is read at every request."""
    read_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds without a byte from the server after which the connection counts as dropped."""
    max_retries: int = Field(default=3, ge=0)
    """Retries after no connection, a dropped one, 429 or 5xx. A 400 is never retried."""
    max_connections: int = Field(default=256, ge=1)
    """Most requests at once to a server; others wait. Adapters of a server and event loop share them."""
    continuation: Literal["auto", "chat", "raw"] = "auto"
    """``chat`` trusts the chat template with the text to be continued, ``raw`` never does. Conversations that
    hold special tokens as text are sent like ``raw`` in any case."""
    max_batch_size: int = Field(default=1, ge=1)
    """Most calls to send as one request, which takes load off the server where many wait. An answer that came
    with others does not report the prompt tokens served from a cache. The server finishes a cancelled one
    with the others. 1: each call is a request of its own."""
    batch_wait_factor: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Wait factor of a call that waits for others: until so many wait for each one under way, or until it has
    waited so many times as long as recent calls took. None: 0.25, 1 or 4, whichever has the calls of this
    event loop over soonest, as measured while they run."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every generation request, such as ``{"top_k": 20}``."""


class EngineSettings(KnownFields):
    """Settings of a vLLM engine in this process."""

    model: Weights
    """Folder in the transformers layout, or id on the Hugging Face hub."""
    dtype: Dtype = "auto"
    """``float32``, ``bfloat16``, ``float16``, or ``auto``: as vLLM chooses it for the weights."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of a GPU's whole memory for weights and key-value cache; on a CPU, of the machine's. None: vLLM's
    default, which leaves no room for a second engine."""
    kv_cache_gib: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Size of the key-value cache in GiB instead, besides the weights."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest sequence in tokens; None: the model's own."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further fields of vLLM's ``AsyncEngineArgs``, such as ``{"tensor_parallel_size": 2}``."""


class VLLMEngineSettings(VLLMSettings, EngineSettings):
    """Settings of `ChatVLLMEngine`."""

    sampling_params: dict[str, Any] = Field(default_factory=dict)
    """Further fields of vLLM's ``SamplingParams`` for every call, such as ``{"top_k": 20}``."""


class PRMSettings(KnownFields):
    """Format that a process reward model reads."""

    format: Annotated[Literal["auto"] | FormatName, BeforeValidator(_checked_name)] = "auto"
    """``qwen``, ``math_shepherd``, ``skywork``, ``rlhflow``, ``trim``, or ``auto``: what `trim_scorer.json`
    beside the PRM's weights says, and ``qwen`` without that file."""
    step_token: str | None = None
    """The token after each step; None: what `trim_scorer.json` says, or the format's own."""
    system_prompt: str | None = "auto"
    """First turn of a chat; None leaves it to the chat template, ``auto``: what `trim_scorer.json` says, or
    the format's own."""

    @model_validator(mode="after")
    def _the_format_has_these_settings(self) -> Self:
        name = "trim" if self.format == "auto" else self.format
        check_format(name, step_token=self.step_token, system_prompt=self.system_prompt)
        return self


class StepCacheSettings(KnownFields):
    """Scores that are kept where the model scores one step a pass (pooling type LAST)."""

    cache_size: int = Field(default=65536, ge=0)
    """Scores of steps to keep, some 200 bytes each; with 0 each pass scores all steps again."""


class TransformersPRMSettings(PRMSettings):
    """Settings of `TransformersProcessReward`."""

    model: Weights = Field(kw_only=False)
    """Folder with safetensors, or hub id, such as ``Qwen/Qwen2.5-Math-PRM-7B``."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: CUDA where there is one."""
    dtype: Dtype = "float32"
    """``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights are stored."""
    max_batch_size: int = Field(default=16, ge=1)
    """Most solutions to run as one batch."""


class ServedPRMSettings(PRMSettings):
    """Settings of a process reward model behind a vLLM server."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(min_length=1, kw_only=False)
    """Name that the server serves the PRM by."""
    base_url: ServerURLs = "http://localhost:8000/v1"
    """The server's address, with or without ``/v1``; a list names several that serve the same PRM. All steps
    of a question are scored by one of them, and by the next if that one fails."""
    api_key_env: KeyVariable = "VLLM_API_KEY"
    """Environment variable that holds the key, if the server wants one."""
    tokenizer: str | None = None
    """Folder or hub id of the PRM's tokenizer; None: where the server says it has the PRM from."""
    max_batch_size: int = Field(default=64, ge=1)
    """Most inputs in a request: solutions, or steps not scored yet where the server scores one step an input.
    Those of one solution stay together."""
    read_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds without a byte from the server after which the connection counts as dropped."""
    max_retries: int = Field(default=3, ge=0)
    """Retries after no connection, a dropped one, 429 or 5xx."""


class VLLMServerPRMSettings(ServedPRMSettings, StepCacheSettings):
    """Settings of `VLLMProcessReward`."""

    max_requests: int = Field(default=2, ge=1)
    """Most requests at once from one event loop; calls that arrive meanwhile are in the next."""


class VLLMGenerativePRMSettings(ServedPRMSettings):
    """Settings of `VLLMGenerativeProcessReward`; ``format`` is ``math_shepherd`` or ``rlhflow``."""

    reads_reports: ClassVar[bool] = False  # of a step it reads the text alone

    cache_size: int = Field(default=4096, ge=0, strict=True)
    """Scores to keep; with 0 each step is rated again each time."""

    @model_validator(mode="after")
    def _the_format_answers_in_tokens(self) -> Self:
        if self.format not in TOKEN_FORMATS:
            raise ValueError(
                f"format={self.format!r} has a head of its own, which a server for generation does not run: "
                f"choose {' or '.join(TOKEN_FORMATS)}, or the scorer for the pooling runner (vllm_prm)"
            )
        return self


class VLLMEnginePRMSettings(PRMSettings, EngineSettings, StepCacheSettings):
    """Settings of `VLLMEngineProcessReward`."""

    model: Weights = Field(kw_only=False)
    """Folder with safetensors, or hub id, such as ``Qwen/Qwen2.5-Math-PRM-7B``."""


class JudgeSettings(KnownFields):
    """Settings of `LLMJudge`, but for its model."""

    reads_reports: ClassVar[bool] = False  # of a step it reads the text alone

    scale: Literal["digits", "yes_no"] = "digits"
    """``digits``: the expected rating from 0 to 9, over 9. ``yes_no``: the probability of yes against no."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Alternatives to ask for; 0 reads the answer written. None: each answer's own probability where the
    model reports that (`ChatVLLM`, `ChatVLLMEngine`), 20 where it has a setting of this name, else 0. Where
    its server then refuses log-probabilities, the judge warns, and reads the answer from then on."""
    max_tokens: int = Field(default=1, ge=1, strict=True)
    """Most tokens of a call. One is enough unless the model reasons before it answers."""
    cache_size: int = Field(default=4096, ge=0, strict=True)
    """Scores to keep; with 0 each step is rated again each time."""
    concurrency: int = Field(default=8, ge=1, strict=True)
    """Most calls at the same time for one draft."""


class TurnSignalsSettings(KnownFields):
    """Settings of `TurnSignals`: the score of each signal."""

    model_config = ConfigDict(frozen=True)

    tool_error: Signal = 0.2
    """The small model writes the turn after a tool has failed."""
    invalid_call: Signal = 0.0
    """The turn calls an unknown tool, or its arguments are no JSON or do not fit the tool's schema."""
    repeated_call: Signal = 0.2
    """An earlier turn of the question called the same tool with the same arguments."""
    empty: Signal = 0.0
    """The turn has neither text nor a call."""
    otherwise: float = Field(default=1.0, ge=0.0, le=1.0)
    """None of these."""
