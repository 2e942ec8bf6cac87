"""`TrimMiddleware` routes the turns of a LangChain agent between its model and a large one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Never

try:
    from langchain.agents.middleware import AgentMiddleware, hook_config
except ImportError as error:
    raise ImportError('TrimMiddleware needs pip install "trim-graph[agents]"') from error
from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Overwrite
from typing_extensions import Unpack

from trim_graph.adapters.base import AnyScorer
from trim_graph.adapters.by_name import as_chat_model
from trim_graph.adapters.responses import CountTokens, check_count_tokens
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.limits import Budget
from trim_graph.budget.usage import Prices, Usage, zero_usage
from trim_graph.calls.interrupted import astored_calls, charge_interrupted_calls, stored_calls
from trim_graph.calls.model_call import error_text
from trim_graph.errors import InputError, SettingsError
from trim_graph.graph import checked_scorer
from trim_graph.nodes import score_step_node
from trim_graph.policies.base import AnyPolicy, as_policy
from trim_graph.prompt_size import turn_prompt_bound
from trim_graph.run import begin_run
from trim_graph.runtime import emit
from trim_graph.settings import Settings, TurnSettings, context_of_call, make_settings, overridden
from trim_graph.state import Run, Stopped, TrimState, fresh_channels, reduce_state

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
from .turn import ROUTER, TurnRouting, report, turn_view, with_turns

DEFAULT_TURN_TOKENS = 4096
"""Default token limit of one turn: room for a tool call with a whole program, or a long answer."""

_SMALL = "the agent's own model, that of create_agent, is the small one"
_NOT_OF_AGENTS = {
    "small": f"small is no setting of TrimMiddleware: {_SMALL}; leave it out",
    "lookahead": "lookahead is no setting of an agent: what follows a turn depends on what its tools answer, "
    "so nothing can be written ahead; leave it out",
    "warm_large": "warm_large is no setting of an agent: other middlewares may rewrite the conversation "
    "before each turn, so the prompt of a rewrite is not known beforehand; leave it out",
    "max_tokens": "max_tokens is of a solution in steps: limit a turn by max_step_tokens",
}
"""Settings that an agent has not, with the reason."""

_RAISED_KEPT = 10_000
"""Most runs whose error is kept; the end of some runs is never seen."""


class TrimMiddleware(AgentMiddleware[TrimAgentState, Any, Any]):
    """Has the agent's own (small) model draft each turn, and the large model rewrite critical ones.

    A step is one turn of the model: text, tool calls, or both. The scorer rates its rendering as text
    (`render_turn`), and the policy decides. Only an accepted turn reaches the agent: tool calls of a rejected
    turn are never executed, and it never enters the messages. Both models get the same messages, tools and
    response format.

    Policies, budget, prices, settings, summary and custom events are those of `trim_graph.create_trim_graph`.
    The agent's state, and so its checkpoints, hold usage, decisions and the policy's memory. ``trim`` in the
    agent's result is the `trim_graph.Summary` of the question answered last. A call may override settings by
    a `trim_graph.TrimContext` under the key ``trim`` of the agent's context.

    The agent ends with a message that names the reason if the budget is exhausted and
    ``on_exhausted="stop"``, after ``max_steps`` turns, or at the deadline. It then executes no tool call of a
    draft that was rejected or that nobody could decide on in time; a draft that is an answer stays.

    Args:
        large: Chat model, or its name as in `trim_graph.create_trim_graph`. It must take tools if the agent
            has some. It may have fallbacks or bound settings, or be chosen by the call, as one of
            ``init_chat_model(configurable_fields=...)``.
        scorer: Rates each turn; as in `trim_graph.create_trim_graph`.
        *more: Nothing: the agent's own model is the small one.
        policy: Decides when the large model writes; as in `trim_graph.create_trim_graph`. ``handover`` gives
            it all further turns of the question.
        budget: Hard limits on the large model; default: none.
        prices: Price table, for the limit on cost and the cost of the summary.
        budget_per: Scope of the budget: each ``question`` of the user, or the whole ``thread``.
        ledger: Holds the accounts of threads and users that have ``quotas``; see `open_ledger`.
        longest_result: Characters of a tool's result that the scorer sees.
        count_tokens: Returns the number of tokens of a text, for models whose answers have no
            ``usage_metadata``; as in `trim_graph.create_trim_graph`.
        keep_discarded: Whether the state keeps the text of rejected turns. They never enter the messages, so
            a middleware that redacts messages does not see them.
        **settings: Fields of `trim_graph.Settings`: ``max_steps`` (turns per question, default 32),
            ``max_step_tokens`` (tokens per turn, default 4096), ``seed``, ``quotas``, ``on_scorer_error``,
            ``on_large_error`` and ``on_small_error``, and ``large_alone`` (what is known of the large model
            alone, for the summary's net savings).

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
        *more: Never,
        policy: AnyPolicy,
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
        if more:
            raise SettingsError(
                f"TrimMiddleware takes large and scorer by position, and got {2 + len(more)} models: {_SMALL}"
            )
        self.policy = as_policy(policy)
        if scorer is None and self.policy.needs_score:
            raise SettingsError(f"policy {self.policy!r} needs scores, but scorer is None: pass a scorer")
        if budget_per not in ("question", "thread"):
            raise SettingsError(f"budget_per is {budget_per!r}: choose question or thread")
        if isinstance(longest_result, bool) or longest_result < 1:
            raise SettingsError(f"longest_result is {longest_result!r}: choose a whole number, 1 or more")
        self.large = as_chat_model("large", large)
        check_turn_model("large", self.large)
        self.settings = _settings(budget, prices, settings)
        if ledger is None and self.settings.quotas.given:
            raise SettingsError("quotas are given, but no ledger that counts: pass ledger=, of open_ledger")
        check_count_tokens(count_tokens)
        self.count_tokens = count_tokens
        self.budget_per, self.ledger, self.longest_result = budget_per, ledger, longest_result
        self.keep_discarded = keep_discarded
        self.probability_window: int | None = getattr(scorer, "probability_window", None)
        self._raised: OrderedDict[str, str] = OrderedDict()
        rater = None if scorer is None else checked_scorer(scorer)
        self._scoring = None if rater is None else score_step_node(rater, solution=False, extend=with_turns)

    def before_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begins a question: checks it and the call's settings before any model call."""
        begun = "trim_run" in state
        return self._begun(
            state, runtime, stored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    async def abefore_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begins a question, as `before_agent` does, without blocking the event loop."""
        begun = "trim_run" in state
        return self._begun(
            state, runtime, await astored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    def _begun(self, state: TrimAgentState, runtime: Runtime[Any], stored: Collection[str]) -> dict[str, Any]:
        given = TrimState(messages=state["messages"])
        configurable = ensure_config().get("configurable", {})
        effective = overridden(self.settings, context_of_call(runtime.context, configurable))
        _check_no_interrupts(effective)
        _refuse(name for name in _NOT_OF_AGENTS if getattr(effective, name, None))
        routing = begin_run(
            given,
            # Without the recursion limit, which counts the agent's supersteps.
            {"configurable": configurable},
            self.settings,
            runtime.context,
            policy=self.policy,
            large=None,
            has_scorer=self._scoring is not None,
            ledger=self.ledger,
        )
        emit("started", run=routing["run"]["id"])
        usage = self._usage_before(state, stored)
        # Its text is read at each use: another middleware may rewrite it meanwhile.
        run = Run(**{**routing["run"], "question": ""})
        question = next(one for one in reversed(state["messages"]) if isinstance(one, HumanMessage))
        if question.id is not None:
            run["question_message"] = question.id
        begun = {"run": run, "usage": usage, "handed_over": False, "returns_direct": False, "ended": False}
        return {**to_agent_keys({**fresh_channels(), **begun}), "trim_usage_before": usage, "trim": None}

    def _usage_before(self, state: TrimAgentState, stored: Collection[str]) -> Usage:
        """Returns the usage of earlier questions if the budget is the thread's."""
        if self.budget_per == "question" or "trim_usage" not in state:
            return zero_usage()
        # A turn that a crash interrupted is not resumed: charge it now.
        routing = from_agent_keys(state)
        usage: Usage = charge_interrupted_calls(routing, stored).get("usage", routing["usage"])
        # A model that failed too often in one question gets another chance in the next.
        usage = Usage(**{**usage, "large": {**usage["large"], "failed_calls": 0}})
        if "prompt" in usage:  # the next question's turns count from 0 again
            usage["prompt"] = {**usage["prompt"], "step": -1}
        return usage

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Requests the turn from a writer, or ends the agent; notes the large call in flight, for crashes."""
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
        """Requests the turn from a writer, or ends the agent, without blocking the event loop."""
        if self.ledger is None:
            return self.before_model(state, runtime)
        return await asyncio.to_thread(self.before_model, state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Routes one turn: draft, score, decision, perhaps the large model."""
        with self._recording_errors(request):
            return self._routing(request).run(handler)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Routes one turn without blocking the event loop."""
        with self._recording_errors(request):
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
            self.probability_window,
        )

    @contextmanager
    def _recording_errors(self, request: ModelRequest[Any]) -> Iterator[None]:
        """Records why a turn failed: another middleware may turn its error into the agent's last message."""
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
        """Summarises the question and emits ``finished``, however the agent has ended."""
        begun = "trim_run" in state
        return self._ended(
            state, runtime, stored_calls(from_agent_keys(state), ensure_config()) if begun else set()
        )

    async def aafter_agent(self, state: TrimAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Summarises the question as `after_agent` does, without blocking the event loop."""
        begun = "trim_run" in state
        stored = await astored_calls(from_agent_keys(state), ensure_config()) if begun else set[str]()
        if self.ledger is None:
            return self._ended(state, runtime, stored)
        return await asyncio.to_thread(self._ended, state, runtime, stored)

    def _ended(self, state: TrimAgentState, runtime: Runtime[Any], stored: Collection[str]) -> dict[str, Any]:
        begun: dict[str, Any] = {}
        if not state.get("trim_run") or state.get("trim_ended"):
            # Another middleware ended the agent before this one could begin.
            humans = [at for at, one in enumerate(state["messages"]) if isinstance(one, HumanMessage)]
            question = state["messages"][: humans[-1] + 1] if humans else []
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

    def _why_ended(self, routing: AgentRouting, messages: Sequence[BaseMessage]) -> tuple[Stopped, list[str]]:
        """Returns why the agent ended, and the notes on it."""
        raised = self._raised.pop(routing["run"]["id"], None)
        if routing["stopped"]:
            return routing["stopped"], []
        if routing["request"] is not None and raised is not None:
            return "failed", [f"a turn failed, and another middleware ended the agent: {raised}"]
        direct = routing.get("returns_direct") and isinstance(messages[-1], ToolMessage)
        return ("finished", []) if direct else ("middleware", [])


def _settings(budget: Budget | None, prices: Prices | None, given: Mapping[str, Any]) -> Settings:
    _refuse(name for name in _NOT_OF_AGENTS if name in given)
    known = TurnSettings.__annotations__.keys()
    unknown = sorted(given.keys() - known)
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}; settings of an agent's turns: {', '.join(sorted(known))}"
        )
    own = {"max_step_tokens": DEFAULT_TURN_TOKENS, "thinking": None, "instruction": None}
    made = make_settings(budget, prices, {**own, **given})
    _check_no_interrupts(made)
    return made


def _refuse(names: Iterable[str]) -> None:
    for name in names:
        raise SettingsError(_NOT_OF_AGENTS[name])


def _check_no_interrupts(settings: Settings) -> None:
    if settings.asks_human:
        name = "ask_below" if settings.ask_below is not None else 'budget.on_exhausted="ask"'
        raise SettingsError(
            f"{name} has a human asked about a step, and nobody is asked about an agent's turn: choose "
            'on_exhausted "small" or "stop", and HumanInTheLoopMiddleware for its tool calls'
        )


def _entered(state: TrimAgentState, begun: dict[str, Any]) -> AgentRouting:
    """Returns the routing in a state, or in the update that begins it."""
    if not begun:
        return from_agent_keys(state)
    empty: dict[str, Any] = {"trim_steps": [], "trim_decisions": [], "trim_scores": {}}
    return from_agent_keys({**begun, **empty})
