"""Recorded continuations: runs of a graph that begin with given steps, kept in a journal and never repeated.

A rollout is a continuation of no steps. Each continuation is found by question, steps before it, writer and
number of the sample, so that all methods of labelling share what one of them has recorded.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.adapters.provider_errors import error_line
from trim_graph.budget import Writer
from trim_graph.config import for_measuring
from trim_graph.driver import final_state
from trim_graph.errors import GraderError, InputError
from trim_graph.evaluation import Question
from trim_graph.evaluation.records import WorkItem, failed_in_grader, record_of
from trim_graph.evaluation.runner import Models
from trim_graph.policies import Observation, Policy, large_only, small_only
from trim_graph.segmentation import separator_of
from trim_graph.settings import TrimContext
from trim_graph.state import Step
from trim_graph.storage.journal import Journal
from trim_graph.storage.rows import read_rows

_WRITERS: tuple[Writer, ...] = ("small", "large")
START = ""
"""Prefix of a rollout: no steps."""


class ContinuationRequest(NamedTuple):
    """A continuation to be made.

    Attributes:
        question_index: Index of the question in its dataset.
        question: Text and grader.
        steps: Steps before it; none of a rollout.
        prefix: Their digest; see `extended`.
        writer: Model that writes all of it.
        sample: Number among the continuations of the same steps by the same writer, from 0.
        one_step: Whether it ends behind its first step.
    """

    question_index: int
    question: Question
    steps: tuple[Step, ...]
    prefix: str
    writer: Writer
    sample: int
    one_step: bool = False


class Continuation(TypedDict):
    """A recorded continuation."""

    index: int
    """Number of the record in its journal."""
    question: int
    """Index of the question in its dataset."""
    id: str
    """Of the question."""
    prefix: str
    writer: Writer
    sample: int
    one_step: bool
    seed: int | None
    steps: list[Step]
    """Steps that were written."""
    correct: bool | None
    """Whether the whole solution was graded right; None where nobody knows, and of a single step that is not
    the last."""
    answer: str | None
    stopped: str
    tokens: dict[Writer, int]
    """Written by each model."""
    prompt_tokens: dict[Writer, int]
    calls: int
    seconds: float
    error: str | None


class Share(NamedTuple):
    """Counts of the continuations of some steps, in all and right.

    Attributes:
        right: Those that end right.
        n: All.
    """

    right: int
    n: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.n


def extended(prefix: str, step: Step, delimiter: str) -> str:
    """Returns the digest of a prefix with one more step.

    Args:
        prefix: Digest of the steps before it; `START` of none.
        step: The next step.
        delimiter: The delimiter of the settings.
    """
    digest = hashlib.sha256(prefix.encode())
    for part in (step["text"], separator_of(step, delimiter)):
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:16]


def prefixes(steps: Sequence[Step], delimiter: str, begin: str = START) -> list[str]:
    """Returns the digests of the steps up to each one, the empty prefix first: one more than steps."""
    found = [begin]
    for step in steps:
        found.append(extended(found[-1], step, delimiter))
    return found


class ContinueSolutions:
    """The task of making continuations (`trim_graph.evaluation.runner.Task`).

    Args:
        seed: Of sample 0, each further sample adds 1; for policies and graders that draw. A model draws by
            its own seed, or anew each time where it has none.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, models: Models) -> Callable[[ContinuationRequest], Awaitable[Continuation]]:
        """Builds the graph of each writer; a continuation that fails has a record that says why."""
        from trim_graph.graph import create_trim_graph

        # No budget and no fallback: either would let another model write, or end a solution early.
        settings = {**for_measuring(models.config).settings.model_dump(), "on_small_error": "raise"}
        policies: dict[tuple[Writer, bool], Policy] = {
            ("small", False): small_only(),
            ("small", True): small_only(),
            ("large", False): large_only(),
            ("large", True): _StepByStep(),
        }
        graphs = {
            key: create_trim_graph(models.parts.small, models.parts.large, policy=policy, **settings)
            for key, policy in policies.items()
        }
        return partial(_continue, graphs, self.seed)


class _StepByStep(Policy):
    """The large model writes each step in a call of its own."""

    needs_score = False
    decides = False

    def next_writer(self, observation: Observation) -> str:
        return "large"


