"""The content of the checkpoints: JSON, only what changed, append-only steps, nothing of another run."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, contextmanager

import pytest
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from trim_graph.policies import Choice, large_only, stay_on_large, threshold

THREAD = {"configurable": {"thread_id": "1"}}
APPEND_ONLY = {"steps", "scores", "decisions"}


@pytest.fixture
def sqlite(tmp_path):
    with SqliteSaver.from_conn_string(str(tmp_path / "runs.sqlite")) as saver:
        yield saver


def busy(make, **options):
    """A rig whose run fills every channel."""
    policy = stay_on_large(lambda o: Choice("regenerate" if o.index == 1 else "accept", {"seen": o.index}), 1)
    return make(policy=policy, budget={"large_calls": 2}, prices={"large": {"input": 1}}, **options)


def history(rig):
    """The values of every checkpoint, oldest first."""
    return [snapshot.values for snapshot in rig.graph.get_state_history(THREAD)][::-1]


def test_every_channel_of_every_checkpoint_is_json(make, sqlite):
    rig = busy(make, checkpointer=sqlite)
    rig.ask(config=THREAD, durability="sync")
    for values in history(rig):
        for name, value in values.items():
            if name == "messages":
                assert all(isinstance(message, BaseMessage) for message in value)
            else:
                assert json.loads(json.dumps(value)) == value, name
    assert rig.graph.get_state(THREAD).values["memory"] == [0, {"seen": 1}]


def test_no_log_probability_enters_the_state(make, sqlite):
    class Reporting(type(make().small)):
        def _generate(self, *args, **kwargs):
            result = super()._generate(*args, **kwargs)
            metadata = result.generations[0].message.response_metadata
            metadata |= {"logprobs": {"content": [{"logprob": -0.125}]}, "mean_token_probability": 0.875}
            return result

    rig = make(Reporting(script=["one", "two"]), scores={}, checkpointer=sqlite)
    rig.ask(config=THREAD)
    for values in history(rig):
        assert "logprob" not in repr(values)
    last = history(rig)[-1]
    assert [step["mean_token_probability"] for step in last["steps"]] == [0.875, 0.875]


def test_a_node_returns_only_what_it_changes(make):
    rig = busy(make)
    known = {}
    for update in rig.graph.stream({"messages": "2 + 2?"}, stream_mode="updates"):
        for node, channels in update.items():
            for name, value in channels.items():
                if known and name not in APPEND_ONLY | {"messages"}:
                    assert value != known.get(name, ...), f"{node} wrote {name} again"
            known |= channels


def test_drafts_only_ever_grow_and_a_score_once_there_stays(make, sqlite):
    rig = busy(make, checkpointer=sqlite)
    rig.ask(config=THREAD)
    before = {"steps": [], "scores": {}, "decisions": []}
    for values in history(rig):
        now = {name: values.get(name, before[name]) for name in before}
        assert now["steps"][: len(before["steps"])] == before["steps"]
        assert now["decisions"][: len(before["decisions"])] == before["decisions"]
        assert now["scores"].items() >= before["scores"].items()
        before = now
    assert len(before["steps"]) == 4
    assert all("score" not in step for step in before["steps"])


def test_nothing_is_left_behind_when_a_run_has_ended(make, sqlite):
    rig = busy(make, checkpointer=sqlite)
    rig.ask(config=THREAD)
    values = history(rig)[-1]
    assert (values["draft"], values["request"], values["in_flight"]) == (None, None, None)
    assert "begin" not in values


def test_settings_are_fixed_when_the_run_begins(make):
    saver = InMemorySaver()
    make(max_steps=3, checkpointer=saver).ask(config=THREAD, interrupt_before=["score_step"])
    other = make(max_steps=1, checkpointer=saver)
    assert other.graph.invoke(None, THREAD)["trim"]["steps"] == {"small": 2, "large": 1}


# Another question on the same thread


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_second_question_starts_clean_and_keeps_both_answers(make, sqlite, durability):
    rig = busy(make, checkpointer=sqlite)
    first = rig.ask("First?", THREAD, durability=durability)
    second = rig.ask("Second?", THREAD, durability=durability)
    values = rig.graph.get_state(THREAD).values
    assert [message.type for message in second["messages"]] == ["human", "ai"] * 2
    assert [message.content for message in second["messages"][::2]] == ["First?", "Second?"]
    for name in ("steps", "decisions", "scores", "usage", "tokens", "stopped", "notes"):
        assert name == "usage" or second["trim"][name] == first["trim"][name]
    assert second["trim"]["usage"]["small"]["calls"] == first["trim"]["usage"]["small"]["calls"]
    assert len(values["steps"]) == 4
    assert values["run"]["question"] == "Second?"
    assert rig.prompts("small")[-1][1].content == "First?"


def test_a_question_given_for_the_scorer_is_not_the_next_runs(make, sqlite):
    asked = []
    rig = make(scorer=lambda q, steps: asked.append(q) or [1.0] * len(steps), checkpointer=sqlite)
    rig.graph.invoke({"messages": "It.", "question": "What is 2 + 2?"}, THREAD)
    rig.graph.invoke({"messages": "And 3 + 3?"}, THREAD)
    assert asked == ["What is 2 + 2?"] * 4 + ["And 3 + 3?"] * 4


def test_a_policy_does_not_remember_the_question_before(make, sqlite):
    seen = []

    def policy(observation):
        seen.append(observation.memory)
        return Choice("accept", (observation.memory or 0) + 1)

    rig = make(policy=policy, checkpointer=sqlite)
    seen.clear()  # of the samples
    rig.ask(config=THREAD)
    rig.ask(config=THREAD)
    assert seen == [None, 1, 2, 3] * 2


def test_a_second_run_stopped_in_the_middle_does_not_show_the_firsts_summary(make, sqlite):
    rig = make(checkpointer=sqlite)
    rig.ask(config=THREAD)
    assert rig.ask(config=THREAD, interrupt_before=["score_step"])["trim"] is None


def test_a_new_question_in_the_middle_of_a_run_drops_that_run(make, sqlite):
    rig = make(checkpointer=sqlite)
    rig.ask("First?", THREAD, interrupt_before=["score_step"])
    result = rig.ask("Second?", THREAD)
    assert [message.type for message in result["messages"]] == ["human", "human", "ai"]
    assert result["trim"]["steps"] == {"small": 3, "large": 1}


# Stopping, resuming, taking another way


@contextmanager
def memory(tmp_path):
    yield InMemorySaver()


@contextmanager
def sqlite_file(tmp_path):
    with SqliteSaver.from_conn_string(str(tmp_path / "runs.sqlite")) as saver:
        yield saver


def walk(rig, node):
    """Runs with a stop before every execution of a node; returns the stops and the result."""
    stops, result = 0, rig.ask(config=THREAD, interrupt_before=[node])
    while rig.graph.get_state(THREAD).next:
        stops += 1
        result = rig.graph.invoke(None, THREAD, interrupt_before=[node])
    return stops, result


@pytest.mark.parametrize("opened", [memory, sqlite_file])
@pytest.mark.parametrize(
    ("node", "stops"), [("generate_step", 5), ("score_step", 4), ("route", 6), ("finalize", 1)]
)
def test_a_run_stopped_before_a_node_goes_on_as_if_it_had_not_been(make, tmp_path, opened, node, stops):
    with opened(tmp_path) as saver:
        rig = make(checkpointer=saver)
        stopped, result = walk(rig, node)
    assert stopped == stops
    assert result["messages"][-1].content == make().ask()["messages"][-1].content
    assert (len(rig.small.calls), len(rig.large.calls), len(rig.scorer.calls)) == (4, 1, 4)


@pytest.mark.parametrize("opened", [memory, sqlite_file])
def test_every_checkpoint_can_be_gone_on_from(make, tmp_path, opened):
    with opened(tmp_path) as saver:
        rig = make(checkpointer=saver)
        content = rig.ask(config=THREAD)["messages"][-1].content
        for snapshot in list(rig.graph.get_state_history(THREAD)):
            if snapshot.next:
                assert rig.graph.invoke(None, snapshot.config)["messages"][-1].content == content


@pytest.mark.parametrize("opened", [memory, sqlite_file])
def test_a_human_may_change_a_score_or_a_draft_and_fork_the_run(make, tmp_path, opened):
    with opened(tmp_path) as saver:
        rig = make(checkpointer=saver)
        rig.ask(config=THREAD)
        scored = [
            snapshot
            for snapshot in rig.graph.get_state_history(THREAD)
            if snapshot.next == ("route",) and snapshot.values.get("draft")
        ]
        (second,) = [snapshot for snapshot in scored if snapshot.values["draft"]["text"] == "small two"]
        assert second.values["draft"]["score"] == 0.1
        better = {**second.values["draft"], "score": 0.9, "text": "a human's two"}
        fork = rig.graph.update_state(second.config, {"draft": better})
        result = rig.graph.invoke(None, fork)
        assert "small one\n\na human's two\n\nsmall three" in result["messages"][-1].content
        assert result["trim"]["steps"] == {"small": 4, "large": 0}


def test_before_a_generation_a_fork_names_where_to_go(make):
    rig = make(checkpointer=InMemorySaver())
    rig.ask(config=THREAD, interrupt_before=["generate_step"])
    rig.graph.invoke(None, THREAD, interrupt_before=["generate_step"])
    order = {**rig.graph.get_state(THREAD).values["request"], "max_tokens": 1}
    rig.graph.update_state(THREAD, Command(update={"request": order}, goto="generate_step"), as_node="route")
    rig.graph.invoke(None, THREAD)
    assert rig.small.calls[1]["max_tokens"] == 1


@asynccontextmanager
async def aopened(path):
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        yield saver


async def test_stopping_forking_and_a_second_question_work_with_an_async_saver(make, tmp_path):
    async with aopened(tmp_path / "runs.sqlite") as saver:
        rig = make(checkpointer=saver)
        result = await rig.aask(config=THREAD, interrupt_before=["score_step"], durability="sync")
        while (await rig.graph.aget_state(THREAD)).next:
            result = await rig.graph.ainvoke(None, THREAD, interrupt_before=["score_step"])
        assert result["trim"]["steps"] == {"small": 3, "large": 1}
        states = [state async for state in rig.graph.aget_state_history(THREAD)]
        first = [state for state in states if state.next == ("score_step",)][-1]
        fork = await rig.graph.aupdate_state(
            first.config, {"draft": {**first.values["draft"], "text": "another one"}}
        )
        forked = await rig.graph.ainvoke(None, fork)
        assert forked["messages"][-1].content.startswith("another one\n\nLARGE two")
        second = await rig.aask("Second?", THREAD)
        assert [message.type for message in second["messages"]] == ["human", "ai"] * 2


# What a checkpoint weighs


def bytes_per_step(make, folder, count: int, policy) -> float:
    said = [f"step {n:03} " + "so many words " * 30 for n in range(count)]
    with SqliteSaver.from_conn_string(str(folder / f"{count}.sqlite")) as saver:
        rig = make(said, said, dict.fromkeys(said[::4], 0.1), policy=policy, max_steps=count)
        graph = make(
            rig.small, rig.large, scorer=rig.scorer, policy=policy, max_steps=count, checkpointer=saver
        ).graph
        graph.invoke({"messages": "Count."}, {**THREAD, "recursion_limit": 2000}, durability="sync")
        assert len(graph.get_state(THREAD).values["steps"]) == count
        # What finalize writes is the whole answer, once: no part of what a step costs.
        query = """
            select (select sum(length(checkpoint) + length(metadata)) from checkpoints
                    where checkpoint_id not in (select checkpoint_id from checkpoints
                                                order by checkpoint_id desc limit 1))
                 + (select sum(length(value)) from writes where channel not in ('messages', 'summary'))
        """
        (total,) = saver.conn.execute(query).fetchone()
    return total / count


def test_bytes_written_per_step_do_not_grow_with_the_length_of_a_solution(make, tmp_path):
    policy = stay_on_large(threshold(0.5), 1)
    short, long = (bytes_per_step(make, tmp_path, count, policy) for count in (20, 200))
    assert long < 1.2 * short


def test_a_solution_in_one_call_is_written_once(make, sqlite):
    make([], [f"step {n}" for n in range(100)], policy=large_only(), checkpointer=sqlite).ask(config=THREAD)
    (count,) = sqlite.conn.execute("select count(*) from checkpoints").fetchone()
    assert count <= 6


def test_what_is_written_grows_with_the_steps_not_with_their_square():
    from benchmarks.state_size import written

    few, many = written(15, "sync").written / 15, written(90, "sync").written / 90
    assert 0 < many < 1.1 * few
