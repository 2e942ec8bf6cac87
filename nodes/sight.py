"""One execution of `route`: what it saw, what may still be spent, and the update it builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.runnables import Runnable

from trim_graph.accounts import Accounts, cost_limit, scarcest
from trim_graph.budget import Budget, BudgetLeft, Spend, budget_left, grant
from trim_graph.conversation import compose
from trim_graph.events import emit, push_text
from trim_graph.ledger import Ledger
from trim_graph.policies.base import Observation, Policy
from trim_graph.prompt_size import UnboundedPrompt, prompt_bound
from trim_graph.run import policy_of, segmentation_of
from trim_graph.segment import Segmentation, join_steps, separator_of
from trim_graph.settings import settings_of
from trim_graph.state import DecisionRecord, Draft, Order, Step, TrimState, scores_of

from .observing import observation

GIVE_UP = 3
"""Failed calls of the large model in a run after which it is not asked again, so that a dead server does not
cost its timeouts at every step."""


UNBOUNDED = "unbounded_prompt"
NOT_SPENT = ("large_failures", UNBOUNDED)
"""Why the large model is not called, besides a limit that is spent: nobody's budget helps."""


@dataclass
class Sight:
    """What `route` looks at, and what it may order.

    Args:
        state: Of the run.
        policy: The graph's own; the run's settings may name another.
        large: Only asked how many tokens a prompt has.
        own_segmentation: The graph's own.
        ledger: The graph's.
        update: Of the state, to be added to.
    """

    state: TrimState
    policy: Policy
    large: Runnable[Any, Any]
    own_segmentation: Segmentation | None
    ledger: Ledger | None = None
    update: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = settings_of(self.state["run"])
        self.policy = policy_of(self.settings, self.policy)
        self.segmentation = segmentation_of(self.settings, self.own_segmentation)
        self.step_tokens = self.segmentation.cap(self.settings.max_step_tokens)
        self.budget: Budget = self.settings.budget
        self.spend: Spend = self.state["spend"]
        self.left: BudgetLeft = budget_left(self.budget, self.spend, self.settings.prices)
        self.shared = Accounts(self.state["run"].get("accounts"), self.ledger).left()
        self.steps: list[Step] = list(self.state["steps"])
        self.scores = list(scores_of(self.state))
        self.memory = self.state.get("memory")
        self.notes = list(self.state.get("notes", []))

    # What may be ordered

    def small_order(self, decided: bool) -> Order:
        """Order a draft; it is scored only where a decision hangs on it."""
        return Order(
            writer="small",
            to_end=False,
            max_tokens=self.step_tokens,
            scored=decided and (self.policy.needs_score or self.settings.ask_below is not None),
            decided=decided,
            lead="",
            attempt=0,
        )

    def _out_of_time(self) -> bool:
        return self.left.seconds is not None and self.left.seconds <= 0

    def _tokens_to_end(self) -> int:
        """Return what all steps that remain may take together."""
        return self.step_tokens * (self.settings.max_steps - len(self.steps))

    def large_order(self, to_end: bool) -> tuple[Order | None, str | None]:
        """Order a step, or all that remain, within the limits; or name the limit that refuses."""
        granted, refused = self._grant(self._tokens_to_end() if to_end else self.step_tokens)
        if granted == 0:
            return None, refused
        order = Order(
            writer="large",
            to_end=to_end,
            max_tokens=granted,
            scored=False,
            decided=False,
            lead="",
            attempt=0,
        )
        return order, None

    def _count_prompt(self, lead: str) -> int:
        prefix = join_steps(self.steps, self.settings.delimiter) + lead
        return prompt_bound(self.large, compose(self.state["messages"], self.settings.instruction, prefix))

    def _prompt_tokens(self, lead: str = "") -> tuple[int, bool]:
        """Return the most tokens of the large model's prompt, and whether that is true of all it holds."""
        if not self.settings.prices.large.input:
            return 0, True
        try:
            return self._count_prompt(lead), True
        except UnboundedPrompt as unbounded:
            self.note(
                f"the prompt holds a content block of type {unbounded.what}, whose tokens are not known "
                "before a call: a call of the large model that is cut off is charged without it"
            )
            return unbounded.least, False

    def _grant(self, wanted: int, lead: str = "") -> tuple[int, str | None]:
        if self.spend["large"]["failed_calls"] >= GIVE_UP:
            return 0, "large_failures"
        prompt, bounded = self._prompt_tokens(lead)
        limit = cost_limit(self.budget, self.settings.prices, self.state["run"].get("accounts", {}))
        if not bounded and limit is not None:
            self.note(f"{limit} cannot be kept for this prompt: the large model is not called for it")
            return 0, UNBOUNDED
        ask_for = partial(grant, self.budget, prices=self.settings.prices, prompt_tokens=prompt)
        granted, refused = ask_for(left=self.left, wanted=wanted)
        for account, left in self.shared.items():
            if granted:
                granted, refused = ask_for(left=left, wanted=granted)
                refused = refused and f"{refused} of {account}"
        return granted, refused

    def asks(self, refused: str | None) -> bool:
        """Tell whether a person is to be asked because of a spent limit."""
        return self.budget.on_exhausted == "ask" and refused not in (None, *NOT_SPENT)

    def stops(self, refused: str) -> bool:
        """Tell whether the run ends because of a spent limit."""
        return self.budget.on_exhausted == "stop" and refused not in NOT_SPENT

    # What a turn leaves behind

    def decide(self, record: DecisionRecord) -> None:
        """Put a decision on record."""
        self.update["decisions"] = [record]
        emit("decision", **record)

    def keep(self, accepted: Sequence[Step], score: float | None) -> None:
        """Add steps to the solution; the score is that of the first."""
        first = len(self.steps)
        if score is not None:
            self.update["scores"] = {str(first): score}
        for index, step in enumerate(accepted, first):
            own = score if index == first else None
            emit(
                "accepted",
                step=index,
                writer=step["writer"],
                text=step["text"],
                score=own,
                tokens=step["tokens"],
                **({"part": step["part"]} if "part" in step else {}),
            )
            self.show(step)
            self.steps.append(step)
            self.scores.append(own)
        self.update["steps"] = accepted

    def show(self, step: Step) -> None:
        """Stream a step that is about to be added, as a part of the final message."""
        # With the step that follows it, so that the chunks make exactly the final message.
        between = separator_of(self.steps[-1], self.settings.delimiter) if self.steps else ""
        push_text(between + step["text"], self.state["run"]["message_id"])

    def _observe(
        self, asked: str, draft: Draft | None = None, *, entropy: float | None = None
    ) -> Observation:
        run, left, memory = self.state["run"], scarcest(self.left, [*self.shared.values()]), self.memory
        return observation(
            asked, run, self.steps, self.scores, left=left, memory=memory, draft=draft, entropy=entropy
        )

    def _remember(self, memory: Any) -> None:
        if memory != self.memory:
            self.memory = self.update["memory"] = memory

    def note_refusal(self, refused: str) -> None:
        """Tell a user that the large model is not asked any more."""
        if refused not in NOT_SPENT:  # noted when it happened
            self.note(f"the limit on {refused} is spent: the large model is not called any more")

    def note(self, note: str) -> None:
        """Tell a user, once."""
        if note not in self.notes:
            self.notes.append(note)
            self.update["notes"] = self.notes
            emit("note", text=note)
