"""Tests of `TurnSignals`: one score a turn from calls and results alone, by itself and in an agent."""

import asyncio

import pytest
from agent_rig import QUESTION, build, calling, multiply
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, PIIMiddleware, ToolRetryMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, RemoveMessage
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.tools import StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, ValidationError

from trim_graph import ScorableStep, SettingsError
from trim_graph.adapters import MinimumScorer, Scorer, ScorerError, TurnSignals
from trim_graph.adapters.base import ToolResult, Turn, TurnCall, read_scores
from trim_graph.agents import TrimMiddleware
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


calls = st.builds(
    TurnCall,
    name=st.sampled_from(["search", "query", ""]),
    args=st.dictionaries(st.text(max_size=2), json_values, max_size=2) | st.text(max_size=4),
    invalid=st.sampled_from([None, None, "no_json", "unknown_tool", "arguments"]),
)


results = st.builds(ToolResult, name=st.just("search"), status=st.sampled_from(["success", "error"]))


turn_texts = st.sampled_from(["", " \n", "I look it up.", '[tool_error] search "no"', "[tool_none]"])


some_turns = st.builds(
    Turn, results=st.lists(results, max_size=2), text=turn_texts, calls=st.lists(calls, max_size=2)
)


conversations = st.lists(st.none() | some_turns, max_size=6)


scores = st.none() | st.floats(0, 1)


def steps(turns):
    return [ScorableStep("whatever").as_turn(turn) for turn in turns]


def turn(*called, text="Hm.", failed=(), invalid=None):
    return Turn(
        results=[ToolResult(name="search", status="error" if one else "success") for one in failed],
        text=text,
        calls=[TurnCall(name=name, args=args, invalid=invalid) for name, args in called],
    )


def scored(*turns, **settings):
    return list(TurnSignals(**settings).score("q", steps(turns)).scores)


SEARCH = ("search", {"q": "Paris", "n": 1})


def test_it_is_a_scorer():
    assert isinstance(TurnSignals(), Scorer)


@pytest.mark.parametrize(
    ("shown", "score"),
    [
        (turn(SEARCH), 1.0),
        (turn(SEARCH, failed=[False]), 1.0),
        (turn(SEARCH, failed=[True]), 0.2),
        (turn(SEARCH, failed=[True, False]), 0.2),
        (turn(SEARCH, invalid="unknown_tool"), 0.0),
        (turn(SEARCH, invalid="arguments", failed=[True]), 0.0),
        (turn(text=" \n"), 0.0),
        (turn(SEARCH, text=""), 1.0),
        (None, 1.0),
    ],
)
def test_each_signal_has_its_score_and_the_lowest_holds(shown, score):
    assert scored(shown) == [score]


def test_a_failed_tool_says_nothing_of_the_large_models_turn():
    step = ScorableStep("whatever", "large").as_turn(turn(SEARCH, failed=[True]))
    assert TurnSignals().score("q", [step]).scores == [1.0]


def test_a_call_is_repeated_whatever_the_order_of_its_arguments():
    again = turn(("search", {"n": 1, "q": "Paris"}))
    other = turn(("search", {"n": 2, "q": "Paris"}), ("query", {"q": "Paris", "n": 1}))
    assert scored(turn(SEARCH), other, again, again) == [1.0, 1.0, 0.2, 0.2]
    assert scored(turn(SEARCH, SEARCH)) == [1.0]
    assert scored(turn(SEARCH), again, repeated_call=None) == [1.0, 1.0]


@given(conversations, scores, scores, scores, scores, st.floats(0, 1))
def test_every_turn_gets_one_of_the_scores_set(turns, tool_error, invalid, repeated, empty, otherwise):
    scorer = TurnSignals(
        tool_error=tool_error,
        invalid_call=invalid,
        repeated_call=repeated,
        empty=empty,
        otherwise=otherwise,
    )
    given_scores = read_scores(scorer.score("q", steps(turns)), len(turns)).scores
    assert set(given_scores) <= {tool_error, invalid, repeated, empty, otherwise}


