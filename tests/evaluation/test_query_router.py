"""Training the query-level router: what it reads, what it finds, and that run time sees what training saw."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from typer.testing import CliRunner

from trim_graph.cli.app import app
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.query_router import Example, feature_matrix, read_examples, train_query_router
from trim_graph.policies import load_policy
from trim_graph.policies.query_router import SIZE, count_features, inverse_document_frequencies, weighted

HARD = ["integral", "eigenvalue", "residue", "topology"]
EASY = ["apples", "add", "half", "count"]


def questions(n, seed=0):
    """Hard words need the large model, easy ones do not; one in ten is the other way round."""
    draw = random.Random(seed)
    for number in range(n):
        hard = draw.random() < 0.4
        words = draw.choices(HARD if hard else EASY, k=3)
        text = f"Problem {number}: {' and '.join(words)} of {draw.randrange(99)}?"
        yield text, hard != (draw.random() < 0.1)


@pytest.fixture(scope="module")
def examples():
    return [Example(text, float(not needs), 1.0) for text, needs in questions(300)]


@pytest.fixture(scope="module")
def trained(examples):
    return train_query_router(examples, seed=3).at_share(0.4)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trace(question, policy, correct, **more):
    return {"question": question, "policy": {"type": policy}, "correct": correct, "error": None, **more}


# What it reads


def test_traces_of_the_two_models_are_joined_by_question(tmp_path):
    small = write(tmp_path / "s.jsonl", trace("a", "small_only", False), trace("b", "small_only", True))
    large = write(tmp_path / "l.jsonl", trace("b", "large_only", True), trace("a", "large_only", True))
    assert read_examples([small, large]) == [Example("a", 0.0, 1.0), Example("b", 1.0, 1.0)]


def test_several_runs_of_a_question_are_one_example(tmp_path):
    rows = [trace("a", "small_only", correct) for correct in (True, False, False)]
    (found,) = read_examples([write(tmp_path / "s.jsonl", *rows)])
    assert found == Example("a", pytest.approx(1 / 3), None)
    assert found.benefits


@pytest.mark.parametrize(
    ("small", "large", "benefits"),
    [(0, 1, True), (1, 1, False), (0, 0, False), (0, None, True), (1, 0, False)],
)
def test_what_counts_is_that_the_large_model_is_right_and_the_small_one_wrong(small, large, benefits):
    assert Example("q", small, large).benefits is benefits


def test_other_policies_failures_and_ungraded_questions_are_passed_over(tmp_path):
    rows = [
        trace("a", "small_only", True),
        trace("a", "threshold", False),
        trace("b", "small_only", False, error="ConnectionError: gone"),
        trace("c", "small_only", None),
        trace("d", "large_only", True),
    ]
    assert read_examples([write(tmp_path / "s.jsonl", *rows)]) == [Example("a", 1.0, None)]


def test_rows_of_outcomes_do_as_well(tmp_path):
    rows = [
        {"question": "a", "small_correct": False, "large_correct": True},
        {"question": "b", "small_correct": True},
    ]
    assert read_examples([write(tmp_path / "s.jsonl", *rows)]) == [
        Example("a", 0.0, 1.0),
        Example("b", 1.0, None),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"small_correct": True}, "line 1: question is None"),
        ({"question": "a"}, "line 1: neither a trace"),
        ({"question": "a", "small_correct": "yes"}, "line 1: small correct is 'yes'"),
        (trace("a", "large_only", True), "no outcome of the small model"),
    ],
)
def test_what_is_neither_is_refused_by_its_line(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        read_examples([write(tmp_path / "s.jsonl", row)])


# What it finds


def test_it_finds_which_questions_benefit(trained):
    assert trained.auc > 0.8
    assert (trained.trained_on, trained.validated_on) == (240, 60)
    assert trained.policy.probability("topology and residue of 5?") > trained.policy.limit
    assert trained.policy.probability("count and add and half of 5?") < trained.policy.limit


def test_labels_that_say_nothing_have_an_auc_near_one_half():
    draw = random.Random(1)
    noise = [Example(text, float(draw.random() < 0.5), 1.0) for text, _ in questions(400)]
    assert 0.3 < train_query_router(noise).auc < 0.7


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_the_limit_gives_the_share_that_was_asked_for(examples, share):
    found = train_query_router(examples, seed=3).at_share(share)
    assert found.share == pytest.approx(share, abs=0.05)
    fresh = [text for text, _ in questions(400, seed=9)]
    spent = np.mean([found.policy.probability(text) > found.policy.limit for text in fresh])
    assert spent == pytest.approx(share, abs=0.15)


def test_run_time_computes_the_features_of_training_to_the_bit(examples, trained):
    texts = [example.question for example in examples[:50]]
    idf = inverse_document_frequencies([count_features(text) for text in texts])
    matrix = feature_matrix(texts, idf)
    assert matrix.shape == (50, SIZE)
    for row, text in zip(matrix, texts, strict=True):
        counted = count_features(text)
        assert np.array_equal(row.indices, counted.places)
        assert np.array_equal(row.data, weighted(counted, idf))


def test_run_time_gives_the_probabilities_of_scikit_learn(examples, trained):
    from sklearn.linear_model import LogisticRegression

    texts = [example.question for example in examples]
    theirs = LogisticRegression().fit(
        feature_matrix(texts, trained.policy.idf), [e.benefits for e in examples]
    )
    theirs.coef_, theirs.intercept_ = trained.policy.weights[None], np.array([trained.policy.bias])
    expected = theirs.predict_proba(feature_matrix(texts, trained.policy.idf))[:, 1]
    assert [trained.policy.probability(text) for text in texts] == pytest.approx(expected, abs=1e-12)


def test_the_same_seed_trains_the_same_router(examples, trained):
    again = train_query_router(examples, seed=3).at_share(0.4)
    assert np.array_equal(again.policy.weights, trained.policy.weights)
    assert again.policy.limit == trained.policy.limit


def test_too_few_questions_of_a_kind_are_refused():
    with pytest.raises(InputError, match="of 40 questions 5 benefit"):
        train_query_router([Example(f"q{n}", float(n >= 5), 1.0) for n in range(40)])


def test_a_share_out_of_range_is_refused(examples, trained):
    for share in (0.0, 1.0):
        with pytest.raises(SettingsError, match="share"):
            trained.at_share(share)
    with pytest.raises(SettingsError, match="validation"):
        train_query_router(examples, validation=1.2)


# The command


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", "query-router", *map(str, arguments)])


def test_the_command_writes_a_policy_and_says_how_good_it_is(tmp_path):
    rows = [trace(text, "small_only", not needs) for text, needs in questions(200)]
    traces, out = write(tmp_path / "small.jsonl", *rows), tmp_path / "router.json"
    result = invoke("--traces", traces, "--out", out, "--share", 0.3)
    assert result.exit_code == 0, result.output
    assert "AUC 0." in result.output
    made = json.loads(out.read_text())["made"]
    assert made["traces"] == ["small.jsonl"]
    assert f"AUC {made['auc']:.3f}" in result.output
    assert load_policy(out).probability("residue of 1?") > load_policy(out).probability("half of 1?")


def test_several_shares_make_a_family_of_files(tmp_path):
    rows = [trace(text, "small_only", not needs) for text, needs in questions(200)]
    traces = write(tmp_path / "small.jsonl", *rows)
    result = invoke("--traces", traces, "--out", tmp_path / "r.json", "--share", 0.2, "--share", 0.6)
    assert result.exit_code == 0, result.output
    low, high = (load_policy(tmp_path / f"r-{share}.json") for share in (0.2, 0.6))
    assert low.limit > high.limit
    assert np.array_equal(low.weights, high.weights)
    made = [json.loads((tmp_path / f"r-{share}.json").read_text())["made"] for share in (0.2, 0.6)]
    assert [one["share"] for one in made] == [pytest.approx(0.2, abs=0.06), pytest.approx(0.6, abs=0.06)]
    refused = invoke("--traces", traces, "--out", tmp_path / "r.json", "--share", 0.2, "--share", 2)
    assert (refused.exit_code, "--share is 2.0" in refused.output) == (2, True)


def test_the_command_refuses_before_it_reads(tmp_path):
    result = invoke("--traces", tmp_path / "none.jsonl", "--out", tmp_path / "router.pt")
    assert result.exit_code == 2
    assert "name a .json file" in result.output
    result = invoke("--traces", tmp_path / "none.jsonl", "--out", tmp_path / "router.json")
    assert result.exit_code == 2
    assert "none.jsonl does not exist" in result.output
