"""`ContinueByPrompt` keeps the contract of step-level routing over a model that knows nothing of it."""

import asyncio
import math

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_openai import AzureChatOpenAI, ChatOpenAI

from tests.adapters.provider_model import ProviderModel, said
from trim_graph.adapters import (
    ChatModelContractError,
    ChatTransformers,
    ChatVLLM,
    ContinueByPrompt,
    ModelServerError,
)
from trim_graph.adapters.capabilities import call_names, chat_model_inside, continues_exactly
from trim_graph.adapters.prompted.chat import as_writer
from trim_graph.adapters.prompted.protocol import DONE, START
from trim_graph.adapters.responses import read_reply
from trim_graph.testing import ScriptedChatModel

D = "\n\n"
QUESTION = [SystemMessage("Be brief."), HumanMessage("What is it?")]
SOFAR = [*QUESTION, AIMessage("One.\n\nTwo.\n\n")]


def ask(*answers, messages=SOFAR, stop=(D,), **settings):
    model = ProviderModel(*answers)
    wrapped = ContinueByPrompt(model, **settings)
    return wrapped.invoke(messages, stop=list(stop) or None), model


def test_the_answer_keeps_the_contract():
    answer, _ = ask(said(f"{START}\nThree.\n\nFour.\n{DONE}", read=123, written=45))
    assert answer.text == "Three."
    assert answer.response_metadata == {
        "model_name": "far-away",
        "finish_reason": "stop",
        "stop_reason": D,
        "continuation": "prompt",
    }
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (123, 45)


def test_the_end_of_the_solution_has_no_stop_reason():
    answer, _ = ask(f"Three.\n{DONE}")
    assert (answer.text, answer.response_metadata["stop_reason"]) == ("Three.", None)
    assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "metadata",
    [
        {"finish_reason": "length"},
        {"finish_reason": None, "stop_reason": "max_tokens"},
        {"finish_reason": "MAX_TOKENS"},
        {"finish_reason": None, "done_reason": "length"},
        {
            "finish_reason": None,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
        },
    ],
)
def test_every_providers_word_for_a_token_limit_is_understood(metadata):
    answer, _ = ask(said("Thre", **metadata))
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["stop_reason"] is None


def test_the_reasoning_of_earlier_turns_by_another_provider_is_left_out():
    thought = AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hello."}])
    _, model = ask("Three.", messages=[*QUESTION, thought, *SOFAR[1:]])
    assert model.calls[0]["messages"][2] == AIMessage([{"type": "text", "text": "Hello."}])


def test_the_steps_so_far_are_shown_and_a_request_follows_them():
    _, model = ask("Three.")
    *before, written, request = model.calls[0]["messages"]
    assert before == QUESTION
    assert written == AIMessage("One.\n\nTwo.")
    assert isinstance(request, HumanMessage)
    assert "next step" in request.text


def test_the_first_request_joins_the_question():
    _, model = ask("One.", messages=QUESTION)
    system, question = model.calls[0]["messages"]
    assert system == QUESTION[0]
    assert question.text.startswith("What is it?\n\nWrite only the first step")
    blocks = HumanMessage([{"type": "text", "text": "What is it?"}])
    _, model = ask("One.", messages=[blocks])
    assert len(model.calls[0]["messages"][0].content) == 2
    assert len(blocks.content) == 1


def test_an_earlier_turn_of_the_assistant_is_no_step():
    earlier = [HumanMessage("Hi"), AIMessage("Hello.\n\nHow are you?"), HumanMessage("What is it?")]
    answer, model = ask("Hello.", messages=earlier)
    assert answer.text == "Hello."
    assert model.calls[0]["messages"][:2] == earlier[:2]


def test_without_stop_all_that_remains_is_asked_for():
    answer, model = ask(f"Three.\n\nFour.\n{DONE}", stop=())
    assert answer.text == "Three.\n\nFour."
    assert "all that remains" in model.calls[0]["messages"][-1].text


def test_stop_is_sent_only_where_wanted():
    assert ask("Three.")[1].calls[0]["stop"] is None
    _, model = ask("Three.", send_stop=True)
    assert model.calls[0]["stop"] == [D]
    # An empty answer may have begun with the stop string.
    assert ask("", send_stop=True)[0].response_metadata["stop_reason"] == D
    assert ask("")[0].response_metadata["stop_reason"] is None
    assert ask(DONE, send_stop=True)[0].response_metadata["stop_reason"] is None


