"""Chat models by LangChain's names for them."""

import sys

import pytest
from langchain_openai import ChatOpenAI

from trim_graph.adapters.by_name import as_chat_model, chat_model_by_name
from trim_graph.errors import SettingsError
from trim_graph.testing import ScriptedChatModel


def test_a_name_makes_the_providers_model_with_its_settings(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for name in ("openai:gpt-4.1-mini", "gpt-4.1-mini"):
        model = chat_model_by_name(name, temperature=0.3)
        assert isinstance(model, ChatOpenAI)
        assert (model.model_name, model.temperature) == ("gpt-4.1-mini", 0.3)
    assert isinstance(as_chat_model("small", "openai:gpt-4.1-mini"), ChatOpenAI)


def test_a_model_is_taken_as_it_is():
    model = ScriptedChatModel(script=["a"])
    assert as_chat_model("small", model) is model


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai:gpt-4.1-mini", "large is 'openai:gpt-4.1-mini': .*OPENAI_API_KEY"),
        (
            "Qwen/Qwen2.5-7B-Instruct",
            r"LangChain knows no provider for it: name one in front.* ChatVLLM\(model=",
        ),
        ("nobody:m", "LangChain knows no provider for it: name one"),
        ("opnai:gpt-4.1-mini", r'did you mean "openai:gpt-4\.1-mini"\? Else name one in front'),
        ("openai/gpt-4.1-mini", r'did you mean "openai:gpt-4\.1-mini"\? Else name one in front'),
        ("openai:", "large is 'openai:': it names a provider and no model"),
        (" ", "the name of a chat model is empty: give one such as 'openai:gpt-4.1-mini'"),
        (7, "large is 7: pass a LangChain chat model, or the name of one"),
        (
            ScriptedChatModel,
            r"large is the class ScriptedChatModel: pass an instance, ScriptedChatModel\(\.\.\.\)",
        ),
    ],
)
def test_what_names_no_model_is_refused_with_what_would(monkeypatch, name, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SettingsError, match=said):
        as_chat_model("large", name)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("langchain.chat_models", r"large is 'anthropic:m': .* needs pip install \"trim-graph\[hosted\]\""),
        ("langchain_anthropic", "large is 'anthropic:m': .*pip install langchain-anthropic"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, missing, said):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=said):
        as_chat_model("large", "anthropic:m")