@given(conversations, some_turns)
def test_a_later_turn_changes_no_earlier_score(turns, later):
    assert scored(*turns, later)[:-1] == scored(*turns)


@given(conversations, st.text())
def test_no_text_makes_or_hides_a_signal_of_calls_and_results(turns, text):
    written = [None if one is None else Turn(**{**one, "text": text}) for one in turns]
    assert scored(*turns, empty=None) == scored(*written, empty=None)


async def test_turn_signals_refuse_a_step_that_is_no_turn():
    with pytest.raises(ScorerError, match="step 1 is not an agent's turn"):
        await TurnSignals().ascore("q", [*steps([turn()]), ScorableStep("x")])


@pytest.mark.parametrize(
    "wrong", [{"tool_error": 1.5}, {"empty": float("nan")}, {"otherwise": None}, {"eror": 0}]
)
def test_settings_that_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TurnSignals(**wrong)


# In an agent: it escalates after a failed tool call and returns, and reads no text


both_ways = pytest.mark.parametrize("asynchronously", [False, True])


THREAD = {"configurable": {"thread_id": "1"}}


class Watching(TurnSignals):
    """Signals that keep the turns they were given."""

    def score(self, question, steps):
        self.__dict__.setdefault("given", []).append([step.turn for step in steps])
        return super().score(question, steps)


def writers(result):
    named = {"tiny": "small", "huge": "large"}
    return [named[one.response_metadata["model_name"]] for one in result["messages"] if one.type == "ai"]


def run(agent, question="How large is Paris?", config=None, *, asynchronously=False):
    given = {"messages": [("user", question)]}
    return asyncio.run(agent.ainvoke(given, config)) if asynchronously else agent.invoke(given, config)


def agent_of(small, large, tools, *before, scorer=None, **options):
    routing = TrimMiddleware(
        ScriptedToolModel(script=large, name="huge"), scorer or TurnSignals(), policy=threshold(0.5)
    )
    return create_agent(
        ScriptedToolModel(script=small, name="tiny"), tools, middleware=[*before, routing], **options
    )


def lookup(city: str, near: int = 1) -> str:
    """Looks a city up."""
    if city.startswith("Pari") and city != "Paris":
        raise ToolException("no such city")
    return f"{city} has 2102650 inhabitants"


look = StructuredTool.from_function(lookup, name="look", handle_tool_error=True)


@both_ways
def test_the_large_model_writes_after_a_failed_tool_and_the_small_one_after_that(asynchronously):
    small = [
        calling(("look", {"city": "Pariis"}), by="s0"),
        calling(("look", {"city": "Pari"}), by="s1"),
        calling(("look", {"city": "Lyon"}), by="s2"),
        "The end.",
    ]
    agent = agent_of(small, lambda messages: calling(("look", {"city": "Paris"}), by="l"), [look])
    result = run(agent, asynchronously=asynchronously)
    assert writers(result) == ["small", "large", "small", "small"]
    assert result["trim"]["scores"] == [1.0, 1.0, 1.0, 1.0]
    assert result["trim"]["decisions"] == {"accept": 3, "regenerate": 1}
    assert result["trim"]["tokens"]["scorer"] == 0


@both_ways
def test_a_tool_that_raises_ends_the_agent_unless_a_middleware_returns_its_error(asynchronously):
    def lookup(city: str) -> str:
        """Looks a city up."""
        if city != "Paris":
            raise ValueError("no such city")
        return f"{city} has 2102650 inhabitants"

    small = [calling(("look", {"city": "Pariis"}), by="s0"), "The end.", "The end."]
    large = [None, calling(("look", {"city": "Paris"}), by="l")]
    tools = [StructuredTool.from_function(lookup, name="look")]
    with pytest.raises(ValueError, match="no such city"):
        run(agent_of(small, large, tools), asynchronously=asynchronously)
    returned = ToolRetryMiddleware(max_retries=0, on_failure="continue")
    result = run(agent_of(small, large, tools, returned), asynchronously=asynchronously)
    assert writers(result) == ["small", "large", "small"]
    assert [one.status for one in result["messages"] if one.type == "tool"] == ["error", "success"]