def test_settings_of_a_call_go_by_the_models_names():
    def sent(model, **settings):
        wrapped = ContinueByPrompt(model, **settings)
        return wrapped._settings((), {"max_tokens": 9, "timeout": 1.5, "seed": 4, "top_p": None})

    assert sent(ProviderModel()) == {"max_tokens": 9, "seed": 4}
    openai = ChatOpenAI(model="m", api_key="k")
    assert (
        sent(openai) == sent(openai.bind(seed=1).with_retry()) == {"max_tokens": 9, "timeout": 1.5, "seed": 4}
    )
    own = {"max_tokens_name": "num_predict", "timeout_name": "seconds"}
    assert sent(ProviderModel(), **own) == {"num_predict": 9, "seconds": 1.5, "seed": 4}
    assert sent(openai, max_tokens_name=None, timeout_name=None) == {"seed": 4}
    azure = AzureChatOpenAI(model="m", api_key="k", azure_endpoint="http://a", api_version="1")
    assert call_names(azure) == call_names(openai)


def test_a_model_without_usage_is_not_given_any():
    assert ask(AIMessage("Three."))[0].usage_metadata is None


@pytest.mark.parametrize("text", ["", "Thr"])
def test_a_refusal_is_no_end_of_the_solution(text):
    with pytest.raises(ModelServerError, match="content_filter") as caught:
        ask(said(text, finish_reason="content_filter"))
    assert caught.value.attempts == {"count": 1, "input_tokens": 20, "output_tokens": 7, "unknown": 0}


@pytest.mark.parametrize("kind", ["tool_calls", "invalid_tool_calls"])
def test_a_call_of_a_tool_is_no_end_of_the_solution(kind):
    call = {"name": "search", "args": {} if kind == "tool_calls" else "{", "id": "1", "error": None}
    found, _ = ask(said("", finish_reason="tool_calls").model_copy(update={kind: [call]}))
    with pytest.raises(ModelServerError, match="the small model's answer called a tool"):
        read_reply(found, (D,), "small")


def test_only_the_mark_ends_a_solution_where_the_reason_is_not_known():
    whole = [*SOFAR[:-1], AIMessage("One.\n\n")]
    for text, finish in (("Two.\n[[DONE]]", "stop"), ("Two.", "brand_new")):
        model = ContinueByPrompt(ProviderModel(said(text, finish_reason="brand_new")))
        assert model.invoke(whole).response_metadata["finish_reason"] == finish


def test_an_empty_answer_that_has_ended_is_the_end():
    assert ask(said("", finish_reason="end_turn"))[0].response_metadata["stop_reason"] is None


def test_what_is_no_chat_model_is_named():
    with pytest.raises(ChatModelContractError, match="returned str"):
        ContinueByPrompt(RunnableLambda(lambda messages, **_: "Three.")).invoke(SOFAR, stop=[D])
    with pytest.raises(ValueError, match="already"):
        ContinueByPrompt(ContinueByPrompt(ProviderModel()))


def test_failed_attempts_are_passed_on():
    lost = {"count": 1, "input_tokens": 2, "output_tokens": 3, "unknown": 0}
    assert ask(said("Three.", failed_attempts=lost))[0].response_metadata["failed_attempts"] == lost


def logprobs(*tokens):
    content = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in tokens]
    return {"content": content}


def test_the_token_probability_is_that_of_the_text_kept():
    tokens = [(START, 0.1), ("\n", 0.1), ("Thr", 0.9), ("ée.", 0.7), ("\n\n", 0.2), ("Four.", 0.3)]
    text = "".join(t for t, _ in tokens)
    answer, _ = ask(said(text, logprobs=logprobs(*tokens)))
    assert answer.text == "Thrée."
    assert answer.response_metadata["mean_token_probability"] == pytest.approx(0.8)
    wrapped = ContinueByPrompt(ProviderModel(said(text, logprobs=logprobs(*tokens))))
    windowed = wrapped.invoke(SOFAR, stop=[D], probability_window=1)
    assert windowed.response_metadata["lowest_window_probability"] == pytest.approx(0.7)
    answer, _ = ask(said("Something else.", logprobs=logprobs(*tokens)))
    assert "mean_token_probability" not in answer.response_metadata


async def test_every_way_to_call_it_says_the_same():
    wrapped = ContinueByPrompt(ProviderModel(f"{START}\nThree."))
    whole = wrapped.invoke(SOFAR, stop=[D])
    chunks = list(wrapped.stream(SOFAR, stop=[D]))
    others = [await wrapped.ainvoke(SOFAR, stop=[D]), sum(chunks[1:], chunks[0])]
    others += [chunk async for chunk in wrapped.astream(SOFAR, stop=[D])]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    for other in others:
        assert other.text == whole.text == "Three."
        assert other.response_metadata["stop_reason"] == D
        assert other.usage_metadata["output_tokens"] == 7


class Watching(BaseCallbackHandler):
    def __init__(self):
        self.started = self.ended = 0

    def on_chat_model_start(self, *args, **kwargs):
        self.started += 1

    def on_llm_end(self, *args, **kwargs):
        self.ended += 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_one_call_is_counted_once(way):
    wrapped, watching = ContinueByPrompt(ProviderModel("Three.")), Watching()
    with get_usage_metadata_callback() as counted:
        if way == "invoke":
            wrapped.invoke(SOFAR, {"callbacks": [watching]}, stop=[D])
        else:
            asyncio.run(wrapped.ainvoke(SOFAR, {"callbacks": [watching]}, stop=[D]))
    assert (watching.started, watching.ended) == (1, 1)
    assert counted.usage_metadata["far-away"]["output_tokens"] == 7


