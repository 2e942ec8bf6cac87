"""Workers on a real Ray cluster of two nodes do what the models here do, also where one is killed."""

import asyncio
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
from typer.testing import CliRunner

from trim_graph import SettingsError, TrimError, __version__
from trim_graph import distributed as on_ray
from trim_graph.cli.app import app
from trim_graph.distributed import RayExecutor, _Live
from trim_graph.evaluation.records import read_run
from trim_graph.evaluation.traces import read_traces

SITE = Path(__file__).parent / "ray_site.py"
CODE = "import sys; from trim_graph.cli import main; sys.argv[0] = 'trim-graph'; main()"
LIMIT = 240
"""Seconds for a process of a test."""


@pytest.fixture(scope="module")
def scenes(cluster, environment, tmp_path_factory):
    """Reports of ``ray_site.py``, by scene, of a worker that is killed in the middle of the first."""
    folder, training = tmp_path_factory.mktemp("asked"), str(SITE.parent.parent / "training")
    paths = os.pathsep.join([training, environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(SITE), cluster, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": paths},
    )
    try:
        assert json.loads(process.stdout.readline() or "{}") == {"scene": "begun"}
        worker = next(int(file.name.partition("-")[2]) for file in folder.glob("asked-*"))
        os.kill(worker, signal.SIGKILL)
    finally:
        output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    reported = [json.loads(line) for line in output.splitlines()]
    return {one["scene"]: one for one in reported} | {"worker": worker, "errors": errors}


def test_a_worker_that_is_killed_costs_no_result_and_doubles_none(scenes):
    reported = scenes["killed"]
    assert sorted(reported["indices"]) == list(range(24))
    assert reported["same"]
    assert re.search(
        rf"process {scenes['worker']} died; its [1-6] questions are run by another", scenes["errors"]
    )


def test_rollouts_are_those_of_the_models_here(scenes):
    reported = scenes["explored"]
    assert reported["left"] == [0, 0]
    assert reported["runs"][0] == reported["runs"][1] > 12
    assert reported["same"]


def test_what_cannot_continue_is_reported(scenes):
    reported = scenes["failing"]
    assert reported["dies"].startswith(
        "3 workers died one after the other, all with the same question under way"
    )
    assert reported["broken"] == "small: the model cannot be loaded"
    assert f"has another trim-graph, {__version__}" in reported["code"]
    assert (
        "the cluster found no place for a worker in 2 s; each needs 1 CPU, and free are" in reported["room"]
    )


class Scripted(RayExecutor):
    """An executor whose workers' starts end as given: with a worker (None), or with an error."""

    def __init__(self, *ends):
        super().__init__(None, lambda: None, count=2)
        self.ends = list(ends)

    async def _start(self):
        end = self.ends.pop(0)
        if end is None:
            self._live.append(_Live(None, "here"))
        else:
            self._why = end


def test_a_start_that_fails_ends_nothing_while_a_worker_lives(capsys):
    executor = Scripted(None, TrimError("the disk is full"), None)
    asyncio.run(executor.ready())
    assert executor.count == 1
    assert "1 of 2 workers: the disk is full" in capsys.readouterr().err
    # One that died and could not be replaced is no reason once another lives.
    executor._live.clear()
    executor._why = TrimError("the disk is full")
    asyncio.run(executor.ready())
    assert capsys.readouterr().err == ""
    with pytest.raises(TrimError, match="the disk is full"):
        asyncio.run(Scripted(*[TrimError("the disk is full")] * 2).ready())


# Of the models that come with trim-graph, which each worker loads.
EVALUATION = ["eval", "--dataset", "arithmetic:standard", "-n", "10", "--baselines", "none"]
COLLECTION = ["collect", "--dataset", "arithmetic:standard", "-n", "20", "--label-steps"]
LIMITED = ["--concurrency", "4"]


def same(row):
    """What two runs of a question have in common: neither time nor the last digits of a score."""
    steps = [(step["text"], step["writer"], step["tokens"], step["label"]) for step in row["steps"]]
    kept = ("arm", "index", "correct", "solution", "error", "large_tokens", "tokens", "calls", "seed")
    return {**{key: row[key] for key in kept if key in row}, "steps": steps}


class Command:
    """A command on a cluster, started in a folder as often as it takes."""

    def __init__(self, cluster, given, journal, **popen):
        self.given = [sys.executable, "-c", CODE, *given, *LIMITED, "--ray", cluster]
        self.journal, self.popen = journal, popen

    def start(self):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.given, **pipes, **self.popen)

    def wait_for(self, process, rows):
        """Waits until so many rows are in the journal."""
        deadline = time.monotonic() + LIMIT
        while not self.journal.exists() or self.journal.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def run_until_killed(self, how):
        """Kills a worker in the middle, then the command; returns the rows so far and stderr."""
        process = self.start()
        self.wait_for(process, rows=1)
        worker = actors()[0]
        os.kill(worker, signal.SIGKILL)
        self.wait_for(process, rows=7)
        process.send_signal(how)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        assert f"process {worker} died" in errors
        assert "each of 2 workers loads small, large, scorer of its own" in errors
        until = time.monotonic() + 30
        while actors():  # Ray ends them in its own time
            assert time.monotonic() < until
            time.sleep(0.1)
        lines = self.journal.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")], errors

    def finish(self):
        """Runs the same command to its end."""
        self._end(self.start())

    def finish_with_workers(self, cluster):
        """Does so with ``--workers`` in an application that is connected to the cluster."""
        connected = f"import ray; ray.init(address={cluster!r}, log_to_driver=False); {CODE}"
        self.given[2] = connected
        self.given[-2:] = ["--workers", "2", "--load-per-worker"]
        self._end(self.start())

    def _end(self, process):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors


