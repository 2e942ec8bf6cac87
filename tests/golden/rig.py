"""Scripted models that misbehave as declared, and `drive`, which plays a graph and records what it did."""

from __future__ import annotations

import asyncio
import re
import threading
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel, Field

from trim_graph.adapters import ModelServerError, ScorerError
from trim_graph.driver import final_state
from trim_graph.run import TrimGraph
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

ASYNCHRONOUSLY = ContextVar("ASYNCHRONOUSLY", default=False)
"""Whether `drive` calls ``astream`` where a scenario does not say."""
DRIVEN = ContextVar("DRIVEN", default=False)
"""Whether `drive` runs a graph by `trim_graph.driver`, without LangGraph's loop and without its saver."""
_PROCESS = re.compile(rb"\d+-[0-9a-f]{32}")
"""The name of a process, whose length varies."""
A_WHILE = 0.02
"""Seconds that a model takes where calls overlap: far more than LangGraph takes between two of them."""
THREAD: dict[str, Any] = {"configurable": {"thread_id": "golden"}}


class Fails(BaseModel):
    """Mixed into a model: its calls at ``fails_at`` raise ``error``."""

    fails_at: Any = ()
    """Numbers of calls, from 0."""
    error: Any = None
    asked: int = 0

    def _generate(self, *given: Any, **options: Any) -> ChatResult:
        number, self.asked = self.asked, self.asked + 1
        if number in self.fails_at:
            raise self.error or ModelServerError("the server is gone")
        return super()._generate(*given, **options)


class FailingModel(Fails, ScriptedChatModel):
    """Writes steps."""


class FailingToolModel(Fails, ScriptedToolModel):
    """Plays turns."""


class Away(BaseModel):
    """Mixed into a model: from its first call on nothing can be stored."""

    saver: Any

    def _generate(self, *given: Any, **options: Any) -> ChatResult:
        if not self.calls:
            self.saver.go_away()
        return super()._generate(*given, **options)


class AwayModel(Away, ScriptedChatModel):
    """Writes steps."""


class AwayToolModel(Away, ScriptedToolModel):
    """Plays turns."""


class Confident(ScriptedChatModel):
    """Reports the probability of its tokens: 0.9 a step, and 0.2 at the calls in ``unsure_at``."""

    unsure_at: Any = ()

    def _generate(self, *given: Any, **options: Any) -> ChatResult:
        unsure = len(self.calls) in self.unsure_at
        result = super()._generate(*given, **options)
        result.generations[0].message.response_metadata["mean_token_probability"] = 0.2 if unsure else 0.9
        return result


class HangingModel(ScriptedChatModel):
    """Never answers where the steps so far end with ``hangs_behind``."""

    hangs_behind: str
    released: Any = Field(default_factory=threading.Event)

    def _generate(self, messages: Any, *given: Any, **options: Any) -> ChatResult:
        if prefix_of(messages).rstrip().endswith(self.hangs_behind):
            self.released.wait(5)
        return super()._generate(messages, *given, **options)


class ThinkingInSilence(ScriptedChatModel):
    """Spends all tokens on reasoning that it does not show, at the calls in ``silent_at``."""

    silent_at: Any

    def _generate(self, messages: Any, *given: Any, **options: Any) -> ChatResult:
        silent = len(self.calls) in self.silent_at
        result = super()._generate(messages, *given, **options)
        if silent:
            message, most = result.generations[0].message, options["max_tokens"]
            assert isinstance(message, AIMessage)
            assert message.usage_metadata is not None
            message.content = ""
            message.response_metadata |= {"finish_reason": "length", "stop_reason": None}
            message.usage_metadata["output_tokens"] = most
            message.usage_metadata["output_token_details"] = {"reasoning": most}
        return result


class OpenedReasoning(ScriptedChatModel):
    """Says that its chat template has opened the thought."""

    def _generate(self, *given: Any, **options: Any) -> ChatResult:
        result = super()._generate(*given, **options)
        result.generations[0].message.response_metadata["starts_in_reasoning"] = True
        return result


