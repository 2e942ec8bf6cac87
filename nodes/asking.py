"""When `route` has a person asked, and what it does with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from langgraph.types import Command

from trim_graph.events import emit
from trim_graph.policies.base import Choice
from trim_graph.segment import DelimiterSteps
from trim_graph.state import Answered, Asking, DecisionRecord, Draft, Failure, Order, Step

from .accepting import as_step, draft_turned_down

if TYPE_CHECKING:
    from .route import Goto, Turn


def ask(
    turn: Turn,
    reason: Literal["budget", "score"],
    limit: str | None,
    *,
    draft: Draft | None,
    order: Order | None,
    failed: Failure | None = None,
) -> Command[Goto]:
    """Send the run to `ask_person`; with the answer, `route` looks at the same things again.

    Args:
        turn: The execution of `route`.
        reason: Why.
        limit: The spent one.
        draft: Waits for a decision.
        order: What the draft was written for, or what is still to be written.
        failed: What has failed before.
    """
    emit("asked", step=len(turn.steps), reason=reason, limit=limit)
    asking = Asking(reason=reason, limit=limit)
    return turn.go("ask_person", asking=asking, draft=draft, order=order, failed=failed)


def act_on(turn: Turn, answered: Answered, draft: Draft | None, order: Order | None) -> Command[Goto] | None:
    """Do what a person said; None where `route` is to decide again, by new limits."""
    emit("answered", step=len(turn.steps), answer=answered)
    if "step" in answered:
        return _by_hand(turn, answered["step"], ends=answered["ends"], draft=draft)
    if "decision" in answered:
        assert draft is not None
        assert order is not None
        return turn.carry_out(Choice(answered["decision"], turn.memory), draft, order, by_person=True)
    if "more" in answered:
        raised = ", ".join(f"{name} by {amount:g}" for name, amount in answered["more"].items())
        turn.note(f"a person raised the limits: {raised or 'none of those that are set'}")
        return None
    if answered["go_on"] == "stop":
        return turn.finish("person")
    turn.note("a person had the small model go on alone")
    waits = turn.state.get("failed") is not None or (order is not None and order["writer"] == "large")
    return _without_large(turn) if draft is None and waits else None


def _without_large(turn: Turn) -> Command[Goto]:
    """Keep the draft that the large model was to replace, or have the small one write the step."""
    kept, small = draft_turned_down(turn.state["decisions"], len(turn.steps)), turn.small_order(decided=False)
    if kept is None:
        return turn.write(small)
    turn.decide(DecisionRecord(step=len(turn.steps), decision="accept", score=kept["score"], by="person"))
    return turn.accept(kept, small)


def _separator(turn: Turn, draft: Draft | None) -> str | None:
    """What separates the steps of this solution, where that is not the delimiter of the settings."""
    thinking = turn.settings.thinking
    for step in (draft, *reversed(turn.steps)):
        if step is None or step["end"] != "delimiter":
            continue
        separator = step.get("separator")
        if thinking is None or separator != thinking.close:  # that ends a thought, which has ended already
            return separator
    return turn.segmentation.delimiter if isinstance(turn.segmentation, DelimiterSteps) else None


def _by_hand(turn: Turn, text: str, *, ends: bool, draft: Draft | None) -> Command[Goto]:
    record = DecisionRecord(step=len(turn.steps), decision="by_hand", score=None, by="person")
    if draft is not None:
        record["score"], record["discarded"] = draft["score"], as_step(draft)
    turn.decide(record)
    step = Step(
        text=text.strip(),
        writer="person",
        model="person",
        tokens=0,
        mean_token_probability=None,
        end="eos" if ends else "delimiter",
    )
    if not ends and (separator := _separator(turn, draft)) is not None:
        step["separator"] = separator
    thinking, previous = turn.settings.thinking, turn.steps[-1] if turn.steps else None
    if thinking is not None and (part := thinking.part_of(previous, step["text"])) is not None:
        step["part"] = part
    # To the end: what was written may be several steps.
    whole = Order(**{**turn.small_order(decided=False), "to_end": True, "max_tokens": 0})
    return turn.accept(Draft(**step, score=None), whole)
