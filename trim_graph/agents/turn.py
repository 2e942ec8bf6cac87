"""One turn of an agent: draft, score, decision, perhaps the large model, until a message is accepted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    StructuredOutputError,
    ToolStrategy,
)
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs, set_config_context
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.types import Command

from trim_graph.adapters.base import ScorableStep
from trim_graph.adapters.capabilities import call_names
from trim_graph.adapters.responses import CountTokens, Reply, TokenCounter, read_turn, reports_usage
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.reservations import Reservations
from trim_graph.budget.usage import Writer
from trim_graph.calls.interrupted import astored_calls, charge_interrupted_calls, stored_calls
from trim_graph.calls.model_call import (
    Call,
    amake_call,
    awith_reservation,
    begin_turn,
    estimate_of,
    failure,
    make_call,
    notes_on,
    usage_before_fallback,
    usage_with_reply,
    with_reservation,
)
from trim_graph.errors import ChatModelContractError, InputError, SettingsError
from trim_graph.nodes import after_generate_step
from trim_graph.policies import Policy
from trim_graph.prompt_size import UnboundedPrompt, turn_prompt_bound
from trim_graph.routing import AcceptedText, Action, Generate, Router, RouterOptions, RunView
from trim_graph.routing.router import request_after_draft
from trim_graph.runtime import emit
from trim_graph.state import DecisionRecord, Draft, Step, StepRequest, reduce_state

from .models import TurnModel, turn_models
from .rendering import find_turns, render_turn, results_of
from .state import AgentRouting, from_agent_keys, stop_message, summary_of, update_of, with_current_texts
from .turn_data import offered_tools, turn_data

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
T = TypeVar("T")

ROUTER = Router(RouterOptions(unit="turn"))


class ModelAnswer(NamedTuple):
    """The answer of a model.

    Attributes:
        message: The turn.
        last: Whether the agent ends with it even if it calls a tool, as for structured output.
    """

    message: AIMessage
    last: bool


def turn_view(
    state: AgentRouting, policy: Policy, ledger: Ledger | None, prompt_tokens: Callable[[], int]
) -> RunView:
    """Returns what the router sees of an agent's run.

    Args:
        state: Routing of the agent.
        policy: The middleware's policy.
        ledger: Holds the accounts that runs share.
        prompt_tokens: Returns an upper bound of the prompt in tokens, for limits on cost.
    """
    view = RunView(state, policy, count_prompt=lambda steps, partial_text: prompt_tokens())
    if view.accounts:
        view.accounts_left = Reservations(view.accounts, ledger).left()
    return view


def with_turns(view: RunView, steps: list[ScorableStep]) -> list[ScorableStep]:
    """Returns the accepted turns and the draft with the turns as data."""
    turns = cast(AgentRouting, view.state)["turns"]
    return [step.as_turn(turn) for step, turn in zip(steps, turns, strict=True)]


def report(action: Action) -> None:
    """Emits the events of an action, but no text: the agent's own node streams the message."""
    for event in action.events:
        if not isinstance(event, AcceptedText):
            emit(event.name, **event.content)


