"""An agent whose turns are routed: what is executed and streamed, what models and the scorer see."""

import asyncio
import json

import pytest
from agent_rig import LARGE, QUESTION, RIGHT, SMALL, WRONG, build, calling, multiply, turns
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, hook_config
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from trim_graph import Budget, ChatModelContractError, InputError, SettingsError, TrimContext
from trim_graph.agents import TrimMiddleware
from trim_graph.policies import (
    Choice,
    Policy,
    entropy_probe,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.settings import TurnSettings
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

both_ways = pytest.mark.parametrize("asynchronously", [False, True])


@both_ways
def test_a_rejected_turns_tool_call_is_never_executed(asynchronously):
    rig = build()
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 12)]
    assert [m.type for m in result["messages"]] == ["human", "ai", "tool", "ai"]
    first, last = turns(result)
    assert first.tool_calls == LARGE[0].tool_calls
    assert last.text == "small answer"
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert result["trim"]["decisions"] == {"regenerate": 1, "accept": 1}


@both_ways
def test_tool_calls_of_an_accepted_turn_survive_intact(asynchronously):
    nested = {"sql": "SELECT \"name\", '\\n' FROM city WHERE id IN (1, 2) -- ünïcode \u2028"}
    turn = calling(("query", nested), ("multiply", {"a": -1, "b": 0}), text="Both at once.", by="s")
    rig = build([turn, "done"], scores={})
    result = rig.ask(asynchronously=asynchronously)
    first = turns(result)[0]
    assert (first.text, first.tool_calls) == (turn.text, turn.tool_calls)
    assert sorted(rig.ran) == [("multiply", -1, 0), ("query", nested["sql"])]
    answers = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert {answer.tool_call_id for answer in answers} == {"s0", "s1"}


def test_of_parallel_calls_in_a_rejected_turn_none_is_executed():
    wrong = calling(
        ("multiply", {"a": 12, "b": 12}), ("multiply", {"a": 12, "b": 21}), ("query", {"sql": "DROP"}), by="s"
    )
    rig = build([wrong, "done"], policy=lambda seen: "accept" if seen.index else "regenerate", scores={})
    rig.ask()
    assert rig.ran == [("multiply", 12, 12)]


def test_both_models_get_the_same_conversation_and_tools():
    rig = build(agent={"system_prompt": "Be brief."})
    rig.ask()
    ours, theirs = rig.small.calls[0], rig.large.calls[0]
    assert ours["messages"] == theirs["messages"]
    assert [type(m) for m in ours["messages"]] == [SystemMessage, HumanMessage]
    assert ours["tools"] == theirs["tools"] == ["multiply", "query"]


def test_the_scorer_gets_turns_with_the_results_of_tools():
    seen = []

    def scorer(question, steps):
        seen.append((question, [(step.writer, step) for step in steps]))
        return [0.1 if step == WRONG else 0.9 for step in steps]

    build(scorer=scorer).ask()
    assert seen == [
        (QUESTION, [("small", WRONG)]),
        (QUESTION, [("large", RIGHT), ("small", '[tool_result] multiply "144"\nsmall answer')]),
    ]


def test_a_policy_sees_turns_as_it_sees_steps():
    seen = []

    def policy(observation):
        seen.append(observation)
        return Choice("regenerate" if observation.index == 0 else "accept", observation.index)

    rig = build(policy=policy, budget=Budget(large_calls=5))
    seen.clear()  # of the samples
    rig.ask()
    first, second = seen
    assert (first.question, first.index, first.score, first.draft) == (QUESTION, 0, 0.1, WRONG)
    assert (first.draft_ends, first.draft_tokens) == (False, rig.small.calls[0]["tokens"])
    assert (second.index, second.writers, second.memory, second.draft_ends) == (1, ("large",), 0, True)
    assert second.scores == (1.0,)
    assert second.tokens == (rig.large.calls[0]["tokens"],)
    assert second.budget_left.large_calls == 4


