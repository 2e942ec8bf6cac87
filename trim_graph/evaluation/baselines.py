"""Baselines of a policy, on the same models through the same adapters, and the runs that fit them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import TypedDict

from trim_graph.adapters.base import as_scorer, read_scores, scorable_step
from trim_graph.budget import Prices
from trim_graph.errors import InputError, SettingsError, TrimError
from trim_graph.policies.baselines import step_type_of
from trim_graph.policies.files import save_policy
from trim_graph.storage.journal import Journal, replace_journal, to_line
from trim_graph.storage.rows import read_rows

from .arms import Arm
from .comparison import LARGE, SMALL
from .datasets import Dataset, first_questions, grader_of
from .experiment import ExperimentRunner, WorkItems, regraded, unit_of
from .forecast import Kind, PlannedRuns
from .query_router import read_examples, train_query_router
from .records import (
    ArmSettings,
    Calls,
    PerWriter,
    Record,
    Row,
    WorkItem,
    failed_in_grader,
    in_order,
    journal_of,
    read_rows_of,
    write_json,
)
from .runner import Models, RunQuestions, run_each, run_question
from .scorer_metrics import compiled_pattern
from .traces import Source, Trace, read_traces, trace_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Signal = Callable[[Row], float]
"""Maps the small model's row of a question to a number: the higher, the sooner the large model is asked."""


def pairs(folder: Path, n: int, samples: int) -> Iterator[tuple[Row, Row]]:
    """Yields the rows of the small and of the large model alone, question by question."""

    def wanted(arm: str) -> Iterator[Row]:
        journal = journal_of(folder, arm)
        rows = in_order(journal) if journal.exists() else read_rows_of(folder, arm)
        return (row for row in rows if row["index"] < n and row["sample"] < samples)

    return zip(wanted(SMALL), wanted(LARGE), strict=True)


def uncertainty(row: Row) -> float:
    """Returns 1 minus the mean probability of the tokens of the small model's answer.

    Raises:
        InputError: The model reports no probabilities.
    """
    steps = [(step["tokens"], step["mean_token_probability"]) for step in row["steps"]]
    known = [(tokens, probability) for tokens, probability in steps if probability is not None]
    if not known and row["error"] is None:
        raise InputError(
            "the small model does not report the probabilities of its tokens: a cascade by confidence needs "
            "them (logprobs: true)"
        )
    tokens = sum(tokens for tokens, _ in known)
    return 1 - sum(t * p for t, p in known) / tokens if tokens else 1.0


