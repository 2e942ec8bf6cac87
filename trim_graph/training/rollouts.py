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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trim_graph.budget import Writer
from trim_graph.errors import TrimError
from trim_graph.evaluation import Question
from trim_graph.policies import Choice, Observation, Policy
from trim_graph.policies.base import DECISIONS, checked, remembering

from .collecting import Graph, Source, collect
from .traces import Trace, TraceStep

Plan = Sequence[bool]
"""For each draft in turn, whether it is regenerated."""

SOURCE = Source(dataset="rollouts", split=None, policy={"type": "planned"}, seed=None)

DONE = ("finished", "max_steps", "no_step")
"""How a run ends by itself."""


class RolloutError(TrimError):
    """A run failed or was stopped, so that its question cannot be learned from."""


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


@dataclass(slots=True)
class Written:
    """A step that a model wrote at a node."""

    text: str
    tokens: int
    probability: float | None = None


@dataclass(slots=True, eq=False)
class Node:
    """The solution so far.

    Attributes:
        steps: Its steps' texts.
        score: Of the last of them.
        draft: What the small model writes next; None where no run has got here.
        draft_score: Its score.
        large: What the large model writes in its place; None where no run has asked.
        ended: Whether the solution ends here; None where no run has got here.
        correct: Whether it is right, where it ends.
    """

    steps: tuple[str, ...]
    score: float | None = None
    draft: Written | None = None
    draft_score: float | None = None
    large: Written | None = None
    ended: bool | None = None
    correct: bool = False
    accepted: Node | None = field(default=None, repr=False)
    regenerated: Node | None = field(default=None, repr=False)

    def after(self, regenerate: bool) -> Node | None:
        """Return the node a decision leads to; None where no run has got there."""
        node = self.regenerated if regenerate else self.accepted
        return node if node is not None and node.ended is not None else None


class Tree:
    """What is known of one question."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.nodes: dict[tuple[str, ...], Node] = {}
        self.root = self._node(())
        self.contradictions = 0
        """How often a run wrote something else than one before it at the same place; the last counts."""

    def add(self, trace: Trace) -> None:
        """Take in a run.

        Raises:
            RolloutError: It failed, was stopped by a limit, or went on to the end with the large model.
        """
        if trace["error"] or trace["stopped"] not in DONE:
            why = trace["error"] or f"it was stopped: {trace['stopped']}"
            raise RolloutError(f"no rollout of {trace['question'][:80]!r}: {why}")
        node = self.root
        for step in trace["steps"]:
            node = self._step(node, step)
        node.ended, node.correct = True, bool(trace["correct"])

    def unknown(self) -> list[bool] | None:
        """Return the plan of the shortest run that finds something new; None where all is known."""
        queue: list[tuple[Node, list[bool]]] = [(self.root, [])]
        for node, plan in queue:
            if node.ended is None:
                return plan
            if node.ended:
                continue
            for regenerate in (False, True):
                behind = node.after(regenerate)
                if behind is None:
                    return [*plan, regenerate]
                # Both ways may lead to the same text: one look is enough.
                if regenerate is False or behind is not node.accepted:
                    queue.append((behind, [*plan, regenerate]))
        return None

    def _node(self, steps: tuple[str, ...]) -> Node:
        return self.nodes.setdefault(steps, Node(steps))

    def _step(self, node: Node, step: TraceStep) -> Node:
        if step["decision"] not in ("accept", "regenerate"):
            raise RolloutError(f"a rollout of {self.question.text[:80]!r} holds a step without a decision")
        regenerated = step["decision"] == "regenerate"
        if step["writer"] != ("large" if regenerated else "small"):
            raise RolloutError(f"the decision on a draft of {self.question.text[:80]!r} was not carried out")
        node.ended = False
        draft: Any = step["discarded"] if regenerated else step
        probability = draft.get("mean_token_probability")
        node.draft = self._newest(node.draft, Written(draft["text"], draft["tokens"], probability))
        node.draft_score = draft["score"]
        node.accepted = self._node((*node.steps, node.draft.text))
        node.accepted.score = node.draft_score
        if not regenerated:
            return node.accepted
        node.large = self._newest(node.large, Written(step["text"], step["tokens"]))
        node.regenerated = self._node((*node.steps, node.large.text))
        if node.regenerated.score is None:
            node.regenerated.score = step["score"]
        return node.regenerated

    def _newest(self, known: Written | None, seen: Written) -> Written:
        if known is not None:
            self.contradictions += known.text != seen.text
            if seen.probability is None and known.text == seen.text:
                seen.probability = known.probability
        return seen


class Rollouts:
    """Rollouts of many questions.

    Args:
        questions: Each with another text.
        build: Makes the graph for a policy: ``lambda policy: create_trim_graph(small, large, scorer,
            policy=policy)``. None where only what is recorded may be taken.
        max_steps: Of the graph's settings.
        concurrency: Most runs under way at once.

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
    ) -> None:
        self.trees = [Tree(question) for question in questions]
        self._place = {question.text: index for index, question in enumerate(questions)}
        if len(self._place) != len(questions):
            raise RolloutError("two questions have the same text")
        self.max_steps, self.concurrency = max_steps, concurrency
        self._planned = Planned()
        self._graph = None if build is None else build(self._planned)
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

    def find(self, index: int, plan: Plan) -> None:
        """Run a question by a plan, because a rollout takes a way that no run has taken."""
        asyncio.run(self._run({index: plan}))

    async def _run(self, plans: Mapping[int, Plan]) -> None:
        if self._graph is None:
            raise RolloutError("a rollout takes a way that was not recorded, and there is no graph to run")
        for index, plan in plans.items():
            self._planned.plans[self.trees[index].question.text] = plan
        await collect(
            self._graph,
            ((index, self.trees[index].question) for index in plans),
            SOURCE,
            on_trace=self._keep,
            concurrency=min(self.concurrency, len(plans)),
        )

    def _keep(self, trace: Trace) -> None:
        self.trees[trace["index"]].add(trace)
        self.traces.append(trace)
        self.runs += 1


