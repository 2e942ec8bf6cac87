import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from trim_graph.adapters.protocols import ChatModelContractError
from trim_graph.adapters.replies import read_reply

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
    ],
)
def test_the_stop_reason_tells_the_end_of_a_step_from_the_end_of_the_solution(metadata, end):
    assert read_reply(answer(**metadata), ("\n\n",), "small").end == end


def test_a_stop_string_kept_in_the_text_is_not_doubled():
    assert read_reply(answer("step\n\n", stop_reason="\n\n"), ("\n\n",), "small").text == "step"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("text", "returned str"),
        (AIMessage("x", response_metadata={"stop_reason": None}), "usage_metadata"),
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
    usage=st.tuples(st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 99)),
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
