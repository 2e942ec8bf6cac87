"""The declared way out when a model or the scorer has failed: ``on_small_error`` and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph.types import Command

from trim_graph.errors import InputError
from trim_graph.state import DecisionRecord, Draft, Failure, Order

from .accepting import as_step, draft_turned_down
from .asking import ask
from .sight import GIVE_UP

if TYPE_CHECKING:
    from .route import Goto, Turn


def fall_back(turn: Turn, failed: Failure, draft: Draft | None, order: Order) -> Command[Goto]:
    """Find the way out that the settings name.

    Args:
        turn: The execution of `route`.
        failed: What failed.
        draft: What the scorer could not rate; None where a writer failed.
        order: What the writer was asked for.
    """
    if "refused" in failed:
        return _taken_by_others(turn, failed["refused"], order)
    full = failed.get("context_full", False)
    if "no_step" in failed:
        turn.note(f"the {_name(failed)} wrote no step: {failed['error']}")
        if getattr(turn.settings, f"on_{failed['part']}_error") == "raise":
            return turn.finish("no_step")  # no error: the steps so far are an answer too
    else:
        turn.note(f"the context of the {_name(failed)} is full" if full else _why(failed))
    if failed["part"] == "scorer":
        assert draft is not None
        return _unrated(turn, failed, draft, order)
    if failed["part"] == "large":
        return _without_large(turn, failed)
    large, refused = turn.large_order(to_end=False)
    if large is None:
        assert refused is not None
        if turn.asks(refused):
            return ask(turn, "budget", refused, draft=None, order=order, failed=failed)
        turn.note_refusal(refused)
        if full and not turn.steps:
            raise InputError(f"no model has room for this conversation: {failed['error']}")
        return turn.finish("length" if full else "failed")
    return turn.write(large)


def _taken_by_others(turn: Turn, limit: str, order: Order) -> Command[Goto]:
    """Other runs had used up an account before the large model could be called."""
    large, refused = turn.large_order(order["to_end"])
    if large is not None:  # there is some again: another run has used less than it had set aside
        return turn.write(large)
    if turn.asks(refused):
        failed = Failure(part="large", error="", refused=limit)
        return ask(turn, "budget", refused, draft=None, order=order, failed=failed)
    return give_way(turn, refused or limit)


def give_way(turn: Turn, limit: str) -> Command[Goto]:
    """Go on without the large model, which a spent limit keeps from a step it was to write."""
    turn.note_refusal(limit)
    kept = draft_turned_down(turn.state["decisions"], len(turn.steps))
    if kept is None:
        return turn.finish("budget") if turn.stops(limit) else turn.write(turn.small_order(decided=False))
    record = DecisionRecord(step=len(turn.steps), decision="accept", score=kept["score"], refused=limit)
    turn.decide(record)
    return turn.accept(kept, turn.small_order(decided=False))


def _unrated(turn: Turn, failed: Failure, draft: Draft, order: Order) -> Command[Goto]:
    record = _record(turn, failed, "accept")
    if turn.settings.on_scorer_error == "regenerate":
        large, refused = turn.large_order(to_end=False)
        if large is not None:
            record["decision"], record["discarded"] = "regenerate", as_step(draft)
            turn.decide(record)
            return turn.write(large)
        assert refused is not None
        if turn.asks(refused):
            return ask(turn, "budget", refused, draft=draft, order=order, failed=failed)
        record["refused"] = refused
        turn.note_refusal(refused)
    turn.decide(record)
    return turn.accept(draft, order)


def _without_large(turn: Turn, failed: Failure) -> Command[Goto]:
    if turn.spend["large"]["failed_calls"] >= GIVE_UP:
        turn.note(f"the large model failed {GIVE_UP} times: it is not called any more")
    kept = draft_turned_down(turn.state["decisions"], len(turn.steps))
    small = turn.small_order(decided=False)
    if kept is None:
        return turn.write(small)
    record = _record(turn, failed, "accept")
    record["score"] = kept["score"]
    turn.decide(record)
    return turn.accept(kept, small)


def _record(turn: Turn, failed: Failure, decision: str) -> DecisionRecord:
    told = f"the {_name(failed)} failed"
    return DecisionRecord(step=len(turn.steps), decision=decision, score=None, fallback=told)


def _why(failed: Failure) -> str:
    return f"the {_name(failed)} failed: {failed['error']}"


def _name(failed: Failure) -> str:
    return "scorer" if failed["part"] == "scorer" else f"{failed['part']} model"