@dataclass
class TurnRouting:
    """One model turn of an agent, from the request in its state to an accepted message."""

    request: ModelRequest[Any]
    large: Any
    policy: Policy
    scoring: Runnable[Any, Any] | None
    ledger: Ledger | None
    longest_result: int
    keep_discarded: bool
    count_tokens: CountTokens | None = None
    probability_window: int | None = None
    """Tokens of the window whose lowest mean probability the scorer reads; None: it reads none."""
    responses: dict[Writer, ModelResponse[Any]] = field(default_factory=dict)
    drafts: dict[str, AIMessage] = field(default_factory=dict)
    """Turns written so far, by the ids of their messages."""
    accepted: Writer | None = None
    open: bool = True

    def __post_init__(self) -> None:
        if not self.request.state.get("trim_run"):
            raise SettingsError(
                "this turn was begun by an agent without TrimMiddleware, so nothing says how to route it; "
                "send a new message instead of resuming"
            )
        config = ensure_config()
        self.models: dict[Writer, list[TurnModel]] = {
            "small": turn_models("small", self.request.model, config),
            "large": turn_models("large", self.large, config),
        }
        self.untried: list[TurnModel] = []
        self.usage_before: Any = self.request.state.get("trim_usage_before")
        self.before: AgentRouting = from_agent_keys(self.request.state)
        self.state = with_current_texts(self.before, self.request.messages, self.longest_result)
        if not self.state["run"]["question"].strip():
            raise InputError(
                "no human message with text is left for this turn: another middleware has removed it, and "
                "the scorer needs a question"
            )
        self.results = results_of(self.request.messages)
        self.tools = _schemas(self.request)
        if self.tools:
            for writer, models in self.models.items():
                for one in models:
                    _require_tools(writer, one.model)

    def run(self, handler: Handler) -> ExtendedModelResponse[Any]:
        """Routes the turn until a message is accepted or the agent ends.

        Args:
            handler: Calls a model; the agent passes it to its middleware.
        """
        self._begin(stored_calls(self.state, ensure_config()))
        while self.open:
            self._update(with_reservation(self._call(), self.ledger, partial(self._make_call, handler)))
            if self._falls_back():
                continue
            if self.scoring is not None and after_generate_step(self.state) == "score decides":
                self._update(self.scoring.invoke(self._scorable()))
            self._follow(ROUTER.next)
        return self._response()

    async def arun(self, handler: AsyncHandler) -> ExtendedModelResponse[Any]:
        """Does the same as `run`, without blocking the event loop."""
        stored = await astored_calls(self.state, ensure_config())
        await self._in_thread(self._begin, stored)
        while self.open:
            make = partial(self._amake_call, handler)
            self._update(await awith_reservation(self._call(), self.ledger, make))
            if self._falls_back():
                continue
            if self.scoring is not None and after_generate_step(self.state) == "score decides":
                self._update(await self.scoring.ainvoke(self._scorable()))
            await self._in_thread(self._follow, ROUTER.next)
        return await self._in_thread(self._response)

    def _call(self) -> Call:
        model = self.untried[0].model
        return begin_turn(RunView(self.state), ensure_config(), model, self._prompt_size)

    def _make_call(self, handler: Handler, call: Call) -> dict[str, Any]:
        return make_call(
            call,
            partial(self._ask, handler, call),
            partial(self._read, call),
            partial(self._apply_reply, call),
            partial(self._recover, call),
        )

    async def _amake_call(self, handler: AsyncHandler, call: Call) -> dict[str, Any]:
        return await amake_call(
            call,
            self._aask(handler, call),
            partial(self._aread, call),
            partial(self._apply_reply, call),
            partial(self._in_thread, self._recover, call),
        )

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Does work that a ledger may block, in a thread if there is one."""
        return work(*given) if self.ledger is None else await asyncio.to_thread(work, *given)

    def _read(self, call: Call, answer: ModelAnswer) -> Reply:
        writer = call.request["writer"]
        model = self.untried[0].model
        counter = TokenCounter(writer, model, self.count_tokens)
        estimate = estimate_of(call.settings, writer, counter, self._prompt())
        return read_turn(
            answer.message,
            writer,
            model,
            last=answer.last,
            max_tokens=call.request["max_tokens"],
            probability_window=self.probability_window,
            estimate=estimate,
        )

    async def _aread(self, call: Call, answer: ModelAnswer) -> Reply:
        if reports_usage(answer.message):
            return self._read(call, answer)
        # A tokenizer may have to be loaded.
        return await asyncio.to_thread(self._read, call, answer)

    def _apply_reply(self, call: Call, answer: ModelAnswer, reply: Reply, seconds: float) -> dict[str, Any]:
        request, message = call.request, answer.message
        usage = usage_with_reply(call, reply, message.response_metadata, seconds)
        draft = Draft(
            text=render_turn(message, self.results, longest_result=self.longest_result),
            writer=request["writer"],
            model=reply.model,
            tokens=reply.output_tokens,
            mean_token_probability=reply.mean_token_probability,
            end=reply.end,
            score=None,
        )
        if reply.lowest_window_probability is not None:
            draft["lowest_window_probability"] = reply.lowest_window_probability
        if message.id is not None:
            draft["message"] = message.id
        update: dict[str, Any] = {
            "usage": usage,
            "in_flight": None,
            "request": request,  # as granted
            "draft": draft,
            "notes": notes_on(call, reply, message.response_metadata),
        }
        if request["needs_decision"]:
            emit("draft", writer=draft["writer"], text=draft["text"], tokens=draft["tokens"])
            update["request"] = request_after_draft(request, draft, call.settings, usage)
        return update

    def _recover(self, call: Call, error: Exception, seconds: float) -> dict[str, Any] | None:
        """Requests the turn from the writer's next fallback; an answer, however unfit, has no fallback."""
        usage = usage_before_fallback(call, error, seconds)
        failed, *rest = self.untried
        if (
            usage is None
            or not rest
            or isinstance(error, StructuredOutputError)
            or not isinstance(error, failed.handled)
        ):
            return None
        request = ROUTER.for_fallback(self._view(usage=usage), self._open_request())
        if request is None:
            return None
        self.untried = rest
        seen = failure(error, call.writer)["error"]
        emit("failed", part=call.writer, error=seen)
        note = f"the {call.writer} model failed, so its fallback was asked: {seen}"
        notes = call.notes if note in call.notes else [*call.notes, note]
        return {"usage": usage, "draft": None, "request": request, "notes": notes}

    def _begin(self, stored: Collection[str]) -> None:
        if charge := charge_interrupted_calls(self.state, stored):
            self._update({**charge, "in_flight": None})
        self._follow(ROUTER.renewed)

    def _update(self, update: Any) -> None:
        self.state = reduce_state(self.state, update)  # type: ignore[assignment]

    def _follow(self, decide: Callable[[RunView], Action]) -> None:
        action = decide(self._view())
        report(action)
        self._update(action.update)
        self.open = isinstance(action, Generate)
        if self.open:
            self.untried = self.models[self._open_request()["writer"]]
        if len(self.state["steps"]) > len(self.before["steps"]):
            self.accepted = "large" if self.state["steps"][-1]["writer"] == "large" else "small"

    def _view(self, **changes: Any) -> RunView:
        state = cast(AgentRouting, {**self.state, **changes})
        return turn_view(state, self.policy, self.ledger, self._prompt_tokens)

    def _scorable(self) -> AgentRouting:
        """Returns the state with all turns as data, which is never stored."""
        tools = offered_tools(self.request)
        before = find_turns(self.state["steps"], self.request.messages)
        draft = self.state["draft"]
        assert draft is not None
        turns = [*before, (self.drafts[draft["message"]], self.results)]
        data = [None if turn is None else turn_data(*turn, tools) for turn in turns]
        return AgentRouting(**{**self.state, "turns": data})

    def _open_request(self) -> StepRequest:
        request = self.state["request"]
        assert request is not None
        return request

    def _falls_back(self) -> bool:
        """Returns whether the last call failed and a fallback is requested."""
        state = self.state
        return not (state.get("draft") or state.get("failed") or state["stopped"])

    def _prompt_tokens(self) -> int:
        return turn_prompt_bound(self._prompt(), self.tools)

    def _prompt_size(self) -> int:
        try:
            return self._prompt_tokens()
        except UnboundedPrompt as unbounded:
            return unbounded.least

    def _prompt(self) -> list[BaseMessage]:
        system = self.request.system_message
        return [*([system] if system else []), *self.request.messages]

    def _ask(self, handler: Handler, call: Call) -> ModelAnswer:
        with set_config_context(self._config(call)) as context:
            try:
                response = context.copy().run(handler, self._request(call))
            except StructuredOutputError as error:
                response = self._cut_off(call, error)
        return self._answer(call, response)

    async def _aask(self, handler: AsyncHandler, call: Call) -> ModelAnswer:
        with set_config_context(self._config(call)) as context:
            answering = _awaited(handler, self._request(call))
            try:
                response = await asyncio.create_task(answering, context=context)
            except StructuredOutputError as error:
                response = self._cut_off(call, error)
        return self._answer(call, response)

    def _config(self, call: Call) -> RunnableConfig:
        return merge_configs(self.untried[0].config, ensure_config(), {"tags": _tags(call)})

    def _request(self, call: Call) -> ModelRequest[Any]:
        candidate = self.untried[0]
        names, most = call_names(candidate.model), call.request["max_tokens"]
        settings = {**candidate.settings, **self.request.model_settings}
        if names.max_tokens is not None:
            own = settings.get(names.max_tokens, getattr(candidate.model, "max_tokens", None))
            settings[names.max_tokens] = most if own is None else min(most, own)
        if names.timeout is not None and call.limit is not None:
            settings[names.timeout] = call.limit
        if names.streams is not None:
            settings[names.streams] = False
        return self.request.override(model=candidate.model, model_settings=settings)

    def _cut_off(self, call: Call, error: StructuredOutputError) -> ModelResponse[Any]:
        """Returns an incomplete structured answer as a turn that was cut off, if another draft replaces it.

        Raises:
            StructuredOutputError: No other draft replaces it, so it is the model's failure.
        """
        message, writer = getattr(error, "ai_message", None), call.request["writer"]
        if writer == "small" or not isinstance(message, AIMessage) or message.usage_metadata is None:
            raise error
        end = self._read(call, ModelAnswer(message, last=False)).end
        if end != "length" or not ROUTER.replaces_cut_turn(self._view(), call.request):
            raise error
        return ModelResponse([message])

    def _answer(self, call: Call, response: ModelResponse[Any]) -> ModelAnswer:
        writer = call.request["writer"]
        message = next((one for one in response.result if isinstance(one, AIMessage)), None)
        if message is None:
            raise ChatModelContractError(f"the {writer} model's turn holds no AIMessage: {response.result!r}")
        if message.id is None:
            message.id = f"trim-{uuid.uuid4().hex}"
        self.responses[writer] = response
        self.drafts[message.id] = message
        return ModelAnswer(message, response.structured_response is not None)

    def _response(self) -> ExtendedModelResponse[Any]:
        response = None if self.accepted is None else self._kept(self.responses[self.accepted])
        calls = [] if response is None else [call for one in response.result for call in _calls(one)]
        if response is not None and not calls:
            self._update({"stopped": "finished"})  # even if its token limit cut it off
        kept = self._to_keep()
        summary = summary_of(kept, self.usage_before, self.ledger)
        if response is None:
            response = ModelResponse([stop_message(kept, summary)])
        direct = {"trim_returns_direct": _return_direct(calls, self.request.tools)}
        update = {**update_of(self.before, kept), **direct, "trim": summary}
        return ExtendedModelResponse(response, Command(update=update))

    def _to_keep(self) -> AgentRouting:
        """Returns the routing as the state keeps it: texts of its own messages, and of rejected drafts.

        The text of the new turn is left out, since another middleware may still rewrite the message.
        """
        messages = self.request.state["messages"]
        results, known = results_of(messages), len(self.before["decisions"])

        def discarded(step: Step) -> Step:
            text = ""
            if self.keep_discarded:
                message = self.drafts[step["message"]]
                text = render_turn(message, results, longest_result=self.longest_result)
            return Step(**{**step, "text": text})

        decisions = [
            DecisionRecord(**{**record, "discarded": discarded(record["discarded"])})
            if "discarded" in record
            else record
            for record in self.state["decisions"][known:]
        ]
        new = [Step(**{**step, "text": ""}) for step in self.state["steps"][len(self.before["steps"]) :]]
        held = with_current_texts(self.before, messages, self.longest_result)
        kept = {
            **self.state,
            "run": held["run"],
            "steps": [*held["steps"], *new],
            "decisions": [*self.before["decisions"], *decisions],
        }
        return cast(AgentRouting, kept)

    def _kept(self, response: ModelResponse[Any]) -> ModelResponse[Any]:
        """Returns the accepted turn, with tool calls answered if it was cut off: half a call may parse."""
        calls = [call for message in response.result for call in _calls(message)]
        if self.state["steps"][-1]["end"] != "length" or not calls:
            return response
        notice = "Not executed: the turn was cut off at its limit of tokens, so this call may be incomplete."
        unexecuted = [
            ToolMessage(notice, tool_call_id=call["id"], name=call["name"], status="error") for call in calls
        ]
        turn = [message for message in response.result if not isinstance(message, ToolMessage)]
        return ModelResponse([*turn, *unexecuted])


