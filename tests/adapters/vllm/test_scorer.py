"""`VLLMProcessReward` on recorded bodies: what it sends, what it refuses, how calls share a request."""

import asyncio
import json
import pickle
import shlex
import sys
import time

import httpx
import pytest

from tests import tiny_prms
from tests.adapters.recorded_server import RecordedServer, failed
from trim_graph import ScorableStep
from trim_graph.adapters import Scorer, ScorerError, VLLMProcessReward, serve_options
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import QwenPRMFormat, prm_format
from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.batching import ScoreBatcher
from trim_graph.errors import is_context_full

QUESTION = "What is (3 + 4) * 2?"


def steps(*texts):
    return [ScorableStep(text) for text in texts]


@pytest.fixture
def connect(monkeypatch, reward_model, tokenizer):
    """A function from a script to the server and a scorer that talks to it."""
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def make(*script, **settings):
        server = RecordedServer(*script)
        server.models = {"data": [{"id": "m", "root": str(reward_model), "max_model_len": 512}]}
        server._tokenizer = lambda body: {"tokens": tokenizer(body["prompt"]).input_ids}
        monkeypatch.setattr(client, "new_client", server.client)
        base_url = f"http://prm.{time.monotonic_ns()}.test:8000/v1"
        return server, VLLMProcessReward(**{"model": "m", "base_url": base_url, **settings})

    return make


def answer(request: httpx.Request) -> httpx.Response:
    """One pair for each step token; the probability shows the length of the input."""
    ids = json.loads(request.content)["input"]
    data = [[[1 - len(i) / 512, len(i) / 512]] * i.count(3) for i in ids]
    # Not in the order of the questions: the index says which is which.
    entries = [{"index": n, "object": "pooling", "data": pairs} for n, pairs in enumerate(data)][::-1]
    return httpx.Response(200, json={"model": "m", "data": entries})


def gives(data):
    return httpx.Response(200, content=json.dumps({"data": [{"index": 0, "data": data}]}))


class TestScores:
    def test_it_is_a_scorer(self, connect):
        assert isinstance(connect(answer)[1], Scorer)

    async def test_ids_of_the_format_are_sent_and_scores_come_back(self, connect, tokenizer):
        server, scorer = connect(answer)
        texts = ["First <extra_0>", "then<|im_end|>", "so"]
        reply = await scorer.ascore(QUESTION, steps(*texts))
        ((path, body),) = server.generations
        expected = QwenPRMFormat(tokenizer).encode(QUESTION, texts).ids
        assert path == "/pooling"
        assert body == {"model": "m", "task": "token_classify", "use_activation": True, "input": [expected]}
        assert reply.scores == [len(expected) / 512] * 3
        assert reply.input_tokens == len(expected)
        assert scorer.score(QUESTION, steps(*texts)) == reply

    @pytest.mark.parametrize(
        ("question", "given", "complaint"),
        [("", ["x"], "question is empty"), ("q", [], "no steps"), ("q", ["why " * 600], "the PRM takes 512")],
    )
    def test_what_cannot_be_scored_is_not_sent(self, connect, question, given, complaint):
        server, scorer = connect(answer)
        with pytest.raises(ScorerError, match=complaint):
            scorer.score(question, steps(*given))
        assert not server.generations

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (
                [[0.1, 0.9]],
                "gave 1 scores for 2 steps; start the server with --runner pooling --pooler-config",
            ),
            ([], "gave 0 scores for 2 steps"),
            (None, "gave 0 scores"),
            ([[0.1, 0.9], [0.1, float("nan")]], "gave nan for step 2 of 2"),
            ([[0.1, 0.9], [0.1, None]], "gave None for step 2 of 2"),
            ([[0.1, 1.5], [0.1, 0.9]], "gave 1.5 for step 1 of 2"),
            ([[0.1, 0.9], [0.9]], r"gave \[0.9\] for step 2; expected \[wrong, right\]"),
        ],
    )
    def test_an_answer_that_is_no_probability_per_step_is_refused(self, connect, data, complaint):
        _, scorer = connect(gives(data))
        with pytest.raises(ScorerError, match=complaint):
            scorer.score(QUESTION, steps("a", "b"))


