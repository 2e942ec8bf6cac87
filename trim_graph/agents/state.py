"""The routing in an agent's state: the graph's channels, with the prefix ``trim_``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, cast

from langchain.agents import AgentState
from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage

from trim_graph.adapters.base import Turn
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.reservations import Reservations
from trim_graph.budget.usage import Usage, usage_delta
from trim_graph.conversation import question_of
from trim_graph.routing import RunView
from trim_graph.routing.explain import STOP_REASONS
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

from .rendering import with_message_texts

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
    """State of a run whose steps are an agent's turns."""

    handed_over: bool
    """Whether the large model writes all further turns."""
    returns_direct: bool
    """Whether the agent ends with what the tools of the last turn return."""
    ended: bool
    """Whether the question has ended: its summary is complete and was emitted."""
    turns: list[Turn | None]
    """Accepted turns and the draft as data, while they are scored; never stored."""


class TrimAgentState(AgentState[Any]):
    """An agent's state with the routing of its turns, all of it plain JSON."""

    trim: NotRequired[Annotated[Summary | None, OmitFromInput]]
    """Summary of the current question so far: turns by writer, decisions, scores, tokens, notes."""
    trim_run: NotRequired[Annotated[Run, PrivateStateAttr]]
    """Settings and seed of the question, fixed at its beginning; its text once the question has ended."""
    trim_steps: NotRequired[Annotated[Steps, PrivateStateAttr]]
    """Accepted turns of the question; their texts once the question has ended."""
    trim_scores: NotRequired[Annotated[Scores, PrivateStateAttr]]
    trim_decisions: NotRequired[Annotated[Decisions, PrivateStateAttr]]
    """Decision on each draft, with the rejected drafts."""
    trim_request: NotRequired[Annotated[StepRequest | None, PrivateStateAttr]]
    """Request for the current turn."""
    trim_in_flight: NotRequired[Annotated[InFlight | None, PrivateStateAttr]]
    """Grant of the large call in the current turn; charged if a crash interrupts it."""
    trim_memory: NotRequired[Annotated[Any, PrivateStateAttr]]
    """The policy's own memory."""
    trim_usage: NotRequired[Annotated[Usage, PrivateStateAttr]]
    """Usage that the budget counts: of the question, or of the thread."""
    trim_charged_call: NotRequired[Annotated[str | None, PrivateStateAttr]]
    """Name of the last large call that ``trim_usage`` includes."""
    trim_usage_before: NotRequired[Annotated[Usage, PrivateStateAttr]]
    """Part of ``trim_usage`` from earlier questions."""
    trim_stopped: NotRequired[Annotated[str, PrivateStateAttr]]
    trim_notes: NotRequired[Annotated[list[str], PrivateStateAttr]]
    trim_handed_over: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the large model writes all further turns of this question."""
    trim_returns_direct: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the agent ends with what the tools of the last turn return."""
    trim_ended: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the question has ended: its summary is complete and was emitted."""


def from_agent_keys(state: Mapping[str, Any]) -> AgentRouting:
    """Returns the routing in an agent's state, under the graph's channel names."""
    kept = {name: state[f"trim_{name}"] for name in _CHANNELS if f"trim_{name}" in state}
    return cast(AgentRouting, {**kept, "draft": None, "failed": None})


def update_of(before: AgentRouting, after: AgentRouting) -> dict[str, Any]:
    """Returns the update of an agent's state that leads from one routing to a later one."""
    return to_agent_keys(state_delta(before, after))


def to_agent_keys(update: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an update under the agent's keys, without channels that do not outlive a turn."""
    return {f"trim_{name}": value for name, value in update.items() if name in _CHANNELS}


def with_current_texts(
    routing: AgentRouting, messages: Sequence[BaseMessage], longest_result: int
) -> AgentRouting:
    """Returns a routing with the texts of question and turns taken from messages.

    Other middlewares rewrite messages, in the state or in one request only. So no earlier text is kept: the
    scorer sees what the models get, and the state keeps what its own messages hold.

    Args:
        routing: Routing of an agent.
        messages: The conversation.
        longest_result: Characters of each tool result in the text of a turn.
    """
    run = Run(
        **{**routing["run"], "question": question_text(routing["run"].get("question_message"), messages)}
    )
    steps = with_message_texts(routing["steps"], messages, longest_result=longest_result)
    return cast(AgentRouting, {**routing, "run": run, "steps": steps})


def question_text(message_id: str | None, messages: Sequence[BaseMessage]) -> str:
    """Returns the text of the message that began the run; of the last human message if that was removed."""
    found = next((one for one in messages if message_id is not None and one.id == message_id), None)
    return question_of(messages) if found is None else str(found.text)


def summary_of(state: AgentRouting, before: Usage | None, ledger: Ledger | None) -> Summary:
    """Returns the summary of the current question.

    Args:
        state: Routing of the agent.
        before: Usage that the budget counted when the question began; None for none.
        ledger: Holds the accounts that runs share.
    """
    usage = state["usage"] if before is None else usage_delta(before, state["usage"])
    summary = summarise(RunView(cast(TrimState, {**state, "usage": usage})))
    if accounts := Reservations(state["run"].get("accounts"), ledger):
        summary["accounts"] = accounts.used()
    return summary


def stop_message(state: AgentRouting, summary: Summary) -> AIMessage:
    """Returns the message that ends an agent, with the reason."""
    why = STOP_REASONS[state["stopped"]].to_agent(state["run"]["settings"])
    return AIMessage(
        f"Stopped before an answer was found: {why}.",
        response_metadata={"model_name": "trim-graph", "finish_reason": "length", "trim": summary},
    )