class City(BaseModel):
    name: str
    inhabitants: int


def schema_tool():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return StructuredTool(name="look", description="Look.", args_schema=schema, func=lambda city: city)


def server_tool():
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {
        "type": "function",
        "function": {"name": "elsewhere", "description": "-", "parameters": parameters},
    }


@pytest.mark.parametrize(
    "tools", [[look], [schema_tool()], [look, server_tool()]], ids=["types", "json", "both"]
)
@pytest.mark.parametrize(
    ("draft", "why"),
    [
        (calling(("look", {"city": "Paris"}), by="s"), None),
        (calling(("look", {"city": ["Paris"]}), by="s"), "arguments"),
        (calling(("look", {}), by="s"), "arguments"),
        (calling(("lok", {"city": "Paris"}), by="s"), "unknown_tool"),
        (
            AIMessage("", invalid_tool_calls=[invalid_tool_call(name="look", args="{", id="s", error=None)]),
            "no_json",
        ),
    ],
)
def test_a_call_that_no_tool_can_take_goes_to_the_large_model(draft, why, tools):
    scorer = Watching()
    agent = agent_of(
        [draft, "The end."], [calling(("look", {"city": "Paris"}), by="l"), "-"], tools, scorer=scorer
    )
    assert writers(run(agent)) == ["small" if why is None else "large", "small"]
    assert [call["invalid"] for call in scorer.given[0][0]["calls"]] == [why]


def test_arguments_that_the_tool_itself_converts_are_valid():
    small = [calling(("look", {"city": "Paris", "near": "2", "why": "-"}), by="s"), "The end."]
    assert writers(run(agent_of(small, ["-"], [look]))) == ["small", "small"]


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:1/x"}, {"type": "nonsense"}, None])
def test_a_schema_that_says_nothing_makes_no_call_invalid(schema):
    class Offering(AgentMiddleware):
        """Offers the tool as a provider's dictionary."""

        def wrap_model_call(self, request, handler):
            offered = {"name": "look", "description": "-", "input_schema": schema}
            return handler(request.override(tools=[offered]))

    scorer = Watching()
    small = [calling(("look", {"city": "Paris"}), by="s"), "The end."]
    assert writers(run(agent_of(small, ["-"], [look], Offering(), scorer=scorer))) == ["small", "small"]
    assert scorer.given[0][0]["calls"][0]["invalid"] is None


@pytest.mark.parametrize(("args", "writer"), [({"name": "Paris", "inhabitants": 2}, "small"), ({}, "large")])
def test_calls_of_structured_output_are_known_and_checked(args, writer):
    small = [calling(("City", args), by="s")]
    large = [calling(("City", {"name": "Paris", "inhabitants": 2}), by="l")]
    result = run(agent_of(small, large, [look], response_format=ToolStrategy(City)))
    assert writers(result) == [writer]
    assert result["structured_response"] == City(name="Paris", inhabitants=2)


def test_a_repeated_call_and_an_empty_turn_go_to_the_large_model():
    again = [multiply(1, 2, by=f"s{index}") for index in range(2)]
    large = [multiply(0, 0, by="l0"), multiply(3, 4, by="l1"), "-", "large end"]
    rig = build([*again, multiply(5, 6, by="s2"), AIMessage(" ")], large, scorer=TurnSignals())
    result = rig.ask()
    assert writers(result) == ["small", "large", "small", "large"]
    assert rig.ran == [("multiply", 1, 2), ("multiply", 3, 4), ("multiply", 5, 6)]
    assert result["messages"][-1].text == "large end"


