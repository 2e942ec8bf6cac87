from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from trim_graph.adapters.responses import classify, provider_reason, read_reply, read_turn
from trim_graph.errors import ChatModelContractError, ModelServerError

USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


def answer(text: str = "step", **metadata) -> AIMessage:
    return AIMessage(text, usage_metadata=USAGE, response_metadata=metadata)


@pytest.mark.parametrize(
    ("metadata", "end"),
    [
        ({"finish_reason": "stop", "stop_reason": None}, "eos"),
        ({"finish_reason": "stop", "stop_reason": 151645}, "eos"),
        ({"finish_reason": "stop", "stop_reason": "\n\n"}, "delimiter"),
        ({"finish_reason": "stop", "stop_reason": "<|im_end|>"}, "eos"),
        ({"finish_reason": "length", "stop_reason": None}, "length"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": 2, "stop_reason": None}, "length"),
        ({"finish_reason": None, "stop_reason": None}, "eos"),
    ],
)
def test_the_stop_reason_distinguishes_the_end_of_a_step_from_that_of_the_solution(metadata, end):
    assert read_reply(answer(**metadata), ("\n\n",), "small").end == end


def test_a_stop_string_kept_in_the_text_is_not_doubled():
    assert read_reply(answer("step\n\n", stop_reason="\n\n"), ("\n\n",), "small").text == "step"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("text", "returned str"),
        (AIMessage("x", response_metadata={"stop_reason": None}), "usage_metadata"),
        (AIMessage("x", usage_metadata={**USAGE, "output_tokens": 0}), "has text, but .* output_tokens=0"),
        (answer(finish_reason="stop"), "stop_reason"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_refused_with_the_reason(message, reason):
    with pytest.raises(ChatModelContractError, match=reason) as raised:
        read_reply(message, ("\n\n",), "large")
    assert "the large model" in str(raised.value)


@given(
    text=st.text(),
    stop=st.sampled_from([None, "\n\n", 2, "other"]),
    finish=st.sampled_from(["stop", "length", None]),
    usage=st.tuples(st.integers(99, 9999), st.integers(1, 9999), st.integers(0, 99)),
)
def test_usage_and_text_are_read_as_they_are(text, stop, finish, usage):
    read, written, cached = usage
    message = AIMessage(
        text,
        usage_metadata={
            "input_tokens": read,
            "output_tokens": written,
            "total_tokens": read + written,
            "input_token_details": {"cache_read": cached},
        },
        response_metadata={"stop_reason": stop, "finish_reason": finish, "mean_token_probability": 0.5},
    )
    reply = read_reply(message, ("\n\n",), "small")
    assert (reply.input_tokens, reply.output_tokens, reply.cached_tokens) == usage
    assert reply.text == (text.removesuffix("\n\n") if reply.end == "delimiter" else text)
    assert reply.mean_token_probability == 0.5


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "refusal", "error", "abort", "tool_calls"])
def test_a_step_that_a_filter_or_a_server_ended_is_a_failure_with_its_name(reason):
    with pytest.raises(ModelServerError, match=f"small model's answer .*{reason}"):
        read_reply(answer(finish_reason=reason, stop_reason=None), ("\n\n",), "small")


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("length", None),
        ("max_tokens", None),
        ("model_context_window_exceeded", None),
        ("repetition", "repeated itself"),
        ("eos_but_new", "unknown reason, 'eos_but_new'"),
    ],
)
def test_an_answer_that_was_cut_off_or_ended_for_an_unknown_reason_is_not_finished(reason, note):
    reply = read_reply(answer(finish_reason=reason, stop_reason=None), ("\n\n",), "small")
    assert reply.end == "length"
    assert [note in given for given in reply.notes] == ([] if note is None else [True])


def test_tokens_that_are_only_bounded_are_noted():
    reply = read_reply(answer(finish_reason="stop", stop_reason=None, usage_upper_bound=True), (), "large")
    assert "server of the large model does not report usage" in reply.notes[0]


def turn(text="Done.", *, tool=False, **metadata):
    calls = [{"name": "f", "args": {}, "id": "1"}] if tool else []
    return AIMessage(text, tool_calls=calls, usage_metadata=USAGE, response_metadata=metadata)


CUT = [
    {"finish_reason": "length"},  # OpenAI, Mistral
    {"stop_reason": "max_tokens"},  # Anthropic
    {"finish_reason": "MAX_TOKENS"},  # Google, Cohere
    {"stopReason": "max_tokens"},  # Bedrock
    {"done_reason": "length"},  # Ollama
    {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},  # OpenAI responses
    {"finish_reason": "model_length"},  # Mistral
    {"stop_reason": "pause_turn"},  # Anthropic
]
WHOLE = [
    {"finish_reason": "stop"},
    {"finish_reason": "tool_calls"},
    {"stop_reason": "end_turn"},
    {"stop_reason": "tool_use"},
    {"stopReason": "tool_use"},
    {"finish_reason": "STOP"},
    {"finish_reason": "COMPLETE"},
    {"status": "completed", "incomplete_details": None},
    {"done_reason": "stop"},
]


