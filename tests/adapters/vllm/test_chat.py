"""`ChatVLLM` on recorded bodies: what it sends, how it reads answers, what it tries again."""

import asyncio
import copy
import itertools
import json
import logging
import math
import pickle
import re
import time

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from tests.adapters.recorded_server import (
    ROOT,
    Broken,
    RecordedServer,
    chat_answer,
    chat_events,
    failed,
    raw_answer,
    streamed,
)
from trim_graph.adapters import ChatVLLM, ContextLengthError, ModelServerError
from trim_graph.adapters.vllm import client

QUESTION = [HumanMessage("What is it?")]
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def connect(monkeypatch):
    """A function from a script to the server and a model that talks to it."""
    roots = iter(range(1000))

    def make(*script, **settings):
        server = RecordedServer(*script)
        monkeypatch.setattr(client, "new_client", server.client)
        # A root of its own, because clients are shared by root.
        base_url = f"http://vllm{next(roots)}.{time.monotonic_ns()}.test:8000/v1"
        return server, ChatVLLM(**{"model": "m", "base_url": base_url, **settings})

    return make


def ending(message):
    return message.response_metadata["finish_reason"], message.response_metadata["stop_reason"]


class TestAnswers:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, ("stop", None)),
            ({"stop": "\n\n"}, ("stop", "\n\n")),
            ({"stop": 7}, ("stop", None)),  # one of several ends of sequence, by its id
            ({"finish": "length"}, ("length", None)),
        ],
    )
    def test_stop_and_finish_reason_of_the_server_are_kept(self, connect, fields, expected):
        _, model = connect(chat_answer("so", **fields))
        answer = model.invoke(QUESTION)
        assert answer.content == "so"
        assert ending(answer) == expected
        assert answer.response_metadata["model_name"] == "m"

    def test_usage_contains_the_cached_tokens(self, connect):
        _, model = connect(chat_answer("so", spent=(30, 5, 16)))
        assert model.invoke(QUESTION).usage_metadata == {
            "input_tokens": 30,
            "output_tokens": 5,
            "total_tokens": 35,
            "input_token_details": {"cache_read": 16},
        }

    def test_usage_of_a_server_that_does_not_report_cached_tokens(self, connect):
        _, model = connect(chat_answer("so", spent=(30, 5)))
        assert "input_token_details" not in model.invoke(QUESTION).usage_metadata

    @pytest.mark.parametrize("raw", [False, True])
    def test_the_mean_token_probability_leaves_out_the_end_of_sequence(self, connect, raw):
        logs = [math.log(p) for p in (0.5, 0.9, 0.1)]
        if raw:
            logprobs = {"tokens": ["a", "b", "<e>"], "token_logprobs": logs, "top_logprobs": [{}, {}, {}]}
            made = raw_answer
        else:
            logprobs = {"content": [{"token": "a", "logprob": p, "top_logprobs": []} for p in logs]}
            made = chat_answer
        mode = {"continuation": "raw" if raw else "chat", "logprobs": True}
        for fields, mean in (({}, 0.7), ({"stop": "\n\n"}, 0.5), ({"finish": "length"}, 0.5)):
            _, model = connect(made("ab", logprobs=logprobs, **fields), **mode)
            metadata = model.invoke(QUESTION).response_metadata
            assert metadata["mean_token_probability"] == pytest.approx(mean)
            assert "logprobs" not in metadata
            _, model = connect(made("ab", logprobs=logprobs, **fields), continuation=mode["continuation"])
            windowed = model.invoke(QUESTION, probability_window=2).response_metadata
            lowest = 0.7 if fields == {} else 0.5
            assert windowed["lowest_window_probability"] == pytest.approx(lowest)

    def test_raw_log_probabilities_have_one_form(self, connect):
        chat = {
            "token": "a",
            "logprob": -0.1,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.1}],
        }
        raw = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1}], "text_offset": [0]}
        _, one = connect(chat_answer("a", logprobs={"content": [chat]}), continuation="chat")
        logprobs = one.invoke(QUESTION, top_logprobs=1).response_metadata["logprobs"]
        _, two = connect(raw_answer("a", logprobs=raw), continuation="raw")
        assert two.invoke(QUESTION, top_logprobs=1).response_metadata["logprobs"] == logprobs
        assert logprobs == {
            "content": [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}]
        }

    @pytest.mark.parametrize("raw", [False, True])
    def test_the_first_tokens_entropy_rests_on_the_likeliest_tokens(self, connect, raw):
        half, eighth = math.log(0.5), math.log(0.125)
        if raw:
            tops = [{"token_id:1": half, "token_id:2": eighth, "token_id:3": eighth}, {}]
            logprobs = {"tokens": ["token_id:1", "<e>"], "token_logprobs": [half, -1.0], "top_logprobs": tops}
            server, model = connect(raw_answer("a", logprobs=logprobs), continuation="raw")
        else:
            tops = [{"token": "a", "logprob": p} for p in (half, eighth, eighth)]
            first = {"token": "a", "logprob": half, "top_logprobs": tops}
            logprobs = {"content": [first, {"token": "<e>", "logprob": -1.0, "top_logprobs": []}]}
            server, model = connect(chat_answer("a", logprobs=logprobs), continuation="chat")
        metadata = model.invoke(QUESTION, first_token_entropy=True).response_metadata
        # The quarter not observed is at least two tokens of an eighth.
        assert metadata["first_token_entropy"] == pytest.approx(2.0 * math.log(2))
        assert metadata["unobserved_probability"] == pytest.approx(0.25)
        assert "logprobs" not in metadata
        assert "mean_token_probability" not in metadata
        ((_, body),) = server.generations
        assert body["logprobs" if raw else "top_logprobs"] == 20
        assert body.get("return_tokens_as_token_ids") is (True if raw else None)

    def test_an_entropy_may_rest_on_more_tokens(self, connect):
        server, model = connect(chat_answer("a"), continuation="chat", entropy_logprobs=50)
        assert "first_token_entropy" not in model.invoke(QUESTION, first_token_entropy=True).response_metadata
        ((_, body),) = server.generations
        assert body["top_logprobs"] == 50

    def test_a_body_that_is_not_vllms(self, connect):
        for body in (httpx.Response(200, text="<html>login</html>"), httpx.Response(200, json=[1])):
            _, model = connect(body)
            with pytest.raises(ModelServerError, match=r"vllm\d+\.\d+\.test:8000 .*Is it a vLLM server"):
                model.invoke(QUESTION)


