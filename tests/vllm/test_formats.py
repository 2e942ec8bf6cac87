"""Formats other than Qwen's on real servers, one after the other: the scores are those of transformers."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import pytest_socket

from tests import tiny_prms
from tests.vllm.conftest import STARTED_WITHIN, start_server, stop_servers, wait_for
from trim_graph.adapters import ScorerError, TransformersProcessReward, VLLMProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.convert import convert_value_head
from trim_graph.adapters.prm.scores import serve_options

QUESTION, TEXTS = tiny_prms.QUESTION, tiny_prms.TEXTS


@dataclass(frozen=True)
class Served:
    format: str
    url: str
    local: TransformersProcessReward

    def scorer(self, **settings) -> VLLMProcessReward:
        return VLLMProcessReward("prm", base_url=self.url, **{"format": self.format, **settings})


@pytest.fixture(scope="module", params=["math_shepherd", "skywork", "rlhflow"])
def served(request, vllm_python, tmp_path_factory) -> Iterator[Served]:
    """A server with a tiny model of the format, started as `serve_options` says."""
    pytest_socket.enable_socket()
    format, folder = request.param, tmp_path_factory.mktemp(request.param)
    original = getattr(tiny_prms, f"save_{format}")(folder / "original")
    weights = original
    if format == "skywork":
        weights = folder / "converted"
        convert_value_head(str(original), weights)
    options = serve_options(format, tokenizer=load_tokenizer(str(weights), chat=False))
    server = start_server(vllm_python, "prm", weights, tuple(options), None, folder / "server.log")
    try:
        wait_for(server, time.monotonic() + STARTED_WITHIN)
        yield Served(format, server.url, TransformersProcessReward(original, format=format))
    finally:
        stop_servers(server)


def steps(*texts):
    return [{"text": text, "writer": "small"} for text in texts]


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
        "é 😀 \t",
    ):
        yield f"What is {text}?", steps("so", text, f"{text} is 3")


async def test_scores_are_those_of_transformers(served):
    asked = list(solutions())
    scorer = served.scorer()
    ours, theirs = [
        await asyncio.gather(*(one.ascore(question, given) for question, given in asked))
        for one in (scorer, served.local)
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
        assert one.input_tokens == other.input_tokens
    scores = [score for reply in ours for score in reply.scores]
    assert max(scores) - min(scores) > 0.2  # else the weights say nothing


def test_too_long_an_input_is_refused_here(served):
    with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 512.*Nothing was truncated"):
        served.scorer().score("q", steps("why " * 600))
