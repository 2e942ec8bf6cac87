import pytest
from langchain_core.messages import AIMessage, HumanMessage

from trim_graph import ScorableStep
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

ASK = HumanMessage("q")


@pytest.fixture
def model() -> ScriptedChatModel:
    return ScriptedChatModel(script=["a b", "c d", "e"])


def test_it_writes_the_step_after_those_in_the_trailing_message(model):
    first = model.invoke([ASK], stop=["\n\n"])
    assert (first.content, first.response_metadata["stop_reason"]) == ("a b", "\n\n")
    assert model.invoke([ASK, AIMessage("other\n\n")], stop=["\n\n"]).content == "c d"
    last = model.invoke([ASK, AIMessage("other\n\nones\n\n")], stop=["\n\n"])
    assert (last.content, last.response_metadata["stop_reason"]) == ("e", None)


def test_it_honours_max_tokens_and_carries_on_to_the_letter(model):
    cut = model.invoke([ASK], stop=["\n\n"], max_tokens=1)
    assert (cut.content, cut.response_metadata["finish_reason"]) == ("a", "length")
    assert cut.usage_metadata["output_tokens"] == 1
    assert model.invoke([ASK, AIMessage("a")], stop=["\n\n"]).content == " b"
    assert model.invoke([ASK, AIMessage("a b")]).content == "\n\nc d\n\ne"


def test_it_can_be_set_to_ignore_max_tokens(model):
    model.honours_max_tokens = False
    assert model.invoke([ASK], max_tokens=1).content == "a b\n\nc d\n\ne"


def test_it_streams_what_it_would_have_answered(model):
    whole = model.invoke([ASK])
    chunks = list(model.stream([ASK]))
    total = sum(chunks[1:], chunks[0])
    assert (total.content, total.usage_metadata) == (whole.content, whole.usage_metadata)
    assert total.response_metadata == whole.response_metadata
    assert len(chunks) > 3


def test_it_remembers_every_call(model):
    model.invoke([ASK], max_tokens=9, timeout=2.0, stop=["\n\n"])
    assert model.calls == [
        {
            "messages": [ASK],
            "stop": ["\n\n"],
            "max_tokens": 9,
            "timeout": 2.0,
            "prompt_tokens": 2,
            "tokens": 3,
        }
    ]


async def test_the_scorer_looks_steps_up():
    scorer = ScriptedScorer({"bad": 0.1}, default=0.9)
    steps = [ScorableStep("good"), ScorableStep("bad")]
    assert scorer.score("q", steps).scores == (await scorer.ascore("q", steps)).scores == [0.9, 0.1]
