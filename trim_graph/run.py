"""A run from outside: the compiled graph that begins an invocation, checks of the input, the first state."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from .budget.ledger import Ledger
from .budget.limits import cost_limit
from .budget.reservations import open_accounts
from .budget.usage import zero_usage
from .calls.interrupted import clear_aborted
from .calls.speculation import SpeculationSlot
from .calls.warming import WarmingSlot
from .conversation import question_of, require_answerable
from .errors import InputError, SettingsError
from .policies import Policy
from .prompt_size import counts_itself, uncountable
from .routing.router import RECURSION_FLOOR, policy_of
from .runtime import CHECKPOINTER, INVOCATION, OWN_INPUT, Invocation
from .settings import Settings, TrimContext, check_prices, context_of_call, overridden, trim_context
from .state import SCHEMA_VERSION, Run, Step, TrimInput, TrimOutput, TrimState

DEFAULT_RECURSION_LIMIT = 10_000
"""Recursion limit of a call that names none; ``max_steps`` ends a run long before."""


class TrimGraph(CompiledStateGraph[TrimState, TrimContext, TrimInput, TrimOutput]):
    """A `CompiledStateGraph` that gives each call an `Invocation` and a recursion limit."""

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Streams a run, as LangGraph documents; `invoke` and its like call this too."""
        _check_keys(input)
        invocation = new_invocation()
        return invocation.stream(super().stream(input, _of_invocation(config, invocation), **kwargs))

    def astream(self, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Streams a run, as LangGraph documents; `ainvoke` and its like call this too."""
        _check_keys(input)
        invocation = new_async_invocation()
        parts: Any = super().astream(input, _of_invocation(config, invocation), **kwargs)
        return invocation.astream(parts)

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Runs several inputs in threads, at most ``max_concurrency`` of the config at once."""
        return super().batch(inputs, self._limited(config), **kwargs)

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Runs several inputs at once, at most ``max_concurrency`` of the config."""
        return await super().abatch(inputs, self._limited(config), **kwargs)

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Any:
        """Runs several inputs as `batch` does; yield each result with its index as soon as it is ready."""
        return super().batch_as_completed(inputs, self._limited(config), **kwargs)

    def abatch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Any:
        """Runs several inputs as `abatch` does; yield each result with its index as soon as it is ready."""
        return super().abatch_as_completed(inputs, self._limited(config), **kwargs)

    def astream_events(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        """Streams every event inside a run, as `langchain_core` documents."""
        return super().astream_events(input, self._limited(config), **kwargs)

    def _limited(self, config: Any) -> Any:
        if isinstance(config, Sequence):
            return [self._limited(one) for one in config]
        return with_recursion_limit(
            config, (self.config or {}).get("recursion_limit", DEFAULT_RECURSION_LIMIT)
        )


def _check_keys(given: Any) -> None:
    """Checks that an input has a key of the graph; LangGraph drops all others silently.

    Raises:
        InputError: It has none.
    """
    if not isinstance(given, Mapping) or not given or given.keys() & TrimInput.__annotations__.keys():
        return
    raise InputError(
        f"the input has the keys {', '.join(map(str, given))}: give the problem under messages; an "
        "application whose state has keys of its own embeds the graph by trim_node"
    )


def new_invocation() -> Invocation:
    """Returns an invocation for a synchronous call: it has no slots for calls in the background."""
    return Invocation(clear_aborted)


def new_async_invocation() -> Invocation:
    """Returns an invocation for an asynchronous call."""
    slot = WarmingSlot()

    def when_stored(ended: Invocation) -> None:
        clear_aborted(ended)
        slot.stored = True

    return Invocation(when_stored, SpeculationSlot(), slot)


def _of_invocation(config: RunnableConfig | None, invocation: Invocation) -> RunnableConfig:
    """Returns the config with the invocation, for `invocation_of`."""
    given = config or {}
    return {**given, "configurable": {**(given.get("configurable") or {}), INVOCATION: invocation}}


def with_recursion_limit(
    config: RunnableConfig | None, limit: int = DEFAULT_RECURSION_LIMIT
) -> RunnableConfig:
    """Returns the config with a recursion limit if it has none; LangChain's own default would be 25."""
    given: RunnableConfig = {"recursion_limit": limit}
    return {**given, **(config or {})}


def _check_interrupts(settings: Settings, has_scorer: bool, configurable: dict[str, Any]) -> None:
    """Checks that a run that may ask a human has a checkpointer, and a scorer if ``ask_below`` is set."""
    if settings.ask_below is not None and not has_scorer:
        raise SettingsError(
            f"ask_below is {settings.ask_below:g}, but the graph was built without a scorer: pass one"
        )
    if settings.asks_human and configurable.get(CHECKPOINTER) is None:
        name = "ask_below" if settings.ask_below is not None else 'budget.on_exhausted="ask"'
        raise SettingsError(
            f"{name} stops a run to ask a human, but no checkpointer keeps the run until the answer: give "
            "one to create_trim_graph, or to the graph that this one is embedded in"
        )


def _check_countable(
    messages: Sequence[BaseMessage], settings: Settings, accounts: Mapping[str, Any], large: Any
) -> None:
    """Checks that a limit on cost can hold: the prompt's tokens have an upper bound."""
    limit = cost_limit(settings.budget, settings.prices, accounts)
    if limit is None or counts_itself(large) or (what := uncountable(messages)) is None:
        return
    raise InputError(
        f"{limit} limits what the large model's prompts cost, but the conversation holds a content block of "
        f"type {what}, whose tokens are not known before the call: limit large_tokens or large_calls "
        "instead, or choose a large model that counts its prompts (count_prompt_tokens)"
    )


def _check_question(question: Any, messages: Sequence[BaseMessage], configurable: Mapping[str, Any]) -> None:
    """Checks the question that the scorer gets.

    A parent graph shares its key ``question`` with a graph that is its node, whatever the key means there.

    Raises:
        InputError: It is no text, or a parent's and in none of the user's messages.
    """
    advice = "An application whose key question means something else embeds the graph by trim_node"
    if not isinstance(question, str):
        raise InputError(
            f"question is of type {type(question).__name__}: it is what the scorer takes for the question, a "
            f"text. {advice}"
        )
    inside = CHECKPOINT_SEPARATOR in str(configurable.get("checkpoint_ns", ""))
    if not inside or configurable.get(OWN_INPUT):
        return
    asked = " ".join(question.split())
    if not any(asked in " ".join(str(one.text).split()) for one in messages if isinstance(one, HumanMessage)):
        shown = question if len(question) <= 60 else f"{question[:57]}..."
        raise InputError(
            f"the parent graph's key question holds {shown!r}, which is in no message of the user, and the "
            f"scorer would rate steps by it. {advice}; so does one whose scorer needs another question than "
            'the messages ask: problem=lambda state: {"messages": ..., "question": ...}'
        )


CHECKPOINT_SEPARATOR = "|"
"""Between the names of nested graphs in a checkpoint's namespace; LangGraph's own."""


def _given_steps(context: TrimContext | None) -> list[Step]:
    """Returns the steps that the context begins the solution with, without their tokens: other runs paid."""
    steps = (context.steps if context is not None else None) or []
    if steps and steps[-1]["end"] == "eos":
        raise InputError(
            f"the context's steps end the solution: step {len(steps) - 1} has end eos, so nothing follows it"
        )
    return [Step(**{**step, "tokens": 0}) for step in steps]


def begin_run(
    given: TrimState,
    config: RunnableConfig,
    settings: Settings,
    context: Any,
    *,
    policy: Policy,
    large: Any,
    has_scorer: bool,
    ledger: Ledger | None,
) -> TrimState:
    """Checks the input and returns the first state of a new run, before any model is called.

    Args:
        given: The channels of the input: ``messages`` and perhaps ``question``.
        config: Config of the call: recursion limit, thread, checkpointer.
        settings: The graph's settings.
        context: Context of the call; may hold overrides (`TrimContext`). Without them, those under the key
            ``trim`` of the config's ``configurable`` count.
        policy: The graph's policy.
        large: The large model, checked for whether it counts its prompts; None does not.
        has_scorer: Whether the graph has a scorer, which a context's policy may need.
        ledger: Holds the accounts that runs share.

    Returns:
        The state with all channels of the run.

    Raises:
        SettingsError: The recursion limit is too low for one step, the overrides are not valid, an account
            has no name, or the run may ask a human and has no checkpointer.
        InputError: The conversation cannot be answered, a limit on cost cannot hold for it, or the context's
            steps end the solution already.
    """
    limit = config.get("recursion_limit", 10_000)
    if limit < RECURSION_FLOOR:
        raise SettingsError(
            f"recursion_limit={limit} is too low for a single step: trim-graph needs at least "
            f"{RECURSION_FLOOR} supersteps, and 3 to 5 more for every further step (2 more with a probe)"
        )
    configurable = config.get("configurable", {})
    context = context_of_call(context, configurable)
    settings = check_prices(overridden(settings, context))
    routing = policy_of(settings, policy)
    if routing.needs_score and not has_scorer:
        raise SettingsError(
            f"the context's policy {settings.policy} needs scores, but the graph was built without a scorer"
        )
    _check_interrupts(settings, has_scorer, configurable)
    overrides = trim_context(context)
    thread = configurable.get("thread_id")
    accounts: dict[str, dict[str, Any]] = {}
    if settings.quotas.given:
        accounts = open_accounts(
            settings.quotas,
            user=overrides.user if overrides else None,
            thread=None if thread is None else str(thread),
            ledger=ledger,
        )
    messages = given.get("messages", [])
    if own_question := given.get("question"):
        _check_question(own_question, messages, configurable)
    question = own_question or question_of(messages)
    require_answerable(messages, question)
    _check_countable(messages, settings, accounts, large)
    run_id = uuid.uuid4().hex
    seed = run_id
    if settings.seed is not None:
        conversation = "\x00".join(str(message.text) for message in messages)
        seed = f"{settings.seed}:{hashlib.sha256(conversation.encode('utf-8', 'surrogatepass')).hexdigest()}"
    run = Run(
        schema=SCHEMA_VERSION,
        id=run_id,
        message_id=f"trim-{run_id}",
        seed=seed,
        question=question,
        settings=settings.model_dump(mode="json"),
    )
    if accounts:
        run["accounts"] = accounts
    return TrimState(
        messages=messages,
        run=run,
        steps=_given_steps(overrides),
        scores={},
        decisions=[],
        draft=None,
        request=None,
        in_flight=None,
        failed=None,
        pending_interrupt=None,
        human_response=None,
        memory=None,
        usage=zero_usage(),
        charged_call=None,
        stopped="",
        notes=[],
        remaining_steps=limit - 1,
    )
