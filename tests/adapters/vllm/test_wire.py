"""Answers that no server should give, and some do: no text is lost, nothing counts as zero."""

import gzip
import itertools
import json
import math

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.recorded_server import RecordedServer, chat_answer, chat_events, failed
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.wire import Answer, AnswerError
from trim_graph.errors import ChatModelContractError, ModelServerError

U = {"prompt_tokens": 10, "completion_tokens": 5}
MOST = 16
"""max_tokens of every call here."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)


_names = iter(range(1_000_000))


@pytest.fixture
def ask(monkeypatch):
    """Asks a model whose server answers as scripted; a stream where there is a time limit."""

    def asked(reply, *, stream: bool = False, **options):
        server = RecordedServer(reply)
        monkeypatch.setattr(client, "new_client", server.client)
        model = ChatVLLM(
            model="m",
            base_url=f"http://odd{next(_names)}.test",
            max_retries=1,
            logprobs=True,
            max_tokens=MOST,
        )
        return model.invoke("q", timeout=20 if stream else None, **options)

    return asked


def document(text="hi", *, finish="stop", usage=U, **choice):
    return {
        "model": "m",
        "choices": [
            {"index": 0, "message": {"content": text}, "finish_reason": finish, "stop_reason": None, **choice}
        ],
        **({"usage": usage} if usage is not None else {}),
    }


def event(text="", *, finish=None, usage=None, **choice) -> bytes:
    made = {
        "model": "m",
        "choices": [
            {"index": 0, "delta": {"content": text}, "finish_reason": finish, "stop_reason": None, **choice}
        ],
    }
    return b"data: " + json.dumps(made | ({"usage": usage} if usage else {})).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
LAST = event("you", finish="stop", usage=U)


def logprob(value):
    return {"content": [{"token": "hi", "logprob": value, "top_logprobs": []}]}


def body(content: bytes, status: int = 200, **headers):
    return httpx.Response(status, content=content, headers={"content-type": "application/json", **headers})


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces):
        self._pieces = pieces

    async def __aiter__(self):
        for piece in self._pieces:
            yield piece


def stream(*pieces: bytes):
    headers = {"content-type": "text/event-stream"}
    return lambda request: httpx.Response(200, headers=headers, stream=_Pieces(pieces))


BOXES = "\u00c5ngstr\u00f6m \u65e5\u672c \U0001f642 x"
_PLAIN = event(BOXES).replace(json.dumps(BOXES).encode(), json.dumps(BOXES, ensure_ascii=False).encode())

KEPT = {
    "a document": (False, document(), "hi"),
    "null content": (False, document(None), ""),
    "content in parts": (
        False,
        document([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]),
        "hi",
    ),
    "cut off": (False, document(finish="length"), "hi"),
    "a token id as the reason": (False, document(stop_reason=151645), "hi"),
    "a stop string nobody asked for": (False, document(stop_reason="WEIRD"), "hi"),
    "no model": (False, document() | {"model": None}, "hi"),
    "one choice of another index": (False, document(index=3), "hi"),
    "two choices": (
        False,
        document() | {"choices": document("SECOND", index=1)["choices"] + document("FIRST")["choices"]},
        "FIRST",
    ),
    "more text than tokens": (False, document("w " * 5000), "w " * 5000),
    "compressed": (
        False,
        body(gzip.compress(json.dumps(document()).encode()), **{"content-encoding": "gzip"}),
        "hi",
    ),
    "a lone surrogate": (False, body(json.dumps(document("hi \ud800")).encode()), "hi \ud800"),
    "bytes that are no UTF-8": (
        False,
        body(json.dumps(document("QQ")).encode().replace(b"QQ", b"a\xff")),
        "a\ufffd",
    ),
    "a stream": (True, stream(event("hi "), LAST, DONE), "hi you"),
    "comments": (
        True,
        stream(b": ping\n\n", event("hi "), b"event: x\nid: 1\nretry: 5\n", LAST, DONE),
        "hi you",
    ),
    "carriage returns and line feeds": (
        True,
        stream((event("hi ") + LAST + DONE).replace(b"\n", b"\r\n")),
        "hi you",
    ),
    "carriage returns": (True, stream((event("hi ") + LAST + DONE).replace(b"\n", b"\r")), "hi you"),
    "byte by byte": (True, stream(*(bytes([b]) for b in event(BOXES) + LAST + DONE)), BOXES + "you"),
    "halves of characters": (True, stream(*(bytes([b]) for b in _PLAIN + LAST + DONE)), BOXES + "you"),
    "a byte order mark": (True, stream(b"\xef\xbb\xbf" + event("hi "), LAST, DONE), "hi you"),
    "no space behind data": (True, stream(event("hi ").replace(b"data: ", b"data:"), LAST, DONE), "hi you"),
    "data in several lines": (
        True,
        stream(LAST.replace(b'"choices": [', b'\ndata: "choices": [\ndata: '), DONE),
        "you",
    ),
    "something behind the end": (True, stream(LAST, DONE, event(" EVIL", finish="stop")), "you"),
    "text behind the finish": (True, stream(LAST, event(" more", usage=U), DONE), "you more"),
    "no [DONE]": (True, stream(event("hi "), LAST), "hi you"),
    "usage in an event of its own": (
        True,
        stream(
            event("hi "),
            event("you", finish="stop"),
            b'data: {"choices": [], "usage": ' + json.dumps(U).encode() + b"}\n\n",
            DONE,
        ),
        "hi you",
    ),
    "an error that is null": (
        True,
        stream(LAST.replace(b'{"model"', b'{"error": null, "model"'), DONE),
        "you",
    ),
    "a document instead of a stream": (True, document(), "hi"),
    "null content in a stream": (True, stream(event(None), LAST, DONE), "you"),
    "an index that is no number": (
        True,
        stream(event("hi "), LAST.replace(b'"index": 0', b'"index": NaN'), DONE),
        "hi you",
    ),
    "empty data": (True, stream(b"data:\n\n", LAST, DONE), "you"),
    "a line separator": (
        True,
        stream(event("a\u2028b").replace(b"\\u2028", "\u2028".encode()), LAST, DONE),
        "a\u2028byou",
    ),
    "much in one event": (
        True,
        stream(event("y" * 2_000_000, finish="stop", usage=U), DONE),
        "y" * 2_000_000,
    ),
}


@pytest.mark.parametrize(("streamed", "reply", "text"), KEPT.values(), ids=KEPT)
def test_no_text_is_lost(ask, streamed, reply, text):
    answer = ask(reply, stream=streamed)
    assert answer.content == text
    assert answer.usage_metadata["input_tokens"] == 10
    assert answer.usage_metadata["output_tokens"] == 5
    assert "usage_upper_bound" not in answer.response_metadata


REFUSED = {
    "no choices": (False, document() | {"choices": []}, "broke off", 0),
    "no end": (False, document(finish=None), "broke off", 0),
    "aborted": (False, document(finish="abort"), "broke off", 0),
    "a tool call": (
        False,
        document(message={"content": None, "tool_calls": [{"id": "1"}]}, usage=None),
        "tool parser",
        1,
    ),
    "content that is no text": (False, document([{"type": "image"}], usage=None), "content is no text", 1),
    "a filter": (False, document("", finish="content_filter"), "content_filter", 0),
    "a refusal": (False, document("I", finish="REFUSAL"), "REFUSAL", 0),
    "usage in strings": (
        False,
        document(usage={"prompt_tokens": "10", "completion_tokens": "5"}),
        "prompt_tokens='10'",
        1,
    ),
    "negative usage": (
        False,
        document(usage={"prompt_tokens": 1, "completion_tokens": -5}),
        "completion_tokens=-5",
        1,
    ),
    "usage in fractions": (
        False,
        document(usage={"prompt_tokens": 10.0, "completion_tokens": 5.5}),
        "completion_tokens=5.5",
        1,
    ),
    "usage that is true": (
        False,
        document(usage={"prompt_tokens": True, "completion_tokens": 5}),
        "prompt_tokens=True",
        1,
    ),
    "infinite usage": (
        False,
        body(json.dumps(document(usage={"prompt_tokens": 1, "completion_tokens": math.inf})).encode()),
        "completion_tokens=inf",
        1,
    ),
    "text without tokens": (
        False,
        document(usage={"prompt_tokens": 10, "completion_tokens": 0}),
        "0 completion_tokens",
        1,
    ),
    "text without tokens in a stream": (
        True,
        stream(event("hi", finish="stop", usage={"prompt_tokens": 10, "completion_tokens": 0}), DONE),
        "0 completion_tokens",
        1,
    ),
    "text without tokens that breaks off": (
        True,
        stream(event("hi", usage={"prompt_tokens": 10, "completion_tokens": 0})),
        "broke off",
        2,
    ),
    "text after which usage cannot be true": (
        True,
        stream(event("hi ", usage=U), event("you", usage={"prompt_tokens": 10, "completion_tokens": -1})),
        "completion_tokens=-1",
        1,
    ),
    "usage that is no mapping": (False, document(usage=[1]), "no completion", 1),
    "an error with status 200": (
        False,
        {"error": {"message": "context too long", "code": 400}},
        "400: context too long",
        0,
    ),
    "an error object with status 200": (
        False,
        {"object": "error", "message": "bad", "code": "400"},
        "400: bad",
        0,
    ),
    "an error without a code": (False, {"error": "out of memory"}, "500: out of memory", 2),
    "a redirection": (False, body(b"", 307, location="http://127.0.0.1:9/"), "answered 307", 0),
    "nothing": (False, body(b"", 204), "answered 204", 0),
    "too many requests": (False, failed(429), "answered 429", 0),
    "unavailable": (False, body(b"<html>" + b"x" * 5000, 503), "answered 503", 0),
    "a gateway's time-out": (False, body(b"<html>", 504), "answered 504", 2),
    "a gateway's broken connection": (False, body(b"", 502), "answered 502", 2),
    "a page": (False, body(b"<html>login</html>"), "not a JSON object", 1),
    "a list": (False, body(b"[1,2]"), "not a JSON object", 1),
    "deep nesting": (
        False,
        body(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "not a JSON object",
        1,
    ),
    "a stream cut off": (True, stream(event("hi ")), "broke off", 2),
    "an error event": (
        True,
        stream(event("hi "), b'data: {"error": {"message": "oom", "code": 500}}\n\n'),
        "500: oom",
        2,
    ),
    "a refusal in a stream": (
        True,
        stream(event("hi "), b'data: {"error": {"message": "bad", "code": 400}}\n\n'),
        "400: bad",
        1,
    ),
    "an aborted stream": (True, stream(event("hi", finish="abort", usage=U), DONE), "broke off", 0),
    "a filter in a stream": (
        True,
        stream(event("hi", finish="content_filter", usage=U), DONE),
        "content_filter",
        0,
    ),
}


@pytest.mark.parametrize(("streamed", "reply", "said", "unknown"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_an_error_that_says_why_and_what_it_may_have_cost(
    ask, streamed, reply, said, unknown
):
    with pytest.raises(ModelServerError) as raised:
        ask(reply, stream=streamed)
    assert said in str(raised.value)
    assert raised.value.attempts["unknown"] == unknown
    assert raised.value.attempts.get("unknown_tokens", 0) == unknown * MOST


def test_compression_that_is_broken(ask):
    with pytest.raises(ModelServerError, match="cannot be decoded"):
        ask(lambda request: body(b"\x1f\x8bxxxx", **{"content-encoding": "gzip"}))


@pytest.mark.parametrize("stream_it", [False, True])
def test_tokens_that_nobody_reports_are_charged_in_full(ask, stream_it):
    reply = stream(event("hi "), event("you", finish="stop"), DONE) if stream_it else document(usage=None)
    answer = ask(reply, stream=stream_it)
    assert answer.usage_metadata["output_tokens"] == MOST
    assert answer.usage_metadata["input_tokens"] >= len("q")
    assert answer.response_metadata["usage_upper_bound"] is True


def test_tokens_of_a_stream_left_early_are_charged_in_full_unless_they_came_with_the_text(ask):
    silent = stream(event("One"), event(" two"), event(" three", finish="stop", usage=U), DONE)
    answer = ask(silent, stop_when=lambda text: text.endswith("two"))
    assert (answer.content, answer.usage_metadata["output_tokens"]) == ("One two", MOST)
    stale = stream(event("One", usage={"prompt_tokens": 10, "completion_tokens": 1}), event(" two"), DONE)
    answer = ask(stale, stop_when=lambda text: text.endswith("two"))
    assert answer.usage_metadata["output_tokens"] == MOST
    current = stream(event("One"), event(" two", usage={"prompt_tokens": 10, "completion_tokens": 2}), DONE)
    answer = ask(current, stop_when=lambda text: text.endswith("two"))
    assert (answer.usage_metadata["output_tokens"], "usage_upper_bound" in answer.response_metadata) == (
        2,
        False,
    )


@pytest.mark.parametrize("value", [math.nan, 1e4, 3.0, None, "-1"])
def test_a_log_probability_that_cannot_be_true_is_not_reported(ask, value):
    answer = ask(body(json.dumps(document(logprobs=logprob(value))).encode()))
    assert answer.content == "hi"
    assert "mean_token_probability" not in answer.response_metadata


def test_one_bad_log_probability_spoils_the_mean_of_all(ask):
    bad = event(" b", logprobs=logprob(None))
    answer = ask(stream(event("a", logprobs=logprob(-0.5)), bad, LAST, DONE), stream=True)
    assert answer.content == "a byou"
    assert "mean_token_probability" not in answer.response_metadata
    answer = ask(document(logprobs={"tokens": []}))
    assert answer.content == "hi"


def test_a_log_probability_is_rounded_to_at_most_zero(ask):
    answer = ask(document(logprobs=logprob(1e-7)))
    assert answer.response_metadata["mean_token_probability"] == 1.0


class TestAttempts:
    """The grant of a call covers all its attempts."""

    @pytest.mark.parametrize("stream_it", [False, True])
    def test_what_a_failed_attempt_may_have_used_is_taken_off_before_the_next(self, monkeypatch, stream_it):
        server = RecordedServer(failed(504), httpx.ConnectError("refused"), chat_answer("so", spent=(30, 4)))
        if stream_it:
            events = "".join(f"data: {json.dumps(e)}\n\n" for e in chat_events("so"))
            server.script[-1] = httpx.Response(200, text=events)
        monkeypatch.setattr(client, "new_client", server.client)
        model = ChatVLLM(model="m", base_url=f"http://odd{next(_names)}.test", max_tokens=60)
        seen = []

        def left(lost):
            seen.append(dict(lost))
            return 100 - lost["output_tokens"] - lost.get("unknown_tokens", 0)

        answer = model.invoke("q", retry_tokens=left, timeout=20 if stream_it else None)
        asked = [sent["max_tokens"] for _, sent in server.generations]
        assert asked == [60, 40, 40]  # no connection costs nothing
        assert seen[0] == {
            "count": 1,
            "input_tokens": 0,
            "output_tokens": 0,
            "unknown": 1,
            "unknown_tokens": 60,
        }
        assert answer.response_metadata["failed_attempts"]["unknown_tokens"] == 60

    def test_where_nothing_is_left_there_is_no_other_attempt(self, monkeypatch):
        server = RecordedServer(failed(504), chat_answer("so"))
        monkeypatch.setattr(client, "new_client", server.client)
        model = ChatVLLM(model="m", base_url=f"http://odd{next(_names)}.test", max_tokens=60)
        with pytest.raises(
            ModelServerError, match=r"answered 504: no; .* leaves no tokens for another attempt"
        ):
            model.invoke("q", retry_tokens=lambda lost: 60 - lost.get("unknown_tokens", 0))
        assert len(server.generations) == 1

    def test_a_time_limit_that_ends_a_later_attempt_counts_those_before_it(self, monkeypatch):
        from tests.adapters.recorded_server import Broken

        hangs = httpx.Response(200, stream=Broken([], hangs=True))
        server = RecordedServer(failed(504), hangs)
        monkeypatch.setattr(client, "new_client", server.client)
        model = ChatVLLM(model="m", base_url=f"http://odd{next(_names)}.test", max_tokens=60)
        with pytest.raises(TimeoutError) as raised:
            model.invoke("q", timeout=0.2)
        assert raised.value.attempts["unknown_tokens"] == 120


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    ("usage",),
    ("usage", "prompt_tokens"),
    ("usage", "completion_tokens"),
    ("usage", "prompt_tokens_details"),
    ("model",),
    ("choices",),
    ("choices", 0),
    ("choices", 0, "message"),
    ("choices", 0, "message", "content"),
    ("choices", 0, "finish_reason"),
    ("choices", 0, "stop_reason"),
    ("choices", 0, "logprobs"),
    ("choices", 0, "index"),
]


def put(made, path, value):
    made = json.loads(json.dumps(made))
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


@given(path=st.sampled_from(PATHS), value=json_values)
@settings(max_examples=400)
def test_whatever_stands_in_a_field_the_answer_is_read_or_refused(path, value):
    answer = Answer()
    try:
        answer.add(put(document(logprobs=logprob(-0.1)), path, value))
    except (AnswerError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        return  # what a call turns into a ModelServerError
    assert isinstance(answer.text, str)
    assert answer.usage_known in (True, False)
    assert answer.input_tokens >= 0
    assert answer.output_tokens >= 0
    probability = answer.mean_token_probability
    assert probability is None or 0 <= probability <= 1
    if answer.text and path[0] != "usage":
        assert answer.usage_known


@given(
    texts=st.lists(st.text(max_size=8), min_size=1, max_size=6),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    ascii_only=st.booleans(),
)
async def test_events_are_the_same_however_their_lines_end_and_their_bytes_arrive(
    texts, ends, cuts, ascii_only
):
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only).encode("utf-8", "replace") for text in texts]
    sent = b"".join(b"data: " + line + ends[n % len(ends)] * 2 for n, line in enumerate(lines))
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    pieces = [sent[a:b] for a, b in itertools.pairwise(places)]
    found = [data async for data in client._event_data(httpx.Response(200, stream=_Pieces(pieces)))]
    assert found == lines


class TestWhichStopStringWasMet:
    """End of step and end of solution look alike to a client whose server does not distinguish them."""

    STEPS = "Step 1.\n\nStep 2."

    def connect(self, monkeypatch, *, honours: bool, check=None):
        """A server whose gateway drops ``stop_reason``; ``check`` is what becomes of a check for that."""

        def answer(request):
            asked = json.loads(request.content)
            turns = asked["messages"]
            written = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
            text = self.STEPS[len(written) :] if "weather" not in turns[0]["content"] else "It is warm."
            for stop in asked.get("stop", ()):
                if stop in text:
                    keeps = honours and asked.get("include_stop_str_in_output")
                    text = text[: text.index(stop)] + (stop if keeps else "")
            if check is not None and "weather" in turns[0]["content"]:
                return check
            made = document(text)
            del made["choices"][0]["stop_reason"]
            return httpx.Response(200, json=made)

        server = RecordedServer(answer)
        monkeypatch.setattr(client, "new_client", server.client)
        return server, ChatVLLM(model="m", base_url=f"http://odd{next(_names)}.test", max_tokens=64)

    def test_a_stop_string_kept_in_the_text_shows_it(self, monkeypatch):
        server, model = self.connect(monkeypatch, honours=True)
        first = model.invoke("q", stop=["\n\n"])
        assert (first.content, first.response_metadata["stop_reason"]) == ("Step 1.", "\n\n")
        assert (
            first.response_metadata["failed_attempts"]["output_tokens"] == 10
        )  # the first answer, and the check
        last = model.invoke([("human", "q"), ("ai", "Step 1.\n\n")], stop=["\n\n"])
        assert (last.content, last.response_metadata["stop_reason"]) == ("Step 2.", None)
        assert "failed_attempts" not in last.response_metadata
        assert len(server.generations) == 4

    def test_otherwise_the_server_is_refused_by_name(self, monkeypatch):
        _, model = self.connect(monkeypatch, honours=False)
        with pytest.raises(
            ChatModelContractError, match=r"at http://odd\d+.test does not report .*matched_stop"
        ) as raised:
            model.invoke("q", stop=["\n\n"])
        spent = {"count": 2, "input_tokens": 20, "output_tokens": 10, "unknown": 0}
        assert raised.value.attempts == spent

    def test_a_check_that_fails_is_charged(self, monkeypatch):
        _, model = self.connect(monkeypatch, honours=True, check=httpx.Response(504))
        model = model.model_copy(update={"max_retries": 0})
        model.model_post_init(None)
        with pytest.raises(ModelServerError, match="504") as raised:
            model.invoke("q", stop=["\n\n"])
        attempts = raised.value.attempts
        assert (attempts["output_tokens"], attempts["unknown_tokens"]) == (5, 16)

    def test_a_check_that_fails_is_charged_where_another_attempt_is_made(self, monkeypatch):
        monkeypatch.setattr(client, "_backoff", lambda state: 0.0)
        _, model = self.connect(monkeypatch, honours=True, check=httpx.Response(504))
        with pytest.raises(ModelServerError, match="504") as raised:
            model.invoke("q", stop=["\n\n"])
        attempts = raised.value.attempts
        assert (attempts["unknown"], attempts["output_tokens"]) == (4, 20)

    def test_no_stop_string_no_question(self, monkeypatch):
        server, model = self.connect(monkeypatch, honours=False)
        answer = model.invoke("q")
        assert (answer.content, answer.response_metadata["stop_reason"]) == (self.STEPS, None)
        assert len(server.generations) == 1

    @pytest.mark.parametrize(
        ("matched", "expected"), [(151645, None), ("\n\n", "\n\n"), (None, None)], ids=str
    )
    def test_sglang_calls_it_matched_stop(self, ask, matched, expected):
        made = document(matched_stop=matched)
        del made["choices"][0]["stop_reason"]
        assert ask(made, stop=["\n\n"]).response_metadata["stop_reason"] == expected

    @pytest.mark.parametrize(
        ("verbose", "expected"),
        [
            ({"stop_type": "eos", "stopping_word": ""}, None),
            ({"stop_type": "word", "stopping_word": "\n\n"}, "\n\n"),
        ],
        ids=str,
    )
    def test_llama_cpp_reports_it_where_it_is_asked_to_be_verbose(self, ask, verbose, expected):
        made = document() | {"__verbose": verbose}
        del made["choices"][0]["stop_reason"]
        assert ask(made, stop=["\n\n"]).response_metadata["stop_reason"] == expected