class Unreported(ScriptedChatModel):
    """Reports no usage; its own count is a word a token."""

    def get_num_tokens(self, text: str) -> int:
        return len(text.split())

    def _generate(self, *given: Any, **options: Any) -> ChatResult:
        result = super()._generate(*given, **options)
        message = result.generations[0].message
        assert isinstance(message, AIMessage)
        message.usage_metadata = None
        return result


class PromptedModel(BaseChatModel):
    """A hosted model: it cannot continue a text, and gives the answers of a script, one a call."""

    answers: list[str]
    name: str | None = "hosted"
    calls: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        answer = self.answers[len(self.calls)]
        read, tokens = sum(len(str(m.text).split()) for m in messages), len(answer.split())
        limit = options.get("max_tokens")
        self.calls.append({"messages": messages, "stop": stop, "max_tokens": limit, "tokens": tokens})
        message = AIMessage(
            answer,
            usage_metadata={"input_tokens": read, "output_tokens": tokens, "total_tokens": read + tokens},
            response_metadata={"finish_reason": "stop", "model_name": self.name},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class SlowModel(ScriptedChatModel):
    """Takes `A_WHILE`; hangs behind the texts in ``hangs_behind``, until it is cancelled."""

    takes_stop_when: ClassVar[bool] = False
    hangs_behind: Any = ()

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.sleep(A_WHILE)
        if prefix_of(messages).rstrip() in self.hangs_behind:
            await asyncio.Event().wait()
        return self._generate(messages, stop, **options)


class SlowScorer(ScriptedScorer):
    """Takes longer than the small model does for the next step."""

    async def ascore(self, question: str, steps: Sequence[Any]) -> Any:
        await asyncio.sleep(4 * A_WHILE)
        return self.score(question, steps)


class FailingScorer(ScriptedScorer):
    """Raises ``error`` at the calls in ``fails_at``."""

    def __init__(self, fails_at: Collection[int], error: Exception | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.fails_at, self.error = fails_at, error or ScorerError("no scores")

    def score(self, question: str, steps: Sequence[Any]) -> Any:
        if len(self.calls) in self.fails_at:
            self.calls.append([str(step) for step in steps])
            raise self.error
        return super().score(question, steps)


class MeasuringSaver(InMemorySaver):
    """Keeps the sizes of what it stores; raises for all it is to store while ``away`` is set."""

    def __init__(self) -> None:
        super().__init__()
        # One object, also for the copy that LangGraph makes of a saver for its strict reader.
        self.now: dict[str, Any] = {"away": False}
        self.stored: dict[str, int] = {}

    def go_away(self) -> None:
        self.now["away"] = True

    def come_back(self) -> None:
        self.now["away"] = False

    def _measure(self, checkpoint: str, values: Iterable[Any]) -> None:
        if self.now["away"]:
            raise OSError("the database is away")
        size = sum(len(_PROCESS.sub(b"", self.serde.dumps_typed(value)[1])) for value in values)
        self.stored[checkpoint] = self.stored.get(checkpoint, 0) + size

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        values = checkpoint["channel_values"]
        self._measure(checkpoint["id"], (values[name] for name in new_versions if name in values))
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self._measure(config["configurable"]["checkpoint_id"], (value for _, value in writes))
        super().put_writes(config, writes, task_id, task_path)

    @property
    def sizes(self) -> list[int]:
        """Bytes by checkpoint, the writes that belong to it included, in the order of time."""
        return [self.stored[checkpoint] for checkpoint in sorted(self.stored)]


def prefix_of(messages: Sequence[Any]) -> str:
    return str(messages[-1].text) if isinstance(messages[-1], AIMessage) else ""


def drive(
    graph: Any,
    turns: Sequence[Any],
    saver: BaseCheckpointSaver[Any],
    *,
    asynchronously: bool | None = None,
    updates: bool = False,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Invoke a graph once a turn, and record the stream, what a human is asked, the state, the checkpoint.

    Args:
        graph: A compiled graph; of its subgraphs' custom events nothing is recorded, unless ``subgraphs`` is
            among the options.
        turns: A question (``str``), an answer of a human (``dict``), None to resume, or a function of graph
            and config that changes something in between; in a pair with options of this invocation.
        saver: The graph's.
        asynchronously: Whether ``astream`` is called; None: as `ASYNCHRONOUSLY` has it.
        updates: Whether all that nodes write is recorded, not only which nodes ran.
        config: Joins the thread's.
        options: Of all invocations, such as ``context``.
    """
    config = {**THREAD, **(config or {})}
    if DRIVEN.get():
        return _driven(graph, turns, config, options)
    asynchronously = ASYNCHRONOUSLY.get() if asynchronously is None else asynchronously
    invocations = []
    for turn in turns:
        given, own = turn if isinstance(turn, tuple) else (turn, {})
        if callable(given):
            given(graph, config)
            continue
        if isinstance(given, str):
            given = {"messages": [("user", given)]}
        elif isinstance(given, dict) and "messages" not in given:
            given = Command(resume=given)
        invocation = _invoke(graph, given, config, asynchronously, {**options, **own})
        if not updates:
            invocation["nodes"] = [name for update in invocation.pop("updates") for name in update]
        if asked := [i.value for task in graph.get_state(config).tasks for i in task.interrupts]:
            invocation["interrupts"] = asked
        invocations.append(invocation)
    state = dict(graph.get_state(config).values)
    stored = saver.get_tuple({"configurable": {**config["configurable"], "checkpoint_ns": ""}})
    assert stored is not None
    values = stored.checkpoint["channel_values"]
    checkpoint = {
        "not_whole": sorted(state.keys() - values.keys()),
        "otherwise": {n: v for n, v in values.items() if n not in state or state[n] != v},
    }
    if isinstance(saver, MeasuringSaver):
        checkpoint["sizes"] = saver.sizes
    return {"invocations": invocations, "state": state, "checkpoint": checkpoint}


class NotDriven(Exception):
    """A scenario needs LangGraph's loop: several invocations, a parent graph, an agent."""


def _driven(graph: Any, turns: Sequence[Any], config: Any, options: Any) -> dict[str, Any]:
    if not isinstance(graph, TrimGraph) or len(turns) != 1 or not isinstance(turns[0], str):
        raise NotDriven
    alone = graph.with_config()
    alone.checkpointer = None
    events: list[Any] = []
    record: dict[str, Any] = {}
    state: Any = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run = final_state(
                alone, [("user", turns[0])], config, context=options.get("context"), on_event=events.append
            )
            state = asyncio.run(run)
        except Exception as error:
            record["raised"] = f"{type(error).__name__}: {error}"
    if shown := sorted({str(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)}):
        record["warnings"] = shown
    return {"invocations": [{**record, "events": events}], "state": dict(state)}


def _invoke(graph: Any, given: Any, config: Any, asynchronously: bool, options: Any) -> dict[str, Any]:
    record: dict[str, Any] = {}
    options = {"stream_mode": ["custom", "messages", "updates"], "durability": "sync", **options}
    parts: list[Any] = []

    async def collect() -> None:
        async for part in graph.astream(given, config, **options):
            parts.append(part)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if asynchronously:
                asyncio.run(collect())
            else:
                for part in graph.stream(given, config, **options):
                    parts.append(part)
        except Exception as error:
            record["raised"] = f"{type(error).__name__}: {error}"
    if shown := sorted({str(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)}):
        record["warnings"] = shown
    record["events"] = [data for *_, mode, data in parts if mode == "custom"]
    record["streamed"] = [data[0].content for *_, mode, data in parts if mode == "messages"]
    record["updates"] = [data for *_, mode, data in parts if mode == "updates"]
    return record


def calls_of(model: Any) -> Any:
    """What a scripted model or scorer was asked: all messages of its first call, then what is new."""
    if isinstance(model, ScriptedScorer):
        return [{"steps": len(texts), "last": texts[-1]} for texts in model.calls]
    reported = []
    for number, call in enumerate(getattr(model, "calls", ())):
        kept = {name: call.get(name) for name in ("stop", "max_tokens", "tools", "tool_choice", "tokens")}
        shown = call["messages"] if number == 0 else call["messages"][-1:]
        kept["messages"] = [f"{message.type}: {message.text}" for message in shown]
        reported.append({name: value for name, value in kept.items() if value is not None})
    return reported
