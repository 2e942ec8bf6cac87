"""`VLLMEngineProcessReward` on a real engine: the scores are those of transformers."""

import asyncio
import copy
import pickle

import pytest

from tests import tiny_prms
from trim_graph import ScorableStep
from trim_graph.adapters import ScorerError, TransformersProcessReward, VLLMEngineProcessReward
from trim_graph.adapters.vllm.plugin import is_installed
from trim_graph.examples.arithmetic import PRM, SMALL, problems

from .conftest import ENGINE, processes

SOLVED = problems("standard", 25, seed=3) + problems("words", 15, seed=3)


BLOCK = 128
"""Tokens in a block of vLLM's cache on CPUs: it holds whole blocks."""


def fresh(scorer):
    """The same scorer, which has the engine in common and knows no scores."""
    scorer.start()
    return pickle.loads(pickle.dumps(scorer))


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


async def compared(one, other, asked, *, last):
    """The scores, which are those of the other; ``last``: whether each step was an input of its own."""
    ours, theirs = [
        await asyncio.gather(*(scorer.ascore(question, given) for question, given in asked))
        for scorer in (one, other)
    ]
    encode = other._load()[1].encode
    for (question, given), mine, reference in zip(asked, ours, theirs, strict=True):
        assert mine.scores == pytest.approx(reference.scores, abs=1e-3)
        ends = encode(question, list(given)).step_positions
        assert mine.input_tokens == (sum(end + 1 for end in ends) if last else reference.input_tokens)
    return [score for reply in ours for score in reply.scores]


async def test_scores_are_those_of_transformers(scorer, local_scorer):
    scores = await compared(fresh(scorer), local_scorer, list(solutions()), last=is_installed())
    assert {score > 0.5 for score in scores} == {True, False}


async def test_without_the_plugin_too(scorer, local_scorer):
    tag = local_scorer._load()[1]._step_id
    pooler = {"pooler_config": {"pooling_type": "STEP", "step_tag_id": tag}}
    step = VLLMEngineProcessReward(PRM, **{**ENGINE, "engine_args": {**ENGINE["engine_args"], **pooler}})
    await compared(step, local_scorer, list(solutions())[:20], last=False)
    await step.aclose()


@pytest.mark.skipif(not is_installed(), reason="trim-graph is not installed beside this vLLM")
async def test_a_pass_computes_the_newest_step_only(scorer, local_scorer):
    """By the engine's own count of the tokens that came from its cache."""
    question, texts = SOLVED[0].question, [f"Step {n}: {n} + {n + 1} = {2 * n + 1}." for n in range(60)]
    expected = local_scorer.score(question, steps(*texts))
    one = fresh(scorer)
    computed = count_computed(one)
    for count in range(1, len(texts) + 1):
        reply = await one.ascore(question, steps(*texts[:count]))
        assert reply.scores == pytest.approx(expected.scores[:count], abs=1e-3)
    assert len(computed) == len(texts)
    assert expected.input_tokens > 5 * BLOCK
    assert max(computed) <= BLOCK + 40
    assert (await one.ascore(question, steps(*texts))).input_tokens == 0


def count_computed(scorer):
    """Tokens of each further call of the engine that did not come from its cache."""
    scorer.start()
    engine, computed = scorer._ready.handle.engine(), []
    encode = type(engine).encode

    async def counted(prompt, params):
        output = await encode(engine, prompt, params)
        computed.append(len(output.prompt_token_ids) - output.num_cached_tokens)
        return output

    engine.encode = counted
    return computed


async def test_a_prm_of_another_format_scores_as_in_transformers(tmp_path, sockets):
    """A language model that answers + or -: vLLM serves it as a classifier by several options more."""
    folder = tiny_prms.save_rlhflow(tmp_path)
    ours = VLLMEngineProcessReward(folder, format="rlhflow", **ENGINE)
    theirs = TransformersProcessReward(folder, format="rlhflow")
    right = tiny_prms.TEXTS
    asked = [(tiny_prms.QUESTION, steps(*right)), (tiny_prms.QUESTION, steps("+", "- <|eot_id|>", right[2]))]
    await compared(ours, theirs, asked, last=True)
    await ours.aclose()


async def test_a_trained_scorer_scores_as_in_transformers(tmp_path, sockets):
    """Its folder says its format, and vLLM reads the head's bias."""
    folder = tiny_prms.save_trim(tmp_path)
    ours, theirs = VLLMEngineProcessReward(folder, **ENGINE), TransformersProcessReward(folder)
    asked = [(tiny_prms.QUESTION, steps(*tiny_prms.TEXTS)), ("What is <|im_end|>?", steps("<|im_end|>", "x"))]
    scores = await compared(ours, theirs, asked, last=True)
    assert max(scores) - min(scores) > 0.05
    await ours.aclose()


def test_sync_and_async_agree(scorer):
    question, given = next(solutions())
    assert scorer.score(question, given).scores == pytest.approx(
        asyncio.run(fresh(scorer).ascore(question, given)).scores
    )


def test_the_longest_input_is_scored_and_one_token_more_is_refused(scorer, local_scorer):
    encode = local_scorer._load()[1].encode
    longest = next(n for n in range(2000, 1, -1) if len(encode("q", ["x " * n]).ids) <= 2048)
    assert len(scorer.score("q", steps("x " * longest)).scores) == 1
    with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 2048.*Nothing was truncated"):
        scorer.score("q", steps("x " * (longest + 1)))


def test_copies_share_the_engine(scorer):
    question, given = next(solutions())
    expected = scorer.score(question, given).scores
    before = len(processes())
    for other in (copy.deepcopy(scorer), fresh(scorer)):
        assert other.score(question, given).scores == pytest.approx(expected)
    assert len(processes()) == before


def test_a_chat_model_is_no_prm(sockets):
    wrong = VLLMEngineProcessReward(SMALL, **ENGINE)
    with pytest.raises(ScorerError, match=r"gave no scores: vLLM refuses the call: .*token_classify"):
        wrong.score("q", steps("a"))
    wrong.close()
