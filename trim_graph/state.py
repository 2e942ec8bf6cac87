"""The state of a run: plain JSON values and messages, nothing else.

`steps`, `scores` and `decisions` only ever grow, so they are `DeltaChannel`s: a checkpoint stores what was
added, not everything so far. The beta API is used in this file alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, cast

from langchain_core.messages import AnyMessage
from langgraph.channels import DeltaChannel
from langgraph.graph.message import add_messages
from langgraph.managed import RemainingSteps
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from .adapters.base import StepEnd
from .budget.usage import StepWriter, Usage, Writer
from .errors import SettingsError
from .segmentation import Part

SCHEMA_VERSION = 2
"""Written into every run; a later release that changes the channels raises it."""


class Step(TypedDict):
    """One accepted step; never changes."""

    text: str
    writer: StepWriter
    model: str
    tokens: int
    """Tokens generated for it, those of the delimiter included; shared out by length where it was cut out of
    a longer text."""
    mean_token_probability: float | None
    end: StepEnd
    separator: NotRequired[str]
    """What separates it from the next, where that is not the delimiter of the settings."""
    part: NotRequired[Part]
    """Whether it belongs to the thought or to the answer of a model that thinks."""
    message: NotRequired[str]
    """Of an agent's turn: the id of its message."""


class Draft(Step):
    """A step just written, not yet decided on."""

    score: float | None


class Probe(TypedDict):
    """What one token of the small model told; both None until it has."""

    entropy: float | None
    """Of the first token's distribution, in nats; a lower bound where some tokens are unobserved."""
    unobserved_probability: float | None
    """Probability of the tokens that the model's server did not report."""


class StepRequest(TypedDict):
    """What `route` asks `generate_step` for."""

    writer: Writer
    until_eos: bool
    """Whether the writer goes on to the end instead of stopping at the delimiter."""
    max_tokens: int
    needs_score: bool
    """Whether a decision hangs on the draft's score."""
    needs_decision: bool
    """Whether the policy is asked about the draft at all."""
    partial_text: str
    """Text already written for this step: pieces that were no step by themselves."""
    attempt: int
    """How often the writer has answered without a step, in a row."""
    probe: NotRequired[Probe]
    """The order is for one token, which is thrown away; its entropy is noted here."""
    interrupted: NotRequired[bool]
    """A crash cut its call off, and that is charged: it is to be given again, within what is left."""


class InFlight(TypedDict):
    """Noted before a large call, so that a call lost in a crash can be charged."""

    writer: Writer
    max_tokens: int
    prompt_tokens: int
    process: str


class Failure(TypedDict):
    """What a node could not do, for `route` to find the declared way out."""

    part: Literal["small", "large", "scorer"]
    error: str
    exhausted_limit: NotRequired[str]
    """Limit of an account that other runs had used up before the large model could be called."""
    no_step: NotRequired[bool]
    """The model has answered, but its answers held no step; ``error`` says what they held."""
    context_full: NotRequired[bool]
    """Whether the conversation and the steps so far fill the context of the model."""


class PendingInterrupt(TypedDict):
    """What a person is to be asked about."""

    reason: Literal["budget", "score"]
    limit: str | None
    """That is spent, where it is the budget."""


class HumanResponse(TypedDict):
    """What a person has answered, as far as `route` is to act on it."""

    more: NotRequired[dict[str, float]]
    step: NotRequired[str]
    ends: NotRequired[bool]
    decision: NotRequired[str]
    continue_with: NotRequired[str]


class DecisionRecord(TypedDict):
    """One decision of the policy, and the draft it turned down."""

    step: int
    decision: str
    """``accept``, ``regenerate`` or ``handover``; ``by_hand``: a person wrote the step."""
    score: float | None
    exhausted_limit: NotRequired[str]
    """Limit of the budget that turned a wish for the large model into ``accept``."""
    part: NotRequired[Part]
    """Which part of a thinking model's text was routed."""
    fallback: NotRequired[str]
    """What had failed, where the decision is not the policy's but that of ``on_scorer_error`` or its like."""
    by: NotRequired[Literal["person"]]
    """Who decided, where it is not the policy."""
    discarded: NotRequired[Step]


class Run(TypedDict):
    """What is fixed when a run begins; nodes read settings here and nowhere else."""

    schema: int
    id: str
    message_id: str
    seed: str
    question: str
    settings: dict[str, Any]
    accounts: NotRequired[dict[str, dict[str, Any]]]
    """Limits of the accounts that it draws from, by their names."""
    question_message: NotRequired[str]
    """Of an agent: the id of the message that holds the question."""


