"""Run questions through a graph under a behaviour policy, and make a trace of each run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.scorers import as_scorer, read_scores
from trim_graph.evaluation import Question
from trim_graph.evaluation.executor import Models

from .traces import TOKENS, DiscardedDraft, Trace, TraceStep

CHANNELS = ("trim", "messages", "run", "steps", "scores", "decisions")
"""Of the graph's state: what a trace is made of."""


class Graph(Protocol):
    """What `make_trace` needs of a graph built by `create_trim_graph`."""

    async def ainvoke(self, input: Any, /, *, output_keys: Sequence[str]) -> Any:
        """Answer with the named channels."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What the traces of one collection have in common.

    Attributes:
        dataset: Its name.
        split: Train, validation or test, if known.
        policy: The behaviour policy, as a configuration names it.
        seed: Of the graph.
    """

    dataset: str
    split: str | None
    policy: dict[str, Any]
    seed: int | None


@dataclass(frozen=True, slots=True)
class CollectTraces:
    """The task of making a trace of each question (`trim_graph.evaluation.executor.Task`).

    Attributes:
        source: What all traces have in common.
        policy: The behaviour policy, as a configuration names it; default: the configuration's own.
        rated: Whether the scorer rates what the policy did not ask it about.
        label_steps: Whether to check each step, where the dataset can.
    """

    source: Source
    policy: dict[str, Any] | None = None
    rated: bool = True
    label_steps: bool = False

    def setup(self, models: Models) -> Callable[[tuple[int, Question]], Awaitable[Trace]]:
        """Build the graph; a question that fails has a trace that says why."""
        graph = models.graph(self.policy)
        scorer = models.parts.scorer if self.rated else None
        rater = None if scorer is None else as_scorer(scorer)

        async def work(item: tuple[int, Question]) -> Trace:
            return await make_trace(graph, item, self.source, rater=rater, label_steps=self.label_steps)

        return work


async def make_trace(
    graph: Graph,
    item: tuple[int, Question],
    source: Source,
    *,
    rater: Any = None,
    label_steps: bool = False,
) -> Trace:
    """Run one question through the graph.

    What the policy did not ask the scorer about is scored after the run, all accepted steps in one call: the
    policy sees no more than it wants, and the trace has every score. The tokens read for that count.

    Args:
        graph: Built by `create_trim_graph`.
        item: The question with its place in the dataset.
        source: What all traces have in common.
        rater: The graph's scorer; without one, what was not scored in the run stays so.
        label_steps: Whether to check each step, where the dataset can.

    Returns:
        The trace; of a question that failed one that says why.
    """
    index, question = item
    try:
        result = await graph.ainvoke({"messages": [("user", question.text)]}, output_keys=CHANNELS)
        trace = trace_of(result, index, question, source)
        if rater is not None:
            await _rate(trace, rater)
        if label_steps:
            label_all(trace["steps"], question)
    except Exception as error:
        trace = _failed(index, question, source, f"{type(error).__name__}: {error}")
    return trace


def trace_of(result: dict[str, Any], index: int, question: Question, source: Source) -> Trace:
    """Make a trace of the channels `CHANNELS` of a run that has ended."""
    summary, steps = result["trim"], steps_of(result)
    solution = str(result["messages"][-1].text)
    return Trace(
        id=question.id or str(index),
        index=index,
        dataset=source.dataset,
        split=source.split,
        question=question.text,
        policy=source.policy,
        seed=source.seed,
        correct=None if question.grade is None else bool(question.grade(solution)),
        answer=summary["answer"],
        stopped=summary["stopped"],
        steps=steps,
        tokens={key: summary["tokens"][key] for key in TOKENS},
        error=None,
    )


def steps_of(result: dict[str, Any]) -> list[TraceStep]:
    """Return the accepted steps of a run with what is known of each: score, decision, the draft turned down.

    Args:
        result: The channels ``steps``, ``scores`` and ``decisions`` of a run that has ended.
    """
    decided = {record["step"]: record for record in result["decisions"]}
    steps: list[TraceStep] = []
    for number, step in enumerate(result["steps"]):
        record = decided.get(number, {})
        draft = record.get("discarded")
        steps.append(
            TraceStep(
                text=step["text"],
                writer=step["writer"],
                tokens=step["tokens"],
                score=result["scores"].get(str(number)),
                decision=record.get("decision"),
                mean_token_probability=step["mean_token_probability"],
                label=None,
                discarded=None
                if draft is None
                else DiscardedDraft(
                    text=draft["text"],
                    tokens=draft["tokens"],
                    score=record["score"],
                    label=None,
                    mean_token_probability=draft["mean_token_probability"],
                ),
            )
        )
    return steps


def label_all(steps: Sequence[TraceStep], question: Question) -> None:
    """Say of each step, and of each draft turned down, whether it is right, where the dataset can."""
    if question.label_steps is None:
        return
    texts = [step["text"] for step in steps]
    for number, (step, label) in enumerate(zip(steps, question.label_steps(texts), strict=True)):
        step["label"] = label
        draft = step["discarded"]
        if draft is not None:
            draft["label"] = question.label_steps([*texts[:number], draft["text"]])[-1]


async def _rate(trace: Trace, scorer: Any) -> None:
    """Score what has no score: the accepted steps in one call, and each discarded draft behind its own."""
    steps = trace["steps"]

    async def rated(rows: list[ScorableStep]) -> Sequence[float]:
        reply = read_scores(await scorer.ascore(trace["question"], rows), len(rows))
        trace["tokens"]["scorer"] += reply.input_tokens
        trace["tokens"]["scorer_output"] += reply.output_tokens
        return reply.scores

    async def accepted() -> None:
        if any(step["score"] is None for step in steps):
            scores = await rated([_scorable(step) for step in steps])
            for step, score in zip(steps, scores, strict=True):
                step["score"] = score if step["score"] is None else step["score"]

    async def discarded(number: int, draft: DiscardedDraft) -> None:
        last = ScorableStep(
            text=draft["text"],
            writer="small",
            mean_token_probability=draft.get("mean_token_probability"),
        )
        draft["score"] = (await rated([*map(_scorable, steps[:number]), last]))[-1]

    drafts = [(number, draft) for number, step in enumerate(steps) if (draft := step["discarded"])]
    missing = [discarded(number, draft) for number, draft in drafts if draft["score"] is None]
    await asyncio.gather(accepted(), *missing)


def _scorable(step: TraceStep) -> ScorableStep:
    return ScorableStep(
        text=step["text"], writer=step["writer"], mean_token_probability=step["mean_token_probability"]
    )


def _failed(index: int, question: Question, source: Source, error: str) -> Trace:
    return Trace(
        id=question.id or str(index),
        index=index,
        dataset=source.dataset,
        split=source.split,
        question=question.text,
        policy=source.policy,
        seed=source.seed,
        correct=None,
        answer=None,
        stopped="",
        steps=[],
        tokens=dict.fromkeys(TOKENS, 0),
        error=error,
    )
