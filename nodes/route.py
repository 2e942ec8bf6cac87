"""Decide what happens next: who writes the next step, whether a draft stays, when to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.runtime import get_runtime
from langgraph.types import Command

from trim_graph.budget import Budget, BudgetLeft, Spend, budget_left, counts_itself, grant, prompt_bound
from trim_graph.context import Settings
from trim_graph.conversation import compose
from trim_graph.events import emit, push_text
from trim_graph.policies.base import DECISIONS, NEXT_WRITERS, WRITERS, Observation, Policy, checked
from trim_graph.process import this_process
from trim_graph.run import (
    PLAIN_ROUND,
    PROBE,
    SCORED_ROUND,
    begin_run,
    policy_of,
    segmentation_of,
    settings_of,
)
from trim_graph.segment import Segmentation, join_steps, separator_of
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
    scores_of,
)

from .accepting import as_step, pieces
from .fallback import GIVE_UP, fall_back
from .observing import observation

Goto = Literal["generate_step", "finalize"]
REACHED: tuple[Goto, ...] = ("generate_step", "finalize")

MAX_ATTEMPTS = 3
"""Answers without a step, in a row, after which the solution is taken for ended."""


def route_node(
    settings: Settings, policy: Policy, large: Runnable[Any, Any], *, has_scorer: bool
) -> RunnableLambda[Any, Any]:
    """Build the node.

    Args:
        settings: The graph's own; a call may override them.
        policy: Asked for the next writer and for the decision on a draft.
        large: Only asked how many tokens a prompt has, for the limit on cost.
        has_scorer: Whether the graph has one.
    """
    # Counting a prompt may load a model or ask a server: not on the event loop.
    counts = counts_itself(large)

    def run(state: TrimState, config: RunnableConfig) -> Command[Goto]:
        if state.get("begin"):
            limit = config.get("recursion_limit", 10_000)
            context = get_runtime().context
            state = begin_run(state, limit, settings, context, policy=policy, has_scorer=has_scorer)
            turn = Turn(state, policy, large, settings.segmentation, update=_reset(state))
            emit("started", run=state["run"]["id"])
        else:
            turn = Turn(state, policy, large, settings.segmentation)
        return turn.take()

    async def arun(state: TrimState, config: RunnableConfig) -> Command[Goto]:
        if counts:
            return await asyncio.to_thread(run, state, config)
        return run(state, config)

    return RunnableLambda(run, arun, name="route")


def _reset(state: TrimState) -> dict[str, Any]:
    return {**fresh_channels(), "run": state["run"], "spend": state["spend"]}


@dataclass
class Turn:
    """One execution of the node: what it saw, and the update it builds."""

    state: TrimState
    policy: Policy
    large: Runnable[Any, Any]
    own_segmentation: Segmentation | None
    update: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = settings_of(self.state["run"])
        self.policy = policy_of(self.settings, self.policy)
        self.segmentation = segmentation_of(self.settings, self.own_segmentation)
        self.step_tokens = self.segmentation.cap(self.settings.max_step_tokens)
        self.budget: Budget = self.settings.budget
        self.spend: Spend = self.state["spend"]
        self.left: BudgetLeft = budget_left(self.budget, self.spend, self.settings.prices)
        self.steps: list[Step] = list(self.state["steps"])
        self.scores = list(scores_of(self.state))
        self.memory = self.state.get("memory")
        self.notes = list(self.state.get("notes", []))

    def take(self) -> Command[Goto]:
        """Look at what the last node left, and say what comes next."""
        draft, order = self.state.get("draft"), self.state.get("order")
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
            if order["attempt"] >= MAX_ATTEMPTS:
                return self.finish("no_step")
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
        self._remember(choice.memory)
        wants_large = choice.value != "small"
        if wants_large:
            order, refused = self.large_order(choice.value == "large_to_end")
            if order is not None:
                return self.write(order)
        else:
            refused = self._grant(self.step_tokens)[1] if self.policy.decides else None
        if refused:
            self.note_refusal(refused)
            if self._stops(refused):
                return self.finish("budget")
        return self.write(self.small_order(decided=self.policy.decides and not refused))

    def _probe(self) -> Command[Goto]:
        """Have the small model asked for one token, unless nobody could act on what it tells."""
        refused = self._grant(self.step_tokens)[1]
        if refused:
            self.note_refusal(refused)
            return self.finish("budget") if self._stops(refused) else self.write(self.small_order(False))
        order = self.small_order(decided=False)
        return self.write(Order(**{**order, "max_tokens": 1, "probe": Probe(entropy=None, untold=None)}))

    def small_order(self, decided: bool) -> Order:
        """Order a draft; it is scored only where a decision hangs on it."""
        return Order(
            writer="small",
            to_end=False,
            max_tokens=self.step_tokens,
            scored=decided and self.policy.needs_score,
            decided=decided,
            lead="",
            attempt=0,
        )

    def _out_of_time(self) -> bool:
        return self.left.seconds is not None and self.left.seconds <= 0

    def _tokens_to_end(self) -> int:
        """Return what all steps that remain may take together."""
        return self.step_tokens * (self.settings.max_steps - len(self.steps))

    def large_order(self, to_end: bool) -> tuple[Order | None, str | None]:
        """Order a step, or all that remain, within the limits; or name the limit that refuses."""
        granted, refused = self._grant(self._tokens_to_end() if to_end else self.step_tokens)
        if granted == 0:
            return None, refused
        order = Order(
            writer="large",
            to_end=to_end,
            max_tokens=granted,
            scored=False,
            decided=False,
            lead="",
            attempt=0,
        )
        return order, None

    def _prompt_tokens(self, lead: str = "") -> int:
        if self.budget.large_cost is None and not self.settings.prices.large.input:
            return 0
        prefix = join_steps(self.steps, self.settings.delimiter) + lead
        return prompt_bound(self.large, compose(self.state["messages"], self.settings.instruction, prefix))

    def _grant(self, wanted: int, lead: str = "") -> tuple[int, str | None]:
        if self.spend["large"]["failed_calls"] >= GIVE_UP:
            return 0, "large_failures"
        prompt = self._prompt_tokens(lead)
        return grant(self.budget, self.left, self.settings.prices, wanted=wanted, prompt_tokens=prompt)

    def _stops(self, refused: str) -> bool:
        return self.budget.on_exhausted == "stop" and refused != "large_failures"

    # Does the draft stay?

    def _judge(self, draft: Draft, order: Order) -> Command[Goto]:
        if not order["decided"]:
            return self.accept(draft, order)
        choice = checked(
            self.policy.decide(self._observe("decide", draft)), DECISIONS, self.policy, self.memory
        )
        self._remember(choice.memory)
        record = DecisionRecord(step=len(self.steps), decision=choice.value, score=draft["score"])
        if "part" in draft:
            record["part"] = draft["part"]
        large_order: Order | None = None
        if choice.value != "accept":
            large_order, refused = self.large_order(choice.value == "handover")
            if large_order is None:
                assert refused is not None
                record["decision"], record["refused"] = "accept", refused
                self.note_refusal(refused)
            else:
                record["discarded"] = as_step(draft)
        self.decide(record)
        if large_order is None:
            return self.accept(draft, order)
        return self.write(large_order)

    def decide(self, record: DecisionRecord) -> None:
        """Put a decision on record."""
        self.update["decisions"] = [record]
        emit("decision", **record)

    def accept(self, draft: Draft, order: Order) -> Command[Goto]:
        """Add a draft to the solution, and go on."""
        delimiter = self.settings.delimiter
        accepted: Sequence[Step] = [as_step(draft)]
        if order["to_end"]:
            accepted = pieces(draft, self.segmentation, delimiter=delimiter, thinking=self.settings.thinking)
        # Nothing remains for a writer that was let go on to the end and has used all that remained.
        used_up = order["to_end"] and order["max_tokens"] >= self._tokens_to_end()
        self.keep(accepted, draft["score"])
        if draft["end"] == "eos":
            return self.finish("finished")
        if used_up and not self._out_of_time():
            return self.finish("max_steps")
        return self._next()

    def keep(self, accepted: Sequence[Step], score: float | None) -> None:
        """Add steps to the solution; the score is that of the first."""
        first = len(self.steps)
        if score is not None:
            self.update["scores"] = {str(first): score}
        for index, step in enumerate(accepted, first):
            own = score if index == first else None
            emit(
                "accepted",
                step=index,
                writer=step["writer"],
                text=step["text"],
                score=own,
                tokens=step["tokens"],
                **({"part": step["part"]} if "part" in step else {}),
            )
            self.show(step)
            self.steps.append(step)
            self.scores.append(own)
        self.update["steps"] = accepted

    def show(self, step: Step) -> None:
        """Stream a step that is about to be added, as a part of the final message."""
        # With the step that follows it, so that the chunks make exactly the final message.
        between = separator_of(self.steps[-1], self.settings.delimiter) if self.steps else ""
        push_text(between + step["text"], self.state["run"]["message_id"])

    # What a turn leaves behind

    def _observe(
        self, asked: str, draft: Draft | None = None, *, entropy: float | None = None
    ) -> Observation:
        run, left, memory = self.state["run"], self.left, self.memory
        return observation(
            asked, run, self.steps, self.scores, left=left, memory=memory, draft=draft, entropy=entropy
        )

    def _remember(self, memory: Any) -> None:
        if memory != self.memory:
            self.memory = self.update["memory"] = memory

    def note_refusal(self, refused: str) -> None:
        """Tell a user that the large model is not asked any more."""
        if refused != "large_failures":  # noted when it happened
            self.note(f"the limit on {refused} is spent: the large model is not called any more")

    def note(self, note: str) -> None:
        """Tell a user, once."""
        if note not in self.notes:
            self.notes.append(note)
            self.update["notes"] = self.notes
            emit("note", text=note)

    def write(self, order: Order) -> Command[Goto]:
        """Send an order to its writer."""
        if order["writer"] == "large" and (order["attempt"] or "lost" in order):
            granted, refused = self._grant(order["max_tokens"], order["lead"])
            if granted == 0:
                assert refused is not None
                self.note_refusal(refused)
                if self._stops(refused):
                    return self.finish("budget")
                return self.write(self.small_order(decided=False))
            order = Order(**{**order, "max_tokens": granted})
            order.pop("lost", None)
        needed = SCORED_ROUND if order["decided"] else PLAIN_ROUND
        if "probe" in order:
            needed = PROBE + (SCORED_ROUND if self.policy.decides else PLAIN_ROUND)
        # LangGraph looks once more after the last superstep, and counts that look.
        if self.state["remaining_steps"] <= needed:
            return self.finish("recursion_limit")
        in_flight = None
        if order["writer"] == "large":
            in_flight = InFlight(
                writer="large",
                max_tokens=order["max_tokens"],
                prompt_tokens=self._prompt_tokens(order["lead"]),
                process=this_process(),
            )
        return self._go("generate_step", order=order, in_flight=in_flight, failed=None)

    def finish(self, reason: str) -> Command[Goto]:
        """End the run."""
        return self._go("finalize", stopped=reason, order=None, in_flight=None, failed=None)

    def _go(self, goto: Goto, **channels: Any) -> Command[Goto]:
        leaving = {**channels, "draft": None}
        # At the beginning of a run the state is the one to be, not the one before: everything is written.
        new = leaving if "run" in self.update else changed(self.state, leaving)
        return Command(update=self.update | new, goto=goto)
