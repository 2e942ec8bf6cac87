"""Tests of metered calls: attempts share what the limits leave, and tokens are kept for the answer.

What a server was asked for is compared with the limits.
"""

import itertools
import time

import httpx
import pytest

from tests.adapters.recorded_server import RecordedServer, chat_answer, chat_events, failed, streamed
from trim_graph import Budget, ModelPrice, Prices, Quotas, TrimContext, create_trim_graph, open_ledger
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.budget.limits import Quota
from trim_graph.budget.usage import LargeUsage
from trim_graph.errors import ChatModelContractError
from trim_graph.policies import large_only, small_only, threshold
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


# Models that keep tokens for their answer: what vLLM is asked for, and servers that cannot do it


REFUSED = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser "
    "and/or --reasoning-config to use thinking_token_budget."
)


SETTINGS = {"max_steps": 6, "max_step_tokens": 20, "max_repeats": None}


@pytest.fixture
def connect(monkeypatch):
    """A function from a script to a server and a model of it."""
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)

    def make(*script, **settings):
        server = RecordedServer(*script)
        server.models = {"data": [{"id": "m", "root": "org/m", "max_model_len": 10_000}]}
        monkeypatch.setattr(client, "new_client", server.client)
        root = f"http://limit{time.monotonic_ns()}.test:8000/v1"
        return server, ChatVLLM(model="m", base_url=root, **settings)

    return make


def asked(server):
    """Limits of the reasoning, by call; None where a call has none."""
    return [body.get("thinking_token_budget") for _, body in server.generations]


def thoughts(*texts, end="</think>"):
    """Answers of five tokens each, of which the last one is the end of the reasoning."""
    stops = [*["\n\n"] * (len(texts) - 1), end]
    return [chat_answer(text, stop=stop, spent=(30, 5)) for text, stop in zip(texts, stops, strict=True)]


ANSWER = chat_answer("It is \\boxed{4}.", spent=(30, 5))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_reasoning_ends_while_steps_are_left_for_the_answer(connect, asynchronous):
    script = [*thoughts("<think>One.", "Two.", "Three.", "Four.", "Five."), ANSWER]
    server, small = connect(*script, min_answer_tokens=30)
    graph = create_trim_graph(small, small, policy=small_only(), **SETTINGS)
    question = {"messages": [("user", "2 + 2?")]}
    result = await graph.ainvoke(question) if asynchronous else graph.invoke(question)
    assert {part: sum(by.values()) for part, by in result["trim"]["parts"].items()} == {
        "reasoning": 5,
        "answer": 1,
    }
    # The first call says what is wanted. The fifth ends the reasoning, as the answer may need two steps; in
    # the answer nothing is limited.
    assert asked(server) == [80, None, None, None, 0, None]


def test_reasoning_that_goes_on_may_take_no_more(connect):
    script = [*thoughts("<think>One.", "Two.", "Three.", "Four.", "Five.", "Six.", end="\n\n")]
    server, small = connect(*script, min_answer_tokens=30)
    create_trim_graph(small, small, policy=small_only(), **SETTINGS).invoke(
        {"messages": [("user", "2 + 2?")]}
    )
    assert asked(server)[4:] == [0, 0]


def test_reasoning_in_short_steps_leaves_steps_for_the_answer(connect):
    closed = chat_answer("", stop="</think>", spent=(30, 1))
    thought = thoughts("<think>One.", "Two.", "Three.", end="\n\n")
    server, small = connect(*thought, closed, ANSWER, min_answer_tokens=30)
    settings = {**SETTINGS, "max_steps": 4, "max_step_tokens": 100}
    graph = create_trim_graph(small, small, policy=small_only(), **settings)
    result = graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [300, None, None, 0, None]
    assert result["trim"]["answer"] == "4"


def test_tokens_for_the_answer_are_kept_of_the_solutions_limit(connect):
    server, small = connect(*thoughts("<think>One.", "Two."), ANSWER, min_answer_tokens=30)
    graph = create_trim_graph(small, small, policy=small_only(), max_tokens=45, **SETTINGS)
    graph.invoke({"messages": [("user", "2 + 2?")]})
    # 15 of the 45 are for reasoning, 10 of them after the first step.
    assert asked(server) == [15, 15, None]


