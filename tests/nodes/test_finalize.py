from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage

from trim_graph.policies import large_only, small_only


def test_the_solution_is_one_message_behind_the_conversation(rig):
    result = rig.ask("2 + 2?")
    assert set(result) == {"messages", "trim"}
    asked, answer = result["messages"]
    assert asked.content == "2 + 2?"
    assert isinstance(answer, AIMessage)
    assert answer.response_metadata["trim"] == result["trim"]


def test_the_usage_of_a_solution_is_that_of_both_models_discarded_drafts_included(rig):
    usage = rig.ask()["messages"][-1].usage_metadata
    calls = rig.small.calls + rig.large.calls
    assert usage["input_tokens"] == sum(call["prompt_tokens"] for call in calls)
    assert usage["output_tokens"] == sum(call["tokens"] for call in calls)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"] == {"cache_read": 0}


def test_cached_prompt_tokens_are_part_of_the_usage(make):
    from trim_graph.testing import ScriptedChatModel

    class Caching(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            result = super()._generate(*args, **kwargs)
            result.generations[0].message.usage_metadata["input_token_details"] = {"cache_read": 2}
            return result

    usage = make(Caching(script=["one", "two"]), policy=small_only()).ask()["messages"][-1].usage_metadata
    assert usage["input_token_details"] == {"cache_read": 4}


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({}, "tiny + huge", "stop"),
        ({"policy": small_only()}, "tiny", "stop"),
        ({"policy": large_only()}, "huge", "stop"),
        ({"max_steps": 2}, "tiny + huge", "length"),
    ],
)
def test_the_metadata_of_a_solution_names_the_models_that_wrote_it_and_why_it_ended(
    make, options, name, reason
):
    metadata = make(**options).ask()["messages"][-1].response_metadata
    assert (metadata["model_name"], metadata["finish_reason"]) == (name, reason)
    assert metadata["stop_reason"] is None


def test_a_solution_that_ends_early_has_no_trailing_delimiter(make):
    assert make(max_steps=2).ask()["messages"][-1].content == "small one\n\nLARGE two"


def test_a_solution_without_a_step_is_an_empty_message(make):
    answer = make(lambda prefix: "", policy=small_only()).ask()["messages"][-1]
    assert answer.content == ""
    assert answer.response_metadata["model_name"] == "trim-graph"
