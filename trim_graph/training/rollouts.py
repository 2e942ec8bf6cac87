"""Rollout trees: recorded runs of a graph, on which policies are evaluated offline, without a model.

Trees are stored as JSON records.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

from trim_graph.budget import Writer
from trim_graph.budget.usage import zero_usage
from trim_graph.errors import InputError, TrimError
from trim_graph.evaluation import Question
from trim_graph.evaluation.records import RecordStep, WorkItem
from trim_graph.evaluation.runner import run_each, run_question
from trim_graph.evaluation.traces import Source, Trace, trace_of
from trim_graph.policies import Choice, Observation, Policy
from trim_graph.routing import Router, RunView
from trim_graph.routing.explain import STOP_REASONS
from trim_graph.settings import Settings
from trim_graph.state import SCHEMA_VERSION, Draft, Run, StepRequest, TrimState, reduce_state

_COMPLETE = {name for name, reason in STOP_REASONS.items() if reason.complete}


class RolloutError(TrimError):
    """A run failed or was stopped; nothing can be learned from it."""


@dataclass(slots=True)
class Written:
    """A step that a model wrote at a node of a tree.

    Attributes:
        ends: Whether the model ends the solution with it; None where only the next node shows it.
    """

    text: str
    tokens: int
    probability: float | None = None
    ends: bool | None = None


@dataclass(slots=True, eq=False)
class Node:
    """A node of a rollout tree: a partial or a whole solution.

    Attributes:
        steps: Texts of its steps.
        score: Score of the last step.
        draft: Next step of the small model; None where no run has reached the node.
        draft_score: Score of the draft.
        large: Next step of the large model; None where no run has asked for it.
        ended: Whether the solution ends here; None where no run has reached the node.
        correct: Whether the ended solution is right.
        entropy: Entropy in nats of the small model's next token; None where it was not measured.
        accepted: Child behind the draft.
        regenerated: Child behind the large model's step.
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
        """Returns the child of a decision; None where no run has reached it."""
        child = self.regenerated if regenerate else self.accepted
        return child if child is not None and child.ended is not None else None


class Tree:
    """Rollouts of one question, as a tree of partial solutions.

    Attributes:
        contradictions: How often a run wrote another text than an earlier run at the same node. The last
            text is kept.
        runs: Count of the runs that were added.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.nodes: dict[tuple[str, ...], Node] = {}
        self.root = self.node(())
        self.contradictions = self.runs = 0

    def add(self, trace: Trace) -> None:
        """Adds a run to the tree.

        Raises:
            RolloutError: The run failed, was stopped by a limit, or was handed over to the large model.
        """
        if trace["error"] or trace["stopped"] not in _COMPLETE:
            why = trace["error"] or f"it was stopped: {trace['stopped']}"
            raise RolloutError(f"no rollout of {trace['question'][:80]!r}: {why}")
        node = self.root
        for step in trace["steps"]:
            node = self._step(node, step)
        node.ended, node.correct = True, bool(trace["correct"])
        self.runs += 1

    def unexplored(self) -> list[bool] | None:
        """Returns the script of the shortest run into an unexplored branch; None where there is none."""
        queue: list[tuple[Node, list[bool]]] = [(self.root, [])]
        for node, script in queue:
            if node.ended is None:
                return script
            if node.ended:
                continue
            for regenerate in (False, True):
                child = node.after(regenerate)
                if child is None:
                    return [*script, regenerate]
                # Both models may write the same text: the child is visited once.
                if regenerate is False or child is not node.accepted:
                    queue.append((child, [*script, regenerate]))
        return None

    def node(self, steps: tuple[str, ...]) -> Node:
        """Returns the node of a partial solution, a new one if there is none."""
        return self.nodes.setdefault(steps, Node(steps))

    def _step(self, node: Node, step: RecordStep) -> Node:
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
        node.accepted = self.node((*node.steps, node.draft.text))
        node.accepted.score = node.draft_score
        if not regenerated:
            return node.accepted
        node.large = self._newest(node.large, Written(step["text"], step["tokens"]))
        node.regenerated = self.node((*node.steps, node.large.text))
        if node.regenerated.score is None:
            node.regenerated.score = step["score"]
        return node.regenerated

    def _newest(self, known: Written | None, seen: Written) -> Written:
        if known is not None:
            self.contradictions += known.text != seen.text
            if seen.probability is None and known.text == seen.text:
                seen.probability = known.probability
        return seen


Script = Sequence[bool]
"""Whether each draft of a run is regenerated, in their order."""

SOURCE = Source(dataset="rollouts", split=None, policy={"type": "scripted"})


class ScriptedPolicy(Policy):
    """Follows a script for each question, and regenerates every draft behind its end.

    Attributes:
        scripts: By question. A script may change between runs, not during a run of its question.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    def decide(self, observation: Observation) -> Choice:
        """Returns the next decision of the script."""
        script, turn = self.scripts.get(observation.question, ()), observation.memory or 0
        return Choice("regenerate" if turn >= len(script) or script[turn] else "accept", turn + 1)


