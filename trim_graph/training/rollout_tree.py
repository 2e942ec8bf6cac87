"""What rollouts of a question have shown, as a tree: what follows each text that has been accepted so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trim_graph.errors import TrimError
from trim_graph.evaluation import Question

from .traces import Trace, TraceStep

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
