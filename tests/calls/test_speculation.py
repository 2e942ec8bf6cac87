"""Lookahead: the small model writes the next step while the scorer is at work, and nothing else changes."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from paced_models import PacedModel, PacedScorer, StoppableModel, pause, written_before

from trim_graph import (
    Budget,
    ModelPrice,
    Prices,
    SettingsError,
    TrimContext,
    create_trim_chat_model,
    create_trim_graph,
)
from trim_graph.adapters import ContinueByPrompt, ModelServerError, TokenProbability
from trim_graph.calls import speculation
from trim_graph.policies import Policy, large_only, random_rate, small_only, stay_on_large, threshold
from trim_graph.testing import ScriptedChatModel

SMALL = ["one", "two", "three", "four \\boxed{4}"]
LARGE = ["ONE", "TWO", "THREE", "FOUR \\boxed{5}"]
GIVEN = {"messages": [("user", "2 + 2?")]}
AFTER_ONE = "one\n\n"
AFTER_TWO = "one\n\ntwo\n\n"


class Rig:
    """A graph with its parts; the scorer gives others 20 turns, ``poor`` steps score 0.1."""

    def __init__(
        self, kind: Any = PacedModel, poor: Any = (), *, turns: int = 20, policy: Any = None, **options: Any
    ) -> None:
        self.small = options.pop("small", None) or kind(script=SMALL, name="tiny", **options.pop("model", {}))
        self.large = PacedModel(script=LARGE, name="huge")
        self.scorer = options.pop("scorer", None) or PacedScorer(dict.fromkeys(poor, 0.1), turns=turns)
        options = {"lookahead": True, **options}
        self.graph = create_trim_graph(
            self.small, self.large, self.scorer, policy=policy or threshold(0.5), **options
        )

    async def ask(self, config: Any = None, **options: Any) -> dict[str, Any]:
        result: dict[str, Any] = await self.graph.ainvoke(GIVEN, config, **options)
        await nothing_left()
        return result


def in_flight() -> list[asyncio.Task[Any]]:
    """The tasks of lookahead on this event loop."""
    return [task for task in asyncio.all_tasks() if task.get_name() == speculation.TASK]


async def nothing_left() -> None:
    assert not in_flight()


async def collected(stream: Any) -> list[Any]:
    return [item async for item in stream]


def text_of(result: dict[str, Any]) -> str:
    return str(result["messages"][-1].text)


def bill(result: dict[str, Any]) -> dict[str, Any]:
    spend = result["trim"]["usage"]
    return spend.get(
        "lookahead", dict.fromkeys(("taken", "discarded", "output_tokens", "unaccounted_tokens"), 0)
    )


# What it does


async def test_the_next_step_is_begun_while_the_scorer_is_at_work():
    rig = Rig()
    at_work = {}
    rig.scorer.at_work = lambda text: at_work.update({text: list(rig.small.begun)})
    result = await rig.ask()
    assert at_work["one"] == ["", AFTER_ONE]
    assert at_work["two"] == ["", AFTER_ONE, AFTER_TWO]
    assert text_of(result) == "\n\n".join(SMALL)
    assert len(rig.small.begun) == len(SMALL)
    assert bill(result) == {
        "taken": 3,
        "discarded": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "unaccounted_tokens": 0,
    }
    assert result["trim"]["tokens"]["lookahead_discarded"] == 0


async def test_lookahead_is_off_unless_asked_for():
    rig = Rig(lookahead=False)
    at_work = {}
    rig.scorer.at_work = lambda text: at_work.update({text: len(rig.small.begun)})
    result = await rig.ask()
    assert at_work == {"one": 1, "two": 2, "three": 3, SMALL[3]: 4}
    assert "lookahead" not in result["trim"]["usage"]
    assert "lookahead_discarded" not in result["trim"]["tokens"]


class SlowAtFirst(PacedModel):
    """Takes a fifth of a second for the first step."""

    async def _pace(self, prefix: str, stop_when: Any) -> None:
        await asyncio.sleep(0.0 if prefix else 0.2)


async def test_the_seconds_of_drafts_are_kept_where_a_call_is_discarded():
    result = await Rig(SlowAtFirst, poor=["two"]).ask()
    assert bill(result)["discarded"] == 1
    assert result["trim"]["usage"]["small"]["seconds"] >= 0.2


async def test_a_call_that_has_ended_is_counted_where_the_decision_goes_the_other_way():
    rig = Rig(poor=["two"])
    result = await rig.ask()
    assert text_of(result) == "one\n\nTWO\n\nthree\n\n" + SMALL[3]
    thrown_away = [call for call in rig.small.calls if written_before(call["messages"]) == AFTER_TWO]
    assert bill(result) == {
        "taken": 2,
        "discarded": 1,
        "input_tokens": thrown_away[0]["prompt_tokens"],
        "output_tokens": thrown_away[0]["tokens"],
        "unaccounted_tokens": 0,
    }
    tokens, spend = result["trim"]["tokens"], result["trim"]["usage"]["small"]
    assert tokens["lookahead_discarded"] == thrown_away[0]["tokens"]
    assert spend["output_tokens"] == sum(call["tokens"] for call in rig.small.calls)
    assert spend["input_tokens"] == sum(call["prompt_tokens"] for call in rig.small.calls)
    assert spend["calls"] == len(rig.small.calls)
    assert tokens["small_discarded"] == spend["output_tokens"] - tokens["small"]


async def test_a_call_without_reported_usage_is_cancelled_and_charged_in_full():
    prices = Prices(small=ModelPrice(output=1e6))
    rig = Rig(poor=["two"], model={"hangs": {AFTER_TWO}}, max_step_tokens=50, prices=prices)
    result = await rig.ask()
    assert rig.small.cancelled == [AFTER_TWO]
    assert bill(result) | {"input_tokens": 0} == {
        "taken": 2,
        "discarded": 1,
        "input_tokens": 0,
        "output_tokens": 0,
        "unaccounted_tokens": 50,
    }
    reported = result["trim"]
    assert reported["tokens"]["lookahead_unaccounted"] == 50
    assert reported["cost"] == reported["usage"]["small"]["output_tokens"] + 50


async def test_a_call_that_can_be_stopped_ends_at_its_next_token_and_is_counted_to_it():
    rig = Rig(StoppableModel, poor=["two"], model={"hangs": {AFTER_TWO}})
    rig.scorer.waits["two"] = rig.small.writing
    result = await rig.ask()
    words = rig.small.ended_at[AFTER_TWO]
    assert 1 < words < 100
    assert rig.small.cancelled == []
    assert (bill(result)["output_tokens"], bill(result)["unaccounted_tokens"]) == (words, 0)
    assert result["trim"]["tokens"]["lookahead_discarded"] == words


async def test_before_its_first_token_a_call_is_cancelled_and_charged_its_prompt():
    rig = Rig(StoppableModel, poor=["two"], model={"hangs": {AFTER_TWO}, "silent": 10_000})
    result = await rig.ask()
    assert rig.small.cancelled == [AFTER_TWO]
    real = next(c for c in rig.small.calls if written_before(c["messages"]) == AFTER_ONE)
    assert bill(result) == {
        "taken": 2,
        "discarded": 1,
        "input_tokens": real["prompt_tokens"] + real["tokens"],
        "output_tokens": 0,
        "unaccounted_tokens": 0,
    }


async def test_a_call_that_does_not_end_by_itself_is_cancelled(monkeypatch):
    class Deaf(StoppableModel):
        async def _pace(self, prefix: str, stop_when: Any) -> None:
            if prefix in self.hangs:
                stop_when("word")
                await asyncio.Event().wait()

    monkeypatch.setattr(speculation, "STOP_S", 0.01)
    rig = Rig(Deaf, poor=["two"], model={"hangs": {AFTER_TWO}}, max_step_tokens=50)
    result = await rig.ask()
    assert rig.small.cancelled == [AFTER_TWO]
    assert bill(result)["unaccounted_tokens"] == 50


async def test_a_call_that_nobody_takes_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr(speculation, "UNTAKEN_S", 0.05)
    small = PacedModel(script=SMALL, hangs={AFTER_TWO})

    class Slow(PacedScorer):
        async def ascore(self, question: str, steps: Any) -> list[float]:
            await pause(5)
            if steps[-1] == "two":
                await asyncio.wait(in_flight())
                small.hangs = frozenset()
            return self.score(question, steps)

    result = await Rig(small=small, scorer=Slow()).ask()
    assert text_of(result) == "\n\n".join(SMALL)
    assert small.begun.count(AFTER_TWO) == 2
    assert bill(result)["discarded"] == 1


async def test_a_call_that_has_failed_is_made_anew():
    rig = Rig(model={"fails": lambda prefix, call: prefix == AFTER_TWO and call == 3})
    result = await rig.ask()
    assert text_of(result) == "\n\n".join(SMALL)
    assert rig.small.begun.count(AFTER_TWO) == 2
    assert result["trim"]["usage"]["small"]["failed_calls"] == 1
    assert bill(result)["unaccounted_tokens"] == 512


async def test_a_failed_call_ahead_is_counted_with_what_it_reported():
    class Failing(PacedModel):
        def _generate(self, messages: Any, *arguments: Any, **kwargs: Any) -> Any:
            if written_before(messages) == AFTER_TWO and self.begun.count(AFTER_TWO) == 1:
                error = ModelServerError("broke off", begun=True)
                error.attempts = {"count": 2, "input_tokens": 30, "output_tokens": 7, "unknown": 0}
                raise error
            return super()._generate(messages, *arguments, **kwargs)

    reported = bill(await Rig(Failing).ask())
    assert (reported["input_tokens"], reported["output_tokens"], reported["unaccounted_tokens"]) == (30, 7, 0)


async def test_answers_in_a_cache_are_whole_ones():
    cache = InMemoryCache()
    rig = Rig(StoppableModel, poor=["two"], model={"hangs": {AFTER_TWO}, "cache": cache}, max_step_tokens=50)
    result = await rig.ask()
    assert rig.small.cancelled == [AFTER_TWO]
    assert bill(result)["unaccounted_tokens"] == 50


# Where it would be of no use


class ProbesNever(Policy):
    """Names the writer itself."""

    def next_writer(self, observation: Any) -> str:
        return "small"

    def decide(self, observation: Any) -> str:
        return "accept"


@pytest.mark.parametrize(
    ("options", "begun"),
    [
        ({"max_steps": 2}, ["", AFTER_ONE]),
        ({"policy": ProbesNever()}, []),
        ({"policy": ProbesNever() | threshold(0.5)}, []),
        ({"policy": random_rate(0.0)}, []),
        ({"policy": small_only()}, []),
        ({"policy": large_only()}, []),
    ],
)
async def test_a_step_is_not_begun_ahead_where_it_would_be_of_no_use(options, begun):
    rig = Rig(**options)
    result = await rig.ask()
    assert bill(result)["discarded"] == 0
    assert bill(result)["taken"] == max(0, len(begun) - 1)


@pytest.mark.parametrize("limit", range(10, 24))
async def test_a_step_is_not_begun_ahead_where_the_recursion_limit_ends_the_run(limit):
    result = await Rig().ask({"recursion_limit": limit})
    assert bill(result)["discarded"] == 0


async def test_policies_that_wrap_others_look_ahead():
    for policy in (stay_on_large(threshold(0.5), k=1), threshold(0.5) | random_rate(0.0)):
        assert bill(await Rig(policy=policy).ask())["taken"] == 3


def test_a_synchronous_call_goes_without_and_says_so_once():
    rig = Rig()
    with pytest.warns(
        RuntimeWarning, match="lookahead=True has no effect: the graph is called synchronously"
    ):
        result = rig.graph.invoke(GIVEN)
    assert text_of(result) == "\n\n".join(SMALL)
    assert bill(result)["taken"] == 0
    rig.graph.invoke(GIVEN)  # warnings are errors here


def test_a_model_without_calls_of_its_own_is_named():
    class Threaded(ScriptedChatModel):
        async def _agenerate(self, *arguments: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    Threaded._agenerate = ScriptedChatModel.__mro__[1]._agenerate  # LangChain's own
    for small in (
        Threaded(script=SMALL),
        ContinueByPrompt(Threaded(script=SMALL)),
        Threaded(script=SMALL).bind(),
    ):
        with pytest.warns(RuntimeWarning, match="no asynchronous calls of its own"):
            graph = create_trim_graph(small, small, PacedScorer(), policy=threshold(0.5), lookahead=True)
        assert bill(asyncio.run(graph.ainvoke(GIVEN)))["taken"] == 0


def test_a_scorer_that_takes_no_time_is_named():
    model = ScriptedChatModel(script=SMALL)
    for scorer, policy in ((None, random_rate(0.1)), (TokenProbability(), random_rate(0.1))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises((RuntimeWarning, SettingsError)) as raised:
                create_trim_graph(model, model, scorer, policy=policy, lookahead=True)
        assert "scorer" in str(raised.value) or "logprobs" in str(raised.value)


async def test_a_synchronous_run_inside_leaves_the_work_of_the_one_around_it_alone():
    inner = Rig(lookahead=False)

    class Asks(PacedScorer):
        async def ascore(self, question: str, steps: Any) -> list[float]:
            await pause(5)
            inner.graph.invoke(GIVEN)
            return self.score(question, steps)

    assert bill(await Rig(scorer=Asks()).ask())["taken"] == 3


# What others see


async def test_events_and_streamed_text_are_the_same():
    def reported(stream: list[Any]) -> list[Any]:
        seen = []
        for mode, item in stream:
            if mode == "custom":
                seen.append({k: v for k, v in item.items() if k not in ("run", "summary")})
            else:
                seen.append(item[0].content)
        return seen

    streams = [
        await collected(
            Rig(poor=["two"], lookahead=on).graph.astream(GIVEN, stream_mode=["custom", "messages"])
        )
        for on in (False, True)
    ]
    assert reported(streams[0]) == reported(streams[1])


@pytest.mark.parametrize("mode", ["debug", "checkpoints", "tasks", "updates", "values"])
async def test_a_call_ahead_is_in_no_stream(mode):
    rig = Rig(poor=["two"], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    parts = await collected(rig.graph.astream(GIVEN, config, stream_mode=mode))
    assert parts
    assert "WorkAhead" not in str(parts)


async def test_events_of_langchain_mark_speculative_calls_by_a_tag():
    rig = Rig(poor=["two"])
    events = [event async for event in rig.graph.astream_events(GIVEN, version="v2")]
    begun = [event for event in events if event["event"] == "on_chat_model_start"]
    ahead = [event for event in begun if "trim:lookahead" in event["tags"]]
    assert len(ahead) == 3
    assert all({"trim:draft", "trim:small", "nostream"} <= set(event["tags"]) for event in ahead)
    ended = {event["run_id"] for event in events if event["event"] == "on_chat_model_end"}
    # LangChain says nothing of the end of a call that is cancelled: the one behind the rejected draft.
    given_up = {event["run_id"] for event in begun} - ended
    assert given_up <= {event["run_id"] for event in ahead}
    assert len(given_up) <= 1


async def test_a_usage_callback_counts_what_was_thrown_away():
    rig = Rig(StoppableModel, poor=["two"], model={"hangs": {AFTER_TWO}})
    rig.scorer.waits["two"] = rig.small.writing
    usage = UsageMetadataCallbackHandler()
    result = await rig.ask({"callbacks": [usage]})
    for writer, name in (("small", "tiny"), ("large", "huge")):
        spend = result["trim"]["usage"][writer]
        reported = usage.usage_metadata[name]
        assert (reported["input_tokens"], reported["output_tokens"]) == (
            spend["input_tokens"],
            spend["output_tokens"],
        )
    message = result["messages"][-1].usage_metadata
    spend = result["trim"]["usage"]
    assert message["output_tokens"] == spend["small"]["output_tokens"] + spend["large"]["output_tokens"]


# However a run ends


async def test_a_run_that_is_cancelled_leaves_nothing_and_is_charged_when_it_goes_on():
    config = {"configurable": {"thread_id": "1"}}
    waiting = asyncio.Event()

    class Waits(PacedScorer):
        async def ascore(self, question: str, steps: Any) -> list[float]:
            await pause(5)
            if steps[-1] == "two" and not waiting.is_set():
                waiting.set()
                await asyncio.Event().wait()
            return self.score(question, steps)

    rig = Rig(scorer=Waits(), model={"hangs": {AFTER_TWO}}, checkpointer=InMemorySaver(), max_step_tokens=50)
    task = asyncio.create_task(rig.graph.ainvoke(GIVEN, config, durability="sync"))
    await waiting.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await nothing_left()
    assert rig.small.cancelled == [AFTER_TWO]
    stored = (await rig.graph.aget_state(config)).values
    assert stored["usage"]["lookahead"]["discarded"] == 0
    rig.small.hangs = frozenset()
    result = await rig.graph.ainvoke(None, config)
    assert text_of(result) == "\n\n".join(SMALL)
    assert bill(result)["unaccounted_tokens"] == 50


@pytest.mark.parametrize("way", ["error", "left", "breakpoint"])
async def test_a_run_leaves_no_call_ahead_whatever_ends_it(way):
    rig = Rig(model={"hangs": {AFTER_ONE}}, checkpointer=InMemorySaver(), turns=5)
    config: Any = {"configurable": {"thread_id": "1"}}
    if way == "error":
        rig.scorer.fails = ("one",)
        with pytest.raises(ConnectionError):
            await rig.graph.ainvoke(GIVEN, config)
    elif way == "left":
        stream = rig.graph.astream(GIVEN, config, stream_mode="updates")
        async for update in stream:
            if "score_step" in update:
                break
        await stream.aclose()
    else:
        await rig.graph.ainvoke(GIVEN, config, interrupt_after=["score_step"])
    await nothing_left()
    assert rig.small.cancelled == [AFTER_ONE]


def test_an_event_loop_that_ends_ends_what_is_in_flight():
    rig = Rig(model={"hangs": {AFTER_ONE}})

    async def abandoned() -> None:
        stream = rig.graph.astream(GIVEN, stream_mode="updates")
        async for update in stream:
            if "score_step" in update:
                return

    asyncio.run(abandoned())
    gc.collect()
    assert rig.small.cancelled == [AFTER_ONE]


# Where it is switched on


async def test_a_call_of_the_graph_may_switch_lookahead_on_or_off():
    for built, called, taken in ((False, True, 3), (True, False, 0)):
        result = await Rig(lookahead=built).ask(context=TrimContext(lookahead=called))
        assert bill(result)["taken"] == taken


async def test_a_graph_inside_an_application_writes_ahead():
    parent = StateGraph(MessagesState).add_node("solve", Rig().graph).add_edge(START, "solve").compile()
    result = await parent.ainvoke(GIVEN)
    assert result["messages"][-1].response_metadata["trim"]["usage"]["lookahead"]["taken"] == 3
    await nothing_left()


async def test_a_chat_model_writes_ahead_and_streams_the_same_text():
    model = create_trim_chat_model(
        PacedModel(script=SMALL),
        PacedModel(script=LARGE),
        PacedScorer(turns=20),
        policy=threshold(0.5),
        lookahead=True,
    )
    message = await model.ainvoke("2 + 2?")
    assert message.response_metadata["trim"]["usage"]["lookahead"]["taken"] == 3
    chunks = [chunk.text async for chunk in model.astream("2 + 2?")]
    assert "".join(chunks) == "\n\n".join(SMALL)
    await nothing_left()


def test_a_configuration_file_may_set_lookahead():
    from trim_graph.config import build_graph, make_config

    data = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    config = make_config({**data, "policy": {"type": "threshold", "t": 0.5}, "settings": {"lookahead": True}})
    assert config.settings.lookahead
    build_graph(config)


# The same answers


class ByText(Policy):
    """Decides by the score alone: hands over below 0.15, regenerates below 0.5."""

    def decide(self, observation: Any) -> str:
        assert observation.score is not None
        return (
            "handover" if observation.score < 0.15 else "regenerate" if observation.score < 0.5 else "accept"
        )


POLICIES = {
    "threshold": lambda: threshold(0.5),
    "by text": ByText,
    "stays": lambda: stay_on_large(threshold(0.5), k=2),
    "random": lambda: threshold(0.5) | random_rate(0.3),
    "names": lambda: ProbesNever() | threshold(0.5),
}
words = st.sampled_from(["a", "b b", "c c c", "d d d d d d"])


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(words, st.sampled_from([0.05, 0.3, 0.8])), min_size=1, max_size=6),
    policy=st.sampled_from(sorted(POLICIES)),
    large_tokens=st.none() | st.integers(8, 30),
    large_calls=st.none() | st.integers(1, 3),
    on_exhausted=st.sampled_from(["small", "stop"]),
    max_steps=st.integers(1, 7),
    max_step_tokens=st.sampled_from([3, 50]),
    turns=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    failing=st.sampled_from(["nothing", "small", "scorer"]),
    telling=st.booleans(),
    limit=st.sampled_from([10, 17, 1000]),
)
def test_answers_and_decisions_with_lookahead_are_those_without(
    steps,
    policy,
    large_tokens,
    large_calls,
    on_exhausted,
    max_steps,
    max_step_tokens,
    turns,
    failing,
    telling,
    limit,
):
    small = [f"s{index} {text}" for index, (text, _) in enumerate(steps)]
    large = [f"L{index} {text}" for index, (text, _) in enumerate(steps)]
    scores = {text: score for text, (_, score) in zip(small, steps, strict=True)}
    kind = StoppableModel if telling else PacedModel

    async def run(on: bool) -> tuple[Any, Any, Any]:
        model = kind(
            script=small,
            name="tiny",
            turns=turns[0],
            fails=lambda prefix, call: failing == "small" and prefix.count("\n\n") == 1,
        )
        graph = create_trim_graph(
            model,
            PacedModel(script=large, name="huge"),
            PacedScorer(scores, turns=turns[1], fails=small[1:2] if failing == "scorer" else ()),
            policy=POLICIES[policy](),
            budget=Budget(large_tokens=large_tokens, large_calls=large_calls, on_exhausted=on_exhausted),
            checkpointer=InMemorySaver(),
            max_steps=max_steps,
            max_step_tokens=max_step_tokens,
            on_small_error="large",
            on_scorer_error="accept",
            seed=1,
            lookahead=on,
        )
        config = {"configurable": {"thread_id": "1"}, "recursion_limit": limit}
        result = await graph.ainvoke(GIVEN, config)
        await nothing_left()
        return model, result, (await graph.aget_state(config)).values

    _, plain, before = asyncio.run(run(False))
    model, ahead, after = asyncio.run(run(True))
    assert text_of(ahead) == text_of(plain)
    for channel in ("steps", "scores", "decisions", "stopped", "notes", "memory"):
        assert after[channel] == before[channel], channel
    spend, without, reported = ahead["trim"]["usage"], plain["trim"]["usage"], bill(ahead)
    for part in ("large", "scorer"):
        assert {**spend[part], "seconds": 0} == {**without[part], "seconds": 0}
    for part in ("unaccounted_tokens", "overshoot_tokens"):
        assert spend[part] == without[part]
    # Each call is a step's, as without, or was given up; and each is on the bill.
    assert spend["small"]["calls"] - reported["discarded"] == without["small"]["calls"]
    assert spend["small"]["output_tokens"] - reported["output_tokens"] == without["small"]["output_tokens"]
    generated = sum(call["tokens"] for call in model.calls)
    assert spend["small"]["calls"] >= len(model.begun)
    assert spend["small"]["output_tokens"] + reported["unaccounted_tokens"] >= generated
    assert reported["unaccounted_tokens"] <= reported["discarded"] * max_step_tokens
    if reported["unaccounted_tokens"] == 0:
        charged = spend["small"].get("unaccounted_tokens", 0)  # for a failed call, which reported nothing
        assert spend["small"]["output_tokens"] - charged == generated
    assert set(after) == set(before)
