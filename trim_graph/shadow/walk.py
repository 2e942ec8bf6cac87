"""A walk: asks scorer and policy along the application's own answer, by the graph's own router.

What can honestly be estimated depends on who answers.

**The large model answers.** At each step of its answer the small model drafts the step that would follow, the
scorer rates the draft, and the policy decides; then the walk continues behind the large model's own step. No
large call is made. Before the first accepted draft the walk is exactly a routed run. From there on it is
*teacher-forced*: a run would continue its own draft, the walk continues the large model's step. Drafts after
a sound prefix are better than drafts after a small model's slip, so the share of large tokens is usually
underestimated; a comparison with records of kind ``run`` says by how much. Whether final answers agree is not
known.

**The small model answers.** Its steps are the drafts. The walk scores them one by one and ends at the first
that the policy rejects. Up to there it *is* the routed run, if the application's small model writes as the
small model of a run does (instruction, temperature): the probability that the large model is asked at all,
and where first, is exact. If no step is rejected, routing would have given the same answer without a large
token. What follows a rejected step is not known without a run.

In both cases a policy sees the scores of the accepted drafts, its own memory, and what is left of the
budget, as in a run.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from trim_graph.adapters.base import Scorer, read_scores, scorable_step
from trim_graph.budget.usage import add_usage, zero_usage
from trim_graph.errors import SettingsError
from trim_graph.policies import Policy
from trim_graph.routing import AskHuman, Finish, Router, RunView
from trim_graph.settings import Settings
from trim_graph.state import SCHEMA_VERSION, Draft, Run, Step, StepRequest, TrimState, reduce_state

_ROUTER = Router()
_NO_LIMIT = 1_000_000
"""Supersteps of a walk: they are not limited."""


class DraftOf(NamedTuple):
    """A draft of the small model behind a prefix.

    Attributes:
        step: The step.
        prompt_tokens: Tokens of its prompt.
    """

    step: Step
    prompt_tokens: int


WriteDraft = Callable[[Sequence[Step]], Awaitable[DraftOf]]
"""Has the small model write the step that follows the given ones."""


@dataclass
class Walk:
    """A walk along one answer.

    Args:
        question: What the scorer takes for the question.
        forced: Steps of the application's answer, the last with its end.
        policy: The policy.
        settings: Settings of the routed run.
        scorer: Rates the drafts; None if the policy needs no score.
        write_draft: The small model; None if the forced steps are the drafts, because it answered.

    Attributes:
        state: The virtual run's state.
        stopped: Why the walk ended.
        places: Indices of the steps that the large model would have written.
        scorer_tokens: Tokens that the scorer read.
        scorer_output_tokens: Tokens that the scorer wrote.
        small_tokens: Tokens of the small model's drafts.
        small_input_tokens: Tokens of the prompts of these.
        prefix_tokens: For each call of the large model, tokens of the answer before it.
    """

    question: str
    forced: Sequence[Step]
    policy: Policy
    settings: Settings
    scorer: Scorer | None
    write_draft: WriteDraft | None
    state: TrimState = field(init=False)
    stopped: str = ""
    places: list[int] = field(default_factory=list)
    scorer_tokens: int = 0
    scorer_output_tokens: int = 0
    small_tokens: int = 0
    small_input_tokens: int = 0
    prefix_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = Run(
            schema=SCHEMA_VERSION,
            id=uuid.uuid4().hex,
            message_id="",
            seed=uuid.uuid4().hex if self.settings.seed is None else str(self.settings.seed),
            question=self.question,
            # The forced answer ends by itself: it may repeat itself, as the application's model did.
            settings=self.settings.model_copy(update={"max_repeats": None}).model_dump(mode="json"),
        )
        self.state = TrimState(
            messages=[],
            run=run,
            steps=[],
            scores={},
            decisions=[],
            usage=zero_usage(),
            notes=[],
            remaining_steps=_NO_LIMIT,
        )

    async def go(self) -> Walk:
        """Walks to the end of the answer, of the virtual run, or to the first rejected step of a small one.

        Returns:
            The walk itself.

        Raises:
            SettingsError: The policy asks for a probe, which a walk cannot make.
            ScorerError: The scorer failed.
        """
        # A prompt of a walk is never sent to the large model: limits on its cost count the answer only.
        view = RunView(self.state, self.policy, count_prompt=lambda steps, partial_text: 0)
        while not self.stopped:
            action = _ROUTER.next(view)
            if isinstance(action, AskHuman):
                raise SettingsError("a walk asks no human: build the shadow without ask_below")
            known = len(self.state["steps"])
            self.state = reduce_state(self.state, action.update)
            if len(self.state["steps"]) > known:
                self._force(known)
            if isinstance(action, Finish):
                self.stopped = str(self.state["stopped"])
            elif len(self.state["steps"]) == len(self.forced):
                self.stopped = "forced"
            else:
                await self._answer_request()
            view = view.after(self.state)
        return self

    @property
    def large_tokens(self) -> int | None:
        """Tokens of the steps that the large model would have written; None if a walk cannot say."""
        if self.write_draft is None:
            return 0 if not self.places else None
        return sum(self.forced[place]["tokens"] for place in self.places)

    def _force(self, at: int) -> None:
        """Puts the application's step in the place of the accepted one, whose tokens and writer stay."""
        accepted = self.state["steps"][at]
        kept = {name: accepted[name] for name in ("writer", "model", "tokens", "mean_token_probability")}
        forced = Step(**{**self.forced[at], **kept})  # type: ignore[typeddict-item]
        self.state = cast(TrimState, {**self.state, "steps": [*self.state["steps"][:at], forced]})

    async def _answer_request(self) -> None:
        request = self.state["request"]
        assert request is not None
        at = len(self.state["steps"])
        if "probe" in request:
            raise SettingsError(
                f"policy {self.policy!r} asks for a probe, which a walk along an answer cannot make: set "
                "run_rate to 1, so that every question is routed from its beginning"
            )
        if request["writer"] == "large":
            self._large(request, at)
            return
        if self.write_draft is None:
            step = Step(**{**self.forced[at], "writer": "small"})
        else:
            step, prompt_tokens = await self.write_draft(self.state["steps"])
            self.small_tokens += step["tokens"]
            self.small_input_tokens += prompt_tokens
        await self._take(Draft(**step, score=None), request, at)

    def _large(self, request: StepRequest, at: int) -> None:
        self.prefix_tokens.append(sum(step["tokens"] for step in self.forced[:at]))
        if request["until_eos"] or self.write_draft is None:
            self.places += range(at, len(self.forced)) if self.write_draft is not None else [at]
            self.stopped = "forced" if self.write_draft is not None else "large_wanted"
            return
        self.places.append(at)
        step = Step(**{**self.forced[at], "writer": "large"})
        written = {"calls": 1, "output_tokens": step["tokens"]}
        usage = add_usage(self.state["usage"], {"large": written})
        self.state = cast(TrimState, {**self.state, "draft": Draft(**step, score=None), "usage": usage})

    async def _take(self, draft: Draft, request: StepRequest, at: int) -> None:
        scores = self.state["scores"]
        if request["needs_score"]:
            assert self.scorer is not None
            steps = [scorable_step(step) for step in (*self.state["steps"], draft)]
            reply = read_scores(await self.scorer.ascore(self.question, steps), at + 1)
            self.scorer_tokens += reply.input_tokens
            self.scorer_output_tokens += reply.output_tokens
            draft["score"] = float(reply.scores[at])
            # A step of the large model is scored together with the draft that follows.
            late = {str(index): float(reply.scores[index]) for index in range(at)}
            scores = {**late, **scores}
        self.state = cast(TrimState, {**self.state, "draft": draft, "scores": scores})

    @property
    def steps(self) -> dict[str, int]:
        """Number of steps by the writer that the virtual run gives them."""
        counted = Counter(str(step["writer"]) for step in self.state["steps"])
        if self.stopped == "forced":  # the large model would have written all that remains
            counted["large"] += len(self.forced) - len(self.state["steps"])
        return {writer: counted[writer] for writer in ("small", "large")}

    @property
    def decisions(self) -> dict[str, int]:
        """Number of decisions of each kind."""
        return dict(Counter(record["decision"] for record in self.state["decisions"]))

    @property
    def scores(self) -> list[float | None]:
        """Scores of the accepted drafts and of the large model's steps."""
        known = self.state["scores"]
        return [known.get(str(index)) for index in range(len(self.state["steps"]))]
