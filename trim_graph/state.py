"""The state of a run: plain JSON values and messages, nothing else.

`steps`, `scores` and `decisions` only grow, so they are `DeltaChannel`s: a checkpoint stores the difference,
not the whole list. Only this file uses that beta API of LangGraph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from .savings import Savings
from .segmentation import Part

SCHEMA_VERSION = 2
"""Version of the channels, stored in every run; a release that changes the channels increments it."""

Stopped = Literal[
    "finished",
    "max_steps",
    "max_tokens",
    "length",
    "loop",
    "budget",
    "deadline",
    "recursion_limit",
    "no_step",
    "failed",
    "human",
    "middleware",
]
"""Reason that ended a run; `trim_graph.routing.explain.STOP_REASONS` has a sentence for each."""


class Step(TypedDict):
    """One accepted step. It never changes; its score has a channel of its own."""

    text: str
    """Text of the step, without its delimiter."""
    writer: StepWriter
    """Who wrote it: ``small``, ``large`` or ``human``."""
    model: str
    """Name of the model, as its answers report it."""
    tokens: int
    """Tokens generated for the step, its delimiter and earlier answers that it begins with included. Several
    steps of one answer share its tokens by their lengths."""
    mean_token_probability: float | None
    """Mean probability of its tokens under the model that wrote it; None where that is not reported."""
    end: StepEnd
    """What ended it: the ``delimiter``, the model's end of sequence (``eos``), or a limit (``length``)."""
    lowest_window_probability: NotRequired[float]
    """Lowest mean probability of a window of its tokens, if the scorer asked for it."""
    separator: NotRequired[str]
    """Text between this step and the next, if it is not the delimiter of the settings."""
    part: NotRequired[Part]
    """Whether the step belongs to the reasoning or to the answer of a model that thinks."""
    message: NotRequired[str]
    """Id of the message, if the step is an agent's turn."""
    why: NotRequired[str]
    """Why the step was accepted from this writer, in a sentence; absent in steps of an earlier release."""


class Draft(Step):
    """A step that was just written and awaits a decision."""

    score: float | None


class Probe(TypedDict):
    """Result of a probe, one token of the small model; both fields are None before the call."""

    entropy: float | None
    """Entropy of the first token's distribution in nats; a lower bound if some tokens are unobserved."""
    unobserved_probability: float | None
    """Probability mass in [0, 1] of the tokens that the model's server did not report."""


class WarmMark(TypedDict):
    """A call that warms the large model's cache, charged in full by `route` before it is started."""

    prompt_tokens: int
    """Upper bound of its prompt in tokens; 0 if prompts have no price."""
    unaccounted_cost: float
    """The run's `unaccounted_cost` without it."""
    process: str
    """Name of the process that charged it; no other one starts it."""


class StepRequest(TypedDict):
    """The step that `route` requests from `generate_step`."""

    writer: Writer
    until_eos: bool
    """Whether the writer continues to its end of sequence instead of stopping at the end of the step."""
    max_tokens: int
    needs_score: bool
    """Whether a decision depends on the draft's score."""
    needs_decision: bool
    """Whether the policy decides on the draft; otherwise it is accepted."""
    partial_text: str
    """Text of earlier attempts at this step, which were no step by themselves."""
    partial_tokens: NotRequired[int]
    """Tokens generated for ``partial_text``; absent if it is empty, and in requests of an earlier release."""
    attempt: int
    """Number of answers without a step, in a row."""
    probe: NotRequired[Probe]
    """Present if the request is for a probe: one token that is discarded, with its entropy noted here."""
    why: NotRequired[str]
    """Explanation of the step; absent if a decision on the draft will give it."""
    interrupted: NotRequired[bool]
    """A crash interrupted the call and was charged; `route` requests it again within what is left."""
    ended: NotRequired[bool]
    """The writer ended the solution in place of another step."""
    warm: NotRequired[WarmMark]
    """Present if `usage` is charged for a call that warms the large model's cache, which is to be started."""


