"""What a failed call leaves behind: its cost, and word to `route`, which knows the declared way out."""

from __future__ import annotations

from typing import Any, Literal, cast

from langchain_core.messages import AIMessage
from langgraph.errors import GraphBubbleUp

from trim_graph.adapters.refused_setting import remedy
from trim_graph.budget import Prices, ScorerSpend, Spend, Writer
from trim_graph.errors import (
    ChatModelContractError,
    FailedAttempts,
    ModelServerError,
    SettingsError,
    is_context_full,
)
from trim_graph.events import emit
from trim_graph.settings import Settings
from trim_graph.state import Failure

SHOWN = 300
"""Characters of an error that the state keeps."""

# Mistakes in a set-up, not failures of a model; and LangGraph's own ways to leave a node.
NEVER_CAUGHT = (GraphBubbleUp, SettingsError, ChatModelContractError)


def has_way_out(error: Exception, part: Literal["small", "large", "scorer"], settings: Settings) -> bool:
    """Tell whether a run goes on after this error, by ``on_small_error`` and its like."""
    return not isinstance(error, NEVER_CAUGHT) and getattr(settings, f"on_{part}_error") != "raise"


def failure(
    error: Exception, part: Literal["small", "large", "scorer"], *, context_full: bool = False
) -> Failure:
    """Put an error into words for the state, and tell the stream.

    Args:
        error: That a call has raised.
        part: Whose call.
        context_full: Whether it is an end of the room behind a solution, which more attempts do not change.
    """
    told = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
    if (way := remedy(error)) is not None:
        told += f"; {way}"
    emit("failed", part=part, error=told)
    failed = Failure(part=part, error=told)
    if context_full:
        failed["context_full"] = True
    return failed


def note_full(notes: list[str], name: str) -> list[str]:
    """Add word that a context is full, with which the run ends."""
    note = f"the context of the {name} is full: the solution ends here"
    emit("note", text=note)
    return [*notes, note]


def attempts_of(error: BaseException) -> FailedAttempts:
    """What the attempts of a failed call have used, as far as its adapter tells."""
    # An adapter's own error may come out of a server's, as a scorer's does.
    for one in (error, error.__cause__):
        if isinstance(attempts := getattr(one, "attempts", None), dict):
            return cast(FailedAttempts, attempts)
    server = next((e for e in (error, error.__cause__) if isinstance(e, ModelServerError)), None)
    begun = server.begun if server is not None else not is_context_full(error)
    # LangChain's errors of structured output bring the answer that has no such structure.
    answer = getattr(error, "ai_message", None)
    if isinstance(answer, AIMessage) and answer.usage_metadata is not None:
        return attempts_of_answer(answer)
    return FailedAttempts(count=1, input_tokens=0, output_tokens=0, unknown=int(begun))


def attempts_of_answer(answer: AIMessage) -> FailedAttempts:
    """What an answer has used that is a failure by itself, the failed attempts before it included."""
    before = read_attempts(answer.response_metadata)
    usage = answer.usage_metadata
    return FailedAttempts(
        count=1 + (before["count"] if before else 0),
        input_tokens=usage["input_tokens"] if usage else 0,
        output_tokens=usage["output_tokens"] if usage else 0,
        unknown=int(usage is None) + (before["unknown"] if before else 0),
    )


def charge_failed_call(
    spend: Spend, writer: Writer, error: BaseException, *, max_tokens: int, prompt_tokens: int, prices: Prices
) -> Spend:
    """Charge a call that failed with all its attempts."""
    before = spend[writer]
    charged = Spend(**{**spend})
    charged[writer] = {**before, "calls": before["calls"] + 1, "failed_calls": before["failed_calls"] + 1}
    lost = attempts_of(error)
    return charge_lost(
        charged, writer, lost, max_tokens=max_tokens, prompt_tokens=prompt_tokens, prices=prices
    )


def charge_lost(
    spend: Spend,
    writer: Writer,
    lost: FailedAttempts,
    *,
    max_tokens: int,
    prompt_tokens: int,
    prices: Prices,
) -> Spend:
    """Charge failed attempts that no answer followed: tokens that were reported, and those that were not."""
    before = spend[writer]
    charged = Spend(**{**spend})
    charged[writer] = {
        **before,
        "input_tokens": before["input_tokens"] + lost["input_tokens"],
        "output_tokens": before["output_tokens"] + lost["output_tokens"],
    }
    return charge_attempts(
        charged, writer, lost, max_tokens=max_tokens, prompt_tokens=prompt_tokens, prices=prices
    )


def charge_attempts(
    spend: Spend,
    writer: Writer,
    lost: FailedAttempts,
    *,
    max_tokens: int,
    prompt_tokens: int,
    prices: Prices,
) -> Spend:
    """Count failed attempts; of those that told nothing the large model's are charged in full."""
    charged = Spend(**{**spend})
    charged[writer] = {**spend[writer], "failed_attempts": spend[writer]["failed_attempts"] + lost["count"]}
    if writer == "large":
        tokens = lost.get("unknown_tokens", lost["unknown"] * max_tokens)
        beyond = max(0, lost["output_tokens"] - lost["count"] * max_tokens)
        charged["overshoot_tokens"] += lost.get("overshoot_tokens", beyond)
        charged["unaccounted_tokens"] += tokens
        charged["unaccounted_cost"] += prices.large.cost(lost["unknown"] * prompt_tokens, tokens)
    return charged


def charge_scorer(spend: Spend, seconds: float, used: FailedAttempts, *, failed: bool) -> Spend:
    """Count a call of the scorer.

    Args:
        spend: Before it.
        seconds: It took.
        used: Tokens of the call, and its attempts that failed.
        failed: Whether it came to nothing.
    """
    before = spend["scorer"]
    charged = Spend(**{**spend, "seconds": spend["seconds"] + seconds})
    charged["scorer"] = ScorerSpend(
        calls=before["calls"] + 1,
        input_tokens=before["input_tokens"] + used["input_tokens"],
        output_tokens=before.get("output_tokens", 0) + used["output_tokens"],
        failed_attempts=before["failed_attempts"] + used["count"],
        failed_calls=before["failed_calls"] + failed,
    )
    return charged


def told_of_retries(metadata: dict[str, Any], writer: Writer) -> FailedAttempts | None:
    """Read an answer's word on attempts that failed before it, and tell the stream."""
    lost = read_attempts(metadata)
    if lost is not None:
        emit("retried", part=writer, attempts=lost["count"])
    return lost


def read_attempts(metadata: dict[str, Any]) -> FailedAttempts | None:
    """Read an answer's word on attempts that failed before it."""
    reported = metadata.get("failed_attempts")
    if not reported:
        return None
    found = FailedAttempts(
        count=int(reported["count"]),
        input_tokens=int(reported["input_tokens"]),
        output_tokens=int(reported["output_tokens"]),
        unknown=int(reported.get("unknown", 0)),
    )
    if "unknown_tokens" in reported:
        found["unknown_tokens"] = int(reported["unknown_tokens"])
    if "overshoot_tokens" in reported:
        found["overshoot_tokens"] = int(reported["overshoot_tokens"])
    return found
