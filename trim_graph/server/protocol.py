"""Requests and answers of OpenAI's chat completions, as far as step-level routing can keep them.

What cannot be kept is refused by name. Nothing that could change an answer is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, LiteralString

from langchain_core.messages import BaseMessage, convert_to_messages
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from .errors import ApiError, of_validation

_UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one question has one answer here: send the request n times"),
    "tools": (([],), "an answer is routed step by step, and its steps are text: give tools to another model"),
    "tool_choice": (("none", "auto"), "there are no tools here"),
    "functions": (([],), "there are no functions here"),
    "function_call": (("none", "auto"), "there are no functions here"),
    "response_format": (
        ({"type": "text"},),
        "a solution written step by step has no schema: ask in the prompt for the form of its last step, or "
        "have another model put the solution into the schema",
    ),
    "logprobs": ((False,), "the steps are of two models, whose probabilities do not compare"),
    "top_logprobs": ((0,), "the steps are of two models, whose probabilities do not compare"),
    "logit_bias": (({},), "the two models have tokens of their own"),
    "frequency_penalty": ((0,), "it would count the tokens of a step alone"),
    "presence_penalty": ((0,), "it would count the tokens of a step alone"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "prediction": ((), "there is nothing to compare it with before a step is accepted"),
    "reasoning_effort": ((), "the models reason as they are configured"),
    "verbosity": ((), "the models write as they are configured"),
    "web_search_options": ((), "no model here searches"),
    "store": ((False,), "nothing is stored here"),
}
"""Settings that are refused: values that ask for nothing, and why any other cannot be kept."""

_NO_EFFECT = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Settings that never change the text of an answer that has no tools."""

_NOT_TEXT = ("tool_calls", "function_call", "tool_call_id", "audio")
"""Keys of messages that hold something else than text and images."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A part of a message that is an image; the models must take images."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_client(cls, given: Any) -> Any:
        """Leaves out what is null or empty, as clients send an answer back, and refuses tools by name."""
        if not isinstance(given, Mapping):
            return given
        if given.get("role") in ("tool", "function"):
            raise _unsupported(cls, "role", "tools are not supported: answers are text")
        for key in _NOT_TEXT:
            if given.get(key):
                raise _unsupported(cls, key, "messages are text here, or images")
        kept = {key: value for key, value in given.items() if value is not None and value != []}
        return {**kept, "content": given["content"]} if "content" in given else kept

    @field_validator("content", mode="before")
    @classmethod
    def _text_or_parts(cls, given: Any) -> Any:
        if not isinstance(given, str | list):
            raise PydanticCustomError("invalid_type", "give a text or a list of parts")
        return given


class StreamOptions(_Strict):
    """Settings of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False

    @field_validator("include_obfuscation")
    @classmethod
    def _no_padding(cls, wanted: bool) -> bool:
        if wanted:
            raise PydanticCustomError("unsupported_value", "chunks are not padded here: leave it out")
        return wanted


class BudgetOptions(_Strict):
    """Limits of one request; each holds beside the server's own, so that the lower one counts."""

    large_tokens: int | None = Field(default=None, ge=0)
    large_calls: int | None = Field(default=None, ge=0)
    large_cost: float | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, gt=0)


class TrimOptions(_Strict):
    """The field ``trim`` of a request: its operating point, unless the model's name has one, and limits.

    A text or a number is short for the operating point as in a model's name.
    """

    point: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    quality: str | float | None = None
    model: Literal["small", "large"] | None = None
    budget: BudgetOptions = BudgetOptions()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str | int | float) and not isinstance(given, bool):
            return {"point": str(given)}
        return given

    @model_validator(mode="after")
    def _one_point(self) -> TrimOptions:
        named = [
            name for name in ("point", "threshold", "quality", "model") if getattr(self, name) is not None
        ]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each choose an operating point: give one of them")
        return self

    def as_point(self) -> str | None:
        """Returns the operating point as in a model's name; None without one."""
        if self.threshold is not None:
            return repr(self.threshold)
        if self.quality is not None:
            return f"quality={self.quality}"
        return self.point or self.model


class ChatCompletionRequest(_Strict):
    """The body of a request for an answer."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    trim: TrimOptions = TrimOptions()

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        """Refuses what cannot be kept, and leaves out what asks for nothing."""
        if not isinstance(given, Mapping):
            return given
        kept = {key: value for key, value in given.items() if value is not None and key not in _NO_EFFECT}
        for name, (neutral, why) in _UNSUPPORTED.items():
            if name in kept:
                value = kept.pop(name)
                if not any(value == one and type(value) in _types(one) for one in neutral):
                    code = "unsupported_value" if neutral else "unsupported_parameter"
                    raise _unsupported(cls, name, f"it is not supported: {why}", code)
        return kept

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _whole(self) -> ChatCompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are both given: they are one limit")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens of accepted steps after which the answer ends."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling(self) -> dict[str, float]:
        """Settings of sampling that both models get in place of their own."""
        given = {"temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in given.items() if value is not None}

    def conversation(self) -> list[BaseMessage]:
        """Returns the messages as LangChain has them."""
        return convert_to_messages([message.model_dump(exclude_none=True) for message in self.messages])


def _unsupported(
    model: type[BaseModel], name: str, why: str, code: LiteralString = "unsupported_value"
) -> ValidationError:
    """Returns the error of a field that cannot be kept."""
    wrong = PydanticCustomError(code, "{why}", {"why": why})
    detail = InitErrorDetails(type=wrong, loc=(name,), input=None)
    return ValidationError.from_exception_data(model.__name__, [detail])


def _types(neutral: Any) -> tuple[type, ...]:
    """Returns the types of a neutral value: 0 is not False, and 0.0 is 0."""
    return (int, float) if type(neutral) is int else (type(neutral),)


def read_request(data: bytes) -> ChatCompletionRequest:
    """Reads the body of a request.

    Raises:
        ApiError: 400, with the place of the first mistake.
    """
    try:
        given = json.loads(data)
        if not isinstance(given, dict):
            raise ApiError(400, "the body of the request is not a JSON object", code="invalid_json")
        return ChatCompletionRequest.model_validate(given)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            wrong = of_validation(error.errors(include_url=False, include_input=False))
        else:
            wrong = ApiError(400, "the body of the request is not JSON", code="invalid_json")
    raise wrong


class Head:
    """What all parts of one answer have in common.

    Args:
        answer_id: Id of the answer.
        created: Unix time in seconds.
        model: Name that the request asked for.
    """

    def __init__(self, answer_id: str, created: int, model: str) -> None:
        self._common = {"id": answer_id, "created": created, "model": model}

    def completion(
        self, text: str, finish_reason: str, usage: dict[str, Any], trim: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage,
            "trim": trim,
        }

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
        """Returns a part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **more}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Returns the part of a streamed answer behind the text that has the usage."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage}
