"""A limit of time on a synchronous call."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GRACE = 0.5
"""Seconds that a call may exceed its timeout before it is given up."""


def call_within(seconds: float | None, call: Callable[[], T]) -> T:
    """Call a function, and stop waiting for it ``GRACE`` after its time.

    A thread cannot be ended from outside: what hangs goes on in a daemon thread, and its answer is dropped.

    Args:
        seconds: None waits for ever, in this thread.
        call: Takes no arguments.

    Raises:
        TimeoutError: It took too long.
    """
    if seconds is None:
        return call()
    answers: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            answers.append(context.run(call))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="trim-graph call with a deadline", daemon=True)
    thread.start()
    thread.join(seconds + GRACE)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds} seconds")
    return answers[0]