async def _continue(
    graphs: Mapping[tuple[Writer, bool], Any], seed: int, request: ContinuationRequest
) -> Continuation:
    begun, own_seed = time.monotonic(), seed + request.sample
    record = Continuation(
        index=-1,
        question=request.question_index,
        id=request.question.id or str(request.question_index),
        prefix=request.prefix,
        writer=request.writer,
        sample=request.sample,
        one_step=request.one_step,
        seed=own_seed,
        steps=[],
        correct=None,
        answer=None,
        stopped="",
        tokens={"small": 0, "large": 0},
        prompt_tokens={"small": 0, "large": 0},
        calls=0,
        seconds=0.0,
        error=None,
    )
    given = [Step(**step) for step in request.steps]
    context = TrimContext(
        seed=own_seed,
        steps=given or None,
        max_steps=len(given) + 1 if request.one_step else None,
    )
    try:
        graph = graphs[request.writer, request.one_step]
        result = await final_state(graph, [("user", request.question.text)], context=context)
        whole = record_of(result, WorkItem(request.question_index, request.sample, request.question))
        assert result["trim"] is not None
        if failed_in_grader(whole):
            raise GraderError(str(whole["error"]))
        usage = result["trim"]["usage"]
        record["steps"] = list(result["steps"][len(given) :])
        record["answer"], record["stopped"] = whole["answer"], whole["stopped"]
        if not request.one_step or whole["stopped"] == "finished":
            record["correct"] = whole["correct"]
        for writer in _WRITERS:
            record["tokens"][writer] = usage[writer]["output_tokens"]
            record["prompt_tokens"][writer] = usage[writer]["input_tokens"]
        record["calls"] = usage["small"]["calls"] + usage["large"]["calls"]
    except Exception as error:
        record["error"] = error_line(error)
    record["seconds"] = time.monotonic() - begun
    return record


_CONTINUATION: TypeAdapter[Continuation] = TypeAdapter(Continuation)


Recorded = TypeVar("Recorded")


def open_journal(
    path: Path,
    settings: dict[str, Any],
    shape: TypeAdapter[Recorded],
    note: Callable[[Recorded], None],
    *,
    name: str,
    retry_errors: bool,
) -> Journal:
    """Opens a journal and reads what it holds.

    Args:
        path: Path of the journal, created if it is missing.
        settings: What its records must have in common, JSON-native.
        shape: Shape of a record, which has a key ``error``.
        note: Receives each record.
        name: Name of a record, for errors.
        retry_errors: Whether to drop records of failures, so that the work is done again.

    Raises:
        SettingsError: The journal was begun with other settings, or another process writes to it.
        InputError: A record has another shape; the message names file, line and key.
    """
    journal = Journal(path, settings, keep=lambda record: not retry_errors or record.get("error") is None)
    try:
        for place, values in read_rows(path):
            try:
                note(shape.validate_python(values))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = ".".join(map(str, first["loc"]))
                raise InputError(f"{place}: no {name}: {key}: {first['msg']}") from error
    except BaseException:
        journal.close()
        raise
    return journal


class Continuations:
    """The continuations of a journal, open for more; use it as a context manager.

    Args:
        path: Path of the journal, created if it is missing. Its folder must exist.
        settings: What continuations must have in common: models, settings and dataset, JSON-native.
        delimiter: The delimiter of the settings.
        retry_errors: Whether to drop those that failed, so that they are made again.

    Attributes:
        records: All of them, in the order in which they were recorded.
        failed: The last error of each question that has one, by its index.

    Raises:
        SettingsError: The journal was begun with other settings, or another process writes to it.
        InputError: A record in it is no continuation.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], *, delimiter: str, retry_errors: bool = False
    ) -> None:
        self.delimiter = delimiter
        self.records: list[Continuation] = []
        self.failed: dict[int, str] = {}
        self._right: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
        self._made: dict[tuple[int, str, Writer, bool], dict[int, Continuation]] = defaultdict(dict)
        self._next = 0

        self.journal = open_journal(
            path, settings, _CONTINUATION, self._note, name="continuation", retry_errors=retry_errors
        )

    def keep(self, record: Continuation) -> None:
        """Records a new continuation; gives it its number."""
        record["index"] = self._next
        self.journal.append(dict(record))
        self._note(record)

    def share(self, question: int, prefix: str) -> Share:
        """Returns how many of the small model's continuations of a prefix end right.

        What a rollout or another continuation has written behind the prefix counts as one of them: it was
        drawn from the same model after the same steps.
        """
        return Share(*self._right.get((question, prefix), (0, 0)))

    def made(
        self, question: int, prefix: str, writer: Writer, *, one_step: bool = False
    ) -> list[Continuation]:
        """Returns the continuations of exactly this prefix by a writer, by sample."""
        known = self._made.get((question, prefix, writer, one_step), {})
        return [known[sample] for sample in sorted(known)]

    def missing(
        self, question: int, prefix: str, writer: Writer, wanted: int, *, one_step: bool = False
    ) -> Sequence[int]:
        """Returns the samples below ``wanted`` that nobody has recorded."""
        known = self._made.get((question, prefix, writer, one_step), {})
        return [sample for sample in range(wanted) if sample not in known]

    def further(self, question: int, prefix: str, count: int) -> Sequence[int]:
        """Returns the numbers of so many more samples of the small model."""
        begin = 1 + max(self._made.get((question, prefix, "small", False), {}), default=-1)
        return range(begin, begin + count)

    def _note(self, record: Continuation) -> None:
        self.records.append(record)
        self._next = max(self._next, record["index"] + 1)
        question = record["question"]
        key = (question, record["prefix"], record["writer"], record["one_step"])
        self._made[key][record["sample"]] = record
        if record["error"] is not None:
            self.failed[question] = record["error"]
            return
        if record["writer"] == "small" and not record["one_step"]:
            for prefix in prefixes(record["steps"], self.delimiter, record["prefix"])[:-1]:
                counts = self._right[question, prefix]
                counts[0] += bool(record["correct"])
                counts[1] += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
