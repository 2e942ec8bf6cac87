"""Records of what happened to one question under one policy, and the folder of an evaluation.

`record_of` makes the record of the graph's result. A `Row` is a record with the name of its arm: rows are
written to journals as runs end, and to one Parquet file when all have ended. What a trace holds of a record:
`trim_graph.evaluation.traces`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar
from urllib.parse import quote, unquote

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.budget import Writer
from trim_graph.budget.usage import large_tokens
from trim_graph.errors import GraderError, InputError, SettingsError
from trim_graph.segmentation import Part
from trim_graph.settings import is_number
from trim_graph.storage.journal import to_line
from trim_graph.storage.rows import import_parquet, read_rows

from .graders import FAILED, grade_solution
from .metrics import Interval

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
StepLabels = Callable[[Sequence[str]], Sequence[bool | None]]

TOKENS = (
    "small",
    "large",
    "small_discarded",
    "large_discarded",
    "large_unaccounted",
    "scorer",
    "scorer_output",
)
"""Keys of a record's ``tokens``, as in `trim_graph.state.Summary`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and how to grade an answer.

    Attributes:
        text: What the models are asked.
        grade: Says of the text of a solution whether it is right; None where the answer is unknown.
        grader: Name of the grader, where it has one.
        expected: The right answer, for the record only.
        id: Its name in the dataset.
        label_steps: Says of each step whether it is right given those before it, where that can be checked.
    """

    text: str
    grade: Callable[[str], bool] | None = None
    expected: str | None = None
    id: str = ""
    label_steps: StepLabels | None = None
    grader: str | None = None

    def is_right(self, solution: str, name: str = "") -> bool | None:
        """Grades a solution; None where the answer is unknown.

        Args:
            solution: Its text.
            name: Of the question where it has no id, for the message.

        Raises:
            GraderError: The grader raised, or returned neither True nor False.
        """
        if self.grade is None:
            return None
        return grade_solution(self.grade, solution, grader=self.grader, question=self.id or name)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One run of one question.

    Attributes:
        index: Of the question in the dataset.
        sample: Which of the repeated samples.
        question: Its text and its grader.
    """

    index: int
    sample: int
    question: Question


class DiscardedDraft(TypedDict):
    """A draft of the small model that the large model's step replaced."""

    text: str
    tokens: Count
    score: Probability | None
    label: bool | None
    mean_token_probability: NotRequired[Probability | None]
    lowest_window_probability: NotRequired[Probability | None]


class RecordStep(TypedDict):
    """One accepted step."""

    text: str
    writer: Writer
    tokens: Count
    """0 where uncounted, as in labelled solutions."""
    score: Probability | None
    """The scorer's probability that the step is right given the steps before it."""
    decision: str | None
    """``accept``, ``regenerate`` or ``handover``; None where the policy was not asked about a draft."""
    mean_token_probability: Probability | None
    label: bool | None
    """Whether the step is right given the steps before it: the first False of a solution is its first wrong
    step. None where unknown."""
    discarded: DiscardedDraft | None
    lowest_window_probability: NotRequired[Probability | None]
    """Lowest mean probability of a window of its tokens; absent where the scorer did not ask for it."""
    value: NotRequired[Probability | None]
    """Target that a scorer learns for the step, by a method of `trim_graph.training.step_labels`; only in
    files of labels."""
    part: NotRequired[Part | None]
    """``reasoning`` or ``answer``, where a model thinks; not in traces."""


class PerWriter(TypedDict):
    """A count for each of the two models."""

    small: Count
    large: Count


class Calls(PerWriter):
    """Calls that were answered or have failed with all their attempts."""

    scorer: Count