# What is streamed, and what callbacks get


def streamed(rig, mode, asynchronously):
    given = {"messages": [("user", QUESTION)]}

    async def collect():
        return [item async for item in rig.agent.astream(given, stream_mode=mode)]

    return asyncio.run(collect()) if asynchronously else list(rig.agent.stream(given, stream_mode=mode))


@both_ways
def test_nothing_of_a_discarded_turn_is_streamed_as_a_message(asynchronously):
    reported = streamed(build(), "messages", asynchronously)
    assert [(message.type, message.text) for message, _ in reported] == [
        ("ai", ""),
        ("tool", "144"),
        ("ai", "small answer"),
    ]
    assert reported[0][0].tool_calls == LARGE[0].tool_calls


@both_ways
def test_custom_events_report_each_turn(asynchronously):
    events = streamed(build(), "custom", asynchronously)
    assert [event["event"] for event in events] == [
        "started",
        *("draft", "decision", "accepted"),
        *("draft", "decision", "accepted"),
        "finished",
    ]
    assert events[2]["discarded"]["text"] == WRONG
    assert events[3]["writer"], events[3]["text"] == ("large", RIGHT)
    json.dumps(events)


def test_a_judges_words_are_not_streamed_either():
    judge = ScriptedToolModel(script=lambda messages: "9", name="judge")

    def scorer(question, steps):
        judge.invoke([("user", "rate")])
        return [1.0] * len(steps)

    reported = streamed(build(scorer=scorer), "messages", False)
    assert judge.calls
    assert "9" not in [message.text for message, _ in reported]


@both_ways
def test_usage_callbacks_count_every_call_once(asynchronously):
    usage = UsageMetadataCallbackHandler()
    rig = build()
    result = rig.ask(config={"callbacks": [usage]}, asynchronously=asynchronously)
    spend = result["trim"]["usage"]
    for writer, model in (("small", rig.small), ("large", rig.large)):
        counted = usage.usage_metadata[model.name]
        assert counted["output_tokens"] == spend[writer]["output_tokens"]
        assert counted["output_tokens"] == sum(call["tokens"] for call in model.calls)
        assert counted["input_tokens"] == spend[writer]["input_tokens"]
    tokens = result["trim"]["tokens"]
    assert tokens["small"] + tokens["small_discarded"] == spend["small"]["output_tokens"]
    assert sum(turn.usage_metadata["output_tokens"] for turn in turns(result)) == (
        tokens["small"] + tokens["large"]
    )


def test_events_of_each_call_carry_distinct_tags():
    async def tags():
        events = build().agent.astream_events({"messages": [("user", QUESTION)]}, version="v2")
        return [e["tags"] async for e in events if e["event"] == "on_chat_model_end"]

    kinds = [{tag for tag in reported if tag.startswith("trim:")} for reported in asyncio.run(tags())]
    assert kinds == [
        {"trim:draft", "trim:small"},
        {"trim:accepted", "trim:large"},
        {"trim:draft", "trim:small"},
    ]


# Policies


def test_after_a_handover_the_large_model_writes_all_turns_that_remain_of_the_question():
    rig = build(
        [multiply(1, 1, by="s"), multiply(2, 2, by="s"), "small answer"],
        [multiply(3, 3, by="l"), multiply(4, 4, by="l"), "LARGE answer"],
        policy=lambda seen: "accept" if seen.index == 0 else "handover",
        agent={"checkpointer": InMemorySaver()},
    )
    thread = {"configurable": {"thread_id": "1"}}
    result = rig.ask(config=thread)
    assert rig.ran == [("multiply", 1, 1), ("multiply", 4, 4)]
    assert result["trim"]["steps"] == {"small": 1, "large": 2}
    assert len(rig.small.calls) == 2
    result = rig.ask("And now?", config=thread)
    assert result["trim"]["steps"] == {"small": 1, "large": 2}


