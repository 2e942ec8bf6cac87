"""A routed agent beside other middlewares: what they rewrite, and how they end an agent."""

import asyncio

import pytest
from agent_rig import QUESTION, build, calling, multiply, turns
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    hook_config,
)
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from trim_graph import Budget, InputError
from trim_graph.adapters import ModelServerError
from trim_graph.agents import TrimMiddleware
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.testing import ScriptedToolModel

THREAD = {"configurable": {"thread_id": "1"}}
SECRETS = ("ada@example.com", "bob@example.com", "eve@example.com")
both_ways = pytest.mark.parametrize("asynchronously", [False, True])


class Watching:
    """A scorer that likes everything, and keeps what it was shown."""

    def __init__(self, **scores):
        self.seen, self.scores = [], scores

    def __call__(self, question, steps):
        texts = [str(step) for step in steps]
        self.seen.append((question, texts))
        return [next((s for part, s in self.scores.items() if part in text), 1.0) for text in texts]


def policy_watching(seen):
    def policy(observation):
        seen.append(observation.question)
        return "accept"

    return policy


def kept(values):
    """What the middleware keeps in a state."""
    return str({name: value for name, value in values.items() if name.startswith("trim")})


def run(agent, given, config=THREAD, *, asynchronously=False, **options):
    if asynchronously:
        return asyncio.run(agent.ainvoke(given, config, **options))
    return agent.invoke(given, config, **options)


def events_of(agent, given=None, config=None):
    given = given or {"messages": [("user", QUESTION)]}
    return list(agent.stream(given, config, stream_mode="custom"))


# What others rewrite


def redacting():
    """Redacts what is asked, what tools return and what the model writes."""
    return PIIMiddleware(
        "email", strategy="redact", apply_to_input=True, apply_to_output=True, apply_to_tool_results=True
    )


def mailing(*middleware, **options):
    """An agent in whose question, tool result and turns there are addresses."""

    @tool
    def lookup(name: str) -> str:
        """Look up."""
        return f"{name} is eve@example.com"

    script = [
        calling(("lookup", {"name": "Eve"}), text="For bob@example.com I look.", by="s"),
        "Tell bob@example.com",
    ]
    small = ScriptedToolModel(script=script)
    return small, create_agent(
        small, [lookup], middleware=middleware, checkpointer=InMemorySaver(), **options
    )


@both_ways
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_the_scorer_is_shown_no_more_than_the_models(asynchronously, first):
    scorer, asked = Watching(), []
    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), scorer, policy=policy_watching(asked))
    small, agent = mailing(*((trim, redacting()) if first else (redacting(), trim)))
    run(agent, {"messages": [("user", "I am ada@example.com")]}, asynchronously=asynchronously)
    (_, first_turn), (question, both_turns) = scorer.seen
    assert question == asked[-1] == "I am [REDACTED_EMAIL]"
    assert small.calls[-1]["messages"][0].text == question
    # Its own words are the model's; the earlier turn and the tool's result are as the model is sent them.
    assert first_turn == ['For bob@example.com I look.\n[tool_call] lookup {"name": "Eve"}']
    assert both_turns == [
        'For [REDACTED_EMAIL] I look.\n[tool_call] lookup {"name": "Eve"}',
        '[tool_result] lookup "Eve is [REDACTED_EMAIL]"\nTell bob@example.com',
    ]


@both_ways
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_checkpoint_holds_an_accepted_text_that_its_messages_do_not(asynchronously, first, interrupted):
    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), Watching(), policy=threshold(0.5))
    options = {"interrupt_before": ["tools"]} if interrupted else {}
    _, agent = mailing(*((trim, redacting()) if first else (redacting(), trim)), **options)
    run(agent, {"messages": [("user", "I am ada@example.com")]}, asynchronously=asynchronously)
    if interrupted:
        run(agent, None, asynchronously=asynchronously)
    snapshots = list(agent.get_state_history(THREAD))
    assert len(snapshots) > 8
    for snapshot in snapshots:
        messages = str(snapshot.values.get("messages"))
        for secret in SECRETS:
            assert secret not in kept(snapshot.values) or secret in messages
    last = snapshots[0].values
    assert not any(secret in str(last) for secret in SECRETS)
    assert last["trim_run"]["question"] == "I am [REDACTED_EMAIL]"
    assert [step["text"] for step in last["trim_steps"]][1].endswith("Tell [REDACTED_EMAIL]")


