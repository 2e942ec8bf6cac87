"""`trim-graph solve`: one problem, step by step."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trim_graph.config import TrimConfig, build_graph
from trim_graph.errors import SettingsError, TrimError
from trim_graph.settings import describe

from .asking import asks, show_question, waiting
from .models import chosen_config, load_parts, parsed_option, readable
from .reporting import Interrupted

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from .transcript import Transcript


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `solve`, as given."""

    problem: str | None = None
    config: Path | None = None
    policy: str | None = None
    threshold: float | None = None
    budget: dict[str, float | int | None] = field(default_factory=dict)
    thread: str | None = None
    resume: bool = False
    answer: str | None = None
    user: str | None = None
    as_json: bool = False

    def overrides(self) -> dict[str, Any]:
        """Return what replaces parts of the configuration.

        Raises:
            SettingsError: Two options contradict each other.
        """
        changes: dict[str, Any] = {}
        if self.policy is not None and self.threshold is not None:
            raise SettingsError("--policy and --threshold both choose the policy: give one of them")
        if self.policy is not None:
            changes["policy"] = parsed_option("--policy", self.policy, "{type: threshold, t: 0.5}")
        if self.threshold is not None:
            changes["policy"] = {"type": "threshold", "t": self.threshold}
        limits = {name: value for name, value in self.budget.items() if value is not None}
        if limits:
            changes["budget"] = limits
        return changes


def run_solve(request: Request) -> None:
    """Solve the problem of a request and print the solution.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    _check(request)
    config = chosen_config(request.config, request.overrides())
    from trim_graph.budget.ledger import open_ledger
    from trim_graph.checkpoint import open_checkpointer
    from trim_graph.thread_claim import claim_thread

    opening = open_checkpointer(config.checkpoint)
    persistent = opening.place.lasts
    if asks(config) and not persistent:
        raise SettingsError(
            f"the configuration has a person asked, but the checkpoint is {config.checkpoint}, and a run "
            "cannot wait there for an answer: put `checkpoint: sqlite:runs.db` into the file of --config"
        )
    if request.thread is not None and not persistent:
        raise SettingsError(
            f"--thread needs a checkpoint that outlives the command, and it is {config.checkpoint}: "
            "put `checkpoint: sqlite:runs.db` into the file of --config"
        )
    question = None if request.resume else readable(request.problem or "", config)
    thread = request.thread or uuid.uuid4().hex[:8]
    claim = claim_thread(opening.place, thread)
    with claim, opening as checkpointer, open_ledger(config.ledger or "memory") as ledger:
        parts = load_parts(config)
        if persistent and request.thread is None:
            print(f"thread {thread}", file=sys.stderr)
        try:
            graph = build_graph(config, checkpointer, parts=parts, ledger=ledger)
            _run(request, config, graph, question, thread)
        except KeyboardInterrupt as error:
            hint = f"; go on with: trim-graph solve --config {request.config} --thread {thread} --resume"
            raise Interrupted(f"interrupted{hint if persistent else ''}") from error
        except ValidationError as error:
            raise SettingsError(f"--answer is not valid: {describe(error)}") from error
        except TrimError:
            raise
        except (ValueError, OSError) as error:  # a problem too long for a model, a server that is gone
            raise TrimError(f"the run failed: {error}") from error


def _check(request: Request) -> None:
    if not request.resume:
        if request.answer is not None:
            raise SettingsError("--answer needs --resume: it answers what the run of --thread has asked")
        if request.problem is None:
            raise SettingsError('a problem is missing: trim-graph solve "PROBLEM"')
        return
    if request.thread is None:
        raise SettingsError("--resume needs --thread: the name of the run to go on with")
    if request.problem is not None:
        raise SettingsError("--resume goes on with the problem of the thread: leave out the problem")
    if request.overrides():
        raise SettingsError("--resume keeps the policy and limits of the run: leave out the options for them")


def _run(request: Request, config: TrimConfig, graph: Any, question: str | None, thread: str) -> None:
    from trim_graph.settings import TrimContext

    from .transcript import Transcript, show_bill

    place: RunnableConfig = {"configurable": {"thread_id": thread}}
    transcript = Transcript(None if request.as_json else _stdout())
    given = _given(request, question)
    if question is None:
        question = _resumed(graph, place, thread, transcript)
    if request.answer is not None and waiting(graph, place) is None:
        raise SettingsError(
            f"the run of thread {thread!r} has asked nothing: leave out --answer to go on with it"
        )
    # Only a saved run can be saved synchronously.
    saving: dict[str, Any] = {} if graph.checkpointer is None else {"durability": "sync"}
    context = TrimContext(user=request.user) if request.user else None
    for event in graph.stream(given, place, context=context, stream_mode="custom", **saving):
        transcript.note(event)
    asked = waiting(graph, place)
    if request.resume and not transcript.summary and not asked:  # only the end itself was missing
        transcript.summary = graph.get_state(place).values["trim"]
    if request.as_json:
        kept = None if graph.checkpointer is None else thread
        record = {"question": question, "thread": kept, **transcript.record()}
        print(json.dumps(record | ({"asked": asked} if asked else {}), indent=1))
    elif asked:
        show_question(_stdout(), asked, f"trim-graph solve --config {request.config} --thread {thread}")
    else:
        show_bill(_stdout(), transcript.summary, config.prices)


def _given(request: Request, question: str | None) -> Any:
    """What the graph is invoked with.

    Raises:
        SettingsError: ``--answer`` is not YAML.
    """
    if request.answer is not None:
        from langgraph.types import Command

        return Command(resume=parsed_option("--answer", request.answer, "{more: {large_tokens: 200}}"))
    return None if question is None else {"messages": [("user", question)]}


def _resumed(graph: Any, place: RunnableConfig, thread: str, transcript: Transcript) -> str:
    """Show what the run has so far, and return its question.

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
    from .console import Console

    return Console()
