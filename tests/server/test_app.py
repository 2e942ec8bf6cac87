"""The application over real connections: answers, errors, keys, quotas, limits, metrics, clients that go."""

import asyncio
import json
import logging
import threading

import httpx
import pytest

from tests.server.conftest import KEY, LARGE, QUESTION, SMALL, TEXT, config_of, parts_of, wait_until
from trim_graph.budget.ledger import open_ledger
from trim_graph.errors import ContextLengthError, ModelServerError, SettingsError
from trim_graph.server import ApiKeys, create_app

BOB = "key-of-bob-0123456789"


def events(response):
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_a_whole_answer_has_the_accepted_text_the_usage_of_both_models_and_what_was_decided(served):
    answer = served.ask()
    body = answer.json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert (choice["finish_reason"], body["object"], body["model"]) == ("stop", "chat.completion", "trim")
    trim, usage = body["trim"], body["usage"]
    both = [trim["usage"][writer] for writer in ("small", "large")]
    assert usage["prompt_tokens"] == sum(used["input_tokens"] for used in both)
    assert usage["completion_tokens"] == sum(used["output_tokens"] for used in both)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (trim["operating_point"], trim["steps"]) == ("configured", {"small": 3, "large": 1})
    assert trim["decisions"] == {"accept": 3, "regenerate": 1}
    assert [step["writer"] for step in trim["each_step"]] == ["small", "large", "small", "small"]
    assert trim["each_step"][1]["decision"] == "regenerate"
    assert answer.headers["x-request-id"] == body["id"]
    assert answer.headers["x-trim-large-steps"] == "1"
    assert answer.headers["x-trim-stopped"] == "finished"