async def _awaited(handler: AsyncHandler, request: ModelRequest[Any]) -> ModelResponse[Any]:
    return await handler(request)


def _tags(call: Call) -> list[str]:
    tag = "trim:draft" if call.request["needs_decision"] else "trim:accepted"
    return ["nostream", tag, f"trim:{call.request['writer']}"]


def _schemas(request: ModelRequest[Any]) -> list[Any]:
    """Returns the JSON schemas of the tools that a request sends, with those of structured output."""
    given: list[Any] = list(request.tools)
    tools = [one if isinstance(one, dict) else convert_to_openai_tool(one) for one in given]
    wanted: Any = request.response_format
    if isinstance(wanted, ProviderStrategy):
        tools.append(wanted.schema_spec.json_schema)
    elif wanted is not None:
        schema = wanted.schema if isinstance(wanted, AutoStrategy | ToolStrategy) else wanted
        tools += [spec.json_schema for spec in ToolStrategy(schema).schema_specs]
    return tools


def _require_tools(writer: Writer, model: BaseChatModel) -> None:
    if type(model).bind_tools is BaseChatModel.bind_tools:
        raise SettingsError(
            f"the {writer} model, {type(model).__name__}, takes no tools, and this agent has some: choose a "
            "chat model with bind_tools, such as ChatOpenAI, also for a vLLM server (base_url=...)"
        )


def _calls(message: BaseMessage) -> list[ToolCall]:
    return message.tool_calls if isinstance(message, AIMessage) else []


def _return_direct(calls: Sequence[ToolCall], tools: Sequence[Any]) -> bool:
    """Returns whether the agent ends with the tools' results: all executed tools have ``return_direct``."""
    direct = {tool.name: tool.return_direct for tool in tools if isinstance(tool, BaseTool)}
    executed = [direct[call["name"]] for call in calls if call["name"] in direct]
    return bool(executed) and all(executed)