class TestRequests:
    def test_a_trailing_ai_message_is_continued(self, connect):
        server, model = connect(chat_answer("so"))
        model.invoke([SystemMessage("be"), *QUESTION, AIMessage("First.\n\n")], stop=["\n\n"], seed=3)
        path, body = server.generations[0]
        assert path == "/v1/chat/completions"
        assert body["messages"][-1] == {"role": "assistant", "content": "First.\n\n"}
        assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
        assert (body["stop"], body["seed"], body["max_tokens"]) == (["\n\n"], 3, 100)

    def test_without_one_a_new_turn_begins(self, connect):
        for tail in ([], [AIMessage("")]):
            server, model = connect(chat_answer("so"))
            model.invoke([*QUESTION, *tail])
            body = server.generations[0][1]
            assert [turn["role"] for turn in body["messages"]] == ["user"]
            assert body["add_generation_prompt"] is True
            assert "continue_final_message" not in body

    def test_the_servers_own_sampling_defaults_are_switched_off(self, connect):
        server, model = connect(chat_answer("so"))
        model.invoke(QUESTION)
        body = server.generations[0][1]
        wanted = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert {name: body[name] for name in wanted} == wanted
        server, model = connect(chat_answer("so"), extra_body={"top_k": 20})
        model.invoke(QUESTION)
        assert server.generations[0][1]["top_k"] == 20

    def test_tool_calls_and_results_are_sent_in_the_shape_of_openai(self, connect):
        server, model = connect(chat_answer("so"))
        call = AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}])
        model.invoke([*QUESTION, call, ToolMessage("2", tool_call_id="1")])
        turns = server.generations[0][1]["messages"]
        assert turns[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
        assert turns[2] == {"role": "tool", "content": "2", "tool_call_id": "1"}

    @pytest.mark.parametrize(
        ("messages", "complaint"),
        [
            ([], "conversation is empty"),
            ([AIMessage("x")], "one AIMessage alone"),
            ([*QUESTION, AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])], "tool calls"),
            ([HumanMessage([{"type": "image_url", "image_url": "x"}])], "text only"),
        ],
    )
    def test_what_cannot_be_sent(self, connect, messages, complaint):
        server, model = connect(chat_answer("so"))
        with pytest.raises(ValueError, match=complaint):
            model._generate(messages)
        assert not server.generations

    @pytest.mark.parametrize(
        ("kwargs", "complaint"),
        [
            ({"max_tokens": 0}, "max_tokens=0"),
            ({"temperature": math.nan}, "temperature=nan"),
            ({"top_logprobs": -1}, "top_logprobs=-1"),
            ({"timeout": 0}, "timeout=0"),
            ({"stop": [""]}, "non-empty"),
            ({"stop_when": "\n"}, "stop_when='"),
            ({"n": 3, "beams": 2}, "beams, n; it takes stop, first_token_entropy, label_tokens, logprobs"),
        ],
    )
    def test_a_call_refuses_what_it_cannot_do(self, connect, kwargs, complaint):
        _, model = connect(chat_answer("so"))
        with pytest.raises(ValueError, match=complaint):
            model.invoke(QUESTION, **kwargs)

    @pytest.mark.parametrize(
        ("url", "complaint"),
        [
            ("localhost:8000", "looks like http://localhost:8000/v1"),
            ("ftp://x", "looks like"),
            ("http://x/v1?key=1", "looks like"),
            ("http://me:hunter2@x/v1", "user name or password"),
            ("http://x:port", "not a URL"),
        ],
    )
    def test_a_base_url_that_cannot_be_one_is_refused_without_its_secret(self, url, complaint):
        with pytest.raises(ValueError, match=complaint) as caught:
            ChatVLLM(model="m", base_url=url)
        assert "base_url" in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_v1_may_be_left_out(self):
        for url in ("http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/"):
            assert client.check_base_url(url) == "http://x:1"
        assert client.check_base_url("https://x/team/v1") == "https://x/team"

    def test_a_misspelt_setting_is_refused(self):
        with pytest.raises(ValueError, match="base_ulr"):
            ChatVLLM(model="m", base_ulr="http://x")


