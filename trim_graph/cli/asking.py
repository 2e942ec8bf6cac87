"""A run that waits for a person, on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .transcript import counted, printable

if TYPE_CHECKING:
    from trim_graph.config import TrimConfig

    from .console import Console


_MORE = {"large_tokens": 200, "large_calls": 5, "large_cost": 0.01}
"""An amount to suggest, by the limit that is spent."""


def asks(config: TrimConfig) -> bool:
    """Tell whether a configuration has a person asked."""
    return config.budget.on_exhausted == "ask" or config.settings.ask_below is not None


def waiting(graph: Any, place: Any) -> dict[str, Any] | None:
    """What the run of a thread asks a person; None where it does not wait."""
    if graph.checkpointer is None:
        return None
    tasks = graph.get_state(place).tasks
    asked: list[dict[str, Any]] = [interrupt.value for task in tasks for interrupt in task.interrupts]
    return asked[0] if asked else None


def show_question(console: Console, asked: dict[str, Any], command: str) -> None:
    """Print what is asked, and the commands that answer.

    Args:
        console: Where.
        asked: A `trim_graph.routing.human.PersonQuestion`.
        command: Resumes the run, but for the answer.
    """
    from rich.text import Text

    draft, spend = asked["draft"], asked["spend"]["large"]
    why = f"the limit on {asked['limit']} is spent" if asked["limit"] else "the draft has a low score"
    used = f"{counted(spend['calls'], 'call')}, {counted(spend['output_tokens'], 'token')}"
    rows = [("asked", f"{why}; the large model has used {used}")]
    answers = ["{go_on: small}", "{go_on: stop}", '{step: "..."}']
    limit = (asked["limit"] or "").partition(" ")[0]
    if limit in _MORE:
        answers.insert(0, f"{{more: {{{limit}: {_MORE[limit]}}}}}")
    if draft is not None:
        score = "not scored" if draft["score"] is None else f"score {draft['score']:.2f}"
        rows.append(("draft", f"({score}) {printable(draft['text'])}"))
        answers.append("{decision: regenerate}")
    rows.append(("answer", f"{command} --resume --answer '{answers[0]}'"))
    rows.extend(("or", answer) for answer in answers[1:])
    console.print()
    for name, value in rows:
        console.print(Text.assemble((f"{name:<8}", "bold"), value), soft_wrap=True)
