"""`VLLMProcessReward` against a real server: the scores are those of transformers."""

import asyncio

import pytest

from trim_graph import ScorableStep
from trim_graph.adapters import ScorerError, VLLMProcessReward
from trim_graph.examples.arithmetic import problems

SOLVED = problems("standard", 25, seed=3) + problems("words", 15, seed=3)


def steps(*texts):
    return [ScorableStep(text) for text in texts]


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


async def test_scores_are_those_of_transformers(scorer, local_scorer):
    asked = list(solutions())
    ours, theirs = [
        await asyncio.gather(*(one.ascore(question, given) for question, given in asked))
        for one in (scorer, local_scorer)
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
        assert one.input_tokens == other.input_tokens
    assert {score > 0.5 for reply in ours for score in reply.scores} == {True, False}


def test_sync_and_async_agree(scorer):
    question, given = next(solutions())
    assert scorer.score(question, given) == pytest.approx(asyncio.run(scorer.ascore(question, given)))


def test_the_longest_input_is_scored_and_one_token_more_is_refused(scorer, local_scorer):
    with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 2048.*Nothing was truncated"):
        scorer.score("q", steps("why " * 3000))
    encode = local_scorer._load()[1].encode
    long = next(t for n in range(2000, 1, -1) if len(encode("q", [t := "x " * n]).ids) <= 2048)
    assert len(scorer.score("q", steps(long)).scores) == 1


def test_a_step_token_the_server_does_not_score(servers):
    other = VLLMProcessReward("prm", base_url=servers["prm"].url, step_token="<|endoftext|>")
    with pytest.raises(ScorerError, match=r"0 scores for 1 steps; start the server with --runner pooling"):
        other.score("q", steps("a"))


def test_a_chat_model_is_no_prm(servers):
    wrong = VLLMProcessReward("small", base_url=servers["small"].url)
    with pytest.raises(ScorerError, match=r"the PRM small gave no scores: the server at .* answered \d+"):
        wrong.score("q", steps("a"))
