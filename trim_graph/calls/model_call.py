"""One metered call of a writer, for a step or an agent's turn: limits, reservation, charge, errors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self, TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.errors import GraphBubbleUp

from trim_graph.adapters.capabilities import LOGPROBS, capable, models_inside, refused_setting, remedy
from trim_graph.adapters.provider_errors import add_origin
from trim_graph.adapters.responses import Estimate, Reply, TokenCounter, read_reply, reports_usage
from trim_graph.adapters.token_confidence import TOP_LOGPROBS
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.limits import grant
from trim_graph.budget.reservations import CallReservation
from trim_graph.budget.usage import (
    Usage,
    Writer,
    add_usage,
    attempts_of,
    attempts_of_answer,
    charge_answer,
    charge_attempts,
    charge_failed_call,
    charge_lost,
    count_prompt_once,
    read_attempts,
    unreported_tokens,
    usage_delta,
)
from trim_graph.conversation import compose
from trim_graph.errors import (
    ChatModelContractError,
    FailedAttempts,
    ModelServerError,
    SettingsError,
    is_context_full,
)
from trim_graph.prompt_size import sent_prompt_bound
from trim_graph.routing import RunView
from trim_graph.routing.drafts import partial_tokens
from trim_graph.routing.router import way_out
from trim_graph.runtime import GRACE, Invocation, call_with_timeout, emit, tagged
from trim_graph.segmentation import Segmentation, cut_text, join_steps, partial_text_counts, stop_arguments
from trim_graph.settings import Settings
from trim_graph.state import Failure, Step, StepRequest

from .interrupted import LargeCall, charge_note, checkpoint_key_of, remember

SHOWN = 300
"""Characters of an error that the state keeps."""
NEVER_CAUGHT = (GraphBubbleUp, SettingsError, ChatModelContractError)
"""Errors that no ``on_..._error`` setting covers: wrong set-ups, and LangGraph's signals to leave a node."""