def read_signals(
    rows: Iterable[tuple[Row, Row]], signal: Signal
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reads the signal of each run, and the large tokens that asking the large model costs."""
    import numpy as np

    table = np.array([(signal(small), large["large_tokens"]) for small, large in rows], dtype=float)
    return table[:, 0], table[:, 1]


def limit_for(signals: NDArray[np.float64], tokens: NDArray[np.float64], target: float) -> float:
    """Returns the limit above which questions go to the large model so that the spend is nearest to this one.

    Args:
        signals: Of each run.
        tokens: Large tokens that each would cost.
        target: Large tokens wanted, mean a run.
    """
    import numpy as np

    values, places = np.unique(signals, return_inverse=True)
    costs = np.bincount(places, weights=tokens) / len(tokens)
    # spends[k]: where the k lowest values stay with the small model.
    spends = np.concatenate([costs[::-1].cumsum()[::-1], [0.0]])
    kept = int(np.argmin(np.abs(spends - target)))
    if kept == 0:
        return float(np.nextafter(values[0], -np.inf))
    return float(values[kept - 1])


def write_query_level_arm(
    folder: Path, arm: str, rows: Iterable[tuple[Row, Row]], signal: Signal, limit: float, *, both: bool
) -> None:
    """Writes the journal of an arm that is put together.

    Args:
        folder: Of the run.
        arm: Its name.
        rows: From `pairs`.
        signal: Of the small model's row.
        limit: Above it the large model answers.
        both: Whether the small model has been asked first all the same.
    """
    file = journal_of(folder, arm)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            for small, large in rows:
                chosen = small if signal(small) <= limit else _after(small, large) if both else large
                stream.write(to_line({**chosen, "arm": arm}))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _after(small: Row, large: Row) -> Row:
    """Returns the large model's row, with the small model's answer thrown away before it."""
    if small["error"] is not None:
        return Row(**{**large, "seconds": small["seconds"] + large["seconds"]})
    first = large["first_step_seconds"]
    thrown = small["tokens"]["small"] + small["tokens"]["small_discarded"]

    def total(key: str) -> PerWriter:
        return PerWriter(
            small=small[key]["small"],  # type: ignore[literal-required]
            large=large[key]["large"],  # type: ignore[literal-required]
        )

    changed = {
        "notes": [*large["notes"], "the small model's whole answer was thrown away"],
        "seconds": small["seconds"] + large["seconds"],
        "first_step_seconds": None if first is None else small["seconds"] + first,
        "tokens": {
            **large["tokens"],
            "small_discarded": thrown,
            **{
                name: small["tokens"].get(name, 0) + large["tokens"].get(name, 0)
                for name in ("scorer", "scorer_output")
            },
        },
        "prefill": total("prefill"),
        "cached_prefill": total("cached_prefill"),
        "calls": Calls(
            small=small["calls"]["small"], large=large["calls"]["large"], scorer=small["calls"]["scorer"]
        ),
        "cost": small["cost"] + large["cost"],
    }
    return Row(**{**large, **changed})  # type: ignore[typeddict-item]


OPERATIONS = r"\d ([-+*/]|mod) \d|\b(larger|smaller)\b|(boxed)"
"""Types of steps in the arithmetic world: its operations."""
MATHEMATICS = r"(\\boxed|\\[dt]?frac|\\sqrt|\\times|\\cdot|\\binom|\^|[*/=])"
"""Types of steps elsewhere: what comes first of the marks that mathematical text has."""


def step_pattern(datasets: Iterable[str]) -> str:
    """Returns the expression that finds the kind of a step in solutions of these datasets."""
    named = set(datasets)
    return OPERATIONS if named and all(name.startswith("arithmetic") for name in named) else MATHEMATICS


class StepType(NamedTuple):
    """Drafts of one type of step.

    Attributes:
        kind: As `by_pattern` names it; None: drafts without a match.
        tokens: Of all of them.
        wrong: Share of them that are wrong, by labels, else by scores.
        drafts: How many there are.
    """

    kind: str | None
    tokens: int
    wrong: float
    drafts: int


def fit_step_types(traces: Iterable[Trace], pattern: str) -> list[StepType]:
    """Counts how often the small model's steps are wrong, by type of step.

    Args:
        traces: Of runs in which the small model writes; each step labelled or scored.
        pattern: See `trim_graph.policies.by_pattern`.

    Returns:
        The types, the most often wrong first.

    Raises:
        SettingsError: The expression cannot be read.
        InputError: No step is labelled or scored.
    """
    expression = compiled_pattern(pattern)
    found: dict[str | None, list[tuple[int, float]]] = {}
    for trace in traces:
        for step in trace["steps"]:
            if step["writer"] == "small":
                wrong = _wrong(step)
                if wrong is not None:
                    kind = step_type_of(expression, step["text"])
                    found.setdefault(kind, []).append((step["tokens"], wrong))
    if not found:
        raise InputError("no step of the small model in the validation traces is labelled or scored")
    kinds = [
        StepType(kind, sum(t for t, _ in drafts), sum(w for _, w in drafts) / len(drafts), len(drafts))
        for kind, drafts in found.items()
    ]
    return sorted(kinds, key=lambda one: (-one.wrong, one.kind or ""))


def _wrong(step: Any) -> float | None:
    if step["label"] is not None:
        return float(not step["label"])
    return None if step["score"] is None else 1 - step["score"]


def policy_of_step_types(kinds: Sequence[StepType], pattern: str, part: float) -> dict[str, Any]:
    """Returns the policy that has this part of the small model's tokens written again, the worst types first.

    Args:
        kinds: From `fit_step_types`.
        pattern: Theirs.
        part: In [0, 1].

    Returns:
        As a configuration names it.
    """
    whole = sum(kind.tokens for kind in kinds)
    left, rates = part * whole, dict[str | None, float]()
    for kind in kinds:
        rate = min(1.0, max(0.0, left / kind.tokens)) if kind.tokens else 0.0
        left -= rate * kind.tokens
        rates[kind.kind] = round(rate, 4)
    default = rates.pop(None, 0.0)
    return {"type": "by_pattern", "pattern": pattern, "rates": rates, "default": default}


PILOT = 50
"""Questions that are probed."""
NAME, FILE = "pilot.jsonl", "entropies.json"
_POLICY = {"type": "entropy_probe", "limit": 1e9}


class Probed(TypedDict):
    """Entropies that the probes of a question found."""

    index: int
    entropies: list[float]
    error: str | None


@dataclass(frozen=True, slots=True)
class EntropyPilot:
    """The task of probing each step of the small model (`trim_graph.evaluation.runner.Task`).

    Attributes:
        seed: Of the graph.
    """

    seed: int

    def setup(self, models: Models) -> Callable[[WorkItem], Awaitable[Probed]]:
        """Builds the graph; its answers are not looked at."""
        graph = models.graph(_POLICY, fresh=True)

        async def work(item: WorkItem) -> Probed:
            found = list[float]()

            def note(event: dict[str, Any]) -> None:
                if event.get("event") == "probe" and event.get("entropy") is not None:
                    found.append(float(event["entropy"]))

            record = await run_question(graph, item, seed=self.seed, on_event=note)
            return Probed(index=item.index, entropies=found, error=record["error"])

        return work


async def run_entropy_pilot(runner: ExperimentRunner) -> list[float]:
    """Probes each step of the small model on a few questions, or reads what an earlier run found.

    Raises:
        InputError: The model reports no entropy.
    """
    run_config, file = runner.run_config, runner.folder / FILE
    if file.exists():
        return list(json.loads(file.read_bytes())["entropies"])
    path = runner.folder / NAME
    items = WorkItems(run_config.dataset, min(run_config.n, PILOT))
    with Journal(path, {**run_config.settings, "pilot": _POLICY}) as journal:
        if await runner.begin("entropies", journal, items):
            await run_each(
                await runner.executor.setup(EntropyPilot(run_config.seed)),
                items.unfinished(journal.finished),
                concurrency=run_config.concurrency,
                on_result=lambda probed: journal.append(dict(probed)),
            )
    entropies, failed = _read_entropies(path)
    path.unlink()
    if not entropies:
        why = failed or "it reports none"
        raise InputError(f"the small model must report the entropy of its first token: {why}")
    write_json(file, {"questions": items.n, "entropies": entropies})
    return entropies


def _read_entropies(path: Path) -> tuple[list[float], str | None]:
    """Reads all entropies in order of size, and the first error."""
    records = [record for _, record in read_rows(path)]
    failed = next((record["error"] for record in records if record["error"]), None)
    return sorted(entropy for record in records for entropy in record["entropies"]), failed


SCORES = "scores.jsonl"


class Scored(TypedDict):
    """Scores of the steps of a solution, and what they took."""

    index: int
    sample: int
    scores: list[float]
    tokens: int
    output_tokens: int
    seconds: float


class ScoreSolutions:
    """The task of scoring whole solutions, each in one call (`trim_graph.evaluation.runner.Task`)."""

    def setup(self, models: Models) -> Callable[[Row], Awaitable[Scored]]:
        """Returns the scoring of one row. An error of the scorer raises."""
        scorer = as_scorer(models.parts.scorer)

        async def work(row: Row) -> Scored:
            begun = time.monotonic()
            reply = read_scores(
                await scorer.ascore(row["question"], [scorable_step(step) for step in row["steps"]]),
                len(row["steps"]),
            )
            return Scored(
                index=row["index"],
                sample=row["sample"],
                scores=list(reply.scores),
                tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                seconds=time.monotonic() - begun,
            )

        return work


async def score_solutions(runner: ExperimentRunner) -> dict[tuple[int, int], Scored]:
    """Scores the solutions of the small model alone, or reads what an earlier run found.

    Returns:
        By question and sample; a run that failed or wrote no step has no scores.
    """
    run_config = runner.run_config
    samples = run_config.samples
    found = dict[tuple[int, int], Scored]()

    def keep(scored: Scored) -> None:
        found[scored["index"], scored["sample"]] = scored

    def add(scored: Scored) -> None:
        journal.append(dict(scored))
        keep(scored)

    file = runner.folder / SCORES
    with Journal(
        file, run_config.settings, unit=lambda one: unit_of(one["index"], one["sample"], samples)
    ) as journal:
        for _, record in read_rows(file):
            keep(Scored(**record))  # type: ignore[typeddict-item]
        rows = [small for small, _ in pairs(runner.folder, run_config.n, samples)]
        left = [row for row in rows if row["steps"] and (row["index"], row["sample"]) not in found]
        runner.on_begin("scores of the small model's solutions", len(rows), len(rows) - len(left))
        if left:
            work = await runner.executor.setup(ScoreSolutions())
            await run_each(work, left, concurrency=run_config.concurrency, on_result=add)
    for row in rows:
        index, sample = row["index"], row["sample"]
        nothing = Scored(index=index, sample=sample, scores=[], tokens=0, output_tokens=0, seconds=0.0)
        found.setdefault((index, sample), nothing)
    return found


def _with_scores(row: Row, scored: Scored, prices: Prices) -> Row:
    """Returns the small model's row with the scores of its steps, and what they cost."""
    tokens, written = scored["tokens"], scored["output_tokens"]
    steps = [{**step, "score": score} for step, score in zip(row["steps"], scored["scores"], strict=True)]
    changed = {
        "steps": steps,
        "tokens": {**row["tokens"], "scorer": tokens, "scorer_output": written},
        "calls": Calls(**{**row["calls"], "scorer": int(bool(scored["scores"]))}),
        "cost": row["cost"] + (prices.scorer_cost(tokens, written) or 0.0),
        "seconds": row["seconds"] + scored["seconds"],
    }
    return Row(**{**row, **changed})  # type: ignore[typeddict-item]


def least_score(row: Row) -> float:
    """Returns 1 minus the least score of a step: one wrong step makes the answer wrong."""
    return 1 - min((step["score"] or 0.0 for step in row["steps"]), default=0.0)


FOLDER = "validation"


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation questions and where their traces are kept.

    Attributes:
        runner: Of the evaluation.
        dataset: The questions; not those of the evaluation.
        n: How many.
        on_record: Called with each record.
        rated: Whether steps that the dataset cannot label are scored, which ``kind`` needs.
    """

    runner: ExperimentRunner
    dataset: Dataset
    n: int
    on_record: Callable[[Record], None]
    rated: bool = False

    async def run(self, writer: str) -> Path:
        """Runs what is left of a model alone; steps are labelled where the dataset can.

        With ``rated`` those of the small model are else scored, and it runs again what has no scores.

        Args:
            writer: ``small`` or ``large``.

        Returns:
            The file of traces.

        Raises:
            TrimError: A question failed.
        """
        runner = self.runner
        file, policy = self._file(writer), {"type": f"{writer}_only"}
        file.parent.mkdir(exist_ok=True)

        def keep(record: Record) -> None:
            if record["error"] is None or failed_in_grader(record):
                journal.append({**trace_of(record, source), "solution": record["solution"]})
            if record["error"] is not None:
                raise TrimError(f"a validation question failed: {record['error']}")
            self.on_record(record)

        labelled = all(one.label_steps for one in first_questions(self.dataset, 1, default=1))
        rated = self.rated and writer == "small" and not labelled

        def serves(trace: dict[str, Any]) -> bool:
            scored = all(step["score"] is not None for step in trace["steps"])
            return trace["error"] is None and (scored or not rated)

        with Journal(file, self._settings(policy), keep=serves) as journal:
            source = Source(self.dataset.name, "validation", policy)
            task = RunQuestions(policy, runner.run_config.seed, rated=rated, label_steps=True)
            items = WorkItems(self.dataset, self.n)
            if await runner.begin(f"validation, {writer}", journal, items):
                work, left = await runner.executor.setup(task), items.unfinished(journal.finished)
                await run_each(work, left, concurrency=runner.run_config.concurrency, on_result=keep)
        return file

    def regrade(self) -> None:
        """Grades the solutions that are there again.

        Raises:
            GraderError: The grader failed.
            InputError: They are of an earlier release, which kept steps and no solutions.
        """
        for writer in (SMALL, LARGE):
            if not (file := self._file(writer)).exists():
                continue
            traces = sorted((trace for _, trace in read_rows(file, torn=True)), key=lambda one: one["index"])
            if any("solution" not in trace for trace in traces):
                raise InputError(
                    f"{file} is of an earlier release and holds no solutions to grade: remove it, and its "
                    "questions are run again"
                )
            settings = self._settings({"type": f"{writer}_only"})
            replace_journal(file, settings, regraded(traces, self.dataset))

    def _file(self, writer: str) -> Path:
        return self.runner.folder / FOLDER / f"{writer}.jsonl"

    def _settings(self, policy: dict[str, Any]) -> dict[str, Any]:
        grader = grader_of(self.dataset)
        return {
            **self.runner.run_config.settings,
            "validation": self.dataset.identity() | ({"graded_by": grader} if grader else {}),
            "policy": policy,
        }


def keep_when_regraded(runner: ExperimentRunner) -> None:
    """Keeps entropies and scores, which no verdict enters, where a folder's solutions are graded again."""
    settings = runner.run_config.settings
    for name, more in ((SCORES, {}), (NAME, {"pilot": _POLICY})):
        if (file := runner.folder / name).exists():
            rows = (row for _, row in read_rows(file, torn=True))
            replace_journal(file, {**settings, **more}, rows)


BASELINES = {
    "router": "a trained classifier gives whole questions to one model; needs validation questions",
    "cascade": "the large model answers where the small one's whole answer has improbable tokens",
    "score_cascade": "the large model answers where a step of the small one's whole answer has a low score",
    "prm": "a draft stays at a score of 0.7 and more (reward-guided speculative decoding)",
    "judge": "a draft stays at 7 of 9 of a judge (speculative reasoning); needs a judge",
    "entropy": "the entropy of a step's first token says who writes it",
    "kind": "the kind of step alone decides; needs validation questions",
}
FREE = ("cascade",)
"""Baselines that call no model: they are put together of the answers of the models alone."""
SHARES = (0.25, 0.5, 0.75)
"""Points of the curve of a baseline that has a number to choose."""
PRM_LEVEL = 0.7
"""ArXiv 2501.19324: reward-guided speculative decoding accepts steps of this reward and more."""
DIGITS = 4
"""Digits of a share of questions, as it is written down."""
JUDGE_LEVEL = 7 / 9
"""ArXiv 2504.07891: speculative reasoning accepts steps rated 7 of 9 and more."""


def count_fitting_runs(folder: Path) -> dict[str, int]:
    """Counts what is done of the runs that fit baselines, by the names of `planned_runs`."""
    files = {f"{FOLDER}/{writer}": f"{FOLDER}/{writer}.jsonl" for writer in (SMALL, LARGE)}
    files |= {"scores": SCORES, "pilot": NAME}
    counts = {name: _lines(folder / file) for name, file in files.items()}
    return {**counts, "pilot": PILOT} if (folder / FILE).exists() else counts


def _lines(file: Path) -> int:
    """Returns how many lines a file has; 0 where it is not there."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


def planned_runs(
    names: Sequence[str],
    *,
    n: int,
    samples: int,
    validation_n: int,
    scorer_type: str | None,
    judged: bool,
    judge: str | None,
    done: Callable[[str], int],
) -> Iterator[PlannedRuns]:
    """Yields the runs that baselines have left to do.

    Args:
        names: Of `BASELINES`.
        n: Questions of the evaluation.
        samples: Of each.
        validation_n: Validation questions; 0 where there are none.
        scorer_type: The type of the configuration's scorer, if it has one.
        judged: Whether there is a judge.
        judge: ``small`` or ``large``, where that model is the judge.
        done: Returns how many runs are done, by the name of an arm; of the runs that fit baselines too:
            ``validation/small``, ``validation/large``, ``scores``, ``pilot``.
    """
    runs, wanted, scored = n * samples, set(names), scorer_type is not None

    def left(name: str, count: int) -> int:
        return max(0, count - done(name))

    def arm(name: str, kind: Kind, rate: float, *, scores: bool, judge: str | None = None) -> PlannedRuns:
        return PlannedRuns("baselines", name, kind, left(name, runs), rate, scores, judge)

    if wanted & {"kind", "router"} and validation_n:
        count = left(f"{FOLDER}/{SMALL}", validation_n)
        yield PlannedRuns("validation", None, "small", count)
        if scored and "kind" in wanted:
            yield PlannedRuns("validation", None, "scores", count)
    if "router" in wanted and validation_n:
        yield PlannedRuns("validation", None, "large", left(f"{FOLDER}/{LARGE}", validation_n))
    if "score_cascade" in wanted and scored:
        yield PlannedRuns("baselines", None, "scores", left("scores", runs))
    if "prm" in wanted and _is_reward_model(scorer_type):
        yield arm(f"prm-{PRM_LEVEL:g}", "routed", 1.0, scores=True)
    if "judge" in wanted and judged:
        yield arm("judge-7of9", "routed", 1.0, scores=True, judge=judge)
    if "entropy" in wanted:
        yield PlannedRuns("baselines", None, "probed", left("pilot", min(n, PILOT)), 0.0, False)
        for share in SHARES:
            yield arm(f"entropy-{share:g}", "probed", share, scores=False)
    if "kind" in wanted and validation_n:
        for share in SHARES:
            yield arm(f"kind-{share:g}", "routed", share, scores=False)


def _is_reward_model(scorer_type: str | None) -> bool:
    """Returns whether the level that was published for reward models is one of this scorer's."""
    return scorer_type is not None and (scorer_type == "example" or scorer_type.endswith("_prm"))


class Missing(SettingsError):
    """A baseline cannot be run with what is given."""


class TooFewOutcomes(InputError):
    """A baseline cannot be fitted to what came of the validation questions."""


@dataclass
class Baselines:
    """Runs the baselines of an evaluation.

    Attributes:
        runner: Runs arms; the models alone are done.
        validation: Where there are validation questions.
        scorer_type: The type of the configuration's scorer.
        judge_name: What the judge is, for the record, where one is given.
        pattern: Expression that says the type of a step.
        seed: Of the training.
    """

    runner: ExperimentRunner
    validation: Validation | None
    scorer_type: str | None
    judge_name: dict[str, Any] | None
    pattern: str
    seed: int

    async def run(self, names: Sequence[str], *, all_of_them: bool) -> list[str]:
        """Runs baselines; returns a warning for each one that was passed over.

        Args:
            names: Of `BASELINES`.
            all_of_them: One that cannot be run is then passed over with a warning. One that cannot be fitted
                is in any case, since only the runs of the models tell.

        Raises:
            TrimError: One cannot be run with what is given, or its runs fail.
        """
        runs: dict[str, Callable[[], Awaitable[None]]] = {
            "router": self.router,
            "cascade": self.cascade,
            "score_cascade": self.score_cascade,
            "prm": self.prm,
            "judge": self.llm_judge_arm,
            "entropy": self.entropy,
            "kind": self.kind,
        }
        warnings = []
        for name in names:
            try:
                await runs[name]()
            except (TrimError, ImportError) as error:
                if not (all_of_them or isinstance(error, TooFewOutcomes)):
                    raise
                warnings.append(f"baseline {name} was not run: {error}")
        return warnings

    async def prm(self) -> None:
        """Accepts drafts by the reward model's score alone, at the published level."""
        if not _is_reward_model(self.scorer_type):
            raise Missing("it needs a process reward model as the scorer")
        await self._run(f"prm-{PRM_LEVEL:g}", "prm", {"type": "threshold", "t": PRM_LEVEL})

    async def llm_judge_arm(self) -> None:
        """Accepts drafts by a judge's digit, at the published level."""
        if self.judge_name is None:
            raise Missing("it needs a judge: --judge large, or {type: llm_judge, model: {...}}")
        policy = {"type": "threshold", "t": JUDGE_LEVEL}
        arm = Arm("judge-7of9", "baseline", "judge", policy)
        settings = ArmSettings(**{**arm.settings, "policy": {**policy, "scorer": self.judge_name}})
        await self.runner.run(arm.name, settings, policy, judged=True)

    async def cascade(self) -> None:
        """Lets the large model answer where the small one's whole answer is improbable."""
        self._query_level_baselines("cascade", {"type": "answer_cascade"}, uncertainty, both=True)

    async def score_cascade(self) -> None:
        """Lets the large model answer where the least score of the small one's steps is low."""
        if self.scorer_type is None:
            raise Missing("it needs a scorer: name one in the configuration")
        scored = await score_solutions(self.runner)
        self._query_level_baselines(
            "score_cascade",
            {"type": "answer_cascade", "signal": "least_score"},
            least_score,
            both=True,
            small=lambda row: _with_scores(
                row, scored[row["index"], row["sample"]], self.runner.run_config.prices
            ),
        )

    async def router(self) -> None:
        """Lets a classifier give whole questions to one model."""
        validation = self._validated()
        small, large = await validation.run("small"), await validation.run("large")
        try:
            router = train_query_router(read_examples([small, large]), seed=self.seed).policy
        except InputError as error:
            raise TooFewOutcomes(str(error)) from error
        file = self.runner.folder / "router.json"
        save_policy(router, file, dataset=validation.dataset.identity(), questions=validation.n)
        policy = {"type": "query_router", "file": file.name}
        self._query_level_baselines(
            "router", policy, lambda row: router.probability(row["question"]), both=False
        )

    async def kind(self) -> None:
        """Regenerates by the type of step alone."""
        validation = self._validated()
        traces = await validation.run("small")
        try:
            kinds = fit_step_types(read_traces(traces), self.pattern)
        except InputError as error:
            raise TooFewOutcomes(str(error)) from error
        counts = [one._asdict() for one in kinds]
        write_json(self.runner.folder / "kinds.json", {"pattern": self.pattern, "kinds": counts})
        await self._grid("kind", lambda share: policy_of_step_types(kinds, self.pattern, share))

    async def entropy(self) -> None:
        """Lets the entropy of a step's first token say who writes it."""
        entropies = await run_entropy_pilot(self.runner)
        await self._grid(
            "entropy", lambda share: {"type": "entropy_probe", "limit": _upper(entropies, share)}
        )

    async def _grid(self, family: str, policy: Callable[[float], dict[str, Any]]) -> None:
        """Runs a family of policies at fixed shares."""
        for share in SHARES:
            await self._run(f"{family}-{share:g}", family, policy(share))

    async def _run(self, name: str, family: str, policy: dict[str, Any]) -> None:
        arm = Arm(name, "baseline", family, policy)
        await self.runner.run(arm.name, arm.settings, arm.policy)

    def _query_level_baselines(
        self,
        family: str,
        policy: dict[str, Any],
        signal: Signal,
        *,
        both: bool,
        small: Callable[[Row], Row] = lambda row: row,
    ) -> None:
        """Puts arms together of the models alone, at fixed shares of the large model's tokens."""
        runner, run_config = self.runner, self.runner.run_config

        def rows() -> Iterator[tuple[Row, Row]]:
            of_both = pairs(self.runner.folder, run_config.n, run_config.samples)
            return ((small(first), second) for first, second in of_both)

        signals, tokens = read_signals(rows(), signal)
        for share in SHARES:
            limit = limit_for(signals, tokens, share * float(tokens.mean()))
            questions = round(float((signals > limit).mean()), DIGITS)
            settings = ArmSettings(
                kind="baseline", family=family, policy={**policy, "limit": limit, "questions": questions}
            )
            arm = f"{family}-{share:g}"
            runner.forget(arm)  # its limit may have been another on fewer questions
            runner.note(arm, settings)
            write_query_level_arm(self.runner.folder, arm, rows(), signal, limit, both=both)
            runner.take(arm)

    def _validated(self) -> Validation:
        if self.validation is None:
            raise Missing("it is fitted on questions other than these: give --validation")
        return self.validation


def _upper(values: Sequence[float], part: float) -> float:
    """Returns the limit above which this part of the values lies; below all of them for 1."""
    ordered = sorted(values)
    kept = round((1 - part) * len(ordered))
    return round(ordered[kept - 1], 9) if kept else 0.0