def test_a_rule_in_the_reasoning_counts_as_reasoning(connect):
    server, small = connect(*thoughts("<think>One.", "---", "Two."), ANSWER, min_answer_tokens=30)
    graph = create_trim_graph(small, small, policy=small_only(), max_tokens=50, **SETTINGS)
    graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [20, 20, 20, None]


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(large_tokens=35), None),
        (Budget(large_tokens=35, on_exhausted="stop"), 10),
        (Budget(large_cost=35e-6, on_exhausted="stop"), 10),
    ],
    ids=["small", "stop", "stop at a cost"],
)
def test_a_rewrite_leaves_reasoning_to_the_small_model_unless_the_budget_ends_the_run(connect, budget, limit):
    server, model = connect(*thoughts("<think>One.", "Two.", "2."), ANSWER, min_answer_tokens=30)
    graph = create_trim_graph(
        model,
        model,
        lambda question, steps: [0.1 if step == "Two." else 0.9 for step in steps],
        policy=threshold(0.5),
        budget=budget,
        prices=Prices(large=ModelPrice(output=1)),
        **SETTINGS,
    )
    graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [80, None, limit, None]


class BlindLedger(MemoryLedger):
    """Tells `route` that nothing is used, as where other runs use the account between route and call."""

    def used(self, account):
        return LargeUsage()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_call_to_the_end_keeps_them_of_what_its_reservation_leaves(connect, asynchronous):
    server, large = connect(chat_answer("<think>One.</think>\n\nIt is \\boxed{4}."), min_answer_tokens=30)
    ledger = BlindLedger()
    ledger.reserve("user:ann", "another run", lambda used: LargeUsage(60, 1))
    quotas = Quotas(user=Quota(large_tokens=100))
    graph = create_trim_graph(
        large, large, policy=large_only(), ledger=ledger, quotas=quotas, **{**SETTINGS, "max_steps": 4}
    )
    question, context = {"messages": [("user", "2 + 2?")]}, {"user": "ann"}
    if asynchronous:
        await graph.ainvoke(question, context=context)
    else:
        graph.invoke(question, context=context)
    assert [body["max_tokens"] for _, body in server.generations] == [40]
    assert asked(server) == [10]


def test_a_call_to_the_end_keeps_them_of_what_the_budget_leaves(connect):
    server, large = connect(chat_answer("<think>One.</think>\n\nIt is \\boxed{4}."), min_answer_tokens=30)
    budget = Budget(large_tokens=50)
    graph = create_trim_graph(large, large, policy=large_only(), budget=budget, **SETTINGS)
    graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [20]
    assert server.generations[0][1]["max_tokens"] == 50


@pytest.mark.parametrize(
    ("settings", "more"), [({}, {}), ({"min_answer_tokens": 30}, {"thinking": None})], ids=["model", "run"]
)
def test_nothing_is_limited_where_nothing_is_wanted(connect, settings, more):
    server, small = connect(chat_answer("It is \\boxed{4}."), **settings)
    graph = create_trim_graph(small, small, policy=small_only(), **SETTINGS, **more)
    graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [None]


def test_a_server_without_reasoning_ends_the_run_at_its_first_call_whatever_the_fallback(connect):
    server, model = connect(failed(400, REFUSED), min_answer_tokens=30)
    graph = create_trim_graph(model, model, policy=small_only(), on_small_error="large", **SETTINGS)
    with pytest.raises(
        ChatModelContractError, match=r"does not limit reasoning: start vLLM .*--reasoning-parser"
    ):
        graph.invoke({"messages": [("user", "2 + 2?")]})
    assert asked(server) == [80]


def test_another_server_is_refused_before_it_is_asked(connect):
    server, model = connect(ANSWER)
    server.models = {"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 100}]}
    with pytest.raises(ChatModelContractError, match="does not end reasoning at a number of tokens"):
        model.invoke("2 + 2?", thinking_token_budget=5)
    assert not server.generations


def test_a_limit_of_a_call_is_a_whole_number(connect):
    server, model = connect(ANSWER)
    model.invoke("2 + 2?", thinking_token_budget=0)
    assert asked(server) == [0]
    with pytest.raises(
        ValueError, match="thinking_token_budget=-1 is not a whole number of tokens, 0 or more"
    ):
        model.invoke("2 + 2?", thinking_token_budget=-1)