class InFlight(TypedDict):
    """A large call about to be made, so that a call that a crash interrupts can be charged."""

    writer: Writer
    max_tokens: int
    prompt_tokens: int
    process: str


class Failure(TypedDict):
    """A failed call, after which `route` ends the run or takes the way out that the settings declare."""

    part: Literal["small", "large", "scorer"]
    error: str
    exhausted_limit: NotRequired[str]
    """Limit of an account that other runs exhausted before the large model could be called."""
    no_step: NotRequired[bool]
    """Whether the model answered without a step; ``error`` says what its answers held."""
    context_full: NotRequired[bool]
    """Whether the conversation and the steps fill the model's context."""
    timed_out: NotRequired[bool]
    """Whether the limit on seconds cut the call off, or left no time for it: the run ends."""


class PendingInterrupt(TypedDict):
    """Why the run is interrupted for a human."""

    reason: Literal["budget", "score"]
    limit: str | None
    """The exhausted limit if ``reason`` is ``budget``; else None."""


class HumanResponse(TypedDict):
    """A human's response to the interrupt, as far as `route` acts on it."""

    more: NotRequired[dict[str, float]]
    step: NotRequired[str]
    ends: NotRequired[bool]
    decision: NotRequired[str]
    continue_with: NotRequired[str]


class DecisionRecord(TypedDict):
    """One decision of the policy, and the draft that it rejected."""

    step: int
    """Index of the step, from 0."""
    decision: str
    """``accept``, ``regenerate`` or ``handover``; ``by_hand``: a human wrote the step."""
    score: float | None
    """Score of the draft; None where it was not scored."""
    exhausted_limit: NotRequired[str]
    """Exhausted limit that turned the policy's choice of the large model into ``accept``."""
    part: NotRequired[Part]
    """Part of a thinking model's text that the draft belongs to."""
    fallback: NotRequired[str]
    """The failed part, if ``on_scorer_error`` or its like decided in place of the policy."""
    by: NotRequired[Literal["human"]]
    """``human`` if a human decided, not the policy."""
    discarded: NotRequired[Step]
    """The draft, if it was rejected."""


class Run(TypedDict):
    """Constants of a run, set when it begins; nodes read the settings here and nowhere else."""

    schema: int
    id: str
    message_id: str
    seed: str
    question: str
    settings: dict[str, Any]
    accounts: NotRequired[dict[str, dict[str, Any]]]
    """Limits of the shared accounts that the run is charged to, by account name."""
    question_message: NotRequired[str]
    """Id of the message that holds the question, if the run is an agent's."""


class Summary(TypedDict):
    """Summary of a run.

    It is ``trim`` in the result, and in the final message's ``response_metadata["trim"]``; of an agent, whose
    messages are the models' own, only in the message of a limit that ended it.
    """

    stopped: str
    """Reason that ended it: ``finished``, ``budget`` and so on, a key of
    `trim_graph.routing.explain.STOP_REASONS`; of a `trim_graph.TrimChatModel` also ``stop_string``."""
    answer: str | None
    """Content of the last ``\\boxed{}``, if any."""
    steps: dict[StepWriter, int]
    """By writer; ``human`` only where one wrote a step."""
    decisions: dict[str, int]
    """Number of decisions by kind: ``accept``, ``regenerate``, ``handover``, ``by_hand``."""
    scores: list[float | None]
    """Score of each accepted step; None where it was not scored."""
    tokens: dict[str, int]
    """``small``, ``large``: in accepted steps; ``small_discarded``, ``large_discarded``: generated but in no
    accepted step; ``large_unaccounted``: charged for calls that reported no usage; ``scorer``: read by the
    scorer; ``scorer_output``: written by it (an LLM judge). With lookahead also ``lookahead_discarded``: the
    part of ``small_discarded`` from speculative calls that were not taken; ``lookahead_unaccounted``: charged
    for such calls that reported no usage. With ``warm_large`` also ``warming``: the part of
    ``large_discarded`` from calls that warmed the large model's cache."""
    usage: Usage
    """Calls, tokens and seconds of each model."""
    cost: float | None
    """Of all calls by the price table, in its currency; None without prices, and without a price of a scorer
    that has written tokens, as an LLM judge does."""
    seconds: float
    """Active seconds of the run; waiting for a human does not count."""
    savings: NotRequired[Savings]
    """Against an estimate of the large model alone (`trim_graph.savings.net_savings`); absent in a run that
    an earlier release ended."""
    parts: NotRequired[dict[Part, dict[StepWriter, int]]]
    """Steps by writer in reasoning and answer, where a model thinks."""
    accounts: NotRequired[dict[str, dict[str, float]]]
    """Usage of the shared accounts when the run ended, over all their runs, by account name."""
    notes: list[str]
    """Facts for the user: a limit reached, tokens charged for a crash, an overshoot."""


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

