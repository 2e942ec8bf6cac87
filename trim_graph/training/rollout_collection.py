"""Collects rollout trees: from runs of a configuration's graph, or by asking the models node by node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from langgraph.graph.state import CompiledStateGraph

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import as_scorer, read_scores
from trim_graph.adapters.responses import read_entropy, read_reply
from trim_graph.budget import Writer
from trim_graph.calls.model_call import WriterModel
from trim_graph.config import Parts, TrimConfig
from trim_graph.conversation import compose
from trim_graph.evaluation import Question
from trim_graph.evaluation.calibration import RememberingScorer
from trim_graph.evaluation.executor import Executor, Models
from trim_graph.evaluation.runner import run_each
from trim_graph.evaluation.traces import Trace
from trim_graph.policies import Policy
from trim_graph.routing.loops import loop_in
from trim_graph.routing.router import MAX_ATTEMPTS
from trim_graph.routing.steps import as_step, parse_draft, partial_text_counts, stop_arguments
from trim_graph.routing.view import segmentation_of
from trim_graph.segmentation import join_steps, separator_of
from trim_graph.settings import Settings
from trim_graph.state import Step

from .rollouts import Node, Plan, RolloutError, Rollouts, Tree, Written


def graph_builder(
    config: TrimConfig, parts: Parts
) -> Callable[[Policy], CompiledStateGraph[Any, Any, Any, Any]]:
    """Return what makes the graph of a policy.

    Its models and scorer remember their answers, since rollouts of a question have most of their steps in
    common. It has no budget, whatever the configuration says: a limit would change decisions.

    Args:
        config: For the settings.
        parts: The models and the scorer.
    """
    from langchain_core.caches import InMemoryCache

    from trim_graph.graph import create_trim_graph

    for model in (parts.small, parts.large):
        if getattr(model, "cache", False) is None:
            model.cache = InMemoryCache()
    scorer = RememberingScorer(parts.scorer)

    def build(policy: Policy) -> CompiledStateGraph[Any, Any, Any, Any]:
        settings = config.settings.model_dump()
        return create_trim_graph(parts.small, parts.large, scorer, policy=policy, **settings)

    return build


class Unexplored(NamedTuple):
    """A question whose ways are not all known.

    Attributes:
        place: Its place among the questions that are explored.
        question: Its text and its grader.
        known: Runs recorded before.
    """

    place: int
    question: Question
    known: Sequence[Trace]


@dataclass(frozen=True, slots=True)
class ExploreQuestions:
    """The task of running questions until all their ways are known (`trim_graph.evaluation.executor.Task`).

    Attributes:
        rounds: Most runs of a question.
    """

    rounds: int

    def setup(self, models: Models) -> Callable[[Unexplored], Awaitable[list[Trace]]]:
        """Make the graphs; what a worker's models have answered they remember. A run that fails raises."""
        build, steps = graph_builder(models.config, models.parts), models.config.settings.max_steps

        async def work(item: Unexplored) -> list[Trace]:
            made = list[Trace]()
            one = Rollouts([item.question], build, max_steps=steps, on_trace=made.append)
            one.add(item.known)
            await one.explore(self.rounds)
            return [{**trace, "index": item.place} for trace in made]

        return work


async def explore_with(executor: Executor, rollouts: Rollouts, rounds: int) -> int:
    """Have an executor run each question until all its ways are known; see `Rollouts.explore`.

    Args:
        executor: Has the models.
        rollouts: Keep what is found, question by question.
        rounds: Most runs of a question.

    Returns:
        How many questions have unknown ways left.
    """

    def keep(traces: list[Trace]) -> None:
        for trace in traces:
            rollouts.keep(trace)

    open_ones = [index for index, tree in enumerate(rollouts.trees) if tree.unknown() is not None]
    if open_ones:
        known: dict[str, list[Trace]] = {}
        for trace in rollouts.traces:
            known.setdefault(trace["question"], []).append(trace)
        questions = (rollouts.trees[index].question for index in open_ones)
        await executor.map(
            ExploreQuestions(rounds),
            (
                Unexplored(index, question, known.get(question.text, ()))
                for index, question in zip(open_ones, questions, strict=True)
            ),
            concurrency=min(rollouts.concurrency, len(open_ones)),
            on_result=keep,
        )
    return sum(tree.unknown() is not None for tree in rollouts.trees)


class NotGrown(Exception):
    """Something happened that only a run of the graph can follow."""


