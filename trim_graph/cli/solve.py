"""`trim-graph solve`: one problem, step by step."""

from __future__ import annotations

import json
import sys
import uuid
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.text import Text

from trim_graph.adapters.provider_errors import is_of_client
from trim_graph.config import TrimConfig, build_graph
from trim_graph.errors import SettingsError, TrimError, counted
from trim_graph.routing.explain import STOP_REASONS, used_up
from trim_graph.settings import describe

from .common import chosen_config, load_parts, parsed_option, readable
from .options import SolveOptions
from .terminal import Interrupted, visible

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from trim_graph.savings import Savings

    from .common import Console


def run_solve(options: SolveOptions) -> None:
    """Solves one problem and prints the solution.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    _check(options)
    config = chosen_config(options.config, _overrides(options))
    from trim_graph.budget.ledger import open_ledger
    from trim_graph.storage.checkpoint import open_checkpointer
    from trim_graph.storage.thread_lock import lock_thread

    opening = open_checkpointer(config.checkpoint)
    persistent = opening.place.lasts
    if may_ask_human(config) and not persistent:
        raise SettingsError(
            f"the configuration has a human asked, but the checkpoint is {config.checkpoint}, and a run "
            "cannot wait there for an answer: put `checkpoint: sqlite:runs.db` into the file of --config"
        )
    if options.thread is not None and not persistent:
        raise SettingsError(
            f"--thread needs a checkpoint that outlives the command, and it is {config.checkpoint}: "
            "put `checkpoint: sqlite:runs.db` into the file of --config"
        )
    if config.quotas.user is not None and not options.user and not options.resume:
        raise SettingsError("quotas.user is set, but the command does not name its user: add --user NAME")
    question = None if options.resume else readable(options.problem or "", config)
    thread = options.thread or uuid.uuid4().hex[:8]
    lock = lock_thread(opening.place, thread)
    with lock, opening as checkpointer, open_ledger(config.ledger or "memory") as ledger:
        parts = load_parts(config)
        if persistent and options.thread is None:
            print(f"thread {thread}", file=sys.stderr)
        try:
            routed = config.model_copy(update={"shadow": None})  # a shadow is of an application
            graph = build_graph(routed, checkpointer, parts=parts, ledger=ledger)
            _run(options, config, graph, question, thread)
        except KeyboardInterrupt as error:
            hint = f"; resume with: trim-graph solve --config {options.config} --thread {thread} --resume"
            raise Interrupted(f"interrupted{hint if persistent else ''}") from error
        except ValidationError as error:
            raise SettingsError(f"--answer is not valid: {describe(error)}") from error
        except TrimError:
            raise
        except (ValueError, OSError) as error:  # a problem too long for a model, a server that is gone
            if is_of_client(error):
                raise
            raise TrimError(f"the run failed: {error}") from error


def _overrides(options: SolveOptions) -> dict[str, Any]:
    """Returns what replaces parts of the configuration."""
    changes: dict[str, Any] = {}
    if options.policy is not None and options.threshold is not None:
        raise SettingsError("--policy and --threshold both choose the policy: give one of them")
    if options.policy is not None:
        changes["policy"] = parsed_option("--policy", options.policy, "{type: threshold, t: 0.5}")
    if options.threshold is not None:
        changes["policy"] = {"type": "threshold", "t": options.threshold}
    limits = {name: getattr(options, name) for name in ("large_tokens", "large_calls", "seconds")}
    if given := {name: value for name, value in limits.items() if value is not None}:
        changes["budget"] = given
    return changes


def _check(options: SolveOptions) -> None:
    if not options.resume:
        if options.answer is not None:
            raise SettingsError("--answer needs --resume: it answers what the run of --thread has asked")
        if options.problem is None:
            raise SettingsError('a problem is missing: trim-graph solve "PROBLEM"')
        return
    if options.thread is None:
        raise SettingsError("--resume needs --thread: the name of the run to resume")
    if options.problem is not None:
        raise SettingsError("--resume continues the problem of the thread: leave out the problem")
    if _overrides(options):
        raise SettingsError("--resume keeps the policy and limits of the run: leave out the options for them")


def _run(options: SolveOptions, config: TrimConfig, graph: Any, question: str | None, thread: str) -> None:
    from trim_graph.settings import TrimContext

    place: RunnableConfig = {"configurable": {"thread_id": thread}}
    transcript = Transcript(None if options.as_json else _stdout(), explain=options.explain)
    given = _given(options, question)
    if question is None:
        question = _resumed(graph, place, thread, transcript)
    if options.answer is not None and waiting(graph, place) is None:
        raise SettingsError(
            f"the run of thread {thread!r} has asked nothing: leave out --answer to resume it"
        )
    # Only a saved run can be saved synchronously.
    saving: dict[str, Any] = {} if graph.checkpointer is None else {"durability": "sync"}
    context = TrimContext(user=options.user) if options.user else None
    for event in graph.stream(given, place, context=context, stream_mode="custom", **saving):
        transcript.note(event)
    asked = waiting(graph, place)
    if options.resume and not transcript.summary and not asked:  # only the end itself was missing
        transcript.summary = graph.get_state(place).values["trim"]
    if options.as_json:
        kept = None if graph.checkpointer is None else thread
        record = {"question": question, "thread": kept, **transcript.record()}
        print(json.dumps(record | ({"asked": asked} if asked else {}), indent=1))
    elif asked:
        show_question(_stdout(), asked, f"trim-graph solve --config {options.config} --thread {thread}")
    else:
        show_usage(_stdout(), transcript.summary)


def _given(options: SolveOptions, question: str | None) -> Any:
    """Returns the input with which the graph is invoked.

    Raises:
        SettingsError: ``--answer`` is not YAML.
    """
    if options.answer is not None:
        from langgraph.types import Command

        return Command(resume=parsed_option("--answer", options.answer, "{more: {large_tokens: 200}}"))
    return None if question is None else {"messages": [("user", question)]}


def _resumed(graph: Any, place: RunnableConfig, thread: str, transcript: Transcript) -> str:
    """Shows what the run has so far, and returns its question.

    Raises:
        SettingsError: The thread has no unfinished run.
    """
    state = graph.get_state(place)
    # Not `next`: it leaves out a node that has run and whose outcome the next step would take in.
    if not state.tasks:
        if state.values.get("run"):
            raise SettingsError(f"the run of thread {thread!r} has ended: nothing to resume")
        raise SettingsError(
            f"thread {thread!r} has no run in this checkpoint: leave out --resume to begin one"
        )
    run = state.values.get("run")
    if not run:  # interrupted before the first node
        return str(state.values["messages"][-1].text)
    transcript.recall(state.values)
    return str(run["question"])


def _stdout() -> Any:
    from .common import Console

    return Console()


_MORE = {"large_tokens": 200, "large_calls": 5, "large_cost": 0.01}
"""An amount to suggest, by the exhausted limit."""


def may_ask_human(config: TrimConfig) -> bool:
    """Returns whether a configuration has a human asked."""
    return config.budget.on_exhausted == "ask" or config.settings.ask_below is not None


def waiting(graph: Any, place: Any) -> dict[str, Any] | None:
    """Returns the question that the run of a thread asks a human; None where it does not wait."""
    if graph.checkpointer is None:
        return None
    tasks = graph.get_state(place).tasks
    asked: list[dict[str, Any]] = [interrupt.value for task in tasks for interrupt in task.interrupts]
    return asked[0] if asked else None


def show_question(console: Console, asked: dict[str, Any], command: str) -> None:
    """Prints what is asked, and the commands that answer.

    Args:
        console: Where.
        asked: A `trim_graph.routing.human.HumanQuestion`.
        command: Resumes the run, but for the answer.
    """
    from rich.text import Text

    draft, spend = asked["draft"], asked["usage"]["large"]
    why = used_up(asked["limit"]) if asked["limit"] else "the draft has a low score"
    used = f"{counted(spend['calls'], 'call')}, {counted(spend['output_tokens'], 'token')}"
    rows = [("asked", f"{why}; the large model has used {used}")]
    answers = ["{continue_with: small}", "{continue_with: stop}", '{step: "..."}']
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


COLOURS = {"small": "cyan", "large": "magenta", "human": "green"}
_INDENT = " " * 27


class Transcript:
    """Collects the events of a run.

    Args:
        console: Where steps are printed as they are accepted; None prints nothing.
        explain: Whether each step is followed by why it went to its writer.
    """

    def __init__(self, console: Console | None, *, explain: bool = False) -> None:
        self.console, self.explain = console, explain
        self.steps: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._decisions: dict[int, dict[str, Any]] = {}

    def note(self, event: dict[str, Any]) -> None:
        """Takes in one event of ``stream_mode="custom"``."""
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
        """Takes in what a resumed run did before."""
        self._decisions = {record["step"]: record for record in state.get("decisions", [])}
        for index, step in enumerate(state.get("steps", [])):
            self._accepted({**step, "step": index, "score": state.get("scores", {}).get(str(index))})

    def record(self) -> dict[str, Any]:
        """Returns everything, JSON-native."""
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
        if "why" in event:
            step["why"] = event["why"]
        if decision.get("exhausted_limit"):
            step["exhausted_limit"] = decision["exhausted_limit"]
        if discarded:
            step["discarded"] = {
                "text": discarded["text"],
                "tokens": discarded["tokens"],
                "score": decision["score"],
            }
        self.steps.append(step)
        if self.console:
            self._show(self.console, step)

    def _show(self, console: Console, step: dict[str, Any]) -> None:
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
        if "exhausted_limit" in step:
            said = f"{_INDENT}wanted the large model; {used_up(step['exhausted_limit'])}"
            console.print(Text(said, style="yellow"), soft_wrap=True)
        if self.explain and "why" in step:
            console.print(Text(f"{_INDENT}because {printable(step['why'])}", style="dim"), soft_wrap=True)


def printable(text: str) -> str:
    """Shows a model's control characters, and keeps its lines in their column."""
    return visible(text).strip("\n").replace("\n", f"\n{_INDENT}")


