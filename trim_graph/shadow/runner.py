"""`Shadow`: takes an application's answers, and has routing done beside it, within a budget of its own."""

from __future__ import annotations

import inspect
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable
from pydantic import ValidationError
from typing_extensions import Unpack

from trim_graph.adapters.base import AnyScorer, as_scorer, reads_token_probability
from trim_graph.adapters.by_name import as_chat_model
from trim_graph.adapters.responses import CountTokens
from trim_graph.adapters.token_confidence import reporting
from trim_graph.budget import Budget, Prices, Quota
from trim_graph.budget.ledger import Ledger, MemoryLedger
from trim_graph.budget.usage import LargeUsage, large_usage
from trim_graph.conversation import extract_answer, question_of, require_answerable
from trim_graph.driver import adrive
from trim_graph.errors import InputError, SettingsError
from trim_graph.graph import create_trim_graph
from trim_graph.policies import small_only
from trim_graph.policies.base import AnyPolicy, as_policy
from trim_graph.routing.drafts import split_into_steps
from trim_graph.routing.router import segmentation_of
from trim_graph.segmentation import as_segmentation
from trim_graph.settings import (
    RunSettings,
    Settings,
    ShadowKeywords,
    ShadowSettings,
    TrimContext,
    describe,
    make_settings,
)
from trim_graph.state import Step, Summary

from .allowance import Allowance
from .records import (
    VERSION,
    AnswerRecord,
    Application,
    RecordSink,
    ShadowRecord,
    ShadowUsage,
    WouldBe,
    error_of,
    summary_record,
    text_of,
)
from .walk import DraftOf, Walk
from .watching import ShadowHandler, shadow_node, watched
from .worker import ShadowWorker, WorkerControl

if TYPE_CHECKING:
    from trim_graph.config import Parts, TrimConfig

TAGS = ["trim:shadow"]
"""Tags of every call that a shadow makes, for tracers."""

Agreement = Callable[[str, str], bool | Awaitable[bool | None] | None]
"""Gets the application's answer and the routed one; returns whether they say the same, None if unknown."""
Grade = Callable[[str, str], bool | Awaitable[bool | None] | None]
"""Gets the question and an answer; returns whether it is right, None if unknown."""
Watched = TypeVar("Watched", bound=Runnable[Any, Any])


def same_answer(application: str, routed: str) -> bool | None:
    r"""Returns whether two solutions box the same answer: equal numbers, or equal texts but for spaces.

    None where neither holds a ``\boxed{}``: then nothing can be compared.
    """
    from trim_graph.evaluation.graders import exact, numeric

    own = extract_answer(application)
    if own is None:
        return None if extract_answer(routed) is None else False
    try:
        return numeric(own)(routed)
    except ValueError:
        pass
    try:
        return exact(own)(routed)
    except ValueError:  # a box in a box: as text
        other = extract_answer(routed)
        return other is not None and own.split() == other.split()


class ApplicationAnswer(NamedTuple):
    """An answer of the application, as `Shadow.submit` takes it."""

    messages: Any
    answer: AIMessage | str
    usage: Mapping[str, int] | None
    seconds: float | None


