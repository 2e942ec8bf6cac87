import pytest
from pydantic import ValidationError

from trim_graph.adapters import (
    ChatVLLM,
    LLMJudge,
    TransformersProcessReward,
    TurnSignals,
    VLLMGenerativeProcessReward,
    VLLMProcessReward,
)
from trim_graph.budget import Budget
from trim_graph.errors import counted
from trim_graph.examples.arithmetic import PRM
from trim_graph.segmentation import Thinking
from trim_graph.settings import Settings
from trim_graph.testing import ScriptedChatModel


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("question",), "1 question"),
        (0, ("question",), "0 questions"),
        (2, ("question is", "questions are"), "2 questions are"),
        (1, ("question is", "questions are"), "1 question is"),
    ],
)
def test_a_number_agrees_with_its_noun(number, words, shown):
    assert counted(number, *words) == shown


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: ChatVLLM(model="m", base_ulr="x"), "base_url"),
        (lambda: ChatVLLM(model="m", max_tokns=9), "max_tokens"),
        (lambda: TransformersProcessReward(PRM, devise="cpu"), "device"),
        (lambda: VLLMProcessReward("m", base_ulr="x"), "base_url"),
        (lambda: VLLMGenerativeProcessReward("m", format="rlhflow", base_ulr="x"), "base_url"),
        (lambda: LLMJudge(ScriptedChatModel(script=[]), scal="yes_no"), "scale"),
        (lambda: TurnSignals(tol_error=0.1), "tool_error"),
        (lambda: Thinking(opn="<think>"), "open"),
        (lambda: Settings(max_step=3), "max_steps"),
    ],
)
def test_a_misspelt_field_names_the_one_that_is_meant(make, meant):
    with pytest.raises(
        ValidationError, match=rf"unknown field, did you mean {meant}\? There are: "
    ) as caught:
        make()
    assert "custom_get_token_ids" not in str(caught.value), "a field of LangChain's"


def test_an_unknown_field_hides_no_other_error():
    with pytest.raises(ValidationError) as caught:
        Budget(large_token=3, seconds="soon")
    assert [item["loc"] for item in caught.value.errors()] == [("seconds",), ("large_token",)]