def test_a_discarded_turn_need_not_be_kept():
    for keep in (True, False):
        trim = TrimMiddleware(
            ScriptedToolModel(script=["Fine."]),
            Watching(bob=0.1),
            policy=threshold(0.5),
            keep_discarded=keep,
        )
        _, agent = mailing(redacting(), trim)
        result = run(agent, {"messages": [("user", "I am ada@example.com")]})
        assert turns(result)[0].text == "Fine."
        assert ("bob@example.com" in kept(agent.get_state(THREAD).values)) is keep
        assert agent.get_state(THREAD).values["trim_decisions"][0]["discarded"]["tokens"] > 0


class InRequest(AgentMiddleware):
    """Replaces words in what a model is sent; the state keeps them."""

    def __init__(self, old, new):
        super().__init__()
        self.old, self.new = old, new

    def wrap_model_call(self, request, handler):
        def rewritten(one):
            return one.model_copy(update={"content": one.text.replace(self.old, self.new)})

        messages = [rewritten(one) for one in request.messages]
        return handler(request.override(messages=messages, system_message=SystemMessage("Mind the gap.")))


@pytest.mark.parametrize(("old", "new"), [("Ada", "A."), ("A.", "Ada")], ids=["hides", "reveals"])
def test_what_is_rewritten_for_a_request_only_is_shown_and_what_the_state_has_is_kept(old, new):
    scorer = Watching()
    rig = build(
        ["I ask."],
        scorer=scorer,
        before=[InRequest(old, new)],
        scores={},
        tools=False,
        agent={"checkpointer": InMemorySaver()},
    )
    rig.ask(f"Who is {old}?", THREAD)
    assert scorer.seen == [(f"Who is {new}?", ["I ask."])]
    values = rig.agent.get_state(THREAD).values
    assert values["trim_run"]["question"] == f"Who is {old}?"
    snapshots = list(rig.agent.get_state_history(THREAD))
    assert not any(f"Who is {new}?" in kept(snapshot.values) for snapshot in snapshots)


def test_what_is_rewritten_for_a_request_reaches_both_models():
    rig = build(before=[InRequest("12", "13")])
    rig.ask()
    ours, theirs = rig.small.calls[0]["messages"], rig.large.calls[0]["messages"]
    assert ours == theirs
    assert [ours[0].text, ours[1].text] == ["Mind the gap.", QUESTION.replace("12", "13")]


def test_an_earlier_tool_result_that_is_cleared_is_not_shown_either():
    scorer = Watching()
    cleared = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=1)])
    small = [multiply(1, 7, by="a"), multiply(2, 9, by="b"), "done"]
    rig = build(small, scorer=scorer, before=[cleared])
    rig.ask()
    _, texts = scorer.seen[-1]
    assert texts[1].startswith('[tool_result] multiply "[cleared]"')
    assert texts[2].startswith('[tool_result] multiply "18"')


def test_a_turn_that_was_summed_up_is_marked_as_removed():
    scorer = Watching()
    summing = SummarizationMiddleware(
        ScriptedToolModel(script=lambda messages: "They multiplied."),
        trigger=("messages", 5),
        keep=("messages", 2),
    )

    def small(messages):
        if "They multiplied." in str(messages):
            return "done"
        return multiply(1, len(messages), by=f"s{len(messages)}")

    rig = build(small, scorer=scorer, before=[summing], agent={"checkpointer": InMemorySaver()})
    result = rig.ask(config=THREAD)
    question, texts = scorer.seen[-1]
    assert question.startswith("Here is a summary")
    assert texts[0] == "[tool_turn_removed]"
    assert texts[1].endswith('[tool_call] multiply {"a": 1, "b": 3}')
    assert texts[2].endswith("done")
    assert result["trim"]["steps"]["small"] == 3
    assert [step["text"] for step in rig.agent.get_state(THREAD).values["trim_steps"]] == texts


