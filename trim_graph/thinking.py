"""Models that think aloud before they answer: which part of a text is the thought, which the answer.

The steps of a thought are steps like any others; every step says which part it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .segment import is_step

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

    def inside(self, previous: Mapping[str, Any] | None) -> bool:
        """Tell whether the last accepted step has left the writer within a thought."""
        return previous is not None and previous.get("part") == "thought" and not self._closed(previous)

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
            thought, closed, _ = begun.partition(self.close)
            return "thought" if is_step(thought) or not closed else "answer"
        return "answer" if previous is not None and "part" in previous else None

    def answer_in(self, text: str, first: Mapping[str, Any] | None) -> str:
        """Return what follows the thought: everything without one, nothing while it is not closed."""
        if first is None or first.get("part") is None:
            return text
        return text.rpartition(self.close)[2] if self.close in text else ""

    def _closed(self, step: Mapping[str, Any]) -> bool:
        return self.close in step["text"] or step.get("separator") == self.close
