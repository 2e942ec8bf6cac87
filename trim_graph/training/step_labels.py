r"""Step labels: targets that a step scorer learns, from questions with a grader and the models alone.

The methods and their sources:

- ``monte_carlo`` (Math-Shepherd, arXiv 2312.08935): the share of continuations of the small model from the
  prefix that ends with a step which end right.
- ``advantage`` (the target of Arbitrage, arXiv 2512.05033): at sampled places the large model writes the step
  too, and the small model continues both: (1 + v_small - v_large) / 2.
- ``agreement``: the probability that a judge, by default the large model, agrees with the step that it reads.
- ``labelled``: files whose first wrong step is known (`trim_graph.evaluation.scorer_metrics.read_labelled`).

A hard label is True for steps from which something still ends right, False for the first step from which
nothing does, None after it. A binary search finds that step (OmegaPRM, arXiv 2406.06592): if anything ends
right from a prefix, the first lost step is behind it. Steps of a solution that ended right are all right in
this sense.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trim_graph.budget import Writer
from trim_graph.errors import SettingsError, TrimError
from trim_graph.evaluation import Question
from trim_graph.evaluation.records import TOKENS, RecordStep
from trim_graph.evaluation.runner import MAX_CONSECUTIVE_FAILURES, Executor, run_each
from trim_graph.evaluation.scorer_metrics import labels_from, read_labelled
from trim_graph.evaluation.traces import Trace
from trim_graph.state import Step

from .continuations import (
    START,
    Continuation,
    ContinuationRequest,
    Continuations,
    ContinueSolutions,
    Share,
    extended,
    prefixes,
)
from .judgements import Judgement, Judgements, JudgeSolutions, Reading
from .settings import LabelSettings as LabelSettings


class Phase(Protocol):
    """Progress of one phase of the work."""

    def advance(self, *, failed: bool = False) -> None:
        """Notes that one more unit is done."""
        ...


ShowPhase = Callable[[str, int], AbstractContextManager[Phase]]
"""Gets the name of a phase and its number of units; shows its progress."""


class _Hidden:
    def advance(self, *, failed: bool = False) -> None:
        """Shows nothing."""


@dataclass(slots=True)
class LabelReport:
    """Counts of a labelling.

    Attributes:
        questions: Questions with rollouts.
        hopeless: Questions dropped because no rollout ends right.
        unsure: Questions dropped by `LabelSettings.min_confidence`.
        failed: Questions dropped because a model or the grader failed.
        disagreed: Solutions dropped by `LabelSettings.consensus`.
        repeated: Rollouts with the text of another one of their question.
        solutions: Solutions with labels.
        right: Those of them that end right.
        steps: Steps with a target.
        lost: Steps with the hard label False.
        value: Mean target.
        error: The last failure.
    """

    questions: int = 0
    hopeless: int = 0
    unsure: int = 0
    failed: int = 0
    disagreed: int = 0
    repeated: int = 0
    solutions: int = 0
    right: int = 0
    steps: int = 0
    lost: int = 0
    value: float | None = None
    error: str | None = None

    def count(self, traces: Iterable[Trace]) -> None:
        """Counts the labelled solutions."""
        values = list[float]()
        for trace in traces:
            self.solutions += 1
            self.right += bool(trace["correct"])
            self.lost += sum(step["label"] is False for step in trace["steps"])
            values += [value for step in trace["steps"] if (value := step.get("value")) is not None]
        self.steps = len(values)
        self.value = sum(values) / len(values) if values else None


class Labels(NamedTuple):
    """Labelled solutions, and counts."""

    traces: list[Trace]
    report: LabelReport


@dataclass(eq=False, slots=True)
class _Solution:
    """A distinct solution of a question.

    Attributes:
        rollout: The continuation of no steps that wrote it.
        digests: Digests of its prefixes, the empty one first.
    """

    rollout: Continuation
    digests: list[str]
    places: list[int] = field(default_factory=list)

    @property
    def question(self) -> int:
        return self.rollout["question"]

    @property
    def steps(self) -> list[Step]:
        return self.rollout["steps"]

    @property
    def digest(self) -> str:
        return self.digests[-1]


class StepLabeller:
    """Labels the steps of rollouts.

    Args:
        executor: Has the models; see `trim_graph.evaluation.runner.LocalExecutor`.
        questions: Questions of the dataset, the first of them first.
        continuations: Recorded continuations, which are used, and receive the new ones.
        settings: The method and its numbers.
        judgements: The same of judgements; needed where the settings ask for a judge.
        dataset: Name of the dataset, for the traces.
        split: Train, validation or test, if known.
        show: Shows the progress of a phase; default: nothing.

    Raises:
        SettingsError: A question has no grader and the method needs one, or judgements are missing.

    Example:
        Labels of 100 arithmetic questions, with the example models at temperature 0.7, in a file that
        ``trim-graph train scorer`` and ``trim-graph eval-scorer`` read:

        ```python
        import asyncio
        from itertools import islice
        from pathlib import Path

        from trim_graph.config import build_parts, example_config
        from trim_graph.evaluation.datasets import make_dataset
        from trim_graph.evaluation.runner import LocalExecutor, Models
        from trim_graph.evaluation.traces import write_traces
        from trim_graph.training.continuations import Continuations
        from trim_graph.training.step_labels import LabelSettings, StepLabeller

        config = example_config({"small": {"type": "example", "temperature": 0.7}})
        executor = LocalExecutor(lambda: Models(config, build_parts(config)))
        dataset = make_dataset("arithmetic:standard:train")
        questions = list(islice(dataset.questions(), 100))
        identity = {"dataset": dataset.identity(), "temperature": 0.7}
        with Continuations(Path("runs.jsonl"), identity, delimiter=config.settings.delimiter) as recorded:
            labeller = StepLabeller(executor, questions, recorded, LabelSettings(method="monte_carlo"))
            traces, report = asyncio.run(labeller.label())
        write_traces("labels.jsonl", traces)
        ```
    """

    def __init__(
        self,
        executor: Executor,
        questions: Sequence[Question],
        continuations: Continuations,
        settings: LabelSettings | None = None,
        *,
        judgements: Judgements | None = None,
        dataset: str = "questions",
        split: str | None = None,
        show: ShowPhase = lambda name, total: nullcontext(_Hidden()),
    ) -> None:
        self.executor, self.questions, self.recorded = executor, questions, continuations
        self.settings = settings or LabelSettings()
        self.dataset, self.split, self.show = dataset, split, show
        self.judgements = judgements
        self._in_a_row = 0
        if self.settings.judged and judgements is None:
            raise SettingsError("the settings ask for a judge: give judgements, which record what it says")
        if self.settings.continued:
            without = next((index for index, one in enumerate(questions) if one.grade is None), None)
            if without is not None:
                raise SettingsError(
                    f"method {self.settings.method} needs a grader, and question {without} has none: "
                    "name the key of the answers and a grader, or choose the method agreement"
                )

    async def label(self, n: int | None = None) -> Labels:
        """Makes what is missing and returns the labels.

        Args:
            n: Label the first questions only; default: all.

        Raises:
            TrimError: `MAX_CONSECUTIVE_FAILURES` continuations failed in a row.
        """
        report = LabelReport(questions=len(self.questions) if n is None else min(n, len(self.questions)))
        await self._roll_out(report.questions)
        solutions = self._solutions(report)
        if self.settings.continued:
            await self._search(solutions)
            await self._fill(solutions)
        if self.settings.method == "advantage":
            await self._compare(solutions)
        if self.settings.judged:
            await self._judge(solutions)
        solutions = [one for one in solutions if not self._has_failed(one)]
        solutions = self._agreed(solutions, report)
        traces = [self._trace(solution) for solution in solutions]
        errors = [found for index in range(report.questions) if (found := self._failure(index)) is not None]
        report.failed, report.error = len(errors), errors[-1] if errors else None
        report.count(traces)
        return Labels(traces, report)

    # Rollouts

    async def _roll_out(self, n: int) -> None:
        requests = [
            ContinuationRequest(index, self.questions[index], (), START, writer, sample)
            for index in range(n)
            for writer in self._rolled_out_by()
            for sample in self.recorded.missing(index, START, writer, self.settings.rollouts)
        ]
        if requests:
            with self.show("rollouts", len(requests)) as phase:
                await self._continue(requests, phase)

    def _rolled_out_by(self) -> list[Writer]:
        """Returns the writers of rollouts. The small model's show how sure it is of a question."""
        wanted = list(dict.fromkeys(self.settings.generators))
        return wanted if "small" in wanted or not self.settings.continued else ["small", *wanted]

    def _solutions(self, report: LabelReport) -> list[_Solution]:
        """Returns the distinct solutions of the questions that are kept."""
        found = list[_Solution]()
        for index in range(report.questions):
            if self._failure(index) is not None:
                continue
            solutions = self._distinct(index, report)
            if self.settings.continued:
                share = self._confidence(index)
                if not share.right:
                    report.hopeless += 1
                    continue
                if share.value < self.settings.min_confidence:
                    report.unsure += 1
                    continue
            found += solutions
        return found

    def _distinct(self, index: int, report: LabelReport) -> list[_Solution]:
        found: dict[str, _Solution] = {}
        for writer in self.settings.generators:
            for rollout in self.recorded.made(index, START, writer)[: self.settings.rollouts]:
                digests = prefixes(rollout["steps"], self.recorded.delimiter)
                if digests[-1] in found:
                    report.repeated += 1
                elif rollout["steps"]:
                    found[digests[-1]] = _Solution(rollout, digests)
        return list(found.values())

    def _confidence(self, index: int) -> Share:
        """Returns how many of the small model's rollouts of a question end right."""
        made = self.recorded.made(index, START, "small")
        return Share(sum(bool(one["correct"]) for one in made), len(made))

    # Continuations

    async def _search(self, solutions: Sequence[_Solution]) -> None:
        """Finds the first lost step of each solution that ended wrong, by binary search."""
        wrong = [one for one in solutions if not one.rollout["correct"]]
        await self._rounds("first lost steps", wrong, self._probed)

    def _probed(self, solution: _Solution) -> list[str]:
        """Returns the prefix to be continued next in the search; none once the first lost step is known."""
        alive, lost = self._bounds(solution)
        if lost - alive == 1:
            return []
        return [solution.digests[(alive + lost) // 2]]

    def _bounds(self, solution: _Solution) -> tuple[int, int]:
        """Returns the length of the longest prefix from which something ends right, and of the shortest lost.

        The empty prefix counts as alive, and the whole of a wrong solution as lost.
        """
        last = len(solution.steps)
        if solution.rollout["correct"]:
            return last, last + 1
        shares = [self.recorded.share(solution.question, digest) for digest in solution.digests[:last]]
        alive = max((length for length, share in enumerate(shares) if share.right), default=0)
        known = [
            length
            for length, share in enumerate(shares)
            if length > alive and share.n >= self.settings.continuations
        ]
        return alive, min(known, default=last)

    async def _fill(self, solutions: Sequence[_Solution]) -> None:
        """Continues the prefixes whose share is a target, until each is known well enough."""
        await self._rounds("shares", solutions, self._unsettled)

    def _unsettled(self, solution: _Solution) -> list[str]:
        return [
            digest
            for length in self._shared(solution)
            if not self._settled(self.recorded.share(solution.question, digest := solution.digests[length]))
        ]

    def _shared(self, solution: _Solution) -> Iterable[int]:
        """Returns the lengths of the prefixes whose share is needed; that of the whole solution is known."""
        last, settings = len(solution.steps), self.settings
        if settings.method == "advantage":
            return [place + 1 for place in self._places(solution) if place + 1 < last]
        alive, _ = self._bounds(solution)
        end = min(alive, last - 1)
        begin = 1
        if settings.target == "hard":
            begin = end + 1 if solution.rollout["correct"] else max(1, alive - settings.tolerance + 1)
        return range(begin, end + 1)

    def _settled(self, share: Share) -> bool:
        """Returns whether a share needs no more continuations.

        They end at `LabelSettings.continuations`, or once Wilson's 95 % interval is narrow enough: near 0 and
        1 after few, in the middle after many.
        """
        if share.n >= self.settings.continuations:
            return True
        return share.n > 0 and interval_width(share) <= self.settings.width

    async def _rounds(
        self, name: str, solutions: Sequence[_Solution], wanted: Callable[[_Solution], Sequence[str]]
    ) -> None:
        """Continues what solutions want, a batch at a time, until none wants more."""
        left = [one for one in solutions if not self._has_failed(one) and wanted(one)]
        if not left:
            return
        with self.show(name, len(left)) as phase:
            while left:
                requests: dict[tuple[int, str], list[ContinuationRequest]] = {}
                for solution in left:
                    for digest in wanted(solution):
                        key = (solution.question, digest)
                        if key not in requests:
                            requests[key] = self._batch(solution, digest)
                await self._continue([request for batch in requests.values() for request in batch])
                still = [one for one in left if not self._has_failed(one) and wanted(one)]
                for _ in range(len(left) - len(still)):
                    phase.advance()
                left = still

    def _batch(self, solution: _Solution, digest: str) -> list[ContinuationRequest]:
        length = solution.digests.index(digest)
        return self._requests(solution.question, solution.steps[:length], digest)

    def _requests(self, index: int, steps: Sequence[Step], digest: str) -> list[ContinuationRequest]:
        known = self.recorded.share(index, digest).n
        count = min(self.settings.batch, self.settings.continuations - known)
        return [
            ContinuationRequest(index, self.questions[index], tuple(steps), digest, "small", sample)
            for sample in self.recorded.further(index, digest, count)
        ]

    async def _continue(self, requests: Sequence[ContinuationRequest], phase: Phase | None = None) -> None:
        def keep(record: Continuation) -> None:
            self.recorded.keep(record)
            if phase is not None:
                phase.advance(failed=record["error"] is not None)
            self._give_up(record["error"])

        await run_each(
            await self.executor.setup(ContinueSolutions(self.settings.seed)),
            requests,
            concurrency=min(self.settings.concurrency, len(requests)),
            on_result=keep,
        )

    def _give_up(self, error: str | None) -> None:
        self._in_a_row = 0 if error is None else self._in_a_row + 1
        if self._in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise TrimError(
                f"{self._in_a_row} calls failed in a row, the last with {error}. When that is put right, "
                "resume with --retry-errors"
            )

    def _failure(self, index: int) -> str | None:
        """Returns why a call for a question failed; None where none did."""
        judged = None if self.judgements is None else self.judgements.failed.get(index)
        return self.recorded.failed.get(index, judged)

    def _has_failed(self, solution: _Solution) -> bool:
        return self._failure(solution.question) is not None

    # Advantage

    def _places(self, solution: _Solution) -> list[int]:
        """Returns the indexes of the steps at which the large model writes too, the same in every run."""
        if not solution.places:
            count = len(solution.steps)
            drawn = random.Random(f"{self.settings.seed} {solution.question} {solution.digest}")
            solution.places = sorted(drawn.sample(range(count), min(self.settings.places, count)))
        return solution.places

    async def _compare(self, solutions: Sequence[_Solution]) -> None:
        """Has the large model write the step at each place, and the small model continue it."""
        live = [one for one in solutions if not self._has_failed(one)]
        requests: dict[tuple[int, str], ContinuationRequest] = {}
        for one in live:
            for place in self._places(one):
                digest = one.digests[place]
                if self.recorded.missing(one.question, digest, "large", 1, one_step=True):
                    requests[one.question, digest] = ContinuationRequest(
                        one.question,
                        self.questions[one.question],
                        tuple(one.steps[:place]),
                        digest,
                        "large",
                        0,
                        one_step=True,
                    )
        if requests:
            with self.show("steps of the large model", len(requests)) as phase:
                await self._continue(list(requests.values()), phase)
        rewrites: dict[tuple[int, str], tuple[int, list[Step], str]] = {}
        for one in live:
            for place in self._places(one):
                written = self._rewritten(one, place)
                if written is not None and written["correct"] is None:
                    steps = [*one.steps[:place], *written["steps"]]
                    digest = extended(one.digests[place], written["steps"][0], self.recorded.delimiter)
                    rewrites[one.question, digest] = (one.question, steps, digest)
        left = list(rewrites.values())
        await self._continue_rewrites(left)

    async def _continue_rewrites(self, rewrites: Sequence[tuple[int, list[Step], str]]) -> None:
        def still() -> list[tuple[int, list[Step], str]]:
            return [
                one
                for one in rewrites
                if self._failure(one[0]) is None and not self._settled(self.recorded.share(one[0], one[2]))
            ]

        left = still()
        if not left:
            return
        with self.show("shares of the large model's steps", len(left)) as phase:
            while left:
                await self._continue([request for one in left for request in self._requests(*one)])
                before, left = len(left), still()
                for _ in range(before - len(left)):
                    phase.advance()

    def _rewritten(self, solution: _Solution, place: int) -> Continuation | None:
        """Returns the large model's step at a place; None where it failed or wrote none."""
        made = self.recorded.made(solution.question, solution.digests[place], "large", one_step=True)
        return made[0] if made and made[0]["error"] is None and made[0]["steps"] else None

    def _advantage(self, solution: _Solution, place: int) -> float | None:
        written = self._rewritten(solution, place)
        own = self._value_of(solution, place + 1)
        if written is None or own is None:
            return None
        if written["correct"] is not None:
            return (1 + own - float(written["correct"])) / 2
        digest = extended(solution.digests[place], written["steps"][0], self.recorded.delimiter)
        share = self.recorded.share(solution.question, digest)
        return (1 + own - share.value) / 2 if share.n else None

    # Judgements

    async def _judge(self, solutions: Sequence[_Solution]) -> None:
        assert self.judgements is not None
        judgements = self.judgements
        readings = [
            Reading(one.question, self.questions[one.question].text, one.digest, tuple(one.steps))
            for one in solutions
            if not self._has_failed(one) and judgements.of(one.question, one.digest) is None
        ]
        if not readings:
            return

        def keep(record: Judgement) -> None:
            judgements.keep(record)
            phase.advance(failed=record["error"] is not None)
            self._give_up(record["error"])

        with self.show("judgements", len(readings)) as phase:
            await run_each(
                await self.executor.setup(JudgeSolutions()),
                readings,
                concurrency=min(self.settings.concurrency, len(readings)),
                on_result=keep,
            )

    def _disagreed(self, solution: _Solution) -> int:
        """Returns the index of the first step that the judge disagrees with; -1 where there is none."""
        assert self.judgements is not None
        scores = self.judgements.scores(solution.question, solution.digest) or ()
        below = (place for place, score in enumerate(scores) if score < self.settings.agreement)
        return next(below, -1)

    def _agreed(self, solutions: list[_Solution], report: LabelReport) -> list[_Solution]:
        if not self.settings.consensus:
            return solutions
        kept = [one for one in solutions if self._disagreed(one) == self._first_lost(one)]
        report.disagreed = len(solutions) - len(kept)
        return kept

    # Targets

    def _first_lost(self, solution: _Solution) -> int:
        """Returns the index of the first lost step; -1 where none is."""
        return -1 if solution.rollout["correct"] else self._bounds(solution)[1] - 1

    def _value_of(self, solution: _Solution, length: int) -> float | None:
        """Returns the share of continuations of a prefix that end right; None where there are none."""
        if length == len(solution.steps):
            return float(bool(solution.rollout["correct"]))
        share = self.recorded.share(solution.question, solution.digests[length])
        return share.value if share.n else None

    def _target(self, solution: _Solution, length: int) -> float | None:
        """Returns the share of a prefix as a target; None where nothing continues it."""
        share = self._value_of(solution, length)
        if share is None or not self.settings.reweight:
            return share
        return reweighted(share, self._confidence(solution.question).value)

    def _targets(self, solution: _Solution) -> Iterator[tuple[bool | None, float | None]]:
        """Yields hard label and target of each step."""
        settings, count = self.settings, len(solution.steps)
        if settings.method == "agreement":
            assert self.judgements is not None
            scores = self.judgements.scores(solution.question, solution.digest) or ()
            labels = labels_from(self._disagreed(solution), count)
            yield from zip(labels, scores, strict=True)
            return
        first = self._first_lost(solution)
        for place, label in enumerate(labels_from(first, count)):
            if settings.method == "advantage":
                yield label, self._advantage(solution, place) if place in self._places(solution) else None
            elif label is None:
                yield None, None
            elif settings.target == "hard" and (
                place == first or place < first - settings.tolerance or first < 0
            ):
                yield label, float(label)
            else:
                yield label, self._target(solution, place + 1)

    def _trace(self, solution: _Solution) -> Trace:
        rollout = solution.rollout
        steps = [
            _labelled_step(step, label, value)
            for step, (label, value) in zip(solution.steps, self._targets(solution), strict=True)
        ]
        return Trace(
            id=rollout["id"],
            index=rollout["question"],
            dataset=self.dataset,
            split=self.split,
            question=self.questions[rollout["question"]].text,
            policy=self._policy(rollout["writer"]),
            seed=rollout["seed"],
            correct=rollout["correct"],
            answer=rollout["answer"],
            stopped=rollout["stopped"],
            steps=steps,
            tokens={
                **dict.fromkeys(TOKENS, 0),
                "small": rollout["tokens"]["small"],
                "large": rollout["tokens"]["large"],
            },
            error=None,
        )

    def _policy(self, generator: str) -> dict[str, Any]:
        settings = self.settings
        policy: dict[str, Any] = {"type": "labelled", "method": settings.method, "generator": generator}
        if settings.continued:
            policy |= {"continuations": settings.continuations, "width": settings.width}
        if settings.method == "monte_carlo":
            policy |= {
                "target": settings.target,
                "tolerance": settings.tolerance,
                "reweight": settings.reweight,
            }
        if settings.judged:
            policy |= {"agreement": settings.agreement, "consensus": settings.consensus}
        return policy


def reweighted(share: float, confidence: float) -> float:
    """Returns a share in relation to how able the small model is at the question: min(c_t / SC(q), 1).

    c_t is the share of the small model's continuations of step t that end right. SC(q), its self-confidence,
    is the same of its rollouts of the question. A step that leaves the model's chances as they were is worth
    1, also of a question that the model seldom solves.

    Source: SCAN (arXiv 2509.16548; https://scan-prm.github.io, "Robust Learning"; `process.py` in
    https://github.com/yyDing1/SCAN-PRM): the target of a step at most d before the first lost one is
    min(c_t / SC(q), 1), that of any other step I(c_t > 0). d is `LabelSettings.tolerance`.

    Args:
        share: c_t.
        confidence: SC(q), above 0.
    """
    return min(share / confidence, 1.0)


def interval_width(share: Share) -> float:
    """Returns the width of Wilson's 95 % interval around a share.

    Source: Wilson 1927, as ``scipy.stats.binomtest(...).proportion_ci(method="wilson")``. Looking again after
    each batch makes the interval a little optimistic, which a rule for when to stop can bear.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    found = binomtest(share.right, share.n).proportion_ci(method="wilson")
    return float(found.high - found.low)


def _labelled_step(step: Step, label: bool | None, value: float | None) -> RecordStep:
    return RecordStep(
        text=step["text"],
        writer="large" if step["writer"] == "large" else "small",
        tokens=step["tokens"],
        score=None,
        decision=None,
        mean_token_probability=step["mean_token_probability"],
        label=label,
        discarded=None,
        value=value,
    )


def read_labels(path: str | Path) -> Iterator[Trace]:
    """Reads solutions whose first wrong step is known as labels, by the method ``labelled``.

    Args:
        path: As of `trim_graph.evaluation.scorer_metrics.read_labelled`.

    Yields:
        A trace for each solution. A step's target is 1.0 before the first wrong step and 0.0 there.

    Raises:
        InputError: The file cannot be read, or a row has another shape; the message names file and line.
    """
    numbers: dict[str, int] = {}
    for solution in read_labelled(path):
        index = numbers.setdefault(solution["question"], len(numbers))
        yield Trace(
            id=solution["id"],
            index=index,
            dataset=solution["dataset"],
            split=None,
            question=solution["question"],
            policy={"type": "labelled", "method": "labelled", "generator": solution["generator"]},
            seed=None,
            correct=solution["correct"],
            answer=None,
            stopped="finished",
            steps=[
                RecordStep(
                    text=text,
                    writer="small",
                    tokens=0,
                    score=None,
                    decision=None,
                    mean_token_probability=None,
                    label=label,
                    discarded=None,
                    value=None if label is None else float(label),
                )
                for text, label in zip(solution["steps"], solution["labels"], strict=True)
            ],
            tokens=dict.fromkeys(TOKENS, 0),
            error=None,
        )