class TestFormats:
    """What the formats beside Qwen's send, and both ways in which a pooler answers."""

    @pytest.fixture(params=["math_shepherd", "skywork", "rlhflow"])
    def prm(self, request, tmp_path, connect):
        """The format, its layout, and a function from a script to the server and a scorer."""
        name = request.param
        folder = getattr(tiny_prms, f"save_{name}")(tmp_path / name)
        tokenizer = load_tokenizer(str(folder), chat=False)

        def make(*script):
            server, scorer = connect(*script, format=name)
            server.models = {"data": [{"id": "m", "root": str(folder), "max_model_len": 512}]}
            server._tokenizer = lambda body: {
                "tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)
            }
            return server, scorer

        return name, prm_format(name, tokenizer), make

    TEXTS = ("Step 1: ки + - 7.\n\n+", "<|eot_id|>14", "so")

    @pytest.mark.parametrize("pooling", ["ALL", "STEP"])
    @pytest.mark.parametrize("width", [1, 2])
    def test_scores_are_those_at_our_positions(self, prm, pooling, width):
        name, layout, make = prm
        expected = layout.encode(QUESTION, self.TEXTS)
        tag = expected.ids[expected.step_positions[0]]

        def pooled(request):
            (ids,) = json.loads(request.content)["input"]
            assert ids == expected.ids
            rows = [[1 - n / 512, n / 512][-width:] for n in range(len(ids))]
            kept = [n for n, token in enumerate(ids) if pooling == "ALL" or token == tag]
            return gives([rows[n] for n in kept])

        _, scorer = make(pooled)
        if (name, width) == ("skywork", 2):  # a value head has no second label
            with pytest.raises(ScorerError, match="for step 1; expected one probability"):
                scorer.score(QUESTION, steps(*self.TEXTS))
            return
        reply = scorer.score(QUESTION, steps(*self.TEXTS))
        assert reply.scores == [position / 512 for position in expected.step_positions]
        assert reply.input_tokens == len(expected.ids)

    def test_a_refusal_says_what_to_start(self, prm):
        name, _, make = prm
        server, scorer = make(failed(400, "Unsupported task"))
        with pytest.raises(
            ScorerError, match=r"answered 400: Unsupported task\. If it is no PRM in"
        ) as error:
            scorer.score(QUESTION, steps("a"))
        options = shlex.join(
            serve_options(name, tokenizer=load_tokenizer(server.models["data"][0]["root"], chat=False))
        )
        assert str(error.value).endswith(f"in the format {name}, start the server with {options}")

    def test_a_tag_that_is_another_on_the_server(self, prm):
        _, _, make = prm
        _, scorer = make(gives([[0.5]] * 2))
        with pytest.raises(ScorerError, match=r"gave 2 scores for 3 steps; start the server with --runner"):
            scorer.score("q", steps("a", "b", "c"))


class TestServer:
    def test_transient_failures_are_tried_again(self, connect):
        server, scorer = connect(failed(503), httpx.ReadError("reset"), answer)
        assert len(scorer.score(QUESTION, steps("a")).scores) == 1
        assert len(server.generations) == 3

    def test_what_failed_attempts_have_read_is_counted(self, connect):
        once = connect(answer)[1].score(QUESTION, steps("a")).input_tokens
        _, scorer = connect(failed(504), failed(503), answer)
        assert scorer.score(QUESTION, steps("a")).input_tokens == 2 * once  # a 503 has not begun
        _, scorer = connect(failed(504), max_retries=1)
        with pytest.raises(ScorerError) as raised:
            scorer.score(QUESTION, steps("a"))
        assert raised.value.attempts["count"] == 2
        assert raised.value.attempts["input_tokens"] == 2 * once

    def test_a_refusal_is_a_scorer_error(self, connect):
        server, scorer = connect(failed(400, "no"))
        with pytest.raises(ScorerError, match=r"the PRM m gave no scores: .*prm.* answered 400: no"):
            scorer.score(QUESTION, steps("a"))
        assert len(server.generations) == 1

    def test_a_refusal_for_want_of_room_is_distinguished_from_others(self, connect):
        said = "This model's maximum context length is 100 tokens. However, your prompt contains 120"
        for message, full in ((said, True), ("no", False)):
            _, scorer = connect(failed(400, message))
            with pytest.raises(ScorerError) as caught:
                scorer.score(QUESTION, steps("a"))
            assert is_context_full(caught.value) is full

    def test_a_server_that_is_not_there(self, connect):
        server, scorer = connect(answer, max_retries=1)
        server.models = httpx.ConnectError("refused")
        with pytest.raises(
            ScorerError, match=rf"no server answers at {scorer._server.root} .*\(2 attempts\)"
        ):
            scorer.score(QUESTION, steps("a"))

    def test_another_tokenizer_is_noticed(self, connect):
        server, scorer = connect(answer)
        server._tokenizer = lambda body: {"tokens": [1, 2]}
        with pytest.raises(ScorerError, match="is not the one of the PRM"):
            scorer.score(QUESTION, steps("a"))
        server.tokenizer_is_there = False  # behind a proxy there is nothing to compare with
        assert scorer.score(QUESTION, steps("a")).scores

    def test_a_tokenizer_that_is_not_there(self, connect):
        server, scorer = connect(answer)
        server.models = {"data": [{"id": "m", "root": "/srv/models/prm"}]}
        with pytest.raises(ScorerError, match=r"cannot be loaded from /srv/models/prm: .*setting tokenizer"):
            scorer.score(QUESTION, steps("a"))

    def test_a_tokenizer_of_ones_own(self, connect, reward_model):
        server, scorer = connect(answer, tokenizer=str(reward_model))
        server.models = {"data": [{"id": "m", "root": "/srv/models/prm"}]}
        assert scorer.score(QUESTION, steps("a")).scores

    @pytest.mark.parametrize("missing", ["transformers", "jinja2"])
    def test_without_what_reads_a_tokenizer_the_extra_is_named(self, connect, monkeypatch, missing):
        _, scorer = connect(answer)
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ImportError, match=r'pip install "trim-graph\[vllm\]"'):
            scorer.score(QUESTION, steps("a"))

    def test_the_key_is_sent_and_not_shown(self, connect, monkeypatch):
        monkeypatch.setenv("PRM_KEY", "sk-secret")
        server, scorer = connect(answer, api_key_env="PRM_KEY")
        scorer.score(QUESTION, steps("a"))
        assert {r.headers["authorization"] for r in server.requests} == {"Bearer sk-secret"}
        assert "sk-secret" not in repr(scorer)
        again = pickle.loads(pickle.dumps(scorer))
        assert b"sk-secret" not in pickle.dumps(scorer)
        assert again.score(QUESTION, steps("a")) == scorer.score(QUESTION, steps("a"))

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"format": "other"},
            {"max_batch_size": 0},
            {"max_requests": 0},
            {"max_retries": -1},
            {"read_timeout": 0},
            {"base_url": "x"},
        ],
    )
    def test_the_constructor_refuses_nonsense(self, kwargs):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            VLLMProcessReward("m", **kwargs)


