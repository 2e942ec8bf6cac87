"""Which replica a question goes to, and what happens when one fails."""

import asyncio
import json
import math
import time
from collections import Counter
from functools import partial

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from tests.adapters.recorded_server import RecordedServer, chat_answer, failed
from trim_graph import ScorableStep
from trim_graph.adapters import ChatVLLM, ModelServerError, ScorerError, VLLMProcessReward
from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.client import VLLMServer
from trim_graph.adapters.vllm.replicas import (
    BALANCE,
    COOLDOWN_S,
    LEAST_BOUND,
    Replicas,
    check_base_urls,
    conversation_key,
    rank,
)

roots = st.lists(
    st.integers(1, 65535).map(lambda port: f"http://gpu:{port}"), min_size=2, max_size=8, unique=True
)


class TestRank:
    @settings(deadline=None, max_examples=50)
    @given(roots, st.text())
    def test_it_holds_every_replica_whatever_the_order_of_the_list(self, names, key):
        assert sorted(rank(names, key)) == sorted(names)
        assert rank(names[::-1], key) == rank(names, key)

    @settings(deadline=None, max_examples=50)
    @given(roots, st.text(), st.data())
    def test_a_lost_replica_moves_only_its_own_questions(self, names, key, data):
        lost = data.draw(st.sampled_from(names))
        kept = [name for name in names if name != lost]
        assert rank(kept, key) == [name for name in rank(names, key) if name != lost]

    @settings(deadline=None, max_examples=20)
    @given(roots, st.integers(0, 10**6))
    def test_questions_spread_evenly_also_those_of_a_lost_one(self, names, start):
        keys = [f"question {number}" for number in range(start, start + 1000)]
        orders = [rank(names, key) for key in keys]
        for firsts, count in (
            ([order[0] for order in orders], len(names)),
            ([order[1] for order in orders if order[0] == names[0]], len(names) - 1),
        ):
            counts, mean = Counter(firsts), len(firsts) / count
            spread = 6 * math.sqrt(mean) + 1  # six standard deviations
            assert all(abs(counts[name] - mean) < spread for name in counts)
            assert len(counts) == count

    @settings(deadline=None, max_examples=50)
    @given(st.text(), st.text(), st.text())
    def test_all_steps_of_a_solution_have_one_key(self, system, question, text):
        asked = [SystemMessage(system), HumanMessage(question)]
        assert conversation_key([*asked, AIMessage(text)]) == conversation_key(asked)
        assert conversation_key([*asked, AIMessage(text), HumanMessage("?")]) != conversation_key(asked)


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([], "empty list"),
        (["http://a:1/v1", "http://a:1"], "http://a:1 more than once"),
        (["http://a:1", "ftp://b"], r"base_url\[1\] does not begin with http://"),
    ],
)
def test_wrong_lists_are_refused(urls, said):
    with pytest.raises(ValueError, match=said):
        check_base_urls(urls)
    with pytest.raises(ValueError, match=said):
        ChatVLLM(model="m", base_url=urls)
    with pytest.raises(ValueError, match=said):
        VLLMProcessReward("m", base_url=urls)


@pytest.fixture
def hosts(monkeypatch):
    """A function that makes replicas of the given scripts, and their addresses."""
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made: dict[str, RecordedServer] = {}

    async def answer(request: httpx.Request) -> httpx.Response:
        return await made[request.url.host]._answer(request)

    monkeypatch.setattr(
        client, "new_client", lambda most: httpx.AsyncClient(transport=httpx.MockTransport(answer))
    )

    def make(*scripts):
        servers = {f"gpu{n}.{time.monotonic_ns()}.test": RecordedServer(s) for n, s in enumerate(scripts)}
        made.update(servers)
        return list(servers.values()), [f"http://{host}/v1" for host in servers]

    return make


def first_of(urls, messages):
    best = rank(check_base_urls(urls), conversation_key(messages))[0]
    return [url.removesuffix("/v1") for url in urls].index(best)


def ask(model, number, text=""):
    asked = [HumanMessage(f"What is {number}?")]
    return model.invoke([*asked, AIMessage(text)] if text else asked)


