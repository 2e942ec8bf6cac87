"""The batching worker alone, with jobs that need no model."""

import threading
import time

import pytest

from trim_graph.adapters.transformers import batching
from trim_graph.adapters.transformers.batching import BatchWorker, Job


class Number(Job[int]):
    def __init__(self, value, *, batch_limit=8):
        super().__init__(batch_limit=batch_limit)
        self.value = value


class Recorder:
    """Runs batches, keeps their values, and can be held up with a gate."""

    def __init__(self, fits=lambda batch, job: True):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.worker = BatchWorker(self.run, fits=fits, name="test worker")

    def run(self, jobs):
        self.batches.append([job.value for job in jobs])
        self.started.set()
        assert self.gate.wait(5)
        for job in jobs:
            if job.value < 0:
                raise ArithmeticError("negative")
            job.settle(job.value * 2)

    def hold(self):
        """Block the worker in a batch of its own."""
        self.gate.clear()
        self.started.clear()
        first = Number(0)
        self.worker.submit(first)
        assert self.started.wait(5)

    def submit(self, *values, **kwargs):
        jobs = [Number(value, **kwargs) for value in values]
        for job in jobs:
            self.worker.submit(job)
        return jobs


def test_what_waits_runs_together_in_order():
    recorder = Recorder()
    recorder.hold()
    jobs = recorder.submit(1, 2, 3)
    recorder.gate.set()
    assert [job.future.result(5) for job in jobs] == [2, 4, 6]
    assert recorder.batches == [[0], [1, 2, 3]]


def test_no_batch_is_larger_than_any_of_its_jobs_allows():
    recorder = Recorder()
    recorder.hold()
    jobs = recorder.submit(1, 2) + recorder.submit(3, batch_limit=2) + recorder.submit(4)
    recorder.gate.set()
    for job in jobs:
        job.future.result(5)
    assert recorder.batches == [[0], [1, 2, 4], [3]]


def test_the_oldest_job_is_never_passed_over():
    recorder = Recorder(fits=lambda batch, job: (batch[0].value < 10) == (job.value < 10))
    recorder.hold()
    jobs = recorder.submit(11, 1, 12, 2)
    recorder.gate.set()
    for job in jobs:
        job.future.result(5)
    assert recorder.batches == [[0], [11, 12], [1, 2]]


def test_an_error_reaches_every_job_of_its_batch_and_the_worker_goes_on():
    recorder = Recorder()
    recorder.hold()
    jobs = recorder.submit(-1, 5)
    recorder.gate.set()
    for job in jobs:
        with pytest.raises(ArithmeticError, match="negative"):
            job.future.result(5)
    assert recorder.submit(4)[0].future.result(5) == 8


def test_a_batch_that_forgets_a_job_fails_it_rather_than_hanging():
    worker = BatchWorker(lambda jobs: None, fits=lambda batch, job: True, name="forgetful")
    job = Number(1)
    worker.submit(job)
    with pytest.raises(RuntimeError, match="without a reply"):
        job.future.result(5)


def test_cancelled_jobs_are_not_run():
    recorder = Recorder()
    recorder.hold()
    left, kept = recorder.submit(1, 2)
    left.future.cancel()
    recorder.gate.set()
    assert kept.future.result(5) == 4
    assert recorder.batches == [[0], [2]]


def test_drop_waiting_lets_go_of_cancelled_and_expired_jobs():
    class Impatient(Number):
        def expire(self):
            self.settle(-7)

    recorder = Recorder()
    recorder.hold()
    job = Impatient(1)
    recorder.worker.submit(job)
    recorder.worker.drop_waiting()
    assert job.future.result(0) == -7
    recorder.gate.set()
    assert recorder.submit(3)[0].future.result(5) == 6
    assert recorder.batches == [[0], [3]]


def test_waiting_jobs_wait_for_a_call_in_preparation(monkeypatch):
    monkeypatch.setattr(batching, "PREPARING_S", 5.0)
    recorder = Recorder()
    with recorder.worker.preparing():
        (first,) = recorder.submit(1)
        time.sleep(0.05)
        assert recorder.batches == []
        (second,) = recorder.submit(2)
    assert (first.future.result(5), second.future.result(5)) == (2, 4)
    assert recorder.batches == [[1, 2]]


def test_a_call_stuck_in_preparation_does_not_hold_the_others_up():
    recorder = Recorder()
    with recorder.worker.preparing():
        assert recorder.submit(1)[0].future.result(5) == 2


def test_an_idle_thread_ends_and_a_later_job_starts_another(monkeypatch):
    monkeypatch.setattr(batching, "IDLE_S", 0.01)
    recorder = Recorder()
    assert recorder.submit(1)[0].future.result(5) == 2
    deadline = time.monotonic() + 5
    while recorder.worker._thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert recorder.submit(2)[0].future.result(5) == 4


def test_settling_twice_keeps_the_first_outcome():
    job = Number(1)
    job.settle(1)
    job.settle(2)
    job.fail(ValueError())
    assert job.future.result(0) == 1
