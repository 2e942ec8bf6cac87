"""The way of one agent turn through the nodes: draft, score, decision, perhaps the large model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config, merge_configs, set_config_context
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.types import Command

from .adapters.inner_model import bound_setting, call_names, chat_model_inside
from .adapters.replies import Reply, read_turn
from .adapters.usage import CountTokens, TokenCounter
from .agent_state import routing_of, stop_message, summary_of, update_of
from .budget import Writer, turn_prompt_bound
from .errors import ChatModelContractError, SettingsError
from .events import emit
from .ledger import Ledger
from .nodes import after_generate_step
from .nodes.agent_turn import AgentRouting, AgentTurn, Answered, agenerate_turn, generate_turn
from .nodes.calling import Call, charge_lost_call, estimate_of, forget_cut_off
from .policies import Policy
from .state import applied
from .turn_rendering import render_turn

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
T = TypeVar("T")


@dataclass
class TurnRouting:
    """One model turn of an agent, from the order that stands in its state to an accepted message."""

    request: ModelRequest[Any]
    large: BaseChatModel
    policy: Policy
    scoring: Runnable[Any, Any] | None
    ledger: Ledger | None
    longest_result: int
    count_tokens: CountTokens | None = None
    responses: dict[Writer, ModelResponse[Any]] = field(default_factory=dict)
    accepted: Writer | None = None
    open: bool = True

    def __post_init__(self) -> None:
        self.models: dict[Writer, BaseChatModel] = {"small": self.request.model, "large": self.large}
        if not self.request.state.get("trim_run"):
            raise SettingsError(
                "this turn was begun by an agent without TrimMiddleware, so nothing says how to route it; "
                "go on with a new message instead of resuming"
            )
        self.spent_before: Any = self.request.state.get("trim_spent_before")
        self.before: AgentRouting = routing_of(self.request.state)
        self.state = self.before
        self.results = results_of(self.request.messages)
        self.tools = _schemas(self.request)
        if self.tools:
            for writer, model in self.models.items():
                _require_tools(writer, model)

    def run(self, handler: Handler) -> ExtendedModelResponse[Any]:
        """Take the turn to its end.

        Args:
            handler: Asks a model, as the agent gives it to a middleware.
        """
        self._begin()
        while self.open:
            self._take_in(generate_turn(self.state, partial(self._ask, handler), **self._known()))
            if self.scoring is not None and after_generate_step(self.state) == "score decides":
                self._take_in(self.scoring.invoke(self.state))
            self._go_on(AgentTurn.take)
        return self._response()

    async def arun(self, handler: AsyncHandler) -> ExtendedModelResponse[Any]:
        """As `run`, without blocking."""
        await self._aside(self._begin)
        while self.open:
            self._take_in(await agenerate_turn(self.state, partial(self._aask, handler), **self._known()))
            if self.scoring is not None and after_generate_step(self.state) == "score decides":
                self._take_in(await self.scoring.ainvoke(self.state))
            await self._aside(self._go_on, AgentTurn.take)
        return await self._aside(self._response)

    async def _aside(self, work: Callable[..., T], *given: Any) -> T:
        """Do what a ledger may block in a thread."""
        return work(*given) if self.ledger is None else await asyncio.to_thread(work, *given)

    def _known(self) -> dict[str, Any]:
        return {"read": self._read, "render": self._render, "ledger": self.ledger}

    def _read(self, call: Call, answered: Answered) -> Reply:
        writer = call.order["writer"]
        model = self.models[writer]
        estimate = estimate_of(call, TokenCounter(writer, model, self.count_tokens), self._prompt())
        return read_turn(
            answered.message,
            writer,
            model,
            last=answered.last,
            max_tokens=call.order["max_tokens"],
            estimate=estimate,
        )

    def _begin(self) -> None:
        spend, notes = charge_lost_call(self.state)
        if notes:
            told = [*self.state["notes"], *notes]
            self._take_in({"spend": spend, "notes": told, "in_flight": None})
        self._go_on(AgentTurn.begin)

    def _take_in(self, update: Any) -> None:
        self.state = applied(self.state, update)  # type: ignore[assignment]

    def _go_on(self, decide: Callable[[AgentTurn], Command[Any]]) -> None:
        turn = AgentTurn(
            self.state, self.policy, self.large, None, self.ledger, prompt_tokens=self._prompt_tokens
        )
        command = decide(turn)
        self._take_in(command.update)
        self.open = command.goto == "generate_step"
        if len(self.state["steps"]) > len(self.before["steps"]):
            self.accepted = "large" if self.state["steps"][-1]["writer"] == "large" else "small"

    def _render(self, message: AIMessage) -> str:
        return render_turn(message, self.results, longest_result=self.longest_result)

    def _prompt_tokens(self) -> int:
        return turn_prompt_bound(self._prompt(), self.tools)

    def _prompt(self) -> list[BaseMessage]:
        system = self.request.system_message
        return [*([system] if system else []), *self.request.messages]

    def _ask(self, handler: Handler, call: Call) -> Answered:
        with set_config_context(merge_configs(ensure_config(), {"tags": _tags(call)})) as context:
            response = context.copy().run(handler, self._request(call))
        return self._answer(call, response)

    async def _aask(self, handler: AsyncHandler, call: Call) -> Answered:
        with set_config_context(merge_configs(ensure_config(), {"tags": _tags(call)})) as context:
            asked = _awaited(handler, self._request(call))
            response = await asyncio.create_task(asked, context=context)
        return self._answer(call, response)

    def _request(self, call: Call) -> ModelRequest[Any]:
        model = self.models[call.order["writer"]]
        names, most = call_names(model), call.order["max_tokens"]
        settings = dict(self.request.model_settings)
        if names.max_tokens is not None:
            own = settings.get(names.max_tokens, bound_setting(model, "max_tokens"))
            settings[names.max_tokens] = most if own is None else min(most, own)
        if names.timeout is not None and call.limit is not None:
            settings[names.timeout] = call.limit
        if names.streams is not None:
            settings[names.streams] = False
        return self.request.override(model=model, model_settings=settings)

    def _answer(self, call: Call, response: ModelResponse[Any]) -> Answered:
        writer = call.order["writer"]
        message = next((one for one in response.result if isinstance(one, AIMessage)), None)
        if message is None:
            raise ChatModelContractError(f"the {writer} model's turn holds no AIMessage: {response.result!r}")
        self.responses[writer] = response
        return Answered(message, response.structured_response is not None)

    def _response(self) -> ExtendedModelResponse[Any]:
        response = None if self.accepted is None else self._kept(self.responses[self.accepted])
        if response is not None and not any(_calls(message) for message in response.result):
            self._take_in({"stopped": "finished"})  # also where its limit has cut it off
        forget_cut_off(self.state["run"]["id"])
        summary = summary_of(self.state, self.spent_before, self.ledger)
        update = {**update_of(self.before, self.state), "trim": summary}
        if self.state["stopped"]:
            emit("finished", summary=summary)
        if response is None:
            response = ModelResponse([stop_message(self.state, summary)])
        return ExtendedModelResponse(response, Command(update=update))

    def _kept(self, response: ModelResponse[Any]) -> ModelResponse[Any]:
        """The accepted turn; if it was cut off, with its tool calls answered: half a call may parse too."""
        calls = [call for message in response.result for call in _calls(message)]
        if self.state["steps"][-1]["end"] != "length" or not calls:
            return response
        told = "Not executed: the turn was cut off at its limit of tokens, so this call may be incomplete."
        unexecuted = [
            ToolMessage(told, tool_call_id=call["id"], name=call["name"], status="error") for call in calls
        ]
        turn = [message for message in response.result if not isinstance(message, ToolMessage)]
        return ModelResponse([*turn, *unexecuted])


def results_of(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """Return what tools have told since the last turn."""
    results: list[ToolMessage] = []
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage):
            results.append(message)
    return results[::-1]


async def _awaited(handler: AsyncHandler, request: ModelRequest[Any]) -> ModelResponse[Any]:
    return await handler(request)


def _tags(call: Call) -> list[str]:
    tag = "trim:draft" if call.order["decided"] else "trim:accepted"
    return ["nostream", tag, f"trim:{call.order['writer']}"]


def _schemas(request: ModelRequest[Any]) -> list[Any]:
    """Return the tools that go along with a request as JSON, those of structured output included."""
    given: list[Any] = list(request.tools)
    tools = [one if isinstance(one, dict) else convert_to_openai_tool(one) for one in given]
    wanted: Any = request.response_format
    if isinstance(wanted, ProviderStrategy):
        tools.append(wanted.schema_spec.json_schema)
    elif wanted is not None:
        schema = wanted.schema if isinstance(wanted, AutoStrategy | ToolStrategy) else wanted
        tools += [spec.json_schema for spec in ToolStrategy(schema).schema_specs]
    return tools


def _require_tools(writer: Writer, model: Any) -> None:
    inside = chat_model_inside(model) or model
    if getattr(type(inside), "bind_tools", None) is BaseChatModel.bind_tools:
        raise SettingsError(
            f"the {writer} model, {type(inside).__name__}, takes no tools, and this agent has some: choose a "
            "chat model with bind_tools, such as ChatOpenAI, also for a vLLM server (base_url=...)"
        )


def _calls(message: BaseMessage) -> list[ToolCall]:
    return message.tool_calls if isinstance(message, AIMessage) else []
