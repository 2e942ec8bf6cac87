"""An agent's turn as data: whatever models, tools and results hold, it can be made."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call

from trim_graph.agents.turn_data import offered_tools, turn_data

words = st.sampled_from(
    ["type", "properties", "required", "object", "string", "integer", "a", "$ref", "#/a", "("]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
schemas = json_values | st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(words, st.fixed_dictionaries({"type": words}))}
)
arguments = st.dictionaries(words, json_values, max_size=3)
names = st.sampled_from(["look", "query"])
forms = st.sampled_from(
    [
        lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}},
        lambda name, schema: {"type": "function", "name": name, "parameters": schema},
        lambda name, schema: {"name": name, "input_schema": schema},
        lambda name, schema: {"type": "web_search"},
        lambda name, schema: {"function": schema},
    ]
)


@given(
    st.lists(st.tuples(forms, names, schemas), max_size=3),
    st.lists(st.tuples(names, arguments), max_size=3),
    st.text(max_size=5),
    st.booleans(),
)
def test_any_tools_and_calls_give_a_turn(tools, called, text, broken):
    offered = [make(name, schema) for make, name, schema in tools]
    message = AIMessage(
        text,
        tool_calls=[tool_call(name=name, args=args, id="1") for name, args in called],
        invalid_tool_calls=[invalid_tool_call(name=None, args=None, id=None, error=None)] if broken else [],
    )
    results = [
        ToolMessage("x", tool_call_id="1", status="error"),
        ToolMessage("x", tool_call_id="2", name="look"),
    ]
    known = offered_tools(SimpleNamespace(tools=offered, response_format=None))
    turn = turn_data(message, results, known)
    assert [(call["name"], call["args"]) for call in turn["calls"][: len(called)]] == called
    for call in turn["calls"][: len(called)]:
        assert (call["invalid"] == "unknown_tool") == (call["name"] not in known)
        assert call["invalid"] in (None, "unknown_tool", "arguments")
    assert [call["invalid"] for call in turn["calls"][len(called) :]] == ["no_json"] * broken
    assert turn["results"] == [{"name": "", "status": "error"}, {"name": "look", "status": "success"}]
    assert turn["text"] == text


@given(arguments)
def test_arguments_are_checked_by_their_json_schema(args):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    offered = [{"name": "look", "input_schema": schema}]
    known = offered_tools(SimpleNamespace(tools=offered, response_format=None))
    (call,) = turn_data(AIMessage("", tool_calls=[tool_call(name="look", args=args, id="1")]), [], known)[
        "calls"
    ]
    fits = isinstance(args.get("a"), int) and not isinstance(args.get("a"), bool)
    assert call["invalid"] == (None if fits else "arguments")
