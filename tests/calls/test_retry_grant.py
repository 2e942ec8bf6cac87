"""All attempts of a large call share what the limits leave, measured by what a server was asked for."""

import itertools

import httpx
import pytest

from tests.adapters.recorded_server import RecordedServer, chat_answer, chat_events, failed, streamed
from trim_graph import Budget, ModelPrice, Prices, Quotas, TrimContext, create_trim_graph, open_ledger
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEP = 100
_names = itertools.count()


@pytest.fixture
def run(monkeypatch):
    """Runs a graph whose large model is a server that answers by a script; all drafts are rejected."""
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)

    def ran(*script, invoke=None, **options):
        server = RecordedServer(*script)
        server.models = {"data": [{"id": "m", "root": "org/m", "max_model_len": 4096}]}
        monkeypatch.setattr(client, "new_client", server.client)
        large = ChatVLLM(model="m", base_url=f"http://grant{next(_names)}.test", max_retries=3)
        graph = create_trim_graph(
            ScriptedChatModel(script=["a b c", "d e f"]),
            large,
            ScriptedScorer(default=0.0),
            policy=threshold(0.5),
            max_step_tokens=STEP,
            **options,
        )
        result = graph.invoke({"messages": [("user", "q?")]}, **(invoke or {}))
        asked = [body["max_tokens"] for _, body in server.generations]
        return result["trim"], asked

    return ran


GOOD = chat_answer("L", finish="stop", stop=None, spent=(30, 20))
BROKEN = httpx.RemoteProtocolError("gone")


@pytest.mark.parametrize("broken", [BROKEN, failed(504), failed(500)], ids=str)
def test_an_attempt_that_may_have_used_all_that_is_left_is_the_last(run, broken):
    trim, asked = run(broken, GOOD, budget=Budget(large_tokens=STEP))
    assert asked == [STEP]
    assert trim["tokens"]["large_unaccounted"] == STEP
    assert trim["stopped"] == "finished"  # on_exhausted="small"
    assert any("leaves no tokens for another attempt" in note for note in trim["notes"])
    assert any("the limit on large_tokens is spent" in note for note in trim["notes"])


def test_a_limit_that_has_more_left_lets_attempts_continue(run):
    trim, asked = run(BROKEN, BROKEN, GOOD, budget=Budget(large_tokens=230))
    assert asked == [STEP, STEP, 30]
    assert trim["tokens"]["large_unaccounted"] + trim["tokens"]["large"] == 220
    trim, asked = run(BROKEN, BROKEN, GOOD)
    assert asked == [STEP] * 3


def test_an_attempt_that_cost_nothing_is_tried_again_freely(run):
    free = (failed(429), httpx.ConnectError("refused"), failed(503))
    trim, asked = run(*free, GOOD, budget=Budget(large_tokens=STEP))
    assert asked == [STEP] * 4
    assert (trim["tokens"]["large"], trim["tokens"]["large_unaccounted"]) == (20, 0)


def test_a_limit_on_cost_counts_each_attempts_prompt(run):
    prices = Prices(large=ModelPrice(input=0, output=1e6))  # a unit a token
    trim, asked = run(BROKEN, GOOD, budget=Budget(large_cost=150), prices=prices)
    assert asked == [STEP, 50]
    assert trim["cost"] == 120


def test_a_call_without_another_attempt_goes_on_as_on_exhausted_says(run):
    trim, asked = run(BROKEN, GOOD, budget=Budget(large_tokens=STEP, on_exhausted="stop"))
    assert asked == [STEP]
    assert trim["steps"]["large"] == 0


def test_an_account_is_asked_anew_after_an_attempt_that_may_have_cost_something(run):
    with open_ledger("memory") as ledger:
        options = {"ledger": ledger, "quotas": Quotas.model_validate({"user": {"large_tokens": 150}})}
        trim, asked = run(BROKEN, GOOD, invoke={"context": TrimContext(user="ada")}, **options)
        used = ledger.used("user:ada").large_tokens
    assert asked == [STEP, 50]
    assert used == trim["tokens"]["large"] + trim["tokens"]["large_unaccounted"] == 120


def test_a_server_that_stays_away_is_given_up(run):
    with open_ledger("memory") as ledger:
        options = {
            "ledger": ledger,
            "quotas": Quotas.model_validate({"user": {"large_tokens": 10_000}}),
        }
        trim, asked = run(BROKEN, invoke={"context": TrimContext(user="ada")}, **options)
        used = ledger.used("user:ada").large_tokens
    assert len(asked) <= 3
    assert used == trim["tokens"]["large_unaccounted"] == sum(asked)


def aborted(tokens):
    """A stream that breaks off behind so many tokens, which it has reported."""
    events = chat_events(*["a "] * tokens)
    for event in events:
        if event["choices"] and event["choices"][0]["finish_reason"]:
            event["choices"][0]["finish_reason"] = "abort"
    return streamed(events)


STREAMS = {"budget": Budget(seconds=1000, large_tokens=230)}


def test_what_failed_attempts_wrote_before_is_no_overshoot(run):
    trim, asked = run(aborted(60), streamed(chat_events(*["L "] * 80)), **STREAMS)
    assert asked[:2] == [STEP, STEP]
    assert trim["tokens"]["large"] + trim["tokens"]["large_discarded"] >= 140
    assert trim["usage"]["overshoot_tokens"] == 0
    assert not any("ignored max_tokens" in note for note in trim["notes"])


def test_an_attempt_that_wrote_too_much_and_failed_is_an_overshoot(run):
    trim, _ = run(aborted(120), streamed(chat_events(*["L "] * 20)), **STREAMS)
    assert trim["usage"]["overshoot_tokens"] == 20


def test_an_attempt_that_wrote_more_than_was_left_for_it_is_an_overshoot(run):
    trim, asked = run(
        BROKEN, chat_answer("L", finish="stop", spent=(30, 40)), budget=Budget(large_tokens=130)
    )
    assert asked == [STEP, 30]
    assert trim["usage"]["overshoot_tokens"] == 10


@pytest.mark.parametrize("ends", [[GOOD], []], ids=["made good", "given up"])
def test_a_charge_for_unreported_tokens_is_noted(run, ends):
    trim, _ = run(BROKEN, *ends, budget=Budget(large_tokens=STEP * 4), on_large_error="accept")
    tokens = trim["tokens"]["large_unaccounted"]
    assert tokens in (STEP, STEP * 4)
    note = (
        "a call of the large model did not report all that it had generated; "
        f"{tokens} tokens were charged for it"
    )
    assert trim["notes"].count(note) == 1
