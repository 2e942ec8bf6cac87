"""Tests of targets of labelled steps, and of their split by questions."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.errors import InputError
from trim_graph.evaluation.scorer_metrics import labels_of_values
from trim_graph.training.scorer_data import (
    LabelledSteps,
    folds_by_question,
    methods_of,
    of_trace,
    read_label_files,
    split_by_question,
)


def trace(question="q", *, labels, values=None, method="monte_carlo"):
    steps = [
        {
            "text": f"step {at}",
            "writer": "small",
            "tokens": 3,
            "score": None,
            "decision": None,
            "mean_token_probability": 0.9,
            "label": label,
            "discarded": None,
            "value": None if values is None else values[at],
        }
        for at, label in enumerate(labels)
    ]
    tokens = dict.fromkeys(
        ("small", "large", "small_discarded", "large_discarded", "large_unaccounted", "scorer"), 0
    )
    return {
        "id": question,
        "index": 0,
        "dataset": "d",
        "split": None,
        "question": question,
        "policy": {"type": "labelled", "method": method},
        "seed": 0,
        "correct": True,
        "answer": None,
        "stopped": "finished",
        "steps": steps,
        "tokens": {**tokens, "scorer_output": 0},
        "error": None,
    }


def read(tmp_path, *traces):
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in traces))
    return read_label_files([file])


def labelled(question, *labels, method="labelled", hard=True, targets=None):
    found = tuple(None if one is None else float(one) for one in labels) if targets is None else targets
    return LabelledSteps(
        question=question,
        steps=tuple("s" for _ in labels),
        targets=found,
        labels=labels,
        hard=hard,
        token_probabilities=tuple(0.9 for _ in labels),
        method=method,
        dataset="d",
        writers=tuple("small" for _ in labels),
    )


def test_a_value_is_the_target_and_a_step_without_one_has_none(tmp_path):
    (one,) = read(tmp_path, trace(labels=[True, True, False, None], values=[0.75, None, 0.0, None]))
    assert one.targets == (0.75, None, 0.0, None)
    assert one.labels == (True, True, False, None)
    assert (one.labelled, one.hard, one.method) == (2, True, "monte_carlo")


def test_labels_after_the_first_wrong_step_are_dropped(tmp_path):
    (one,) = read(tmp_path, trace(labels=[True, False, True]))
    assert one.labels == (True, False, None)


def test_values_without_labels_are_right_from_a_half_on(tmp_path):
    (one,) = read(tmp_path, trace(labels=[None] * 3, values=[0.5, 0.4, 0.9], method="advantage"))
    assert (one.labels, one.hard) == ((True, False, None), False)
    assert one.targets == (0.5, 0.4, 0.9)


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_labels_of_values_are_true_up_to_the_first_false(values):
    labels = labels_of_values(values)
    assert len(labels) == len(values)
    known = [label for label in labels if label is not None]
    assert labels == [*known, *[None] * (len(values) - len(known))]
    assert all(known[:-1])
    assert all((value >= 0.5) is label for value, label in zip(values, known, strict=False))


def test_files_without_a_target_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 solution, and none has a step with a label or a value"):
        read(tmp_path, trace(labels=[None, None]))
    with pytest.raises(InputError, match="no label files"):
        read_label_files([])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([f"q{at}" for at in range(8)]), min_size=30, max_size=60),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.2]),
)
def test_no_question_is_in_two_parts(questions, seed, test):
    solutions = [labelled(question, True, False) for question in questions]
    if len(set(questions)) < 4:
        return
    split = split_by_question(solutions, validation=0.25, test=test, seed=seed)
    parts = [{one.question for one in part} for part in split]
    assert sum(map(len, parts)) == len(set(questions)) == len(set.union(*parts))
    assert sum(map(len, split)) == len(solutions)
    assert bool(split.test) is (test > 0)
    again = split_by_question(solutions[::-1], validation=0.25, test=test, seed=seed)
    assert [{one.question for one in part} for part in again] == parts


@given(st.integers(0, 99), st.integers(2, 4))
def test_each_part_has_its_share_of_the_questions_with_a_wrong_step(seed, wrong):
    """One question in two to four has one: drawn without regard to that, a part of eight may have none."""
    solutions = [labelled(f"q{at}", True, *([False] if at % wrong == 0 else [])) for at in range(64)]
    split = split_by_question(solutions, validation=0.125, test=0.125, seed=seed)
    for part in split:
        expected = len(part) / wrong
        assert abs(sum(False in one.labels for one in part) - expected) <= 1


@given(st.integers(0, 99), st.integers(2, 12), st.integers(2, 40))
def test_each_fold_has_a_question_with_a_wrong_step_and_no_question_is_in_two(seed, wrong, count):
    solutions = [
        labelled(f"q{at}", True, *([False] if at < wrong else [])) for at in range(12) for _ in range(2)
    ]
    folds = folds_by_question(solutions, count, seed=seed)
    assert folds[::2] == folds[1::2]
    assert set(folds) == set(range(min(count, wrong)))
    with_wrong = [fold for fold, one in zip(folds, solutions, strict=True) if False in one.labels]
    assert set(with_wrong) == set(folds)


def test_one_kind_of_step_is_refused_by_name():
    solutions = [labelled(f"q{at}", True) for at in range(20)]
    with pytest.raises(InputError, match=r"all \d+ labelled steps of the validation questions are right"):
        split_by_question(solutions, validation=0.2, test=0.2, seed=0)
    with pytest.raises(InputError, match="2 questions are too few to hold out 1 for validation and 1"):
        split_by_question(
            [labelled(f"q{at}", True, False) for at in range(2)], validation=0.1, test=0.1, seed=0
        )


def test_methods_are_named_the_most_frequent_first():
    made = [labelled("q", True, method=name) for name in ("outcome", "advantage", "advantage")]
    assert methods_of(made) == "advantage+outcome"


@pytest.mark.parametrize(
    ("method", "values", "targets"),
    [
        ("advantage", [0.5, None, None], (0.5, None, None)),
        ("advantage", [None, None, None], (None, None, None)),
        ("monte_carlo", [0.75, 0.0, None], (0.75, 0.0, None)),
        (None, [None, None, None], (1.0, 0.0, None)),
    ],
)
def test_a_label_stands_in_for_no_missing_value(method, values, targets):
    labels = [True, False, None]
    steps = [
        {"text": "a", "label": label, "value": value, "mean_token_probability": None}
        for label, value in zip(labels, values, strict=True)
    ]
    policy = {"type": "labelled"} if method is None else {"type": "labelled", "method": method}
    found = of_trace({"question": "q", "steps": steps, "policy": policy, "dataset": "d"})
    assert found.targets == targets
    assert found.labels == (True, False, None)
