"""Whether a chat model stops at a delimiter, and tells that from the end of its text."""

from __future__ import annotations

import re
from typing import Any

from trim_graph.adapters.vllm_prompt import KEPT

from .chat_checks import WRITTEN, conversation
from .findings import Finding, fault, hint, ok
from .subjects import Subject

_LONGER = 512
"""Tokens within which a short solution should end."""


async def stop(subject: Subject) -> Finding:
    """A call ends at its stop string and says so."""
    return await _stops(subject, "repeated")


async def stop_streamed(subject: Subject) -> Finding:
    """The same over a stream, by which calls with a time limit go."""
    return await _stops(subject, "streamed", timeout=subject.timeout)


async def _stops(subject: Subject, name: str, **settings: Any) -> Finding:
    written = subject.known["answer"].text
    needle = _needle(written)
    if needle is None:
        return hint(f"cannot be told: the model writes but {written[:40]!r}")
    answer = await subject.adapter.ainvoke(
        conversation(subject), stop=[needle], max_tokens=WRITTEN, temperature=0.0, **settings
    )
    subject.known[name] = answer
    reason, finish = (answer.response_metadata.get(key) for key in ("stop_reason", "finish_reason"))
    if needle in answer.text:
        return fault(
            f"told to stop at {needle!r}, the model writes on past it, so no step would end at the delimiter",
            "let a gateway pass on the field stop of a request",
        )
    if reason == needle:
        place = getattr(subject.adapter, "stop_reported_in", "stop_reason")
        if place == KEPT:
            return hint(
                f"ends at a stop string, which only a text that keeps it shows ({KEPT}): the first answer "
                "of a process is asked for twice",
                "let a gateway pass on the field stop_reason of vLLM's answers",
            )
        return ok(f"ends at a stop string and reports it in {place}: {needle!r}")
    if written.startswith(answer.text) and len(answer.text) < len(written):
        return fault(
            f"a call that ended at the stop string {needle!r} says stop_reason={reason!r}, "
            f"finish_reason={finish!r}: the end of a step looks like the end of the solution",
            "let a gateway pass on the field stop_reason of vLLM's answers; a server that does not tell it "
            "cannot serve step by step",
        )
    return hint(
        "cannot be told: the model did not write the same again at temperature 0",
        "ask again, without other load",
    )


def _needle(text: str) -> str | None:
    """A string that stands in the middle of a text, not at its start: the second word or sign."""
    found = re.search(r"\S+?\s+(\S+)", text)
    return found[1] if found and not text.startswith(found[1]) else None


async def end_of_sequence(subject: Subject) -> Finding:
    """The end of the text is told apart: no stop string is named."""
    settings = {"stop": [subject.settings.delimiter * 4 + "<never>"], "temperature": 0.0}
    answer = await subject.adapter.ainvoke(conversation(subject), max_tokens=_LONGER, **settings)
    reason, finish = (answer.response_metadata.get(key) for key in ("stop_reason", "finish_reason"))
    if reason is not None:
        return fault(
            f"a text that ended by itself says stop_reason={reason!r}, as if at a delimiter",
            "let a gateway pass on the field stop_reason as vLLM tells it",
        )
    if finish == "length":
        return hint(f"cannot be told: the model did not end within {_LONGER} tokens")
    if finish != "stop":
        return fault(
            f"a text that ended by itself says finish_reason={finish!r}, not 'stop'",
            "let a gateway pass on the field finish_reason",
        )
    return ok("told: finish_reason='stop' without a stop string")
