"""Human in the loop: the question of an interrupt, the answers to it, and how they change a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, model_validator
from typing_extensions import TypedDict

from trim_graph.budget.limits import LargeLimits
from trim_graph.budget.usage import Usage
from trim_graph.errors import KnownFields
from trim_graph.segmentation import is_step
from trim_graph.state import HumanResponse, Run, TrimState

from .router import RunView

SMALL_ONLY = {"type": "small_only"}


class BudgetIncrease(LargeLimits[Annotated[int, Field(ge=1)], PositiveFloat]):
    """Amounts to add to the limits of a run and of the accounts that it is charged to."""

    seconds: float | None = Field(default=None, gt=0, description="active seconds of the run")

    @model_validator(mode="after")
    def _something(self) -> BudgetIncrease:
        if not self.given():
            raise ValueError("more of what? give large_tokens, large_calls, large_cost or seconds")
        return self

    def given(self) -> dict[str, Any]:
        """Returns the amounts that are set, by limit."""
        return self.model_dump(exclude_none=True)

    def raise_limits(self, limits: dict[str, Any]) -> dict[str, Any]:
        """Returns limits raised by the amounts; a limit that is not set stays unset."""
        raised = {n: limits[n] + more for n, more in self.given().items() if limits.get(n) is not None}
        return {**limits, **raised}


class HumanAnswer(KnownFields):
    """A human's answer, with which the run resumes: ``Command(resume={"more": {"large_tokens": 200}})``.

    Exactly one of ``more``, ``continue_with`` and ``step`` is set.
    """

    model_config = ConfigDict(frozen=True)

    more: BudgetIncrease | None = Field(default=None, description="a larger budget, for this run")
    continue_with: Literal["small", "stop"] | None = Field(
        default=None,
        description="small: without the large model and further questions; stop: end with the steps so far",
    )
    step: str | None = Field(default=None, description="the next step by hand, in place of the draft")
    ends: bool = Field(default=False, description="whether the solution ends with this step")

    @classmethod
    def _choices(cls) -> list[str]:
        return [name for name in cls.model_fields if name != "ends"]

    @model_validator(mode="before")
    @classmethod
    def _a_mapping(cls, given: Any) -> Any:
        if not isinstance(given, Mapping | HumanAnswer):
            raise ValueError(
                f"the answer is {given!r}: give a mapping with exactly one of {', '.join(cls._choices())}, "
                'such as {"continue_with": "small"}'
            )
        return given

    @model_validator(mode="after")
    def _one_answer(self) -> HumanAnswer:
        choices = self._choices()
        given = [name for name in choices if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(choices)}; there is {' and '.join(given) or 'none'}"
            )
        if self.step is not None and not is_step(self.step):
            raise ValueError(f"step is {self.step!r}: write at least one word or number")
        if self.ends and self.step is None:
            raise ValueError("ends says that the solution ends with the step: give the step too")
        return self


class DraftAnswer(HumanAnswer):
    """A human's answer while a draft awaits a decision, which the answer may be."""

    decision: Literal["accept", "regenerate", "handover"] | None = Field(
        default=None, description="what becomes of the draft, instead of the policy's decision"
    )


def answer_to(state: TrimState) -> type[HumanAnswer]:
    """Returns the schema of the answer that a run accepts now."""
    return HumanAnswer if state.get("draft") is None else DraftAnswer


class ShownStep(TypedDict):
    """An accepted step, or the draft, as the interrupt shows it."""

    text: str
    writer: str
    score: float | None
    end: str
    """End of the step; after ``length`` the next text continues directly after its last word."""


class HumanQuestion(TypedDict):
    """Value of the interrupt, ``result["__interrupt__"][0].value``; all of it is plain JSON."""

    type: Literal["trim"]
    reason: Literal["budget", "score"]
    limit: str | None
    """Exhausted limit: ``large_tokens``, ``large_calls of user:42``, ...; None if the score is the reason."""
    question: str
    steps: list[ShownStep]
    draft: ShownStep | None
    """Draft that awaits a decision; None if there is none."""
    score: float | None
    """Score of the draft."""
    usage: Usage
    budget: dict[str, Any]
    """Limits of the run that are set."""
    accounts: dict[str, dict[str, Any]]
    """Limits of the accounts that the run is charged to, by account name."""
    answers: dict[str, str]
    """Possible answers: keys of `HumanAnswer` (or `DraftAnswer`) with their effects."""
    run: str
    """Id of the run, to distinguish interrupts of parallel runs."""


def question_to_human(state: TrimState) -> HumanQuestion:
    """Returns the value of the interrupt; the same whenever the node runs again."""
    view = RunView(state)
    pending_interrupt, run, draft = state["pending_interrupt"], view.run, view.draft
    assert pending_interrupt is not None
    answers = {
        "more": 'a larger budget: {"more": {"large_tokens": 200}}',
        "continue_with": '"small": without the large model and further questions; '
        '"stop": end with the steps so far',
        "step": 'the next step by hand: {"step": "...", "ends": false}',
    }
    if draft is not None:
        decision = '"accept" the draft, "regenerate" it, or "handover" to the large model'
        if pending_interrupt["reason"] == "budget":
            decision = '"accept" the draft; the other decisions need the large model, so "more" first'
        answers["decision"] = decision
    return HumanQuestion(
        type="trim",
        run=run["id"],
        reason=pending_interrupt["reason"],
        limit=pending_interrupt["limit"],
        question=run["question"],
        steps=[
            ShownStep(text=step["text"], writer=step["writer"], score=score, end=step["end"])
            for step, score in zip(view.steps, view.scores, strict=True)
        ],
        draft=None
        if draft is None
        else ShownStep(text=draft["text"], writer=draft["writer"], score=draft["score"], end=draft["end"]),
        score=None if draft is None else draft["score"],
        usage=view.usage,
        budget=view.budget.model_dump(exclude_none=True),
        accounts=run.get("accounts", {}),
        answers=answers,
    )


def apply_response(run: Run, answer: HumanAnswer) -> tuple[Run, HumanResponse]:
    """Applies an answer to the settings and accounts of a run.

    Args:
        run: The run, from the state.
        answer: The human's answer, validated.

    Returns:
        The run with raised limits or changed settings, and the part of the answer that `route` acts on.
    """
    settings = dict(run["settings"])
    response = HumanResponse()
    if answer.step is not None:
        response = HumanResponse(step=answer.step, ends=answer.ends)
    if answer.continue_with is not None:
        response["continue_with"] = answer.continue_with
    if isinstance(answer, DraftAnswer) and answer.decision is not None:
        response["decision"] = answer.decision
    if answer.more is not None:
        limited = [settings["budget"], *run.get("accounts", {}).values()]
        response["more"] = {
            n: more for n, more in answer.more.given().items() if any(p.get(n) is not None for p in limited)
        }
        settings["budget"] = answer.more.raise_limits(settings["budget"])
        accounts = {n: answer.more.raise_limits(limits) for n, limits in run.get("accounts", {}).items()}
        run = Run(**{**run, "accounts": accounts}) if accounts else run
    if answer.continue_with == "small":
        # `on_exhausted` too: a step already requested from the large model must not interrupt again.
        budget = {**settings["budget"], "on_exhausted": "small"}
        settings |= {"policy": SMALL_ONLY, "ask_below": None, "budget": budget}
    return Run(**{**run, "settings": settings}), response
