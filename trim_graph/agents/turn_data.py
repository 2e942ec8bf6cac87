"""An agent's turn as data for a scorer: its calls, checked against the tools, and the results before it.

A turn as text is in `trim_graph.agents.rendering`. A scorer of tool calls reads this instead, since a text
may say anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from langchain.agents.middleware.types import ModelRequest
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from pydantic import TypeAdapter, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import ValidationError as ValidationErrorV1

from trim_graph.adapters.base import ToolResult, Turn, TurnCall

Fits = Callable[[dict[str, Any]], bool]
"""Returns whether a tool takes these arguments."""


def turn_data(message: AIMessage, results: Sequence[ToolMessage], tools: Mapping[str, Fits]) -> Turn:
    """Returns a turn as data.

    Args:
        message: The turn.
        results: Results of the tools that the previous turn called, in order.
        tools: Tools that the model was offered; see `offered_tools`.
    """
    calls = [
        TurnCall(name=call["name"], args=call["args"], invalid=_invalid(call["name"], call["args"], tools))
        for call in message.tool_calls
    ]
    calls += [
        TurnCall(name=call.get("name") or "", args=call.get("args") or "", invalid="no_json")
        for call in message.invalid_tool_calls
    ]
    return Turn(
        results=[ToolResult(name=result.name or "", status=result.status) for result in results],
        text=str(message.text),
        calls=calls,
    )


def offered_tools(request: ModelRequest[Any]) -> dict[str, Fits]:
    """Returns the tools that a request offers by their names, those of structured output included."""
    given: list[Any] = list(request.tools)
    tools = dict(_of_dict(one) if isinstance(one, dict) else (one.name, _of_tool(one)) for one in given)
    wanted: Any = request.response_format
    if wanted is not None and not isinstance(wanted, ProviderStrategy):
        schema = wanted.schema if isinstance(wanted, AutoStrategy | ToolStrategy) else wanted
        tools |= {spec.name: partial(_fits, spec.schema) for spec in ToolStrategy(schema).schema_specs}
    return tools


def _invalid(
    name: str, args: dict[str, Any], tools: Mapping[str, Fits]
) -> Literal["unknown_tool", "arguments"] | None:
    if name not in tools:
        return "unknown_tool"
    try:
        return None if tools[name](args) else "arguments"
    except Exception:  # a tool's own validator may raise anything; then the call is the tool's to judge
        return None


def _of_dict(tool: dict[str, Any]) -> tuple[str, Fits]:
    """Returns name and check of a tool in a provider's form: OpenAI's two, or Anthropic's."""
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    schema = function.get("parameters", function.get("input_schema"))
    return str(function.get("name", "")), partial(_fits, schema)


def _of_tool(tool: BaseTool) -> Fits:
    return lambda args: _fits(tool.tool_call_schema, args)


def _fits(schema: Any, args: dict[str, Any]) -> bool:
    """Returns whether arguments fit a JSON schema, or a type as Pydantic validates it for the tool."""
    if schema is None:
        return True
    if isinstance(schema, dict):
        return _fits_json_schema(schema, args)
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModelV1):
            schema.parse_obj(args)
        else:
            TypeAdapter(schema).validate_python(args)
    except (ValidationError, ValidationErrorV1):
        return False
    return True


def _fits_json_schema(schema: dict[str, Any], args: dict[str, Any]) -> bool:
    from referencing.exceptions import Unresolvable

    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        return validator is None or bool(validator.is_valid(args))
    except Unresolvable:
        return True


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Returns the validator of a JSON schema; None if the schema is wrong itself, and says nothing."""
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
    from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]
    from referencing import Registry

    parsed = json.loads(schema)
    kind: Any = validator_for(parsed, default=Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except SchemaError:
        return None
    # An empty registry: the schema of a foreign tool server must not make this process fetch addresses.
    return kind(parsed, registry=Registry())