class TestLoad:
    """Calls of this process under way, each counted until it ends."""

    @pytest.fixture
    def load(self):
        """A function that begins so many calls with a key, and returns where they are; all end afterwards."""
        ended, asked = asyncio.Event(), list[asyncio.Task[None]]()
        begun = Counter[str]()

        async def begin(replicas, key, count):
            async def ask(route):
                begun[route.root] += 1
                await ended.wait()

            for _ in range(count):
                route = replicas.route(key)
                asked.append(asyncio.create_task(route.retrying(partial(ask, route))))
                await asyncio.sleep(0)
            return begun

        begin.end = lambda: (ended.set(), asyncio.gather(*asked))[1]
        return begin

    async def test_a_question_that_is_asked_many_times_at_once_does_not_crowd_on_one_replica(self, load):
        replicas = Replicas.at([f"http://crowd{n}.test:1" for n in range(3)])
        first, second, third = rank(list(replicas.servers), "a question")
        begun = await load(replicas, "a question", LEAST_BOUND)
        assert begun == {first: LEAST_BOUND}
        begun = await load(replicas, "a question", 120 - LEAST_BOUND)
        assert sum(begun.values()) == 120
        assert begun[first] == begun[second] == math.ceil(BALANCE * 120 / 3)
        await load.end()
        assert (await load(replicas, "a question", 1))[first] == begun[first]
        assert begun[third] == 20

    async def test_few_questions_stay_where_they_are(self, load):
        replicas = Replicas.at([f"http://few{n}.test:1" for n in range(4)])
        keys = [f"question {n}" for n in range(LEAST_BOUND)]
        for key in keys:
            begun = await load(replicas, key, 1)
        assert begun == Counter(rank(list(replicas.servers), key)[0] for key in keys)
        await load.end()

    async def test_a_call_that_fails_or_is_cancelled_is_no_longer_counted(self):
        replicas = Replicas.at([f"http://over{n}.test:1" for n in range(2)])
        (server, _) = replicas.route("key")._order

        async def fail():
            raise ModelServerError("refused")

        for _ in range(2 * LEAST_BOUND):
            with pytest.raises(ModelServerError):
                await replicas.route("key").retrying(fail)
            waiting = asyncio.create_task(replicas.route("key").retrying(asyncio.Event().wait))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert replicas.has_room(server)
        route = replicas.route("key")
        await route.retrying(partial(asyncio.sleep, 0))
        assert route.root == server.root

    async def test_a_lost_replica_is_not_asked_though_the_others_are_full(self, load):
        replicas = Replicas.at([f"http://full{n}.test:1" for n in range(2)])
        lost, left = (replicas.servers[root] for root in rank(list(replicas.servers), "key"))
        replicas.failed(lost)
        begun = await load(replicas, "key", 3 * LEAST_BOUND)
        assert begun == {left.root: 3 * LEAST_BOUND}
        await load.end()


class TestChat:
    def test_the_steps_of_a_question_stay_on_one_replica(self, hosts):
        servers, urls = hosts(chat_answer("so"), chat_answer("so"), chat_answer("so"))
        model = ChatVLLM(model="m", base_url=urls)
        for number in range(24):
            before = [len(server.generations) for server in servers]
            for text in ("", "one\n\n", "one\n\ntwo\n\n"):
                ask(model, number, text)
            now = [len(server.generations) for server in servers]
            moved = [after - earlier for after, earlier in zip(now, before, strict=True)]
            assert sorted(moved) == [0, 0, 3]
            assert moved[first_of(urls, [HumanMessage(f"What is {number}?")])] == 3
        assert all(server.generations for server in servers)

    @pytest.mark.parametrize(
        "failure", [httpx.ConnectError("refused"), httpx.ReadError("reset"), failed(500), failed(503)]
    )
    def test_a_lost_replica_moves_its_questions_and_no_others(self, hosts, failure):
        servers, urls = hosts(failure, chat_answer("so"), chat_answer("so"))
        model = ChatVLLM(model="m", base_url=urls)
        own = set()
        for number in range(24):
            answer = ask(model, number)
            assert answer.content == "so"
            first = first_of(urls, [HumanMessage(f"What is {number}?")])
            if "failed_attempts" in answer.response_metadata:
                assert answer.response_metadata["failed_attempts"]["count"] == 1
                assert first == 0
            if first:
                own.add((number, first))
        # Within the cooldown nobody asks it again.
        assert len(servers[0].generations) == 1
        for number, first in own:
            said = [body["messages"][0]["content"] for _, body in servers[first].generations]
            assert f"What is {number}?" in said

    def test_a_busy_replica_keeps_its_question(self, hosts):
        servers, urls = hosts(chat_answer("so"), chat_answer("so"))
        first = first_of(urls, [HumanMessage("What is 1?")])
        servers[first].script = [failed(429), failed(429), chat_answer("so")]
        answer = ask(ChatVLLM(model="m", base_url=urls), 1)
        assert answer.response_metadata["failed_attempts"]["count"] == 2
        assert (len(servers[first].generations), len(servers[1 - first].generations)) == (3, 0)

    @pytest.mark.parametrize("retries", [0, 1, 2, 5])
    def test_attempts_are_those_of_the_setting_and_errors_name_the_replicas(self, hosts, retries):
        servers, urls = hosts(failed(503), failed(503), failed(503))
        model = ChatVLLM(model="m", base_url=urls, max_retries=retries, continuation="chat")
        with pytest.raises(ModelServerError, match=rf"503: no \({retries + 1} attempts") as caught:
            ask(model, 1)
        counts = [len(server.generations) for server in servers]
        assert sum(counts) == retries + 1
        assert max(counts) - min(counts) <= 1
        asked = [url[:-3] for url, count in zip(urls, counts, strict=True) if count]
        assert all(url in str(caught.value) for url in asked)

    def test_a_refusal_is_not_taken_elsewhere(self, hosts):
        servers, urls = hosts(failed(400), failed(400))
        with pytest.raises(ModelServerError, match="400"):
            ask(ChatVLLM(model="m", base_url=urls), 1)
        assert sum(len(server.generations) for server in servers) == 1

    def test_a_move_does_not_wait(self, hosts, monkeypatch):
        def waits(state):
            raise AssertionError("it waits")

        monkeypatch.setattr(client, "_backoff", waits)
        servers, urls = hosts(chat_answer("so"), chat_answer("so"))
        servers[first_of(urls, [HumanMessage("What is 1?")])].script = [failed(503)]
        assert ask(ChatVLLM(model="m", base_url=urls), 1).content == "so"

    def test_a_stream_that_does_not_begin_moves_too(self, hosts):
        servers, urls = hosts(chat_answer("so"), chat_answer("so"))
        first = first_of(urls, [HumanMessage("What is 1?")])
        servers[first].script = [httpx.ReadError("reset")]
        servers[1 - first].script = [failed(400)]
        with pytest.raises(ModelServerError, match=rf"{urls[1 - first][:-3]} answered 400"):
            list(ChatVLLM(model="m", base_url=urls, continuation="chat").stream("What is 1?"))


