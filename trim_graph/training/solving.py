"""Let a policy solve recorded questions: what the graph would come to, read off rollout trees.

All that a policy may answer is followed: who writes the next step, the decision on a draft, a handover. Large
tokens are counted step by step, also where the graph has the large model go on to the end in one call.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from trim_graph.policies import Choice, Observation, Policy
from trim_graph.policies.base import DECISIONS, NEXT_WRITERS, WRITERS, checked

from .rollout_tree import RolloutError
from .rollouts import Rollout, Rollouts, in_rounds


def solve(rollouts: Rollouts, policy: Policy, *, seed: int = 0) -> list[Rollout]:
    """Let a policy decide on every question, and return the ended rollouts in their order.

    Args:
        rollouts: Of the questions.
        policy: Any.
        seed: Of random policies: they draw as in a graph with this seed in its settings.

    Raises:
        RolloutError: The policy asks for a probe, and no entropy was recorded.
    """
    # Most policies leave every draft to the small model: no need to ask them at each step.
    asked = type(policy).next_writer is not Policy.next_writer

    def lead(rollout: Rollout) -> None:
        solution = _Solution(rollout, policy, asked, seed)
        while not rollout.ended:
            solution.go_on()

    return in_rounds(rollouts, lead)


class _Solution:
    """One question under way, as `trim_graph.nodes.route` would lead it."""

    def __init__(self, rollout: Rollout, policy: Policy, asked: bool, seed: int) -> None:
        self.rollout, self.policy, self.asked = rollout, policy, asked
        question = rollout.rollouts.trees[rollout.index].question.text
        # As `trim_graph.run.begin_run` and `trim_graph.nodes.observing` make it.
        self.seed = f"{seed}:{hashlib.sha256(question.encode('utf-8', 'surrogatepass')).hexdigest()}"
        self.memory: Any = None
        self.to_end = False
        self.scored = 0
        """Steps whose scores are known before the next draft is scored."""

    def go_on(self) -> None:
        """Add a step."""
        if self.to_end:
            self.rollout.decide(True)
            return
        writer = self._next_writer() if self.asked else "small"
        if writer != "small":
            self.to_end = writer == "large_to_end"
            self.rollout.decide(True)
        elif not self.policy.decides:
            self.rollout.decide(False)
        else:
            decision = self._remembered(self.policy.decide(self._seen()), DECISIONS)
            self.to_end = decision == "handover"
            if self.policy.needs_score:
                self.scored = len(self.rollout.scores) + (decision == "accept")
            self.rollout.decide(decision != "accept")

    def _next_writer(self) -> str:
        seen = self._before_draft()
        choice = checked(self.policy.next_writer(seen), NEXT_WRITERS, self.policy, self.memory)
        if choice.value == "probe":
            entropy = self.rollout.node.entropy
            if entropy is None:
                raise RolloutError(f"policy {self.policy!r} asks for a probe, and no entropy was recorded")
            answer = self.policy.next_writer(replace(seen, probe_entropy=entropy))
            choice = checked(answer, WRITERS, self.policy, self.memory)
        return self._kept(choice)

    def _seen(self) -> Observation:
        seen, scored = self.rollout.observation(), self.policy.needs_score
        return replace(
            seen,
            scores=seen.scores if scored else (None,) * seen.index,
            score=seen.score if scored else None,
            draft_ends=self.rollout.draft_ends,
            memory=self.memory,
            seed=f"{self.seed}:{seen.index}:decide",
        )

    def _before_draft(self) -> Observation:
        seen = self.rollout.observation()
        return replace(
            seen,
            # A step of the large model is scored together with the draft that follows.
            scores=seen.scores[: self.scored] + (None,) * (seen.index - self.scored),
            score=None,
            draft=None,
            draft_tokens=0,
            draft_probability=None,
            memory=self.memory,
            seed=f"{self.seed}:{seen.index}:next_writer",
        )

    def _remembered(self, answer: Any, allowed: tuple[str, ...]) -> str:
        return self._kept(checked(answer, allowed, self.policy, self.memory))

    def _kept(self, choice: Choice) -> str:
        self.memory = choice.memory
        return choice.value