class Outline(TypedDict):
    """Keys that records and traces have in common."""

    id: str
    """Id of the question in the dataset; its place where it has none."""
    index: Count
    """Place of the question in the dataset, from 0."""
    question: str
    seed: int | None
    """Of the run."""
    correct: bool | None
    """Whether the solution was graded right; None where the answer is unknown. After an error False in a
    record, None in a trace."""
    answer: str | None
    """Content of the last ``\\boxed{}`` of the solution."""
    stopped: str
    """As in `trim_graph.state.Summary`; empty after an error."""
    steps: list[RecordStep]
    tokens: dict[str, Count]
    """``small``, ``large``: in accepted steps; ``small_discarded``, ``large_discarded``: generated besides;
    ``large_unaccounted``: charged for calls whose end is unknown; ``scorer``: read;
    ``scorer_output``: written by a judge, not in rows of earlier releases."""
    error: str | None
    """Type and message of what went wrong, or None. Where a call failed, the tokens of the run are 0: they
    are unknown. Where the grader failed, the rest of the record is there (`failed_in_grader`)."""


AnyOutline = TypeVar("AnyOutline", bound=Outline)


class Record(Outline):
    """Outcome of one question under one policy."""

    sample: Count
    """Which of the repeated samples, from 0."""
    expected: str | None
    """The right answer, for the record."""
    solution: str
    """Empty after an error."""
    notes: list[str]
    """Those of the run."""
    seconds: float
    """Wall clock, waiting for other questions under way included."""
    first_step_seconds: float | None
    """Wall clock until the first step was accepted."""
    large_tokens: Count
    """Tokens that the large model generated, discarded, unaccounted and failed attempts included."""
    prefill: PerWriter
    """Prompt tokens of all calls."""
    cached_prefill: PerWriter
    """The part of the prefill that was served from a cache, where the model reports it."""
    calls: Calls
    cost: float
    """Cost by the price table; 0 where there is none, as ``priced`` of the run's summary says."""


def new_record(item: WorkItem, seed: int | None = None, **known: Any) -> Record:
    """Returns the record of an item with nothing but the given keys known.

    Args:
        item: The question with its place.
        seed: Of the run.
        known: Keys of `Record` and their values.
    """
    question = item.question
    record = Record(
        index=item.index,
        id=question.id or str(item.index),
        sample=item.sample,
        seed=seed,
        question=question.text,
        expected=question.expected,
        correct=None,
        answer=None,
        solution="",
        error=None,
        stopped="",
        notes=[],
        seconds=0.0,
        first_step_seconds=None,
        large_tokens=0,
        tokens=dict.fromkeys(TOKENS, 0),
        prefill=PerWriter(small=0, large=0),
        cached_prefill=PerWriter(small=0, large=0),
        calls=Calls(small=0, large=0, scorer=0),
        cost=0.0,
        steps=[],
    )
    record.update(known)  # type: ignore[typeddict-item]
    return record


def record_of(result: Mapping[str, Any], item: WorkItem, seed: int | None = None, **known: Any) -> Record:
    """Makes the record of a run that has ended; a grader that fails costs no more than the verdict.

    Args:
        result: The graph's state.
        item: The question with its place.
        seed: Of the run.
        known: Further keys, such as ``seconds``.
    """
    summary, solution = result["trim"], str(result["messages"][-1].text)
    usage = summary["usage"]
    small, large = usage["small"], usage["large"]
    record = new_record(
        item,
        seed,
        answer=summary["answer"],
        solution=solution,
        stopped=summary["stopped"],
        notes=list(summary["notes"]),
        large_tokens=large_tokens(usage),
        tokens={key: summary["tokens"][key] for key in TOKENS},
        prefill=PerWriter(small=small["input_tokens"], large=large["input_tokens"]),
        cached_prefill=PerWriter(small=small["cached_tokens"], large=large["cached_tokens"]),
        calls=Calls(small=small["calls"], large=large["calls"], scorer=usage["scorer"]["calls"]),
        cost=summary["cost"] or 0.0,
        steps=_steps(result),
        **known,
    )
    grade_record(record, item.question)
    return record


def grade_record(record: Any, question: Question) -> None:
    """Puts the verdict on its solution into a record; where the grader fails, what it failed with.

    Args:
        record: Of a run that has ended; with the keys ``id``, ``solution``, ``correct`` and ``error``.
        question: Its question.
    """
    try:
        record["correct"], record["error"] = question.is_right(record["solution"], record["id"]), None
    except GraderError as error:
        record["correct"], record["error"] = False, str(error)


