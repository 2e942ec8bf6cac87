"""`TrimMiddleware`: the turns of a LangChain agent, routed between its model and a large one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Never

try:
    from langchain.agents.middleware import AgentMiddleware, hook_config
except ImportError as error:
    raise ImportError('TrimMiddleware needs pip install "trim-graph[agents]"') from error
from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.chat_models import init_chat_model
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Overwrite
from typing_extensions import Unpack

from trim_graph.adapters.base import AnyScorer, as_scorer
from trim_graph.adapters.usage import CountTokens, check_count_tokens
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.limits import Budget, Quotas
from trim_graph.budget.usage import Prices, Usage, zero_usage
from trim_graph.calls.interrupted import astored_calls, charge_interrupted_calls, stored_calls
from trim_graph.calls.model_call import error_text
from trim_graph.errors import InputError, SettingsError
from trim_graph.events import emit
from trim_graph.nodes import score_step_node
from trim_graph.policies import Observation, Policy, as_policy
from trim_graph.prompt_size import turn_prompt_bound
from trim_graph.run import begin_run
from trim_graph.settings import Settings, TurnSettings, make_settings, overridden
from trim_graph.state import Run, TrimState, fresh_channels, reduce_state

from .models import check_turn_model
from .rendering import LONGEST_RESULT
from .state import (
    AgentRouting,
    TrimAgentState,
    from_agent_keys,
    stop_message,
    summary_of,
    to_agent_keys,
    update_of,
    with_current_texts,
)
from .turn import ROUTER, TurnRouting, report, turn_view

DEFAULT_TURN_TOKENS = 4096
"""Most tokens of one turn: a call with a whole program in it, or a long answer."""

NO_LOOKAHEAD = (
    "lookahead is no setting of an agent: what follows a turn depends on what its tools answer, so nothing "
    "can be written ahead; leave it out"
)

_RAISED_KEPT = 10_000
"""Runs whose error is remembered: of some nobody ever learns how they ended."""


class TrimMiddleware(AgentMiddleware[TrimAgentState, Any, Any]):
    """Has the agent's own model, the small one, propose each turn, and the large one rewrite critical ones.

    A step is one turn of the model: text, tool calls, or both. The scorer gets it as text (`render_turn`),
    the policy decides, and only an accepted turn reaches the agent: tool calls of a rejected one are never
    executed, and nothing of it is among the messages. Both models get the same messages, tools and response
    format.

    Policies, budget, prices, settings, summary and custom events are those of `trim_graph.create_trim_graph`.
    What was spent, decided and remembered stands in the agent's state, and so in its checkpoints. ``trim`` in
    the agent's result is the `trim_graph.Summary` of the question answered last. A call may go by other
    settings: a `trim_graph.TrimContext` under the key ``trim`` of the agent's context.

    Where the budget is spent and ``on_exhausted="stop"``, at ``max_steps`` turns or at the deadline the agent
    ends with a message that says so.

    Args:
        large: Chat model, or its name for ``init_chat_model``. It must take tools where the agent has some,
            and may have fallbacks, settings bound to it, or be chosen by the call, as one of
            ``init_chat_model(configurable_fields=...)``.
        scorer: Rates each turn; as in `trim_graph.create_trim_graph`.
        policy: When to ask the large model; ``handover`` gives it all turns that remain of the question.
        budget: Hard limits on the large model; default: none.
        prices: Price table, for the limit on cost and for the bill.
        budget_per: What the budget is for: each ``question`` of the user, or all of a ``thread``.
        ledger: Keeps the accounts of threads and users that have ``quotas``; see `open_ledger`.
        longest_result: Characters of a tool's result that the scorer is shown.
        count_tokens: Number of tokens of a text, for models whose answers have no ``usage_metadata``; as in
            `trim_graph.create_trim_graph`.
        keep_discarded: Whether the state keeps the text of turns that were turned down. They never are among
            the messages, so a middleware that redacts what models write does not get to see them.
        **settings: Fields of `trim_graph.Settings`: ``max_steps`` (turns a question, default 32),
            ``max_step_tokens`` (tokens a turn, default 4096), ``seed``, ``quotas``, ``on_scorer_error``,
            ``on_large_error`` and ``on_small_error``.

    Raises:
        SettingsError: A setting is wrong or missing; the message names it.

    Example:
        ```python
        routing = TrimMiddleware(large, LLMJudge(large), policy=threshold(7 / 9))
        agent = create_agent(small, tools=[search], middleware=[routing])
        agent.invoke({"messages": [("user", "Who won?")]})["trim"]["steps"]
        ```
    """

    state_schema = TrimAgentState

    def __init__(
        self,
        large: BaseChatModel | Runnable[Any, Any] | str,
        scorer: AnyScorer | None = None,
        *,
        policy: Policy | Callable[[Observation], Any],
        budget: Budget | None = None,
        prices: Prices | None = None,
        budget_per: Literal["question", "thread"] = "question",
        ledger: Ledger | None = None,
        longest_result: int = LONGEST_RESULT,
        count_tokens: CountTokens | None = None,
        keep_discarded: bool = True,
        **settings: Unpack[TurnSettings[Never]],
    ) -> None:
        super().__init__()
        self.policy = as_policy(policy)
        if scorer is None and self.policy.needs_score:
            raise SettingsError(f"policy {self.policy!r} needs scores, but scorer is None: pass a scorer")
        if budget_per not in ("question", "thread"):
            raise SettingsError(f"budget_per is {budget_per!r}: choose question or thread")
        if isinstance(longest_result, bool) or longest_result < 1:
            raise SettingsError(f"longest_result is {longest_result!r}: choose a whole number, 1 or more")
        self.large = init_chat_model(large) if isinstance(large, str) else large
        check_turn_model("large", self.large)
        self.settings = _settings(budget, prices, settings)
        if ledger is None and self.settings.quotas != Quotas():
            raise SettingsError("quotas are given, but no ledger that counts: pass ledger=, of open_ledger")
        check_count_tokens(count_tokens)
        self.count_tokens = count_tokens
        self.budget_per, self.ledger, self.longest_result = budget_per, ledger, longest_result
        self.keep_discarded = keep_discarded
        self._raised: OrderedDict[str, str] = OrderedDict()
        try:
            self._scoring = None if scorer is None else score_step_node(as_scorer(scorer), solution=False)
        except TypeError as error:
            raise SettingsError(str(error)) from error

    def before_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begin with a question: check it and the call's settings before any model is asked."""
        begun = "trim_run" in state
        return self._begun(
            state, runtime, stored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    async def abefore_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begin with a question."""
        begun = "trim_run" in state
        return self._begun(
            state, runtime, await astored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    def _begun(self, state: TrimAgentState, runtime: Runtime[Any], stored: Collection[str]) -> dict[str, Any]:
        given = TrimState(messages=state["messages"])
        called_by = overridden(self.settings, runtime.context)
        _check_nobody_asked(called_by)
        if called_by.lookahead:
            raise SettingsError(NO_LOOKAHEAD)
        routing = begin_run(
            given,
            # Not the recursion limit: an agent's supersteps are not the graph's.
            {"configurable": ensure_config().get("configurable", {})},
            self.settings,
            runtime.context,
            policy=self.policy,
            large=None,
            has_scorer=self._scoring is not None,
            ledger=self.ledger,
        )
        emit("started", run=routing["run"]["id"])
        spent = self._usage_before(state, stored)
        # Its text is read where it is used: another middleware may be about to rewrite it.
        run = Run(**{**routing["run"], "question": ""})
        asked = next(one for one in reversed(state["messages"]) if isinstance(one, HumanMessage))
        if asked.id is not None:
            run["question_message"] = asked.id
        begun = {"run": run, "usage": spent, "handed_over": False, "returns_direct": False, "ended": False}
        return {**to_agent_keys({**fresh_channels(), **begun}), "trim_usage_before": spent, "trim": None}

    def _usage_before(self, state: TrimAgentState, stored: Collection[str]) -> Usage:
        """Return what earlier questions have used of a budget that is the thread's."""
        if self.budget_per == "question" or "trim_usage" not in state:
            return zero_usage()
        # A turn that a crash has ended is not gone on with any more.
        routing = from_agent_keys(state)
        usage: Usage = charge_interrupted_calls(routing, stored).get("usage", routing["usage"])
        # A model that was given up in one question may be back for the next.
        return Usage(**{**usage, "large": {**usage["large"], "failed_calls": 0}})

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Say who writes the turn, or that the agent must end; note what the turn may cost in a crash."""
        begun = {} if state.get("trim_run") else self.before_agent(state, runtime)
        before = with_current_texts(_entered(state, begun), state["messages"], self.longest_result)
        fresh: dict[str, Any] = {"stopped": "", "request": None, "in_flight": None, "ended": False}
        after: Any = reduce_state(before, fresh)

        def prompt_tokens() -> int:
            return turn_prompt_bound(state["messages"], ())

        action = ROUTER.next(turn_view(after, self.policy, self.ledger, prompt_tokens))
        report(action)
        after = reduce_state(after, action.update)
        update = {**begun, **update_of(before, after)}
        if not after["stopped"]:
            return update
        summary = summary_of(after, state.get("trim_usage_before"), self.ledger)
        return {**update, "trim": summary, "jump_to": "end", "messages": [stop_message(after, summary)]}

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Say who writes the turn, or that the agent must end."""
        if self.ledger is None:
            return self.before_model(state, runtime)
        return await asyncio.to_thread(self.before_model, state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Route one turn."""
        with self._noting_errors(request):
            return self._routing(request).run(handler)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Route one turn, without blocking."""
        with self._noting_errors(request):
            return await self._routing(request).arun(handler)

    def _routing(self, request: ModelRequest[Any]) -> TurnRouting:
        return TurnRouting(
            request,
            self.large,
            self.policy,
            self._scoring,
            self.ledger,
            self.longest_result,
            self.keep_discarded,
            self.count_tokens,
        )

    @contextmanager
    def _noting_errors(self, request: ModelRequest[Any]) -> Iterator[None]:
        """Remember why a turn failed: another middleware may make a message of it, and so end the agent."""
        run: Any = request.state.get("trim_run")
        try:
            yield
        except GraphBubbleUp:
            raise
        except Exception as error:
            if run:
                self._raised[run["id"]] = error_text(error)
                while len(self._raised) > _RAISED_KEPT:
                    self._raised.popitem(last=False)
            raise
        if run:
            self._raised.pop(run["id"], None)

    def after_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Sum up and report the end of a question, whatever has ended the agent."""
        begun = "trim_run" in state
        return self._ended(
            state, runtime, stored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    async def aafter_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Sum up and report the end of a question, whatever has ended the agent."""
        begun = "trim_run" in state
        stored = await astored_calls(from_agent_keys(state), ensure_config()) if begun else set[str]()
        if self.ledger is None:
            return self._ended(state, runtime, stored)
        return await asyncio.to_thread(self._ended, state, runtime, stored)

    def _ended(self, state: TrimAgentState, runtime: Runtime[Any], stored: Collection[str]) -> dict[str, Any]:
        begun: dict[str, Any] = {}
        if not state.get("trim_run") or state.get("trim_ended"):
            # Another middleware has ended the agent before this one could begin.
            asked = [at for at, one in enumerate(state["messages"]) if isinstance(one, HumanMessage)]
            question = state["messages"][: asked[-1] + 1] if asked else []
            try:
                begun = self.before_agent({**state, "messages": question}, runtime)
            except InputError:
                return {"trim": None}
        before = with_current_texts(_entered(state, begun), state["messages"], self.longest_result)
        charge = charge_interrupted_calls(before, stored)
        stopped, why = self._why_ended(before, state["messages"])
        notes = [*charge.get("notes", before["notes"]), *why]
        ended = {"stopped": stopped, "notes": notes, "request": None, "in_flight": None, "ended": True}
        after: Any = reduce_state(before, {**charge, **ended})
        usage_before = begun.get("trim_usage_before", state.get("trim_usage_before"))
        summary = summary_of(after, usage_before, self.ledger)
        emit("finished", summary=summary)
        texts = {"trim_run": before["run"], "trim_steps": Overwrite(before["steps"])}
        return {**begun, **update_of(before, after), **texts, "trim": summary}

    def _why_ended(self, routing: AgentRouting, messages: Sequence[BaseMessage]) -> tuple[str, list[str]]:
        """Return why an agent has ended, and what there is to note about it."""
        raised = self._raised.pop(routing["run"]["id"], None)
        if routing["stopped"]:
            return routing["stopped"], []
        if routing["request"] is not None and raised is not None:
            return "failed", [f"a turn failed, and another middleware ended the agent: {raised}"]
        direct = routing.get("returns_direct") and isinstance(messages[-1], ToolMessage)
        return ("finished", []) if direct else ("middleware", [])


def _settings(budget: Budget | None, prices: Prices | None, given: Mapping[str, Any]) -> Settings:
    if "lookahead" in given:
        raise SettingsError(NO_LOOKAHEAD)
    known = TurnSettings.__annotations__.keys()
    unknown = sorted(given.keys() - known)
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}; an agent's turns go by: {', '.join(sorted(known))}"
        )
    own = {"max_step_tokens": DEFAULT_TURN_TOKENS, "thinking": None, "instruction": None}
    made = make_settings(budget, prices, {**own, **given})
    _check_nobody_asked(made)
    return made


def _check_nobody_asked(settings: Settings) -> None:
    if settings.asks_person:
        name = "ask_below" if settings.ask_below is not None else 'budget.on_exhausted="ask"'
        raise SettingsError(
            f"{name} has a person asked about a step, and nobody is asked about an agent's turn: choose "
            'on_exhausted "small" or "stop", and HumanInTheLoopMiddleware for its tool calls'
        )


def _entered(state: TrimAgentState, begun: dict[str, Any]) -> AgentRouting:
    """Read the routing of a state; or of one that a checkpoint without it is about to become."""
    if not begun:
        return from_agent_keys(state)
    empty: dict[str, Any] = {"trim_steps": [], "trim_decisions": [], "trim_scores": {}}
    return from_agent_keys({**begun, **empty})
