"""Labels of an agent's turns: recorded as the scorer gets them, rated by a grader of the final state."""

import asyncio
import json
import sys
import threading

import pytest
from agent_rig import LARGE, QUESTION, RIGHT, SMALL, calling
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
)
from langchain_core.messages import HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from trim_graph import InputError, SettingsError
from trim_graph.agents import TrimMiddleware
from trim_graph.evaluation.traces import read_traces
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedToolModel
from trim_graph.training.agent_labels import AgentRecorder, collect_runs, label_runs, write_labels

both_ways = pytest.mark.parametrize("asynchronously", [False, True])
THREAD = {"configurable": {"thread_id": "1"}}
SECRETS = ("ada@example.com", "bob@example.com", "eve@example.com")


def ends_with(answer):
    return lambda final: answer in final["messages"][-1].text


def run(agent, question=QUESTION, config=None, *, asynchronously=False):
    asked = {"messages": [("user", question)]}
    return asyncio.run(agent.ainvoke(asked, config)) if asynchronously else agent.invoke(asked, config)


@tool
def lookup(name: str) -> str:
    """Look a name up."""
    return f"{name} is eve@example.com"


def small_agent(recorder, script=(), *before, **options):
    """An agent of the small model alone."""
    small = ScriptedToolModel(script=script or [calling(("lookup", {"name": "Eve"}), by="s"), "Done."])
    return create_agent(small, [lookup], middleware=[*before, recorder], **options)


def values(trace):
    return [step["value"] for step in trace["steps"]]


def texts(trace):
    return [step["text"] for step in trace["steps"]]


# What a run gives


@both_ways
@pytest.mark.parametrize(("outcome", "correct"), [(True, True), (False, False), (0.25, None), (1, True)])
def test_every_turn_gets_the_outcome(asynchronously, outcome, correct):
    recorder = AgentRecorder()
    result = run(small_agent(recorder), asynchronously=asynchronously)
    trace = recorder.record(result, lambda final: outcome, task="one")
    assert (trace["id"], trace["question"], trace["correct"]) == ("one", QUESTION, correct)
    assert texts(trace) == [
        '[tool_call] lookup {"name": "Eve"}',
        '[tool_result] lookup "Eve is eve@example.com"\nDone.',
    ]
    assert values(trace) == [float(outcome)] * 2
    assert [step["label"] for step in trace["steps"]] == [None, None]
    assert all(step["tokens"] > 0 and step["writer"] == "small" for step in trace["steps"])
    assert trace["policy"] == {
        "type": "labelled",
        "method": "outcome",
        "generator": "small",
        "outcome": float(outcome),
    }


