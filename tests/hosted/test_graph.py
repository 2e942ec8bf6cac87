"""The graph over hosted models: plain `ChatOpenAI`, a server that ignores prefix and `stop`, an LLM judge."""

import pytest
from langchain_core.callbacks import get_usage_metadata_callback

from trim_graph import Budget, ChatModelContractError, ModelPrice, Prices, create_trim_graph
from trim_graph.adapters import ChatVLLM, LLMJudge, TokenProbability
from trim_graph.adapters.prompted.protocol import DONE, START
from trim_graph.examples.arithmetic import is_right, problems
from trim_graph.examples.hosted.manners import Arithmetic
from trim_graph.examples.hosted.scripted_server import Answer
from trim_graph.policies import large_only, small_only, threshold

from .conftest import openai

ASKED = sorted(problems("standard", 4, seed=3), key=lambda p: all(o.kind != "multiply" for o in p.operations))
MANNERS = ("obedient", "forgetful", "talkative")
NOTE = "the {} model continues by prompt: it cannot carry on a text exactly"


def solver(server, **settings):
    settings = {"policy": threshold(7 / 9), **settings}
    scorer = LLMJudge(openai(server, "judge"))
    return create_trim_graph(openai(server, "small"), openai(server, "large"), scorer, **settings)


def ask(graph, problem=ASKED[0], config=None):
    return graph.invoke({"messages": [("user", problem.question)]}, config)


@pytest.fixture(scope="module")
def exact_answers():
    """What models that continue exactly make of the problems, over the same server."""
    from trim_graph.examples.hosted.scripted_server import ScriptedServer

    reported = {}
    with ScriptedServer(Arithmetic(ASKED)) as server:
        small, large = (
            ChatVLLM(model=n, base_url=server.url, continuation="chat") for n in ("small", "large")
        )
        graph = create_trim_graph(small, large, LLMJudge(openai(server, "judge")), policy=threshold(7 / 9))
        for problem in ASKED:
            reported[problem.question] = ask(graph, problem)
    return reported


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("manner", MANNERS)
async def test_every_manner_gives_the_solution_of_exact_continuation(
    serve, exact_answers, manner, asynchronously
):
    server = serve(Arithmetic(ASKED, manner))
    graph = solver(server)
    for problem in ASKED:
        given = {"messages": [("user", problem.question)]}
        result = await graph.ainvoke(given) if asynchronously else graph.invoke(given)
        exact = exact_answers[problem.question]
        assert result["messages"][-1].text == exact["messages"][-1].text
        assert is_right(problem, result["messages"][-1].text)
        summary = result["trim"]
        assert summary["stopped"] == "finished"
        assert summary["decisions"] == exact["trim"]["decisions"]
        assert summary["scores"] == pytest.approx(exact["trim"]["scores"])
        assert summary["usage"]["overshoot_tokens"] == 0
        extra = summary["usage"]["small"]["calls"] - exact["trim"]["usage"]["small"]["calls"]
        assert extra == (1 if manner == "forgetful" else 0)
    assert not any("stop" in body for body in server.requests)


def test_the_trace_says_so_once_a_writer(serve, exact_answers):
    graph = solver(serve(Arithmetic(ASKED)))
    events = list(graph.stream({"messages": [("user", ASKED[0].question)]}, stream_mode="custom"))
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert sorted(notes) == [NOTE.format("large"), NOTE.format("small")]
    assert sorted(events[-1]["summary"]["notes"]) == sorted(notes)
    assert exact_answers[ASKED[0].question]["trim"]["notes"] == []


def test_a_handover_asks_for_all_that_remains(serve):
    for manner in MANNERS:
        server = serve(Arithmetic(ASKED, manner))
        result = ask(solver(server, policy=lambda seen: "handover" if seen.index == 1 else "accept"))
        assert is_right(ASKED[0], result["messages"][-1].text)
        assert result["trim"]["steps"]["small"] == 1
        assert result["trim"]["steps"]["large"] > 2
        assert result["trim"]["decisions"]["handover"] == 1


def test_every_token_of_every_call_is_counted_once(serve):
    server = serve(Arithmetic(ASKED, "talkative"))
    graph = solver(server)
    billed = {"small": [0, 0], "large": [0, 0], "judge": [0, 0]}
    answer = server.answer

    def billing(body):
        status, made = answer(body)
        billed[body["model"]][0] += made["usage"]["prompt_tokens"]
        billed[body["model"]][1] += made["usage"]["completion_tokens"]
        return status, made

    server.answer = billing
    with get_usage_metadata_callback() as counted:
        result = ask(graph)
    spend = result["trim"]["usage"]
    for writer in ("small", "large"):
        assert [spend[writer]["input_tokens"], spend[writer]["output_tokens"]] == billed[writer]
        reported = counted.usage_metadata[writer]
        assert [reported["input_tokens"], reported["output_tokens"]] == billed[writer]
    assert spend["scorer"]["input_tokens"] == billed["judge"][0]


def test_the_judge_is_asked_once_a_step_and_draft(serve):
    server = serve(Arithmetic(ASKED))
    summary = ask(solver(server))["trim"]
    asked = sum(body["model"] == "judge" for body in server.requests)
    # The last step needs no rating where the large model wrote it.
    drafts = sum(summary["steps"].values()) + summary["decisions"]["regenerate"]
    assert asked == drafts - (summary["scores"][-1] is None)


