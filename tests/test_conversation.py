import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from trim_graph.conversation import DEFAULT_INSTRUCTION, compose, extract_answer
from trim_graph.errors import InputError

from_system = [
    SystemMessage("You are terse.", name="house"),
    HumanMessage("What is 1 + 1?"),
    AIMessage("2"),
    HumanMessage("And 2 + 2?"),
]
balanced = st.recursive(
    st.text(alphabet="ab1+ \\", max_size=5),
    lambda inner: inner.map(lambda text: "{" + text + "}"),
    max_leaves=4,
)


def test_both_models_see_the_whole_conversation_and_the_accepted_steps_byte_for_byte(make):
    script = [" small one ", "\tsmall  two", "small three ", "end"]
    rig = make(script, scores={"\tsmall  two": 0.1})
    rig.graph.invoke({"messages": from_system})
    for prompt in rig.prompts("small") + rig.prompts("large"):
        assert prompt[0].content == f"You are terse.\n\n{DEFAULT_INSTRUCTION}"
        assert [m.content for m in prompt[1:4]] == [m.content for m in from_system[1:]]
    prefixes = [prompt[4].content for prompt in rig.prompts("small")[1:]]
    assert prefixes[0] == " small one \n\n"
    assert prefixes[1] == " small one \n\nLARGE two\n\n"
    assert prefixes[2] == " small one \n\nLARGE two\n\nsmall three \n\n"
    assert rig.prompts("large")[0] == rig.prompts("small")[1]
    assert all(isinstance(prompt[-1], AIMessage) for prompt in rig.prompts("small")[1:])


def test_without_a_system_message_the_instruction_becomes_one(rig):
    rig.ask("Hello?")
    assert [m.content for m in rig.prompts("small")[0]] == [DEFAULT_INSTRUCTION, "Hello?"]


def test_without_an_instruction_nothing_is_added(make):
    rig = make(instruction=None)
    rig.graph.invoke({"messages": from_system})
    assert [m.content for m in rig.prompts("small")[0]] == [m.content for m in from_system]


def test_the_instruction_can_be_replaced(make):
    rig = make(instruction="Think in steps.")
    rig.ask()
    assert rig.prompts("small")[0][0].content == "Think in steps."


def test_the_callers_messages_are_not_changed():
    before = [message.model_copy(deep=True) for message in from_system]
    asked = compose(from_system, "Do it.", "so far")
    assert from_system == before
    assert asked[0].name == "house"


def test_a_system_message_of_blocks_stays_one_of_blocks():
    block = {"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}
    asked = compose([SystemMessage([block]), HumanMessage("Hi")], "Do it.", "")
    assert asked[0].content == [block, {"type": "text", "text": "\n\nDo it."}]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        ([HumanMessage("What?"), AIMessage("That.")], "assistant"),
        ([HumanMessage(" \n")], "question is empty"),
        ([SystemMessage("You are terse.")], "question is empty"),
        ([HumanMessage([{"type": "image_url", "image_url": "data:,"}])], "question is empty"),
    ],
)
def test_what_nobody_can_answer_is_refused_before_any_model_call(rig, messages, reason):
    with pytest.raises(InputError, match=reason):
        rig.graph.invoke({"messages": messages})
    assert rig.unasked


def test_the_scorers_question_is_the_last_human_message(make):
    asked = []

    def scorer(question, steps):
        asked.append(question)
        return [1.0] * len(steps)

    rig = make(scorer=scorer)
    call = {"name": "f", "args": {}, "id": "1"}
    turns = [
        HumanMessage("Look it up."),
        AIMessage("", tool_calls=[call]),
        ToolMessage("4", tool_call_id="1"),
    ]
    rig.graph.invoke({"messages": [HumanMessage("Earlier"), AIMessage("Yes."), *turns]})
    assert set(asked) == {"Look it up."}


def test_an_application_may_give_the_scorer_another_question(make):
    asked = []
    rig = make(scorer=lambda question, steps: asked.append(question) or [1.0] * len(steps))
    rig.graph.invoke({"messages": [HumanMessage("It, please")], "question": "What is 2 + 2?"})
    assert set(asked) == {"What is 2 + 2?"}
    assert rig.prompts("small")[0][-1].content == "It, please"


def test_text_that_is_not_valid_unicode_does_not_stop_a_run(make):
    rig = make(seed=1, budget={"large_cost": 1.0}, prices={"large": {"input": 1, "output": 1}})
    assert rig.ask("What is \ud800?")["trim"]["stopped"] == "finished"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no box", None),
        (r"\boxed{4}", "4"),
        (r"\boxed {4}", "4"),
        (r"first \boxed{3}, no, \boxed{4}.", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and \boxed{unfinished", "4"),
        (r"\boxed{\text{outer } \boxed{4}}", "4"),
        (r"} \boxed{4} {", "4"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
)
def test_the_answer_is_the_last_complete_box(text: str, answer: str | None):
    assert extract_answer(text) == answer


@given(st.text(), balanced, st.text(alphabet="xy{ \n"))
def test_whatever_stands_around_a_box_its_content_is_found(before: str, content: str, after: str):
    assert extract_answer(f"{before}\\boxed{{{content}}}{after}") == content.strip()


def test_a_model_that_repeats_an_open_box_forever_is_read_in_no_time():
    begun = time.perf_counter()
    assert extract_answer("\\boxed{ " * 50_000) is None
    assert time.perf_counter() - begun < 2
