"""What stands around a plain question is found out once; any other text is rendered by the server."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from tests.adapters.recorded_server import RecordedServer, raw_answer
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.prompts import find_frame, plain_question


def turns(text, system="Be brief."):
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def wrapped(given):
    return "<s>" + "".join(f"[{turn['role']}]{turn['content']}[end]" for turn in given) + "[assistant]"


TEMPLATES = {
    "wraps": wrapped,
    "trims": lambda given: wrapped([{**turn, "content": turn["content"].strip()} for turn in given]),
    "takes reasoning out": lambda given: wrapped(
        [{**turn, "content": turn["content"].split("</think>")[-1]} for turn in given]
    ),
    "obeys a command": lambda given: (
        wrapped(given) + ("" if "/no_think" in given[-1]["content"] else "<think>")
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@given(text=st.text(max_size=40) | st.sampled_from([" a", "a</think>b", "say it /no_think", "1/2 of it"]))
async def test_it_is_what_the_template_makes_of_every_plain_question(name, text):
    async def render(given):
        return TEMPLATES[name](given)

    if plain_question(turns(text)) is None:
        return
    around = await find_frame(turns(text), render)
    assert around
    assert around.before + text + around.behind == TEMPLATES[name](turns(text))


@pytest.mark.parametrize(
    "text", ["", " a", "a\n", "<|end|>", "a</think>b", "[INST]", "{x}", "do it /no_think", "<tool_response>"]
)
def test_a_text_that_a_template_may_look_into_is_not_plain(text):
    assert plain_question(turns(text)) is None


@pytest.mark.parametrize("text", ["What is 3/4 of 12?", "Start with 47.\nStep 1: add 38.", "中文 é"])
def test_a_usual_question_is_plain(text):
    assert plain_question(turns(text)) == text


def test_only_a_first_question_is_plain():
    assert plain_question([*turns("a"), {"role": "assistant", "content": "b"}, *turns("c")[1:]]) is None


@pytest.mark.parametrize(
    "changes", [str.upper, lambda text: text[:30], lambda text: f"{text} ({len(text)})", lambda text: ""]
)
async def test_a_template_that_changes_texts_is_not_trusted(changes):
    async def render(given):
        return wrapped([{**turn, "content": changes(turn["content"])} for turn in given])

    assert await find_frame(turns("a"), render) is False


async def test_further_questions_ask_the_server_for_nothing_but_answers(monkeypatch):
    server = RecordedServer(raw_answer("so"))
    monkeypatch.setattr(client, "new_client", server.client)
    model = ChatVLLM(model="m", base_url=f"http://a{time.monotonic_ns()}.test/v1", continuation="raw")
    system = SystemMessage("Be brief.")
    await model.ainvoke([system, HumanMessage("What is 1 + 1?")])
    ((_, frame),) = model._prompts._template_cache.values()
    assert not frame.value  # it may be the only one
    await model.ainvoke([system, HumanMessage("What is 1 + 2?")])
    before = len(server.requests)
    for text in ("What is 2 + 2?", "And 3 + 3?"):
        await model.ainvoke([system, HumanMessage(text), AIMessage("First.\n\n")])
    assert len(server.requests) == before + 2
    sent = server.generations[-1][1]["prompt"]
    assert sent == server.render({"messages": turns("And 3 + 3?")}) + "First.\n\n"
    await model.ainvoke([system, HumanMessage("<odd>")])
    assert len(server.requests) > before + 3
    assert server.generations[-1][1]["prompt"] == server.render({"messages": turns("<odd>")})
