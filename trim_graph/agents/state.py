"""What the middleware keeps in an agent's state: the graph's channels, ``trim_`` before their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, cast

from langchain.agents import AgentState
from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage

from trim_graph.budget.ledger import Ledger
from trim_graph.budget.reservations import Reservations
from trim_graph.budget.usage import Usage, usage_delta
from trim_graph.conversation import question_of
from trim_graph.state import (
    Decisions,
    InFlight,
    Run,
    Scores,
    StepRequest,
    Steps,
    Summary,
    TrimState,
    state_delta,
)
from trim_graph.summary import summarise

from .rendering import restated

_CHANNELS = (
    "run",
    "steps",
    "scores",
    "decisions",
    "request",
    "in_flight",
    "memory",
    "usage",
    "charged_call",
    "stopped",
    "notes",
    "handed_over",
    "returns_direct",
    "ended",
)


class AgentRouting(TrimState, total=False):
    """The state of a run whose steps are an agent's turns."""

    handed_over: bool
    """Whether the large model writes all turns that remain."""
    returns_direct: bool
    """Whether the agent ends with what the tools of the last turn return."""
    ended: bool
    """Whether the end of the question is in the summary, and told."""


class TrimAgentState(AgentState[Any]):
    """An agent's state with the routing of its turns; all of it plain JSON."""

    trim: NotRequired[Annotated[Summary | None, OmitFromInput]]
    """Of the question being answered: turns by writer, decisions, scores, tokens, notes; as of a run."""
    trim_run: NotRequired[Annotated[Run, PrivateStateAttr]]
    """What was fixed when the question came: its settings, its seed; and its text as ``messages`` has it."""
    trim_steps: NotRequired[Annotated[Steps, PrivateStateAttr]]
    """Accepted turns since the question; their text, as ``messages`` has it, when the question has ended."""
    trim_scores: NotRequired[Annotated[Scores, PrivateStateAttr]]
    trim_decisions: NotRequired[Annotated[Decisions, PrivateStateAttr]]
    """What was decided on each draft, and the drafts turned down."""
    trim_request: NotRequired[Annotated[StepRequest | None, PrivateStateAttr]]
    """Who writes the turn that has begun."""
    trim_in_flight: NotRequired[Annotated[InFlight | None, PrivateStateAttr]]
    """What the large model may use in the turn that has begun; charged if a crash ends it."""
    trim_memory: NotRequired[Annotated[Any, PrivateStateAttr]]
    """What the policy remembers."""
    trim_usage: NotRequired[Annotated[Usage, PrivateStateAttr]]
    """What the budget is charged with: since the question, or on the thread."""
    trim_charged_call: NotRequired[Annotated[str | None, PrivateStateAttr]]
    """Name of the last large call that ``trim_usage`` holds."""
    trim_usage_before: NotRequired[Annotated[Usage, PrivateStateAttr]]
    """What of it earlier questions have used."""
    trim_stopped: NotRequired[Annotated[str, PrivateStateAttr]]
    trim_notes: NotRequired[Annotated[list[str], PrivateStateAttr]]
    trim_handed_over: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the large model writes all turns that remain of this question."""
    trim_returns_direct: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the agent ends with what the tools of the last turn return."""
    trim_ended: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the end of the question is in the summary, and told."""


def from_agent_keys(state: Mapping[str, Any]) -> AgentRouting:
    """Read the routing out of an agent's state."""
    kept = {name: state[f"trim_{name}"] for name in _CHANNELS if f"trim_{name}" in state}
    return cast(AgentRouting, {**kept, "draft": None, "failed": None})


def update_of(before: AgentRouting, after: AgentRouting) -> dict[str, Any]:
    """Return what an agent's state is to take in of a routing that went on."""
    return to_agent_keys(state_delta(before, after))


def to_agent_keys(update: Mapping[str, Any]) -> dict[str, Any]:
    """Name channels of the graph as the agent's state does; those that do not outlive a turn are dropped."""
    return {f"trim_{name}": value for name, value in update.items() if name in _CHANNELS}


def with_current_texts(
    routing: AgentRouting, messages: Sequence[BaseMessage], longest_result: int
) -> AgentRouting:
    """Return a routing with the question and the turns as some messages have them.

    Other middlewares rewrite messages, in the state or in one request only. So no text is kept from before:
    the scorer sees what the models are sent, and the state keeps what its own messages have.

    Args:
        routing: Of an agent.
        messages: Its conversation.
        longest_result: Characters of each tool's result in the text of a turn.
    """
    run = Run(**{**routing["run"], "question": _question(routing["run"], messages)})
    steps = restated(routing["steps"], messages, longest_result=longest_result)
    return cast(AgentRouting, {**routing, "run": run, "steps": steps})


def _question(run: Run, messages: Sequence[BaseMessage]) -> str:
    """The text of the message that the run began with; where that is gone, of the last human message."""
    known = run.get("question_message")
    found = next((one for one in messages if known is not None and one.id == known), None)
    return question_of(messages) if found is None else str(found.text)


def summary_of(state: AgentRouting, before: Usage | None, ledger: Ledger | None) -> Summary:
    """Sum up the turns since the question.

    Args:
        state: Of the routing.
        before: What the budget was charged with when the question came; None: nothing.
        ledger: Keeps the accounts that runs share.
    """
    usage = state["usage"] if before is None else usage_delta(before, state["usage"])
    summary = summarise(cast(TrimState, {**state, "usage": usage}))
    if accounts := Reservations(state["run"].get("accounts"), ledger):
        summary["accounts"] = accounts.used()
    return summary


def stop_message(state: AgentRouting, summary: Summary) -> AIMessage:
    """Return the turn that ends an agent which may not go on."""
    settings, reason = state["run"]["settings"], state["stopped"]
    why = {
        "max_steps": f"its limit of {settings['max_steps']} turns is reached",
        "budget": "the large model's budget is spent",
        "deadline": f"its limit of {settings['budget']['seconds']} seconds is reached",
        "failed": "no model could write the next turn",
    }[reason]
    return AIMessage(
        f"Stopped before an answer was found: {why}.",
        response_metadata={"model_name": "trim-graph", "finish_reason": "length", "trim": summary},
    )