def test_the_large_model_alone_is_asked_once_a_turn_and_nothing_is_scored():
    rig = build(policy=large_only())
    result = rig.ask()
    assert result["trim"]["steps"] == {"small": 0, "large": 2}
    assert (rig.small.calls, rig.scorer.calls) == ([], [])


def test_the_small_model_alone_never_asks_the_large_one():
    rig = build(policy=small_only(), scorer=None)
    assert rig.ask()["trim"]["steps"] == {"small": 2, "large": 0}
    assert rig.large.calls == []


def test_a_policy_remembers_across_turns():
    small = [multiply(1, i, by="s") for i in range(4)] + ["small answer"]
    large = [multiply(2, i, by="l") for i in range(4)] + ["LARGE answer"]
    rig = build(
        small,
        large,
        {'[tool_call] multiply {"a": 1, "b": 0}': 0.1},
        policy=stay_on_large(threshold(0.5), k=2),
    )
    rig.ask()
    assert [call[1] for call in rig.ran] == [2, 2, 2, 1]


def test_a_policy_without_scores_calls_no_scorer():
    rig = build(policy=random_rate(1.0))
    assert rig.ask()["trim"]["steps"] == {"small": 0, "large": 2}
    assert rig.scorer.calls == []


def test_a_question_given_to_the_large_model_by_its_words_stays_there():
    class ByLength(Policy):
        needs_score = decides = False

        def next_writer(self, observation):
            return "large_to_end" if len(observation.question) > 20 else "small"

    rig = build(policy=ByLength(), scorer=None)
    assert rig.ask()["trim"]["steps"] == {"small": 0, "large": 2}
    assert rig.ask("What is 12 * 12?")["trim"]["steps"] == {"small": 2, "large": 0}


@pytest.mark.parametrize("policy", [entropy_probe(1.0), threshold(0.5) | entropy_probe(1.0)], ids=repr)
def test_a_probe_is_refused_before_any_model_is_called(policy):
    rig = build(policy=policy)
    with pytest.raises(SettingsError, match=r"entropy_probe.* wants a probe.*choose a policy"):
        rig.ask()
    assert rig.unasked


# Settings


@pytest.mark.parametrize("context", [{"trim": {"threshold": 0.05}}, TrimContext(threshold=0.05)])
def test_a_call_goes_by_settings_of_its_own(context):
    rig = build(agent={"context_schema": type(context)})
    assert rig.ask(context=context)["trim"]["steps"] == {"small": 2, "large": 0}
    assert rig.ask()["trim"]["steps"] == {"small": 1, "large": 1}


@pytest.mark.parametrize(("policy", "large"), [("small", 0), ("large", 2), (0.05, 0), (0.5, 1)])
def test_a_call_may_name_a_model_or_a_threshold_in_its_context_or_its_config(policy, large):
    rig = build(agent={"context_schema": dict})
    steps = {"small": 2 - large, "large": large}
    assert rig.ask(context={"trim": {"policy": policy}})["trim"]["steps"] == steps
    config = {"configurable": {"trim": {"policy": policy}, "thread_id": "own"}}
    assert rig.ask(config=config)["trim"]["steps"] == steps


def test_every_turn_says_why_it_went_to_its_writer():
    rig = build(agent={"checkpointer": InMemorySaver()})
    config = {"configurable": {"thread_id": "explained"}}
    rig.ask(config=config)
    whys = [step["why"] for step in rig.agent.get_state(config).values["trim_steps"]]
    assert [why.partition(" ")[2].partition(" (")[0] for why in whys] == [
        "had the large model write the turn again",
        "accepted the small model's draft",
    ]


def test_an_agents_savings_count_the_prompt_of_each_turn_once():
    rig = build()
    savings = rig.ask()["trim"]["savings"]
    (first,) = rig.large.calls
    _, second = rig.small.calls
    assert savings["large_alone"]["read"] == first["prompt_tokens"] + second["prompt_tokens"]
    alone = build(policy=large_only()).ask()["trim"]["savings"]
    assert alone["tokens"] == alone["large_tokens"] == 0