def run_here(given):
    result = CliRunner().invoke(app, [*given, *LIMITED])
    assert result.exit_code == 0, result.output


def test_an_evaluation_has_each_question_once_after_killed_workers_and_commands(
    cluster, environment, tmp_path, monkeypatch
):
    before = {}
    for arm, how in (("small", signal.SIGINT), ("large", signal.SIGKILL)):
        journal = tmp_path / f"there/rows/{arm}.jsonl"
        command = Command(cluster, [*EVALUATION, "--out", "there"], journal, cwd=tmp_path, env=environment)
        before[arm], errors = command.run_until_killed(how)
        if how == signal.SIGINT:
            assert errors.splitlines()[-1] == "trim-graph: interrupted: the same command resumes there"
            assert "Traceback" not in errors
    command.finish()

    monkeypatch.chdir(tmp_path)
    run_here([*EVALUATION, "--out", "here"])
    here, there = read_run("here"), read_run("there")
    units = [(row["arm"], row["index"], row["sample"]) for row in there.rows()]
    assert sorted(units) == sorted((arm, index, 0) for arm in there.settings["arms"] for index in range(10))
    for arm, rows in before.items():
        kept = {row["index"]: row for row in there.rows(arm)}
        assert len({row["index"] for row in rows}) == len(rows) >= 7
        assert all(kept[row["index"]] == row for row in rows)
    assert there.settings == here.settings
    assert [same(row) for row in there.rows()] == [same(row) for row in here.rows()]
    metrics = [[arm["metrics"]["accuracy"] for arm in run.summary["arms"]] for run in (here, there)]
    assert metrics[0] == metrics[1]


def test_a_collection_has_each_question_once_after_killed_workers_and_commands(
    cluster, environment, tmp_path, monkeypatch
):
    out = tmp_path / "there.jsonl"
    command = Command(cluster, [*COLLECTION, "--out", out.name], out, cwd=tmp_path, env=environment)
    before, _ = command.run_until_killed(signal.SIGKILL)
    assert 7 <= len(before) < 20
    command.finish_with_workers(cluster)

    monkeypatch.chdir(tmp_path)
    run_here([*COLLECTION, "--out", "here.jsonl"])
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(20))
    assert lines[: len(before)] == before
    here, there = (
        sorted(map(same, read_traces(file)), key=lambda one: one["index"]) for file in ("here.jsonl", out)
    )
    assert there == here