def test_a_grader_by_name_gets_the_final_state(tmp_path, monkeypatch):
    (tmp_path / "shop_grades.py").write_text(
        "def right(final):\n    return final['messages'][-1].text == 'Done.'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    recorder = AgentRecorder()
    assert recorder.record(run(small_agent(recorder)), "shop_grades:right", task="one")["correct"] is True
    with pytest.raises(SettingsError, match="shop_grades:wrong' cannot be imported"):
        recorder.record(run(small_agent(recorder)), "shop_grades:wrong", task="one")
    with pytest.raises(SettingsError, match="give module:function"):
        recorder.record(run(small_agent(recorder)), "right", task="one")


@both_ways
@pytest.mark.parametrize("inside", [False, True])
def test_accepted_turns_of_a_routed_agent_are_recorded_with_writer_and_score(asynchronously, inside):
    seen = []

    def scorer(question, steps):
        seen.append((question, list(steps)))
        return [0.1 if "21}" in step else 0.9 for step in steps]

    recorder = AgentRecorder()
    trim = TrimMiddleware(ScriptedToolModel(script=LARGE, name="huge"), scorer, policy=threshold(0.5))

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply."""
        return a * b

    agent = create_agent(
        ScriptedToolModel(script=SMALL, name="tiny"),
        [multiply],
        middleware=[trim, recorder] if inside else [recorder, trim],
    )
    result = run(agent, asynchronously=asynchronously)
    trace = recorder.record(result, ends_with("small answer"), task="one")
    assert [step["writer"] for step in trace["steps"]] == ["large", "small"]
    assert [step["score"] for step in trace["steps"]] == [0.9, 0.9]
    assert (trace["question"], texts(trace)) == seen[-1]
    assert texts(trace)[0] == RIGHT
    assert "21}" not in json.dumps(trace)  # of the rejected draft
    assert trace["policy"]["generator"] == "routed"
    assert trace["tokens"] == result["trim"]["tokens"]
    assert trace["stopped"] == "finished"


def test_runs_at_the_same_time_and_of_one_thread_are_kept_apart():
    recorder = AgentRecorder()

    def script(messages):
        if messages[-1].type == "human":
            return calling(("lookup", {"name": str(messages[-1].text)}), by=f"s{len(messages)}")
        return "Done."

    agent = small_agent(recorder, script, checkpointer=InMemorySaver())

    async def all_of_them():
        asked = [
            agent.ainvoke({"messages": [("user", f"Q{n}")]}, {"configurable": {"thread_id": str(n % 2)}})
            for n in range(2)
        ]
        return await asyncio.gather(*asked)

    for round_ in range(2):
        for number, result in enumerate(asyncio.run(all_of_them())):
            trace = recorder.record(result, lambda final: True, task="t")
            assert trace["question"] == f"Q{number}"
            assert len(trace["steps"]) == 2, round_


@both_ways
def test_a_run_that_was_interrupted_is_recorded_as_it_resumed(asynchronously):
    recorder = AgentRecorder()
    asking = HumanInTheLoopMiddleware(interrupt_on={"lookup": True})
    agent = small_agent(recorder, (), asking, checkpointer=InMemorySaver())
    run(agent, config=THREAD, asynchronously=asynchronously)
    edited = {"type": "edit", "edited_action": {"name": "lookup", "args": {"name": "Tom"}}}
    resumed = Command(resume={"decisions": [edited]})
    made = asyncio.run(agent.ainvoke(resumed, THREAD)) if asynchronously else agent.invoke(resumed, THREAD)
    trace = recorder.record(made, lambda final: True, task="one")
    assert texts(trace)[0] == '[tool_call] lookup {"name": "Eve"}'
    assert "Tom is eve@example.com" in texts(trace)[1]  # the call that a human put in place of it


turn_scripts = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from(["", "Hm.", "[tool_call] x {}"])), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=30)
@given(turn_scripts, turn_scripts, st.booleans())
def test_what_is_recorded_is_what_the_scorer_got_and_the_state_keeps(small, large, inside):
    seen, recorder = [], AgentRecorder()

    def scorer(question, steps):
        seen.append(list(steps))
        return [0.1 if '{"a": 1' in step else 0.9 for step in steps]

    def scripted(turns, name):
        made = [
            calling(("multiply", {"a": a, "b": 7}), by=f"{name}{index}") for index, (a, _) in enumerate(turns)
        ]
        for message, (_, text) in zip(made, turns, strict=True):
            message.content = text
        return ScriptedToolModel(script=lambda messages: [*made, "end", "end"][done(messages)], name=name)

    def done(messages):
        return min(sum(one.type == "ai" for one in messages), min(len(small), len(large)))

    trim = TrimMiddleware(scripted(large, "huge"), scorer, policy=threshold(0.5), max_steps=5)

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply."""
        return a * b

    agent = create_agent(
        scripted(small, "tiny"),
        [multiply],
        middleware=[trim, recorder] if inside else [recorder, trim],
        checkpointer=InMemorySaver(),
    )
    result = agent.invoke({"messages": [("user", QUESTION)]}, THREAD)
    trace = recorder.record(result, lambda final: True, task="one")
    kept = agent.get_state(THREAD).values
    assert texts(trace) == [step["text"] for step in kept["trim_steps"]]
    assert [step["writer"] for step in trace["steps"]] == [step["writer"] for step in kept["trim_steps"]]
    assert [step["score"] for step in trace["steps"]] == result["trim"]["scores"]
    assert texts(trace)[: len(seen[-1]) - 1] == seen[-1][:-1]


# What others rewrite


class InRequest(AgentMiddleware):
    """Replaces words in what a model is sent; the state keeps them."""

    def _changed(self, request):
        def clean(message):
            text = str(message.content)
            for secret in SECRETS:
                text = text.replace(secret, "[REDACTED_EMAIL]")
            return message.model_copy(update={"content": text})

        return request.override(messages=[clean(one) for one in request.messages])

    def wrap_model_call(self, request, handler):
        return handler(self._changed(request))

    async def awrap_model_call(self, request, handler):
        return await handler(self._changed(request))


class AtTheEnd(AgentMiddleware):
    """Replaces words in the state when the agent has ended."""

    def after_agent(self, state, runtime):
        return {
            "messages": [
                one.model_copy(update={"content": str(one.content).replace(secret, "[REDACTED_EMAIL]")})
                for one in state["messages"]
                for secret in SECRETS
                if secret in str(one.content)
            ]
        }


def in_state():
    return PIIMiddleware(
        "email", strategy="redact", apply_to_input=True, apply_to_output=True, apply_to_tool_results=True
    )


@both_ways
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("redacting", [in_state, InRequest, AtTheEnd])
def test_no_redacted_text_reaches_the_label_file(tmp_path, redacting, routed, asynchronously):
    recorder, seen = AgentRecorder(), []

    def scorer(question, steps):
        seen.append((question, list(steps)))
        return [1.0] * len(steps)

    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), scorer, policy=threshold(0.5))
    last = "Tell bob@example.com." if redacting is not InRequest else "Done."
    small = ScriptedToolModel(
        script=[calling(("lookup", {"name": "Eve"}), text="For bob@example.com I look.", by="s"), last]
    )
    agent = create_agent(small, [lookup], middleware=[redacting(), recorder, *([trim] if routed else [])])
    result = run(agent, "I am ada@example.com", asynchronously=asynchronously)
    write_labels(tmp_path / "labels.jsonl", [recorder.record(result, lambda final: True, task="one")])
    written = (tmp_path / "labels.jsonl").read_text("utf-8")
    assert not any(secret in written for secret in SECRETS)
    (trace,) = read_traces(tmp_path / "labels.jsonl")
    assert trace["question"] == "I am [REDACTED_EMAIL]"
    assert texts(trace)[0] == 'For [REDACTED_EMAIL] I look.\n[tool_call] lookup {"name": "Eve"}'
    assert texts(trace)[1].startswith('[tool_result] lookup "Eve is [REDACTED_EMAIL]"\n')
    if routed and redacting is not AtTheEnd:
        assert seen[-1][0] == trace["question"]
        assert seen[-1][1][0] == texts(trace)[0]


