"""The declared way out when a model or the scorer has failed: ``on_small_error`` and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from langgraph.types import Command

from trim_graph.state import DecisionRecord, Draft, Failure, Order

from .accepting import as_step, draft_turned_down

if TYPE_CHECKING:
    from .route import Turn

GIVE_UP = 3
"""Failed calls of the large model in a run after which it is not asked again, so that a dead server does not
cost its timeouts at every step."""


def fall_back(
    turn: Turn, failed: Failure, draft: Draft | None, order: Order
) -> Command[Literal["generate_step", "finalize"]]:
    """Find the way out that the settings name.

    Args:
        turn: The execution of `route`.
        failed: What failed.
        draft: What the scorer could not rate; None where a writer failed.
        order: What the writer was asked for.
    """
    turn.note(f"the {_name(failed)} failed: {failed['error']}")
    if failed["part"] == "scorer":
        assert draft is not None
        return _unrated(turn, failed, draft, order)
    if failed["part"] == "large":
        return _without_large(turn, failed)
    large, refused = turn.large_order(to_end=False)
    if large is None:
        assert refused is not None
        turn.note_refusal(refused)
        return turn.finish("failed")
    return turn.write(large)


def _unrated(
    turn: Turn, failed: Failure, draft: Draft, order: Order
) -> Command[Literal["generate_step", "finalize"]]:
    record = _record(turn, failed, "accept")
    if turn.settings.on_scorer_error == "regenerate":
        large, refused = turn.large_order(to_end=False)
        if large is not None:
            record["decision"], record["discarded"] = "regenerate", as_step(draft)
            turn.decide(record)
            return turn.write(large)
        assert refused is not None
        record["refused"] = refused
        turn.note_refusal(refused)
    turn.decide(record)
    return turn.accept(draft, order)


def _without_large(turn: Turn, failed: Failure) -> Command[Literal["generate_step", "finalize"]]:
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


def _name(failed: Failure) -> str:
    return "scorer" if failed["part"] == "scorer" else f"{failed['part']} model"
