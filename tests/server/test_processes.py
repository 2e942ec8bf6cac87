"""`trim-graph serve` as users run it: real processes, signals, keys, several workers."""

import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from tests.server.conftest import KEY, QUESTION
from tests.server.processes import config, script, wait_until
from trim_graph.examples.hosted.scripted_server import ScriptedServer
from trim_graph.server.keys import VARIABLE


@pytest.fixture
def models():
    with ScriptedServer(script) as server:
        yield server


def slow_models(latency):
    return ScriptedServer(script, latency=latency)


def ask(process, **body):
    body = {"model": "trim", "messages": QUESTION, **body}
    return httpx.post(f"{process.url}/chat/completions", json=body, timeout=60)


def test_sigterm_lets_questions_under_way_end(launch):
    with slow_models(0.4) as models:
        process = launch(config(models.url))
        answers = []
        asking = [threading.Thread(target=lambda: answers.append(ask(process))) for _ in range(4)]
        for thread in asking:
            thread.start()
        wait_until(lambda: httpx.get(f"{process.root}/health").json()["questions_under_way"] == 4)
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: _refuses(process))
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 4
        assert all(len(answer.json()["choices"][0]["message"]["content"]) > 30 for answer in answers)
        assert process.process.wait(30) == 0
    assert "Traceback" not in process.log.read_text()


def _refuses(process):
    try:
        httpx.get(f"{process.root}/health", timeout=1)
    except httpx.HTTPError:
        return True
    return False


def test_sigterm_waits_no_longer_than_drain(launch):
    with slow_models(3.0) as models:
        process = launch(config(models.url), "--drain", "1")
        asking = threading.Thread(target=_lost, args=(process,))
        asking.start()
        wait_until(lambda: httpx.get(f"{process.root}/health").json()["questions_under_way"] == 1)
        begun = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(30)
        asking.join()
        assert time.monotonic() - begun < 9


def _lost(process):
    with pytest.raises(httpx.HTTPError):
        ask(process).raise_for_status()


def test_a_client_that_leaves_ends_the_requests_to_the_models_server(launch):
    with slow_models(0.5) as models:
        process = launch(config(models.url))
        with openai.OpenAI(base_url=process.url, api_key="any", max_retries=0) as client:
            stream = client.chat.completions.create(model="trim", messages=QUESTION, stream=True)
            next(chunk for chunk in stream if chunk.choices[0].delta.content)
            stream.close()
        wait_until(lambda: httpx.get(f"{process.root}/health").json()["questions_under_way"] == 0)
        asked = len(models.requests)
        time.sleep(1.5)
        assert len(models.requests) == asked < 4


def test_keys_come_from_a_file_and_the_environment_and_appear_in_no_log(launch, models, tmp_path):
    (tmp_path / "keys").write_text(f"ada={KEY}\n")
    process = launch(config(models.url), "--api-keys", "keys", **{VARIABLE: "bob=key-of-bob-0123456789"})
    assert ask(process).status_code == 401
    for key in (KEY, "key-of-bob-0123456789"):
        with openai.OpenAI(base_url=process.url, api_key=key) as client:
            assert client.chat.completions.create(model="small", messages=QUESTION)
    httpx.get(f"{process.url}/models?api_key={KEY}")
    process.end()
    log = process.log.read_text()
    assert " ada small 200 " in log
    assert " bob small 200 " in log
    assert "key-of" not in log


def test_workers_share_the_address_and_any_of_them_reports_the_metrics_of_all(launch, models):
    process = launch(config(models.url), "--workers", "2")
    n = 24
    for _ in range(n):  # on a connection each, so that both processes get some
        assert ask(process, model="small").status_code == 200
    for _ in range(4):
        text = httpx.get(f"{process.root}/metrics").text
        assert f'trim_requests_total{{point="small",status="200"}} {n}.0' in text
    assert "pid=" not in text
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(60) == 0


def test_a_worker_that_cannot_start_ends_the_server_with_its_error(launch):
    quotas = "ledger: sqlite:/nowhere/at/all.db\nquotas: {user: {large_calls: 1}}\nsettings:"
    broken = config("http://127.0.0.1:9/v1").replace("settings:", quotas)
    process = launch(broken, "--workers", "2", up=False, **{VARIABLE: f"ada={KEY}"})
    assert process.process.wait(120) != 0
    assert "the folder /nowhere/at does not exist" in process.log.read_text()


def test_a_command_without_the_extra_says_how_to_get_it(tmp_path):
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "sys.argv = ['trim-graph', 'serve']\n"
        "from trim_graph.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert 'pip install "trim-graph[serve]"' in done.stderr
