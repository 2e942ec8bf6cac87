r"""Labels of an agent's turns from how its runs ended: targets that a scorer of turns learns.

A run of an agent is recorded as the scorer gets it (`AgentRecorder`), a grader of the application rates the
final state, and each turn gets the outcome as its target. Several runs of one task give better targets: the
mean outcome of all runs through the same first turns. That is the Monte Carlo estimate of Math-Shepherd
(arXiv 2312.08935), with whole runs in place of continuations, since an agent's tools may have effects that
cannot be repeated from the middle of a run.

Example:
    ```python
    recorder = AgentRecorder()
    agent = create_agent(small, tools, middleware=[PIIMiddleware("email"), recorder])

    def run(task):
        result = agent.invoke({"messages": [("user", task["question"])]})
        return recorder.record(result, task["grade"], task=task["id"])

    write_labels("labels.jsonl", collect_runs("runs.jsonl", tasks, run, runs_per_task=8))
    ```
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar, cast

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ModelRequest, ModelResponse, PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.runtime import Runtime

from trim_graph.adapters.responses import token_probabilities
from trim_graph.agents import TrimAgentState
from trim_graph.agents.rendering import LONGEST_RESULT, find_turns, with_message_texts
from trim_graph.agents.state import question_text
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.graders import import_grader
from trim_graph.evaluation.records import TOKENS, RecordStep
from trim_graph.evaluation.traces import Trace, read_traces, write_traces
from trim_graph.state import Step
from trim_graph.storage.journal import Journal

__all__ = ["AgentRecorder", "collect_runs", "label_runs", "write_labels"]

GradeRun = Callable[[Mapping[str, Any]], bool | float]
"""Gets the final state of a run, as ``agent.invoke`` returns it; returns whether it is right, or a share."""

Task = TypeVar("Task")
Kept = TypeVar("Kept")

_RUNS_KEPT = 10_000
"""Most runs that a recorder keeps for `AgentRecorder.record`."""


class RecordedState(TrimAgentState):
    """An agent's state with the name of its recording."""

    trim_recording: NotRequired[Annotated[str, PrivateStateAttr]]


