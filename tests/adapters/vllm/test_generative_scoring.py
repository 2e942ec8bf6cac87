"""`VLLMGenerativeProcessReward` on recorded bodies: what it sends, reads, refuses and counts."""

import json
import pickle
import time

import httpx
import pytest

from tests import tiny_prms
from tests.adapters.recorded_server import RecordedServer, failed
from trim_graph import ScorableStep
from trim_graph.adapters import Scorer, ScorerError, VLLMGenerativeProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import prm_format
from trim_graph.adapters.vllm import client

QUESTION, PATH = tiny_prms.QUESTION, "/generative_scoring"


def steps(*texts):
    return [ScorableStep(text) for text in texts]


def score_of(prompt, labels):
    """A number that differs from prompt to prompt, as a server would give it for the first label."""
    plus = (len(prompt) % 7 + 1) / 10
    return plus if labels[0] > labels[1] else 1 - plus


def answer(request):
    body = json.loads(request.content)
    prompts = [body["query"] + item for item in body["items"]]
    data = [
        {"index": number, "object": "score", "score": score_of(prompt, body["label_token_ids"])}
        for number, prompt in enumerate(prompts)
    ][::-1]
    usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)}
    return httpx.Response(200, json={"object": "list", "model": "m", "data": data, "usage": usage})


@pytest.fixture(params=["math_shepherd", "rlhflow"])
def prm(request, tmp_path, monkeypatch):
    """A function from a script to the server and a scorer, and the layout of the format."""
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    format = request.param
    folder = getattr(tiny_prms, f"save_{format}")(tmp_path / format)
    layout = prm_format(format, load_tokenizer(str(folder), chat=format == "rlhflow"))

    def connect(*script, **settings):
        server = RecordedServer(*script)
        server.models = {"data": [{"id": "m", "root": str(folder), "max_model_len": 512}]}
        monkeypatch.setattr(client, "new_client", server.client)
        base_url = f"http://generate.{time.monotonic_ns()}.test:8000/v1"
        return server, VLLMGenerativeProcessReward("m", format=format, base_url=base_url, **settings)

    return connect, layout


def expected(layout, question, texts):
    """The prompt of each step's score, and what the recorded server makes of it."""
    asked = layout.encode(question, texts)
    wrong, right = layout.answer_ids
    prompts = [asked.ids[: position + 1] for position in asked.step_positions]
    return prompts, [score_of(prompt, [right, wrong]) for prompt in prompts]


async def test_prompts_up_to_each_step_are_sent_as_one_request_and_the_first_label_comes_back(prm):
    connect, layout = prm
    server, scorer = connect(answer)
    assert isinstance(scorer, Scorer)
    texts = ["so", "3 + 4 = 7 ки +", "is 7"]
    reply = await scorer.ascore(QUESTION, steps(*texts))
    prompts, scores = expected(layout, QUESTION, texts)
    assert reply.scores == scores
    *checks, body = server.bodies(PATH)
    assert [one["apply_softmax"] for one in checks] == [False, False]  # how likely + and - are together
    wrong, right = layout.answer_ids
    assert body["label_token_ids"] == [right, wrong]
    assert body["apply_softmax"] is True
    assert [body["query"] + item for item in body["items"]] == prompts
    assert reply.input_tokens == sum(map(len, prompts)) + 2 * len(prompts[0])
    assert reply.output_tokens == 3 + 2


async def test_a_known_step_is_not_asked_about_again(prm):
    connect, layout = prm
    server, scorer = connect(answer, max_batch_size=2)
    await scorer.ascore(QUESTION, steps("so", "a", "b"))
    asked = len(server.bodies(PATH))
    assert asked == 2 + 2  # the check of the labels, then 2 steps and 1
    reply = await scorer.ascore(QUESTION, steps("so", "a", "b", "c"))
    prompts, scores = expected(layout, QUESTION, ["so", "a", "b", "c"])
    assert (reply.scores, reply.input_tokens, reply.output_tokens) == (scores, len(prompts[-1]), 1)
    assert scorer.score(QUESTION, steps("so", "a", "b", "c")).input_tokens == 0
    assert len(server.bodies(PATH)) == asked + 1


@pytest.mark.parametrize("status", [404, 501])
async def test_a_server_without_the_route_is_named_with_the_way_out(prm, status):
    server, scorer = prm[0](failed(status, "Not Found"))
    with pytest.raises(ScorerError, match=r"needs vLLM 0\.32 or later .* type vllm_prm") as caught:
        await scorer.ascore(QUESTION, steps("so"))
    assert caught.value.attempts["count"] == 1
    assert len(server.bodies(PATH)) == 1


@pytest.mark.parametrize("score", [None, "0.5", float("nan"), 1.5])
async def test_a_score_that_is_no_probability_is_refused(prm, score):
    content = json.dumps({"data": [{"index": 0, "score": score}]})
    _, scorer = prm[0](httpx.Response(200, content=content))
    with pytest.raises(ScorerError, match=r"for item 0 of 1, not with a probability"):
        await scorer.ascore(QUESTION, steps("so"))


async def test_labels_without_probability_are_named_once(prm):
    def unlikely(request):
        body = json.loads(request.content)
        score = 0.5 if body["apply_softmax"] else 0.01
        return httpx.Response(200, json={"data": [{"index": 0, "score": score}]})

    _, scorer = prm[0](unlikely)
    with pytest.warns(RuntimeWarning, match=r"gives \+ and - together 2\.0%"):
        await scorer.ascore(QUESTION, steps("so"))
    await scorer.ascore(QUESTION, steps("then"))


async def test_an_attempt_that_broke_counts_in_full(prm):
    connect, layout = prm
    _, scorer = connect(answer, answer, failed(500), answer)
    reply = await scorer.ascore(QUESTION, steps("so"))
    prompts, _ = expected(layout, QUESTION, ["so"])
    assert reply.failed_attempts == 1
    assert reply.input_tokens == (2 + 1 + 1) * len(prompts[0])


@pytest.mark.parametrize(
    ("question", "given", "complaint"),
    [("", ["x"], "question is empty"), ("q", [], "no steps"), ("q", ["why " * 600], "the PRM takes 511")],
)
async def test_what_cannot_be_scored_is_not_sent(prm, question, given, complaint):
    server, scorer = prm[0](answer)
    with pytest.raises(ScorerError, match=complaint):
        await scorer.ascore(question, steps(*given))
    assert not server.bodies(PATH)


async def test_a_server_that_hides_its_longest_prompt_is_refused(prm):
    server, scorer = prm[0](answer)
    server.models = {"data": [{**server.models["data"][0], "max_model_len": None}]}
    with pytest.raises(ScorerError, match="does not report max_model_len"):
        await scorer.ascore(QUESTION, steps("so"))


@pytest.mark.parametrize("format", ["qwen", "skywork"])
def test_a_format_with_a_head_of_its_own_is_refused(format):
    with pytest.raises(ValueError, match=rf"format='{format}' .* math_shepherd or rlhflow"):
        VLLMGenerativeProcessReward("m", format=format)


def test_it_is_pickled_by_its_settings():
    scorer = VLLMGenerativeProcessReward("m", format="rlhflow", cache_size=7)
    assert pickle.loads(pickle.dumps(scorer)).model_dump() == scorer.model_dump()