@pytest.mark.parametrize(
    ("trim", "reported"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"policy": 1.5}, "policy is 1.5: choose small, large"),
        ({"budget": {"large_tokens": 1.5}}, "budget.large_tokens"),
        ({"ask_below": 0.5}, "ask_below has a human asked"),
        ({"quotas": {"user": {"large_calls": 1}}}, "without a ledger"),
    ],
)
def test_wrong_settings_of_a_call_are_refused_before_any_model_is_called(trim, reported):
    rig = build(agent={"context_schema": dict})
    with pytest.raises(SettingsError, match=reported):
        rig.ask(context={"trim": trim})
    assert rig.unasked


def test_a_call_cannot_have_an_agent_look_ahead():
    rig = build(agent={"context_schema": dict})
    with pytest.raises(SettingsError, match="lookahead is no setting of an agent"):
        rig.ask(context={"trim": {"lookahead": True}})
    with pytest.raises(SettingsError, match="warm_large is no setting of an agent"):
        rig.ask(context={"trim": {"warm_large": True}})


def test_a_model_too_many_is_refused_with_where_the_small_one_belongs():
    small, large = ScriptedToolModel(script=SMALL), ScriptedToolModel(script=LARGE)
    with pytest.raises(SettingsError, match=r"got 3 models: the agent's own model, .* is the small one"):
        TrimMiddleware(small, large, ScriptedScorer({}), policy=0.5)  # type: ignore[arg-type]


