"""Explanations: one sentence for each way that the router can take a step, with the numbers it depends on.

A step holds its sentence as ``why``; policies are named as Python writes them, such as ``threshold(0.5)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trim_graph.budget.limits import Shortage
from trim_graph.policies.base import Observation, Policy
from trim_graph.settings import Settings
from trim_graph.state import Failure

LARGE_FAILURES = "large_failures"
UNBOUNDED = "unbounded_prompt"
"""Reasons not to call the large model other than an exhausted limit; a larger budget does not help."""

Unit = Literal["step", "turn"]


@dataclass(frozen=True, slots=True)
class StopReason:
    """Facts about a reason that ends a run.

    Attributes:
        sentence: Why the run ended.
        of_agent: The same of an agent, a template over the run's settings; empty: ``sentence`` says it too.
        complete: Whether the run ended by itself, so that its solution is a whole one.
        of_budget: Whether a limit of the run's budget ended it.
    """

    sentence: str
    of_agent: str = ""
    complete: bool = False
    of_budget: bool = False

    def to_agent(self, settings: Mapping[str, Any]) -> str:
        """Returns why an agent ended.

        Args:
            settings: Settings of the run, as it stores them.
        """
        return (self.of_agent or self.sentence).format_map(settings)


STOP_REASONS: Mapping[str, StopReason] = {
    "finished": StopReason("the solution has ended", complete=True),
    "max_steps": StopReason(
        "the limit on steps is reached", "its limit of {max_steps} turns is reached", complete=True
    ),
    "max_tokens": StopReason("the limit on the solution's tokens is reached"),
    "length": StopReason("a model's context is full"),
    "loop": StopReason("the same was written again and again", complete=True),
    "budget": StopReason("the budget leaves no further call of the large model", of_budget=True),
    "deadline": StopReason(
        "the time is up", "its limit of {budget[seconds]} seconds is reached", of_budget=True
    ),
    "recursion_limit": StopReason("the recursion limit is reached"),
    "no_step": StopReason("the model wrote nothing that is a step", complete=True),
    "failed": StopReason("no model was left to write the next step", "no model could write the next turn"),
    "human": StopReason("who was asked ended it"),
    "middleware": StopReason("another middleware ended the agent"),
}
"""Reasons that end a run, by the ``stopped`` of its summary: the names of `trim_graph.state.Stopped`."""

CONTINUED = "the large model wrote it in the same call as the step before"
NO_TIME = "no time is left for a decision: the small model's draft stays"
NO_ROOM = "the scorer's context is full: the small model's draft stays without a score"
BY_HAND = "a human wrote it"
HUMAN_CONTINUES_SMALL = "a human had the small model continue"
"""Begins an explanation; `left_to` ends it."""

StepSource = Literal["large", "draft", "small"]
"""Source of a step that is not as the policy chose; ``draft``: the small model's draft, which stays."""
_SOURCES: Mapping[StepSource, str] = {
    "large": "the large model writes",
    "draft": "the small model's draft stays",
    "small": "the small model writes",
}


def left_to(source: StepSource, because: str) -> str:
    """Returns the sentence on a step that is left to a writer for a reason."""
    return f"{because}: {_SOURCES[source]}"


def named(policy: Policy, observation: Observation, writer: str, unit: Unit) -> str:
    """Explains a step whose writer the policy named before there was a draft."""
    if writer == "small":
        what = "named the small model and decides on no draft"
    elif writer == "large":
        what = "named the large model"
    else:
        what = f"named the large model for this and all further {unit}s"
    return f"{policy!r} {what}{_evidence(policy, observation)}"


def decided(policy: Policy, observation: Observation, decision: str, unit: Unit) -> str:
    """Explains a step that the policy's decision on a draft settled."""
    return f"{policy!r} {_done(decision, unit)}{_evidence(policy, observation)}"


def decided_by_human(decision: str, unit: Unit) -> str:
    """Explains a step that a human's decision on a draft settled."""
    return f"a human {_done(decision, unit)}"


def exhausted(limit: str, shortage: Shortage | None = None, wanted: str | None = None) -> str:
    """Explains that the large model may not be called; `left_to` ends the sentence.

    Args:
        limit: The exhausted limit, or another reason.
        shortage: What the limit left, and what a call needed; None if it is not known.
        wanted: Why it would have been called; None if nothing called for it yet.
    """
    if limit == LARGE_FAILURES:
        why = "the large model has failed too often to be called again"
    elif limit == UNBOUNDED:
        why = "the limit on cost cannot be kept for this prompt"
    else:
        why = used_up(limit, shortage)
    return why if wanted is None else f"{wanted}, but {why}"


def used_up(limit: str, shortage: Shortage | None = None) -> str:
    """Says what an exhausted limit leaves: nothing, or less than a call of the large model needs.

    Args:
        limit: Name of the limit, that of an account included.
        shortage: What it left, and what a call needed; None if it is not known.
    """
    if shortage is None:
        return f"the limit on {limit} leaves no further call"
    if not shortage.left:
        # An account holds the reservations of calls under way too, those of other runs included.
        return f"the limit on {limit} is spent{' or reserved' if ' of ' in limit else ''}"
    needed = f"the limit on {limit} leaves {shortage.left:.6g}, and a call needs {shortage.needed:.6g}"
    if not limit.startswith("large_cost"):
        return needed
    prompt = f"a prompt of up to {shortage.prompt_tokens} tokens and " if shortage.prompt_tokens else ""
    return f"{needed} (for {prompt}{shortage.tokens} tokens to write)"


def failed(part: str, failure: Failure, settings: Settings, wanted: str | None = None) -> str:
    """Explains what followed a failed call; `left_to` ends the sentence.

    Args:
        part: Name of what failed, such as ``large model``.
        failure: The failure.
        settings: Settings of the run, one of which says what follows.
        wanted: Why it was called; None if that explains nothing.
    """
    if failure.get("context_full"):
        why = f"the context of the {part} is full"
    else:
        setting = f"on_{failure['part']}_error"
        what = "wrote no step" if "no_step" in failure else "failed"
        why = f"the {part} {what} and {setting} is {getattr(settings, setting)}"
    return why if wanted is None else f"{wanted}, but {why}"


def not_routed(part: str, routed: str) -> str:
    """Explains a draft of a thinking model in a part that is not routed."""
    return left_to("draft", f"the draft is {part}, and only {routed} is routed")


def _evidence(policy: Policy, observation: Observation) -> str:
    """Returns the numbers that the policy saw, in brackets; empty if it saw none."""
    found = policy.evidence(observation)
    return f" ({found})" if found else ""


def _done(decision: str, unit: Unit) -> str:
    if decision == "accept":
        return "accepted the small model's draft"
    if decision == "handover":
        return f"handed this and all further {unit}s over to the large model"
    return f"had the large model write the {unit} again"
