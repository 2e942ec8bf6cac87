"""Turns: a request with tools is one turn of an agent, routed as a whole. The client executes the tools.

A server keeps no state between requests. So the turns since the last question, which the client sends along,
are what the scorer sees before the draft; who wrote them, their tokens and a policy's memory are not known.
They count as turns of the small model without tokens, and a ``handover`` holds for its own turn.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypedDict, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime

from trim_graph.budget.ledger import Ledger
from trim_graph.budget.usage import Usage, zero_usage
from trim_graph.chat_model import step_outcomes
from trim_graph.config import Parts, TrimConfig
from trim_graph.errors import InputError, SettingsError
from trim_graph.graph import TAG
from trim_graph.settings import TurnSettings
from trim_graph.state import DecisionRecord, Step, Summary

from .errors import ApiError
from .protocol import ChatCompletionRequest

_TURN_TOKENS = "max_step_tokens"
"""Setting that limits a turn. That of a configuration is of a step, which is a paragraph."""


class RoutedTurn(NamedTuple):
    """A turn.

    Attributes:
        message: The accepted turn; None where the budget ended the run before one was written.
        is_cut: Whether its token limit has ended it.
        summary: Summary of the run.
        outcome: Writer, tokens, score and decision of the turn; empty without one.
    """

    message: AIMessage | None
    is_cut: bool
    summary: Summary
    outcome: list[dict[str, Any]]

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Its tool calls in OpenAI's shape; none of a turn that was cut, since half a call may parse."""
        if self.message is None or self.is_cut:
            return []
        made = self.message
        called = [(call["id"], call["name"], json.dumps(call["args"])) for call in made.tool_calls]
        # Arguments that are no JSON reach the client as the model wrote them, as OpenAI sends them.
        called += [(call["id"], call["name"] or "", call["args"] or "") for call in made.invalid_tool_calls]
        return [
            {
                "id": given or f"{made.id}-{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (given, name, arguments) in enumerate(called)
        ]

    @property
    def finish_reason(self) -> str:
        """``tool_calls``, ``stop`` or ``length``."""
        if self.message is None or self.is_cut:
            return "length"
        return "tool_calls" if self.tool_calls else "stop"


class _TurnState(TypedDict, total=False):
    """State of a run of one turn; all but the work is there for tracers."""

    work: Callable[[], Awaitable[dict[str, Any]]]
    trim: Summary
    steps: list[Step]
    decisions: list[DecisionRecord]
    usage: Usage


class TurnSolver:
    """Routes turns by a configuration.

    Args:
        config: The configuration.
        parts: Its models and scorer.
        ledger: Holds the accounts of API keys, if users have quotas.
    """

    def __init__(self, config: TrimConfig, parts: Parts, ledger: Ledger | None) -> None:
        self._config, self._parts, self._ledger = config, parts, ledger
        # The steps of routing emit events, for which they must run in a node.
        builder = StateGraph(_TurnState)
        builder.add_node("turn", _work)
        builder.add_edge(START, "turn")
        self._node = builder.compile(name="trim-turn").with_config(tags=[TAG])

    @cached_property
    def _middleware(self) -> Any:
        """Routes the turns of all requests; built with the first.

        Raises:
            ApiError: 400, this server cannot route turns.
        """
        try:
            from trim_graph.agents import TrimMiddleware
            from trim_graph.agents.models import turn_models
        except ImportError as error:
            raise _no_tools("the server lacks a package: pip install trim-graph[agents]") from error
        small, large, scorer = self._parts
        config = self._config
        given = {
            name: value
            for name, value in config.settings.model_dump().items()
            if name in TurnSettings.__annotations__ and name != _TURN_TOKENS
        }
        try:
            for name, given_model in (("small", small), ("large", large)):
                writers = [one.model for one in turn_models(name, given_model, {})]
                if any(type(one).bind_tools is BaseChatModel.bind_tools for one in writers):
                    raise _no_tools(f"the {name} model of this server takes no tools")
            return TrimMiddleware(
                large,
                scorer,
                policy=config.policy.build(),
                budget=config.budget,
                prices=config.prices,
                ledger=self._ledger,
                quotas=config.quotas,
                large_alone=config.large_alone,
                **given,
            )
        except SettingsError as error:
            raise _no_tools(str(error)) from error

    async def route(
        self, request: ChatCompletionRequest, settings: Mapping[str, Any], callbacks: Sequence[Any]
    ) -> RoutedTurn:
        """Routes the turn that a request asks for.

        Args:
            request: The request.
            settings: Fields of `trim_graph.TrimContext`.
            callbacks: Tracers of the run.

        Raises:
            ApiError: 400, this server cannot route turns.
            InputError: The conversation has no question, or ends with the assistant's message.
        """
        middleware = self._middleware
        found: list[RoutedTurn] = []

        async def work() -> dict[str, Any]:
            turn, made = await self._route(middleware, request, settings)
            found.append(turn)
            return {"trim": turn.summary, "usage": turn.summary["usage"], **made}

        given = _TurnState(work=work, usage=zero_usage())
        await self._node.ainvoke(given, {"callbacks": list(callbacks)})
        return found[0]

    async def _route(
        self, middleware: Any, request: ChatCompletionRequest, settings: Mapping[str, Any]
    ) -> tuple[RoutedTurn, dict[str, Any]]:
        """Returns the turn, and its steps and decisions."""
        from langchain.agents.middleware.types import ModelRequest

        messages = cast(list[AnyMessage], request.conversation())
        for index, message in enumerate(messages):
            message.id = f"message-{index}"
        asked = [index for index, message in enumerate(messages) if isinstance(message, HumanMessage)]
        if not asked:
            raise InputError("messages has no message of the user, and so no question")
        if isinstance(messages[-1], AIMessage):
            raise InputError(
                "the last message is the assistant's: add the results of its tools or a question"
            )
        earlier = [_earlier(one) for one in messages[asked[-1] :] if isinstance(one, AIMessage)]
        # Room for this turn: the client decides how many follow.
        limits = {**settings, "max_steps": max(middleware.settings.max_steps, len(earlier) + 1)}
        if (most := limits.pop("max_tokens", self._config.settings.max_tokens)) is not None:
            limits[_TURN_TOKENS] = most
        runtime: Runtime[Any] = Runtime(context={"trim": limits})
        begun = await middleware.abefore_agent({"messages": messages[: asked[-1] + 1]}, runtime)
        own = {"messages": messages, "trim_steps": earlier, "trim_decisions": [], "trim_scores": {}}
        state: Any = {**begun, **own}
        update = await middleware.abefore_model(state, runtime) or {}
        if "jump_to" in update:
            return RoutedTurn(None, False, _of_turn(update["trim"], len(earlier)), []), {}
        state |= {key: value for key, value in update.items() if key.startswith("trim_")}
        answered = await middleware.awrap_model_call(
            ModelRequest(
                model=self._parts.small,
                messages=messages,
                tools=[*request.offered_tools],
                tool_choice=request.langchain_tool_choice,
                state=state,
                runtime=runtime,
                model_settings=request.turn_settings,
            ),
            _call,
        )
        update = answered.command.update
        summary, steps = _of_turn(update["trim"], len(earlier)), update.get("trim_steps", [])
        if not steps:
            return RoutedTurn(None, False, summary, []), {}
        made: list[DecisionRecord] = update.get("trim_decisions", [])
        decisions = [DecisionRecord(**{**one, "step": 0}) for one in made]
        outcome = step_outcomes(steps, summary["scores"], decisions)
        message = next(one for one in answered.model_response.result if isinstance(one, AIMessage))
        turn = RoutedTurn(message, steps[-1]["end"] == "length", summary, outcome)
        return turn, {"steps": steps, "decisions": decisions}


async def _work(state: _TurnState) -> dict[str, Any]:
    return await state["work"]()


async def _call(request: Any) -> Any:
    """Calls a model for a turn, as an agent does."""
    from langchain.agents.middleware.types import ModelResponse

    model, settings = request.model, request.model_settings
    if request.tools:
        model = model.bind_tools(request.tools, tool_choice=request.tool_choice, **settings)
    else:
        model = model.bind(**settings)
    return ModelResponse([await model.ainvoke(request.messages)])


def _earlier(message: AIMessage) -> Step:
    """Returns an earlier turn of the question as a step, whose text the scorer reads from the message."""
    return Step(
        text="",
        writer="small",
        model="",
        tokens=0,
        mean_token_probability=None,
        end="delimiter",
        message=message.id or "",
    )


def _of_turn(summary: Summary, earlier: int) -> Summary:
    """Returns the summary without the turns before, which other requests were charged for."""
    steps = {**summary["steps"], "small": summary["steps"]["small"] - earlier}
    stopped = summary["stopped"] or "finished"
    return Summary(**{**summary, "steps": steps, "scores": summary["scores"][earlier:], "stopped": stopped})


def _no_tools(why: str) -> ApiError:
    return ApiError(400, f"tools: {why}", param="tools", code="unsupported_value")