def failed_in_grader(record: Mapping[str, Any]) -> bool:
    """Returns whether a run has ended, and then the grader failed: its solution can be graded again."""
    return record["error"] is not None and record["error"].startswith(FAILED)


def _steps(result: Mapping[str, Any]) -> list[RecordStep]:
    """Returns the accepted steps of a run with the score, decision and discarded draft of each."""
    decided = {record["step"]: record for record in result["decisions"]}
    steps: list[RecordStep] = []
    for number, step in enumerate(result["steps"]):
        record = decided.get(number, {})
        draft = record.get("discarded")
        recorded = RecordStep(
            text=step["text"],
            writer=step["writer"],
            tokens=step["tokens"],
            score=result["scores"].get(str(number)),
            decision=record.get("decision"),
            mean_token_probability=step["mean_token_probability"],
            label=None,
            discarded=None if draft is None else _discarded(draft, record["score"]),
            part=step.get("part"),
        )
        if "lowest_window_probability" in step:
            recorded["lowest_window_probability"] = step["lowest_window_probability"]
        steps.append(recorded)
    return steps


def _discarded(draft: Mapping[str, Any], score: float | None) -> DiscardedDraft:
    recorded = DiscardedDraft(
        text=draft["text"],
        tokens=draft["tokens"],
        score=score,
        label=None,
        mean_token_probability=draft["mean_token_probability"],
    )
    if "lowest_window_probability" in draft:
        recorded["lowest_window_probability"] = draft["lowest_window_probability"]
    return recorded


VERSION = 1
SETTINGS, SUMMARY, ROWS, JOURNALS = "settings.json", "summary.json", "rows.parquet", "rows"

ArmKind = Literal["reference", "policy", "sweep", "random", "baseline"]
"""``reference``: one of the models alone; ``random``: random routing at one rate; ``sweep``: one of several
operating points of a policy."""


class Row(Record):
    """A record as a row of an evaluation."""

    arm: str


def row_of(record: Record, arm: str) -> Row:
    """Returns a record as a row of an arm."""
    return Row(arm=arm, **record)


class ArmSettings(TypedDict):
    """Description of an arm."""

    kind: ArmKind
    family: str
    """Arms of one family are points of one curve."""
    policy: dict[str, Any]
    """As a configuration names it, files by their content. An arm that is composed of the outcomes of the
    models alone has the rule of its composition here."""


class EvaluationSettings(TypedDict):
    """Settings with which a run was begun."""

    version: int
    settings: dict[str, Any]
    """Models, scorer, prices, budget, dataset, seed and samples: what makes outcomes comparable."""
    arms: dict[str, ArmSettings]
    """Arms by name, in the order in which they were begun."""


_ROW: TypeAdapter[Row] = TypeAdapter(Row)
_SETTINGS: TypeAdapter[EvaluationSettings] = TypeAdapter(EvaluationSettings)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder that was read.

    Attributes:
        folder: Where it is.
        settings: What it was begun with.
        summary: None while it has not ended, or was begun again and has not.
    """

    folder: Path
    settings: EvaluationSettings
    summary: RunSummary | None

    def rows(self, *arms: str) -> Iterator[Row]:
        """Streams the rows, arm by arm; see `read_rows_of`."""
        return read_rows_of(self.folder, *arms)


def read_run(folder: str | Path) -> Run:
    """Reads a run folder: settings and summary at once, rows as they are asked for.

    Args:
        folder: That ``trim-graph eval --out`` named.

    Raises:
        InputError: It is none, or something in it cannot be read.
    """
    place = Path(folder)
    settings = read_settings(place)
    if settings is None:
        raise InputError(f"{place} is no folder of an evaluation: {SETTINGS} is not there")
    # A run that was begun again has journals: its older summary is not of the rows that are there now.
    ended = (place / SUMMARY).exists() and not any((place / JOURNALS).glob("*.jsonl"))
    summary: RunSummary | None = _json(place / SUMMARY) if ended else None
    return Run(place, settings, summary)


def read_settings(folder: Path) -> EvaluationSettings | None:
    """Returns what a run was begun with; None where it was not.

    Raises:
        InputError: The file is damaged, or of a later version.
    """
    file = folder / SETTINGS
    if not file.exists():
        return None
    values = _json(file)
    if isinstance(values, dict) and values.get("version", VERSION) > VERSION:
        raise InputError(f"{file} is of version {values['version']}; known is {VERSION}: use a later release")
    try:
        return _SETTINGS.validate_python(values)
    except ValidationError as error:
        raise InputError(f"{file} is damaged: {error.errors(include_url=False)[0]['msg']}") from error


def file_name(arm: str) -> str:
    """Returns an arm's name as the name of a file has it."""
    return quote(arm, safe=" +@=,()")


