"""Figures, intervals, verdicts and further questions of a shadow's records."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.evaluation.noninferiority import PairedOutcomes, further_questions
from trim_graph.shadow.estimates import (
    proportion,
    ratio_of,
    share_of,
    summarise_shadow,
)
from trim_graph.shadow.runner import new_record


def a_record(question=0, *, application="large", kind="run", large=20, would=5, agree=True, **changes):
    """A record of one question with prices; the application's cost is 10, routing's 4, unless changed."""
    record = new_record(application, priced=True)
    record["kind"] = kind
    record["question"] = {"sha256": f"{question}", "text": None}
    record["session"] = "s"
    record["counts"] = {"seen": question + 1, "submitted": question + 1, "dropped": 0, "pending": 1}
    record["answered"] = {
        "answer": {"sha256": "", "text": None},
        "model": "huge",
        "input_tokens": 9,
        "output_tokens": large,
        "seconds": 2.0,
        "cost": changes.pop("own_cost", 10.0),
        "steps": 4,
    }
    record["would"] = {
        "stopped": "finished",
        "steps": {"small": 3, "large": 1},
        "large_tokens": would,
        "small_tokens": 30,
        "scorer_tokens": 100,
        "share": None,
        "cost": changes.pop("cost", 4.0),
        "seconds": 1.0,
        "first_large": 1 if would else None,
        "decisions": {},
        "scores": [],
        "places": [1],
    }
    record["agree"] = agree
    return {**record, **changes}


def test_shares_are_of_all_tokens_and_not_means_of_shares():
    records = [a_record(0, large=100, would=10), a_record(1, large=20, would=20)]
    (group,) = summarise_shadow(records)["groups"]
    assert group["share"]["value"] == 30 / 120
    assert group["large_tokens_saved"]["value"] == 45
    assert group["cost_saved"]["value"] == 6
    assert group["seconds_saved"]["value"] == 1


def test_turns_of_one_question_are_one_question():
    records = [a_record(0, kind="turn", turn=turn) for turn in range(3)]
    records += [a_record(1, kind="turn", turn=0, agree=False)]
    (group,) = summarise_shadow(records)["groups"]
    assert (group["records"], group["questions"]) == (4, 2)
    assert group["agreement"]["value"] == 0.5
    assert group["cost_saved"]["value"] == 12


def test_a_question_asked_again_narrows_no_interval():
    once = [a_record(index, would=index % 3) for index in range(9)]
    thrice = [record for record in once for _ in range(3)]
    (first,), (second,) = (summarise_shadow(records)["groups"] for records in (once, thrice))
    for name in ("share", "cost_saved", "agreement", "large_tokens_saved"):
        assert first[name] == pytest.approx(second[name]), name


def test_failures_and_refusals_are_counted_and_warned_of():
    records = [
        a_record(0),
        a_record(1, error="ScorerError", would=0),
        a_record(2, refused="budget", kind="walk"),
    ]
    records[2]["counts"] = {"seen": 9, "submitted": 9, "dropped": 4}
    summary = summarise_shadow(records)
    run, walk = summary["groups"]
    assert (run["failed"], run["questions"], walk["refused"]) == (1, 1, 1)
    warnings = " ".join(summary["warnings"])
    for what in (
        "4 of 9 drawn answers were dropped",
        "1 of 2 records failed (application=large, kind=run), by ScorerError (1): no figure has them",
        "1 run was refused",
        "teacher-forced",
    ):
        assert what in warnings


def test_the_net_savings_of_the_runs_own_summaries_are_reported_where_they_are():
    plain = summarise_shadow([a_record(0)])["groups"][0]
    assert plain["savings"] == {}
    records = [a_record(i, summary={"savings": {"tokens": 10.0 * i, "cost": None}}) for i in range(2)]
    assert summarise_shadow(records)["groups"][0]["savings"]["tokens"]["value"] == 5


def test_what_a_walk_does_not_know_of_all_questions_it_does_not_say():
    known = a_record(0, application="small", kind="walk", would=0)
    unknown = a_record(1, application="small", kind="walk", cost=None)
    unknown["would"]["large_tokens"] = None
    (group,) = summarise_shadow([known, unknown])["groups"]
    assert group["cost_saved"]["value"] is None
    assert group["agreement"]["value"] is None
    assert group["asked"]["value"] == 0.5


@pytest.mark.parametrize(
    ("records", "use", "words"),
    [
        ([a_record(i, cost=4 + i % 3) for i in range(200)], "yes", "Turn it on"),
        ([a_record(i, cost=14 + i % 3) for i in range(200)], "no", "costs more"),
        ([a_record(i) for i in range(30)], "undecided", "more examined questions decide"),
        ([a_record(i, agree=i % 2 == 0) for i in range(200)], "undecided", "need not be wrong"),
        ([a_record(i, cost=None) for i in range(200)], "undecided", "Without prices"),
        ([a_record(i, kind="walk") for i in range(200)], "undecided", "set run_rate above 0"),
        (
            [a_record(i, kind="turn", turn=0) for i in range(200)],
            "undecided",
            "What tools would have answered",
        ),
        (
            [a_record(i, correct={"application": True, "routed": i % 5 > 0}) for i in range(200)],
            "no",
            "routing loses 40",
        ),
        ([a_record(i, application="small", kind="walk") for i in range(200)], "undecided", "set run_rate"),
        (
            [
                a_record(i, application="small", correct={"application": i % 2 == 0, "routed": True})
                for i in range(100)
            ],
            "yes",
            "gains 50",
        ),
    ],
)
def test_the_verdict_follows_from_savings_and_agreement(records, use, words):
    (verdict,) = summarise_shadow(records)["verdicts"]
    assert (verdict["use"], words in verdict["text"]) == (use, True), verdict["text"]


def test_149_questions_without_a_difference_bound_the_loss_by_two_points():
    # 0.98 ** 148 > 0.05 > 0.98 ** 149.
    (later,) = summarise_shadow([a_record(i) for i in range(149)])["verdicts"]
    (before,) = summarise_shadow([a_record(i) for i in range(148)])["verdicts"]
    assert (before["use"], later["use"], later["more_questions"]) == ("undecided", "yes", 0)


def test_further_questions_are_planned_as_for_an_evaluation():
    (verdict,) = summarise_shadow([a_record(i) for i in range(30)])["verdicts"]
    assert verdict["more_questions"] == further_questions(PairedOutcomes(30, lost=0, gained=0), 0.02)


def test_further_answers_of_the_application_follow_from_the_rates():
    records = [a_record(i) for i in range(30)]
    records[-1]["counts"] = {"seen": 300, "submitted": 30}
    (verdict,) = summarise_shadow(records)["verdicts"]
    assert verdict["more_answers"] == 10 * verdict["more_questions"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=30))
def test_a_share_is_within_its_interval(pairs):
    one = share_of([(min(part, whole), whole) for part, whole in pairs])
    if one["low"] is not None:
        assert 0 <= one["low"] <= one["value"] <= one["high"]
    assert (one["low"] is None) == (len(pairs) == 1)


def test_the_bound_of_an_agreement_is_that_of_the_textbook():
    assert proportion(0, 10)["high"] == pytest.approx(0.3085, abs=1e-4)


def test_intervals_hold_what_they_promise():
    """Of 400 samples of 40 questions, some 95 % of the intervals hold the true ratio."""
    draw = random.Random(1)
    truth, held = 0.3, 0
    for _ in range(400):
        pairs = []
        for _ in range(40):
            whole = draw.randint(20, 200)
            pairs.append((whole if draw.random() < truth else 0, whole))
        one = ratio_of(pairs)
        held += one["low"] <= truth <= one["high"]
    assert held >= 0.9 * 400


def test_no_records_are_no_groups():
    assert summarise_shadow([]) == {
        "max_loss": 0.02,
        "groups": [],
        "verdicts": [],
        "counts": {},
        "warnings": [],
    }