class Rollouts:
    """Rollouts of many questions.

    Args:
        questions: Questions with distinct texts.
        build: Makes the graph of a policy: ``lambda policy: create_trim_graph(small, large, scorer,
            policy=policy)``. None where only recorded branches may be taken.
        max_steps: The setting of the graph.
        concurrency: Most runs at a time.
        on_trace: Called with each new run of the graph.

    Attributes:
        runs: Runs of the graph so far.

    Raises:
        RolloutError: Two questions have the same text.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        build: Callable[[Policy], Any] | None = None,
        *,
        max_steps: int = 32,
        concurrency: int = 128,
        on_trace: Callable[[Trace], None] = lambda trace: None,
    ) -> None:
        self.trees = [Tree(question) for question in questions]
        self._index_of = {question.text: index for index, question in enumerate(questions)}
        if len(self._index_of) != len(questions):
            raise RolloutError("two questions have the same text")
        self.max_steps, self.concurrency, self.on_trace = max_steps, concurrency, on_trace
        self._scripted = ScriptedPolicy()
        self._build = build
        self._built: Any = None
        self.traces: list[Trace] = []
        self.runs = 0

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def contradictions(self) -> int:
        """Count of runs that wrote another text than an earlier run at the same node."""
        return sum(tree.contradictions for tree in self.trees)

    def add(self, traces: Iterable[Trace]) -> None:
        """Adds recorded runs; those of other questions are skipped."""
        for trace in traces:
            index = self._index_of.get(trace["question"])
            if index is not None:
                self.trees[index].add(trace)
                self.traces.append(trace)

    async def explore(self, rounds: int, on_round: Callable[[int, int], None] | None = None) -> int:
        """Runs each question until its tree has no unexplored branch.

        Args:
            rounds: Most runs of a question, those that were added before included.
            on_round: Called after each round with its number and the number of unexplored questions.

        Returns:
            How many questions have unexplored branches left. These are run once a rollout takes them.
        """
        done = 0
        while True:
            open_ones = {
                index: script
                for index, tree in enumerate(self.trees)
                if (script := tree.unexplored()) is not None
            }
            if on_round is not None:
                on_round(done, len(open_ones))
            scripts = {
                index: script for index, script in open_ones.items() if self.trees[index].runs < rounds
            }
            if not scripts:
                return len(open_ones)
            await self._run(scripts)
            done += 1

    def expand(self, scripts: Mapping[int, Script]) -> None:
        """Runs questions by scripts, all at a time, to explore the branches that rollouts take.

        Args:
            scripts: By the index of the question.
        """
        asyncio.run(self._run(scripts))

    def follow(self, policy: Policy, indexes: Collection[int]) -> None:
        """Runs questions by a policy, all at a time: one run explores all branches that it takes.

        Without a graph nothing is run.

        Args:
            policy: Decides on every draft by its score.
            indexes: Of the questions.
        """
        if self._build is not None:
            asyncio.run(self._run_each(self._build(policy), indexes))

    async def _run(self, scripts: Mapping[int, Script]) -> None:
        if self._build is None:
            raise RolloutError("a rollout takes a branch that was not recorded, and there is no graph to run")
        if self._built is None:
            self._built = self._build(self._scripted)
        for index, script in scripts.items():
            self._scripted.scripts[self.trees[index].question.text] = script
        await self._run_each(self._built, scripts)

    async def _run_each(self, graph: Any, indexes: Collection[int]) -> None:
        async def work(index: int) -> None:
            record = await run_question(graph, WorkItem(index, 0, self.trees[index].question))
            self.keep(trace_of(record, SOURCE))

        await run_each(work, indexes, concurrency=min(self.concurrency, len(indexes)))

    def nondeterminism_error(self, index: int) -> RolloutError:
        """Returns the error of a question whose models wrote another text when asked again."""
        return RolloutError(
            f"the models wrote something else when asked again about "
            f"{self.trees[index].question.text[:80]!r}: they are not deterministic"
        )

    def keep(self, trace: Trace) -> None:
        """Adds a new run of the graph.

        Args:
            trace: Its ``index`` is the index of the question.
        """
        self.trees[trace["index"]].add(trace)
        self.traces.append(trace)
        self.runs += 1
        self.on_trace(trace)


class UnexploredBranch(Exception):
    """A deferred rollout takes a branch that no run has explored.

    Attributes:
        script: The decisions up to and into the branch.
    """

    def __init__(self, script: Script) -> None:
        super().__init__("no run has explored this branch")
        self.script = script


def run_batched(
    rollouts: Rollouts,
    run: Callable[[Rollout], None],
    follow: Callable[[Collection[int]], None] | None = None,
) -> list[Rollout]:
    """Runs a rollout of each question; unexplored branches are expanded for all questions at a time.

    Args:
        rollouts: Trees of the questions.
        run: Takes the decisions of one rollout, up to its end. It is called with a new rollout once an
            unexplored branch is expanded, and must then decide the same again.
        follow: Explores what `run` takes of questions, before their branches are expanded one by one.

    Returns:
        The ended rollouts, in the order of the questions.

    Raises:
        RolloutError: A branch stays unexplored, because the models wrote another text when asked again.
    """
    ended: dict[int, Rollout] = {}
    unexplored: dict[int, Script] = {}
    left: Iterable[int] = range(len(rollouts))
    while left:
        before, unexplored = unexplored, {}
        for index in left:
            try:
                ended[index] = Rollout(rollouts, index, deferred=True)
                run(ended[index])
            except UnexploredBranch as branch:
                if before.get(index) == branch.script:
                    raise rollouts.nondeterminism_error(index) from None
                unexplored[index] = branch.script
        left = list(unexplored)
        if follow is not None and unexplored:
            follow(left)
            follow, unexplored = None, {}
        elif unexplored:
            rollouts.expand(unexplored)
    return [ended[index] for index in range(len(rollouts))]


@dataclass(slots=True)
class Rollout:
    """One solution, replayed from a tree decision by decision.

    Attributes:
        deferred: Whether an unexplored branch raises `UnexploredBranch` instead of being expanded at once.
        large_tokens: Tokens of the large model's steps so far.
    """

    rollouts: Rollouts
    index: int
    deferred: bool = False
    node: Node = field(init=False)
    script: list[bool] = field(default_factory=list)
    scores: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    writers: tuple[Writer, ...] = ()
    large_tokens: int = 0

    def __post_init__(self) -> None:
        self.node = self.rollouts.trees[self.index].root
        if self.node.ended is None:
            self._expand([])

    @property
    def ended(self) -> bool:
        """Whether the solution has ended."""
        return bool(self.node.ended)

    @property
    def correct(self) -> bool:
        """Whether it ended right."""
        return self.node.correct

    def observation(self) -> Observation:
        """Returns the observation that the graph shows to a policy that decides on the draft."""
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

    def missing(self, regenerate: bool) -> Script | None:
        """Returns the script of the run that a decision waits for; None where its branch is explored."""
        return None if self.node.after(regenerate) is not None else (*self.script, regenerate)

    def ends(self, regenerate: bool) -> bool:
        """Returns whether the next step ends the solution by itself, and not by the limit on steps.

        Args:
            regenerate: Whether the large model writes the step.
        """
        draft = self.node.draft
        if not regenerate and draft is not None and draft.ends is not None:
            return draft.ends
        if self.node.after(regenerate) is None:
            self._expand([*self.script, regenerate])
        child = self.node.after(regenerate)
        return child is not None and bool(child.ended) and len(child.steps) < self.rollouts.max_steps

    def decide(self, regenerate: bool) -> int:
        """Carries out a decision.

        Returns:
            Tokens of the large model that it used.
        """
        self.script.append(regenerate)
        if self.node.after(regenerate) is None:
            self._expand(self.script)
        child = self.node.after(regenerate)
        if child is None:
            raise self.rollouts.nondeterminism_error(self.index)
        written = self.node.large if regenerate else self.node.draft
        writer: Literal["small", "large"] = "large" if regenerate else "small"
        assert written is not None
        self.node = child
        self.scores = (*self.scores, child.score)
        self.tokens = (*self.tokens, written.tokens)
        self.writers = (*self.writers, writer)
        spent = written.tokens if regenerate else 0
        self.large_tokens += spent
        return spent

    def _expand(self, script: Script) -> None:
        if self.deferred:
            raise UnexploredBranch(tuple(script))
        self.rollouts.expand({self.index: script})


def to_record(tree: Tree) -> dict[str, Any]:
    """Returns a tree as a JSON record: the question's text and the nodes. Nodes name children by number.

    Args:
        tree: May have unexplored branches.
    """
    numbers = {node: number for number, node in enumerate(tree.nodes.values())}
    return {"question": tree.question.text, "nodes": [_node_record(node, numbers) for node in numbers]}


def _node_record(node: Node, numbers: dict[Node, int]) -> dict[str, Any]:
    known: dict[str, Any] = {"step": node.steps[-1] if node.steps else None, "score": node.score}
    if node.ended:
        return {**known, "correct": node.correct}
    for name, written, child in (
        ("draft", node.draft, node.accepted),
        ("large", node.large, node.regenerated),
    ):
        if written is not None and child is not None:
            known[name] = {"to": numbers[child], "tokens": written.tokens}
            optional = {"probability": written.probability, "ends": written.ends}
            known[name] |= {key: value for key, value in optional.items() if value is not None}
    return {**known, "draft_score": node.draft_score, "entropy": node.entropy}


def from_record(question: Question, record: dict[str, Any]) -> Tree:
    """Returns the tree of a record.

    Raises:
        InputError: The record is of another question, or is damaged.
    """
    if record.get("question") != question.text:
        raise InputError(
            f"a recorded tree is of the question {str(record.get('question'))[:80]!r}; expected "
            f"{question.text[:80]!r}"
        )
    tree = Tree(question)
    try:
        nodes, reached = record["nodes"], {0: tree.root}
        for number, kept in enumerate(nodes):
            _restore(tree, reached[number], kept, nodes, reached)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the recorded tree of {question.text[:80]!r} is damaged: {error!r}") from error
    return tree


def _restore(
    tree: Tree, node: Node, kept: dict[str, Any], nodes: list[dict[str, Any]], reached: dict[int, Node]
) -> None:
    node.score = kept["score"]
    if "correct" in kept:
        node.ended, node.correct = True, kept["correct"]
        return
    if "draft" in kept:
        node.ended = False
    node.draft_score, node.entropy = kept["draft_score"], kept["entropy"]
    for name in ("draft", "large"):
        if name not in kept:
            continue
        step = kept[name]
        to = step["to"]
        text = nodes[to]["step"]
        reached[to] = tree.node((*node.steps, text))
        written = Written(text, step["tokens"], step.get("probability"), step.get("ends"))
        if name == "draft":
            node.draft, node.accepted = written, reached[to]
        else:
            node.large, node.regenerated = written, reached[to]


_ROUTER = Router()
_NO_LIMIT = 1_000_000
"""Supersteps of a rollout: they are not limited."""


def evaluate_offline(
    rollouts: Rollouts, policy: Policy, *, seed: int = 0, follow: bool = False
) -> list[Rollout]:
    """Evaluates a policy on rollout trees, by the rules of the graph's own router.

    Args:
        rollouts: Trees of the questions.
        policy: The policy.
        seed: The ``seed`` of the graph's settings, on which random policies draw.
        follow: Whether the policy itself runs questions with unexplored branches first, in one run each. It
            must decide on every draft by its score, as a learned policy does.

    Returns:
        The ended rollouts, in the order of the questions.

    Raises:
        RolloutError: The policy asks for a probe, and no entropy was recorded.
    """
    # The tree records where a solution ends, loops included.
    settings = Settings(max_steps=rollouts.max_steps, max_repeats=None, thinking=None).model_dump(mode="json")

    def run(rollout: Rollout) -> None:
        state = _initial_state(rollout, settings, seed)
        view = RunView(state, policy)
        while not rollout.ended:
            action = _ROUTER.next(view)
            if "steps" in action.update:
                rollout.decide(action.update["steps"][0]["writer"] == "large")
            state = _with_recorded(rollout, policy, reduce_state(state, action.update))
            view = view.after(state)

    return run_batched(rollouts, run, partial(rollouts.follow, policy) if follow else None)


def _initial_state(rollout: Rollout, settings: dict[str, object], seed: int) -> TrimState:
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


def _with_recorded(rollout: Rollout, policy: Policy, state: TrimState) -> TrimState:
    """Returns the state with the recorded answer to a request."""
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
    # Whether the small model's step ends the solution only counts where it is accepted, which explores it.
    known = large or node.after(False) is not None or (node.draft is not None and node.draft.ends is not None)
    ends = known and rollout.ends(large)
    written = node.large if large else node.draft
    assert written is not None
    return Draft(
        text=written.text,
        writer=request["writer"],
        model="",
        tokens=written.tokens,
        mean_token_probability=None if large else written.probability,
        end="eos" if ends else "delimiter",
        score=node.draft_score if request["needs_score"] else None,
    )