def journal_of(folder: Path, arm: str) -> Path:
    """Returns where the journal of an arm lies."""
    return folder / JOURNALS / f"{file_name(arm)}.jsonl"


def arm_of(journal: Path) -> str:
    """Returns the arm that a journal is of."""
    return unquote(journal.stem)


def read_rows_of(folder: str | Path, *arms: str) -> Iterator[Row]:
    """Streams the rows of a run, arm by arm.

    An arm's journal is read where there is one, in the order in which questions ended, else its rows of
    ``rows.parquet``, in order of question and sample.

    Args:
        folder: Of the run.
        arms: Names; default: all.

    Raises:
        InputError: A row cannot be read; the message names file and line.
        ImportError: Parquet is not installed.
    """
    place = Path(folder)
    journals = {arm_of(file): file for file in sorted((place / JOURNALS).glob("*.jsonl"))}

    def wanted(arm: str) -> bool:
        return not arms or arm in arms

    if (place / ROWS).exists():
        for where, values in _of_parquet(place / ROWS, lambda arm: wanted(arm) and arm not in journals):
            yield parse_row(values, where)
    for arm, file in journals.items():
        if wanted(arm):
            for where, values in read_rows(file, torn=True):
                yield parse_row(values, where)


def parse_row(values: dict[str, Any], place: str) -> Row:
    """Checks one row.

    Args:
        values: As read from a file; keys that a row does not have are left out.
        place: File and line, for the message.

    Raises:
        InputError: It is none.
    """
    try:
        return without_empty_windows(_ROW.validate_python(values, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{place}: not a row of an evaluation: {key}: {first['msg']}") from error


def _of_parquet(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of some arms; no row group holds two arms, and those of others are passed over."""
    parquet = import_parquet()
    import pyarrow  # type: ignore[import-untyped]

    try:
        with parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                arm = opened.metadata.row_group(group).column(0).statistics.min
                if wanted(arm):
                    for number, values in enumerate(opened.read_row_group(group).to_pylist(), 1):
                        yield f"{file}, row {number} of group {group}", values
    except (pyarrow.ArrowException, AttributeError) as error:
        raise InputError(f"{file}: not the rows of an evaluation: {error}") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


SUMMARY_VERSION = 2

CPT_TARGETS = (0.5, 0.8, 0.95)
"""PGRs for which the large tokens needed are computed."""
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the large model's own tokens at which the accuracy within that budget is computed."""


class Metric(TypedDict):
    """A metric and its 95 % interval; None where it is undefined, or there are too few questions for one."""

    value: float | None
    interval: Interval | None


METRICS = {
    "accuracy": "share of right answers",
    "share": "large tokens, as a share of what the large model alone uses",
    "pgr": "performance gap recovered",
    "ibc": "PGR divided by the share",
    "large_tokens": "tokens the large model generated",
    "small_tokens": "tokens the small model generated",
    "discarded_tokens": "tokens of either that are in no accepted step",
    "scorer_tokens": "tokens the scorer read",
    "scorer_output_tokens": "tokens the scorer wrote, if it is a judge",
    "small_prefill": "prompt tokens of the small model",
    "large_prefill": "prompt tokens of the large model",
    "small_cached_prefill": "those of them served from a cache",
    "large_cached_prefill": "those of them served from a cache",
    "small_calls": "calls of the small model",
    "large_calls": "calls of the large model",
    "scorer_calls": "calls of the scorer",
    "cost": "cost by the price table",
    "tokens": "tokens that all models read and wrote",
    "seconds": "mean wall clock",
    "seconds_median": "median wall clock",
    "seconds_p95": "95th percentile of the wall clock",
    "first_step_median": "median wall clock to the first accepted step",
    "first_step_p95": "95th percentile of the wall clock to the first accepted step",
}
"""Keys of `ArmSummary` ``metrics``. All but the first four are per question, means over its samples."""


class MatchedBudget(TypedDict):
    """An arm compared with the curve of a family, at the arm's own spend.

    The curve is accuracy against large tokens: straight lines from the small model alone over the arms of the
    family to the large model alone.
    """

    accuracy: Metric
    """Accuracy of the family's curve at this spend."""
    difference: Metric
    """Accuracy of the arm minus that."""
    curve_ends: float | None
    """The most large tokens a question that the curve reaches, where the arm spends more: nothing is known
    beyond. None where its spend lies on the curve."""


class ArmSummary(TypedDict):
    """Metrics of one arm."""

    arm: str
    label: NotRequired[str]
    """Name that says what its number means. Absent in summaries of earlier releases."""
    kind: ArmKind
    family: str
    policy: dict[str, Any]
    n: int
    """Questions."""
    errors: int
    """Runs that failed: they count as wrong, and as nothing spent."""
    metrics: dict[str, Metric]
    """By the keys `METRICS`."""
    matched_budget: dict[str, MatchedBudget]
    """By family: ``random``, and of a policy the baselines that were run at several shares."""
    differences: dict[str, dict[str, Metric]]
    """This arm minus ``small`` and ``large``, paired by question: by the other's name, then ``accuracy``,
    ``cost``, ``seconds``, ``large_tokens``."""
    savings: NotRequired[dict[str, Metric]]
    """Net savings a question against the large model alone, as that was run: ``tokens`` (of all models, read
    and written), ``large_tokens``, ``cost``, ``seconds``. Absent in summaries of earlier releases."""


_OF_SHARES = {
    "random": "of steps",
    "router": "of tokens",
    "cascade": "of tokens",
    "score_cascade": "of tokens",
    "entropy": "of steps",
    "kind": "of tokens",
}
"""What a share in the name of an arm is of, by family."""


def arm_label(name: str, settings: ArmSettings) -> str:
    """Returns the name of an arm with what its number means: ``random 25 % of steps``.

    Args:
        name: Of the arm.
        settings: What it is.
    """
    if settings["kind"] == "reference":
        return f"{name} alone"
    family, policy = settings["family"], settings["policy"]
    share = name.removeprefix(f"{family}-")
    if settings["kind"] in ("random", "baseline") and family in _OF_SHARES and is_number(share):
        return f"{family.replace('_', ' ')} {100 * float(share):g} % {_OF_SHARES[family]}"
    level = policy.get("t") if policy.get("type") == "threshold" else None
    if isinstance(level, float | int) and name.startswith(("threshold-", "prm-", "judge-")):
        return f"{name.partition('-')[0].removeprefix('threshold')} score < {level:.3g}".lstrip()
    return name


class CurvePoint(TypedDict):
    """A point of a curve."""

    arm: str
    share: float | None
    pgr: float | None


class OverQueryLevel(TypedDict):
    """The Delta IBC of a family beside that of the best query-level baseline, both up to their CPT(95).

    The paper's test: its "5x" is the ratio (arXiv 2601.10245, MATH-500).
    """

    family: str
    """The query-level baseline of the greatest Delta IBC."""
    difference: Metric
    ratio: Metric
    """Unknown where the interval of what it is divided by is not clear of zero."""


class CurveSummary(TypedDict):
    """Curve of the arms of one family (`trim_graph.evaluation.metrics`)."""

    family: str
    points: list[CurvePoint]
    """In order of share."""
    mean_ibc: Metric
    mean_delta_ibc: Metric
    cpt: dict[str, Metric]
    """By the PGR in per cent: ``50``, ``80``, ``95``."""
    delta_ibc: Metric
    """Mean Delta IBC over the shares up to CPT(95)."""
    over_query_level: OverQueryLevel | None
    """Of a family that routes steps; None where no query-level baseline was run."""
    budgeted_accuracy: dict[str, Metric]
    """The accuracy reached within a budget of large tokens, by its share of the large model's own (see
    `BUDGETS`), on the lines that CPT is read off."""


class Verdict(TypedDict):
    """Savings and costs of one arm compared to the large model alone."""

    arm: str
    use: Literal["yes", "no", "undecided"]
    text: str
    saved: Metric
    """Large cost saved a question; by the price table, or in large tokens where it is empty."""
    added: Metric
    """Cost of the small model and the scorer a question; None where there are no prices."""
    net: Metric
    """Saved minus added; None where there are no prices."""
    accuracy: Metric
    """Accuracy minus that of the large model alone."""
    seconds: Metric
    """Wall clock added to that of the large model alone, mean a question."""
    loss_bound: NotRequired[float | None]
    """Upper bound of the loss of accuracy against the large model alone, exact, with a confidence of 95 %;
    None where right answers are not known or questions too few. Absent in summaries of earlier releases."""


class Headline(TypedDict):
    """The verdict of a whole evaluation, in one number and one line."""

    use: Literal["yes", "no", "undecided"]
    arm: str | None
    """The arm that it is about."""
    number: str | None
    """What that arm saves or adds, as a share of what the large model alone spends."""
    text: str
    """One line of at most 80 letters."""


class RunSummary(TypedDict):
    """A whole evaluation."""

    version: int
    dataset: dict[str, Any]
    n: int
    samples: int
    seed: int
    concurrency: int
    priced: bool
    """Whether there was a price table, with all prices of what the arms used; else costs are unknown."""
    models: dict[str, Any]
    """Small, large and scorer as the configuration names them."""
    budgets: dict[str, float]
    """Large tokens a question of each of `BUDGETS`."""
    arms: list[ArmSummary]
    """Small alone and large alone first."""
    curves: list[CurveSummary]
    verdicts: list[Verdict]
    verdict: str
    """In words, of the whole."""
    headline: NotRequired[Headline]
    max_loss: NotRequired[float]
    """Loss of accuracy that was taken as acceptable."""
    command: NotRequired[str]
    """The command that made it. This and the two above are absent in summaries of earlier releases."""
    large_alone: NotRequired[dict[str, float | None]]
    """Fields of `trim_graph.savings.LargeAlone`, as measured: ``large_alone`` of a configuration. Absent in
    summaries of earlier releases."""
    warnings: list[str]


_GROUP = 1024
"""Rows to a row group of Parquet; as many are in memory while one is written or read, and what is kept of
each group until the file is closed grows with their number."""


def check_folder(folder: Path) -> None:
    """Makes the folder of a run where it is not there.

    Args:
        folder: Of the run.

    Raises:
        SettingsError: It cannot be made or written, or holds something else than a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"--out {folder} cannot be written: no permission")
    if any(folder.iterdir()) and not (folder / SETTINGS).exists():
        raise SettingsError(
            f"--out {folder} holds files, and no {SETTINGS} that says they are a run's: choose another folder"
        )


def write_json(file: Path, values: Any) -> None:
    """Writes a JSON file; an older one stays whole until the new one is."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    beside.write_text(text, encoding="utf-8", errors="replace")
    beside.replace(file)


def write_rows(folder: Path, arms: Sequence[str]) -> int:
    """Writes ``rows.parquet`` of the arms' journals, and removes those.

    Rows of an arm that has no journal are taken from the older ``rows.parquet``.

    Args:
        folder: Of the run.
        arms: Names, in the order they are to have.

    Returns:
        How many rows there are.

    Raises:
        InputError: A row cannot be read.
        ImportError: Parquet is not installed.
    """
    parquet, schema = import_parquet(), row_schema()
    import pyarrow

    beside, count = folder / f".{ROWS}.{os.getpid()}", 0
    try:
        with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
            for group in _grouped(folder, arms):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                count += len(group)
        (folder / SUMMARY).unlink(missing_ok=True)  # it is of the rows before these
        beside.replace(folder / ROWS)
    finally:
        beside.unlink(missing_ok=True)
    for arm in arms:
        journal_of(folder, arm).unlink(missing_ok=True)
    return count


def _grouped(folder: Path, arms: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows in groups of one arm each."""
    for arm in arms:
        group = list[dict[str, Any]]()
        file = journal_of(folder, arm)
        for row in in_order(file) if file.exists() else read_rows_of(folder, arm):
            group.append(dict(row))
            if len(group) == _GROUP:
                yield group
                group = []
        if group:
            yield group


def in_order(journal: Path) -> Iterator[Row]:
    """Yields the rows of a journal in order of question and sample; only where each begins is kept in memory.

    A last line that ends in the middle, as a killed writer leaves it, is passed over.

    Raises:
        InputError: A row cannot be read.
    """
    import numpy as np

    places, order = array("q"), array("q")
    with journal.open("rb") as stream:
        place = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            values = _read_place(line, f"{journal}, byte {place}")
            places.append(place)
            order.extend(values)
            place += len(line)
        keys = np.array(order, dtype=np.int64).reshape(-1, 2)
        for number in np.lexsort((keys[:, 1], keys[:, 0])):
            stream.seek(places[number])
            yield parse_row(json.loads(stream.readline()), f"{journal}, byte {places[number]}")


def _read_place(line: bytes, place: str) -> tuple[int, int]:
    """Returns question and sample of a line."""
    try:
        values = json.loads(line)
        return values["index"], values["sample"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{place}: not a row of an evaluation: {error}") from error


def restore_journal(folder: Path, arm: str) -> None:
    """Restores the journal of an arm from ``rows.parquet``, so that the arm can resume.

    Args:
        folder: Of the run.
        arm: Its name.

    Raises:
        InputError: A row cannot be read.
    """
    file = journal_of(folder, arm)
    file.parent.mkdir(exist_ok=True)
    if file.exists() or not (folder / ROWS).exists():
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            for row in read_rows_of(folder, arm):
                stream.write(to_line(row))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def without_empty_windows(read: AnyOutline) -> AnyOutline:
    """Removes each ``lowest_window_probability`` that is None, as Parquet writes an absent one."""
    for step in read["steps"]:
        for one in filter(None, (step, step["discarded"])):
            if one.get("lowest_window_probability") is None:
                one.pop("lowest_window_probability", None)
    return read


def step_columns() -> dict[str, Any]:
    """Returns the columns of a step in a Parquet file, of traces too."""
    import pyarrow as pa

    text, number, flag, real = pa.string(), pa.int64(), pa.bool_(), pa.float64()
    probabilities = {"mean_token_probability": real, "lowest_window_probability": real}
    draft = {"text": text, "tokens": number, "score": real, "label": flag, **probabilities}
    return {
        "text": text,
        "writer": text,
        "tokens": number,
        "score": real,
        "decision": text,
        **probabilities,
        "label": flag,
        "discarded": pa.struct(list(draft.items())),
    }


def row_schema() -> Any:
    """Returns the columns of ``rows.parquet``: those of `Row`."""
    import pyarrow as pa

    text, number, flag, real = pa.string(), pa.int64(), pa.bool_(), pa.float64()
    step = step_columns()
    step |= {"part": text, "discarded": step.pop("discarded")}
    per_writer = [("small", number), ("large", number)]
    return pa.schema(
        {
            "arm": text,
            "index": number,
            "id": text,
            "sample": number,
            "seed": number,
            "question": text,
            "expected": text,
            "correct": flag,
            "answer": text,
            "solution": text,
            "error": text,
            "stopped": text,
            "notes": pa.list_(text),
            "seconds": real,
            "first_step_seconds": real,
            "large_tokens": number,
            "tokens": pa.struct([(key, number) for key in TOKENS]),
            "prefill": pa.struct(per_writer),
            "cached_prefill": pa.struct(per_writer),
            "calls": pa.struct([*per_writer, ("scorer", number)]),
            "cost": real,
            "steps": pa.list_(pa.struct(list(step.items()))),
        }
    )