def show_usage(console: Console, summary: dict[str, Any]) -> None:
    """Prints what a run has used and why it stopped."""
    if not summary:
        return
    tokens, spend = summary["tokens"], summary["usage"]
    console.print()
    for writer in ("small", "large"):
        parts = [f"{counted(tokens[writer], 'token')} accepted"]
        if writer == "small":
            parts.append(f"{tokens['small_discarded']} discarded")
        elif tokens["large_unaccounted"]:
            parts.append(f"{tokens['large_unaccounted']} charged for calls that reported none")
        if writer == "large" and tokens.get("warming"):
            parts.append(f"{tokens['warming']} to warm its cache")
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
    if by_hand := summary["steps"].get("human"):
        rows.insert(0, ("human", counted(by_hand, "step")))
    if summary["cost"] is not None:
        rows.append(("cost", f"{summary['cost']:.6g}"))
    rows.append(("seconds", f"{summary['seconds']:.2f}"))
    savings: Savings | None = summary.get("savings")
    if savings is not None:
        rows.append(("against", f"the large model alone (estimate): {against_large_alone(savings)}"))
    rows.append(("answer", summary["answer"] if summary["answer"] is not None else "none found"))
    rows.append(("stopped", f"{summary['stopped']}: {STOP_REASONS[summary['stopped']].sentence}"))
    rows.extend(("note", note) for note in summary["notes"])
    for name, value in rows:
        console.print(Text.assemble((f"{name:<8}", "bold"), printable(value)), soft_wrap=True)


def against_large_alone(savings: Savings) -> str:
    """Returns net savings in words: how much less or more the run used; what is unknown is left out."""
    parts = [
        f"{abs(amount):{form}} {less if amount >= 0 else more}"
        for amount, form, less, more in (
            (savings["large_tokens"], ".0f", "fewer large tokens", "more large tokens"),
            (savings["tokens"], ".0f", "fewer tokens in all", "more tokens in all"),
            (savings["cost"], ".4g", "cheaper", "more expensive"),
            (savings["seconds"], ".2f", "s faster", "s slower"),
        )
        if amount is not None
    ]
    return ", ".join(parts) or "unknown"
