"""Requests and answers of OpenAI's chat completions, as far as step-level routing can keep them.

What cannot be kept is refused by name. Nothing that could change an answer is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, LiteralString

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_messages
from langchain_core.messages.tool import invalid_tool_call, tool_call
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from trim_graph.budget.limits import LargeLimits

from .errors import ApiError, of_validation

_UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one question has one answer here: send the request n times"),
    "functions": (([],), "give tools, which replaced them"),
    "function_call": (("none", "auto"), "give tool_choice, which replaced it"),
    "response_format": (
        ({"type": "text"},),
        "a solution written step by step has no schema: ask in the prompt for the form of its last step, "
        "give the schema as a tool, or have another model put the solution into it",
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
)
"""Settings that never change an answer."""

_NOT_TEXT = ("function_call", "audio")
"""Keys of messages that hold something else than text, images and tool calls."""


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


ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class CalledFunction(_Strict):
    """Name and arguments of a tool call; the arguments are JSON unless a model has failed."""

    name: str
    arguments: str


class CalledTool(_Strict):
    """A tool call in an assistant's message."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction


class Function(_Strict):
    """What a tool does and takes."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("strict")
    @classmethod
    def _not_strict(cls, wanted: bool | None) -> bool | None:
        if wanted:
            raise PydanticCustomError(
                "unsupported_value",
                "neither model is held to a schema here: leave it out, and check the arguments",
            )
        return wanted


class Tool(_Strict):
    """A tool that the client executes."""

    type: Literal["function"]
    function: Function


class ChosenFunction(_Strict):
    """Name of the tool that must be called."""

    name: ToolName


class ChosenTool(_Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None
    tool_calls: list[CalledTool] = Field(default_factory=list)
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_client(cls, given: Any) -> Any:
        """Leaves out what is null or empty, as clients send an answer back, and refuses functions by name."""
        if not isinstance(given, Mapping):
            return given
        if given.get("role") == "function":
            raise _unsupported(cls, "role", "functions are not supported: give tools, which replaced them")
        for key in _NOT_TEXT:
            if given.get(key):
                raise _unsupported(cls, key, "messages are text here, images or tool calls")
        kept = {key: value for key, value in given.items() if value is not None and value != []}
        if given.get("role") == "assistant" and given.get("tool_calls"):
            kept.setdefault("content", "")
        elif "content" in given:
            kept["content"] = given["content"]
        return kept

    @model_validator(mode="after")
    def _of_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of the role tool, and no other, has a tool_call_id")
        return self

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


class BudgetOptions(LargeLimits[NonNegativeInt, NonNegativeFloat]):
    """Limits of one request; each holds beside the server's own, so that the lower one counts."""

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
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool = "auto"
    parallel_tool_calls: bool = True
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

    @model_validator(mode="after")
    def _consistent_tools(self) -> ChatCompletionRequest:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools has two tools of one name")
        if self.tool_choice not in ("none", "auto") and not names:
            raise ValueError("tool_choice asks for a tool, and there are no tools")
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a tool that is not in tools")
        called: set[str] = set()
        for message in self.messages:
            called |= {call.id for call in message.tool_calls}
            if message.tool_call_id is not None and message.tool_call_id not in called:
                raise ValueError("a message of the role tool answers a call that no message before it makes")
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

    @property
    def is_turn(self) -> bool:
        """Whether the answer is one turn of an agent: it may call tools, or follows such calls."""
        return bool(self.offered_tools) or any(
            message.tool_calls or message.role == "tool" for message in self.messages
        )

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the models may call, as OpenAI has them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @property
    def langchain_tool_choice(self) -> str | None:
        """The choice as LangChain's models take it: None lets the model choose."""
        if isinstance(self.tool_choice, ChosenTool):
            return self.tool_choice.function.name
        return "any" if self.tool_choice == "required" else None

    @property
    def turn_settings(self) -> dict[str, Any]:
        """Settings of a turn that both models get."""
        settings: dict[str, Any] = {**self.sampling, **({"stop": self.stop} if self.stop else {})}
        if self.offered_tools and not self.parallel_tool_calls:
            settings["parallel_tool_calls"] = False
        return settings

    def conversation(self) -> list[BaseMessage]:
        """Returns the messages as LangChain has them."""
        names = {call.id: call.function.name for message in self.messages for call in message.tool_calls}
        return [_converted(message, names) for message in self.messages]


def _converted(message: Message, names: Mapping[str, str]) -> BaseMessage:
    """Returns a message as LangChain has it.

    Args:
        message: The message.
        names: Names of the tools by the ids of their calls.
    """
    given = message.model_dump(exclude_none=True, exclude={"tool_calls", "tool_call_id"})
    if message.tool_call_id is not None:
        return ToolMessage(
            given["content"], tool_call_id=message.tool_call_id, name=names.get(message.tool_call_id)
        )
    if not message.tool_calls:
        (converted,) = convert_to_messages([given])
        return converted
    answer = AIMessage(given["content"], name=message.name)
    for call in message.tool_calls:
        try:
            arguments = json.loads(call.function.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            answer.tool_calls.append(tool_call(name=call.function.name, args=arguments, id=call.id))
        else:
            answer.invalid_tool_calls.append(
                invalid_tool_call(
                    name=call.function.name, args=call.function.arguments, id=call.id, error="no JSON object"
                )
            )
    return answer


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
        self,
        text: str,
        finish_reason: str,
        usage: dict[str, Any],
        trim: dict[str, Any],
        tool_calls: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """Returns a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if tool_calls:
            message |= {"content": text or None, "tool_calls": list(tool_calls)}
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
