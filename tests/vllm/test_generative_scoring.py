"""PRMs that say + or - on real servers for generation: the scores are those of transformers."""

import asyncio
import time
from collections.abc import Iterator

import pytest
import pytest_socket

from tests import tiny_prms
from tests.vllm.conftest import STARTED_WITHIN, start_server, stop_servers, wait_for
from tests.vllm.test_formats import QUESTION, TEXTS, Served, solutions, steps
from trim_graph.adapters import (
    ScorerError,
    TransformersProcessReward,
    VLLMGenerativeProcessReward,
    VLLMProcessReward,
)

# Their weights are random, and give + and - no more than other tokens.
pytestmark = pytest.mark.filterwarnings("ignore:prm at .* gives . and - together:RuntimeWarning")


@pytest.fixture(scope="module", params=["math_shepherd", "rlhflow"])
def served(request, vllm_python, tmp_path_factory) -> Iterator[Served]:
    """A server that has a tiny model of the format for generation."""
    pytest_socket.enable_socket()
    format, folder = request.param, tmp_path_factory.mktemp(request.param)
    weights = getattr(tiny_prms, f"save_{format}")(folder / "original")
    server = start_server(vllm_python, "prm", weights, (), None, folder / "server.log")
    try:
        wait_for(server, time.monotonic() + STARTED_WITHIN)
        yield Served(format, server.url, TransformersProcessReward(weights, format=format), last=False)
    finally:
        stop_servers(server)


async def test_scores_are_those_of_transformers(served):
    asked = list(solutions())
    scorer = VLLMGenerativeProcessReward("prm", base_url=served.url, format=served.format, max_batch_size=2)
    ours, theirs = [
        await asyncio.gather(*(one.ascore(question, given) for question, given in asked))
        for one in (scorer, served.local)
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
    scores = [score for reply in ours for score in reply.scores]
    assert max(scores) - min(scores) > 0.2  # else the weights say nothing


async def test_each_step_is_read_once(served):
    scorer = VLLMGenerativeProcessReward("prm", base_url=served.url, format=served.format)
    whole = await scorer.ascore(QUESTION, steps(*TEXTS))
    again = await scorer.ascore(QUESTION, steps(*TEXTS))
    assert (again.scores, again.input_tokens, again.output_tokens) == (whole.scores, 0, 0)
    more = await scorer.ascore(QUESTION, steps(*TEXTS, "So it is 3."))
    assert more.scores[:-1] == whole.scores
    assert more.output_tokens == 1
    assert more.input_tokens < whole.input_tokens
    expected = (await served.local.ascore(QUESTION, steps(*TEXTS, "So it is 3."))).scores
    assert more.scores == pytest.approx(expected, abs=1e-3)


async def test_too_long_an_input_is_refused_here(served):
    scorer = VLLMGenerativeProcessReward("prm", base_url=served.url, format=served.format)
    with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 511.*Nothing was truncated"):
        await scorer.ascore("q", steps("why " * 600))


async def test_a_server_for_generation_is_no_server_of_the_pooling_runner_and_says_so(served):
    with pytest.raises(ScorerError, match="--runner pooling"):
        await VLLMProcessReward("prm", base_url=served.url, format=served.format).ascore("q", steps("a"))


@pytest.mark.filterwarnings("default:prm at")
async def test_a_model_that_would_write_something_else_is_named_once(served):
    scorer = VLLMGenerativeProcessReward("prm", base_url=served.url, format=served.format)
    with pytest.warns(RuntimeWarning, match=rf"no PRM of the format {served.format}"):
        await scorer.ascore(QUESTION, steps(*TEXTS))
    await scorer.ascore(QUESTION, steps("other"))
