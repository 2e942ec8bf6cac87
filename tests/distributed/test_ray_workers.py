"""Workers on a real Ray cluster of two nodes do what the models here do, also where one is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trim_graph.evaluation.run_files import read_run

SITE = Path(__file__).parent / "ray_site.py"
CODE = "import sys; from trim_graph.cli import main; sys.argv[0] = 'trim-graph'; main()"
LIMIT = 240
"""Seconds for a process of a test."""


@pytest.fixture
def scene(cluster, environment, tmp_path):
    """Starts a scene of ``ray_site.py``."""
    started = []

    def start(name):
        paths = os.pathsep.join([str(SITE.parent.parent / "training"), environment.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, str(SITE), cluster, name, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": paths},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1]), errors


def test_a_worker_that_is_killed_costs_no_result_and_doubles_none(scene, tmp_path):
    process = scene("killed")
    assert json.loads(process.stdout.readline())["done"] == 8
    workers = [int(file.name.partition("-")[2]) for file in tmp_path.glob("asked-*")]
    os.kill(workers[0], signal.SIGKILL)
    told, errors = ended(process)
    assert sorted(told["indices"]) == list(range(24))
    assert told["same"]
    assert re.search(f"process {workers[0]} died; its [1-6] questions are run by another", errors)


def test_rollouts_are_those_of_the_models_here(scene):
    told, _ = ended(scene("explored"))
    assert told["left"] == [0, 0]
    assert told["runs"][0] == told["runs"][1] > 12
    assert told["same"]


def test_what_cannot_go_on_is_told(scene):
    told, _ = ended(scene("failing"))
    assert told["dies"].startswith(
        "3 workers died one after the other, all with the same question under way: "
    )
    assert told["broken"] == "small: the model cannot be loaded"
    assert "has another trim-graph, 0.1.0" in told["code"]
    assert "the cluster found no place for a worker in 2 s; each needs 1 CPU, and free are" in told["room"]


EVALUATION = ["eval", "--dataset", "arithmetic:standard", "-n", "12", "--baselines", "none"]
"""Of the models that come with trim-graph, which each worker loads."""


def command(environment, folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *EVALUATION, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def same(row):
    """What two runs of a question have in common: neither time nor the last digits of a score."""
    steps = [
        {key: value for key, value in step.items() if key in ("text", "writer", "tokens")}
        for step in row["steps"]
    ]
    kept = ("arm", "index", "correct", "solution", "error", "large_tokens", "tokens", "calls", "seed")
    return {**{key: row[key] for key in kept}, "steps": steps}


def test_an_evaluation_of_which_a_worker_is_killed(cluster, environment, tmp_path):
    here = command(environment, tmp_path, "--out", "here")
    there_too = ["--out", "there", "--ray", cluster]
    there = command(environment, tmp_path, *there_too)
    deadline = time.monotonic() + LIMIT
    journal = tmp_path / "there/rows/small.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert there.poll() is None, there.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_worker(pid)]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = there.communicate(timeout=LIMIT)
    assert there.returncode == 0, errors
    assert f"process {workers[0]} died" in errors
    assert "each of 2 workers loads small, large, scorer of its own" in errors
    _, errors = here.communicate(timeout=LIMIT)
    assert here.returncode == 0, errors
    runs = [read_run(tmp_path / folder) for folder in ("here", "there")]
    assert runs[0].settings["arms"] == runs[1].settings["arms"]
    assert [same(row) for row in runs[1].rows()] == [same(row) for row in runs[0].rows()]
    figures = [[arm["figures"]["accuracy"] for arm in run.summary["arms"]] for run in runs]
    assert figures[0] == figures[1]

    # Ctrl-C leaves what is done, and the same command goes on with it.
    more = command(
        environment, tmp_path, "--out", "there", "--ray", cluster, "--concurrency", "6", "-n", "500"
    )
    journal.unlink(missing_ok=True)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 14:
        assert more.poll() is None, more.communicate()
        time.sleep(0.02)
    more.send_signal(signal.SIGINT)
    _, errors = more.communicate(timeout=LIMIT)
    assert more.returncode == 130
    assert errors.splitlines()[-1] == "trim-graph: interrupted: the same command goes on with there"
    assert "Traceback" not in errors
    assert len(list(read_run(tmp_path / "there").rows("small"))) >= 14
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and is_worker(pid)]


def is_worker(pid):
    """Tell whether a process is one of our actors."""
    try:
        return b"ray::Worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1 cannot be reached: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:10001", "give HOST:PORT of the cluster's head"),
        ("somewhere", "give HOST:PORT of the cluster's head"),
        ("127.0.0.1:99999", "--ray 127.0.0.1:99999 cannot be reached"),
    ],
)
def test_an_address_that_is_none(address, told):
    from trim_graph import SettingsError
    from trim_graph.distributed.ray_cluster import connected

    with pytest.raises(SettingsError) as error, connected(address):
        pass
    assert told in str(error.value)


def test_an_address_that_never_answers(monkeypatch):
    from trim_graph import SettingsError
    from trim_graph.distributed import ray_cluster

    monkeypatch.setattr(ray_cluster, "ANSWERED_IN", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(SettingsError, match="no Ray cluster answers in 3 s"),
            ray_cluster.connected(address),
        ):
            pass


def test_ray_that_is_not_installed(tmp_path, environment):
    missing = f"import sys; sys.modules['ray'] = None; {CODE}"
    given = [*EVALUATION, "--out", "run", "--ray", "auto"]
    result = subprocess.run(
        [sys.executable, "-c", missing, *given], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 2
    assert 'pip install "trim-graph[ray]"' in result.stderr
    assert "Traceback" not in result.stderr
