"""The limit on questions under way, and when one that is refused may come again."""

import pytest

from trim_graph.server.admission import Admission
from trim_graph.server.errors import ApiError


def test_one_more_than_the_limit_is_refused_until_one_ends():
    admission = Admission(2)
    with admission.admit():
        with admission.admit():
            with pytest.raises(ApiError) as raised, admission.admit():
                pass
            assert (raised.value.status, raised.value.code) == (429, "rate_limit_exceeded")
            assert raised.value.headers == {"retry-after": "1"}
        with admission.admit():
            assert admission.under_way == 2
    assert admission.under_way == 0


def test_a_question_that_fails_ends_too():
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.admit():
        1 / 0  # noqa: B018
    assert admission.under_way == 0


def test_the_wait_follows_the_duration_of_questions(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trim_graph.server.admission.time.monotonic", lambda: now[0])
    admission = Admission(1)
    for seconds, wait in ((20.0, 10.0), (20.0, 10.0), (1e6, 60.0)):
        with admission.admit():
            now[0] += seconds
        assert admission.retry_after() == pytest.approx(wait)
