"""How engines end: on request, by garbage collection, with their process, and by accident."""

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from langchain_core.messages import HumanMessage

from trim_graph.adapters import ModelServerError
from trim_graph.examples.arithmetic import SMALL, problems

from .conftest import ENGINE, chat, processes

CHAT = [HumanMessage(problems("standard", 1)[0].question)]
WITHIN = 60.0
"""Seconds. An engine that is reported to end takes about 5 on two idle cores."""

SCRIPT = f"""
import sys, time
from trim_graph.adapters import ChatVLLMEngine
print("begun", flush=True)
model = ChatVLLMEngine(model={str(SMALL)!r}, **{ENGINE!r})
print("answer:", model.invoke("What is 1 + 1?", max_tokens=4).response_metadata["finish_reason"], flush=True)
"""


def wait_until(condition, within=WITHIN):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def gone(found):
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in found)


def endless(model):
    return model.model_copy(update={"sampling_params": {"ignore_eos": True}})


def with_sampling_defaults(folder):
    """The small model with defaults of its own for what a call does not name."""
    shutil.copytree(SMALL, folder)
    defaults = folder / "generation_config.json"
    ends = json.loads(defaults.read_text())["eos_token_id"] if defaults.exists() else None
    ends = json.loads((folder / "config.json").read_text())["eos_token_id"] if ends is None else ends
    own = {"eos_token_id": ends, "do_sample": True, "temperature": 1.9, "top_k": 3, "repetition_penalty": 4.0}
    defaults.write_text(json.dumps({**own, "max_new_tokens": 3}))
    return folder


def test_an_engine_ends_in_several_ways_and_the_next_call_starts_it_anew(sockets, tmp_path, local_small):
    folder = with_sampling_defaults(tmp_path / "model")
    model = chat(folder)
    shared = processes()

    def started(model):
        assert model.invoke(CHAT, max_tokens=2).content
        return [one for one in processes() if one not in shared]

    # Closed, with a call under way:
    found = started(model)
    assert found
    assert model.invoke(CHAT).content == local_small.invoke(CHAT).content
    stream = endless(model).stream(CHAT, max_tokens=900)
    next(stream)
    model.close()
    assert gone(found)
    with pytest.raises(ModelServerError, match="was closed during the call"):
        list(stream)
    # Killed, with a call under way:
    found, died = started(model), model._handle.engine()
    error = asyncio.run(_killed_during_a_call(model, found))
    assert "has died; vLLM wrote the cause to stderr. The next call starts it anew" in str(error)
    assert error.begun
    assert error.attempts["input_tokens"] > 0
    assert not died.usable
    wait_until(lambda: gone(found))
    assert model.invoke(CHAT, max_tokens=2).content
    model.close()  # a logged error holds on to it, so it cannot be the one that is collected
    # Garbage collected, with the last adapter that has it:
    one, other = (chat(folder, temperature=t) for t in (0.0, 0.5))
    found = started(one)
    other.start()
    del one
    gc.collect()
    assert other.invoke(CHAT, max_tokens=2).content
    del other
    gc.collect()
    wait_until(lambda: gone(found))


async def _killed_during_a_call(model, found):
    task = asyncio.create_task(endless(model).ainvoke(CHAT, max_tokens=900, timeout=30))
    await asyncio.sleep(0.3)
    next(one for one in found if "EngineCore" in " ".join(one.cmdline())).kill()
    with pytest.raises(ModelServerError) as caught:
        await task
    return caught.value


@pytest.mark.parametrize(
    ("setting", "error", "match"),
    [
        ({"engine_args": {"no_such_option": 1}}, ValueError, "AsyncEngineArgs has no no_such_option"),
        ({"max_model_len": 10**9}, ValueError, "max_model_len"),
        ({"kv_cache_gib": 1e6}, ModelServerError, "did not start: .* gpu_memory_utilization or kv_cache_gib"),
    ],
)
def test_an_engine_that_does_not_start(sockets, capfd, setting, error, match):
    before = processes()
    model = chat(SMALL, **setting)
    with pytest.raises(error, match=match):
        model.invoke(CHAT)
    wait_until(lambda: gone([one for one in processes() if one not in before]))
    if error is ModelServerError:
        assert "Available memory" in capfd.readouterr().err  # the cause is shown


class TestProcess:
    """A plain script: no guard, no close."""

    @pytest.fixture
    def script(self, tmp_path):
        running = []

        def begin(rest=""):
            file = tmp_path / "script.py"
            file.write_text(SCRIPT + rest)
            environment = {n: v for n, v in os.environ.items() if not n.startswith(("VLLM_LOG", "PYTEST"))}
            running.append(
                subprocess.Popen(
                    [sys.executable, str(file)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                    cwd=tmp_path,
                )
            )
            return running[-1]

        yield begin
        for one in running:
            one.kill()
            one.communicate()

    def below(self, process):
        return psutil.Process(process.pid).children(recursive=True)

    def test_it_ends_by_an_exception_and_leaves_nothing_behind(self, script):
        process = script("raise LookupError('end of script')\n")
        found = []
        while process.poll() is None:
            found = self.below(process) or found
            time.sleep(0.1)
        out, err = process.communicate()
        assert process.returncode == 1
        assert out.splitlines()[0] == "begun"
        assert out.count("begun") == 1  # the engine's process did not run the script once more
        assert "answer: stop" in out
        assert "LookupError: end of script" in err
        for noise in ("INFO", "ERROR", "Exception ignored", "resource_tracker"):
            assert noise not in err + out
        assert found
        assert gone(found)

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_it_is_killed_and_leaves_nothing_behind(self, script, how):
        process = script("time.sleep(600)\n")
        if how == signal.SIGTERM:
            for line in process.stdout:
                if line.startswith("answer"):
                    break
        else:  # while the engine starts
            wait_until(lambda: any("VLLM" in " ".join(one.cmdline()) for one in self.below(process)), 120)
        found = self.below(process)
        assert found
        process.send_signal(how)
        assert process.wait(10) == -how
        wait_until(lambda: gone(found))
