"""Rollouts of a graph, recorded as trees, so that a rollout taken again needs no model.

A policy is evaluated offline on such trees, and trees are kept as JSON records.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from trim_graph.budget import Writer
from trim_graph.budget.usage import zero_usage
from trim_graph.errors import InputError, TrimError
from trim_graph.evaluation import Question
from trim_graph.evaluation.runner import run_each
from trim_graph.evaluation.traces import Graph, Source, Trace, TraceStep, make_trace
from trim_graph.policies import Choice, Observation, Policy
from trim_graph.routing import Action, Router, RunView
from trim_graph.settings import Settings
from trim_graph.state import SCHEMA_VERSION, Draft, Run, StepRequest, TrimState, applied

DONE = ("finished", "max_steps", "loop", "no_step")
"""How a run ends by itself."""


class RolloutError(TrimError):
    """A run failed or was stopped, so that its question cannot be learned from."""


@dataclass(slots=True)
class Written:
    """A step that a model wrote at a node.

    Attributes:
        ends: Whether the model ends the solution with it; None where that shows only in what follows.
    """

    text: str
    tokens: int
    probability: float | None = None
    ends: bool | None = None


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
        entropy: Of the first token that the small model writes next, in nats; None where nobody has asked.
    """

    steps: tuple[str, ...]
    score: float | None = None
    draft: Written | None = None
    draft_score: float | None = None
    large: Written | None = None
    ended: bool | None = None
    correct: bool = False
    entropy: float | None = None
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
        self.root = self.place(())
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

    def place(self, steps: tuple[str, ...]) -> Node:
        """Return the node of a text, made if it is not there."""
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
        node.accepted = self.place((*node.steps, node.draft.text))
        node.accepted.score = node.draft_score
        if not regenerated:
            return node.accepted
        node.large = self._newest(node.large, Written(step["text"], step["tokens"]))
        node.regenerated = self.place((*node.steps, node.large.text))
        if node.regenerated.score is None:
            node.regenerated.score = step["score"]
        return node.regenerated

    def _newest(self, known: Written | None, seen: Written) -> Written:
        if known is not None:
            self.contradictions += known.text != seen.text
            if seen.probability is None and known.text == seen.text:
                seen.probability = known.probability
        return seen


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


def to_record(tree: Tree) -> dict[str, Any]:
    """Return the question's text and every place; places name those behind them by their number.

    Args:
        tree: As far as it is known.
    """
    numbers = {node: number for number, node in enumerate(tree.nodes.values())}
    return {"question": tree.question.text, "places": [_place(node, numbers) for node in numbers]}


def _place(node: Node, numbers: dict[Node, int]) -> dict[str, Any]:
    known: dict[str, Any] = {"step": node.steps[-1] if node.steps else None, "score": node.score}
    if node.ended:
        return {**known, "correct": node.correct}
    for name, written, behind in (
        ("draft", node.draft, node.accepted),
        ("large", node.large, node.regenerated),
    ):
        if written is not None and behind is not None:
            known[name] = {"to": numbers[behind], "tokens": written.tokens}
            told = {"probability": written.probability, "ends": written.ends}
            known[name] |= {key: value for key, value in told.items() if value is not None}
    return {**known, "draft_score": node.draft_score, "entropy": node.entropy}


def from_record(question: Question, record: dict[str, Any]) -> Tree:
    """Make the tree of a question again.

    Raises:
        InputError: The record is of another question, or is none.
    """
    if record.get("question") != question.text:
        raise InputError(
            f"a recorded tree is of the question {str(record.get('question'))[:80]!r}; expected "
            f"{question.text[:80]!r}"
        )
    tree = Tree(question)
    try:
        places, reached = record["places"], {0: tree.root}
        for number, place in enumerate(places):
            _restore(tree, reached[number], place, places, reached)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the recorded tree of {question.text[:80]!r} is damaged: {error!r}") from error
    return tree