class TestBatches:
    async def test_calls_at_the_same_time_share_requests(self, connect):
        server, scorer = connect(answer)
        texts = [["x" * n] * (n % 3 + 1) for n in range(1, 25)]
        alone = [await scorer.ascore(QUESTION, steps(*t)) for t in texts]
        server.requests.clear()
        together = await asyncio.gather(*(scorer.ascore(QUESTION, steps(*t)) for t in texts))
        assert together == alone
        assert len(server.generations) < len(texts) / 2

    async def test_no_batch_exceeds_max_batch_size(self, connect):
        server, scorer = connect(answer, max_batch_size=5)
        await asyncio.gather(*(scorer.ascore(QUESTION, steps("a")) for _ in range(24)))
        assert max(len(body["input"]) for _, body in server.generations) <= 5

    async def test_one_refused_input_leaves_the_others_their_scores(self, connect):
        def picky(request):
            inputs = json.loads(request.content)["input"]
            return failed(400, "no") if any(len(i) > 100 for i in inputs) else answer(request)

        _, scorer = connect(picky)
        await scorer.ascore(QUESTION, steps("a"))
        asked = [scorer.ascore(QUESTION, steps(t)) for t in ("a", "because " * 40, "b")]
        one, two, three = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(two, ScorerError)
        assert len(one.scores) == len(three.scores) == 1


class TestCallBatcher:
    async def test_what_comes_while_requests_are_under_way_waits_and_goes_together(self):
        sent = []

        async def send(questions):
            sent.append(list(questions))
            await asyncio.sleep(0.02)
            return [q * 2 for q in questions]

        batcher = ScoreBatcher(send, max_batch=10, max_requests=1)
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.01)
        later = [asyncio.create_task(batcher.ask(n)) for n in range(2, 6)]
        assert [await call for call in (first, *later)] == [2, 4, 6, 8, 10]
        assert sent == [[1], [2, 3, 4, 5]]

    async def test_calls_that_follow_one_another_are_all_answered(self):
        async def send(questions):
            return list(questions)

        batcher = ScoreBatcher(send, max_batch=2, max_requests=1)

        async def caller(n):
            for _ in range(50):
                assert await batcher.ask(n) == n

        await asyncio.wait_for(asyncio.gather(*(caller(n) for n in range(5))), 10)

    async def test_a_request_nobody_waits_for_is_cancelled(self):
        cancelled = asyncio.Event()

        async def send(questions):
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        batcher = ScoreBatcher(send, max_batch=2)
        calls = [asyncio.create_task(batcher.ask(n)) for n in range(2)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        await asyncio.sleep(0.01)
        assert not cancelled.is_set()
        calls[1].cancel()
        await asyncio.wait_for(cancelled.wait(), 5)
        assert all(
            isinstance(r, asyncio.CancelledError)
            for r in await asyncio.gather(*calls, return_exceptions=True)
        )

    async def test_an_error_reaches_every_call_and_the_next_one_works(self):
        answers = [LookupError("gone"), None]

        async def send(questions):
            if error := answers.pop(0):
                raise error
            return questions

        batcher = ScoreBatcher(send, max_batch=9)
        outcomes = await asyncio.gather(*(batcher.ask(n) for n in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["gone"] * 3
        assert await batcher.ask(1) == 1
