"""Scores of single steps: what a pass sends, what is kept, and how a server's pooling is found out."""

import asyncio
import json
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.recorded_server import failed
from tests.adapters.vllm.test_scorer import QUESTION, answer, connect, steps  # noqa: F401 - a fixture
from trim_graph.adapters import ScorerError
from trim_graph.adapters.prm.formats import PRMInput, QwenPRMFormat
from trim_graph.adapters.vllm.step_scores import StepScores

REFUSED = "Try switching the model's pooling_task via --pooler-config.task {}. (parameter=task)"
TAG = 3


def of(ids):
    """The score that the scripted server gives an input: it shows its length and its content."""
    return (len(ids) + sum(ids) % 97 / 100) / 1024


def classifies(request: httpx.Request) -> httpx.Response:
    """A server that pools LAST: a pair for each input, and a refusal of any other task."""
    body = json.loads(request.content)
    if body["task"] != "classify":
        return failed(400, REFUSED.format(body["task"]))
    pairs = [[1 - of(ids), of(ids)] for ids in body["input"]]
    entries = [{"index": n, "data": pair} for n, pair in enumerate(pairs)]
    return httpx.Response(200, json={"data": entries[::-1]})


def inputs(server):
    """The inputs of each request for classification."""
    return [body["input"] for _, body in server.generations if body["task"] == "classify"]


def prefixes(tokenizer, question, texts):
    asked = QwenPRMFormat(tokenizer).encode(question, texts)
    return [asked.ids[: position + 1] for position in asked.step_positions]


class TestPasses:
    async def test_a_pass_sends_the_newest_step_only(self, connect, tokenizer):  # noqa: F811
        server, scorer = connect(classifies)
        texts = ["first", "second", "third <extra_0>"]
        wanted = prefixes(tokenizer, QUESTION, texts)
        for count in (1, 2, 3):
            reply = await scorer.ascore(QUESTION, steps(*texts[:count]))
            assert reply.scores == pytest.approx([of(ids) for ids in wanted[:count]])
            assert reply.input_tokens == len(wanted[count - 1])
        assert inputs(server) == [[ids] for ids in wanted]
        assert scorer.scores_by_step is True

    async def test_steps_not_scored_yet_are_further_inputs_shortest_first(self, connect, tokenizer):  # noqa: F811
        server, scorer = connect(classifies)
        texts = ["one", "by the large model", "and so", "done"]
        wanted = prefixes(tokenizer, QUESTION, texts)
        await scorer.ascore(QUESTION, steps(texts[0]))
        reply = await scorer.ascore(QUESTION, steps(*texts))
        assert inputs(server) == [wanted[:1], wanted[1:]]
        assert reply.input_tokens == sum(map(len, wanted[1:]))
        assert reply.scores == pytest.approx([of(ids) for ids in wanted])

    async def test_a_rewritten_step_is_scored_and_what_precedes_it_is_known(self, connect, tokenizer):  # noqa: F811
        server, scorer = connect(classifies)
        await scorer.ascore(QUESTION, steps("one", "two"))
        await scorer.ascore(QUESTION, steps("one", "another two"))
        assert inputs(server)[1] == prefixes(tokenizer, QUESTION, ["one", "another two"])[1:]

    async def test_a_pass_that_is_made_again_sends_nothing(self, connect):  # noqa: F811
        server, scorer = connect(classifies)
        first = await scorer.ascore(QUESTION, steps("one", "two"))
        again = await scorer.ascore(QUESTION, steps("one", "two"))
        assert (again.scores, again.input_tokens) == (first.scores, 0)
        assert len(inputs(server)) == 1

    async def test_without_room_for_scores_each_pass_sends_all_steps(self, connect, tokenizer):  # noqa: F811
        server, scorer = connect(classifies, cache_size=0)
        for _ in range(2):
            await scorer.ascore(QUESTION, steps("one", "two"))
        assert inputs(server) == [prefixes(tokenizer, QUESTION, ["one", "two"])] * 2

    async def test_calls_at_the_same_time_share_requests(self, connect):  # noqa: F811
        server, scorer = connect(classifies, max_batch_size=10)
        texts = [[f"{n} {i}" for i in range(n % 3 + 1)] for n in range(24)]
        alone = [(await scorer.ascore("Alone?", steps(*t))).scores for t in texts]
        server.requests.clear()
        together = await asyncio.gather(*(scorer.ascore(QUESTION, steps(*t)) for t in texts))
        sent = inputs(server)
        assert len(sent) < len(texts) / 2
        assert max(map(len, sent)) <= 10
        assert sum(map(len, sent)) == sum(map(len, texts))
        assert [len(reply.scores) for reply in together] == [len(scores) for scores in alone]

    async def test_more_steps_than_a_request_takes_stay_together(self, connect):  # noqa: F811
        server, scorer = connect(classifies, max_batch_size=2)
        await scorer.ascore("Which way?", steps("x"))
        asked = [scorer.ascore(QUESTION, steps(*"abcde")), scorer.ascore(QUESTION, steps("z"))]
        await asyncio.gather(*asked)
        assert sorted(map(len, inputs(server))) == [1, 1, 5]

    async def test_one_refused_input_leaves_the_others_their_scores(self, connect):  # noqa: F811
        def picky(request):
            long = any(len(ids) > 100 for ids in json.loads(request.content)["input"])
            return failed(400, "too long") if long else classifies(request)

        _, scorer = connect(picky)
        await scorer.ascore(QUESTION, steps("a"))
        asked = [scorer.ascore(QUESTION, steps(t)) for t in ("b", "because " * 40, "c")]
        one, two, three = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(two, ScorerError)
        assert len(one.scores) == len(three.scores) == 1


