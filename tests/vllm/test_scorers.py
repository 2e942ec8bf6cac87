"""Scorers without a process reward model over real servers: the probabilities they read are the model's."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from trim_graph import ScorableStep
from trim_graph.adapters import ChatTransformers, ChatVLLM, LLMJudge, TokenProbability
from trim_graph.adapters.prompted.judge import HIGHEST
from trim_graph.examples.arithmetic import LARGE, SMALL, problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold

from .conftest import KEY, KEY_ENV

TOP = 20
BEGUN = "Step 1: 47 + 38 ="
"""The models here cannot judge, but behind this they write a digit, and are not sure of it."""


def begun(model):
    """The model, made to begin its rating with something that a digit follows."""

    def ask(messages, **settings):
        return model.invoke([*messages, AIMessage(BEGUN)], **settings)

    async def aask(messages, **settings):
        return await model.ainvoke([*messages, AIMessage(BEGUN)], **settings)

    return RunnableLambda(ask, aask)


def expected_by_transformers(local, messages) -> float:
    """The expected digit over 9 by the model's own logits, over the likeliest tokens."""
    import torch

    engine = local._load()
    ids = torch.tensor([engine.encode([*messages, AIMessage(BEGUN)])])
    with torch.no_grad():
        probabilities = engine._model(ids).logits[0, -1].softmax(-1)
    mass = total = 0.0
    for p, token in zip(*probabilities.topk(TOP), strict=True):
        text = engine.tokenizer.decode([int(token)]).strip()
        if text in set("0123456789"):
            mass, total = mass + float(p), total + float(p) * int(text)
    assert mass > 0.5
    return total / mass / HIGHEST


@pytest.mark.parametrize("writer", ["small", "large"])
async def test_a_judge_reads_the_digits_probabilities(request, writer):
    served, local = request.getfixturevalue(writer), request.getfixturevalue(f"local_{writer}")
    asked = []
    judge = LLMJudge(begun(served), top_logprobs=TOP)
    form = judge._asked
    judge._asked = lambda *args: asked.append(form(*args)) or asked[-1]
    steps = [ScorableStep(text) for text in ("Step 1: 47 + 38 = 85.", "Step 2: 85 * 7 = 595.")]
    reply = await judge.ascore(problems("standard", 1)[0].question, steps)
    assert len(asked) == 2
    expected = [expected_by_transformers(local, messages) for messages in asked]
    assert reply.scores == pytest.approx(expected, abs=1e-3)
    assert reply.input_tokens == sum(
        local.count_prompt_tokens([*messages, AIMessage(BEGUN)]) for messages in asked
    )
    again = await asyncio.to_thread(judge.score, problems("standard", 1)[0].question, steps)
    assert (again.scores, again.input_tokens) == (reply.scores, 0)


async def test_a_plain_chat_model_works_as_a_judge_of_digits_written(small):
    judge = LLMJudge(begun(small), top_logprobs=0)
    reply = await judge.ascore("1 + 1?", [ScorableStep("2")])
    assert round(reply.scores[0] * HIGHEST) == reply.scores[0] * HIGHEST


async def test_token_probabilities_are_those_of_transformers(servers, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    reported = []
    for small, large in (
        (
            ChatVLLM(model="small", base_url=servers["small"].url, logprobs=True),
            ChatVLLM(model="large", base_url=servers["large"].url, api_key_env=KEY_ENV, logprobs=True),
        ),
        (
            ChatTransformers(model=str(SMALL), logprobs=True),
            ChatTransformers(model=str(LARGE), logprobs=True),
        ),
    ):
        graph = create_trim_graph(small, large, TokenProbability(), policy=threshold(0.97))
        runs = []
        for problem in problems("standard", 10, seed=5):
            result = await graph.ainvoke({"messages": [("user", problem.question)]})
            runs.append((result["messages"][-1].text, result["trim"]))
        reported.append(runs)
    for (text, summary), (other_text, other) in zip(*reported, strict=True):
        assert text == other_text
        assert summary["decisions"] == other["decisions"]
        assert summary["scores"] == pytest.approx(other["scores"], abs=1e-4)
    assert sum(summary["decisions"].get("regenerate", 0) for _, summary in reported[0]) > 3


def to_judge():
    return [HumanMessage(problems("standard", 1)[0].question)]


def label_probabilities_by_transformers(local, messages, labels) -> dict[str, float]:
    """Those of all tokens that spell a label, from the model's own logits."""
    import torch

    engine = local._load()
    with torch.no_grad():
        ids = torch.tensor([engine.encode(messages)])
        probabilities = engine._model(ids).logits[0, -1].softmax(-1)
    found = dict.fromkeys(labels, 0.0)
    for token, p in enumerate(probabilities.tolist()):
        if (text := engine.tokenizer.decode([token]).strip()) in found:
            found[text] += p
    return found


@pytest.mark.parametrize("writer", ["small", "large"])
@pytest.mark.parametrize("settings", [{}, {"max_batch_size": 4}, {"continuation": "raw"}])
async def test_label_tokens_are_read_exactly(servers, monkeypatch, request, writer, settings):
    monkeypatch.setenv(KEY_ENV, KEY)
    local, labels = request.getfixturevalue(f"local_{writer}"), tuple("0123456789")
    model = ChatVLLM(model=writer, base_url=servers[writer].url, api_key_env=KEY_ENV, **settings)
    conversation = [*to_judge(), AIMessage(BEGUN)]
    asked = {"max_tokens": 1, "label_tokens": labels}
    metadata = (await model.ainvoke(conversation, **asked)).response_metadata
    assert metadata["label_tokens_exact"]
    expected = label_probabilities_by_transformers(local, conversation, labels)
    assert metadata["label_probabilities"] == pytest.approx(expected, abs=1e-4)
    assert min(expected.values()) > 0


@pytest.mark.parametrize("writer", ["small", "large"])
async def test_a_judge_of_exact_labels_agrees_with_one_of_the_likeliest(request, writer):
    served = request.getfixturevalue(writer)
    steps = [ScorableStep(text) for text in ("Step 1: 47 + 38 = 85.", "Step 2: 85 * 7 = 595.")]
    scores = []
    for settings in ({}, {"top_logprobs": TOP}):
        judge = LLMJudge(served, **settings)
        form = judge._asked
        judge._asked = lambda *args, form=form: [*form(*args), AIMessage(BEGUN)]
        scores.append((await judge.ascore(problems("standard", 1)[0].question, steps)).scores)
    # The likeliest 20 hold nearly all of the digits' probability behind this beginning.
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