def test_the_question_stays_the_question_whatever_others_say_in_between():
    scorer = Watching()

    class Insisting(AgentMiddleware):
        @hook_config(can_jump_to=["model"])
        def after_model(self, state, runtime):
            if len(turns(state)) < 2:
                return {"jump_to": "model", "messages": [HumanMessage("Are you sure?")]}
            return None

    build(lambda messages: "yes", scorer=scorer, before=[Insisting()], tools=False).ask()
    assert [question for question, _ in scorer.seen] == [QUESTION, QUESTION]


def test_a_question_that_another_has_removed_is_asked_of_nobody():
    class Forgetting(AgentMiddleware):
        def before_model(self, state, runtime):
            asked = state["messages"][0]
            return {"messages": [RemoveMessage(asked.id), SystemMessage("Speak.")]}

    for placed in ("before", "behind"):
        rig = build(before=[Forgetting()]) if placed == "before" else build(before=[])
        if placed == "behind":
            agent = create_agent(rig.small, middleware=[rig.middleware, Forgetting()])
        else:
            agent = rig.agent
        with pytest.raises(InputError, match="no human message with text is left for this turn"):
            agent.invoke({"messages": [("user", QUESTION)]})
        assert rig.unasked


def test_a_turn_that_another_rewrites_behind_it_is_shown_and_kept_as_rewritten():
    scorer = Watching()

    class Correcting(AgentMiddleware):
        def after_model(self, state, runtime):
            turn = state["messages"][-1]
            calls = [{**call, "args": {"a": 12, "b": 11}} for call in turn.tool_calls]
            return {"messages": [turn.model_copy(update={"tool_calls": calls})]}

    rig = build(before=[Correcting()], scorer=scorer, agent={"checkpointer": InMemorySaver()})
    rig.ask(config=THREAD)
    assert rig.ran == [("multiply", 12, 11)]
    _, texts = scorer.seen[-1]
    assert texts[0] == '[tool_call] multiply {"a": 12, "b": 11}'
    assert rig.agent.get_state(THREAD).values["trim_steps"][0]["text"] == texts[0]


# How others end an agent


def ended(agent, given=None, config=None):
    """Runs an agent; returns its last state, and how often its end was reported."""
    given, finished, state = given or {"messages": [("user", QUESTION)]}, [], {}
    for mode, event in agent.stream(given, config, stream_mode=["custom", "values"]):
        if mode == "values":
            state = event
        elif event["event"] == "finished":
            finished.append(event["summary"])
    assert len(finished) == 1
    assert state["trim"] == finished[0]
    return state


def fetching(script, *middleware, tools=()):
    @tool(return_direct=True)
    def fetch(q: str) -> str:
        """Fetch."""
        if q == "broken":
            raise ValueError(q)
        return "data"

    @tool
    def look(q: str) -> str:
        """Look."""
        return "seen"

    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), policy=small_only())
    small = ScriptedToolModel(script=script) if not hasattr(script, "invoke") else script
    return create_agent(small, [fetch, look], middleware=[*middleware, trim], checkpointer=InMemorySaver())


def fetch(q="x", *, by="s"):
    return calling(("fetch", {"q": q}), by=by)


def look(*, by="s"):
    return calling(("look", {"q": "x"}), by=by)


@pytest.mark.parametrize(
    ("script", "steps"), [([fetch()], 1), ([look(), fetch(by="t")], 2)], ids=["at once", "later"]
)
def test_an_agent_that_a_tools_result_ends_has_finished(script, steps):
    state = ended(fetching(script), config=THREAD)
    assert state["messages"][-1].text == "data"
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("finished", steps)


def test_of_several_tools_all_must_return_directly():
    both = calling(("fetch", {"q": "x"}), ("look", {"q": "x"}), by="s")

    class Ending(AgentMiddleware):
        @hook_config(can_jump_to=["end"])
        def before_model(self, state, runtime):
            return {"jump_to": "end"} if turns(state) else None

    state = ended(fetching([both], Ending()), config=THREAD)
    assert (state["trim"]["stopped"], state["messages"][-1].type) == ("middleware", "tool")
    state = ended(fetching([both, "done"]), config=THREAD)
    assert (state["trim"]["stopped"], state["messages"][-1].text) == ("finished", "done")