class TestCooldown:
    @pytest.fixture
    def rig(self):
        now = [100.0]
        servers = [VLLMServer(root=f"http://gpu{n}") for n in range(3)]
        return now, servers, Replicas(servers, clock=lambda: now[0])

    def test_one_call_finds_out_whether_it_is_back(self, rig):
        now, servers, replicas = rig
        assert replicas.choose(servers, []) is servers[0]
        replicas.failed(servers[0])
        assert replicas.choose(servers, []) is servers[1]
        now[0] += COOLDOWN_S
        assert replicas.choose(servers, []) is servers[0]
        assert replicas.choose(servers, []) is servers[1]
        replicas.answered(servers[0])
        assert replicas.choose(servers, []) is servers[0]

    def test_where_none_is_well_all_are_tried_in_order_and_again(self, rig):
        _, servers, replicas = rig
        tried = []
        for server in servers:
            replicas.failed(server)
        for expected in [*servers, servers[0]]:
            assert replicas.choose(servers, tried) is expected
            tried = [other for other in tried if other is not expected] + [expected]
        assert replicas.choose(servers, tried) is servers[1]


class TestScorer:
    @pytest.fixture
    def scorers(self, hosts, reward_model, tokenizer):
        def make(*scripts, **settings):
            servers, urls = hosts(*scripts)
            for server in servers:
                server.models = {"data": [{"id": "m", "root": str(reward_model), "max_model_len": 512}]}
                server._tokenizer = lambda body: {"tokens": tokenizer(body["prompt"]).input_ids}
            return servers, urls, VLLMProcessReward("m", base_url=urls, **settings)

        return make

    async def test_what_waits_is_one_request_a_replica_and_a_question_stays(self, scorers):
        servers, urls, scorer = scorers(_pooled, _pooled)
        await scorer.ascore("warm", _steps(1))
        for server in servers:
            server.requests.clear()
        questions = [f"What is {number}?" for number in range(16)]
        for count in (1, 2):
            await asyncio.gather(*(scorer.ascore(question, _steps(count)) for question in questions))
        batches = [[len(body["input"]) for _, body in server.generations] for server in servers]
        assert sum(map(sum, batches)) == 32
        assert all(len(sizes) <= 8 for sizes in batches)
        own = Counter(rank(check_base_urls(urls), question)[0] for question in questions)
        assert [sum(sizes) for sizes in batches] == [2 * own[url[:-3]] for url in urls]

    async def test_a_lost_replica_moves_its_questions(self, scorers):
        servers, _, scorer = scorers(httpx.ConnectError("refused"), _pooled)
        servers[0].models = httpx.ConnectError("refused")
        replies = await asyncio.gather(*(scorer.ascore(f"What is {n}?", _steps(2)) for n in range(16)))
        assert all(len(reply.scores) == 2 for reply in replies)
        assert {reply.failed_attempts for reply in replies} <= {0, 1}
        assert sum(len(body["input"]) for _, body in servers[1].generations) == 16

    async def test_errors_name_the_replicas(self, scorers):
        _, urls, scorer = scorers(failed(503), failed(503), max_retries=1)
        with pytest.raises(ScorerError, match=r"\(2 attempts, at ") as caught:
            await scorer.ascore("What is 1?", _steps(1))
        assert all(url[:-3] in str(caught.value) for url in urls)


def _steps(count):
    return [ScorableStep(f"step {n}") for n in range(count)]


def _pooled(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content)["input"]
    data = [{"index": n, "data": [[0.25, 0.75]] * ids.count(3)} for n, ids in enumerate(asked)]
    return httpx.Response(200, json={"model": "m", "data": data})
