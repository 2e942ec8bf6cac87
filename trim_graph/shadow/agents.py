"""`ShadowMiddleware`: what `TrimMiddleware` would have done with an agent's turns, recorded beside the agent.

A record is of one turn, along the conversation as the agent's own model has led it: no tool is ever executed
for the shadow, so it cannot know what would have followed another turn. Where the agent answers with the
large model, the small one drafts the turn, the scorer rates the draft, and the policy decides; "the large
model" of the virtual turn is the agent's own answer, which costs nothing again. Where the small model
answers, its turn is the draft.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, TypedDict, cast
from weakref import WeakValueDictionary

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable
from langgraph.graph import START, StateGraph
from typing_extensions import Unpack

try:
    from langchain.agents.middleware import AgentMiddleware
except ImportError as error:
    raise ImportError('ShadowMiddleware needs pip install "trim-graph[agents]"') from error
from langchain.agents.middleware.types import ModelRequest, ModelResponse

from trim_graph.adapters.base import AnyScorer
from trim_graph.adapters.by_name import as_chat_model
from trim_graph.adapters.responses import CountTokens
from trim_graph.agents import TrimMiddleware
from trim_graph.agents.rendering import LONGEST_RESULT
from trim_graph.budget import Budget, Prices, Quota
from trim_graph.budget.ledger import Ledger, MemoryLedger
from trim_graph.budget.usage import LargeUsage, Usage, large_usage, total_cost, usage_delta, zero_usage
from trim_graph.errors import InputError, SettingsError
from trim_graph.policies.base import AnyPolicy
from trim_graph.settings import ShadowKeywords, TurnSettings
from trim_graph.state import Step

from .allowance import Allowance
from .records import (
    AnswerRecord,
    Application,
    RecordSink,
    ShadowRecord,
    ShadowUsage,
    WouldBe,
    error_of,
    text_of,
)
from .runner import TAGS, Agreement, awaited, new_record, same_answer, split_settings
from .worker import ShadowWorker, WorkerControl

MOST_CARRIED = 1_000
"""Most questions of which a turn's routing is kept for the next; the end of a question is not always seen."""
_CARRIED = ("trim_memory", "trim_handed_over", "trim_usage")
"""Channels that a turn takes from the one before: the policy's memory, a handover, what the budget counts."""