async def test_cancelling_it_cancels_the_models_call():
    ended = []

    async def hang(messages, **_):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    wrapped = ContinueByPrompt(RunnableLambda(lambda messages, **_: None, hang))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await wrapped.ainvoke(SOFAR, stop=[D])
    assert ended == [True]


def test_a_global_cache_does_not_mix_models_up():
    set_llm_cache(InMemoryCache())
    try:
        one, other = ContinueByPrompt(ProviderModel("Three.")), ContinueByPrompt(ProviderModel("Drei."))
        assert [m.invoke(SOFAR, stop=[D]).text for m in (one, other, one)] == ["Three.", "Drei.", "Three."]
    finally:
        set_llm_cache(None)


def test_only_a_model_that_declares_it_continues_exactly():
    provider_model, scripted = ProviderModel(), ScriptedChatModel(script=["one"])
    configurable = init_chat_model("openai:m", api_key="k", configurable_fields=("model",))
    plain, exact = RunnableLambda(lambda messages: None), RunnableLambda(lambda messages: None)
    exact.continues_exactly = True
    exactly = [
        ChatVLLM(model="m"),
        ChatTransformers(model="org/m"),
        scripted,
        scripted.bind(seed=1).with_config(tags=["a"]).with_retry(),
        exact,
        exact.bind(seed=1).with_retry(),
        ContinueByPrompt(provider_model),
        scripted.with_fallbacks([scripted]),
    ]
    by_prompt = [
        provider_model,
        provider_model.bind(seed=1).with_config(tags=["a"]).with_retry(),
        provider_model.with_fallbacks([scripted]),
        scripted.with_fallbacks([provider_model]),
        provider_model.configurable_fields(logprobs=ConfigurableField("logprobs")),
        ChatOpenAI(model="m", api_key="k"),
        configurable,
        init_chat_model(),
        plain,
        plain.bind(seed=1).with_retry(),
        scripted.configurable_alternatives(ConfigurableField("which"), other=provider_model),
    ]
    assert [continues_exactly(model) for model in exactly] == [True] * len(exactly)
    assert [continues_exactly(model) for model in by_prompt] == [False] * len(by_prompt)
    assert as_writer(scripted, D) is scripted
    for model in by_prompt:
        wrapped = as_writer(model, "###")
        assert isinstance(wrapped, ContinueByPrompt)
        assert wrapped.model is model
        assert wrapped.delimiter == "###"
    assert [chat_model_inside(model) is None for model in by_prompt] == [False] * 6 + [True] * 4 + [False]


def test_several_models_are_asked_by_the_names_they_share():
    openai, provider_model = ChatOpenAI(model="m", api_key="k"), ProviderModel()
    assert call_names(openai.with_fallbacks([openai])) == call_names(openai)
    shared = call_names(openai.bind(seed=1).with_fallbacks([provider_model]))
    assert (shared.max_tokens, shared.timeout, shared.streams) == ("max_tokens", None, None)


def test_a_chain_is_refused():
    with pytest.raises(ValueError, match="a chain hands a call's settings"):
        ContinueByPrompt(RunnableLambda(lambda messages: messages) | ProviderModel())


def test_what_is_bound_to_the_model_still_counts():
    provider_model = ProviderModel("Three.")
    ContinueByPrompt(provider_model.bind(seed=5).with_retry()).invoke(SOFAR, stop=[D], max_tokens=4)
    assert provider_model.calls[0]["seed"] == 5
    assert provider_model.calls[0]["max_tokens"] == 4


def test_a_key_is_not_shown():
    wrapped = ContinueByPrompt(ChatOpenAI(model="m", api_key="sk-very-secret"))
    assert "sk-very-secret" not in repr(wrapped) + str(wrapped._identifying_params)


def test_an_answer_that_only_ends_has_met_no_stop_string():
    """Within reasoning, and with steps found in the text, the end of reasoning is the only stop string."""
    answer, _ = ask(said("Then I consider pears"), stop=["</think>"])
    assert answer.content == "Then I consider pears"
    assert answer.response_metadata["stop_reason"] is None
    answer, _ = ask(said("I consider pears.</think>It is 3."), stop=["</think>"])
    assert answer.content == "I consider pears."
    assert answer.response_metadata["stop_reason"] == "</think>"


def test_the_end_of_reasoning_ends_a_step():
    model = ContinueByPrompt(ProviderModel(said("x")))
    for written, cut in (("<think>\nI think.</think>", False), ("<think>\nI th", True)):
        prompt = model.prompt([HumanMessage("q"), AIMessage(written)])
        assert ("cut off" in prompt[-1].content) is cut
