"""Rollouts of a graph, recorded as trees, so that a rollout taken again needs no model.

Where the models are deterministic (temperature 0), what follows is a function of the text so far: a node
is the text of the accepted steps, and from it two ways lead on, the small model's draft and what the large
model writes in its place. Everything in a tree was written by the graph itself with its real models:
`Rollouts` runs it under plans (`Planned`) and keeps what it wrote. A way that no run has taken is run when
somebody takes it.

A recorded rollout is exact, the same texts, scores and tokens as the graph's, where

- the models are deterministic. At a temperature above 0 a node keeps the one continuation that was drawn
  there: a sample of what the models may write, not the whole of it;
- a score depends on the texts only, not on who wrote them (a scorer by token confidence is not of this kind);
- the run has no budget: it would change decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trim_graph.budget import Writer
from trim_graph.evaluation import Question
from trim_graph.evaluation.runner import run_each
from trim_graph.policies import Choice, Observation, Policy

from .collecting import Graph, Source, make_trace
from .rollout_tree import Node, RolloutError, Tree
from .traces import Trace

Plan = Sequence[bool]
"""For each draft in turn, whether it is regenerated."""

SOURCE = Source(dataset="rollouts", split=None, policy={"type": "planned"}, seed=None)


class Planned(Policy):
    """Goes by a plan for each question; where it ends, every further draft is regenerated.

    Attributes:
        plans: By question. May change between runs, not during one of the same question.
    """

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}

    def decide(self, observation: Observation) -> Choice:
        """Take the decision whose turn it is."""
        plan, turn = self.plans.get(observation.question, ()), observation.memory or 0
        return Choice("regenerate" if turn >= len(plan) or plan[turn] else "accept", turn + 1)


class Rollouts:
    """Rollouts of many questions.

    Args:
        questions: Each with another text.
        build: Makes the graph for a policy: ``lambda policy: create_trim_graph(small, large, scorer,
            policy=policy)``. None where only what is recorded may be taken.
        max_steps: Of the graph's settings.
        concurrency: Most runs under way at once.
        on_trace: Called with each run of the graph as it ends: to keep it.

    Raises:
        RolloutError: Two questions have the same text.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        build: Callable[[Policy], Graph] | None = None,
        *,
        max_steps: int = 32,
        concurrency: int = 128,
        on_trace: Callable[[Trace], None] = lambda trace: None,
    ) -> None:
        self.trees = [Tree(question) for question in questions]
        self._place = {question.text: index for index, question in enumerate(questions)}
        if len(self._place) != len(questions):
            raise RolloutError("two questions have the same text")
        self.max_steps, self.concurrency, self.on_trace = max_steps, concurrency, on_trace
        self._planned = Planned()
        self._build = build
        self._built: Graph | None = None
        self.traces: list[Trace] = []
        self.runs = 0
        """Of the graph, so far."""

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def contradictions(self) -> int:
        """How often a run wrote something else than one before it."""
        return sum(tree.contradictions for tree in self.trees)

    def add(self, traces: Iterable[Trace]) -> None:
        """Take in recorded runs; those of other questions are passed over."""
        for trace in traces:
            place = self._place.get(trace["question"])
            if place is not None:
                self.trees[place].add(trace)
                self.traces.append(trace)

    async def explore(self, rounds: int, tell: Callable[[int, int], None] | None = None) -> int:
        """Run each question until all its ways are known, at most so many times.

        Args:
            rounds: Most runs of a question.
            tell: Called after each round with its number and how many questions still have unknown ways.

        Returns:
            How many questions have unknown ways left; these are run when they are taken.
        """
        left = 0
        for turn in range(rounds + 1):
            plans = {
                index: plan for index, tree in enumerate(self.trees) if (plan := tree.unknown()) is not None
            }
            left = len(plans)
            if tell is not None:
                tell(turn, left)
            if not plans or turn == rounds:
                break
            await self._run(plans)
        return left

    def find(self, plans: Mapping[int, Plan]) -> None:
        """Run questions by plans, all at a time, because rollouts take ways that no run has taken.

        Args:
            plans: By the place of the question among these.
        """
        asyncio.run(self._run(plans))

    async def _run(self, plans: Mapping[int, Plan]) -> None:
        if self._build is None:
            raise RolloutError("a rollout takes a way that was not recorded, and there is no graph to run")
        if self._built is None:
            self._built = self._build(self._planned)
        for index, plan in plans.items():
            self._planned.plans[self.trees[index].question.text] = plan
        graph = self._built

        async def work(index: int) -> None:
            self.keep(await make_trace(graph, (index, self.trees[index].question), SOURCE))

        await run_each(work, plans, concurrency=min(self.concurrency, len(plans)))

    def changed(self, index: int) -> RolloutError:
        """Return the error that says that a question's models wrote something else when asked again."""
        return RolloutError(
            f"the models wrote something else when asked again about "
            f"{self.trees[index].question.text[:80]!r}: they are not deterministic"
        )

    def keep(self, trace: Trace) -> None:
        """Take in a run of the graph that has just ended.

        Args:
            trace: Its ``index`` is that of the question among these.
        """
        self.trees[trace["index"]].add(trace)
        self.traces.append(trace)
        self.runs += 1
        self.on_trace(trace)