class ShadowBase(WorkerControl):
    """What an application does with a shadow, whatever examines the answers."""

    answers: Application

    @cached_property
    def _handler(self) -> ShadowHandler:
        """One for all models: LangChain calls a handler once, also where chain and model both have it."""
        return ShadowHandler(self)

    async def _examine(self, given: ApplicationAnswer) -> dict[str, Any]:
        """Returns the record of one answer; runs in the worker's thread."""
        raise NotImplementedError

    def submit(
        self,
        messages: str | Sequence[Any],
        answer: AIMessage | str,
        *,
        usage: Mapping[str, int] | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Takes one answer of the application; returns at once and never raises for what it is given.

        Args:
            messages: The conversation that was answered, in any form that LangChain takes; or its question.
            answer: The answer, a message or its text.
            usage: ``input_tokens`` and ``output_tokens`` of the answer; default: those of the message.
            seconds: Time that the answer took.

        Returns:
            Whether the answer will be examined; else it was not drawn, or was dropped.
        """
        # A list of its own: the application may append to the conversation at once.
        kept = messages if isinstance(messages, str) else list(messages)
        given = ApplicationAnswer(kept, answer, usage, seconds)
        return self._worker.offer(lambda: self._examine(given))

    def observe(self, messages: Sequence[Any], answer: AIMessage) -> None:
        """Takes an answer of a trim graph that answers with one model: `create_trim_graph` calls it.

        An answer that has steps of the other model, as a fallback or a call's own policy writes them, is
        none of the application's model, and is counted as unsuitable.

        Args:
            messages: The conversation.
            answer: The answer of the graph, with its summary.
        """
        summary = answer.response_metadata["trim"]
        if any(count for writer, count in summary["steps"].items() if writer != self.answers):
            self.skip()
            return
        self.submit(messages, answer, seconds=summary["seconds"])

    def skip(self) -> None:
        """Counts an answer that cannot be routed, such as one with tool calls."""
        self._worker.offer(None)

    def watch(self, model: Watched) -> Watched:
        """Returns the application's chat model with the shadow attached; use it in place of the model.

        A chat model stays of its class: tools, streams and structured output work as before. Answers with
        tool calls or a schema are counted as unsuitable. Another Runnable, such as a bound model, a model
        with fallbacks or a chain, has every chat model inside watched.

        Args:
            model: The chat model, or a Runnable around it.

        Raises:
            SettingsError: It is a graph: add `node` to it instead.
        """
        return watched(model, self._handler)

    def node(self, messages: str = "messages") -> Runnable[Any, Any]:
        """Returns a node for a LangGraph graph: it submits the last answer in the state, and changes nothing.

        Args:
            messages: Key of the conversation in the state; its last message is the answer.
        """
        return shadow_node(self, messages)


class ShadowRunSettings(RunSettings, ShadowKeywords, total=False):
    """Keywords of `Shadow` that are settings: of the shadow, and of its runs."""


class Shadow(ShadowBase):
    """Records what routing would have done with an application's questions, beside the application.

    The application answers with its own model: nothing that a shadow does delays it, changes its answer, or
    raises in it. The models, the scorer and the settings are those of `create_trim_graph`, which the routed
    run would have.

    Args:
        small: Chat model that would draft every step.
        large: Chat model that would rewrite steps. Only questions drawn by ``run_rate`` call it.
        scorer: Rates each step.
        policy: Decides when the large model would write.
        answers: Model that the application answers with, ``large`` or ``small``.
        record: File of the records, ``.jsonl`` or ``.db``; or a sink with ``write`` and ``close``.
        shadow_budget: Limits of all runs together; needed if ``run_rate`` is above 0. A run is made only if
            what it may use at most is left, so none is cut short; else a walk is made, counted as refused.
        ledger: Counts what the runs use, over processes and restarts; default: in this process only.
        agreement: Compares the application's answer with the routed one; a judge may be asynchronous.
        grade: Says whether an answer is right, if somebody knows.
        budget: Hard limits of one routed run, as in `create_trim_graph`.
        prices: Price table; without one records have no costs.
        count_tokens: Returns the number of tokens of a text, for answers without usage.
        **settings: Fields of `trim_graph.settings.ShadowSettings`, which documents each: ``rate``,
            ``run_rate``, ``text``, ``capacity``, ``concurrency``, ``timeout``, ``sampling_seed``. Along the
            answers that ``run_rate`` leaves out goes a `trim_graph.shadow.walk.Walk`, which makes no large
            call. And fields of `Settings`, such as ``max_steps``.

    Raises:
        SettingsError: A setting is wrong or missing; the message names it.

    Example:
        ```python
        shadow = Shadow(small, large, prm, policy=threshold(0.9), answers="large", record="shadow.jsonl")
        model = shadow.watch(large)  # use it as before
        ...
        shadow.close()
        ```
    """

    def __init__(
        self,
        small: Runnable[Any, Any] | str,
        large: Runnable[Any, Any] | str,
        scorer: AnyScorer | None = None,
        *,
        policy: AnyPolicy,
        answers: Application,
        record: str | Path | RecordSink,
        shadow_budget: Quota | None = None,
        ledger: Ledger | None = None,
        agreement: Agreement = same_answer,
        grade: Grade | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
        count_tokens: CountTokens | None = None,
        **settings: Unpack[ShadowRunSettings],
    ) -> None:
        own, others = split_settings(settings, answers, shadow_budget)
        self.answers = answers
        small, large = as_chat_model("small", small), as_chat_model("large", large)
        self.policy = as_policy(policy)
        self.settings = make_settings(budget, prices, others)
        _check_settings(self.settings)
        self.priced = prices is not None
        self._own_segmentation = as_segmentation(others.get("segmentation"))
        shared: dict[str, Any] = {"budget": budget, "prices": prices, "count_tokens": count_tokens}
        self._graph = create_trim_graph(
            small, large, scorer, policy=self.policy, name="trim-shadow", **shared, **others
        )
        self._scorer = None if scorer is None else as_scorer(scorer)
        if self._scorer is not None and reads_token_probability(self._scorer):
            if answers == "small" and own.run_rate < 1:
                raise SettingsError(
                    f"the scorer {scorer!r} weighs the small model's token probabilities, which an answer of "
                    "the application does not have: set run_rate=1, or train the scorer with "
                    "--no-token-probability"
                )
            small = reporting(small, self._scorer, "small")
        drafting: dict[str, Any] = {**others, "lookahead": False, "warm_large": False}
        drafting["on_small_error"] = "raise"
        # Without the large model: no answer of the policy small_only asks for one.
        self._drafts = create_trim_graph(
            small, small, policy=small_only(), name="trim-shadow-draft", count_tokens=count_tokens, **drafting
        )
        self._count_tokens = count_tokens
        self._allowance = None
        if shadow_budget is not None:
            counting = ledger or MemoryLedger(reservation_s=2 * own.timeout)
            self._allowance = Allowance(shadow_budget, counting, self.settings, steps=self.settings.max_steps)
        self.run_rate, self.text = own.run_rate, own.text
        self._agreement, self._grade = agreement, grade
        self._random = random.Random(own.sampling_seed)
        self._worker = ShadowWorker(record, own)

    @classmethod
    def from_config(
        cls, config: TrimConfig | str | Path, *, parts: Parts | None = None, **options: Any
    ) -> Self:
        """Builds a shadow of the models, policy and settings of a configuration.

        Args:
            config: The configuration, or the path of its YAML file.
            parts: Its models, to share them with the application; default: new ones.
            **options: Options of a shadow, in place of those in the section ``shadow``. Without that section
                ``answers`` and ``record`` are needed.

        Raises:
            SettingsError: The configuration or an option is not valid.
        """
        from trim_graph.config import build_parts, load_config

        made = load_config(config) if isinstance(config, str | Path) else config
        section = {} if made.shadow is None else made.shadow.options()
        if missing := [name for name in ("answers", "record") if name not in {**section, **options}]:
            raise SettingsError(
                f"the configuration has no section shadow, and {' and '.join(missing)} not given: pass "
                "answers= and record=, or add shadow: {answers: large, record: shadow.jsonl}"
            )
        parts = parts or build_parts(made)
        given: dict[str, Any] = {
            "policy": made.policy.build(),
            "budget": made.budget,
            "prices": made.prices if "prices" in made.model_fields_set else None,
            "large_alone": made.large_alone,
            **made.settings.model_dump(),
        }
        return cls(parts.small, parts.large, parts.scorer, **{**given, **section, **options})

    # What runs in the worker's thread

    async def _examine(self, given: ApplicationAnswer) -> dict[str, Any]:
        """Returns the record of one answer; an error becomes part of it."""
        record = new_record(self.answers, priced=self.priced)
        try:
            await self._fill(record, given)
        except Exception as error:
            record["error"] = error_of(error, kept=self.text)
        return cast(dict[str, Any], record)

    async def _fill(self, record: ShadowRecord, given: ApplicationAnswer) -> None:
        kept = [("user", given.messages)] if isinstance(given.messages, str) else given.messages
        asked = cast(list[AnyMessage], convert_to_messages(kept))
        question = question_of(asked)
        record["question"] = text_of(question, kept=self.text)
        require_answerable(asked, question)
        answer = given.answer if isinstance(given.answer, AIMessage) else AIMessage(given.answer)
        text = str(answer.text)
        forced = self._steps(answer, given.usage)
        record["answered"] = answered = self._answered(answer, forced, given)
        drawn = self.run_rate > 0 and self._random.random() < self.run_rate
        reserved = self._allowance.reserve(record["id"]) if drawn and self._allowance else None
        if reserved is not None:
            record["kind"] = "run"
            routed: str | None = await self._run(record, asked, answered, reserved)
        else:
            record["kind"], record["refused"] = "walk", "budget" if drawn else None
            routed = text if await self._walk(record, asked, question, answered, forced) else None
        if routed is None:
            return
        record["routed"] = text_of(routed, kept=self.text)
        record["agree"] = True if routed == text else await awaited(self._agreement(text, routed))
        if self._grade is not None:
            record["correct"] = {
                "application": await awaited(self._grade(question, text)),
                "routed": await awaited(self._grade(question, routed)),
            }

    def _steps(self, answer: AIMessage, usage: Mapping[str, int] | None) -> list[Step]:
        """Returns the steps of the application's answer; their tokens are 0 where nobody knows them.

        Raises:
            InputError: The answer has no text.
        """
        text = str(answer.text)
        if not text.strip():
            raise InputError("the answer has no text, so it has no steps")
        known = _tokens(answer, usage, self._count_tokens)[1]
        metadata = answer.response_metadata
        whole = Step(
            text=text,
            writer=self.answers,
            model=str(metadata.get("model_name") or ""),
            tokens=known or 0,
            mean_token_probability=None,
            end="length" if metadata.get("finish_reason") in ("length", "max_tokens") else "eos",
        )
        settings = self.settings
        if settings.thinking is not None and (part := settings.thinking.part_of(None, text)) is not None:
            whole["part"] = part
        return list(
            split_into_steps(
                whole,
                segmentation_of(settings, self._own_segmentation),
                delimiter=settings.delimiter,
                thinking=settings.thinking,
            )
        )

    def _answered(self, answer: AIMessage, forced: Sequence[Step], given: ApplicationAnswer) -> AnswerRecord:
        read, written = _tokens(answer, given.usage, self._count_tokens)
        price = getattr(self.settings.prices, self.answers)
        cached = 0
        if (usage := answer.usage_metadata) is not None:
            cached = (usage.get("input_token_details") or {}).get("cache_read") or 0
        known = self.priced and read is not None and written is not None
        return AnswerRecord(
            answer=text_of(str(answer.text), kept=self.text),
            model=str(answer.response_metadata.get("model_name") or ""),
            input_tokens=read,
            output_tokens=written,
            seconds=given.seconds,
            cost=price.cost(read, written, cached) if known else None,
            steps=len(forced),
        )

    async def _walk(
        self,
        record: ShadowRecord,
        asked: Sequence[AnyMessage],
        question: str,
        answered: AnswerRecord,
        forced: Sequence[Step],
    ) -> bool:
        """Walks along the answer; returns whether the routed answer is the application's own.

        Raises:
            InputError: The answer's tokens are not known.
        """
        if answered["output_tokens"] is None:
            raise InputError(
                "the answer has no usage, so its steps have no tokens: have the application's model report "
                "it (stream_usage=True), pass usage= to submit, or count_tokens= to the shadow"
            )
        small = self.answers == "large"

        async def write(steps: Sequence[Step]) -> DraftOf:
            return await self._draft(asked, steps)

        begun = time.monotonic()
        walk = Walk(question, forced, self.policy, self.settings, self._scorer, write if small else None)
        await walk.go()
        seconds = time.monotonic() - begun
        large = walk.large_tokens
        exact = not walk.places if self.answers == "small" else len(walk.places) == len(forced)
        prices = self.settings.prices
        cost, scored = None, prices.scorer_cost(walk.scorer_tokens, walk.scorer_output_tokens)
        asked_tokens = answered["input_tokens"]
        if self.priced and large is not None and scored is not None and asked_tokens is not None:
            own = answered["cost"] if self.answers == "small" else None
            drafted = prices.small.cost(walk.small_input_tokens, walk.small_tokens) if small else 0.0
            read = sum(asked_tokens + before for before in walk.prefix_tokens)
            cost = scored + drafted + (own or 0.0) + prices.large.cost(read, large)
        record["would"] = WouldBe(
            stopped=walk.stopped,
            steps=walk.steps,
            decisions=walk.decisions,
            scores=walk.scores,
            large_tokens=large,
            small_tokens=walk.small_tokens if small else answered["output_tokens"] if exact else None,
            scorer_tokens=walk.scorer_tokens + walk.scorer_output_tokens,
            share=_share(large, answered, self.answers),
            cost=cost,
            seconds=None,
            first_large=walk.places[0] if walk.places else None,
            places=walk.places,
        )
        record["spent"] = ShadowUsage(
            large_tokens=0,
            small_tokens=walk.small_tokens,
            scorer_tokens=walk.scorer_tokens + walk.scorer_output_tokens,
            large_cost=0.0,
            seconds=seconds,
        )
        return exact

    async def _draft(self, asked: Sequence[AnyMessage], steps: Sequence[Step]) -> DraftOf:
        """Has the small model write the step behind the given ones, by the graph's own nodes."""
        context = TrimContext(steps=list(steps) or None, max_steps=len(steps) + 1)
        found, summary, _ = await _driven(self._drafts, asked, context)
        if len(found) != 1:
            raise InputError(f"the small model wrote no step behind {len(steps)} steps: {summary['notes']}")
        usage = summary["usage"]["small"]
        return DraftOf(found[0], usage["input_tokens"])

    async def _run(
        self,
        record: ShadowRecord,
        asked: Sequence[AnyMessage],
        answered: AnswerRecord,
        reserved: LargeUsage,
    ) -> str:
        """Routes the question from its beginning; returns the routed answer."""
        assert self._allowance is not None
        used = reserved  # a run that breaks off counts in full
        try:
            context = TrimContext(budget=self._allowance.budget())
            steps, summary, text = await _driven(self._graph, asked, context)
            used = large_usage(summary["usage"], self.settings.prices)
        finally:
            self._allowance.settle(record["id"], used)
        places = [index for index, step in enumerate(steps) if step["writer"] == "large"]
        usage, tokens = summary["usage"], summary["tokens"]
        scorer = tokens["scorer"] + tokens["scorer_output"]
        record["would"] = WouldBe(
            stopped=summary["stopped"],
            steps=cast(dict[str, int], summary["steps"]),
            large_tokens=used.large_tokens,
            small_tokens=usage["small"]["output_tokens"],
            scorer_tokens=scorer,
            share=_share(used.large_tokens, answered, self.answers),
            cost=summary["cost"] if self.priced else None,
            seconds=summary["seconds"],
            first_large=places[0] if places else None,
            decisions=summary["decisions"],
            scores=summary["scores"],
            places=places,
        )
        record["spent"] = ShadowUsage(
            large_tokens=used.large_tokens,
            small_tokens=usage["small"]["output_tokens"],
            scorer_tokens=scorer,
            large_cost=used.large_cost,
            seconds=summary["seconds"],
        )
        record["summary"] = summary_record(summary, text=self.text)
        return text


def new_record(answers: Application, *, priced: bool) -> ShadowRecord:
    """Returns a record of which nothing is known yet; the worker adds session and counts."""
    return ShadowRecord(
        version=VERSION,
        id=uuid.uuid4().hex,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        session="",
        counts={},
        application=answers,
        kind="walk",
        refused=None,
        question=text_of("", kept=False),
        turn=None,
        priced=priced,
        answered=None,
        would=None,
        routed=None,
        agree=None,
        correct=None,
        spent=None,
        summary=None,
        error=None,
    )


async def _driven(
    graph: Any, asked: Sequence[BaseMessage], context: TrimContext
) -> tuple[list[Step], Summary, str]:
    """Runs a graph; returns the steps that it wrote, its summary and its answer."""
    steps: list[Step] = []
    summary: Summary | None = None
    text = ""
    async for update, _ in adrive(graph, asked, {"tags": TAGS}, context=context):
        if "run" not in update:  # the beginning of a run holds the given steps
            steps += update.get("steps", ())
        if update.get("trim") is not None:
            summary, text = update["trim"], str(update["messages"][-1].text)
    assert summary is not None
    return steps, summary, text


def _tokens(
    answer: AIMessage, usage: Mapping[str, int] | None, count: CountTokens | None
) -> tuple[int | None, int | None]:
    """Returns the tokens of prompt and answer; None where nobody knows them."""
    given: Any = usage if usage is not None else answer.usage_metadata
    if given is not None and given.get("output_tokens") is not None:
        return given.get("input_tokens"), given["output_tokens"]
    return None, None if count is None else count(str(answer.text))


def _share(large: int | None, answered: AnswerRecord, answers: Application) -> float | None:
    whole = answered["output_tokens"]
    return None if answers == "small" or large is None or not whole else large / whole


async def awaited(given: bool | Awaitable[bool | None] | None) -> bool | None:
    """Returns a verdict, awaited if it is asynchronous."""
    return await given if inspect.isawaitable(given) else given


def split_settings(
    given: Mapping[str, Any], answers: str, shadow_budget: Quota | None
) -> tuple[ShadowSettings, dict[str, Any]]:
    """Returns the settings of a shadow, and the other keywords: settings of its runs.

    Args:
        given: Keywords.
        answers: Model that the application answers with.
        shadow_budget: Limits of all runs together.

    Raises:
        SettingsError: A setting of the shadow is wrong, or the runs have no limit.
    """
    if answers not in ("large", "small"):
        raise SettingsError(f"answers is {answers!r}: choose large or small, the application's own model")
    names = ShadowSettings.model_fields.keys()
    try:
        own = ShadowSettings.model_validate({name: given[name] for name in given.keys() & names})
    except ValidationError as error:
        raise SettingsError(describe(error)) from error
    if own.run_rate and shadow_budget is None:
        raise SettingsError(
            f"run_rate is {own.run_rate:g}, so the shadow calls the large model, but shadow_budget sets no "
            "limit: give a Quota, such as Quota(large_tokens=100_000)"
        )
    return own, {name: value for name, value in given.items() if name not in names}


def _check_settings(settings: Settings) -> None:
    """Refuses settings that a shadow cannot keep.

    Raises:
        SettingsError: A run would ask a human, or draw from accounts of the application's users.
    """
    if settings.asks_human:
        name = "ask_below" if settings.ask_below is not None else 'budget.on_exhausted="ask"'
        raise SettingsError(f"{name} has a human asked, and nobody watches a shadow: leave it out")
    if settings.quotas.given:
        raise SettingsError("quotas are the application's users': a shadow has a shadow_budget of its own")