class TestContinuation:
    CHAT = (*QUESTION, AIMessage("\nso\n\n"))

    def test_the_server_is_asked_once(self, connect):
        server, model = connect(chat_answer("so"))

        async def many():
            await asyncio.gather(*(model.ainvoke(QUESTION) for _ in range(20)))

        asyncio.run(many())
        asyncio.run(many())
        copied = copy.deepcopy(model)
        copied.invoke(QUESTION)
        model.bind(stop=["x"]).invoke(QUESTION)
        assert len([r for r in server.requests if r.url.path == "/v1/models"]) == 1

    @pytest.mark.parametrize(
        "template", [str.strip, str.lstrip, str.rstrip, lambda text: f"<think></think>{text}"]
    )
    def test_a_template_that_changes_the_text_is_rendered_once_and_continued_raw(self, connect, template):
        server, model = connect(raw_answer("so", stop="\n\n"))
        server.template = template
        for _ in range(2):
            assert ending(model.invoke(self.CHAT, stop=["\n\n"])) == ("stop", "\n\n")
        (path, body), _ = server.generations
        assert path == "/v1/completions"
        assert body["prompt"] == "<user>What is it?</><assistant>\nso\n\n"
        assert body["add_special_tokens"] is False
        rendered = [b for b in server.bodies("/tokenize") if b.get("messages", [{}])[0].get("content") != "?"]
        assert len([b for b in rendered if "messages" in b]) == 1

    def test_a_template_that_sets_reasoning_apart_is_continued_raw(self, connect):
        server, model = connect(raw_answer("so"))
        server.template = lambda text: text.split("</think>")[-1]
        model.invoke([*QUESTION, AIMessage("<think>\nhm\n</think>\n\nSo")])
        path, body = server.generations[0]
        assert path == "/v1/completions"
        assert body["prompt"].endswith("<assistant><think>\nhm\n</think>\n\nSo")

    def test_a_template_that_opens_reasoning_is_reported(self, connect):
        for opener, reported in (("<think>\n", True), ("", None)):
            server, model = connect(raw_answer("so"), chat_answer("so"))
            render = server.render
            server.render = lambda body, render=render, opener=opener: render(body).replace(
                "<assistant>", "<assistant>" + opener
            )
            answer = model.invoke(QUESTION)
            assert answer.response_metadata.get("starts_in_reasoning") is reported

    def test_a_template_that_refuses_the_probe_is_continued_raw(self, connect):
        server, model = connect(raw_answer("so"))
        tokenizer = server._tokenizer
        server._tokenizer = lambda b: failed(400) if b.get("continue_final_message") else tokenizer(b)
        assert model.invoke(self.CHAT).content == "so"
        assert server.generations[0][0] == "/v1/completions"

    def test_a_thinking_model_is_asked_again_raw_and_both_are_counted(self, connect):
        reasoned = chat_answer("4", reasoning="two and two", spent=(30, 9))
        server, model = connect(reasoned, raw_answer("<think>two and two</think>4", spent=(31, 9)))
        answer = model.invoke(QUESTION)
        assert answer.content == "<think>two and two</think>4"
        assert answer.usage_metadata["output_tokens"] == 18
        assert answer.response_metadata["failed_attempts"] == {
            "count": 1,
            "input_tokens": 30,
            "output_tokens": 9,
            "unknown": 0,
        }
        model.invoke(QUESTION)
        assert [path for path, _ in server.generations] == ["/v1/chat/completions", *["/v1/completions"] * 2]

    def test_a_thinking_model_is_streamed_raw(self, connect):
        whole = [raw_answer("<think>4", spent=(30, 2))]
        _, model = connect(streamed(chat_events("", "4", reasoning="two")), streamed(whole))
        assert "".join(chunk.content for chunk in model.stream(QUESTION)) == "<think>4"

    def test_the_choice_can_be_made_by_hand(self, connect):
        server, model = connect(chat_answer("4", reasoning="t"), continuation="chat")
        server.template = str.strip
        server.tokenizer_is_there = False
        assert model.invoke(self.CHAT).content == "4"
        assert not server.bodies("/tokenize")

    def test_a_proxy_without_tokenize_is_named(self, connect):
        server, model = connect(chat_answer("4"))
        server.tokenizer_is_there = False
        with pytest.raises(ModelServerError, match=r"/tokenize is missing .*continuation='chat'"):
            model.invoke(QUESTION)

    def test_a_tokenizer_that_loses_text_is_refused(self, connect):
        server, model = connect(raw_answer("4"), continuation="raw")
        tokenizer = server._tokenizer
        server._tokenizer = lambda body: {"prompt": "other"} if "tokens" in body else tokenizer(body)
        with pytest.raises(ModelServerError, match="does not give back the tokens"):
            model.invoke(QUESTION)

    def test_few_rendered_conversations_are_kept(self, connect, monkeypatch):
        monkeypatch.setattr("trim_graph.adapters.vllm.prompts._MAX_QUESTIONS", 3)
        _, model = connect(raw_answer("4"), continuation="raw")
        for n in range(9):
            model.invoke(f"<{n}>")  # no plain question: each is rendered
        assert len(model._prompts._rendered) == 3

    @pytest.mark.parametrize("continuation", ["chat", "raw"])
    def test_prompt_tokens_are_counted(self, connect, continuation):
        _, model = connect(chat_answer("so"), continuation=continuation)
        expected = len("<user>What is it?</><assistant>\nso\n\n")
        assert model.count_prompt_tokens(self.CHAT) == expected
        assert model.get_num_tokens_from_messages(list(self.CHAT)) == expected
        assert model.get_num_tokens("four") == 4
        with pytest.raises(ValueError, match="tools"):
            model.get_num_tokens_from_messages(list(self.CHAT), tools=[{"name": "f"}])

    def test_template_arguments_go_wherever_the_template_is_rendered(self, connect):
        server, model = connect(chat_answer("so"), chat_template_kwargs={"enable_thinking": False})
        model.invoke(self.CHAT)
        rendered = [body for _, body in server.generations]
        rendered += [body for body in server.bodies("/tokenize") if "messages" in body]
        assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in rendered)

    def test_max_tokens_is_never_more_than_the_model_takes(self, connect):
        server, model = connect(chat_answer("so"))
        model.invoke(QUESTION, max_tokens=5000)
        assert server.generations[0][1]["max_tokens"] == 100