class _Replay(BaseChatModel):
    """Stands for the agent's own model, whose answer is known: the shadow's handler gives it."""

    @property
    def _llm_type(self) -> str:
        return "shadow replay"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Returns itself: the turn is known."""
        return cast(Runnable[Any, AIMessage], self)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise AssertionError("a replayed turn is never generated")


@dataclass(frozen=True)
class _Turn:
    """One turn of the application, as the middleware saw it."""

    request: ModelRequest[Any]
    response: ModelResponse[Any]
    handler: Callable[[ModelRequest[Any]], Any]
    asynchronous: bool
    seconds: float
    question: HumanMessage
    index: int


class _JobState(TypedDict):
    job: Any


class ShadowTurnSettings(TurnSettings[Never], ShadowKeywords, total=False):
    """Keywords of `ShadowMiddleware` that are settings: of the shadow, and of a turn."""


class ShadowMiddleware(AgentMiddleware[Any, Any, Any], WorkerControl):
    """Records what routing an agent's turns would have done; the agent itself runs as without it.

    Put it last in the list of middlewares: what stands behind it runs again for the shadow's own calls.

    Args:
        other: Chat model that the agent does not use: the small one where ``answers`` is ``large``, else the
            large one. It must take tools if the agent has some.
        scorer: Rates each turn; this and the others are as in `TrimMiddleware` and `Shadow`.
        policy: Decides when the large model would write the turn.
        answers: Model that the agent answers with, ``large`` or ``small``.
        record: File of the records, or a sink.
        shadow_budget: Limits of these calls together; needed if ``run_rate`` is above 0.
        ledger: Counts them.
        agreement: Compares the texts of two turns without tool calls. Turns with calls agree if they call the
            same tools with the same arguments.
        budget: Hard limits on the large model in one question.
        prices: Price table.
        longest_result: Characters of a tool's result that the scorer sees.
        count_tokens: Returns the number of tokens of a text, for answers without usage.
        **settings: Fields of `trim_graph.settings.ShadowSettings`, of turns in place of answers: ``rate`` is
            the share of the questions of which all turns are examined, ``run_rate`` that of the rejected
            turns that the large model writes too, where the small one answers, and ``text`` keeps arguments
            of tool calls too. And fields of `Settings`, as `TrimMiddleware` takes them.

    Raises:
        SettingsError: A setting is wrong or missing; the message names it.

    Example:
        ```python
        beside = ShadowMiddleware(
            small, judge, policy=threshold(0.7), answers="large", record="shadow.jsonl"
        )
        agent = create_agent(large, tools=[search], middleware=[beside])
        ```
    """

    def __init__(
        self,
        other: BaseChatModel | Runnable[Any, Any] | str,
        scorer: AnyScorer | None = None,
        *,
        policy: AnyPolicy,
        answers: Application,
        record: str | Path | RecordSink,
        shadow_budget: Quota | None = None,
        ledger: Ledger | None = None,
        agreement: Agreement = same_answer,
        budget: Budget | None = None,
        prices: Prices | None = None,
        longest_result: int = LONGEST_RESULT,
        count_tokens: CountTokens | None = None,
        **settings: Unpack[ShadowTurnSettings],
    ) -> None:
        super().__init__()
        if settings.get("run_rate") and answers == "large":
            raise SettingsError(
                "run_rate has the large model write rejected turns, and here it writes every turn already: "
                "leave it out"
            )
        own, others = split_settings(settings, answers, shadow_budget)
        if "quotas" in settings:
            raise SettingsError(
                "quotas are the application's users': a shadow has a shadow_budget of its own"
            )
        self.answers: Application = answers
        other = as_chat_model("other", other)
        self.other, self.text = other, own.text
        self.rate, self.run_rate, self.priced = own.rate, own.run_rate, prices is not None
        self._agreement, self._seed = agreement, own.sampling_seed
        self._random = random.Random(own.sampling_seed)
        shared: dict[str, Any] = {"policy": policy, "budget": budget, "prices": prices, **others}
        shared |= {"longest_result": longest_result, "count_tokens": count_tokens}
        self._replayed = TrimMiddleware(_Replay(), scorer, **shared)
        self._real = TrimMiddleware(other, scorer, **shared) if answers == "small" else self._replayed
        self._allowance = None
        if shadow_budget is not None:
            counting = ledger or MemoryLedger(reservation_s=2 * own.timeout)
            self._allowance = Allowance(shadow_budget, counting, self._real.settings, steps=1)
        self._worker = ShadowWorker(record, own)
        self._carried: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # The steps of routing emit events, for which they must run in a node.
        builder = StateGraph(_JobState)
        builder.add_node("job", _do_job)
        builder.add_edge(START, "job")
        self._node = builder.compile(name="trim-shadow")

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Has the agent's model answer, and submits the turn."""
        begun = time.monotonic()
        response = handler(request)
        self._submit(request, response, handler, time.monotonic() - begun, asynchronous=False)
        return response

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Has the agent's model answer, and submits the turn, without blocking the event loop."""
        begun = time.monotonic()
        response = await handler(request)
        self._submit(request, response, handler, time.monotonic() - begun, asynchronous=True)
        return response

    def _submit(
        self,
        request: ModelRequest[Any],
        response: ModelResponse[Any],
        handler: Callable[[ModelRequest[Any]], Any],
        seconds: float,
        *,
        asynchronous: bool,
    ) -> None:
        messages = request.messages
        asked = next(
            (i for i in reversed(range(len(messages))) if isinstance(messages[i], HumanMessage)), None
        )
        if asked is None:
            self._worker.offer(None)
            return
        question = cast(HumanMessage, messages[asked])
        index = sum(isinstance(message, AIMessage) for message in messages[asked:])
        # Lists of their own: the agent appends to its state.
        kept = request.override(messages=list(messages), state=cast(Any, dict(request.state)))
        turn = _Turn(kept, response, handler, asynchronous, seconds, question, index)
        self._worker.offer(lambda: self._examine(turn), drawn=self._is_drawn(question))

    def _is_drawn(self, question: HumanMessage) -> bool:
        """Returns whether a question is examined: all of its turns, or none."""
        if self.rate >= 1 or question.id is None:
            return self.rate >= 1 or self._random.random() < self.rate
        digest = hashlib.sha256(f"{self._seed}:{question.id}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64 < self.rate

    # What runs in the worker's thread

    async def _examine(self, turn: _Turn) -> dict[str, Any]:
        record = new_record(self.answers, priced=self.priced)
        record["kind"], record["turn"] = "turn", turn.index
        record["question"] = text_of(str(turn.question.text), kept=self.text)
        order = self._orders.setdefault(self._key(turn), asyncio.Lock())
        try:
            async with order:  # the turns of one question in their order
                await self._node.ainvoke({"job": lambda: self._fill(record, turn)}, {"tags": TAGS})
        except Exception as error:
            record["error"] = error_of(error, kept=self.text)
        return cast(dict[str, Any], record)

    async def _fill(self, record: ShadowRecord, turn: _Turn) -> None:
        own = next((one for one in turn.response.result if isinstance(one, AIMessage)), None)
        if own is None:
            raise InputError("the agent's turn holds no AIMessage")
        record["answered"] = answered = self._answered(own, turn)
        reserved: LargeUsage | None = None
        if self._allowance is not None and self._random.random() < self.run_rate:
            reserved = self._allowance.reserve(record["id"])
            record["refused"] = "budget" if reserved is None else None
        used = reserved or LargeUsage()
        try:
            routed, summary, decisions = await self._route(turn, called=reserved is not None)
            large_wanted = summary["steps"]["large"] > (turn.index if self.answers == "large" else 0)
            usage: Usage = summary["usage"]
            used = large_usage(usage, self._real.settings.prices)
            if self.answers == "large" or reserved is None:  # what was "written" is the agent's own answer
                used = LargeUsage()
        finally:
            if reserved is not None and self._allowance is not None:
                self._allowance.settle(record["id"], used)
        known = self.answers == "large" or reserved is not None or not large_wanted
        record["would"] = self._would(answered, summary, decisions, large=large_wanted, known=known)
        scorer = usage["scorer"]["input_tokens"] + usage["scorer"].get("output_tokens", 0)
        record["spent"] = ShadowUsage(
            large_tokens=used.large_tokens,
            small_tokens=usage["small"]["output_tokens"] if self.answers == "large" else 0,
            scorer_tokens=scorer,
            large_cost=used.large_cost,
            seconds=usage["seconds"],
        )
        if known:
            record["routed"] = text_of(_shown(routed), kept=self.text)
            same = large_wanted == (self.answers == "large")
            record["agree"] = True if same else await self._agree(own, routed)

    def _answered(self, own: AIMessage, turn: _Turn) -> AnswerRecord:
        usage, price = own.usage_metadata, getattr(self._real.settings.prices, self.answers)
        cost = None
        if self.priced and usage is not None:
            cached = (usage.get("input_token_details") or {}).get("cache_read") or 0
            cost = price.cost(usage["input_tokens"], usage["output_tokens"], cached)
        return AnswerRecord(
            answer=text_of(_shown(own), kept=self.text),
            model=str(own.response_metadata.get("model_name") or ""),
            input_tokens=usage["input_tokens"] if usage else None,
            output_tokens=usage["output_tokens"] if usage else None,
            seconds=turn.seconds,
            cost=cost,
            steps=1,
        )

    def _would(
        self,
        answered: AnswerRecord,
        summary: Any,
        decisions: Mapping[str, int],
        *,
        large: bool,
        known: bool,
    ) -> WouldBe:
        usage: Usage = summary["usage"]
        spent = large_usage(usage, self._real.settings.prices)
        whole = answered["output_tokens"]
        share = spent.large_tokens / whole if self.answers == "large" and whole else None
        return WouldBe(
            stopped=summary["stopped"],
            steps={"small": int(not large), "large": int(large)},
            large_tokens=spent.large_tokens if known else None,
            small_tokens=usage["small"]["output_tokens"],
            scorer_tokens=usage["scorer"]["input_tokens"] + usage["scorer"].get("output_tokens", 0),
            share=share,
            cost=total_cost(usage, self._real.settings.prices) if self.priced and known else None,
            seconds=None,
            first_large=0 if large else None,
            decisions=dict(decisions),
            scores=list(summary["scores"][-1:]),
            places=[0] if large else [],
        )

    async def _route(self, turn: _Turn, *, called: bool) -> tuple[AIMessage, Any, dict[str, int]]:
        """Routes the turn as `TrimMiddleware` does; returns the accepted turn, summary and decisions.

        Args:
            turn: The turn.
            called: Whether the large model is called; else the agent's own answer is taken for its.
        """
        routing = self._real if called else self._replayed
        request = turn.request
        state = self._state_before(routing, turn)
        if update := routing.before_model(state, request.runtime):
            if "jump_to" in update:
                ended = {**update["trim"], "usage": zero_usage()}
                return update["messages"][0], ended, {}
            state |= {key: value for key, value in update.items() if key.startswith("trim_")}
        drafted = self.other if self.answers == "large" else _Replay()
        asked = request.override(model=cast(Any, drafted), state=cast(Any, state))
        if turn.asynchronous:
            answered = await routing.awrap_model_call(asked, self._asynchronous_handler(turn))
        else:
            answered = await asyncio.to_thread(routing.wrap_model_call, asked, self._handler(turn))
        command = answered.command
        assert command is not None
        update = cast(dict[str, Any], command.update)
        self._carried[self._key(turn)] = (
            turn.index,
            {name: update.get(name, state.get(name)) for name in _CARRIED},
        )
        while len(self._carried) > MOST_CARRIED:
            self._carried.popitem(last=False)
        counted: dict[str, int] = {}
        for one in update.get("trim_decisions", ()):
            counted[one["decision"]] = counted.get(one["decision"], 0) + 1
        # Of this turn only: the state counts the question.
        summary = {**update["trim"], "usage": usage_delta(state["trim_usage"], update["trim"]["usage"])}
        message = next(one for one in answered.model_response.result if isinstance(one, AIMessage))
        return message, summary, counted

    def _state_before(self, routing: TrimMiddleware, turn: _Turn) -> Any:
        """Returns the agent's state as if the earlier turns of the question had been routed."""
        request = turn.request
        messages: list[BaseMessage] = list(request.messages)
        place = messages.index(turn.question)
        begun = routing.before_agent(cast(Any, {"messages": messages[: place + 1]}), request.runtime)
        earlier = [one for one in messages[place:] if isinstance(one, AIMessage)]
        steps = [
            Step(
                text="",
                writer=self.answers,
                model=str(one.response_metadata.get("model_name") or ""),
                tokens=one.usage_metadata["output_tokens"] if one.usage_metadata else 0,
                mean_token_probability=None,
                end="delimiter",
                message=one.id or "",
            )
            for one in earlier
        ]
        own = {"messages": messages, "trim_steps": steps, "trim_decisions": [], "trim_scores": {}}
        after, carried = self._carried.get(self._key(turn), (None, {}))
        # Of the turn before only: after a turn that was dropped nothing is known.
        known = carried if after == turn.index - 1 else {}
        return {**request.state, **begun, **own, **known}

    @staticmethod
    def _key(turn: _Turn) -> str:
        return turn.question.id or str(id(turn.question))

    def _handler(self, turn: _Turn) -> Callable[[ModelRequest[Any]], ModelResponse[Any]]:
        def handle(request: ModelRequest[Any]) -> ModelResponse[Any]:
            if isinstance(request.model, _Replay):
                return _copied(turn.response)
            return cast(ModelResponse[Any], turn.handler(request))

        return handle

    def _asynchronous_handler(
        self, turn: _Turn
    ) -> Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]:
        async def handle(request: ModelRequest[Any]) -> ModelResponse[Any]:
            if isinstance(request.model, _Replay):
                return _copied(turn.response)
            return cast(ModelResponse[Any], await turn.handler(request))

        return handle

    async def _agree(self, own: AIMessage, routed: AIMessage) -> bool | None:
        if own.tool_calls or routed.tool_calls:
            return _calls(own) == _calls(routed)
        return await awaited(self._agreement(str(own.text), str(routed.text)))


async def _do_job(state: _JobState) -> dict[str, Any]:
    await state["job"]()
    return {}


def _copied(response: ModelResponse[Any]) -> ModelResponse[Any]:
    """Returns a response whose messages can be changed: those of the agent itself stay as they are."""
    copies = [message.model_copy() for message in response.result]
    return ModelResponse(copies, structured_response=response.structured_response)


def _calls(turn: AIMessage) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in turn.tool_calls]


def _shown(turn: AIMessage) -> str:
    """Returns text and tool calls of a turn as one text."""
    return "\n".join([str(turn.text), *(f"{name} {args!r}" for name, args in _calls(turn))])
