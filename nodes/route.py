"""The node `route`: turns the router's next action into a `Command`, with its events and usage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime
from langgraph.types import Command, Overwrite, Send

from trim_graph.budget.ledger import Ledger
from trim_graph.budget.reservations import Reservations
from trim_graph.calls.speculation import Speculation
from trim_graph.calls.warming import Warming
from trim_graph.conversation import compose
from trim_graph.policies.base import Policy
from trim_graph.prompt_size import counts_itself, prompt_bound
from trim_graph.routing import AcceptedText, Action, AskHuman, Generate, Router, RunView
from trim_graph.routing.router import settings_of
from trim_graph.run import begin_run
from trim_graph.runtime import Node, emit, invocation_of, push_text
from trim_graph.segmentation import join_steps, separator_of
from trim_graph.settings import Settings
from trim_graph.state import Step, TrimInput, TrimState, fresh_channels

Goto = Literal["generate_step", "ask_human", "finalize"]


def route_node(
    settings: Settings,
    policy: Policy,
    large: Runnable[Any, Any],
    *,
    has_scorer: bool,
    ledger: Ledger | None = None,
    speculation: Speculation | None = None,
    warming: Warming | None = None,
) -> Node:
    """Builds the node.

    Args:
        settings: The graph's settings; the context of a call may override them.
        policy: Names the next writer and decides on drafts.
        large: The large model; only counts the tokens of a prompt, for the limit on cost.
        has_scorer: Whether the graph has a scorer.
        ledger: Holds the accounts that runs share.
        speculation: Holds speculative calls; `route` drops one that its action makes useless.
        warming: Charges calls that warm the large model's cache, and settles them.
    """
    router, counts = Router(), counts_itself(large)

    def begin(given: TrimState, config: RunnableConfig) -> TrimState:
        state = begin_run(
            given,
            config,
            settings,
            get_runtime().context,
            policy=policy,
            large=large,
            has_scorer=has_scorer,
            ledger=ledger,
        )
        emit("started", run=state["run"]["id"])
        return state

    def blocks(given: TrimState) -> bool:
        # Prompts that have a price are counted, which may load a model or query a server; a ledger blocks.
        if ledger is None and not counts:
            return False
        price = (settings if given.get("begin") else settings_of(given["run"])).prices.large
        return ledger is not None or bool(price.input or price.output)

    def view_of(state: TrimState) -> RunView:
        return RunView(state, policy, settings.segmentation)

    def decide(given: TrimState, config: RunnableConfig) -> tuple[RunView, Action]:
        begins = bool(given.get("begin"))
        view = view_of(begin(given, config) if begins else given)
        if begins and warming is not None and view.settings.warm_large:
            warming.check()
        if view.accounts:
            view.accounts_left = Reservations(view.accounts, ledger).left()
        view.count_prompt = partial(_count_prompt, view, large)
        action = router.next(view)
        if begins:
            reset = {**fresh_channels(), "run": view.run, "usage": view.usage}
            # No text went before: a run that ends at once has its message streamed whole.
            events = [event for event in action.events if event != AcceptedText("")]
            if view.steps:
                reset["steps"] = Overwrite(list(view.steps))
                text = join_steps(view.steps, view.settings.delimiter)
                text = text.removesuffix(separator_of(view.steps[-1], view.settings.delimiter))
                events.insert(0, AcceptedText(text))
            action = replace(action, update=reset | action.update, events=events)
        return view, action

    def leave(view: RunView, action: Action, config: RunnableConfig) -> Command[Goto]:
        update = action.update
        if speculation is not None and view.settings.lookahead:
            update = speculation.after_route(view, action, invocation_of(config))
        if warming is not None and view.settings.warm_large:
            update = warming.after_route(view, action, update, invocation_of(config))
        _report(action, view.run["message_id"])
        return Command(update=update, goto=_GOTO.get(type(action), "finalize"))

    def run(given: TrimState, config: RunnableConfig) -> Command[Goto]:
        return leave(*decide(given, config), config)

    def settled(given: TrimState, config: RunnableConfig) -> TrimState:
        if warming is None or given.get("begin") or not given["run"]["settings"].get("warm_large"):
            return given
        usage = warming.settle(given["usage"], invocation_of(config))
        return given if usage is None else {**given, "usage": usage}

    async def arun(given: TrimState, config: RunnableConfig) -> Command[Goto]:
        before, given = given, settled(given, config)
        # Background calls belong to the event loop, so only the decision is made in a thread.
        if blocks(given):
            view, action = await asyncio.to_thread(decide, given, config)
        else:
            view, action = decide(given, config)
        if given is not before:
            action = replace(action, update={"usage": given["usage"], **action.update})
        return leave(view, action, config)

    return Node(run, arun, name="route")


def begin_route(state: TrimInput) -> list[Send]:
    """Returns the input of `route` for a new question, also on a thread with earlier ones."""
    begin = {"begin": True, "messages": state.get("messages", []), "question": state.get("question")}
    return [Send("route", begin)]


_GOTO: dict[type[Action], Goto] = {Generate: "generate_step", AskHuman: "ask_human"}


def _report(action: Action, message_id: str) -> None:
    for event in action.events:
        if isinstance(event, AcceptedText):
            push_text(event.text, message_id)
        else:
            emit(event.name, **event.content)


def _count_prompt(view: RunView, large: Any, steps: Sequence[Step], partial_text: str) -> int:
    prefix = join_steps(steps, view.settings.delimiter) + partial_text
    return prompt_bound(large, compose(view.state["messages"], view.settings.instruction, prefix))