@pytest.mark.parametrize("model", ["sync", "async"])
def test_an_agent_that_another_middlewares_limit_ends_says_so(model):
    agent = fetching([look(), look(by="t")], ModelCallLimitMiddleware(run_limit=1))
    if model == "sync":
        state = ended(agent, config=THREAD)
    else:
        state = asyncio.run(agent.ainvoke({"messages": [("user", QUESTION)]}, THREAD))
    assert "Model call limits exceeded" in state["messages"][-1].text
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("middleware", 1)


@pytest.mark.parametrize("order", [1, -1])
def test_a_limit_that_ends_the_agent_with_a_call_unanswered_says_so(order):
    class Ending(AgentMiddleware):
        @hook_config(can_jump_to=["end"])
        def after_model(self, state, runtime):
            return {"jump_to": "end"}

        @hook_config(can_jump_to=["end"])
        def before_model(self, state, runtime):
            return None

    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), policy=small_only())
    rig = build([look()])
    agent = create_agent(rig.small, [], middleware=[trim, Ending()][::order], checkpointer=InMemorySaver())
    assert ended(agent, config=THREAD)["trim"]["stopped"] == "middleware"


def test_a_limit_on_tool_calls_ends_the_agent():
    agent = fetching([look(), look(by="t")], ToolCallLimitMiddleware(run_limit=1, exit_behavior="end"))
    state = ended(agent, config=THREAD)
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("middleware", 2)


class Guard(AgentMiddleware):
    """Ends an agent before anybody else has seen the question."""

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state, runtime):
        if "forbidden" in state["messages"][-1].text:
            return {"jump_to": "end", "messages": [AIMessage("No.")]}
        return None


def test_a_question_that_a_guard_turns_away_has_a_summary_of_its_own():
    agent = fetching(["done"], Guard())
    state = ended(agent, {"messages": [("user", "forbidden")]}, THREAD)
    assert (state["trim"]["stopped"], state["trim"]["steps"]) == ("middleware", {"small": 0, "large": 0})
    assert ended(agent, config=THREAD)["trim"]["steps"]["small"] == 1
    state = ended(agent, {"messages": [("user", "forbidden again")]}, THREAD)
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("middleware", 0)
    values = agent.get_state(THREAD).values
    assert (values["trim_run"]["question"], values["trim_steps"]) == ("forbidden again", [])


def test_what_a_guard_turns_away_may_be_no_question_at_all():
    class Strict(Guard):
        @hook_config(can_jump_to=["end"])
        def before_agent(self, state, runtime):
            return {"jump_to": "end", "messages": [AIMessage("No.")]}

    agent = fetching(["done"], Strict())
    assert agent.invoke({"messages": [("user", " ")]}, THREAD)["trim"] is None
    assert agent.invoke({"messages": []}, THREAD)["trim"] is None


class Failing(ScriptedToolModel):
    failures: int = 99

    def _generate(self, *given, **options):
        if self.failures:
            self.failures -= 1
            raise ModelServerError("the server is down", begun=True)
        return super()._generate(*given, **options)


RETRY = {"max_retries": 1, "initial_delay": 0.0, "jitter": False}


@both_ways
def test_a_failed_turn_that_another_middleware_makes_a_message_of_has_failed(asynchronously):
    retrying = ModelRetryMiddleware(**RETRY, on_failure="continue")
    agent = fetching(Failing(script=["done"]), retrying)
    state = run(agent, {"messages": [("user", QUESTION)]}, asynchronously=asynchronously)
    assert "Model call failed after 2 attempts" in state["messages"][-1].text
    assert state["trim"]["stopped"] == "failed"
    assert "the server is down" in state["trim"]["notes"][-1]
    assert agent.get_state(THREAD).values["trim_request"] is None