def test_calls_of_an_earlier_question_are_not_repeated():
    rig = build(
        [multiply(1, 2, by="s"), "The end."], scorer=TurnSignals(), agent={"checkpointer": InMemorySaver()}
    )
    for _ in range(2):
        assert writers(rig.ask(config=THREAD))[-2:] == ["small", "small"]


def test_what_a_text_says_is_no_signal():
    said = '[tool_error] look "no such city"\n[tool_call] look {"city": "Paris"}\n[tool_none]'
    small = [calling(("look", {"city": "Paris"}), text=said, by="s"), said]
    result = run(agent_of(small, ["-", "-"], [look]))
    assert writers(result) == ["small", "small"]


# With another scorer


def test_the_lowest_of_signals_and_another_scorer_decides():
    unlikely = '[tool_call] look {"city": "Lyon"}'
    scorer = MinimumScorer(TurnSignals(), ScriptedScorer({unlikely: 0.1}))
    small = [calling(("look", {"city": "Lyon"}), by="s0"), AIMessage(""), "The end."]
    large = [calling(("look", {"city": "Paris"}), by="l0"), calling(("look", {"city": "Rome"}), by="l1"), "-"]
    result = run(agent_of(small, large, [look], scorer=scorer))
    assert writers(result) == ["large", "large", "small"]
    assert result["trim"]["tokens"]["scorer"] > 0


@pytest.mark.parametrize("scorer", [TurnSignals(), MinimumScorer(ScriptedScorer(), TurnSignals())])
def test_a_graph_without_turns_refuses_it_before_any_call(scorer):
    model = ScriptedChatModel(script=["one"])
    with pytest.raises(SettingsError, match="TurnSignals rates an agent's turns"):
        create_trim_graph(model, model, scorer, policy=threshold(0.5))


# Beside other middlewares


@both_ways
def test_turns_as_data_are_as_the_models_are_sent_them_and_never_stored(asynchronously):
    @tool
    def mail(address: str) -> str:
        """Mail."""
        return "sent"

    class InCalls(AgentMiddleware):
        """Redacts arguments of calls in the state."""

        def after_model(self, state, runtime):
            last = state["messages"][-1]
            calls = [{**call, "args": {"address": "[REDACTED]"}} for call in last.tool_calls]
            return {"messages": [last.model_copy(update={"tool_calls": calls})]}

    scorer = Watching()
    small = [calling(("mail", {"address": "eve@example.com"}), text="To bob@example.com.", by="s"), "Done."]
    redacting = PIIMiddleware("email", strategy="redact", apply_to_output=True, apply_to_input=True)
    agent = agent_of(small, ["-"], [mail], redacting, InCalls(), scorer=scorer, checkpointer=InMemorySaver())
    run(agent, config=THREAD, asynchronously=asynchronously)
    (first,), (before, _) = scorer.given
    assert first["calls"][0]["args"] == {"address": "eve@example.com"}  # its own words, as it wrote them
    assert before["text"] == "To [REDACTED_EMAIL]."
    assert before["calls"][0]["args"] == {"address": "[REDACTED]"}
    for snapshot in agent.get_state_history(THREAD):
        kept = str({name: value for name, value in snapshot.values.items() if name.startswith("trim")})
        assert "eve@example.com" not in kept
        assert "'turn" not in kept


def test_a_turn_that_was_removed_shows_no_signal():
    class Forgetting(AgentMiddleware):
        def before_model(self, state, runtime):
            gone = [one for one in state["messages"] if one.type in ("ai", "tool")]
            return {"messages": [RemoveMessage(one.id) for one in gone]}

    def script(messages):
        return "The end." if len(scorer.given) else multiply(1, 2, by="s")

    scorer = Watching()
    scorer.__dict__["given"] = []
    rig = build(script, scorer=scorer, before=[Forgetting()])
    result = rig.ask(QUESTION)
    assert scorer.given[-1][0] is None
    assert result["trim"]["scores"] == [1.0, 1.0]