_REDUCED: dict[str, Callable[[Any, Any], Any]] = {
    "steps": lambda current, write: _extend(current, [write]),
    "decisions": lambda current, write: _extend(current, [write]),
    "scores": lambda current, write: _merge(current, [write]),
    "messages": add_messages,
}


class TrimInput(TypedDict):
    """Input of the graph."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation; the last message holds the problem."""
    question: NotRequired[str | None]
    """The question that the scorer sees; default: the text of the last human message."""


class TrimOutput(TypedDict):
    """Output of the graph."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation with the solution as one AIMessage at its end."""
    trim: NotRequired[Summary | None]
    """Summary of the run; None until it has ended."""


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
    """The policy's own memory, as it returned it."""
    usage: Usage
    charged_call: str | None
    """Name of the last large call that ``usage`` includes."""
    stopped: Literal["", Stopped]
    notes: list[str]
    remaining_steps: RemainingSteps
    begin: bool
    """Only in the input that START sends to `route`."""


def check_schema(run: Run) -> None:
    """Checks that the state of a run has this release's channels.

    Raises:
        SettingsError: A newer release began the run, or one before the first with these channels.
    """
    schema = run["schema"]
    if schema > SCHEMA_VERSION:
        raise SettingsError(
            f"run {run['id']} was begun by a newer trim-graph: its state has the schema {schema}, "
            f"this release reads up to {SCHEMA_VERSION}. Upgrade trim-graph to resume it"
        )
    if schema < SCHEMA_VERSION:
        raise SettingsError(
            f"run {run['id']} was begun by an older trim-graph: its state has the schema {schema}, "
            f"this release reads {SCHEMA_VERSION}. Finish it with that release, or ask a new question on its "
            "thread"
        )


def fresh_channels() -> dict[str, Any]:
    """Returns the update that clears a thread of its previous run.

    It clears ``question`` too: ``run`` holds it, and the next run must not inherit it.
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
    """Returns the part of an update that changes the state, since LangGraph stores and streams all of it."""
    return {key: value for key, value in update.items() if key not in state or value != state.get(key)}


def reduce_state(state: TrimState, update: Mapping[str, Any]) -> TrimState:
    """Returns the state after an update, reduced as the graph's channels do, for code without a graph."""
    new: dict[str, Any] = dict(state)
    for key, value in update.items():
        if isinstance(value, Overwrite):
            new[key] = value.value
        else:
            new[key] = _REDUCED[key](new[key], value) if key in _REDUCED else value
    return cast(TrimState, new)


def state_delta(before: TrimState, after: TrimState) -> dict[str, Any]:
    """Returns the update that leads from one state to a later one; the inverse of `reduce_state`."""
    update = diff_update(before, dict(after))
    for name in ("steps", "decisions"):
        if name in update:
            update[name] = update[name][len(before[name]) :]
    if "scores" in update:
        update["scores"] = {
            key: score for key, score in after["scores"].items() if key not in before["scores"]
        }
    return update