def _restore(
    tree: Tree, node: Node, place: dict[str, Any], places: list[dict[str, Any]], reached: dict[int, Node]
) -> None:
    node.score = place["score"]
    if "correct" in place:
        node.ended, node.correct = True, place["correct"]
        return
    if "draft" in place:
        node.ended = False
    node.draft_score, node.entropy = place["draft_score"], place["entropy"]
    for name in ("draft", "large"):
        if name not in place:
            continue
        to = place[name]["to"]
        text = places[to]["step"]
        reached[to] = tree.place((*node.steps, text))
        kept = place[name]
        written = Written(text, kept["tokens"], kept.get("probability"), kept.get("ends"))
        if name == "draft":
            node.draft, node.accepted = written, reached[to]
        else:
            node.large, node.regenerated = written, reached[to]


_ROUTER = Router()
_NO_LIMIT = 1_000_000
"""Supersteps: a rollout has none."""


def solve(rollouts: Rollouts, policy: Policy, *, seed: int = 0) -> list[Rollout]:
    """Let a policy decide on every question, and return the ended rollouts in their order.

    Args:
        rollouts: Of the questions.
        policy: Any.
        seed: Of random policies: they draw as in a graph with this seed in its settings.

    Raises:
        RolloutError: The policy asks for a probe, and no entropy was recorded.
    """
    # Where a solution ends is recorded, loops included.
    settings = Settings(max_steps=rollouts.max_steps, max_repeats=None, thinking=None).model_dump(mode="json")

    def lead(rollout: Rollout) -> None:
        state = _begun(rollout, settings, seed)
        view = RunView(state, policy)
        while not rollout.ended:
            action = _ROUTER.next(view)
            if "steps" in action.update:
                rollout.decide(action.update["steps"][0]["writer"] == "large")
            state = _written(rollout, policy, applied(state, action.update), action)
            view = view.after(state)

    return in_rounds(rollouts, lead)


def _begun(rollout: Rollout, settings: dict[str, object], seed: int) -> TrimState:
    question = rollout.rollouts.trees[rollout.index].question.text
    # The seed of `trim_graph.run.begin_run`.
    own = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
    return TrimState(
        messages=[],
        run=Run(
            schema=SCHEMA_VERSION,
            id="",
            message_id="",
            seed=f"{seed}:{own}",
            question=question,
            settings=settings,
        ),
        steps=[],
        scores={},
        decisions=[],
        usage=zero_usage(),
        remaining_steps=_NO_LIMIT,
    )


def _written(rollout: Rollout, policy: Policy, state: TrimState, action: Action) -> TrimState:
    """Return the state with what the ordered writer has written, as it was recorded."""
    request = state.get("request")
    while request is not None and request["until_eos"] and not rollout.ended:
        rollout.decide(True)
    if request is None or rollout.ended:
        return state
    if "probe" in request:
        entropy = rollout.node.entropy
        if entropy is None:
            raise RolloutError(f"policy {policy!r} asks for a probe, and no entropy was recorded")
        probed = StepRequest(**{**request, "probe": {"entropy": entropy, "unobserved_probability": None}})
        return cast(TrimState, {**state, "request": probed})
    draft = _draft(rollout, request)
    if not request["needs_score"]:
        return cast(TrimState, {**state, "draft": draft})
    # A step of the large model is scored together with the draft that follows.
    scores = {str(index): score for index, score in enumerate(rollout.scores) if score is not None}
    return cast(TrimState, {**state, "draft": draft, "scores": scores})


def _draft(rollout: Rollout, request: StepRequest) -> Draft:
    node, large = rollout.node, request["writer"] == "large"
    written = node.large if large else node.draft
    assert written is not None
    return Draft(
        text=written.text,
        writer=request["writer"],
        model="",
        tokens=written.tokens,
        mean_token_probability=None if large else written.probability,
        end="eos" if rollout.ends(large) else "delimiter",
        score=node.draft_score if request["needs_score"] else None,
    )