@pytest.mark.parametrize("metadata", CUT, ids=str)
@pytest.mark.parametrize("tool", [False, True])
def test_a_turn_that_was_cut_is_known_by_every_providers_name_for_it(metadata, tool):
    assert read_turn(turn(tool=tool, **metadata), "small", None, last=False, max_tokens=100).end == "length"


@pytest.mark.parametrize("metadata", WHOLE, ids=str)
def test_a_turn_that_has_ended_is_whole_however_many_tokens_it_used(metadata):
    for tool, end in ((False, "eos"), (True, "delimiter")):
        assert read_turn(turn(tool=tool, **metadata), "small", None, last=False, max_tokens=3).end == end


@pytest.mark.parametrize("metadata", [{}, {"finish_reason": "brand_new"}], ids=str)
def test_an_unknown_reason_is_a_cut_where_all_tokens_were_used(metadata):
    read = [read_turn(turn(tool=True, **metadata), "small", None, last=False, max_tokens=n) for n in (3, 4)]
    assert [reply.end for reply in read] == ["length", "delimiter"]
    for reply in read:
        assert bool(reply.notes) is bool(metadata)
    with pytest.raises(ModelServerError, match="brand_new"):
        read_turn(turn("", finish_reason="brand_new"), "small", None, last=False, max_tokens=3)


@pytest.mark.parametrize("tool", [False, True])
@pytest.mark.parametrize(
    "metadata",
    [
        {"finish_reason": "content_filter"},
        {"stop_reason": "refusal"},
        {"finish_reason": "MALFORMED_FUNCTION_CALL"},
    ],
    ids=str,
)
def test_a_turn_that_was_refused_is_a_failure_with_its_name_and_its_cost(metadata, tool):
    with pytest.raises(ModelServerError, match=next(iter(metadata.values())).lower()) as raised:
        read_turn(turn("I", tool=tool, **metadata), "small", None, last=False, max_tokens=100)
    assert raised.value.attempts["output_tokens"] == 3


@given(st.text(max_size=20))
def test_a_name_is_ended_only_if_the_table_says_so(name):
    known = {"stop", "eos", "word", "eos_token", "end_turn", "stop_sequence", "complete", "completed"}
    assert (classify(name) == "ended") is (name.lower() in known)


@given(
    st.dictionaries(
        st.sampled_from(["finish_reason", "stop_reason", "status", "incomplete_details"]),
        st.none() | st.integers() | st.text(max_size=5),
    )
)
def test_whatever_a_provider_puts_there_is_a_reason_or_none(metadata):
    assert isinstance(provider_reason(metadata), str | None)


def reported(**numbers) -> AIMessage:
    """An answer whose usage nobody has checked, as an adapter may set it."""
    message = answer(stop_reason=None)
    message.usage_metadata = {**USAGE, **numbers}
    return message


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"output_tokens": -3}, "output_tokens=-3"),
        ({"input_tokens": 2.5}, "input_tokens=2.5"),
        ({"output_tokens": "3"}, "output_tokens='3'"),
        ({"output_tokens": True}, "output_tokens=True"),
        ({"input_tokens": None}, "input_tokens=None"),
        ({"input_token_details": {"cache_read": -1}}, "cache_read=-1"),
        ({"input_token_details": {"cache_read": 8}}, "cache_read=8, but input_tokens=7"),
        ({"output_token_details": {"reasoning": "all"}}, "reasoning='all'"),
    ],
)
@pytest.mark.parametrize("turn", [False, True], ids=["step", "turn"])
def test_a_number_that_cannot_be_true_is_refused_by_name(numbers, reason, turn):
    read = partial(read_turn, model=None, last=False, max_tokens=9) if turn else partial(read_reply, stops=())
    with pytest.raises(ChatModelContractError, match=f"the small model reports .*{reason}"):
        read(reported(**numbers), writer="small")


@pytest.mark.parametrize("name", ["reasoning", "flex_reasoning"])
def test_tokens_of_reasoning_are_read(name):
    assert read_reply(reported(output_token_details={name: 2}), (), "small").reasoning_tokens == 2


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.none(), st.integers(-9, 99), st.floats(), st.text(max_size=2), st.booleans())
            for name in USAGE
        },
    )
)
def test_no_number_is_read_that_is_none(numbers):
    message = answer(stop_reason=None)
    message.usage_metadata = numbers
    try:
        reply = read_reply(message, (), "small")
    except ChatModelContractError:
        return
    assert reply.output_tokens == numbers["output_tokens"] > 0
    assert reply.input_tokens == numbers["input_tokens"] >= 0
