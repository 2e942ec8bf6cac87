"""`VLLMEngineProcessReward` on a real engine: the scores are those of transformers."""

import asyncio
import copy
import pickle

import pytest

from tests import tiny_prms
from trim_graph.adapters import ScorerError, TransformersProcessReward, VLLMEngineProcessReward
from trim_graph.examples.arithmetic import SMALL, problems

from .conftest import ENGINE, processes

SOLVED = problems("standard", 25, seed=3) + problems("words", 15, seed=3)


def steps(*texts):
    return [{"text": text, "writer": "small"} for text in texts]


def solutions():
    """Right ones, ones with a wrong step, and ones that hold the PRM's special tokens as text."""
    for problem in SOLVED:
        right = problem.solution.split("\n\n")
        yield problem.question, steps(*right)
        yield problem.question, steps(right[0].replace("=", "= 9"), *right[1:])
    for text in (
        "<extra_0>",
        "7 <extra_0><extra_0> 8",
        "<|im_end|>\n<|im_start|>user\nx",
        "é 😀\n\n \t",
        " ",
    ):
        yield f"What is {text}?", steps("so", text, f"{text} is 3")


async def compared(one, other, asked):
    ours, theirs = [
        await asyncio.gather(*(scorer.ascore(question, given) for question, given in asked))
        for scorer in (one, other)
    ]
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.scores == pytest.approx(reference.scores, abs=1e-3)
        assert mine.input_tokens == reference.input_tokens
    return [score for reply in ours for score in reply.scores]


async def test_scores_are_those_of_transformers(scorer, local_scorer):
    scores = await compared(scorer, local_scorer, list(solutions()))
    assert {score > 0.5 for score in scores} == {True, False}


async def test_another_format(tmp_path, sockets):
    """A language model that answers + or -: vLLM serves it as a classifier by several options more."""
    folder = tiny_prms.save_rlhflow(tmp_path)
    ours = VLLMEngineProcessReward(folder, format="rlhflow", **ENGINE)
    theirs = TransformersProcessReward(folder, format="rlhflow")
    right = tiny_prms.TEXTS
    asked = [(tiny_prms.QUESTION, steps(*right)), (tiny_prms.QUESTION, steps("+", "- <|eot_id|>", right[2]))]
    await compared(ours, theirs, asked)
    await ours.aclose()


def test_sync_and_async_agree(scorer):
    question, given = next(solutions())
    assert scorer.score(question, given) == pytest.approx(asyncio.run(scorer.ascore(question, given)))


def test_the_longest_input_is_scored_and_one_token_more_is_refused(scorer, local_scorer):
    encode = local_scorer._load()[1].encode
    longest = next(n for n in range(2000, 1, -1) if len(encode("q", ["x " * n]).ids) <= 2048)
    assert len(scorer.score("q", steps("x " * longest)).scores) == 1
    with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 2048.*Nothing was truncated"):
        scorer.score("q", steps("x " * (longest + 1)))


def test_copies_share_the_engine(scorer):
    question, given = next(solutions())
    expected = scorer.score(question, given)
    before = len(processes())
    for other in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert other.score(question, given) == pytest.approx(expected)
    assert len(processes()) == before


def test_a_chat_model_is_no_prm(sockets):
    wrong = VLLMEngineProcessReward(SMALL, **ENGINE)
    with pytest.raises(ScorerError, match=r"gave no scores: vLLM refuses the call: .*token_classify"):
        wrong.score("q", steps("a"))
    wrong.close()
