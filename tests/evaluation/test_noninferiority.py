import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.evaluation.noninferiority import (
    POWER,
    PairedOutcomes,
    chance_interval,
    further_questions,
    least_questions,
)


@st.composite
def outcomes(draw, most=40):
    n = draw(st.integers(1, most))
    lost = draw(st.integers(0, n))
    return PairedOutcomes(n, lost, draw(st.integers(0, n - lost)))


@pytest.mark.parametrize("n", [1, 20, 500])
def test_without_a_difference_the_bound_is_that_of_clopper_and_pearson_and_never_zero(n):
    assert PairedOutcomes(n, 0, 0).loss_bound() == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-3)


def test_what_only_loses_is_bounded_as_a_single_chance():
    _, high = chance_interval(1, 20, 0.9)
    assert PairedOutcomes(20, 1, 0).loss_bound() == pytest.approx(high, abs=1e-4)


def test_many_questions_are_bounded_as_by_the_normal_distribution():
    normal = 1.645 * np.sqrt(100 / 5000) / np.sqrt(5000)
    assert PairedOutcomes(5000, 50, 50).loss_bound() == pytest.approx(normal, rel=0.02)


@given(outcomes())
@settings(max_examples=60)
def test_the_bound_lies_above_what_was_seen_and_is_where_the_test_refutes(seen):
    bound = seen.loss_bound()
    assert seen.loss <= bound <= 1
    assert -seen.reversed.loss_bound() <= bound
    assert seen.loss_bound(0.8) <= bound <= seen.loss_bound(0.99)
    assert seen.p_value(bound + 1e-4) <= 0.05 or bound == 1
    assert seen.p_value(bound - 1e-4) > 0.05


@given(outcomes(most=39))
@settings(max_examples=60)
def test_one_more_lost_question_never_lowers_the_bound_and_one_gained_never_raises_it(seen):
    bound, n = seen.loss_bound(), seen.n
    if seen.lost + seen.gained < n:
        assert PairedOutcomes(n, seen.lost + 1, seen.gained).loss_bound() >= bound - 1e-4
        assert PairedOutcomes(n, seen.lost, seen.gained + 1).loss_bound() <= bound + 1e-4


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize(
    ("loses", "gains"), [(0.01, 0.0), (0.05, 0.0), (0.14, 0.0), (0.03, 0.02), (0.1, 0.1), (0.2, 0.05)]
)
def test_the_bound_holds_in_95_of_100_samples(n, loses, gains):
    drawn = np.random.default_rng(n).multinomial(n, [loses, gains, 1 - loses - gains], size=20_000)
    tables, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    # The bound is the loss from which on the test refutes: at the true loss it holds unless refuted.
    holds = [PairedOutcomes(n, int(b), int(c)).p_value(loses - gains) > 0.05 for b, c in tables]
    assert counts[holds].sum() / counts.sum() >= 0.95


def test_a_bootstrap_would_not_hold():
    """What the exact bound replaces: where no question was lost, every resample says that none is."""
    n, loses, samples = 20, 0.05, 2000
    lost = np.random.default_rng(0).binomial(n, loses, samples)
    bootstrap = np.random.default_rng(1).binomial(n, lost[:, None] / n, (samples, 500)) / n
    assert (np.quantile(bootstrap, 0.95, axis=1) >= loses).mean() < 0.7


@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 2, 2), (3, -1, 0)])
def test_what_cannot_be_counted_is_refused(counts):
    with pytest.raises(ValueError, match="no counts of paired outcomes"):
        PairedOutcomes(*counts)


def test_outcomes_are_counted_in_pairs():
    seen = PairedOutcomes.of([True, True, False, False], [True, False, True, False])
    assert seen == PairedOutcomes(4, lost=1, gained=1)
    assert (PairedOutcomes(4, 2, 1).loss, PairedOutcomes(4, 2, 1).reversed.loss) == (0.25, -0.25)


def test_the_least_questions_suffice_and_one_less_does_not():
    least = least_questions(0.02)
    assert least == 149
    assert PairedOutcomes(least, 0, 0).loss_bound() <= 0.02 < PairedOutcomes(least - 1, 0, 0).loss_bound()


@pytest.mark.parametrize(("seen", "max_loss"), [((20, 0, 0), 0.1), ((20, 1, 1), 0.1), ((100, 0, 0), 0.04)])
def test_the_questions_asked_for_decide_with_the_stated_power(seen, max_loss):
    seen = PairedOutcomes(*seen)
    n = seen.n + further_questions(seen, max_loss)
    rates = [(seen.lost + 0.5) / (seen.n + 1), (seen.gained + 0.5) / (seen.n + 1)]
    drawn = np.random.default_rng(0).multinomial(n, [*rates, 1 - sum(rates)], size=5000)
    tables, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    decided = [PairedOutcomes(n, int(b), int(c)).p_value(max_loss) <= 0.05 for b, c in tables]
    assert counts[decided].sum() / counts.sum() == pytest.approx(POWER, abs=0.12)


def test_a_loss_that_is_too_large_takes_no_number_of_questions():
    assert further_questions(PairedOutcomes(100, 5, 1), 0.02) is None
    assert further_questions(PairedOutcomes(10_000, 200, 0), 0.0201) is None


@given(outcomes())
def test_a_score_interval_is_around_what_was_seen_and_turns_with_the_arms(seen):
    low, high = seen.gain_interval()
    assert -1 <= low <= -seen.loss + 1e-6
    assert -seen.loss - 1e-6 <= high <= 1
    assert low < high
    turned = seen.reversed.gain_interval()
    assert (-turned.high, -turned.low) == pytest.approx((low, high), abs=1e-6)


@given(outcomes(most=200))
def test_a_score_interval_holds_no_difference_where_the_test_of_mcnemar_sees_none(seen):
    differing = seen.lost + seen.gained
    statistic = abs(seen.lost - seen.gained) / np.sqrt(differing) if differing else 0.0
    low, high = seen.gain_interval()
    if abs(statistic - 1.96) > 1e-3:
        assert (low <= 0 <= high) == (statistic < 1.96)


@pytest.mark.parametrize("n", [1, 20, 500])
def test_outcomes_without_difference_leave_one_possible(n):
    assert PairedOutcomes(n, 0, 0).gain_interval() == pytest.approx(
        (-3.8415 / (n + 3.8415), 3.8415 / (n + 3.8415)), abs=1e-4
    )


def test_outcomes_of_samples_count_in_shares():
    seen = PairedOutcomes.of([0.5, 1.0, 0.25], [1.0, 1.0, 0.0])
    assert seen == PairedOutcomes(3, lost=0.5, gained=0.25)
    assert PairedOutcomes(20, 0, 0).loss_bound() < PairedOutcomes(20, 0.5, 0).loss_bound()
    assert PairedOutcomes(20, 0.5, 0).loss_bound() < PairedOutcomes(20, 1, 0).loss_bound()