class NotYetKnown(Exception):
    """A rollout that puts off what it lacks has come to a way that no run has taken.

    Attributes:
        plan: The way.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__("no run has taken this way")
        self.plan = plan


def in_rounds(rollouts: Rollouts, lead: Callable[[Rollout], None]) -> list[Rollout]:
    """Lead a rollout of each question to its end; what they lack is found for all of them at a time.

    Args:
        rollouts: Of the questions.
        lead: Takes the decisions, from the question to the end. It is called again for a rollout that came to
            an unknown way, with a new one, so it has to decide the same again.

    Returns:
        The ended rollouts, in the order of the questions.

    Raises:
        RolloutError: A way stays unknown: the models wrote something else when asked again.
    """
    ended: dict[int, Rollout] = {}
    unknown: dict[int, Plan] = {}
    left: Iterable[int] = range(len(rollouts))
    while left:
        before, unknown = unknown, {}
        for index in left:
            try:
                ended[index] = Rollout(rollouts, index, puts_off=True)
                lead(ended[index])
            except NotYetKnown as way:
                if before.get(index) == way.plan:
                    raise rollouts.changed(index) from None
                unknown[index] = way.plan
        if unknown:
            rollouts.find(unknown)
        left = list(unknown)
    return [ended[index] for index in range(len(rollouts))]


@dataclass(slots=True)
class Rollout:
    """One solution under way, taken from a tree.

    Attributes:
        puts_off: Whether an unknown way raises `NotYetKnown` in place of being found at once.
        large_tokens: Tokens of the large model's steps so far.
    """

    rollouts: Rollouts
    index: int
    puts_off: bool = False
    node: Node = field(init=False)
    plan: list[bool] = field(default_factory=list)
    scores: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    writers: tuple[Writer, ...] = ()
    large_tokens: int = 0

    def __post_init__(self) -> None:
        self.node = self.rollouts.trees[self.index].root
        if self.node.ended is None:
            self._find([])

    @property
    def ended(self) -> bool:
        """Whether the solution has ended."""
        return bool(self.node.ended)

    @property
    def correct(self) -> bool:
        """Whether it ended right."""
        return self.node.correct

    def observation(self) -> Observation:
        """Return what the graph would show a policy that decides on the draft."""
        draft = self.node.draft
        assert draft is not None
        return Observation(
            question=self.rollouts.trees[self.index].question.text,
            index=len(self.scores),
            max_steps=self.rollouts.max_steps,
            scores=self.scores,
            tokens=self.tokens,
            writers=self.writers,
            score=self.node.draft_score,
            draft=draft.text,
            draft_tokens=draft.tokens,
            draft_probability=draft.probability,
        )

    def ends(self, regenerate: bool) -> bool:
        """Tell whether the solution ends with the next step, by its own account and not for want of steps.

        Args:
            regenerate: Whether the large model writes it, in place of the draft.
        """
        draft = self.node.draft
        if not regenerate and draft is not None and draft.ends is not None:
            return draft.ends
        if self.node.after(regenerate) is None:
            self._find([*self.plan, regenerate])
        behind = self.node.after(regenerate)
        return behind is not None and bool(behind.ended) and len(behind.steps) < self.rollouts.max_steps

    def decide(self, regenerate: bool) -> int:
        """Carry out a decision.

        Returns:
            The large tokens it took.
        """
        self.plan.append(regenerate)
        if self.node.after(regenerate) is None:
            self._find(self.plan)
        behind = self.node.after(regenerate)
        if behind is None:
            raise self.rollouts.changed(self.index)
        written = self.node.large if regenerate else self.node.draft
        writer: Literal["small", "large"] = "large" if regenerate else "small"
        assert written is not None
        self.node = behind
        self.scores = (*self.scores, behind.score)
        self.tokens = (*self.tokens, written.tokens)
        self.writers = (*self.writers, writer)
        spent = written.tokens if regenerate else 0
        self.large_tokens += spent
        return spent

    def _find(self, plan: Plan) -> None:
        if self.puts_off:
            raise NotYetKnown(tuple(plan))
        self.rollouts.find({self.index: plan})
