"""OpenTelemetry in the server: the span of a request, those of its run below it, and the counters."""

import httpx
import pytest

from tests.server.conftest import Served, config_of, parts_of
from tests.server.test_turns import TOOLS, turn_parts
from tests.test_telemetry import Backend
from trim_graph.server import create_app

CLIENTS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def traced():
    """Starts a server whose spans and numbers the backend has."""
    running = []

    def start(parts=None):
        backend, parts = Backend(), parts or parts_of()
        app = create_app(config_of(), parts=parts, telemetry=backend.telemetry)
        running.append(Served(app, parts))
        return running[-1].__enter__(), backend

    yield start
    for server in running:
        server.__exit__()


def tree(backend):
    """Names of the spans with those of their parents; asserts that there is one trace."""
    spans = backend.spans()
    names = {span.context.span_id: span.name for span in spans}
    assert len({span.context.trace_id for span in spans}) == 1
    return {(span.name, names.get(span.parent.span_id) if span.parent else None) for span in spans}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_span_with_its_run_below_and_all_carry_its_id(traced, stream):
    server, backend = traced()
    answer = server.ask(stream=stream)
    request = "POST /v1/chat/completions"
    assert {
        (request, None),
        ("trim.run", request),
        ("trim.route", "trim.run"),
        ("trim.generate_step", "trim.run"),
        ("chat tiny", "trim.generate_step"),
        ("chat huge", "trim.generate_step"),
    } <= tree(backend)
    assert {span.attributes["trim.request.id"] for span in backend.spans()} == {
        answer.headers["x-request-id"]
    }
    (own,) = backend.spans(request)
    assert own.attributes["http.response.status_code"] == 200
    assert own.attributes["trim.operating_point"] == "configured"
    assert backend.numbers("trim.runs") == {("finished",): 1}
    assert backend.numbers("trim.decisions") == {("policy", "accept"): 3, ("policy", "regenerate"): 1}
    assert not backend.telemetry.run_map, "nothing is left of requests that have ended"


def test_a_turn_is_traced_and_counted_as_a_run(traced):
    server, backend = traced(turn_parts())
    trim = server.ask(tools=TOOLS).json()["trim"]
    request = "POST /v1/chat/completions"
    assert {
        (request, None),
        ("trim.run", request),
        ("trim.turn", "trim.run"),
        ("chat tiny", "trim.turn"),
        ("chat huge", "trim.turn"),
    } <= tree(backend)
    assert backend.numbers("trim.runs") == {("finished",): 1}
    assert backend.numbers("trim.steps") == {("large",): 1}
    assert backend.numbers("trim.decisions") == {("policy", "regenerate"): 1}
    tokens = backend.numbers("trim.tokens")
    for part in ("small", "large"):
        assert tokens["output", part] == trim["usage"][part]["output_tokens"]


def test_the_span_is_part_of_the_clients_trace(traced):
    server, backend = traced()
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}
    assert httpx.post(f"{server.url}/chat/completions", json=body, headers=CLIENTS).status_code == 404
    (span,) = backend.spans()
    assert f"{span.context.trace_id:032x}" == CLIENTS["traceparent"].split("-")[1]
    assert f"{span.parent.span_id:016x}" == CLIENTS["traceparent"].split("-")[2]
    assert span.attributes["http.response.status_code"] == 404
    assert span.status.is_unset


def test_a_run_that_fails_marks_the_span_and_says_nothing_of_why(traced):
    def fail(prefix):
        raise RuntimeError("http://10.0.0.1 is gone")

    server, backend = traced(parts_of(fail))
    assert server.ask().status_code >= 500
    (span,) = backend.spans("POST")
    assert not span.status.is_ok
    assert "10.0.0.1" not in str(
        [(one.attributes, one.status.description, one.events) for one in backend.spans()]
    )