def without_system(server):
    """Makes a server's template refuse system messages and turns of one role in a row."""
    tokenizer = server._tokenizer

    def strict(body):
        roles = [turn["role"] for turn in body.get("messages", [])]
        refused = "system" in roles or any(one == other for one, other in itertools.pairwise(roles))
        return failed(400, "System role not supported") if refused else tokenizer(body)

    server._tokenizer = strict


class TestRoles:
    CHAT = (SystemMessage("Be exact."), *QUESTION)

    @pytest.mark.parametrize("continuation", ["auto", "chat", "raw"])
    def test_a_template_without_a_system_role_gets_it_in_the_human_message(self, connect, continuation):
        server, model = connect(raw_answer("so"), continuation=continuation)
        without_system(server)
        model.invoke(self.CHAT)
        model.invoke([*self.CHAT, AIMessage("First.\n\n")])
        for _, body in server.generations:
            text = body.get("prompt") or server.render(body)
            assert text.startswith("<user>Be exact.\n\nWhat is it?</><assistant>")
        assert model.count_prompt_tokens(self.CHAT) == len("<user>Be exact.\n\nWhat is it?</><assistant>")
        assert not model.takes_system_role()

    def test_turns_of_one_role_in_a_row_become_one(self, connect):
        server, model = connect(chat_answer("so"))
        without_system(server)
        model.invoke([*QUESTION, HumanMessage("Tell!"), AIMessage("No."), HumanMessage("Why?")])
        turns = server.generations[0][1]["messages"]
        assert turns == [
            {"role": "user", "content": "What is it?\n\nTell!"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Why?"},
        ]

    def test_a_template_that_drops_the_system_message_is_not_trusted_with_it(self, connect):
        server, model = connect(chat_answer("so"))
        render = server.render
        server.render = lambda body: render(
            {**body, "messages": [turn for turn in body["messages"] if turn["role"] != "system"]}
        )
        model.invoke(self.CHAT)
        assert server.generations[0][1]["messages"] == [
            {"role": "user", "content": "Be exact.\n\nWhat is it?"}
        ]

    def test_the_server_is_asked_once_for_the_same_roles(self, connect):
        server, model = connect(chat_answer("so"))
        model.invoke(self.CHAT)
        assert model.takes_system_role()
        before = len(server.requests)
        model.invoke([SystemMessage("Else."), HumanMessage("And?"), AIMessage("So ")])
        assert len(server.requests) == before + 1

    def test_a_proxy_without_tokenize_is_left_to_refuse_by_itself(self, connect):
        server, model = connect(chat_answer("so"), continuation="chat")
        server.tokenizer_is_there = False
        assert model.invoke(self.CHAT).content == "so"
        assert [turn["role"] for turn in server.generations[0][1]["messages"]] == ["system", "user"]


class TestContextLength:
    FULL = (
        "This model's maximum context length is 100 tokens. However, your prompt contains 120 input tokens, "
        "which exceeds this limit even without any output tokens.",
        "The decoder prompt (length 120) is longer than the maximum model length of 100.",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    )

    @pytest.mark.parametrize("said", FULL)
    def test_a_full_context_has_an_error_of_its_own_and_is_not_tried_again(self, connect, said):
        server, model = connect(failed(400, said))
        with pytest.raises(ContextLengthError, match=re.escape(said[:40])) as caught:
            model.invoke(QUESTION)
        assert (caught.value.status, len(server.generations)) == (400, 1)
        assert caught.value.attempts["unknown"] == 0

    def test_so_has_one_that_a_stream_reports(self, connect):
        _, model = connect(streamed([{"error": {"message": self.FULL[0], "code": 400}}]))
        with pytest.raises(ContextLengthError):
            list(model.stream(QUESTION))

    def test_where_less_would_fit_it_is_another_error(self, connect):
        said = "maximum context length is 100 tokens. However, you requested 140 tokens (40 in the messages"
        _, model = connect(failed(400, said))
        with pytest.raises(ModelServerError) as caught:
            model.invoke(QUESTION)
        assert not isinstance(caught.value, ContextLengthError)


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            failed(429),
            failed(500),
            failed(503),
            httpx.ConnectError("refused"),
            httpx.ConnectTimeout("slow"),
            httpx.ReadTimeout(""),
            httpx.RemoteProtocolError("disconnected"),
            httpx.ReadError("reset"),
            chat_answer("half", finish="abort"),
        ],
        ids=str,
    )
    def test_what_may_pass_is_tried_again(self, connect, failure):
        server, model = connect(failure, failure, chat_answer("so"))
        answer = model.invoke(QUESTION)
        assert answer.content == "so"
        assert answer.response_metadata["failed_attempts"]["count"] == 2
        assert len(server.generations) == 3

    @pytest.mark.parametrize("status", [400, 401, 404, 422, 501])
    def test_a_refusal_is_final(self, connect, status):
        server, model = connect(failed(status, "the model's\nmaximum"))
        with pytest.raises(ModelServerError, match=rf"answered {status}: the model's maximum") as caught:
            model.invoke(QUESTION)
        assert caught.value.status == status
        assert len(server.generations) == 1

    @pytest.mark.parametrize("path", ["", "/v2"])
    def test_an_address_with_another_path_is_doubted_where_nothing_is_found(self, connect, path):
        _, model = connect(failed(404), base_url=f"http://lost{time.monotonic_ns()}.test:8000{path}")
        with pytest.raises(ModelServerError, match="answered 404") as caught:
            model.invoke(QUESTION)
        assert ("is /v2 of base_url right?" in str(caught.value)) == bool(path)

    def test_at_last_it_gives_up_and_names_the_server(self, connect):
        server, model = connect(httpx.ConnectError("refused"), max_retries=2)
        said = rf"no server answers at {model._server.root} \(refused\); .*base_url \(3 attempts\)"
        with pytest.raises(ModelServerError, match=said):
            model.invoke(QUESTION)
        assert len(server.generations) == 3
        server.models = httpx.ConnectError("refused")
        with pytest.raises(ModelServerError, match="no server answers"):
            ChatVLLM(model="m", base_url=model.base_url, max_retries=0).invoke(QUESTION)

    def test_the_server_may_ask_for_a_pause(self, connect):
        _, model = connect(failed(429, **{"retry-after": "0.2"}), chat_answer("so"))
        begun = time.monotonic()
        model.invoke(QUESTION)
        assert time.monotonic() - begun >= 0.2
        _, model = connect(failed(429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), chat_answer("so"))
        assert model.invoke(QUESTION).content == "so"

    def test_another_model_is_served(self, connect):
        server, model = connect(chat_answer("so"))
        server.models = {"data": [{"id": "a"}, {"id": "b"}]}
        with pytest.raises(ModelServerError, match=r"serves a, b; model='m' is none of them"):
            model.invoke(QUESTION)

    def test_tokens_of_a_dropped_stream_are_counted(self, connect):
        half = httpx.Response(200, stream=Broken(chat_events("a", "b", "c")[:3]))
        server, model = connect(half, streamed(chat_events("x", "y")))
        answer = model.invoke(QUESTION, timeout=30)
        assert answer.content == "xy"
        assert answer.response_metadata["failed_attempts"] == {
            "count": 1,
            "input_tokens": 30,
            "output_tokens": 2,
            "unknown": 0,
        }
        assert answer.usage_metadata["output_tokens"] == 4
        assert server.generations[0][1]["stream_options"]["continuous_usage_stats"] is True


