"""Models that think aloud before they answer: which part of a text is the thought, which the answer.

The steps of a thought are steps like any others; every step says which part it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .segment import Boundary, is_step

Part = Literal["thought", "answer"]


class Thinking(BaseModel):
    """How a thought is marked, and which part is routed.

    The defaults are the tags of DeepSeek-R1, QwQ and Qwen3. Where a model's chat template opens the thought
    itself, the adapter tells so in ``response_metadata["prompt_opens_thought"]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    open: str = Field(default="<think>", min_length=1)
    close: str = Field(default="</think>", min_length=1)
    routed: Literal["both", "thought", "answer"] = "both"
    """Drafts of the other part are accepted without a decision, and not scored."""

    @model_validator(mode="after")
    def _marks_differ(self) -> Thinking:
        if self.close in self.open:
            raise ValueError(
                f"close={self.close!r} is in open={self.open!r}: a thought would end as it begins"
            )
        return self

    def inside(self, previous: Mapping[str, Any] | None) -> bool:
        """Tell whether the last accepted step has left the writer within a thought."""
        return previous is not None and previous.get("part") == "thought" and not self._closed(previous)

    def may_close(self, previous: Mapping[str, Any] | None, lead: str) -> bool:
        """Tell whether the close mark of a thought may come in the text that a writer is asked for.

        The first step may open a thought, or its prompt may have: nobody knows before it is written.

        Args:
            previous: The step before it.
            lead: What was written of the step before.
        """
        opens = previous is None or self.inside(previous) or lead.lstrip().startswith(self.open)
        return opens and self.close not in lead

    def boundary(
        self, previous: Mapping[str, Any] | None, text: str, *, opened: bool = False
    ) -> Boundary | None:
        """Find where the thought ends that a text begins in; None without one, or where it says nothing.

        Args:
            previous: The step before the text.
            text: Of one step or more.
            opened: Whether the prompt had opened the thought already.
        """
        if self.close not in text or self.part_of(previous, text, opened=opened) != "thought":
            return None
        end = text.index(self.close)
        return Boundary(end, end + len(self.close))

    def part_of(self, previous: Mapping[str, Any] | None, text: str, *, opened: bool = False) -> Part | None:
        """Tell which part a step belongs to: the one it begins in. None where nobody thinks.

        Args:
            previous: The step before it.
            text: Of the step.
            opened: Whether the prompt had opened the thought already.
        """
        inside = self.inside(previous) or (previous is None and opened)
        begun = text.lstrip()
        if not inside and begun.startswith(self.open):
            inside, begun = True, begun[len(self.open) :]
        if inside:
            if self._torn(previous, text):
                return "answer"
            thought, closed, _ = begun.partition(self.close)
            return "thought" if is_step(thought) or not closed else "answer"
        return "answer" if previous is not None and "part" in previous else None

    def answer_in(self, text: str, first: Mapping[str, Any] | None) -> str:
        """Return what follows the thought: everything without one, nothing while it is not closed."""
        if first is None or first.get("part") is None:
            return text
        return text.rpartition(self.close)[2] if self.close in text else ""

    def _torn(self, previous: Mapping[str, Any] | None, text: str) -> bool:
        """Tell whether a token limit has cut the close mark in two, and this text begins with its rest."""
        if previous is None or previous["end"] != "length":
            return False
        places = range(1, len(self.close))
        return any(
            previous["text"].endswith(self.close[:at]) and text.startswith(self.close[at:]) for at in places
        )

    def _closed(self, step: Mapping[str, Any]) -> bool:
        return self.close in step["text"] or self.close in step.get("separator", "")