def test_a_result_that_is_cleared_later_is_recorded_as_the_turn_was_rated_with_it():
    clearing = ContextEditingMiddleware(
        edits=[ClearToolUsesEdit(trigger=1, keep=1)], token_count_method="approximate"
    )
    recorder = AgentRecorder()
    script = [*(calling(("lookup", {"name": name}), by=name) for name in ("Eve", "Bob", "Tom")), "Done."]
    result = run(small_agent(recorder, script, clearing))
    trace = recorder.record(result, lambda final: True, task="one")
    assert [text.split("\n")[0] for text in texts(trace)[1:]] == [
        f'[tool_result] lookup "{name} is eve@example.com"' for name in ("Eve", "Bob", "Tom")
    ]


class Forgetting(AgentMiddleware):
    """Removes earlier turns from the state."""

    def before_model(self, state, runtime):
        gone = [one for one in state["messages"] if one.type in ("ai", "tool")]
        return {"messages": [RemoveMessage(one.id) for one in gone]}


class Hiding(AgentMiddleware):
    """Keeps earlier turns and results from the models."""

    def wrap_model_call(self, request, handler):
        return handler(request.override(messages=request.messages[:1]))


class Renewing(AgentMiddleware):
    """Sends the question as a new message without an id."""

    def wrap_model_call(self, request, handler):
        return handler(request.override(messages=[HumanMessage("Who?"), *request.messages[1:]]))


@pytest.mark.parametrize("routed", [False, True])
def test_a_turn_that_no_model_was_shown_again_has_no_target(routed):
    calls = iter([calling(("lookup", {"name": "Eve"}), by="s"), "Done."])
    recorder = AgentRecorder()
    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), lambda q, s: [1.0] * len(s), policy=threshold(0.5))
    small = ScriptedToolModel(script=lambda messages: next(calls))
    agent = create_agent(small, [lookup], middleware=[Hiding(), recorder, *([trim] if routed else [])])
    trace = recorder.record(run(agent), lambda final: True, task="one")
    if routed:
        assert texts(trace) == ["[tool_turn_removed]", "Done."]
        assert values(trace) == [None, 1.0]
    else:
        assert texts(trace) == ["Done."]
    assert "eve@example.com" not in json.dumps(trace)


