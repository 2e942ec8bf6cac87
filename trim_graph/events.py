"""The step events of a run, as ``stream_mode="custom"`` reports them: plain JSON, one class for each.

An application that streams other things by ``custom`` too knows the events by ``event["type"] == "trim"``.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, get_args, get_type_hints

from typing_extensions import TypedDict

from .budget.usage import StepWriter, Writer
from .segmentation import Part
from .state import DecisionRecord, Summary

__all__ = [
    "EVENTS",
    "AcceptedEvent",
    "AnsweredEvent",
    "AskedEvent",
    "DecisionEvent",
    "DraftEvent",
    "EventName",
    "FailedEvent",
    "FinishedEvent",
    "NoteEvent",
    "ProbeEvent",
    "RetriedEvent",
    "StartedEvent",
    "TrimEvent",
    "WarmedEvent",
]

EventName = Literal[
    "started",
    "probe",
    "draft",
    "decision",
    "accepted",
    "asked",
    "answered",
    "retried",
    "failed",
    "warmed",
    "note",
    "finished",
]
"""What an event reports; its key ``event``."""


class StartedEvent(TypedDict):
    """A run begins."""

    type: Literal["trim"]
    event: Literal["started"]
    run: str
    """Id of the run."""


class ProbeEvent(TypedDict):
    """A probe has ended: one token of the small model, for its entropy."""

    type: Literal["trim"]
    event: Literal["probe"]
    step: int
    """Index of the step that the probe precedes."""
    entropy: float
    """Entropy of the first token's distribution in nats; a lower bound if some tokens are unobserved."""
    unobserved_probability: float
    """Probability mass in [0, 1] of the tokens that the model's server did not report."""


class DraftEvent(TypedDict):
    """A writer has written a step that awaits a decision; a step without one has no such event."""

    type: Literal["trim"]
    event: Literal["draft"]
    writer: Writer
    """Who wrote it."""
    text: str
    """Text of the draft."""
    tokens: int
    """Tokens generated for it."""
    part: NotRequired[Part]
    """``reasoning`` or ``answer``, of a model that thinks."""


class DecisionEvent(DecisionRecord):
    """A draft was decided on, by the policy, a fallback or a human."""

    type: Literal["trim"]
    event: Literal["decision"]


class AcceptedEvent(TypedDict):
    """A step joins the solution."""

    type: Literal["trim"]
    event: Literal["accepted"]
    step: int
    """Its index, from 0."""
    writer: StepWriter
    """Who wrote it."""
    text: str
    """Text of the step."""
    score: float | None
    """Its score; None where it has none yet. A step of the large model is scored with the draft after it, for
    the state and the summary; the score of the draft that it replaces is in the event ``decision`` before."""
    tokens: int
    """Tokens generated for it."""
    part: NotRequired[Part]
    """``reasoning`` or ``answer``, of a model that thinks."""
    why: NotRequired[str]
    """Why the step was accepted from this writer, in a sentence."""


class AskedEvent(TypedDict):
    """The run is interrupted for a human."""

    type: Literal["trim"]
    event: Literal["asked"]
    step: int
    """Index of the step in question."""
    reason: Literal["budget", "score"]
    """An exhausted limit, or a score below ``ask_below``."""
    limit: str | None
    """The exhausted limit if ``reason`` is ``budget``; else None."""


class AnsweredEvent(TypedDict):
    """A human has answered, and the run resumes."""

    type: Literal["trim"]
    event: Literal["answered"]
    step: int
    """Index of the step in question."""
    answer: dict[str, Any]
    """The answer, by the keys that it has: ``more``, ``continue_with``, ``step``, ``decision``."""


class RetriedEvent(TypedDict):
    """A call has succeeded after attempts that failed."""

    type: Literal["trim"]
    event: Literal["retried"]
    part: Literal["small", "large", "scorer"]
    """Whose call."""
    attempts: int
    """Number of attempts that failed."""


class FailedEvent(TypedDict):
    """A call has failed for good; a fallback or an error follows."""

    type: Literal["trim"]
    event: Literal["failed"]
    part: Literal["small", "large", "scorer"]
    """Whose call."""
    error: str
    """Type and message of the error, in one line."""


class WarmedEvent(TypedDict):
    """A call that warmed the large model's prefix cache has ended."""

    type: Literal["trim"]
    event: Literal["warmed"]
    step: int
    """Index of the step that the small model wrote meanwhile."""
    input_tokens: int
    """Tokens of its prompt."""
    cached_tokens: int
    """Those of them that the cache held already."""
    tokens: int
    """Tokens written, which are thrown away."""


class NoteEvent(TypedDict):
    """A fact for the user, which the summary keeps under ``notes``."""

    type: Literal["trim"]
    event: Literal["note"]
    text: str
    """The fact."""


class FinishedEvent(TypedDict):
    """The run has ended."""

    type: Literal["trim"]
    event: Literal["finished"]
    summary: Summary
    """As ``result["trim"]``."""


TrimEvent = (
    StartedEvent
    | ProbeEvent
    | DraftEvent
    | DecisionEvent
    | AcceptedEvent
    | AskedEvent
    | AnsweredEvent
    | RetriedEvent
    | FailedEvent
    | WarmedEvent
    | NoteEvent
    | FinishedEvent
)
"""Any step event; a type checker narrows it by its key ``event``."""

EVENTS: dict[EventName, type] = {
    get_args(get_type_hints(one)["event"])[0]: one for one in get_args(TrimEvent)
}
"""Class of each event by name."""
