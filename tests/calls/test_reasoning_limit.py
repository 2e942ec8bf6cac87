"""Models that keep tokens for their answer: what vLLM is asked for, and servers that cannot do it."""

import time

import pytest

from tests.adapters.recorded_server import RecordedServer, chat_answer, failed
from trim_graph import Budget, create_trim_graph
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.budget.limits import Quota, Quotas
from trim_graph.budget.usage import LargeUsage, ModelPrice, Prices
from trim_graph.errors import ChatModelContractError
from trim_graph.policies import large_only, small_only, threshold

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