def test_a_turn_that_was_removed_from_the_state_has_no_target():
    calls = iter([calling(("lookup", {"name": "Eve"}), by="s"), "Done."])
    recorder = AgentRecorder()
    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), lambda q, s: [1.0] * len(s), policy=threshold(0.5))
    small = ScriptedToolModel(script=lambda messages: next(calls))
    agent = create_agent(small, [lookup], middleware=[Forgetting(), recorder, trim])
    trace = recorder.record(run(agent), lambda final: True, task="one")
    assert list(zip(texts(trace), values(trace), strict=True)) == [
        ("[tool_turn_removed]", None),
        ("Done.", 1.0),
    ]


def test_a_question_that_was_replaced_is_recorded_as_it_was_sent():
    recorder = AgentRecorder()
    trace = recorder.record(run(small_agent(recorder, (), Renewing())), lambda final: True, task="one")
    assert trace["question"] == "Who?"


def test_an_answer_that_a_retry_replaced_is_no_turn():
    class Failing(AgentMiddleware):
        """Fails after the first answer."""

        def wrap_model_call(self, request, handler):
            response = handler(request)
            if not failed:
                failed.append(True)
                raise ConnectionError("no")
            return response

    failed = []
    recorder = AgentRecorder()
    retrying = ModelRetryMiddleware(max_retries=1, initial_delay=0.0)
    result = run(small_agent(recorder, (), retrying, Failing()))
    assert len(recorder.record(result, lambda final: True, task="one")["steps"]) == 2


# What is refused


def test_a_run_that_was_not_seen_or_is_recorded_twice_is_refused():
    recorder, other = AgentRecorder(), AgentRecorder()
    result = run(small_agent(other))
    with pytest.raises(InputError, match="has seen no run that ended with these messages"):
        recorder.record(result, lambda final: True, task="one")
    other.record(result, lambda final: True, task="one")
    with pytest.raises(InputError, match="has seen no run"):
        other.record(result, lambda final: True, task="one")


@pytest.mark.parametrize("rated", [None, "yes", 2, -0.1, float("nan")])
def test_a_rating_that_is_none_is_refused_and_can_be_repeated(rated):
    recorder = AgentRecorder()
    result = run(small_agent(recorder))
    with pytest.raises(InputError, match="grader rated the run of task 'one' with"):
        recorder.record(result, lambda final: rated, task="one")
    assert recorder.record(result, lambda final: True, task="one")["correct"]


def test_a_wrong_setting_is_refused():
    with pytest.raises(SettingsError, match="longest_result is 0"):
        AgentRecorder(longest_result=0)
    with pytest.raises(SettingsError, match="runs_per_task is 0"):
        collect_runs("runs.jsonl", ["a"], lambda task: None, runs_per_task=0)


def test_nothing_to_label_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runs to label"):
        write_labels(tmp_path / "labels.jsonl", [])
    recorder = AgentRecorder()
    trace = recorder.record(run(small_agent(recorder)), lambda final: True, task="one")
    with pytest.raises(InputError, match="one: not a run of an agent with its outcome"):
        write_labels(tmp_path / "labels.jsonl", [{**trace, "policy": {"type": "labelled"}}])


# Several runs of one task


def recorded(task, turns, outcome):
    """A run with these turns, None for a removed one."""
    recorder = AgentRecorder()
    made = recorder.record(run(small_agent(recorder, ["x"])), lambda final: outcome, task=task)
    (step,) = made["steps"]
    steps = [
        {**step, "text": text or "[tool_turn_removed]", "value": None if text is None else outcome}
        for text in turns
    ]
    return {**made, "steps": steps}


def test_a_turn_gets_the_share_of_runs_through_it_that_end_right():
    runs = [
        recorded("one", ["a", "b"], 1.0),
        recorded("one", ["a", "c"], 0.0),
        recorded("one", ["a", "b", "d"], 0.0),
        recorded("two", ["a", "b"], 1.0),
    ]
    labelled = label_runs(runs)
    assert [values(one) for one in labelled] == [[1 / 3, 0.5], [1 / 3, 0.0], [1 / 3, 0.5, 0.0], [1.0, 1.0]]
    assert [one["index"] for one in labelled] == [0, 0, 0, 1]
    assert label_runs(labelled) == labelled


