"""Measure what a judge without error would do with a pair of models: one that knows the right answers.

    python -m trim_graph.examples.oracle_judge --config trim.yaml --dataset DATASET --beside RUN --out FOLDER

It takes a draft of the small model for right where the solution so far is right, or where one of several
continuations by the small model ends right: the hard label of `trim-graph label` (Math-Shepherd, arXiv
2312.08935). All other drafts are regenerated. It bounds what a scorer can reach, and takes more calls than it
saves. The models alone are those of RUN, an evaluation of the same questions by `trim-graph eval`. The same
command resumes what was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trim_graph import ScorableStep, ScorerReply
from trim_graph.adapters.event_loop import run_sync
from trim_graph.cli.eval import read_dataset
from trim_graph.config import TrimConfig, build_parts, for_measuring, load_config
from trim_graph.config.load import with_temperature
from trim_graph.driver import final_state
from trim_graph.errors import InputError
from trim_graph.evaluation import Question, Record, compare
from trim_graph.evaluation.comparison import LARGE, SMALL
from trim_graph.evaluation.datasets import first_questions
from trim_graph.evaluation.records import WorkItem, read_rows_of, record_of
from trim_graph.evaluation.runner import run_each, run_question
from trim_graph.examples import own_pair
from trim_graph.graph import create_trim_graph
from trim_graph.policies import small_only, threshold
from trim_graph.settings import TrimContext
from trim_graph.state import Step
from trim_graph.storage.journal import Journal
from trim_graph.storage.rows import read_rows

ORACLE = "oracle"
METRICS = "metrics.json"


class OracleJudge:
    """Scores a draft 1 where the small model can still reach the right answer behind it, else 0.

    Steps before the draft have been decided on: those that it has judged keep their score, and the others,
    which the large model wrote, have 1. Steps are joined by the delimiter of the settings.

    Args:
        small: The small model; it has to draw (temperature above 0), or all continuations are the same.
        questions: Questions with graders, found by their text.
        continuations: Most continuations of a draft.
        settings: Settings of `trim_graph.create_trim_graph`.
    """

    def __init__(
        self, small: Any, questions: Iterable[Question], *, continuations: int = 4, **settings: Any
    ) -> None:
        self._questions = {question.text: question for question in questions}
        self._continuations, self._delimiter = continuations, settings["delimiter"]
        self._graph = create_trim_graph(small, small, policy=small_only(), **settings)
        self._known: dict[tuple[str, ...], float] = {}

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step; see `ascore`."""
        return run_sync(self.ascore(question, steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step, the last by continuations.

        Raises:
            KeyError: The question is none of those given.
        """
        keys = [(question, *map(str, steps[: number + 1])) for number in range(len(steps))]
        if keys[-1] not in self._known:
            self._known[keys[-1]] = float(await self._can_end_right(self._questions[question], steps))
        return ScorerReply([self._known.get(key, 1.0) for key in keys])

    async def _can_end_right(self, question: Question, steps: Sequence[ScorableStep]) -> bool:
        if question.is_right(self._delimiter.join(steps)):
            return True
        for _ in range(self._continuations):
            context = TrimContext(steps=[_given(step) for step in steps])
            result = await final_state(self._graph, [("user", question.text)], context=context)
            if record_of(result, WorkItem(0, 0, question))["correct"]:
                return True
        return False


def _given(step: ScorableStep) -> Step:
    """Returns a step that a continuation begins with; the run counts no tokens for it."""
    return Step(
        text=str(step),
        writer=step.writer,
        model="",
        tokens=0,
        mean_token_probability=step.mean_token_probability,
        end="delimiter",
    )


def make_graph(
    config: TrimConfig, questions: Sequence[Question], continuations: int, temperature: float
) -> Any:
    """Builds the graph of a configuration with the judge as its scorer.

    Args:
        config: Names models and settings; its scorer and policy are not used.
        questions: Those that will be asked.
        continuations: Most continuations of a draft.
        temperature: Of the continuations.
    """
    measured = for_measuring(config)
    settings = {**measured.settings.model_dump(), "on_small_error": "raise"}
    drawing = with_temperature(config, temperature).small.build("small")
    parts = build_parts(config)
    judge = OracleJudge(drawing, questions, continuations=continuations, **settings)
    return create_trim_graph(parts.small, parts.large, judge, policy=threshold(0.5), **settings)


def models_alone(folder: Path, questions: Sequence[Question]) -> dict[str, list[Record]]:
    """Returns the records of both models alone on these questions.

    Args:
        folder: Of a run of `trim-graph eval`.
        questions: The first of that run.

    Raises:
        InputError: The run lacks one of them, or has others.
    """
    found: dict[str, list[Record]] = {}
    for arm in (SMALL, LARGE):
        rows = {row["index"]: row for row in read_rows_of(folder, arm) if row["sample"] == 0}
        for index, question in enumerate(questions):
            if index not in rows or rows[index]["question"] != question.text:
                raise InputError(f"{folder}: arm {arm} lacks question {index} of the dataset")
        found[arm] = [rows[index] for index in range(len(questions))]
    return found


async def run(graph: Any, questions: Sequence[Question], journal: Journal, concurrency: int) -> None:
    """Runs the questions that the journal lacks."""
    items = (WorkItem(index, 0, one) for index, one in enumerate(questions) if index not in journal.finished)

    def keep(record: Record) -> None:
        journal.append(dict(record))
        if record["error"] is not None:
            print(f"question {record['index']}: {record['error']}", file=sys.stderr)

    await run_each(partial(run_question, graph), items, concurrency=concurrency, on_result=keep)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="as for trim-graph eval")
    parser.add_argument("--dataset", required=True, help="questions, as of trim-graph eval")
    parser.add_argument("--beside", type=Path, required=True, help="a run of trim-graph eval on them")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and metrics")
    parser.add_argument("-n", type=int, default=100, help="the first so many questions")
    parser.add_argument("--continuations", type=int, default=4, help="of a draft, at most")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the continuations")
    parser.add_argument("--concurrency", type=int, default=24)
    given = parser.parse_args(arguments)
    for option in ("n", "continuations", "concurrency"):
        if getattr(given, option) < 1:
            parser.error(
                f"{'-n' if option == 'n' else f'--{option}'} is {getattr(given, option)}: choose 1 or more"
            )
    if given.temperature <= 0:
        parser.error(f"--temperature is {given.temperature}: above 0, or all continuations are the same")
    return given


def measure(given: argparse.Namespace) -> None:
    """Runs the questions and writes the metrics.

    Args:
        given: The command line.

    Raises:
        TrimError: The questions, the configuration or the run beside cannot be used.
    """
    dataset = read_dataset("--dataset", given.dataset, "test", 0)
    questions = list(first_questions(dataset, given.n, default=given.n))
    alone = models_alone(given.beside, questions)
    config = load_config(given.config)
    graph = make_graph(config, questions, given.continuations, given.temperature)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.jsonl"
    settings = {"continuations": given.continuations, "temperature": given.temperature}
    settings |= {part: getattr(config, part).model_dump(mode="json") for part in (SMALL, LARGE)}
    with Journal(file, settings, keep=lambda record: record.get("error") is None) as journal:
        asyncio.run(run(graph, questions, journal, given.concurrency))
    records = {row.values["index"]: row.values for row in read_rows(file)}
    judged: Any = [records[index] for index in range(len(questions))]
    metrics = compare({**alone, ORACLE: judged})
    (given.out / METRICS).write_text(json.dumps({**settings, "arms": metrics}, indent=1) + "\n", "utf-8")
    for arm, values in metrics.items():
        share = "-" if values["share"] is None else f"{values['share']:.3f}"
        print(f"{arm}: accuracy {values['accuracy']:.3f}, share {share}, n {values['n']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures it, and returns the exit code."""
    given = parsed(arguments)
    return own_pair.run([lambda: measure(given)])


if __name__ == "__main__":
    sys.exit(main())
