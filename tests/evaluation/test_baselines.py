import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError, SettingsError
from trim_graph.evaluation.baselines import (
    MATHEMATICS,
    OPERATIONS,
    Validation,
    fit_step_types,
    limit_for,
    policy_of_step_types,
    uncertainty,
)
from trim_graph.evaluation.datasets import make_dataset

signals = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 50)), min_size=1, max_size=12
)


@given(signals, st.floats(0, 40))
def test_no_other_limit_comes_nearer(rows, target):
    signal, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))

    def spend(limit):
        return tokens[signal > limit].sum() / len(tokens)

    found = abs(spend(limit_for(signal, tokens, target)) - target)
    assert found <= min(abs(spend(limit) - target) for limit in [0.0, *signal]) + 1e-9


def test_how_unsure_an_answer_is(make_row):
    step = make_row()["steps"][0]
    row = make_row(
        steps=[
            {**step, "tokens": 3, "mean_token_probability": 0.5},
            {**step, "tokens": 1, "mean_token_probability": 0.9},
        ]
    )
    assert uncertainty(row) == pytest.approx(1 - (3 * 0.5 + 0.9) / 4)
    assert uncertainty(make_row(error="OSError: gone", steps=[])) == 1
    with pytest.raises(InputError, match="logprobs: true"):
        uncertainty(make_row())


def trace(*steps):
    return {
        "steps": [
            {"text": text, "writer": writer, "tokens": tokens, "label": label, "score": score}
            for text, writer, tokens, label, score in steps
        ]
    }


TRACES = [
    trace(
        ("Step 1: 2 + 2 = 4.", "small", 10, True, None),
        ("Step 2: 4 * 7 = 21.", "small", 10, False, None),
        ("The answer is \\boxed{21}.", "small", 5, True, None),
    ),
    trace(
        ("Step 1: 9 mod 4 = 2.", "small", 10, None, 0.25),
        ("Step 2: 2 * 7 = 14.", "small", 10, True, 0.0),
        ("Step 3: 2 * 8 = 9.", "large", 99, False, 0.0),
        ("So be it.", "small", 5, None, None),
    ),
]


def test_kinds_are_counted_by_label_and_else_by_score():
    kinds = {kind.kind: kind for kind in fit_step_types(TRACES, OPERATIONS)}
    assert {name: (kind.wrong, kind.tokens, kind.drafts) for name, kind in kinds.items()} == {
        "mod": (0.75, 10, 1),
        "*": (0.5, 20, 2),
        "+": (0.0, 10, 1),
        "boxed": (0.0, 5, 1),
    }
    assert [kind.kind for kind in fit_step_types(TRACES, OPERATIONS)][:2] == ["mod", "*"]
    assert None in {kind.kind for kind in fit_step_types(TRACES, "Step")}  # the answer is none


@given(st.floats(0, 1))
def test_the_worst_kinds_are_written_again_first(part):
    kinds = fit_step_types(TRACES, OPERATIONS)
    policy = policy_of_step_types(kinds, OPERATIONS, part)
    tokens = {kind.kind: kind.tokens for kind in kinds}
    again = sum(rate * tokens[kind] for kind, rate in policy["rates"].items())
    assert again == pytest.approx(part * 45, abs=0.01)
    rates = [policy["rates"][kind.kind] for kind in kinds]
    assert rates == sorted(rates, reverse=True)
    assert sum(0 < rate < 1 for rate in rates) <= 1


def test_kinds_of_mathematical_steps():
    texts = {"Thus \\frac{1}{2} of it": "\\frac", "we get x^2 + 1": "^", "so 4 = 2 * 2": "=", "hence": None}
    traces = [trace(*((text, "small", 1, True, None) for text in texts))]
    assert {kind.kind for kind in fit_step_types(traces, MATHEMATICS)} == set(texts.values())


def test_traces_that_say_nothing():
    with pytest.raises(InputError, match="labelled or scored"):
        fit_step_types([trace(("a", "small", 1, None, None))], OPERATIONS)
    with pytest.raises(SettingsError, match="cannot be read"):
        fit_step_types(TRACES, "(")


def test_validation_runs_are_graded_again(tmp_path):
    (tmp_path / "v.jsonl").write_text("".join(f'{{"problem": "p{n}", "answer": "{n}"}}\n' for n in range(3)))
    given = {"type": "file", "path": str(tmp_path / "v.jsonl"), "grader": "exact"}
    dataset = make_dataset(given)
    runner: Any = SimpleNamespace(folder=tmp_path, run_config=SimpleNamespace(settings={}))
    work = Validation(runner=runner, dataset=dataset, n=3, on_record=lambda record: None)
    work.regrade()  # there is nothing yet
    file = tmp_path / "validation" / "small.jsonl"
    file.parent.mkdir()
    failure = "grader mine:grade, question 1: ZeroDivisionError: division by zero"
    traces = [
        {"id": str(n), "index": n, "solution": "\\boxed{1}", "correct": n == 0, "error": error}
        for n, error in ((2, None), (1, failure), (0, None))  # in the order in which they ended
    ]
    file.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    work.regrade()
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["index"], one["correct"], one["error"]) for one in found] == [
        (0, False, None),
        (1, True, None),
        (2, False, None),
    ]
    file.write_text(json.dumps({"id": "0", "index": 0, "correct": True, "error": None}) + "\n")
    with pytest.raises(InputError, match="holds no solutions to grade: remove it"):
        work.regrade()