def test_a_stream_has_each_accepted_step_and_never_a_draft(served):
    answer = served.ask(stream=True, stream_options={"include_usage": True})
    *data, done = events(answer)
    assert done == "[DONE]"
    chunks = [json.loads(line) for line in data]
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]]
    assert texts == ["", "small one", "\n\nLARGE two", "\n\nsmall three", "\n\nso it is \\boxed{4}", None]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 6
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["trim"]["steps"] == {"small": 3, "large": 1}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == served.ask().json()["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert answer.headers["x-trim-operating-point"] == "configured"
    assert "usage" not in json.loads(events(served.ask(stream=True))[0])


def test_the_models_name_carries_the_operating_point(served):
    assert served.ask(model="trim:0.05").json()["choices"][0]["message"]["content"] == "\n\n".join(SMALL)
    assert served.ask(model="small").json()["trim"]["steps"]["large"] == 0
    large = served.ask(model="large")
    assert large.json()["choices"][0]["message"]["content"] == "\n\n".join(LARGE)
    assert large.headers["x-trim-operating-point"] == "large"
    assert served.ask(trim={"threshold": 0.05}).json()["trim"]["operating_point"] == "0.05"


def test_the_names_of_models_are_listed(served):
    listed = httpx.get(f"{served.url}/models").json()
    assert [model["id"] for model in listed["data"]] == ["trim", "small", "large"]
    assert httpx.get(f"{served.url}/models/trim:0.6").json()["id"] == "trim:0.6"
    missing = httpx.get(f"{served.url}/models/gpt-4")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_stop_strings_and_max_tokens_end_an_answer(served):
    stopped = served.ask(stop=" two").json()
    assert stopped["choices"][0]["message"]["content"] == "small one\n\nLARGE"
    assert (stopped["choices"][0]["finish_reason"], stopped["trim"]["stopped"]) == ("stop", "stop_string")
    cut = served.ask(max_tokens=4).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["trim"]["stopped"] == "max_tokens"
    assert cut["trim"]["tokens"]["small"] + cut["trim"]["tokens"]["large"] == 4
    assert served.ask(model="large", max_tokens=2).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("on_exhausted", ["small", "stop"])
def test_an_answer_cut_by_max_tokens_names_no_budget(serve, on_exhausted):
    server = serve(budget={"on_exhausted": on_exhausted})
    for model in ("trim", "large"):
        cut = server.ask(model=model, max_tokens=2).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["trim"]["stopped"] == "max_tokens"
        assert "large_tokens" not in json.dumps([cut["trim"]["notes"], cut["trim"]["each_step"]])
    assert cut["trim"]["notes"] == []
    own = server.ask(model="large", max_tokens=3, trim={"budget": {"large_tokens": 2}}).json()["trim"]
    said = "the limit on large_tokens leaves 2, and a call needs 3"
    assert own["notes"] == [f"{said}: the large model is not called any more"]


def test_max_tokens_bounds_the_text_and_not_what_failed_attempts_of_the_large_model_cost(serve):
    class FailsOnce(type(parts_of().large)):
        async def _agenerate(self, *args, **kwargs):
            self.ends.append("called")
            if len(self.ends) == 1:
                raise TimeoutError
            return await super()._agenerate(*args, **kwargs)

    parts = parts_of(scores={"small two": 0.1, "small three": 0.1})
    large = FailsOnce(script=parts.large.script, name="huge", ends=[])
    server = serve(parts._replace(large=large), settings={"on_large_error": "accept"})
    answer = server.ask(max_tokens=30).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"].startswith("small one\n\nsmall two\n\nLARGE three")
    assert answer["trim"]["tokens"]["large_unaccounted"] >= 20  # the call that failed was charged in full


def test_limits_of_a_request_hold(served):
    spent = served.ask(trim={"budget": {"large_tokens": 0}}).json()["trim"]
    assert spent["usage"]["large"]["calls"] == 0
    assert spent["steps"] == {"small": 4, "large": 0}


def test_sampling_of_a_request_reaches_both_models(serve):
    seen = []

    class Noting(type(parts_of().small)):
        async def _agenerate(self, *args, **kwargs):
            seen.append((self.name, kwargs.get("temperature"), kwargs.get("top_p")))
            return await super()._agenerate(*args, **kwargs)

    parts = parts_of()
    small, large = (Noting(script=m.script, name=m.name, ends=[]) for m in (parts.small, parts.large))
    server = serve(parts._replace(small=small, large=large))
    server.ask(temperature=0.7, top_p=0.9)
    assert set(seen) == {("tiny", 0.7, 0.9), ("huge", 0.7, 0.9)}
    seen.clear()
    server.ask()
    assert set(seen) == {("tiny", None, None), ("huge", None, None)}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"model": "trim:quality=0.02"}, 404, "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "unsupported_value"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "invalid_value"),
        ({"wrong": 1}, 400, "unknown_parameter"),
    ],
)
def test_bad_requests_get_openais_error(served, body, status, code):
    for stream in (False, True):
        answer = served.ask(**body, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("chatcmpl-")


def test_other_paths_and_methods_get_openais_error(served):
    missing = httpx.post(f"{served.url}/embeddings", json={})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    wrong = httpx.get(f"{served.url}/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


def test_a_bug_gets_openais_error_too(serve, monkeypatch):
    server = serve()
    monkeypatch.setattr("trim_graph.server.app._model", None)
    answer = httpx.get(f"{server.url}/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_a_body_that_is_too_large_is_refused(served, monkeypatch):
    monkeypatch.setattr("trim_graph.server.app.MAX_BODY", 1000)
    answer = served.ask(messages=[{"role": "user", "content": "x" * 2000}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_keys_are_needed_and_no_log_or_answer_shows_one(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(keys={"ada": KEY, "bob": BOB})
    answers = [server.ask(), server.ask(key="key-of-eve-0123456789"), server.ask(key=KEY)]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert answers[1].json()["error"]["code"] == "invalid_api_key"
    assert answers[1].headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.url}/models").status_code == 401
    # Before its body is read.
    junk = httpx.post(f"{server.url}/chat/completions", content=b"junk")
    assert junk.status_code == 401
    assert server.metrics['trim_requests_total{point="none",status="401"}'] == 4
    said = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert "ada" in caplog.text
    assert not any(key in said for key in (KEY, BOB, "key-of-eve"))


@pytest.mark.parametrize("on_exhausted", ["small", "stop"])
def test_each_key_has_an_account_in_the_ledger(serve, tmp_path, on_exhausted):
    ledger = f"sqlite:{tmp_path / 'spend.db'}"
    server = serve(
        keys={"ada": KEY, "bob": BOB},
        quotas={"user": {"large_calls": 1}},
        ledger=ledger,
        budget={"on_exhausted": on_exhausted},
    )
    assert server.ask(KEY).json()["trim"]["accounts"]["user:ada"]["large_calls"] == 1
    assert server.ask(BOB).json()["trim"]["steps"]["large"] == 1
    if on_exhausted == "small":
        assert server.ask(KEY).json()["trim"]["steps"] == {"small": 4, "large": 0}
        assert server.ask(KEY, model="large").json()["trim"]["steps"] == {"small": 4, "large": 0}
        return
    for answer in (server.ask(KEY), server.ask(KEY, model="large", stream=True)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


def test_a_limit_of_the_request_is_not_called_the_quota_of_its_key(serve, tmp_path):
    server = serve(
        keys={"ada": KEY},
        quotas={"user": {"large_calls": 1}},
        ledger=f"sqlite:{tmp_path / 'spend.db'}",
        budget={"on_exhausted": "stop"},
    )
    answer = server.ask(KEY, model="large", trim={"budget": {"large_tokens": 0}})
    assert (answer.status_code, answer.json()["trim"]["stopped"]) == (200, "budget")
    assert answer.json()["trim"]["accounts"]["user:ada"]["large_calls"] == 0
    assert server.ask(KEY).json()["trim"]["steps"]["large"] == 1


def test_an_answer_that_was_cut_has_the_account_of_its_key_too(serve, tmp_path):
    server = serve(
        keys={"ada": KEY},
        quotas={"user": {"large_calls": 9}},
        ledger=f"sqlite:{tmp_path / 'spend.db'}",
    )
    for calls, cut in enumerate(({"max_tokens": 5}, {"stop": " two"}), 1):
        summary = server.ask(KEY, **cut).json()["trim"]
        assert summary["stopped"] in ("max_tokens", "stop_string")
        assert summary["accounts"]["user:ada"]["large_calls"] == calls
    assert server.ask(KEY).json()["trim"]["accounts"]["user:ada"]["large_calls"] == 3


def test_more_questions_than_the_limit_get_429_and_when_to_come_back(serve):
    server = serve(parts_of(pace=0.3), max_questions=1)
    asking = threading.Thread(target=server.ask)
    asking.start()
    wait_until(lambda: server.under_way == 1)
    refused = server.ask()
    asking.join()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert server.ask().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_calls_of_models(serve, stream):
    server = serve(parts_of(pace=0.4))
    small = server.parts.small
    body = {"model": "trim", "messages": QUESTION, "stream": stream}
    with httpx.Client() as client:
        if stream:
            with client.stream("POST", f"{server.url}/chat/completions", json=body) as answer:
                next(line for line in answer.iter_lines() if "small one" in line)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/chat/completions", json=body, timeout=0.6)
    wait_until(lambda: server.under_way == 0)
    assert small.ends == ["finished", "cancelled"]
    assert server.metrics['trim_requests_total{point="configured",status="499"}'] == 1
    assert server.ask().status_code == 200


async def test_a_request_counts_once_where_its_client_leaves_with_the_last_chunk():
    app = create_app(config_of(), parts=parts_of())
    request = {"model": "trim", "stream": True, "messages": QUESTION}
    incoming = [{"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}]
    left = asyncio.Event()

    async def receive():
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if b"[DONE]" in message.get("body", b""):
            left.set()
            await asyncio.sleep(0.2)  # the server sees that the client has gone

    path = "/v1/chat/completions"
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http", "root_path": ""}
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("a", 1), "server": ("b", 2)}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
        lines = app.state.service.metrics.text().decode().splitlines()
    assert sum(float(line.split()[-1]) for line in lines if line.startswith("trim_requests_total{")) == 1


def test_a_call_of_the_large_model_that_a_client_left_is_settled_in_the_ledger(serve, tmp_path):
    spec = f"sqlite:{tmp_path / 'spend.db'}"
    quotas = {"user": {"large_tokens": 1000}}
    server = serve(parts_of(pace=1.0), {"ada": KEY}, quotas=quotas, ledger=spec)
    body = {"model": "large", "messages": QUESTION}
    headers = {"authorization": f"Bearer {KEY}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=0.6)
    wait_until(lambda: server.under_way == 0)
    assert server.parts.large.ends == ["cancelled"]
    with open_ledger(spec) as ledger:
        assert ledger.reservations() == []
        assert ledger.used("user:ada").large_calls == 1


def test_a_stream_is_sent_as_it_is_written(serve):
    server = serve(parts_of(pace=0.3))
    body = {"model": "trim", "messages": QUESTION, "stream": True}
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if "small one" in line)
        assert len(server.parts.small.ends) < 4


def test_a_long_step_keeps_the_connection(serve, monkeypatch):
    monkeypatch.setattr("trim_graph.server.app.PING_S", 0.1)
    answer = serve(parts_of(pace=0.35)).ask(stream=True)
    assert answer.text.count(": the next step is being written") >= 4
    assert (
        "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in events(answer)[:-1])
        == TEXT
    )


def failing(error, after=0):
    def script(prefix):
        if prefix.count("\n\n") < after:
            return "\n\n".join(SMALL)[len(prefix) :]
        raise error

    return script


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelServerError("http://10.0.0.7:8001 answered 500", 500), 502, "model_failed"),
        (ModelServerError("http://10.0.0.7:8001 answered 429", 429), 503, "model_overloaded"),
        (ContextLengthError("10.0.0.7: too long", 400), 400, "context_length_exceeded"),
        (TimeoutError("10.0.0.7"), 504, "timeout"),
        (ZeroDivisionError("10.0.0.7"), 500, "internal_error"),
    ],
)
def test_a_model_that_fails_is_no_fault_of_the_request(serve, caplog, error, status, code):
    server = serve(parts_of(failing(error)))
    for stream in (False, True):
        answer = server.ask(stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "10.0.0.7" not in answer.text
        assert ("retry-after" in answer.headers) == (status == 503)
        if status >= 500:
            assert answer.headers["x-request-id"] in caplog.text
            assert "10.0.0.7" in caplog.text
    assert server.under_way == 0


def test_a_failure_within_a_stream_is_its_last_event(serve):
    server = serve(parts_of(failing(ModelServerError("gone", 500), after=2)))
    *_, text, error = events(server.ask(stream=True))
    assert "LARGE two" in text or "small" in text
    assert json.loads(error)["error"]["code"] == "model_failed"
    assert server.metrics['trim_requests_total{point="configured",status="502"}'] == 1


def test_metrics_count_what_runs_use(serve):
    server = serve()
    trim = server.ask().json()["trim"]
    server.ask(model="trim:0.05", stream=True)
    metrics = server.metrics
    assert metrics['trim_requests_total{point="configured",status="200"}'] == 1
    assert metrics['trim_requests_total{point="threshold",status="200"}'] == 1
    assert metrics['trim_runs_total{stopped="finished"}'] == 2
    assert metrics['trim_steps_total{writer="large"}'] == 1
    assert metrics['trim_decisions_total{decision="regenerate"}'] == 1
    assert metrics['trim_discarded_tokens_total{writer="small"}'] == trim["tokens"]["small_discarded"]
    assert metrics['trim_tokens_total{kind="output",part="large"}'] == trim["usage"]["large"]["output_tokens"]
    assert metrics['trim_first_text_seconds_count{point="configured"}'] == 1
    wait_until(lambda: server.metrics["trim_questions_under_way"] == 0)


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"budget": {"large_tokens": 5, "on_exhausted": "ask"}}, "no human to ask: choose small or stop"),
        ({"settings": {"ask_below": 0.2}}, "ask_below is 0.2, but a server has no human"),
        (
            {"quotas": {"thread": {"large_calls": 1}}, "ledger": "memory"},
            "requests to a server have no thread",
        ),
        ({"quotas": {"user": {"large_calls": 1}}, "ledger": "memory"}, "there are no API keys"),
    ],
)
def test_a_configuration_that_needs_what_a_server_has_not_is_refused(more, wrong):
    with pytest.raises(SettingsError, match=wrong):
        create_app(config_of(**more), keys=ApiKeys({}))
