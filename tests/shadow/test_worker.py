"""The worker of a shadow: what it counts always adds up, it never delays, and it ends with the process."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.settings import ShadowSettings
from trim_graph.shadow import read_shadow
from trim_graph.shadow.worker import ShadowWorker


class Sink:
    """Keeps records; raises for those that say so."""

    def __init__(self):
        self.records, self.closed = [], False

    def write(self, record):
        if record.get("unwritable"):
            raise OSError("the disk is full")
        self.records.append(record)

    def close(self):
        self.closed = True


def balanced(counts):
    return (
        counts.seen == counts.skipped + counts.submitted
        and counts.submitted == counts.recorded + counts.failed + counts.dropped + counts.pending
        and counts.unsuitable <= counts.skipped
    )


def job(**record):
    async def make():
        return record

    return make


async def failing():
    raise RuntimeError("a secret of the conversation")


async def erring():
    return {"error": "ScorerError"}


async def hanging():
    await asyncio.sleep(60)


JOBS = {
    "fine": job(),
    "raises": failing,
    "error": erring,
    "unwritable": job(unwritable=True),
    "hangs": hanging,
    "unsuitable": None,
}


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(JOBS)), max_size=30),
    capacity=st.integers(1, 8),
    concurrency=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    closes_at=st.integers(0, 40),
)
def test_what_is_submitted_is_recorded_failed_dropped_or_pending_at_any_time(
    kinds, capacity, concurrency, rate, closes_at
):
    sink = Sink()
    worker = ShadowWorker(
        sink,
        ShadowSettings(rate=rate, capacity=capacity, concurrency=concurrency, timeout=0.02, sampling_seed=1),
    )
    for index, kind in enumerate(kinds):
        if index == closes_at:
            worker.close(0.05)
        worker.offer(JOBS[kind])
        assert balanced(worker.counts)
        assert worker.counts.seen == index + 1
    worker.close(5)
    counts = worker.counts
    assert balanced(counts)
    assert counts.pending == 0
    assert counts.recorded == sum("error" not in record for record in sink.records)
    assert counts.unsuitable == kinds.count("unsuitable")
    if rate == 0:
        assert counts.skipped == len(kinds)
    assert sink.closed


def test_a_full_queue_drops_and_counts_without_waiting():
    release = threading.Event()

    async def blocked():
        await asyncio.to_thread(release.wait, 10)
        return {}

    worker = ShadowWorker(Sink(), ShadowSettings(capacity=2, concurrency=1))
    worker.offer(blocked)
    while worker._queue:  # until it is under way
        time.sleep(0.001)
    begun = time.monotonic()
    taken = [worker.offer(job()) for _ in range(5)]
    assert time.monotonic() - begun < 0.5
    assert taken == [True, True, False, False, False]
    assert (worker.counts.dropped, worker.counts.pending) == (3, 3)
    release.set()
    assert worker.close(10)
    assert (worker.counts.recorded, worker.counts.dropped) == (3, 3)


def test_jobs_run_in_one_other_thread_with_an_empty_context():
    import contextvars

    variable = contextvars.ContextVar("variable", default="empty")
    variable.set("the application's")
    seen = []

    async def look():
        seen.append((threading.current_thread().name, variable.get()))
        return {}

    worker = ShadowWorker(Sink(), ShadowSettings())
    for _ in range(3):
        worker.offer(look)
    worker.close()
    assert seen == [("trim-graph shadow", "empty")] * 3


async def test_an_application_with_an_event_loop_is_not_blocked():
    sink = Sink()
    worker = ShadowWorker(sink, ShadowSettings())
    worker.offer(job(of="loop"))
    assert await asyncio.to_thread(worker.drain, 5)
    worker.close()
    assert [record["of"] for record in sink.records] == ["loop"]


def test_close_drops_what_does_not_end_in_time_and_may_be_called_again():
    worker = ShadowWorker(Sink(), ShadowSettings(concurrency=1, timeout=60))
    worker.offer(hanging)
    worker.offer(job())
    begun = time.monotonic()
    assert not worker.close(0.1)
    assert time.monotonic() - begun < 5
    worker.close(0.1)
    assert (worker.counts.dropped, worker.counts.pending) == (2, 0)
    assert not worker.offer(job())
    assert worker.counts.dropped == 3


def test_a_job_over_its_time_limit_fails(caplog):
    worker = ShadowWorker(Sink(), ShadowSettings(timeout=0.05))
    worker.offer(hanging)
    worker.offer(failing)
    worker.close()
    assert worker.counts.failed == 2
    assert "TimeoutError" in caplog.text
    assert "secret" not in caplog.text


def test_each_record_has_session_and_counts():
    sink = Sink()
    worker = ShadowWorker(sink, ShadowSettings(concurrency=1))
    for _ in range(3):
        worker.offer(job())
    worker.close()
    assert {record["session"] for record in sink.records} == {worker.session}
    assert [record["counts"]["recorded"] for record in sink.records] == [0, 1, 2]


def test_the_sampling_rate_is_kept_and_repeatable():
    def drawn(seed):
        worker = ShadowWorker(Sink(), ShadowSettings(rate=0.25, sampling_seed=seed, capacity=2000))
        taken = [worker.offer(job()) for _ in range(1000)]
        worker.close()
        return taken

    assert drawn(1) == drawn(1) != drawn(2)
    assert 190 < sum(drawn(3)) < 310


EXITING = """
import asyncio, sys
from trim_graph.settings import ShadowSettings
from trim_graph.shadow.records import JsonLines
from trim_graph.shadow.worker import ShadowWorker
from pathlib import Path
async def work():
    await asyncio.sleep({sleep})
    return {{"error": None}}
worker = ShadowWorker(JsonLines(Path(sys.argv[1])), ShadowSettings(concurrency=4))
for _ in range(4):
    worker.offer(work)
"""


@pytest.mark.parametrize(("sleep", "written"), [(0.05, 4), (60, 0)])
def test_the_end_of_a_process_waits_for_jobs_a_little(tmp_path, sleep, written):
    file = tmp_path / "shadow.jsonl"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", EXITING.format(sleep=sleep), file], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(file.read_text().splitlines()) == written
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["shadow.jsonl", "shadow.db"])
def test_a_forked_child_has_a_thread_and_counts_of_its_own(tmp_path, name):
    code = """
import os, sys
from pathlib import Path
from trim_graph.settings import ShadowSettings
from trim_graph.shadow.records import open_sink
from trim_graph.shadow.runner import new_record
from trim_graph.shadow.worker import ShadowWorker
async def work():
    return dict(new_record("large", priced=True))
worker = ShadowWorker(open_sink(Path(sys.argv[1])), ShadowSettings())
worker.offer(work)
worker.drain(10)
child = os.fork()
worker.offer(work)
ended = worker.drain(10)
assert ended and worker.counts.recorded == (2 if child else 1), worker.counts
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(list(read_shadow(tmp_path / name))) == 3