def test_the_budget_reaches_the_server_as_max_tokens(serve):
    server = serve(Arithmetic(ASKED))
    summary = ask(solver(server, policy=large_only(), budget=Budget(large_tokens=60), max_step_tokens=40))[
        "trim"
    ]
    limits = [b["max_completion_tokens"] for b in server.requests if b["model"] == "large"]
    assert limits
    assert limits[0] <= 60
    assert summary["usage"]["large"]["output_tokens"] <= 60 + len(limits)
    assert max(b["max_completion_tokens"] for b in server.requests if b["model"] == "small") == 40


def test_the_limit_on_cost_counts_what_is_really_sent(serve):
    prices = Prices(large=ModelPrice(input=1000.0, output=1.0))
    server = serve(Arithmetic(ASKED))
    result = ask(solver(server, policy=large_only(), budget=Budget(large_cost=0.7), prices=prices))
    assert result["trim"]["usage"]["large"]["calls"] >= 1
    assert result["trim"]["cost"] <= 0.7


def test_a_model_that_ignores_its_token_limit_is_reported(serve):
    server = serve(lambda body: f"{START}\n{'word ' * 50}\n{DONE}")
    server_cut = server.answer
    server.answer = lambda body: server_cut({**body, "max_completion_tokens": None})
    result = ask(solver(server, policy=large_only(), budget=Budget(large_tokens=20), max_step_tokens=20))
    assert result["trim"]["usage"]["overshoot_tokens"] > 20


def test_a_step_cut_off_by_its_token_limit_is_carried_on(serve):
    whole = "Adding the first two numbers gives 85 and then 90."

    def carry_on(body):
        turns = body["messages"]
        last = turns[-2]["content"] if turns[-2]["role"] == "assistant" else ""
        if not last:
            return f"{START}\n{whole}"
        return DONE if last == whole else f"{START}\n{whole}\n{DONE}"

    server = serve(carry_on)
    result = ask(solver(server, policy=small_only(), max_step_tokens=8))
    assert "cut off" in server.requests[1]["messages"][-1]["content"]
    assert result["messages"][-1].text.startswith("Adding the first two")
    assert result["messages"][-1].text in whole


@pytest.mark.parametrize(
    ("answers", "text", "stopped"),
    [
        (
            ["One is 1.", "One is 1.\n\nTwo is 2.", "Two is 2.\n\nSo it is \\boxed{3}.", DONE],
            "One is 1.\n\nTwo is 2.\n\nSo it is \\boxed{3}.",
            "finished",
        ),
        (["One is 1.", ""], "One is 1.", "finished"),
        (
            ["It is \\boxed{3}, as we will see.", f"{START}\nTwo is 2.\n{DONE}"],
            "It is \\boxed{3}, as we will see.\n\nTwo is 2.",
            "finished",
        ),
        (["One is 1.", "One is 1."], "One is 1.", "no_step"),
        ([""], "", "no_step"),
    ],
    ids=["repeats", "empty", "mentions a box", "has nothing new", "says nothing at all"],
)
def test_answers_out_of_line(serve, answers, text, stopped):
    server = serve(lambda body: answers[min(len(server.requests), len(answers)) - 1])
    result = ask(solver(server, policy=small_only()))
    assert result["messages"][-1].text == text
    assert result["trim"]["stopped"] == stopped


def test_no_usage_is_a_clear_error(serve):
    server = serve(lambda body: Answer("One.", usage=False))
    with pytest.raises(ChatModelContractError, match="small model's answer has no usage_metadata"):
        ask(solver(server))


def test_a_failing_server_takes_the_declared_way_out(serve):
    script = Arithmetic(ASKED)

    def down(body):
        return Answer("overloaded", status=503) if body["model"] == "large" else script(body)

    result = ask(solver(serve(down), on_large_error="accept"))
    assert result["trim"]["stopped"] == "finished"
    assert any("overloaded" in note for note in result["trim"]["notes"])

    def no_judge(body):
        return Answer("I would say it is fine.") if body["model"] == "judge" else script(body)

    result = ask(solver(serve(no_judge), on_scorer_error="accept"))
    assert result["trim"]["usage"]["scorer"]["failed_calls"] > 0
    assert result["trim"]["usage"]["scorer"]["input_tokens"] > 0


def test_token_probability_scores_hosted_models(serve):
    import math

    def reported(body):
        tokens = [(START, 0.1), ("\n", 0.1), ("So ", 0.9), ("it is.", 0.5), ("\n", 0.1), (DONE, 0.1)]
        content = [{"token": t, "logprob": math.log(p), "bytes": None, "top_logprobs": []} for t, p in tokens]
        return Answer("".join(t for t, _ in tokens), logprobs={"content": content, "refusal": None})

    server = serve(reported)
    models = [openai(server, name, logprobs=True) for name in ("small", "large")]
    graph = create_trim_graph(*models, TokenProbability(), policy=threshold(0.5))
    assert ask(graph)["trim"]["scores"] == [pytest.approx(0.7)]


def test_streaming_shows_accepted_text_once(serve):
    graph = solver(serve(Arithmetic(ASKED, "talkative")))
    given = {"messages": [("user", ASKED[0].question)]}
    chunks = [chunk.text for chunk, _ in graph.stream(given, stream_mode="messages")]
    assert is_right(ASKED[0], "".join(chunks))
    assert START not in "".join(chunks)