TEMPLATE = recorded("t", ["x"], 1.0)
runs_of_a_task = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(st.sampled_from(["x", "y", None]), min_size=1, max_size=4),
        st.floats(0, 1),
    ),
    max_size=8,
)


@given(runs_of_a_task)
def test_each_target_is_the_mean_outcome_of_the_runs_with_the_same_first_turns(drawn):
    (step,) = TEMPLATE["steps"]
    runs = [
        {
            **TEMPLATE,
            "id": task,
            "policy": {**TEMPLATE["policy"], "outcome": outcome},
            "steps": [
                {**step, "text": text or "-", "value": None if text is None else outcome} for text in turns
            ],
        }
        for task, turns, outcome in drawn
    ]
    for (task, turns, outcome), trace in zip(drawn, label_runs(runs), strict=True):
        for count, value in enumerate(values(trace), 1):
            prefix = turns[:count]
            same = [o for t, other, o in drawn if t == task and other[:count] == prefix]
            expected = [outcome] if None in prefix else same
            assert (
                value is None
                if turns[count - 1] is None
                else value == pytest.approx(sum(expected) / len(expected))
            )


# Many runs


def labelling(fails=lambda task: False):
    recorder = AgentRecorder()

    def once(task):
        if fails(task):
            raise ConnectionError(f"no {task}")
        agent = small_agent(recorder, [f"Answer {task}."])
        return recorder.record(run(agent, f"Question {task}"), ends_with("a."), task=task)

    return once


@pytest.mark.parametrize("concurrency", [1, 3])
def test_runs_are_recorded_and_resumed(tmp_path, concurrency):
    file, done = tmp_path / "runs.jsonl", []
    failing = labelling(lambda task: task == "c")
    with pytest.raises(ConnectionError, match="no c"):
        collect_runs(file, "abc", failing, runs_per_task=2, on_run=done.append)
    before = len(done)
    assert before == len(list(read_traces(file)))
    runs = collect_runs(
        file, "abc", labelling(), runs_per_task=2, concurrency=concurrency, on_run=done.append
    )
    assert len(done) == 6
    assert [trace["id"] for trace in runs] == ["a", "a", "b", "b", "c", "c"]
    assert [values(trace) for trace in runs] == [[1.0]] * 2 + [[0.0]] * 4
    more = collect_runs(file, "abc", labelling(), runs_per_task=3)
    assert len(more) == 9
    assert write_labels(tmp_path / "labels.jsonl", more) == 9
    labels = list(read_traces(tmp_path / "labels.jsonl"))
    assert [trace["question"] for trace in labels[::3]] == ["Question a", "Question b", "Question c"]
    with pytest.raises(SettingsError, match="tasks was 3, is 2"):
        collect_runs(file, "ab", labelling())


def test_runs_are_made_at_the_same_time(tmp_path):
    meeting, once = threading.Barrier(2, timeout=10), labelling()

    def together(task):
        meeting.wait()
        return once(task)

    assert len(collect_runs(tmp_path / "runs.jsonl", "ab", together, runs_per_task=1, concurrency=2)) == 2


def test_a_scorer_is_trained_on_labels_of_turns_and_rates_turns(tmp_path):
    from trim_graph import ScorableStep
    from trim_graph.adapters import TransformersProcessReward
    from trim_graph.examples import arithmetic
    from trim_graph.training.scorer import ScorerTraining, train_scorer

    runs = []
    for task in range(12):
        for right in (True, False):
            recorder = AgentRecorder()
            turn = calling(("lookup", {"name": "Eve" if right else "Mallory"}), by="s")
            result = run(small_agent(recorder, [turn, "Done."]), f"Who is number {task}?")
            runs.append(recorder.record(result, lambda final, right=right: right, task=str(task)))
    assert write_labels(tmp_path / "labels.jsonl", runs) == 24
    training = ScorerTraining(validation=0.25, test=0.25)
    trained = train_scorer(
        [tmp_path / "labels.jsonl"], base=str(arithmetic.SMALL), out=tmp_path / "scorer", training=training
    )
    assert trained.file.method == "outcome"
    assert trained.file.metrics["steps"]["auc"] > 0.9
    scorer = TransformersProcessReward(trained.folder)
    right, wrong = (
        scorer.score(
            "Who is number 3?", [ScorableStep(f'[tool_call] lookup {{"name": "{name}"}}').as_turn(None)]
        ).scores[0]
        for name in ("Eve", "Mallory")
    )
    assert right > wrong