def test_continuations_for_labels_are_made_once_each_by_all_workers(cluster, environment, tmp_path):
    # Of so many questions some surely have a right rollout and a wrong one, which alone is continued.
    given = ["label", "--dataset", "arithmetic:standard", "-n", "16", "--rollouts", "2", "--pilot", "2"]
    given += ["--continuations", "4", "--out", "labels.jsonl"]
    journal = tmp_path / "labels.runs/continuations.jsonl"
    command = Command(cluster, given, journal, cwd=tmp_path, env=environment)
    command.finish()
    records = [json.loads(line) for line in journal.read_bytes().splitlines()]
    keys = [(one["question"], one["prefix"], one["writer"], one["sample"]) for one in records]
    assert len(set(keys)) == len(keys) > 32
    assert {one["question"] for one in records} == set(range(16))
    assert not any(one["error"] for one in records)
    assert sum(bool(one["prefix"]) for one in records)
    before = journal.read_bytes()
    command.finish()
    assert journal.read_bytes() == before
    traces = list(read_traces(tmp_path / "labels.jsonl"))
    assert traces
    assert all(trace["policy"]["method"] == "monte_carlo" for trace in traces)


def actors():
    """Returns the process ids of our actors."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_worker(pid)]


def is_worker(pid):
    """Returns whether a process is one of our actors."""
    try:
        return b"ray::Worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1 cannot be reached: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:10001", "give HOST:PORT of the cluster's head"),
        ("somewhere", "give HOST:PORT of the cluster's head"),
        ("127.0.0.1:99999", "--ray 127.0.0.1:99999 cannot be reached: its port is 99999, above 65535"),
        ("127.0.0.1:0", "--ray 127.0.0.1:0 cannot be reached: its port is 0"),
    ],
)
def test_an_address_that_is_none(address, message):
    with pytest.raises(SettingsError) as error, on_ray.connected(address):
        pass
    assert message in str(error.value)


def test_an_address_that_never_answers(monkeypatch):
    monkeypatch.setattr(on_ray, "ANSWERED_IN", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(SettingsError, match="no Ray cluster answers in 3 s"),
            on_ray.connected(address),
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


STUBS = {
    "scontrol": "#!/bin/sh\nhostname\nhostname\n",
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "ray": f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n',
    "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    "trim-graph": f"""#!{sys.executable}
import json, sys, ray
ray.init(address=sys.argv[sys.argv.index("--ray") + 1], log_to_driver=False)
print(json.dumps([sys.argv[1:], [node["Resources"].get("CPU") for node in ray.nodes() if node["Alive"]]]))
""",
}
"""What a job of Slurm calls, on this machine."""


def test_the_job_of_the_guide_has_a_cluster_of_its_nodes(environment, tmp_path):
    guide = Path(__file__).parents[2] / "examples/guides/scaling.md"
    script = next(block for block in guide.read_text().split("```bash\n") if block.startswith("#!/bin/bash"))
    (tmp_path / "run.sbatch").write_text(script.partition("```")[0])
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    (tmp_path / "stubs").mkdir()
    for name, text in STUBS.items():
        (tmp_path / "stubs" / name).write_text(text)
        (tmp_path / "stubs" / name).chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_JOB_NODELIST": "here[1-2]", "RAY_USAGE_STATS_ENABLED": "0"}
    path = f"{tmp_path / 'stubs'}:{environment['PATH']}"
    result = subprocess.run(
        ["bash", "run.sbatch"],
        cwd=tmp_path,
        env={**environment, **slurm, "PATH": path, "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 0, result.stdout
    given, cpus = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("[[")))
    assert given[0] == "eval"
    assert given[given.index("--ray-workers") + 1] == "2"
    assert cpus == [2.0, 2.0]
    assert (tmp_path / ".ray/auth_token").is_file()