@dataclass(slots=True)
class _Recording:
    """Data of one run that the recorder has collected.

    Attributes:
        question: Id of the message that began the run.
        question_text: Its text in the first request; None before.
        shown: By its id, each message that a request contained: None as the state had it, else as another
            middleware rewrote it for the request.
        held: Ids of the messages that the state had at a request.
        written: Turns that models wrote, accepted or not, by the ids of their messages.
        steps: Accepted turns, where `TrimMiddleware` chose among drafts; None without it.
        scores: Their scores, by their index.
    """

    question: str | None
    question_text: str | None = None
    shown: dict[str, BaseMessage | None] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    written: dict[str, Step] = field(default_factory=dict)
    steps: list[Step] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def as_shown(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Returns a conversation as the requests showed it; without messages that were kept from all of them.

        Args:
            messages: The conversation in the final state.
        """
        seen = [one for one in messages if one.id in self.shown or one.id not in self.held]
        return [self.shown.get(one.id or "") or one for one in seen]

    def question_of(self, messages: Sequence[BaseMessage]) -> str:
        """Returns the question's text in a conversation as shown; in the first request if it was removed."""
        found = next((one for one in messages if self.question is not None and one.id == self.question), None)
        return (self.question_text or "") if found is None else str(found.text)

    def turns(self, messages: Sequence[BaseMessage]) -> list[Step]:
        """Returns the turns of the run, without their texts."""
        if self.steps is not None:
            return self.steps
        return [self.written[one.id] for one in messages if one.id is not None and one.id in self.written]


class AgentRecorder(AgentMiddleware[RecordedState, Any, Any]):
    """Records the runs of an agent as a scorer of its turns gets them.

    It belongs directly before `trim_graph.agents.TrimMiddleware` in the list of middlewares, or last without
    that one. There it sees what the models are sent: what other middlewares redact or clear, in the state or
    in a request only, is recorded so, and never as it was before. It changes nothing.

    Args:
        longest_result: Characters of a tool's result in the text of a turn; as in `TrimMiddleware`.
        generator: Name of what wrote the turns, for the label file; default: ``small``, or ``routed`` beside
            `TrimMiddleware`.
    """

    state_schema = RecordedState

    def __init__(self, *, longest_result: int = LONGEST_RESULT, generator: str | None = None) -> None:
        super().__init__()
        if isinstance(longest_result, bool) or longest_result < 1:
            raise SettingsError(f"longest_result is {longest_result!r}: choose a whole number, 1 or more")
        self.longest_result, self.generator = longest_result, generator
        self._lock = threading.Lock()
        self._recordings: OrderedDict[str, _Recording] = OrderedDict()
        self._ended: OrderedDict[str, str] = OrderedDict()
        """Names of ended recordings by the ids of their last messages."""

    def before_agent(self, state: RecordedState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begins a recording."""
        humans = [one for one in state["messages"] if isinstance(one, HumanMessage)]
        name = uuid.uuid4().hex
        self._keep(self._recordings, name, _Recording(humans[-1].id if humans else None))
        return {"trim_recording": name}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Notes what the models are sent, and what they write."""
        recording = self._observe(request)
        response = handler(request)
        self._note_written(recording, response)
        return response

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Does the same as `wrap_model_call`."""
        recording = self._observe(request)
        response = await handler(request)
        self._note_written(recording, response)
        return response

    def after_agent(self, state: RecordedState, runtime: Runtime[Any]) -> None:
        """Ends the recording."""
        recording = self._recordings.get(state.get("trim_recording", ""))
        last = state["messages"][-1].id if state["messages"] else None
        if recording is None or last is None:
            return
        if state.get("trim_run"):
            recording.steps = [one for one in state["trim_steps"] if one.get("message") in recording.written]
            recording.scores = dict(state["trim_scores"])
        self._keep(self._ended, last, state["trim_recording"])

    def record(
        self, result: Mapping[str, Any], grade: GradeRun | str, *, task: str, dataset: str = "agent"
    ) -> Trace:
        """Returns a run that has ended as a row of a label file; each turn's target is the outcome.

        Args:
            result: Final state of the run, as ``agent.invoke`` returns it.
            grade: Rates the final state: True, False, or a share in [0, 1]. A function, or its name as
                ``module:function``.
            task: Id of the task; several runs of one task share targets (`label_runs`).
            dataset: Name of the tasks.

        Raises:
            InputError: The recorder has not seen this run, or the run has no turn, or the grader returns
                something else.
            SettingsError: There is no grader of that name.
        """
        rate = import_grader(grade, "the final state") if isinstance(grade, str) else grade
        last = self._last_message(result)
        outcome = _outcome(rate(result), task)
        with self._lock:
            recording = self._recordings.pop(self._ended.pop(last))
        messages = recording.as_shown(result["messages"])
        turns = recording.turns(messages)
        if not turns:
            raise InputError(f"the run of task {task!r} has no turn of a model, so there is nothing to label")
        steps = with_message_texts(turns, messages, longest_result=self.longest_result)
        is_there = [found is not None for found in find_turns(turns, messages)]
        generator = self.generator or ("small" if recording.steps is None else "routed")
        summary = result.get("trim") or {}
        return Trace(
            id=task,
            index=0,
            dataset=dataset,
            split=None,
            question=recording.question_of(messages),
            policy={"type": "labelled", "method": "outcome", "generator": generator, "outcome": outcome},
            seed=None,
            correct={0.0: False, 1.0: True}.get(outcome),
            answer=None,
            stopped=summary.get("stopped", "finished"),
            steps=[
                _record_step(step, outcome if known else None, recording.scores.get(str(index)))
                for index, (step, known) in enumerate(zip(steps, is_there, strict=True))
            ],
            tokens={**dict.fromkeys(TOKENS, 0), **summary.get("tokens", _tokens(steps))},
            error=None,
        )

    def _keep(self, kept: OrderedDict[str, Kept], name: str, value: Kept) -> None:
        with self._lock:
            kept[name] = value
            while len(kept) > _RUNS_KEPT:
                kept.popitem(last=False)

    def _observe(self, request: ModelRequest[Any]) -> _Recording | None:
        state = cast(RecordedState, request.state)
        recording = self._recordings.get(state.get("trim_recording", ""))
        if recording is None:
            return None
        held = {one.id: one for one in state["messages"] if one.id is not None}
        recording.held |= held.keys()
        if recording.question_text is None:
            recording.question_text = question_text(recording.question, request.messages)
        for message in request.messages:
            if message.id is not None and message.id not in recording.shown:
                recording.shown[message.id] = None if held.get(message.id) == message else message
        return recording

    def _note_written(self, recording: _Recording | None, response: ModelResponse[Any]) -> None:
        for message in response.result if recording is not None else ():
            if isinstance(message, AIMessage):
                assert recording is not None
                message.id = message.id or f"trim-{uuid.uuid4().hex}"
                recording.written[message.id] = _step(message)

    def _last_message(self, result: Mapping[str, Any]) -> str:
        """Returns the id of the message that a recorded run ended with."""
        for message in reversed(result["messages"]):
            if self._ended.get(message.id) in self._recordings:
                return str(message.id)
        raise InputError(
            "this recorder has seen no run that ended with these messages: put it into the agent's list of "
            "middlewares, and record each run once, in the process that ran it"
        )


def collect_runs(
    file: str | Path,
    tasks: Sequence[Task],
    run: Callable[[Task], Trace],
    *,
    runs_per_task: int = 4,
    concurrency: int = 1,
    on_run: Callable[[Trace], None] = lambda trace: None,
) -> list[Trace]:
    """Runs each task several times and records the runs in a file, so that the same call resumes.

    Args:
        file: A ``.jsonl`` file; runs that it holds are not repeated.
        tasks: The tasks, in the same order at each call.
        run: Runs one task once, and returns what `AgentRecorder.record` returns.
        runs_per_task: Runs of each task. More give targets that are less noisy; a later call may add some.
        concurrency: Most runs at the same time, each in a thread.
        on_run: Called after each run, as for a progress bar.

    Returns:
        All runs of the file, in order of the tasks.

    Raises:
        SettingsError: A number is below 1, or the file holds runs of another number of tasks.
        Exception: That of the first run that failed, after those under way; recorded runs are kept.
    """
    for name, number in (("runs_per_task", runs_per_task), ("concurrency", concurrency)):
        if isinstance(number, bool) or number < 1:
            raise SettingsError(f"{name} is {number!r}: choose a whole number, 1 or more")
    path, lock = Path(file), threading.Lock()
    with Journal(path, {"tasks": len(tasks)}) as journal, ExitStack() as ending:
        pool = ending.enter_context(ThreadPoolExecutor(concurrency))
        ending.callback(pool.shutdown, cancel_futures=True)

        def do(unit: int) -> None:
            trace = run(tasks[unit % len(tasks)])
            with lock:
                journal.append({**trace, "index": unit})
                on_run(trace)

        missing = [unit for unit in range(len(tasks) * runs_per_task) if unit not in journal.finished]
        for future in [pool.submit(do, unit) for unit in missing]:
            future.result()
    return sorted(read_traces(path), key=lambda trace: trace["index"] % len(tasks))


def label_runs(runs: Iterable[Trace]) -> list[Trace]:
    """Returns runs with the mean outcome of all runs through the same first turns as each turn's target.

    Args:
        runs: As `AgentRecorder.record` returns them, or from files of them. Runs of one task share its id.

    Raises:
        InputError: A trace is no recorded run.
    """
    found = list(runs)
    outcomes = defaultdict[Any, list[float]](list)
    for run in found:
        if not isinstance(outcome := run["policy"].get("outcome"), int | float):
            raise InputError(
                f"{run['id']}: not a run of an agent with its outcome, as AgentRecorder records it"
            )
        for prefix in _prefixes(run):
            outcomes[prefix].append(outcome)
    index = {task: number for number, task in enumerate(dict.fromkeys(run["id"] for run in found))}
    means = {prefix: math.fsum(those) / len(those) for prefix, those in outcomes.items()}
    return [
        Trace(
            **{
                **run,
                "index": index[run["id"]],
                "steps": [
                    RecordStep(**{**step, "value": None if step.get("value") is None else means[prefix]})
                    for step, prefix in zip(run["steps"], _prefixes(run), strict=True)
                ],
            }
        )
        for run in found
    ]


def write_labels(file: str | Path, runs: Iterable[Trace]) -> int:
    """Writes the label file of runs, for ``trim-graph train scorer``; see `label_runs`.

    Args:
        file: A name that ends in ``.jsonl`` or ``.parquet``.
        runs: The runs.

    Returns:
        Their number.

    Raises:
        InputError: There are none, or one is no recorded run, or the name ends otherwise.
    """
    labelled = label_runs(runs)
    if not labelled:
        raise InputError(f"there are no runs to label, so {file} was not written")
    return write_traces(file, labelled)


def _prefixes(run: Trace) -> list[tuple[Any, ...]]:
    """Returns what the runs through the same first turns share, for each turn.

    Nobody knows what a removed turn was, so no other run shares what follows it.
    """
    key: tuple[Any, ...] = (run["id"], run["question"])
    prefixes = []
    for step in run["steps"]:
        key = (*key, step["text"] if step.get("value") is not None else id(run))
        prefixes.append(key)
    return prefixes


def _outcome(given: Any, task: str) -> float:
    if isinstance(given, bool | int | float) and 0 <= given <= 1:
        return float(given)
    raise InputError(
        f"the grader rated the run of task {task!r} with {given!r}: return True, False, or a number in [0, 1]"
    )


def _step(message: AIMessage) -> Step:
    """Returns a turn without its text."""
    assert message.id is not None
    usage, metadata = message.usage_metadata, message.response_metadata
    return Step(
        text="",
        writer="small",
        model=metadata.get("model_name", ""),
        tokens=usage["output_tokens"] if usage else 0,
        mean_token_probability=token_probabilities(metadata)[0],
        end="delimiter" if message.tool_calls else "eos",
        message=message.id,
    )


def _record_step(step: Step, value: float | None, score: float | None) -> RecordStep:
    assert step["writer"] != "human"
    return RecordStep(
        text=step["text"],
        writer=step["writer"],
        tokens=step["tokens"],
        score=score,
        decision=None,
        mean_token_probability=step["mean_token_probability"],
        label=None,
        discarded=None,
        value=value,
    )


def _tokens(steps: Sequence[Step]) -> dict[str, int]:
    return {"small": sum(step["tokens"] for step in steps)}