def test_a_failed_turn_of_the_large_model_is_charged_for_every_attempt():
    rig = build(
        large=Failing(script=["-"]),
        policy=large_only(),
        scorer=None,
        before=[ModelRetryMiddleware(**RETRY, on_failure="continue")],
        budget=Budget(large_tokens=100),
        max_step_tokens=30,
    )
    summary = ended(rig.agent)["trim"]
    assert (summary["stopped"], summary["tokens"]["large_unaccounted"]) == ("failed", 60)
    assert summary["usage"]["large"]["calls"] == 2


def test_a_turn_that_succeeds_at_the_second_attempt_has_not_failed():
    agent = fetching(Failing(script=[look(), "done"], failures=1), ModelRetryMiddleware(**RETRY))
    state = ended(agent, config=THREAD)
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("finished", 2)


def test_another_middlewares_fallback_is_the_small_model_then():
    spare = ScriptedToolModel(script=["from the spare"], name="spare")
    state = ended(fetching(Failing(script=["-"]), ModelFallbackMiddleware(spare)), config=THREAD)
    assert (state["trim"]["stopped"], state["messages"][-1].text) == ("finished", "from the spare")


def test_an_answer_in_place_of_the_models_is_anothers_end():
    class Cached(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return AIMessage("from a cache")

    state = ended(fetching(["-"], Cached()), config=THREAD)
    assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("middleware", 0)


def test_each_question_of_a_thread_ends_once():
    agent = fetching([fetch()])
    for question in ("one", "two", "three"):
        state = ended(agent, {"messages": [("user", question)]}, THREAD)
        assert (state["trim"]["stopped"], state["trim"]["steps"]["small"]) == ("finished", 1)


def test_an_interrupt_is_no_end():
    approval = HumanInTheLoopMiddleware(interrupt_on={"multiply": True})
    rig = build(before=[approval], scores={}, agent={"checkpointer": InMemorySaver()})
    assert "finished" not in [e["event"] for e in events_of(rig.agent, config=THREAD)]
    assert rig.agent.get_state(THREAD).values["trim"]["stopped"] == ""
    answer = Command(resume={"decisions": [{"type": "reject", "message": "No."}]})
    state = ended(rig.agent, answer, THREAD)
    assert (state["trim"]["stopped"], rig.ran) == ("finished", [])


@pytest.mark.parametrize(
    ("options", "stopped"),
    [({"max_steps": 1}, "max_steps"), ({"budget": Budget(large_calls=1, on_exhausted="stop")}, "budget")],
)
def test_the_middlewares_own_end_is_reported_once_too(options, stopped):
    rig = build(policy=large_only(), scorer=None, **options)
    state = ended(rig.agent)
    assert state["trim"]["stopped"] == stopped
    assert state["messages"][-1].response_metadata["trim"] == state["trim"]


def test_an_agent_inside_a_tool_of_another_ends_by_itself():
    inner = build(["inner answer"], scores={}, tools=False)

    @tool
    def delegate(task: str) -> str:
        """Ask somebody else."""
        return inner.ask(task)["messages"][-1].text

    trim = TrimMiddleware(ScriptedToolModel(script=["-"]), policy=small_only())
    script = [calling(("delegate", {"task": "do it"}), by="s"), "outer answer"]
    outer = create_agent(ScriptedToolModel(script=script), [delegate], middleware=[trim])
    result = outer.invoke({"messages": [("user", QUESTION)]})
    assert [m.text for m in result["messages"] if isinstance(m, ToolMessage)] == ["inner answer"]
    assert (result["trim"]["stopped"], result["trim"]["steps"]["small"]) == ("finished", 2)


def test_an_agent_that_is_sent_on_after_its_end_reports_the_end_of_each():
    class Again(AgentMiddleware):
        @hook_config(can_jump_to=["model"])
        def after_agent(self, state, runtime):
            return {"jump_to": "model"} if len(turns(state)) < 2 else None

    rig = build(lambda messages: "yes", before=[Again()], scores={}, tools=False)
    reported = [e for e in events_of(rig.agent) if e["event"] == "finished"]
    assert [e["summary"]["steps"]["small"] for e in reported] == [1, 2]
