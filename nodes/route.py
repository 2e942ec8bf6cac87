"""Decide what happens next: who writes the next step, whether a draft stays, when to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime
from langgraph.types import Command

from trim_graph.events import emit, push_text
from trim_graph.ledger import Ledger
from trim_graph.loops import loop_in
from trim_graph.policies.base import DECISIONS, NEXT_WRITERS, WRITERS, Choice, Policy, checked
from trim_graph.process import this_process
from trim_graph.prompt_size import counts_itself
from trim_graph.run import (
    PLAIN_ROUND,
    PROBE,
    SCORED_ROUND,
    begin_run,
)
from trim_graph.segment import cut_text
from trim_graph.settings import Settings, settings_of
from trim_graph.state import (
    DecisionRecord,
    Draft,
    InFlight,
    Order,
    Probe,
    Step,
    TrimState,
    changed,
    fresh_channels,
)

from .accepting import as_step, pieces
from .asking import act_on, ask
from .fallback import fall_back, give_way
from .looking_ahead import LookingAhead
from .node import Node
from .sight import Sight

Goto = Literal["generate_step", "ask_person", "finalize"]

LIMIT_REACHED = (
    "the recursion limit is reached: give the call's config a higher recursion_limit; a chain (a | graph) "
    "has LangChain's 25 unless its config names one"
)
MAX_ATTEMPTS = 16
"""Answers without a step, in a row, after which the writer has failed: blank lines, a rule, a lone tag."""
MAX_IDLE = 3
"""The same where the last of them has added nothing, so that the next one has the same prompt."""


def route_node(
    settings: Settings,
    policy: Policy,
    large: Runnable[Any, Any],
    *,
    has_scorer: bool,
    ledger: Ledger | None = None,
    looking: LookingAhead | None = None,
) -> Node:
    """Build the node.

    Args:
        settings: The graph's own; a call may override them.
        policy: Asked for the next writer and for the decision on a draft.
        large: Only asked how many tokens a prompt has, for the limit on cost.
        has_scorer: Whether the graph has one.
        ledger: Keeps the accounts that runs share.
        looking: The graph's; what it has under way for another decision is given up.
    """
    counts = counts_itself(large)

    def blocks(state: TrimState) -> bool:
        # Counting a prompt, which only its price asks for, may load a model or ask a server; a ledger blocks.
        price = (settings if state.get("begin") else settings_of(state["run"])).prices.large
        return ledger is not None or (counts and bool(price.input or price.output))

    def decide(state: TrimState, config: RunnableConfig) -> Command[Goto]:
        if state.get("begin"):
            context = get_runtime().context
            state = begin_run(
                state,
                config,
                settings,
                context,
                policy=policy,
                large=large,
                has_scorer=has_scorer,
                ledger=ledger,
            )
            turn = Turn(state, policy, large, settings.segmentation, ledger, update=_reset(state))
            emit("started", run=state["run"]["id"])
        else:
            turn = Turn(state, policy, large, settings.segmentation, ledger)
        return turn.take()

    def run(state: TrimState, config: RunnableConfig) -> Command[Goto]:
        command = decide(state, config)
        return command if looking is None else looking.after_route(state, command, config)

    async def arun(state: TrimState, config: RunnableConfig) -> Command[Goto]:
        if not blocks(state):
            return run(state, config)
        command = await asyncio.to_thread(decide, state, config)
        # What is under way belongs to the event loop.
        return command if looking is None else looking.after_route(state, command, config)

    return Node(run, arun, name="route")


def _reset(state: TrimState) -> dict[str, Any]:
    return {**fresh_channels(), "run": state["run"], "spend": state["spend"]}


class Turn(Sight):
    """One execution of the node: what comes next, by what it saw."""

    def take(self) -> Command[Goto]:
        """Look at what the last node left, and say what comes next."""
        draft, order = self.state.get("draft"), self.state.get("order")
        if (answered := self.state.get("answered")) is not None:
            acted = act_on(self, answered, draft, order)
            if acted is not None:
                return acted
        failed = self.state.get("failed")
        if failed is not None:
            assert order is not None
            return self.finish("deadline") if self._out_of_time() else fall_back(self, failed, draft, order)
        if draft is not None:
            assert order is not None
            return self._judge(draft, order)
        if self.state.get("stopped"):
            return self.finish(self.state["stopped"])
        if order is not None and (order["attempt"] > 0 or "lost" in order):
            if self._out_of_time():
                return self.finish("deadline")
            return self.write(order)
        return self._next(order)

    # Who writes the next step?

    def _next(self, probed: Order | None = None) -> Command[Goto]:
        if len(self.steps) >= self.settings.max_steps:
            return self.finish("max_steps")
        if self._out_of_time():
            return self.finish("deadline")
        entropy = probed["probe"]["entropy"] if probed is not None and "probe" in probed else None
        seen = self._observe("next_writer", entropy=entropy)
        answers = NEXT_WRITERS if entropy is None else WRITERS
        choice = checked(self.policy.next_writer(seen), answers, self.policy, self.memory)
        if choice.value == "probe":
            return self._probe()
        wants_large = choice.value != "small"
        order, refused = None, None
        if wants_large:
            order, refused = self.large_order(choice.value == "large_to_end")
            if self.asks(refused):  # before the choice is remembered: it is asked for again
                return ask(self, "budget", refused, draft=None, order=probed)
        elif self.policy.decides and self.budget.on_exhausted != "ask":
            refused = self._grant(self.step_tokens)[1]
        self._remember(choice.memory)
        if order is not None:
            return self.write(order)
        if refused:
            self.note_refusal(refused)
            if self.stops(refused):
                return self.finish("budget")
        decided = (self.policy.decides and not refused) or self.settings.ask_below is not None
        return self.write(self.small_order(decided=decided))

    def _probe(self) -> Command[Goto]:
        """Have the small model asked for one token, unless nobody could act on what it tells."""
        refused = self._grant(self.step_tokens)[1]
        if refused and not self.asks(refused):
            self.note_refusal(refused)
            return self.finish("budget") if self.stops(refused) else self.write(self.small_order(False))
        order = self.small_order(decided=False)
        return self.write(Order(**{**order, "max_tokens": 1, "probe": Probe(entropy=None, untold=None)}))

    # Does the draft stay?

    def _judge(self, draft: Draft, order: Order) -> Command[Goto]:
        if not order["decided"]:
            return self.accept(draft, order)
        score, bar = draft["score"], self.settings.ask_below
        if bar is not None and score is not None and score < bar and self.state.get("answered") is None:
            return ask(self, "score", None, draft=draft, order=order)
        choice = checked(
            self.policy.decide(self._observe("decide", draft)), DECISIONS, self.policy, self.memory
        )
        return self.carry_out(choice, draft, order)

    def carry_out(
        self, choice: Choice, draft: Draft, order: Order, *, by_person: bool = False
    ) -> Command[Goto]:
        """Do with a draft as was decided, as far as the budget allows."""
        record = DecisionRecord(step=len(self.steps), decision=choice.value, score=draft["score"])
        if "part" in draft:
            record["part"] = draft["part"]
        if by_person:
            record["by"] = "person"
        large_order: Order | None = None
        if choice.value != "accept":
            large_order, refused = self.large_order(choice.value == "handover")
            if self.asks(refused):  # before the choice is remembered: it is asked for again
                return ask(self, "budget", refused, draft=draft, order=order)
            if large_order is None:
                assert refused is not None
                record["decision"], record["refused"] = "accept", refused
                self.note_refusal(refused)
            else:
                record["discarded"] = as_step(draft)
        self._remember(choice.memory)
        self.decide(record)
        if large_order is None:
            return self.accept(draft, order)
        return self.write(large_order)

    def accept(self, draft: Draft, order: Order) -> Command[Goto]:
        """Add a draft to the solution, and go on."""
        delimiter = self.settings.delimiter
        accepted: Sequence[Step] = [as_step(draft)]
        if order["to_end"]:
            way = self.segmentation.continuing(cut_text(self.steps))
            accepted = pieces(draft, way, delimiter=delimiter, thinking=self.settings.thinking)
        # Nothing remains for a writer that was let go on to the end and has used all that remained.
        used_up = order["to_end"] and order["max_tokens"] >= self._tokens_to_end()
        self.keep(accepted, draft["score"])
        if draft["end"] == "eos":
            return self.finish("finished")
        if self.state.get("stopped"):
            return self.finish(self.state["stopped"])
        most = self.settings.max_repeats
        if most is not None and (loop := loop_in(self.steps, most)) is not None:
            self.note(f"the run has ended in a loop: {loop}")
            return self.finish("loop")
        if used_up and not self._out_of_time():
            return self.finish("max_steps")
        return self._next()

    # Where to next?

    def write(self, order: Order) -> Command[Goto]:
        """Send an order to its writer."""
        if order["writer"] == "large" and (order["attempt"] or "lost" in order):
            granted, refused = self._grant(order["max_tokens"], order["lead"])
            if granted == 0:
                assert refused is not None
                if self.asks(refused):
                    return ask(self, "budget", refused, draft=None, order=order)
                return give_way(self, refused)
            order = Order(**{**order, "max_tokens": granted})
            order.pop("lost", None)
        needed = SCORED_ROUND if order["decided"] else PLAIN_ROUND
        if "probe" in order:
            needed = PROBE + (SCORED_ROUND if self.policy.decides else PLAIN_ROUND)
        # LangGraph looks once more after the last superstep, and counts that look.
        if self.state["remaining_steps"] <= needed:
            self.note(LIMIT_REACHED)
            return self.finish("recursion_limit")
        in_flight = None
        if order["writer"] == "large":
            in_flight = InFlight(
                writer="large",
                max_tokens=order["max_tokens"],
                prompt_tokens=self._prompt_tokens(order["lead"])[0],
                process=this_process(),
            )
        return self.go("generate_step", order=order, in_flight=in_flight)

    def finish(self, reason: str) -> Command[Goto]:
        """End the run."""
        if not self.update.get("steps"):
            # LangGraph streams a message whole unless a chunk of it went before; those of a run that is
            # resumed went into another stream.
            push_text("", self.state["run"]["message_id"])
        return self.go("finalize", stopped=reason, order=None)

    def go(self, goto: Goto, **channels: Any) -> Command[Goto]:
        """Leave: what is not given here of what the last nodes left is done with."""
        done = dict.fromkeys(("draft", "in_flight", "failed", "asking", "answered"))
        leaving = done | channels
        # At the beginning of a run the state is the one to be, not the one before: everything is written.
        new = leaving if "run" in self.update else changed(self.state, leaving)
        return Command(update=self.update | new, goto=goto)