class Grower:
    """Grows the trees of questions.

    Args:
        small: Chat model; deterministic, and one that continues a text exactly.
        large: The same.
        scorer: Rates the drafts.
        settings: Of the graph it stands for.
        probes: Whether to ask the small model for the entropy of its first token at each place.
        most: Places of a tree at which growing ends: where the models rarely agree, a solution of 12 steps
            has thousands. What is left grows where a policy goes (`GrowingRollouts`).
    """

    def __init__(
        self,
        small: Runnable[Any, Any],
        large: Runnable[Any, Any],
        scorer: Any,
        settings: Settings | None = None,
        *,
        probes: bool = False,
        most: int = 1000,
    ) -> None:
        self.models: dict[Writer, WriterModel] = {
            "small": WriterModel.of(small),
            "large": WriterModel.of(large),
        }
        self.scorer = as_scorer(scorer)
        self.settings = settings or Settings()
        self.segmentation = segmentation_of(self.settings, None)
        self.probes, self.most = probes, most

    async def grow(self, question: Question) -> Tree | None:
        """Return the tree of a question; None where only runs of the graph can find it."""
        tree = Tree(question)
        places: list[tuple[Node, list[Step]]] = [(tree.root, [])]
        known = {tree.root}
        while places:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._place(tree, node, steps)) for node, steps in places]
            except BaseExceptionGroup as errors:
                if isinstance(errors.exceptions[0], NotGrown):
                    return None
                raise errors.exceptions[0] from None
            places = []
            for node, steps in (reached for task in tasks for reached in task.result()):
                if node not in known:
                    known.add(node)
                    if not node.ended:
                        places.append((node, steps))
            if len(known) > self.most:
                break
        return tree

    async def extend(self, tree: Tree, plan: Sequence[bool]) -> None:
        """Grow the place that a plan leads to.

        Raises:
            RolloutError: Only a run of the graph can find it.
        """
        node = tree.root
        for regenerated in plan:
            behind = node.regenerated if regenerated else node.accepted
            assert behind is not None
            node = behind
        # Whatever separates steps otherwise is not grown.
        steps = [_ended(text) for text in node.steps]
        try:
            await self._place(tree, node, steps)
        except NotGrown as error:
            raise RolloutError(
                f"only a run of the graph can tell what follows in {tree.question.text[:80]!r}"
            ) from error

    async def _place(self, tree: Tree, node: Node, steps: list[Step]) -> Iterable[tuple[Node, list[Step]]]:
        """Ask both writers at a place, rate the draft, and return the places behind."""
        question = tree.question
        (draft, node.entropy), (large, _) = await asyncio.gather(
            self._written("small", question, steps), self._written("large", question, steps)
        )
        asked = [_scorable(step) for step in (*steps, draft)]
        scores = read_scores(await self.scorer.ascore(question.text, asked), len(asked)).scores
        node.ended, node.draft_score = False, scores[-1]
        if steps and node.score is None:
            node.score = scores[-2]
        ends = draft["end"] == "eos"
        node.draft = Written(draft["text"], draft["tokens"], draft["mean_token_probability"], ends)
        node.large = Written(large["text"], large["tokens"])
        node.accepted = tree.place((*node.steps, draft["text"]))
        node.accepted.score = node.draft_score
        node.regenerated = tree.place((*node.steps, large["text"]))
        behind = [(node.accepted, [*steps, draft]), (node.regenerated, [*steps, large])]
        for place, written in behind:
            self._end(place, written, question)
        return behind

    async def _written(
        self, writer: Writer, question: Question, steps: list[Step]
    ) -> tuple[Step, float | None]:
        """Return the writer's next step, and the entropy of its first token where that is wanted."""
        model, previous, before = self.models[writer], steps[-1] if steps else None, ""
        told: float | None = None
        for _ in range(MAX_ATTEMPTS):
            lead = before if partial_text_counts(previous, before) else ""
            arguments = stop_arguments(
                self.segmentation,
                self.settings.thinking,
                previous,
                partial_text=lead,
                takes_stop_when=model.takes_stop_when,
            )
            probed = self.probes and writer == "small" and not before
            message = await model.runnable.ainvoke(
                self._messages(question, steps, before),
                max_tokens=self.segmentation.cap(self.settings.max_step_tokens),
                **arguments,
                **(model.entropy_arguments() if probed else {}),
            )
            reply = read_reply(message, arguments.get("stop", ()), writer)
            entropy = read_entropy(message, writer) if probed else None
            told = entropy.nats if entropy is not None else told
            draft = parse_draft(
                reply,
                writer=writer,
                partial_text=lead,
                segmentation=self.segmentation,
                settings=self.settings,
                previous=previous,
            )
            if draft is not None and draft["end"] != "length" and not {"part", "separator"} & draft.keys():
                return as_step(draft), told
            added = reply.text + reply.separator
            if draft is not None or reply.end == "eos" or not added:
                break
            before += added
        raise NotGrown

    def _messages(self, question: Question, steps: list[Step], before: str) -> list[Any]:
        prefix = join_steps(steps, self.settings.delimiter) + before
        return compose([HumanMessage(question.text)], self.settings.instruction, prefix)

    def _end(self, node: Node, steps: list[Step], question: Question) -> None:
        most = self.settings.max_repeats
        loops = most is not None and loop_in(steps, most) is not None
        if steps[-1]["end"] != "eos" and len(steps) < self.settings.max_steps and not loops:
            return
        text = join_steps(steps, self.settings.delimiter)
        solution = text.removesuffix(separator_of(steps[-1], self.settings.delimiter))
        node.ended = True
        node.correct = question.grade is not None and bool(question.grade(solution))


class GrowingRollouts(Rollouts):
    """Rollouts of grown trees, which grow on where a rollout leaves what is known.

    Args:
        trees: Of the questions, each with another text.
        grower: With the models that the trees were grown with.
    """

    def __init__(self, trees: Sequence[Tree], grower: Grower) -> None:
        super().__init__([tree.question for tree in trees], max_steps=grower.settings.max_steps)
        self.trees, self.grower = list(trees), grower
        self.grown: set[int] = set()
        """Questions whose trees have grown here."""

    def find(self, plans: Mapping[int, Plan]) -> None:
        """Grow the places that plans lead to."""

        async def extend(index: int) -> None:
            await self.grower.extend(self.trees[index], plans[index])
            self.grown.add(index)

        asyncio.run(run_each(extend, plans, concurrency=min(self.concurrency, len(plans))))


def _ended(text: str) -> Step:
    return Step(text=text, writer="small", model="", tokens=0, mean_token_probability=None, end="delimiter")


def _scorable(step: Step) -> ScorableStep:
    return ScorableStep(
        text=step["text"], writer=step["writer"], mean_token_probability=step["mean_token_probability"]
    )
