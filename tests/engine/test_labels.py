"""Label tokens on an engine in this process: their probabilities are those of transformers."""

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage

from trim_graph import ScorableStep
from trim_graph.adapters import CascadeScorer, LLMJudge
from trim_graph.examples.arithmetic import problems

LABELS = tuple("0123456789")
QUESTION = problems("standard", 1)[0].question
CHAT = [HumanMessage(QUESTION), AIMessage("Step 1: 47 + 38 =")]
"""The models here cannot judge, but behind this they write a digit, and are not sure of it."""


@pytest.fixture
def expected(local_small):
    engine = local_small._load()
    with torch.no_grad():
        probabilities = engine._model(torch.tensor([engine.encode(CHAT)])).logits[0, -1].softmax(-1)
    found = dict.fromkeys(LABELS, 0.0)
    for token, probability in enumerate(probabilities.tolist()):
        if (text := engine.tokenizer.decode([token]).strip()) in found:
            found[text] += probability
    return found


@pytest.mark.parametrize("settings", [{}, {"timeout": 60}, {"temperature": 1.0}])
async def test_label_tokens_are_read_exactly(small, expected, settings):
    answer = await small.ainvoke(CHAT, max_tokens=1, label_tokens=LABELS, **settings)
    assert answer.response_metadata["label_tokens_exact"]
    assert answer.response_metadata["label_probabilities"] == pytest.approx(expected, abs=1e-4)
    assert min(expected.values()) > 0
    assert answer.usage_metadata["output_tokens"] == 1


async def test_a_judge_reads_them_and_a_cascade_of_two_counts_both(small, large, expected):
    def begun(judge):
        form = judge._asked
        judge._asked = lambda *args: [*form(*args)[:0], *CHAT]
        return judge

    total = sum(expected.values())
    score = sum(int(label) * p for label, p in expected.items()) / total / 9
    steps = [ScorableStep("Step 1: 47 + 38 = 85.")]
    own = await begun(LLMJudge(small)).ascore(QUESTION, steps)
    assert own.scores == [pytest.approx(score, abs=1e-4)]
    both = CascadeScorer(begun(LLMJudge(small)), begun(LLMJudge(large)), unsure=(0.0, 1.0))
    reply = await both.ascore(QUESTION, steps)
    assert reply.output_tokens == 2
    assert reply.input_tokens == 2 * own.input_tokens
