"""The wait factor that batched requests choose by themselves: the one with which calls are over soonest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from trim_graph.adapters.vllm.batching import AdaptiveWait

Seconds = Callable[[float], float]


def run(wait: AdaptiveWait, seconds: Seconds, *, at_once: int, calls: int) -> Counter[float]:
    """Keeps so many calls at once, which take what their factor says; returns the calls by factor."""
    under_way = [(wait.enter(), seconds(wait.factor)) for _ in range(at_once)]
    factors: Counter[float] = Counter()
    for _ in range(calls):
        wait.leave(*under_way.pop(0))
        factors[wait.factor] += 1
        under_way.append((wait.enter(), seconds(wait.factor)))
    for call in under_way:
        wait.leave(*call)
    return factors


@pytest.mark.parametrize("best", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("at_once", [8, 64, 256])
def test_most_calls_go_with_the_factor_that_has_them_over_soonest(best, at_once):
    factors = run(
        AdaptiveWait(), lambda factor: 1.0 if factor == best else 1.2, at_once=at_once, calls=60 * at_once
    )
    assert factors.most_common(1)[0][0] == best


def test_a_factor_that_brings_nothing_is_not_chosen_over_a_smaller_one():
    wait = AdaptiveWait()
    factors = run(wait, lambda factor: 1.0 - factor / 1000, at_once=16, calls=2000)
    assert factors[0.25] > factors[1.0] + factors[4.0]


def test_few_calls_at_once_never_wait_longer_than_the_least_factor_says():
    factors = run(AdaptiveWait(), lambda factor: 1.0 / factor, at_once=7, calls=2000)
    assert set(factors) == {0.25}


def test_after_the_load_falls_the_least_factor_is_taken_again():
    wait = AdaptiveWait()
    run(wait, lambda factor: 1.0 / factor, at_once=64, calls=2000)
    run(wait, lambda factor: 1.0 / factor, at_once=4, calls=200)
    assert wait.factor == 0.25


def test_a_best_factor_that_changes_is_found_within_some_windows():
    wait = AdaptiveWait()
    run(wait, lambda factor: factor, at_once=16, calls=2000)
    factors = run(wait, lambda factor: 1.0 / factor, at_once=16, calls=4000)
    assert factors.most_common(1)[0][0] == 4.0


def test_calls_that_fail_or_began_in_an_earlier_window_are_not_timed():
    wait = AdaptiveWait()
    late = [wait.enter() for _ in range(16)]
    run(wait, lambda factor: 1.0 if factor == 1.0 else 1.5, at_once=48, calls=4000)
    assert wait.factor == 1.0
    for window in late:
        wait.leave(window, 1000.0)
    for _ in range(2000):
        wait.leave(wait.enter(), None)
    factors = run(wait, lambda factor: 1.0 if factor == 1.0 else 1.5, at_once=48, calls=500)
    assert factors[1.0] > 250