@dataclass(slots=True)
class Rollout:
    """One solution under way, taken from a tree.

    Attributes:
        large_tokens: Tokens of the large model's steps so far.
    """

    rollouts: Rollouts
    index: int
    node: Node = field(init=False)
    plan: list[bool] = field(default_factory=list)
    scores: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    writers: tuple[Writer, ...] = ()
    large_tokens: int = 0

    def __post_init__(self) -> None:
        self.node = self.rollouts.trees[self.index].root
        if self.node.ended is None:
            self.rollouts.find(self.index, [])

    @property
    def ended(self) -> bool:
        """Whether the solution has ended."""
        return bool(self.node.ended)

    @property
    def correct(self) -> bool:
        """Whether it ended right."""
        return self.node.correct

    def observation(self) -> Observation:
        """Return what the graph would show a policy."""
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

    def decide(self, regenerate: bool) -> int:
        """Carry out a decision.

        Returns:
            The large tokens it took.
        """
        self.plan.append(regenerate)
        if self.node.after(regenerate) is None:
            self.rollouts.find(self.index, self.plan)
        behind = self.node.after(regenerate)
        if behind is None:
            raise RolloutError(
                f"the models wrote something else when asked again about "
                f"{self.rollouts.trees[self.index].question.text[:80]!r}: they are not deterministic"
            )
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


def solve(rollouts: Rollouts, policy: Policy) -> Iterator[Rollout]:
    """Let a policy decide on every question, and give each rollout when it has ended.

    Raises:
        RolloutError: The policy answers neither accept nor regenerate.
    """
    for index in range(len(rollouts)):
        rollout = Rollout(rollouts, index)
        memory: Any = None
        while not rollout.ended:
            seen = remembering(rollout.observation(), memory)
            choice = checked(policy.decide(seen), DECISIONS, policy, memory)
            if choice.value == "handover":
                raise RolloutError(
                    f"policy {policy!r} answered handover; rollouts know accept and regenerate"
                )
            memory = choice.memory
            rollout.decide(choice.value == "regenerate")
        yield rollout
