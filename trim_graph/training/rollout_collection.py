"""Collection of rollout trees: from runs of a configuration's graph, or node by node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from langgraph.graph.state import CompiledStateGraph

from trim_graph.adapters.base import as_scorer, read_scores, scorable_step
from trim_graph.adapters.responses import read_entropy, read_reply
from trim_graph.adapters.token_confidence import reporting
from trim_graph.budget import Writer
from trim_graph.calls.model_call import WriterModel
from trim_graph.config import Parts, TrimConfig
from trim_graph.conversation import compose
from trim_graph.evaluation import Question
from trim_graph.evaluation.calibration import CachedScorer
from trim_graph.evaluation.runner import Executor, Models, run_each
from trim_graph.evaluation.traces import Trace
from trim_graph.policies import Policy
from trim_graph.routing.drafts import next_attempt, parse_draft, partial_tokens
from trim_graph.routing.router import (
    end_of_solution,
    segmentation_of,
    step_from_draft,
    step_tokens_of,
)
from trim_graph.segmentation import join_steps, partial_text_counts, separator_of, stop_arguments
from trim_graph.settings import Settings
from trim_graph.state import Step, StepRequest

from .rollouts import Node, RolloutError, Rollouts, Script, Tree, Written


def graph_builder(
    config: TrimConfig, parts: Parts
) -> Callable[[Policy], CompiledStateGraph[Any, Any, Any, Any]]:
    """Returns a function that builds the graph of a policy.

    The models and the scorer cache their answers, since rollouts of a question share most of their steps.
    The graph has no budget, whatever the configuration says: a limit would change decisions.

    Args:
        config: Provides the settings.
        parts: The models and the scorer.
    """
    from langchain_core.caches import InMemoryCache

    from trim_graph.graph import create_trim_graph

    for model in (parts.small, parts.large):
        if getattr(model, "cache", False) is None:
            model.cache = InMemoryCache()
    scorer = CachedScorer(parts.scorer)

    def build(policy: Policy) -> CompiledStateGraph[Any, Any, Any, Any]:
        settings = {**config.settings.model_dump(), "warm_large": False}  # nobody waits for a rewrite
        return create_trim_graph(parts.small, parts.large, scorer, policy=policy, **settings)

    return build


class Unexplored(NamedTuple):
    """A question whose tree has unexplored branches.

    Attributes:
        question_index: Index of the question in its `Rollouts`.
        question: Text and grader.
        known: Runs recorded before.
    """

    question_index: int
    question: Question
    known: Sequence[Trace]


@dataclass(frozen=True, slots=True)
class ExploreQuestions:
    """Explores the trees of questions with an executor's models (`trim_graph.evaluation.runner.Task`).

    Attributes:
        rounds: Most runs of a question.
    """

    rounds: int

    def setup(self, models: Models) -> Callable[[Unexplored], Awaitable[list[Trace]]]:
        """Returns the exploration of one question. The models cache their answers; a failed run raises."""
        build, steps = graph_builder(models.config, models.parts), models.config.settings.max_steps

        async def work(item: Unexplored) -> list[Trace]:
            made = list[Trace]()
            one = Rollouts([item.question], build, max_steps=steps, on_trace=made.append)
            one.add(item.known)
            await one.explore(self.rounds)
            return [{**trace, "index": item.question_index} for trace in made]

        return work


async def explore_with(executor: Executor, rollouts: Rollouts, rounds: int) -> int:
    """Explores trees with an executor; see `Rollouts.explore`.

    Args:
        executor: Holds the models.
        rollouts: Receives the new runs, question by question.
        rounds: Most runs of a question.

    Returns:
        How many questions have unexplored branches left.
    """

    def keep(traces: list[Trace]) -> None:
        for trace in traces:
            rollouts.keep(trace)

    open_ones = [index for index, tree in enumerate(rollouts.trees) if tree.unexplored() is not None]
    if open_ones:
        known: dict[str, list[Trace]] = {}
        for trace in rollouts.traces:
            known.setdefault(trace["question"], []).append(trace)
        questions = (rollouts.trees[index].question for index in open_ones)
        await run_each(
            await executor.setup(ExploreQuestions(rounds)),
            (
                Unexplored(index, question, known.get(question.text, ()))
                for index, question in zip(open_ones, questions, strict=True)
            ),
            concurrency=min(rollouts.concurrency, len(open_ones)),
            on_result=keep,
        )
    return sum(tree.unexplored() is not None for tree in rollouts.trees)


class NotExpandable(Exception):
    """Only a run of the graph can expand this node."""


class TreeExpander:
    """Expands the trees of questions, node by node.

    Args:
        small: Deterministic chat model that continues a text exactly.
        large: Chat model with the same properties.
        scorer: Rates the drafts.
        settings: Settings of the graph whose runs the trees hold.
        probes: Whether to measure the entropy of the small model's next token at each node.
        max_nodes: Nodes of a tree at which expansion ends. Where the models rarely agree, a solution of 12
            steps has thousands. `ExpandingRollouts` expands the others where a policy reaches them.
    """

    def __init__(
        self,
        small: Runnable[Any, Any],
        large: Runnable[Any, Any],
        scorer: Any,
        settings: Settings | None = None,
        *,
        probes: bool = False,
        max_nodes: int = 1000,
    ) -> None:
        self.models: dict[Writer, WriterModel] = {
            "small": WriterModel.of(reporting(small, scorer, "small")),
            "large": WriterModel.of(reporting(large, scorer, "large")),
        }
        self.scorer = as_scorer(scorer)
        self.settings = settings or Settings()
        self.segmentation = segmentation_of(self.settings, None)
        self.probes, self.max_nodes = probes, max_nodes

    async def expand(self, question: Question) -> Tree | None:
        """Returns the tree of a question; None where only runs of the graph can record it."""
        tree = Tree(question)
        frontier: list[tuple[Node, list[Step]]] = [(tree.root, [])]
        known = {tree.root}
        while frontier:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._ask_both(tree, node, steps)) for node, steps in frontier]
            except BaseExceptionGroup as errors:
                if isinstance(errors.exceptions[0], NotExpandable):
                    return None
                raise errors.exceptions[0] from None
            frontier = []
            for node, steps in (reached for task in tasks for reached in task.result()):
                if node not in known:
                    known.add(node)
                    if not node.ended:
                        frontier.append((node, steps))
            if len(known) > self.max_nodes:
                break
        return tree

    async def expand_node(self, tree: Tree, script: Sequence[bool]) -> None:
        """Expands the node at the end of a script.

        Raises:
            RolloutError: Only a run of the graph can expand it.
        """
        node = tree.root
        for regenerated in script:
            child = node.regenerated if regenerated else node.accepted
            assert child is not None
            node = child
        # Steps with another separator are not expanded.
        steps = [_stored_step(text) for text in node.steps]
        try:
            await self._ask_both(tree, node, steps)
        except NotExpandable as error:
            raise RolloutError(
                f"only a run of the graph can determine what follows in {tree.question.text[:80]!r}"
            ) from error

    async def _ask_both(self, tree: Tree, node: Node, steps: list[Step]) -> Iterable[tuple[Node, list[Step]]]:
        """Asks both writers at a node, rates the draft, and returns the children."""
        question = tree.question
        (draft, node.entropy), (large, _) = await asyncio.gather(
            self._next_step("small", question, steps), self._next_step("large", question, steps)
        )
        asked = [scorable_step(step) for step in (*steps, draft)]
        scores = read_scores(await self.scorer.ascore(question.text, asked), len(asked)).scores
        node.ended, node.draft_score = False, scores[-1]
        if steps and node.score is None:
            node.score = scores[-2]
        ends = draft["end"] == "eos"
        node.draft = Written(draft["text"], draft["tokens"], draft["mean_token_probability"], ends)
        node.large = Written(large["text"], large["tokens"])
        node.accepted = tree.node((*node.steps, draft["text"]))
        node.accepted.score = node.draft_score
        node.regenerated = tree.node((*node.steps, large["text"]))
        children = [(node.accepted, [*steps, draft]), (node.regenerated, [*steps, large])]
        for child, written in children:
            self._end_if_last(child, written, question)
        return children

    async def _next_step(
        self, writer: Writer, question: Question, steps: list[Step]
    ) -> tuple[Step, float | None]:
        """Returns the writer's next step, and the entropy of its first token if it is probed."""
        model, previous = self.models[writer], steps[-1] if steps else None
        first_entropy: float | None = None
        request: StepRequest | None = StepRequest(
            writer=writer,
            until_eos=False,
            max_tokens=step_tokens_of(self.settings),
            needs_score=False,
            needs_decision=False,
            partial_text="",
            attempt=0,
        )
        while request is not None:
            before = request["partial_text"]
            partial_text = before if partial_text_counts(previous, before) else ""
            arguments = stop_arguments(
                self.segmentation,
                self.settings.thinking,
                previous,
                partial_text=partial_text,
                takes_stop_when=model.takes_stop_when,
            )
            probed = self.probes and writer == "small" and not before
            message = await model.runnable.ainvoke(
                self._messages(question, steps, before),
                max_tokens=request["max_tokens"],
                **arguments,
                **(model.entropy_arguments() if probed else {}),
            )
            reply = read_reply(message, arguments.get("stop", ()), writer)
            entropy = read_entropy(message, writer) if probed else None
            first_entropy = entropy.nats if entropy is not None else first_entropy
            draft = parse_draft(
                reply,
                writer=writer,
                partial_text=partial_text,
                segmentation=self.segmentation,
                settings=self.settings,
                previous=previous,
                partial_tokens=partial_tokens(request, previous),
            )
            if draft is not None and draft["end"] != "length" and not {"part", "separator"} & draft.keys():
                return step_from_draft(draft), first_entropy
            request = next_attempt(request, reply) if draft is None else None
        raise NotExpandable

    def _messages(self, question: Question, steps: list[Step], before: str) -> list[Any]:
        prefix = join_steps(steps, self.settings.delimiter) + before
        return compose([HumanMessage(question.text)], self.settings.instruction, prefix)

    def _end_if_last(self, node: Node, steps: list[Step], question: Question) -> None:
        if end_of_solution(steps, self.settings) is None:
            return
        text = join_steps(steps, self.settings.delimiter)
        solution = text.removesuffix(separator_of(steps[-1], self.settings.delimiter))
        node.ended = True
        node.correct = question.is_right(solution) is True


class ExpandingRollouts(Rollouts):
    """Rollouts of trees that are expanded where a rollout takes an unexplored branch.

    Args:
        trees: Trees of questions with distinct texts.
        expander: Holds the models that wrote the trees.

    Attributes:
        expanded: Indexes of the questions whose trees were expanded here.
    """

    def __init__(self, trees: Sequence[Tree], expander: TreeExpander) -> None:
        super().__init__([tree.question for tree in trees], max_steps=expander.settings.max_steps)
        self.trees, self.expander = list(trees), expander
        self.expanded: set[int] = set()

    def expand(self, scripts: Mapping[int, Script]) -> None:
        """Expands the nodes at the ends of scripts."""

        async def expand_one(index: int) -> None:
            await self.expander.expand_node(self.trees[index], scripts[index])
            self.expanded.add(index)

        asyncio.run(run_each(expand_one, scripts, concurrency=min(self.concurrency, len(scripts))))


def _stored_step(text: str) -> Step:
    return Step(text=text, writer="small", model="", tokens=0, mean_token_probability=None, end="delimiter")