class Summary(TypedDict):
    """What a run did; also in the final message's ``response_metadata["trim"]``."""

    stopped: str
    """``finished``, ``max_steps``, ``length`` (the steps fill the context of the small model or the scorer),
    ``loop`` (it repeated itself), ``budget``, ``deadline``, ``recursion_limit``, ``no_step`` (a model
    answered without a step, which ``notes`` explain), ``failed`` (no model was left to write the next step),
    ``person`` (who was asked, and ended it) or ``middleware`` (another middleware of an agent ended it)."""
    answer: str | None
    """Content of the last ``\\boxed{}``, if any."""
    steps: dict[StepWriter, int]
    """By writer; ``person`` only where one wrote a step."""
    decisions: dict[str, int]
    scores: list[float | None]
    tokens: dict[str, int]
    """``small``, ``large``: in accepted steps; ``small_discarded``, ``large_discarded``: generated but in no
    accepted step; ``large_unaccounted``: charged for calls whose end nobody saw; ``scorer``: read;
    ``scorer_output``: written, by a judge. With
    lookahead ``lookahead_discarded``: of ``small_discarded`` those of steps written ahead that nobody took;
    ``lookahead_unaccounted``: charged for such steps where the model does not tell."""
    usage: Usage
    cost: float
    seconds: float
    parts: NotRequired[dict[Part, dict[StepWriter, int]]]
    """Steps by writer in thought and answer, where a model thinks."""
    accounts: NotRequired[dict[str, dict[str, float]]]
    """What the accounts that the run drew from have used when it ended, all their runs together."""
    notes: list[str]
    """What a user should know: a limit reached, tokens charged for a crash, an overshoot."""


def _extend(current: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    return [*current, *(item for write in writes for item in write)]


def _merge(current: dict[str, Any], writes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged = dict(current)
    for write in writes:
        merged.update(write)
    return merged


Steps = Annotated[list[Step], DeltaChannel(_extend)]
Scores = Annotated[dict[str, float], DeltaChannel(_merge)]
Decisions = Annotated[list[DecisionRecord], DeltaChannel(_extend)]

_REDUCED: dict[str, Any] = {"steps": _extend, "decisions": _extend, "scores": _merge}


class TrimInput(TypedDict):
    """What a caller gives."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation; the last message holds the problem."""
    question: NotRequired[str | None]
    """What the scorer takes for the question; default: the last human message."""


class TrimOutput(TypedDict):
    """What a caller gets."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation with the solution as one AIMessage at its end."""
    trim: NotRequired[Summary | None]
    """Steps by writer, decisions, scores, tokens accepted and discarded, why it stopped; None until then."""


class TrimState(TrimInput, total=False):
    """All channels of the graph."""

    trim: Summary | None
    run: Run
    steps: Steps
    """Accepted steps, append-only."""
    scores: Scores
    """Scores of accepted steps by their index (a string, as JSON keys are)."""
    decisions: Decisions
    draft: Draft | None
    request: StepRequest | None
    in_flight: InFlight | None
    failed: Failure | None
    pending_interrupt: PendingInterrupt | None
    human_response: HumanResponse | None
    memory: Any
    """What the policy wants to remember."""
    usage: Usage
    charged_call: str | None
    """Name of the last large call that ``spend`` holds."""
    stopped: Literal[
        "",
        "finished",
        "max_steps",
        "length",
        "loop",
        "budget",
        "deadline",
        "recursion_limit",
        "no_step",
        "failed",
        "person",
        "middleware",
    ]
    notes: list[str]
    remaining_steps: RemainingSteps
    begin: bool
    """Only in the input that START sends to `route`."""


def check_schema(run: Run) -> None:
    """Refuse the state of a run whose channels are those of another release.

    Raises:
        SettingsError: A newer release began the run, or one before the first with these channels.
    """
    schema = run["schema"]
    if schema > SCHEMA_VERSION:
        raise SettingsError(
            f"run {run['id']} was begun by a newer trim-graph: its state has the schema {schema}, "
            f"this release reads up to {SCHEMA_VERSION}. Upgrade trim-graph to go on with it"
        )
    if schema < SCHEMA_VERSION:
        raise SettingsError(
            f"run {run['id']} was begun by an older trim-graph: its state has the schema {schema}, "
            f"this release reads {SCHEMA_VERSION}. Finish it with that release, or ask a new question on its "
            "thread"
        )


def fresh_channels() -> dict[str, Any]:
    """Return the update that makes a thread forget its previous run.

    ``question`` too: it lives on in ``run``, and the next one must not be scored as this one.
    """
    return {
        "question": None,
        "trim": None,
        "steps": Overwrite([]),
        "scores": Overwrite({}),
        "decisions": Overwrite([]),
        "draft": None,
        "request": None,
        "in_flight": None,
        "failed": None,
        "pending_interrupt": None,
        "human_response": None,
        "memory": None,
        "charged_call": None,
        "stopped": "",
        "notes": [],
    }


def diff_update(state: TrimState, update: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an update that changes something: what a node returns is written and streamed."""
    return {key: value for key, value in update.items() if key not in state or value != state.get(key)}


def reduce_state(state: TrimState, update: Mapping[str, Any]) -> TrimState:
    """Return the state as the channels would make it of an update, for whoever runs nodes without a graph."""
    new = dict(state)
    for key, value in update.items():
        new[key] = _REDUCED[key](state[key], [value]) if key in _REDUCED else value  # type: ignore[literal-required]
    return cast(TrimState, new)


def state_delta(before: TrimState, after: TrimState) -> dict[str, Any]:
    """Return the update that makes the one state of the other, where channels that grow have only grown."""
    update = diff_update(before, dict(after))
    for name in ("steps", "decisions"):
        if name in update:
            update[name] = update[name][len(before[name]) :]
    if "scores" in update:
        update["scores"] = {
            key: score for key, score in after["scores"].items() if key not in before["scores"]
        }
    return update


def scores_of(state: TrimState) -> tuple[float | None, ...]:
    """Return one entry per accepted step; None where a step was never scored."""
    scores = state["scores"]
    return tuple([scores.get(str(index)) for index in range(len(state["steps"]))])