class TestStreams:
    async def test_chunks_make_up_the_answer(self, connect):
        _, model = connect(lambda request: streamed(chat_events("a", "\u2028\x85b\r", "c", stop="\n\n")))
        chunks = list(model.stream(QUESTION))
        assert [c.content for c in chunks] == ["a", "\u2028\x85b\r", "c", ""]
        achunks = [chunk async for chunk in model.astream(QUESTION)]
        assert [c.content for c in achunks] == [c.content for c in chunks]
        assert chunks[-1].response_metadata["stop_reason"] == "\n\n"
        assert chunks[-1].usage_metadata["input_token_details"] == {"cache_read": 16}
        assert chunks[-1].usage_metadata["output_tokens"] == 3
        assert chunks[-1].chunk_position == "last"
        assert not any(chunk.usage_metadata or chunk.response_metadata for chunk in chunks[:-1])

    @pytest.mark.parametrize("how", ["invoke", "stream"])
    def test_the_callers_own_function_may_end_it(self, connect, how):
        endless = Broken(chat_events("One", " two", " three", stop=None)[:-2], hangs=True)
        _, model = connect(httpx.Response(200, stream=endless))
        options = {"stop_when": lambda text: text.endswith("two")}
        if how == "invoke":
            answer = model.invoke(QUESTION, **options)
        else:
            chunks = list(model.stream(QUESTION, **options))
            answer = chunks[0]
            for chunk in chunks[1:]:
                answer += chunk
        assert answer.content == "One two"
        assert ending(answer) == ("stop", "stop_when")
        assert answer.usage_metadata["output_tokens"] == 2
        assert endless.closed

    def test_a_failure_before_the_first_text_is_made_good(self, connect):
        begun = httpx.Response(200, stream=Broken(chat_events("a")[:1]))
        _, model = connect(failed(503), begun, streamed(chat_events("a")))
        chunks = list(model.stream(QUESTION))
        assert "".join(c.content for c in chunks) == "a"
        assert chunks[-1].response_metadata["failed_attempts"]["count"] == 2

    def test_a_failure_after_it_is_reported(self, connect):
        server, model = connect(httpx.Response(200, stream=Broken(chat_events("a", "b")[:2])))
        stream = model.stream(QUESTION)
        assert next(stream).content == "a"
        with pytest.raises(ModelServerError, match="after a part of it had been streamed"):
            list(stream)
        assert len(server.generations) == 1

    def test_an_error_event_and_a_clean_but_early_end(self, connect):
        refused = streamed([{"error": {"message": "too long", "code": 400}}])
        _, model = connect(refused)
        with pytest.raises(ModelServerError, match="answered 400: too long"):
            list(model.stream(QUESTION))
        early = httpx.Response(200, text=f"data: {json.dumps(chat_events('a', 'b')[0])}\n\n")
        _, model = connect(early, streamed(chat_events("a")))
        assert "".join(c.content for c in model.stream(QUESTION)) == "a"

    def test_an_empty_answer_is_streamed_as_one_empty_chunk(self, connect):
        _, model = connect(streamed(chat_events("")))
        assert model.invoke(QUESTION, timeout=9).content == ""
        assert [c.content for c in model.stream(QUESTION)] == [""]

    async def test_leaving_a_stream_closes_the_request(self, connect):
        bodies = [Broken(chat_events("a", "b")[:2], hangs=True) for _ in range(2)]
        _, model = connect(*(httpx.Response(200, stream=body) for body in bodies))
        stream = model.astream(QUESTION)
        await anext(stream)
        await stream.aclose()
        assert bodies[0].closed
        sync = model.stream(QUESTION)
        next(sync)
        sync.close()
        for _ in range(100):
            if bodies[1].closed:
                break
            await asyncio.sleep(0.01)
        assert bodies[1].closed

    def test_streaming_as_a_setting(self, connect):
        _, model = connect(streamed(chat_events("a", "b")), streaming=True)
        assert model.invoke(QUESTION).content == "ab"


