"""Formats and poolings on real servers, one after the other: scores of transformers, and the prefix cache."""

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_socket

from tests import tiny_prms
from tests.vllm.conftest import STARTED_WITHIN, start_server, stop_servers, wait_for
from trim_graph import ScorableStep
from trim_graph.adapters import ScorerError, TransformersProcessReward, VLLMProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.convert import convert_value_head
from trim_graph.adapters.prm.scores import serve_options
from trim_graph.examples.arithmetic import PRM

QUESTION, TEXTS = tiny_prms.QUESTION, tiny_prms.TEXTS
BLOCK = 128
"""Tokens in a block of vLLM's cache on CPUs: it holds whole blocks."""
_COUNTER = r"^vllm:prefix_cache_{}_total\{{[^}}]*\}} (\S+)$"
_STEP = '{"pooling_type": "STEP", "step_tag_id": %d, "task": "token_classify"}'


@dataclass(frozen=True)
class Served:
    format: str
    url: str
    local: TransformersProcessReward
    last: bool

    def scorer(self, **settings) -> VLLMProcessReward:
        return VLLMProcessReward("prm", base_url=self.url, **{"format": self.format, **settings})

    def computed(self) -> float:
        """Tokens that the model has read since its server started, less those from the cache."""
        text = httpx.get(self.url.replace("/v1", "/metrics")).text
        queries, hits = (
            float(re.search(_COUNTER.format(name), text, re.MULTILINE)[1]) for name in ("queries", "hits")
        )
        return queries - hits


@pytest.fixture(
    scope="module", params=["math_shepherd", "skywork", "rlhflow", "auto", "qwen", "skywork STEP"]
)
def served(request, vllm_python, tmp_path_factory) -> Iterator[Served]:
    """A server with a tiny model of the format, started as `serve_options` says; the last as it once said."""
    pytest_socket.enable_socket()
    format, _, pooling = request.param.partition(" ")
    if format == "qwen":
        local = TransformersProcessReward(PRM, format=format)
        yield Served(format, request.getfixturevalue("plugin_server").url, local, last=True)
        return
    folder = tmp_path_factory.mktemp(format)
    save = tiny_prms.save_trim if format == "auto" else getattr(tiny_prms, f"save_{format}")
    original = weights = save(folder / "original")
    if format == "skywork":
        weights = folder / "converted"
        convert_value_head(str(original), weights)
    tokenizer = load_tokenizer(str(weights), chat=False)
    options = serve_options("trim" if format == "auto" else format, tokenizer=tokenizer, plugin=True)
    if pooling:
        options[options.index("--pooler-config") + 1] = _STEP % tokenizer.convert_tokens_to_ids("Ċ")
    server = start_server(vllm_python, "prm", weights, tuple(options), None, folder / "server.log")
    try:
        wait_for(server, time.monotonic() + STARTED_WITHIN)
        local = TransformersProcessReward(original, format=format)
        yield Served(format, server.url, local, last=not pooling)
    finally:
        stop_servers(server)


def steps(*texts):
    return [ScorableStep(text) for text in texts]


def solutions():
    """Plain ones, and ones that hold what the formats put between steps."""
    yield QUESTION, steps(*TEXTS)
    yield QUESTION, steps(TEXTS[0], TEXTS[1].replace("14", "15"))
    for text in (
        "ки",
        "a ки b",
        "+",
        "- +",
        "x\n\ny\n",
        "<|eot_id|>",
        "</s><s>",
        "<|endoftext|>\n",
        "<extra_0>",
        "é 😀 \t",
    ):
        yield f"What is {text}?", steps("so", text, f"{text} is 3")


def long_solution(served):
    """As many steps as go into 480 tokens: the tiny models take in 512."""
    encode = served.local._load()[1].encode
    texts = []
    while len(encode(QUESTION, [*texts, TEXTS[0]]).ids) < 470:
        texts.append(TEXTS[len(texts) % 3].replace("7", str(len(texts))))
    return QUESTION, steps(*texts)


async def test_scores_are_those_of_transformers(served):
    asked = list(solutions())
    scorer = served.scorer()
    ours, theirs = [
        await asyncio.gather(*(one.ascore(question, given) for question, given in asked))
        for one in (scorer, served.local)
    ]
    encode = served.local._load()[1].encode
    for (question, given), one, other in zip(asked, ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
        positions = encode(question, list(given)).step_positions
        read = sum(position + 1 for position in positions) if served.last else other.input_tokens
        assert one.input_tokens == read
    scores = [score for reply in ours for score in reply.scores]
    assert max(scores) - min(scores) > 0.2  # else the weights say nothing
    assert scorer.scores_by_step is served.last


def test_a_pass_computes_the_newest_step_and_no_more_for_the_last_than_for_the_first(served):
    question, given = long_solution(served)
    scorer, expected = served.scorer(), served.local.score(question, given)
    scorer.score("What else?", given[:1])  # finds out how the server pools
    computed = []
    for count in range(1, len(given) + 1):
        before = served.computed()
        reply = scorer.score(question, given[:count])
        computed.append(served.computed() - before)
        assert reply.scores == pytest.approx(expected.scores[:count], abs=1e-3)
    whole = expected.input_tokens
    assert whole > 2 * BLOCK
    step = whole / len(given)
    if served.last:
        assert reply.input_tokens <= whole
        assert max(computed) < BLOCK + 2 * step
        assert scorer.score(question, given).input_tokens == 0
    else:
        assert reply.input_tokens == whole  # vLLM counts no queries where it looks for nothing


def test_another_process_sends_all_steps_in_one_request_that_shares_its_prefixes(served):
    question, given = long_solution(served)
    question = f"{question} Once more."
    expected = served.local.score(question, given)
    before = served.computed()
    reply = served.scorer().score(question, given)
    computed = served.computed() - before
    assert reply.scores == pytest.approx(expected.scores, abs=1e-3)
    if served.last:
        assert reply.input_tokens > 4 * expected.input_tokens
        assert computed < expected.input_tokens + len(given) * BLOCK


def test_too_long_an_input_is_refused_here(served):
    longest = 2048 if served.format == "qwen" else 512
    with pytest.raises(
        ScorerError, match=rf"make \d+ tokens; the PRM takes {longest}.*Nothing was truncated"
    ):
        served.scorer().score("q", steps("why " * 2400))


def test_a_folder_without_weights_of_this_layout_is_none_for_the_plugin():
    from trim_graph.adapters.vllm.plugin import serves

    assert serves(str(PRM))
    assert serves("Qwen/Qwen2.5-Math-PRM-7B")
    assert not serves(str(Path(PRM).parent))