Component = Literal["small", "large", "scorer"]
"""A model of a run whose calls may fail."""
Update = dict[str, Any]
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class WriterModel:
    """The model of a writer, and what it can do beyond LangChain's interface.

    Attributes:
        runnable: The chat model.
        takes_stop_when: Whether it watches its text itself.
        takes_retry_tokens: Whether its adapter asks how many tokens another attempt may generate.
        reports_entropy: Whether it knows the setting of our adapters for the entropy of the first token.
        min_answer_tokens: Tokens that it keeps for its answer, if its server can end its reasoning.
    """

    runnable: Runnable[Any, Any]
    takes_stop_when: bool
    takes_retry_tokens: bool
    reports_entropy: bool
    min_answer_tokens: int | None

    @classmethod
    def of(cls, model: Runnable[Any, Any]) -> WriterModel:
        """Looks what a model can do, once."""
        return cls(
            model,
            takes_stop_when=capable(model, "takes_stop_when"),
            takes_retry_tokens=capable(model, "takes_retry_tokens"),
            reports_entropy=capable(model, "reports_entropy"),
            min_answer_tokens=_shared_min_answer_tokens(model),
        )

    def entropy_arguments(self) -> dict[str, Any]:
        """Returns the call settings that make the model report the entropy of its first token.

        A model that does not know the setting of our adapters is asked for the likeliest tokens, as OpenAI's
        API has it.
        """
        if self.reports_entropy:
            return {"first_token_entropy": True}
        return {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a writer.

    Attributes:
        view: View of the run before the call.
        request: The step that `route` requests.
        id: Name of this execution of the call.
        config: Config of the node, for a step with the tags of the call.
        limit: Seconds that the call may take; None without a limit.
        invocation: The invocation that makes the call; None in an agent.
        model: The model that is called.
        prompt_size: Returns an upper bound of a small call's prompt in tokens.
        solution: Whether the steps form a solution, which ends if it fills the context. An agent's error is
            raised instead, so that another middleware may shorten the conversation.
        retry: Token grant of further attempts, for adapters that request one.
        writer: Which of the two models is asked.
        settings: Settings of the run.
        usage: Usage of the run before the call.
        notes: Notes of the run before the call.
    """

    view: RunView
    request: StepRequest
    id: str
    config: RunnableConfig
    limit: float | None
    invocation: Invocation | None
    model: Runnable[Any, Any]
    prompt_size: Callable[[], int]
    solution: bool = True
    retry: RetryGrant | None = None

    writer: Writer = field(init=False)
    settings: Settings = field(init=False)
    usage: Usage = field(init=False)
    notes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        view = self.view
        for name, value in (
            ("writer", self.request["writer"]),
            ("settings", view.settings),
            ("usage", view.usage),
            ("notes", view.state["notes"]),
        ):
            object.__setattr__(self, name, value)

    @property
    def prompt_tokens(self) -> int:
        """Upper bound of the call's prompt in tokens, for charges; of a large call where a limit needs it."""
        if self.writer == "small":
            return self.prompt_size()
        in_flight = self.view.state.get("in_flight")
        return in_flight["prompt_tokens"] if in_flight else 0

    def unreported(self) -> dict[str, Any]:
        """Returns the arguments of a charge for attempts that reported no tokens."""
        return {
            "max_tokens": self.request["max_tokens"],
            "prompt_tokens": self.prompt_tokens,
            "prices": self.settings.prices,
        }

    def cap_tokens(self, tokens: int) -> Self:
        """Returns the call with ``max_tokens`` as the accounts of the run grant it."""
        return replace(self, request=StepRequest(**{**self.request, "max_tokens": tokens}))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall(Call):
    """A call for one step of a solution, with the model and its prompt.

    Attributes:
        messages: The prompt.
        arguments: Call settings of the model, such as ``max_tokens`` and ``stop``.
        segmentation: Finds the end of the step.
        previous: The step accepted last.
        index: Index of the step.
        partial_text: Text of this step from earlier calls, as far as it counts.
        key: Name of the call within its run; the same call has the same key.
        estimate: Estimates the tokens if the model does not report them.
        min_answer_tokens: Tokens that the model keeps for its answer; None if it keeps none.
    """

    messages: list[BaseMessage]
    arguments: dict[str, Any]
    segmentation: Segmentation
    previous: Step | None
    index: int
    partial_text: str
    key: str
    estimate: Estimate | None
    min_answer_tokens: int | None

    def cap_tokens(self, tokens: int) -> Self:
        """Returns the call, and its further attempts, with ``max_tokens`` as the accounts grant it."""
        request = StepRequest(**{**self.request, "max_tokens": tokens})
        arguments = {**self.arguments, "max_tokens": tokens}
        if self.min_answer_tokens is not None:
            arguments.pop("thinking_token_budget", None)
            arguments |= _reasoning_limit(
                self.view, request, self.view.steps, self.partial_text, self.min_answer_tokens
            )
        call = replace(self, request=request, arguments=arguments)
        if call.retry is None:
            return call
        retry = RetryGrant(call, reserved=True)
        return replace(call, retry=retry, arguments={**call.arguments, "retry_tokens": retry})

    def read(self, message: Any) -> Reply:
        """Reads an answer; one that is an error by itself, such as a filtered one, is charged."""
        try:
            return read_reply(message, self.arguments.get("stop", ()), self.writer, self.estimate)
        except ModelServerError as error:
            if error.attempts is None:
                error.attempts = attempts_of_answer(message)
            raise

    async def aread(self, message: Any) -> Reply:
        """Does the same as `read`, in a thread if tokens are counted: a tokenizer may have to be loaded."""
        if self.estimate is None or not isinstance(message, AIMessage) or reports_usage(message):
            return self.read(message)
        return await asyncio.to_thread(self.read, message)


class RetryGrant:
    """Grants tokens to further attempts of a large call, within what the limits leave.

    Args:
        call: A call of the large model.
        reserved: Whether the call has a reservation in shared accounts. Then an attempt that may have cost
            something ends the call, so that `route` reserves anew.

    Attributes:
        max_tokens: Grant of the current attempt.
        exhausted_limit: Name of the limit that left nothing; None while something is left.
    """

    def __init__(self, call: Call, *, reserved: bool = False) -> None:
        self._call = call
        self._reserved = reserved
        self.max_tokens = call.request["max_tokens"]
        self.exhausted_limit: str | None = None

    def __call__(self, lost: FailedAttempts) -> int:
        """Returns ``max_tokens`` of the next attempt; 0 allows none."""
        call = self._call
        if self._reserved and (lost["unknown"] or lost["input_tokens"] or lost["output_tokens"]):
            self.exhausted_limit = "a reservation"
            return 0
        usage = charge_lost(call.usage, "large", lost, **call.unreported())
        budget, prices = call.settings.budget, call.settings.prices
        self.max_tokens, self.exhausted_limit = grant(
            budget,
            budget.left(usage, prices),
            prices,
            wanted=call.request["max_tokens"],
            prompt_tokens=call.prompt_tokens,
        )
        return self.max_tokens


# Before the call


def begin_turn(
    view: RunView, config: RunnableConfig, model: Runnable[Any, Any], prompt_size: Callable[[], int]
) -> Call:
    """Prepares the call that the router requested, for a turn of an agent.

    Args:
        view: View of the run.
        config: The config of the agent's node.
        model: The chat model that is called.
        prompt_size: Returns an upper bound of the prompt in tokens.
    """
    assert view.request is not None
    return Call(
        view=view,
        request=view.request,
        id=uuid.uuid4().hex,
        config=config,
        limit=_limit(view),
        invocation=None,
        model=model,
        prompt_size=prompt_size,
        solution=False,
    )


def prepare_step(
    view: RunView,
    request: StepRequest,
    steps: Sequence[Step],
    config: RunnableConfig,
    models: Mapping[Writer, WriterModel],
    *,
    invocation: Invocation | None,
    counters: Mapping[Writer, TokenCounter] | None = None,
) -> StepCall:
    """Prepares the call that `route` requested, for a step.

    Args:
        view: View of the run.
        request: Request of `route`.
        steps: The accepted steps, which the new step continues.
        config: The node's config.
        models: The two writers.
        invocation: The invocation that makes the call.
        counters: Token counters for writers that do not report their tokens.
    """
    settings, writer = view.settings, request["writer"]
    model, previous = models[writer], steps[-1] if steps else None
    limit, segmentation = _limit(view), view.segmentation.continuing(cut_text(steps))
    partial_text = request["partial_text"]
    prefix = join_steps(steps, settings.delimiter) + partial_text
    if partial_text and not partial_text_counts(previous, partial_text):
        partial_text = ""
    arguments: dict[str, Any] = {"max_tokens": request["max_tokens"]}
    if "probe" in request:
        arguments |= model.entropy_arguments()
    else:
        if not request["until_eos"]:
            arguments |= stop_arguments(
                segmentation,
                settings.thinking,
                previous,
                partial_text=partial_text,
                takes_stop_when=model.takes_stop_when,
            )
        if model.min_answer_tokens is not None:
            arguments |= _reasoning_limit(view, request, steps, partial_text, model.min_answer_tokens)
    tag = (
        "trim:probe" if "probe" in request else "trim:draft" if request["needs_decision"] else "trim:accepted"
    )
    messages = compose(view.state["messages"], settings.instruction, prefix)
    key = _key(prefix, arguments)
    if limit is not None:
        arguments["timeout"] = limit
    call = StepCall(
        view=view,
        request=request,
        id=uuid.uuid4().hex,
        config=tagged(config, "nostream", tag, f"trim:{writer}"),
        limit=limit,
        invocation=invocation,
        model=model.runnable,
        prompt_size=partial(sent_prompt_bound, model.runnable, messages),
        messages=messages,
        arguments=arguments,
        segmentation=segmentation,
        previous=previous,
        index=len(steps),
        partial_text=partial_text,
        key=key,
        estimate=estimate_of(settings, writer, (counters or {}).get(writer), messages),
        min_answer_tokens=model.min_answer_tokens,
    )
    if writer == "large" and model.takes_retry_tokens:
        retry = arguments["retry_tokens"] = RetryGrant(call)
        call = replace(call, retry=retry)
    return call


def _reasoning_limit(
    view: RunView, request: StepRequest, steps: Sequence[Step], partial_text: str, kept: int
) -> dict[str, Any]:
    """Returns the call setting that ends a writer's reasoning while tokens for its answer are left.

    vLLM counts the reasoning at the end of the prompt too, so the limit is for that of all steps together. A
    call that cannot reach the limit goes without one, apart from the first call of a run: a server that was
    not set up for it refuses at once.

    Limits of the large model count where they end its text: in a call to the end of the solution, and where
    they end the run. Otherwise the small model may continue.

    Args:
        view: View of the run.
        request: Request of `route`.
        steps: The accepted steps.
        partial_text: Text of this step from earlier attempts.
        kept: Tokens that are kept for the answer.
    """
    settings, granted = view.settings, request["max_tokens"]
    previous = steps[-1] if steps else None
    if settings.thinking is None or not settings.thinking.may_close(previous, partial_text):
        return {}
    begun = partial_tokens(request, previous)
    if request["until_eos"]:
        more = granted - kept
    else:  # any step may be short, so whole steps are kept for the answer
        more = view.step_tokens * (settings.max_steps - len(steps) - math.ceil(kept / view.step_tokens))
    if settings.max_tokens is not None:
        more = min(more, settings.max_tokens - sum(step["tokens"] for step in steps) - begun - kept)
    if request["writer"] == "large" and view.budget.on_exhausted == "stop":
        more = min(more, _large_tokens_left(view, request) - kept)
    more = max(more, 0)
    if steps and more >= granted:
        return {}
    written = begun
    for step in reversed(steps):
        if step.get("part") != "reasoning":
            break
        written += step["tokens"]
    # The server counts its own tokens, so only 0 ends the reasoning at once whatever it counts.
    return {"thinking_token_budget": written + more if more else 0}


def _large_tokens_left(view: RunView, request: StepRequest) -> int:
    """Returns how many tokens of the large model are left in a run that ends once there are none.

    Accounts are not known here, but `route` has cut the step's tokens to what they leave.
    """
    wanted = view.step_tokens * (view.settings.max_steps - len(view.steps))
    if request["max_tokens"] < view.step_tokens:
        wanted = request["max_tokens"]
    in_flight = view.state.get("in_flight")
    tokens, _ = grant(
        view.budget,
        view.left,
        view.prices,
        wanted=wanted,
        prompt_tokens=in_flight["prompt_tokens"] if in_flight else 0,
    )
    return tokens


def _shared_min_answer_tokens(model: Runnable[Any, Any]) -> int | None:
    """Returns the setting that all models share which may answer; None where one does not have it."""
    found: set[int | None] = {getattr(inside, "min_answer_tokens", None) for inside in models_inside(model)}
    return found.pop() if len(found) == 1 else None


def _limit(view: RunView) -> float | None:
    seconds = view.seconds_left
    return None if seconds is None else max(seconds, 0.01)


def _key(prefix: str, arguments: dict[str, Any]) -> str:
    """Returns the name of a call within its run: a hash of the text it continues and of where it ends."""
    identity = json.dumps([prefix, arguments.get("max_tokens"), arguments.get("stop")])
    return hashlib.sha256(identity.encode()).hexdigest()


def estimate_of(
    settings: Settings, writer: Writer, counter: TokenCounter | None, prompt: Sequence[BaseMessage]
) -> Estimate | None:
    """Returns the estimate of a call's tokens; None if a limit needs them exactly and no counter was given.

    Args:
        settings: Settings of the run.
        writer: The model that is called.
        counter: Token counter of its model.
        prompt: The messages that are sent.
    """
    if counter is None:
        return None
    limits = (settings.budget, settings.quotas.thread, settings.quotas.user)
    limited = writer == "large" and any(
        limit is not None and (limit.large_tokens is not None or limit.large_cost is not None)
        for limit in limits
    )
    return None if limited and counter.given is None else Estimate(counter, prompt)


# The call itself


def with_reservation(call: Call, ledger: Ledger | None, ask: Callable[[Any], Update]) -> Update:
    """Makes a call within a reservation in the accounts of its run, and settles with its usage.

    A call of the small model, or of a run without accounts, needs no reservation.

    Args:
        call: The prepared call.
        ledger: The graph's ledger.
        ask: Makes the call as granted, and returns the update of the state.
    """
    reservation = _reservation(call, ledger)
    if reservation is None:
        return ask(call)
    granted = reservation.reserve(call.request["max_tokens"])
    if granted.exhausted_limit is not None:
        return _exhausted(call, granted.exhausted_limit)
    call = call.cap_tokens(granted.tokens)
    try:
        update = ask(call)
    except BaseException as error:
        reservation.settle(call.usage, usage_of_failed(call, error))
        raise
    return add_note(call, update, reservation.settle(call.usage, update["usage"]))


async def awith_reservation(
    call: Call, ledger: Ledger | None, ask: Callable[[Any], Awaitable[Update]]
) -> Update:
    """Does the same as `with_reservation`, without blocking the event loop."""
    reservation = _reservation(call, ledger)
    if reservation is None:
        return await ask(call)
    granted = await reservation.areserve(call.request["max_tokens"])
    if granted.exhausted_limit is not None:
        return _exhausted(call, granted.exhausted_limit)
    call = call.cap_tokens(granted.tokens)
    try:
        update = await ask(call)
    except BaseException as error:
        await reservation.asettle(call.usage, usage_of_failed(call, error))
        raise
    return add_note(call, update, await reservation.asettle(call.usage, update["usage"]))


def _reservation(call: Call, ledger: Ledger | None) -> CallReservation | None:
    if call.writer != "large" or not call.view.accounts:
        return None
    return CallReservation(
        call.view.accounts,
        ledger,
        entry=f"{call.view.run['id']}.{call.usage['large']['calls']}",
        prompt_tokens=call.prompt_tokens,
        budget=call.settings.budget,
        prices=call.settings.prices,
    )


def make_call(
    call: Call,
    ask: Callable[[], A],
    read: Callable[[A], Reply],
    apply_reply: Callable[[A, Reply, float], Update],
    recover: Callable[[Exception, float], Update | None] = lambda error, seconds: None,
) -> Update:
    """Calls a writer, and charges for its usage however the call ends.

    Args:
        call: The prepared call.
        ask: Sends it; `make_call` cuts it off at the call's limit of seconds.
        read: Reads the answer.
        apply_reply: Returns the update of the state from answer, reply and seconds.
        recover: Returns the update after an error, or None for what the settings declare
            (`handle_call_error`).

    Returns:
        The update of the state.
    """
    begun = time.monotonic()
    with record_on_abort(call):
        try:
            answer = call_with_timeout(call.limit, ask)
            reply = read(answer)
        except Exception as error:
            seconds = time.monotonic() - begun
            return charged(call, recover(error, seconds) or handle_call_error(call, error, seconds))
        return charged(call, apply_reply(answer, reply, time.monotonic() - begun))


async def amake_call(
    call: Call,
    answering: Awaitable[A],
    read: Callable[[A], Awaitable[Reply]],
    apply_reply: Callable[[A, Reply, float], Update],
    recover: Callable[[Exception, float], Awaitable[Update | None]] | None = None,
) -> Update:
    """Does the same as `make_call`, without blocking the event loop."""
    begun = time.monotonic()
    with record_on_abort(call):
        try:
            async with asyncio.timeout(None if call.limit is None else call.limit + GRACE):
                answer = await answering
            reply = await read(answer)
        except Exception as error:
            seconds = time.monotonic() - begun
            recovered = None if recover is None else await recover(error, seconds)
            return charged(call, recovered or handle_call_error(call, error, seconds))
        return charged(call, apply_reply(answer, reply, time.monotonic() - begun))


def make_step(
    call: StepCall, ledger: Ledger | None, apply_reply: Callable[[StepCall, Any, Reply, float], Update]
) -> Update:
    """Makes a call for a step within its reservation.

    Args:
        call: The prepared call.
        ledger: The graph's ledger.
        apply_reply: Returns the update of the state from call, answer, reply and seconds.
    """

    def ask(granted: StepCall) -> Update:
        answer = partial(granted.model.invoke, granted.messages, granted.config, **granted.arguments)
        return make_call(granted, answer, granted.read, partial(apply_reply, granted))

    return with_reservation(call, ledger, ask)


async def amake_step(
    call: StepCall,
    ledger: Ledger | None,
    apply_reply: Callable[[StepCall, Any, Reply, float], Update],
    started: asyncio.Task[Any] | None = None,
) -> Update:
    """Does the same as `make_step`, without blocking the event loop.

    Args:
        call: The prepared call.
        ledger: The graph's ledger.
        apply_reply: Returns the update of the state from call, answer, reply and seconds.
        started: The speculative call, if it is the same one.
    """

    def ask(granted: StepCall) -> Awaitable[Update]:
        answer = started or granted.model.ainvoke(granted.messages, granted.config, **granted.arguments)
        return amake_call(granted, answer, granted.aread, partial(apply_reply, granted))

    return await awith_reservation(call, ledger, ask)


@contextmanager
def record_on_abort(call: Call) -> Iterator[None]:
    """Records the possible usage of a large call if an error leaves the node: the run may resume later."""
    try:
        yield
    except (GraphBubbleUp, SettingsError):
        raise
    except BaseException as error:
        if call.writer == "large":
            # The caller sees the error and may retry, so it does not count towards giving the model up.
            usage = add_usage(usage_of_failed(call, error), {"large": {"failed_calls": -1}})
            _remember(call, usage, raised=True)
        raise


# What it is charged for


def charged(call: Call, update: Update) -> Update:
    """Adds a large call's name to the update that charges it, and records the call until that is stored.

    A note reports a charge for tokens that the model did not report.
    """
    writer = call.writer
    if writer == "large":
        _remember(call, update["usage"], raised=False)
        update = update | {"charged_call": call.id}
    tokens = unreported_tokens(update["usage"], writer) - unreported_tokens(call.usage, writer)
    if not tokens or "timed_out" in (update.get("failed") or ()):  # a cut-off has its own note
        return update
    note = charge_note(writer, "did not report all that it had generated", tokens)
    return update if note in update.get("notes", call.notes) else add_note(call, update, note)


def _remember(call: Call, usage: Usage, *, raised: bool) -> None:
    made = LargeCall(
        call.id,
        parent=call.view.state.get("charged_call"),
        used=usage_delta(call.usage, usage),
        checkpoint_key=checkpoint_key_of(call.config),
        raised=raised,
        invocation=call.invocation,
    )
    remember(call.view.run["id"], made)


def usage_with_reply(call: Call, reply: Reply, metadata: dict[str, Any], seconds: float) -> Usage:
    """Does the same as `charge_reply`, and emits ``retried`` if attempts have failed before the answer."""
    usage, writer = charge_reply(call, reply, metadata, seconds), call.writer
    if failed := usage[writer]["failed_attempts"] - call.usage[writer]["failed_attempts"]:
        emit("retried", part=writer, attempts=failed)
    return usage


def charge_reply(call: Call, reply: Reply, metadata: dict[str, Any], seconds: float) -> Usage:
    """Returns the run's usage with an answer's tokens and seconds, and those of failed attempts before it."""
    lost = read_attempts(metadata)
    beyond = 0
    if call.writer == "large":
        written = reply.output_tokens - (lost["output_tokens"] if lost else 0)
        beyond = max(0, written - (call.retry.max_tokens if call.retry else call.request["max_tokens"]))
    usage = charge_answer(call.usage, call.writer, reply, seconds, overshoot=beyond)
    if not call.solution or not (call.request["partial_text"] or any(s["tokens"] for s in call.view.steps)):
        usage["prompt"] = count_prompt_once(
            call.usage.get("prompt"),
            call.writer,
            0 if call.solution else len(call.view.steps),
            input_tokens=reply.input_tokens - (lost["input_tokens"] if lost else 0),
            cached_tokens=reply.cached_tokens,
        )
    return usage if lost is None else charge_attempts(usage, call.writer, lost, **call.unreported())


def usage_of_failed(call: Call, error: BaseException, seconds: float = 0.0) -> Usage:
    """Returns the run's usage with a call that has failed; a cancelled call counts in full."""
    later = add_usage(call.usage, {"seconds": seconds})
    return charge_failed_call(later, call.writer, error, **call.unreported())


def usage_before_fallback(call: Call, error: Exception, seconds: float) -> Usage | None:
    """Returns the run's usage with a failed call before a fallback is called; None if none may be called."""
    if isinstance(error, NEVER_CAUGHT) or (call.limit is not None and seconds >= call.limit):
        return None
    # The writer has failed only after its last fallback.
    return add_usage(usage_of_failed(call, error, seconds), {call.writer: {"failed_calls": -1}})


# When there is no answer


def skip_late_call(call: Call) -> Update | None:
    """Returns the update in place of a large call for which no time is left; None if it may be made.

    It would be cut off and charged in full. The router saw more time: policy, checkpointer and ledger have
    taken some since.
    """
    left = call.view.seconds_left
    if call.writer != "large" or left is None or left > 0:
        return None
    failed = Failure(part="large", error="the limit on seconds left no time for it", timed_out=True)
    return {"usage": call.usage, "draft": None, "in_flight": None, "failed": failed}


def _exhausted(call: Call, limit: str) -> Update:
    """Reports to `route` that other runs have exhausted an account since it made the request."""
    failed = Failure(
        part="large", error=f"the limit on {limit} leaves no further call", exhausted_limit=limit
    )
    return {"usage": call.usage, "draft": None, "in_flight": None, "failed": failed, "notes": call.notes}


def handle_call_error(call: Call, error: Exception, seconds: float) -> Update:
    """Returns the update after a failed call, if the run has a way out.

    Raises:
        Exception: The error itself, if the settings declare no way out.
        ChatModelContractError: The small model reports no entropy, which a probe needs.
    """
    # A client that got the time limit may raise an error of its own at its end.
    if call.limit is not None and seconds >= call.limit and not isinstance(error, NEVER_CAUGHT):
        return _timed_out(call, error, seconds)
    writer = call.writer
    if "probe" in call.request and refused_setting(error) in LOGPROBS:
        raise ChatModelContractError(
            f"the {writer} model does not report the entropy of its first token, which the policy asks for; "
            f"it refuses log-probabilities. Use ChatVLLM or ChatTransformers, or another policy ({error})"
        ) from error
    limit = None if call.retry is None else call.retry.exhausted_limit
    full = call.solution and is_context_full(error)
    failed = failure(error, writer, exhausted_limit=limit, context_full=full)
    way = way_out(failed, call.settings, call.view.steps, solution=call.solution)
    if way is None or (isinstance(error, NEVER_CAUGHT) and limit is None):
        note_origin(error, writer, call.model, call.view, solution=call.solution)
        raise error
    update: Update = {"draft": None, "in_flight": None, "failed": failed, "notes": call.notes}
    if way == "end":  # a server refuses a prompt that is too long before it reads it
        return update | {"usage": add_usage(call.usage, {"seconds": seconds})}
    emit("failed", part=writer, error=failed["error"])
    if limit is not None:
        update["notes"] = with_notes(call, [f"the {writer} model failed: {failed['error']}"])
    return update | {"usage": usage_of_failed(call, error, seconds)}


def _timed_out(call: Call, error: Exception, seconds: float) -> Update:
    """Charges a writer that did not answer in time for what it may have generated."""
    writer = call.writer
    usage = add_usage(call.usage, {writer: {"calls": 1}, "seconds": seconds})
    usage = charge_lost(usage, writer, attempts_of(error), **call.unreported())
    tokens = unreported_tokens(usage, writer) - unreported_tokens(call.usage, writer)
    note = charge_note(writer, "was cut off by the limit on seconds", tokens)
    update: Update = {"usage": usage, "draft": None, "in_flight": None, "failed": cut_off(writer)}
    return add_note(call, update, note)


def note_origin(error: Exception, part: Component, model: Any, view: RunView, *, solution: bool) -> None:
    """Adds to an error that leaves a node which model raised it, and in which step or turn.

    Args:
        error: The error of a call.
        part: The component that was called.
        model: Its chat model, or the scorer.
        view: View of the run.
        solution: Whether the steps form a solution; else they are an agent's turns.
    """
    if not isinstance(error, GraphBubbleUp | SettingsError):
        name = "the scorer" if part == "scorer" else f"the {part} model"
        add_origin(error, name, model, f"{'step' if solution else 'turn'} {len(view.steps) + 1}")


def failure(
    error: Exception, part: Component, *, exhausted_limit: str | None = None, context_full: bool = False
) -> Failure:
    """Returns an error as a `Failure` for the state.

    Args:
        error: The error of a call.
        part: The component that was called.
        exhausted_limit: The limit that leaves no further attempt.
        context_full: Whether the solution fills the component's context, so that a retry cannot help.
    """
    text = error_text(error)
    if (way := remedy(error)) is not None:
        text += f"; {way}"
    failed = Failure(part=part, error=text)
    if exhausted_limit is not None:
        failed["exhausted_limit"] = exhausted_limit
    if context_full:
        failed["context_full"] = True
    return failed


def cut_off(part: Component) -> Failure:
    """Returns the failure of a call that the limit on seconds has cut off."""
    return Failure(part=part, error="the limit on seconds cut it off", timed_out=True)


def error_text(error: BaseException) -> str:
    """Returns an error in one line, cut to `SHOWN` characters for the state."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]


# Notes for the user


def notes_on(call: Call, reply: Reply, metadata: dict[str, Any]) -> list[str]:
    """Returns the run's notes with those on an answer: prompted continuation, estimates, the reply's."""
    writer, found = call.writer, list[str]()
    if metadata.get("continuation") == "prompt":
        found.append(f"the {writer} model continues by prompt: it cannot carry on a text exactly")
    if reply.estimated is not None:
        found.append(
            f"the {writer} model does not report its tokens: they are estimated by {reply.estimated}, and "
            "reasoning that it does not show is not among them"
        )
    return with_notes(call, [*found, *reply.notes])


def with_notes(call: Call, notes: Sequence[str]) -> list[str]:
    """Returns the notes of the run with further ones; a run has each note once."""
    if not notes:
        return call.notes
    new = [note for note in dict.fromkeys(notes) if note not in call.notes]
    for note in new:
        emit("note", text=note)
    return [*call.notes, *new]


def add_note(call: Call, update: Update, note: str | None) -> Update:
    """Returns an update with a further note; None adds nothing."""
    if note is None:
        return update
    emit("note", text=note)
    return update | {"notes": [*update.get("notes", call.notes), note]}