class TestAnswers:
    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            (None, "gave None for step 2; expected"),
            ([0.5], r"gave \[0.5\] for step 2; expected \[wrong, right\]"),
            ([[0.2, 0.8]], r"for step 2; expected \[wrong, right\]"),
            ([0.2, float("nan")], "gave nan for step 2 of 2"),
            ([-0.5, 1.5], "gave 1.5 for step 2 of 2"),
            ([0.5, 0.9], "not the probabilities of wrong and right"),
        ],
    )
    async def test_what_is_no_probability_is_refused_and_not_kept(self, connect, row, complaint):  # noqa: F811
        bad = [row]

        def pooled(request):
            response = classifies(request)
            if bad and response.status_code == 200:
                body = response.json()
                body["data"][0]["data"] = bad.pop()
                return httpx.Response(200, content=json.dumps(body))
            return response

        _, scorer = connect(pooled)
        with pytest.raises(ScorerError, match=complaint):
            await scorer.ascore(QUESTION, steps("a", "b"))
        assert len((await scorer.ascore(QUESTION, steps("a", "b"))).scores) == 2


class TestPooling:
    async def test_an_older_way_of_serving_is_found_out_and_kept(self, connect):  # noqa: F811
        server, scorer = connect(answer)
        for count in (1, 2):
            await scorer.ascore(QUESTION, steps(*"ab"[:count]))
        assert [body["task"] for _, body in server.generations] == ["token_classify"] * 2
        assert scorer.scores_by_step is False

    async def test_it_is_found_out_once(self, connect):  # noqa: F811
        server, scorer = connect(classifies)
        for text in "abc":
            await scorer.ascore(QUESTION, steps(text))
        tasks = [body["task"] for _, body in server.generations]
        assert tasks == ["token_classify", "classify", "classify", "classify"]

    async def test_a_server_that_is_started_anew_another_way_is_found_out_again(self, connect):  # noqa: F811
        way = [classifies]

        def changing(request):
            if way[0] is answer and json.loads(request.content)["task"] == "classify":
                return failed(400, REFUSED.format("classify"))
            return way[0](request)

        _, scorer = connect(changing)
        await scorer.ascore(QUESTION, steps("a"))
        way[0] = answer
        assert len((await scorer.ascore(QUESTION, steps("a", "b"))).scores) == 2
        assert scorer.scores_by_step is False

    async def test_where_neither_way_works_the_error_says_how_to_start_it(self, connect):  # noqa: F811
        said = "Unsupported task: 'token_classify' Supported tasks: ('embed',)"
        server, scorer = connect(failed(400, said))
        with pytest.raises(ScorerError, match=r"Unsupported task: 'token_classify'.*start the server with"):
            await scorer.ascore(QUESTION, steps("a"))
        assert [body["task"] for _, body in server.generations] == ["token_classify", "classify"]

    async def test_failed_attempts_are_charged_for_what_was_sent(self, connect, tokenizer):  # noqa: F811
        first, second = prefixes(tokenizer, QUESTION, ["a", "b"])
        fails = []

        def sometimes(request):
            return fails.pop() if fails else classifies(request)

        _, scorer = connect(sometimes)
        await scorer.ascore(QUESTION, steps("a"))
        fails.append(failed(504))
        reply = await scorer.ascore(QUESTION, steps("a", "b"))
        assert reply.failed_attempts == 1
        assert reply.input_tokens == 2 * len(second)
        assert first == second[: len(first)]


LAID_OUT = st.lists(st.lists(st.integers(4, 9), max_size=4), min_size=1, max_size=6)


def laid_out(parts):
    ids, positions = [1], []
    for part in parts:
        ids += [*part, TAG]
        positions.append(len(ids) - 1)
    return PRMInput(ids, positions)


@given(st.lists(LAID_OUT, max_size=20), st.integers(0, 8))
def test_whatever_is_kept_scores_are_those_of_the_prefixes(solutions, size):
    known = StepScores(size)
    for parts in solutions:
        asked = laid_out(parts)
        pending = known.pending(asked)
        assert pending.tokens == sum(map(len, pending.prefixes))
        assert [len(ids) for ids in pending.prefixes] == sorted(len(ids) for ids in pending.prefixes)
        rows = [[of(ids)] for ids in pending.prefixes]
        scores = known.settle(pending, rows, "value", at="here")
        assert scores == [of(asked.ids[: end + 1]) for end in asked.step_positions]
        assert len(known) <= size
        again = known.pending(asked)
        if size >= len(parts):
            assert not again.prefixes


def test_the_least_recently_used_goes_first():
    known = StepScores(2)
    one, two, three = (laid_out([[n]]) for n in (4, 5, 6))
    for asked in (one, two, one, three):
        pending = known.pending(asked)
        known.settle(pending, [[0.5]] * len(pending.prefixes), "value", at="here")
    assert not known.pending(one).prefixes
    assert known.pending(two).prefixes


def test_the_refusal_in_this_test_is_that_of_vllm_0_32():
    from trim_graph.adapters.vllm.scorer import _refuses_task
    from trim_graph.errors import ModelServerError

    for text in (REFUSED.format("classify"), "Unsupported task: 'classify' Supported tasks: ('embed',)"):
        assert _refuses_task(ModelServerError(f"the server at http://x answered 400: {text}", status=400))
    longer = "the server at http://task.test answered 400: maximum context length is 512 tokens"
    assert not _refuses_task(ModelServerError(longer, status=400))
    assert re.search("task", longer)