class TestTime:
    @pytest.mark.parametrize("how", ["whole", "stream"])
    def test_what_has_arrived_in_time_is_the_answer(self, connect, how):
        body = Broken(chat_events("a", "b", "c")[:3], hangs=True)
        _, model = connect(httpx.Response(200, stream=body))
        if how == "whole":
            answer = model.invoke(QUESTION, timeout=0.2)
        else:
            chunks = list(model.stream(QUESTION, timeout=0.2))
            answer = chunks[-1]
            assert "".join(chunk.content for chunk in chunks) == "ab"
        assert ending(answer) == ("length", None)
        assert answer.response_metadata["timed_out"] is True
        assert answer.usage_metadata["output_tokens"] == 2
        assert body.closed

    @pytest.mark.parametrize("how", ["whole", "stream"])
    def test_nothing_in_time_is_a_timeout_that_names_the_server(self, connect, how):
        _, model = connect(httpx.Response(200, stream=Broken([], hangs=True)), timeout=0.2)
        with pytest.raises(TimeoutError, match=rf"{model._server.root} within timeout=0.2 seconds"):
            model.invoke(QUESTION) if how == "whole" else list(model.stream(QUESTION))

    def test_the_limit_covers_retries(self, connect, monkeypatch):
        monkeypatch.setattr(client, "_backoff", lambda state: 10.0)
        _, model = connect(failed(503))
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            model.invoke(QUESTION, timeout=0.2)
        assert time.monotonic() - begun < 5

    @pytest.mark.parametrize("how", ["whole", "stream"])
    def test_a_failed_attempt_is_no_answer_when_time_is_up(self, connect, monkeypatch, how):
        monkeypatch.setattr(client, "_backoff", lambda state: 10.0)
        events = chat_events("a", "b")[: 2 if how == "whole" else 1]
        _, model = connect(httpx.Response(200, stream=Broken(events)), timeout=0.2)
        with pytest.raises(TimeoutError, match="nothing arrived"):
            model.invoke(QUESTION) if how == "whole" else list(model.stream(QUESTION))

    async def test_a_cancelled_call_closes_its_request(self, connect):
        body = Broken(chat_events("a")[:2], hangs=True)
        _, model = connect(httpx.Response(200, stream=body))
        task = asyncio.create_task(model.ainvoke(QUESTION))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.closed


