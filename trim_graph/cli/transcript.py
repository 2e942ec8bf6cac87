"""The story of one run, from its events: printed as it goes on, or kept for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from .terminal import visible

if TYPE_CHECKING:
    from trim_graph.budget import Prices

    from .console import Console

COLOURS = {"small": "cyan", "large": "magenta", "person": "green"}
WHY = {
    "finished": "the solution has ended",
    "max_steps": "the limit on steps is reached",
    "length": "a model's context is full",
    "loop": "the same was written again and again",
    "budget": "the budget is spent",
    "deadline": "the time is up",
    "recursion_limit": "the recursion limit is reached",
    "no_step": "the model wrote nothing that is a step",
    "failed": "no model was left to write the next step",
    "person": "who was asked ended it",
    "middleware": "another middleware ended the agent",
}
_INDENT = " " * 27


class Transcript:
    """Collects the events of a run.

    Args:
        console: Where steps are printed as they are accepted; None prints nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.steps: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._decisions: dict[int, dict[str, Any]] = {}

    def note(self, event: dict[str, Any]) -> None:
        """Take in one event of ``stream_mode="custom"``."""
        kind = event.get("event")
        if kind == "decision":
            self._decisions[event["step"]] = event
        elif kind == "accepted":
            self._accepted(event)
        elif kind == "note" and self.console:
            self.console.print(f"     {event['text']}", style="yellow", soft_wrap=True)
        elif kind == "finished":
            self.summary = event["summary"]

    def recall(self, state: dict[str, Any]) -> None:
        """Take in what a resumed run did before."""
        self._decisions = {record["step"]: record for record in state.get("decisions", [])}
        for index, step in enumerate(state.get("steps", [])):
            self._accepted({**step, "step": index, "score": state.get("scores", {}).get(str(index))})

    def record(self) -> dict[str, Any]:
        """Return everything, JSON-native."""
        scores = self.summary.get("scores", [])
        for step, score in zip(self.steps, scores, strict=False):
            step["score"] = score  # a step of the large model is scored after it was accepted, or never
        return {"answer": self.summary.get("answer"), "steps": self.steps, "summary": self.summary}

    def _accepted(self, event: dict[str, Any]) -> None:
        decision = self._decisions.get(event["step"], {})
        discarded = decision.get("discarded")
        step = {
            "step": event["step"],
            "writer": event["writer"],
            "text": event["text"],
            "tokens": event["tokens"],
            "score": event["score"],
            "decision": decision.get("decision"),
        }
        if decision.get("refused"):
            step["refused"] = decision["refused"]
        if discarded:
            step["discarded"] = {
                "text": discarded["text"],
                "tokens": discarded["tokens"],
                "score": decision["score"],
            }
        self.steps.append(step)
        if self.console:
            self._show(self.console, step)

    @staticmethod
    def _show(console: Console, step: dict[str, Any]) -> None:
        discarded = step.get("discarded")
        colour = COLOURS[step["writer"]]
        score = discarded["score"] if discarded else step["score"]
        rated = f"{score:.2f}" if score is not None else "-"
        line = Text(f"{step['step'] + 1:>3}  ")
        line.append(f"{step['writer']:<5}  ", style=f"bold {colour}")
        line.append(f"{rated:>4}  {step['decision'] or '-':<10} ", style="dim")
        line.append(printable(step["text"]), style=colour)
        console.print(line, soft_wrap=True)
        if discarded:
            old = Text(_INDENT)
            old.append(f"instead of: {printable(discarded['text'])}", style="dim strike")
            console.print(old, soft_wrap=True)
        if "refused" in step:
            said = f"{_INDENT}wanted the large model; the limit on {step['refused']} is spent"
            console.print(Text(said, style="yellow"), soft_wrap=True)


def printable(text: str) -> str:
    """Show a model's control characters, and keep its lines in their column."""
    return visible(text).strip("\n").replace("\n", f"\n{_INDENT}")


def show_bill(console: Console, summary: dict[str, Any], prices: Prices) -> None:
    """Print what a run has used and why it stopped."""
    if not summary:
        return
    tokens, spend = summary["tokens"], summary["spend"]
    console.print()
    for writer in ("small", "large"):
        parts = [f"{counted(tokens[writer], 'token')} accepted"]
        if writer == "small":
            parts.append(f"{tokens['small_discarded']} discarded")
        elif tokens["large_unaccounted"]:
            parts.append(f"{tokens['large_unaccounted']} charged for calls lost in a crash")
        parts.append(counted(spend[writer]["calls"], "call"))
        steps = counted(summary["steps"][writer], "step")
        console.print(
            Text.assemble((f"{writer:<8}", f"bold {COLOURS[writer]}"), f"{steps:<9} {', '.join(parts)}"),
            soft_wrap=True,
        )
    parts = [f"{counted(tokens['scorer'], 'token')} read"]
    if written := tokens.get("scorer_output"):
        parts.append(f"{written} written")
    scorer = ", ".join([*parts, counted(spend["scorer"]["calls"], "call")])
    rows = [("scorer", scorer)]
    if by_hand := summary["steps"].get("person"):
        rows.insert(0, ("person", counted(by_hand, "step")))
    if prices != type(prices)():
        rows.append(("cost", f"{summary['cost']:.6g}"))
    rows.append(("seconds", f"{summary['seconds']:.2f}"))
    rows.append(("answer", summary["answer"] if summary["answer"] is not None else "none found"))
    rows.append(("stopped", f"{summary['stopped']}: {WHY.get(summary['stopped'], 'see the notes')}"))
    rows.extend(("note", note) for note in summary["notes"])
    for name, value in rows:
        console.print(Text.assemble((f"{name:<8}", "bold"), printable(value)), soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """Put a number before its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