def test_a_calls_policy_that_needs_scores_needs_a_scorer():
    rig = build(policy=small_only(), scorer=None, agent={"context_schema": dict})
    with pytest.raises(SettingsError, match="without a scorer"):
        rig.ask(context={"trim": {"threshold": 0.5}})


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        (
            {"delimiter": "\n"},
            "unknown setting delimiter; settings of an agent's turns: large_alone, max_step_tokens",
        ),
        ({"max_steps": 0}, "max_steps"),
        ({"small": 7}, "small is no setting of TrimMiddleware: the agent's own model, .* is the small one"),
        ({"lookahead": True}, "lookahead is no setting of an agent: what follows a turn depends on"),
        ({"warm_large": True}, "warm_large is no setting of an agent: other middlewares may rewrite"),
        ({"budget_per": "day"}, "budget_per is 'day': choose question or thread"),
        ({"longest_result": 0}, "longest_result is 0"),
        ({"scorer": None}, "needs scores, but scorer is None"),
        ({"scorer": 7}, "scorer is 7"),
        ({"policy": 7}, "policy is 7"),
        ({"large": lambda x: x, "scorer": None, "policy": small_only()}, "large is"),
        ({"budget": Budget(large_cost=1.0)}, "the large model has no price"),
        ({"budget": Budget(on_exhausted="ask")}, 'on_exhausted="ask" has a human asked'),
        ({"quotas": {"user": {"large_calls": 1}}}, "quotas are given, but no ledger"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_built(wrong, reported):
    large = wrong.pop("large", ScriptedToolModel(script=LARGE))
    given = {"scorer": ScriptedScorer(), "policy": threshold(0.5)} | wrong
    with pytest.raises(SettingsError, match=reported):
        TrimMiddleware(large, **given)


def test_its_docstring_names_every_setting_that_it_takes():
    assert all(f"``{name}``" in TrimMiddleware.__doc__ for name in TurnSettings.__annotations__)


def test_the_large_model_may_be_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    assert TrimMiddleware("openai:gpt-4.1", policy=small_only()).large.model_name == "gpt-4.1"


@pytest.mark.parametrize("writer", ["small", "large"])
def test_a_model_that_takes_no_tools_is_refused_before_any_is_called(writer):
    textual = ScriptedChatModel(script=["one"])
    rig = build(**{writer: textual})
    with pytest.raises(SettingsError, match=rf"the {writer} model, ScriptedChatModel, takes no tools"):
        rig.ask()
    assert rig.unasked


def test_an_agent_without_tools_takes_models_without():
    rig = build(
        ScriptedChatModel(script=["one"]), ScriptedChatModel(script=["ONE"]), {"one": 0.1}, tools=False
    )
    assert turns(rig.ask())[0].text == "ONE"


@pytest.mark.parametrize("messages", [[("user", " ")], [("user", "hm"), ("ai", "hm?")]])
def test_what_nobody_can_answer_is_refused_before_any_model_is_called(messages):
    rig = build()
    with pytest.raises(InputError):
        rig.agent.invoke({"messages": messages})
    assert rig.unasked


def test_a_model_that_reports_no_usage_is_refused():
    class Silent(ScriptedToolModel):
        def _generate(self, *given, **options):
            made = super()._generate(*given, **options)
            made.generations[0].message.usage_metadata = None
            return made

    with pytest.raises(ChatModelContractError, match="the small model's answer has no usage_metadata"):
        build(Silent(script=SMALL), on_small_error="large").ask()


# With what agents have besides


class Product(BaseModel):
    """The product."""

    value: int


@both_ways
def test_a_rejected_structured_answer_is_not_the_agents(asynchronously):
    wrong, right = '[tool_call] Product {"value": 252}', calling(("Product", {"value": 144}), by="l")
    rig = build(
        [calling(("Product", {"value": 252}), by="s")],
        [right],
        {wrong: 0.1},
        agent={"response_format": ToolStrategy(Product)},
    )
    result = rig.ask(asynchronously=asynchronously)
    assert result["structured_response"] == Product(value=144)
    assert turns(result)[0].tool_calls == right.tool_calls
    assert rig.small.calls[0]["tool_choice"] == rig.large.calls[0]["tool_choice"] == "any"
    assert result["trim"]["stopped"] == "finished"


def test_a_structured_answer_that_does_not_fit_is_the_models_failure():
    rig = build(
        ["not JSON"],
        ['{"value": 144}'],
        agent={"response_format": ProviderStrategy(Product)},
        on_small_error="large",
    )
    result = rig.ask()
    assert result["structured_response"] == Product(value=144)
    assert result["trim"]["usage"]["small"]["output_tokens"] == 3
    assert "StructuredOutputValidationError" in result["trim"]["notes"][0]


def test_a_human_is_asked_about_accepted_calls_only():
    approval = HumanInTheLoopMiddleware(interrupt_on={"multiply": True})
    rig = build(before=[approval], agent={"checkpointer": InMemorySaver()})
    thread = {"configurable": {"thread_id": "1"}}
    asked = rig.ask(config=thread)["__interrupt__"][0].value["action_requests"]
    assert [request["args"] for request in asked] == [{"a": 12, "b": 12}]
    assert rig.ran == []
    result = rig.agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), thread)
    assert rig.ran == [("multiply", 12, 12)]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert len(rig.small.calls) == 2
    assert len(rig.large.calls) == 1


def test_an_agent_that_another_middleware_sends_on_goes_on():
    class Insisting(AgentMiddleware):
        @hook_config(can_jump_to=["model"])
        def after_model(self, state, runtime):
            if len(turns(state)) < 3:
                return {"jump_to": "model", "messages": [HumanMessage("Are you sure?")]}
            return None

    rig = build(["one", "one", "one"], before=[Insisting()], scores={}, tools=False)
    result = rig.ask()
    assert result["trim"]["steps"] == {"small": 3, "large": 0}


def test_the_agents_own_name_is_on_the_turn_kept():
    (first, _) = turns(build(agent={"name": "clerk"}).ask())
    assert first.name == "clerk"


def test_a_turn_of_nothing_may_be_rejected():
    rig = build([AIMessage("")], ["LARGE answer"], {"[tool_none]": 0.0})
    assert turns(rig.ask())[0].text == "LARGE answer"