class TestConnections:
    def test_one_client_a_loop_closed_with_it(self, connect):
        server, model = connect(chat_answer("so"))
        other = ChatVLLM(model="m", base_url=model.base_url.removesuffix("/v1"))

        async def main():
            await asyncio.gather(*(m.ainvoke(QUESTION) for m in (model, other) for _ in range(4)))
            (pool,) = [p for key, p in client._pools.items() if key[0] == model._server.root]
            return pool.slots

        (slot,) = asyncio.run(main())
        assert server.clients == 1
        assert slot.client.is_closed
        assert not [key for key in client._pools if key[0] == model._server.root]
        model.invoke(QUESTION)
        other.invoke(QUESTION)
        assert server.clients == 2

    def test_a_loop_that_was_not_shut_down_is_forgotten(self, connect):
        server, model = connect(chat_answer("so"))
        loop = asyncio.new_event_loop()
        loop.run_until_complete(model.ainvoke(QUESTION))
        loop.close()
        asyncio.run(model.ainvoke(QUESTION))
        assert server.clients == 2
        assert not [key for key in client._pools if key[2] is loop]


class TestKey:
    @pytest.fixture
    def secret(self, monkeypatch):
        monkeypatch.setenv("MY_KEY", f"{KEY}\n")

    @pytest.mark.parametrize("given", [{"api_key_env": "MY_KEY"}, {"api_key": KEY}])
    def test_it_is_sent_and_nowhere_else(self, connect, secret, caplog, given):
        caplog.set_level(logging.DEBUG)
        echo = httpx.Response(400, json={"error": {"message": f"bad key {KEY}"}})
        server, model = connect(chat_answer("so"), echo, **given)
        answer = model.invoke(QUESTION)
        assert {r.headers["authorization"] for r in server.requests} == {f"Bearer {KEY}"}
        with pytest.raises(ModelServerError, match=r"bad key \*\*\*") as caught:
            model.invoke(QUESTION)
        shown = [repr(model), str(model), repr(model.asdict()), model.model_dump_json(), repr(answer)]
        shown += [repr(caught.value), caplog.text, repr(model._prompts), str(model._identifying_params)]
        assert not [text for text in shown if KEY in text]
        assert KEY.encode() not in pickle.dumps(model)
        (connection,) = copy.deepcopy(model)._server.servers.values()
        assert connection._key() == KEY

    def test_without_one_there_is_no_header(self, connect):
        server, model = connect(chat_answer("so"))
        model.invoke(QUESTION)
        assert "authorization" not in server.requests[0].headers

    def test_a_refused_key_is_explained(self, connect, secret):
        for name, said in ((None, "api_key_env"), ("NO_KEY", "NO_KEY is not set"), ("MY_KEY", "not right")):
            server, model = connect(chat_answer("so"), api_key_env=name)
            server.models = httpx.Response(401, json={"error": "Unauthorized"})
            with pytest.raises(ModelServerError, match=rf"401: Unauthorized; .*{said}"):
                model.invoke(QUESTION)

    def test_a_key_no_header_takes(self, connect, monkeypatch):
        monkeypatch.setenv("VLLM_API_KEY", "a\nsecond")
        _, model = connect(chat_answer("so"))
        with pytest.raises(ModelServerError, match="VLLM_API_KEY holds characters") as caught:
            model.invoke(QUESTION)
        assert "second" not in str(caught.value)


class TestCopies:
    def test_a_pickled_model_answers_with_the_same_settings(self, connect):
        _, model = connect(chat_answer("so"), max_tokens=7)
        model.invoke(QUESTION)
        again = pickle.loads(pickle.dumps(model))
        assert again.model_dump() == model.model_dump()
        assert again.invoke(QUESTION).content == "so"

    def test_tracing_knows_the_provider(self):
        params = ChatVLLM(model="m", base_url=ROOT)._get_ls_params()
        assert (params["ls_provider"], params["ls_model_name"]) == ("vllm", "m")
        assert ChatVLLM(model="m")._llm_type == "trim-graph-vllm"
