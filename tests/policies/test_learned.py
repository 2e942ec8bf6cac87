"""Learned policies: features, networks against torch's, files, and a run in the graph."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trim_graph import SettingsError
from trim_graph.policies import Observation, load_policy, save_policy
from trim_graph.policies.learned import (
    AGGREGATE,
    SEQUENCE,
    aggregate,
    aggregate_features,
    sequence,
    sequence_features,
)

WIDTH, HEADS = 8, 2

scores = st.none() | st.floats(0, 1)


@st.composite
def observations(draw, longest=40):
    steps = draw(st.integers(0, longest))
    return Observation(
        question="?",
        index=steps,
        max_steps=draw(st.integers(max(1, steps), 60)),
        scores=tuple(draw(scores) for _ in range(steps)),
        tokens=tuple(draw(st.integers(1, 600)) for _ in range(steps)),
        writers=tuple(draw(st.sampled_from(["small", "large"])) for _ in range(steps)),
        score=draw(scores),
        draft="draft",
        draft_tokens=draw(st.integers(1, 600)),
    )


def seen(score, *earlier):
    """A draft behind steps of the small model."""
    return Observation(
        question="?",
        index=len(earlier),
        max_steps=32,
        scores=earlier,
        tokens=(10,) * len(earlier),
        writers=("small",) * len(earlier),
        score=score,
        draft="draft",
        draft_tokens=12,
    )


def cuts_at(limit, sharpness=50.0):
    """An aggregate policy whose log-odds are those of a score below a limit."""
    weight = np.zeros((1, len(AGGREGATE)), np.float32)
    weight[0, AGGREGATE.index("score")] = -sharpness
    standard = {"mean": np.zeros(len(AGGREGATE)), "scale": np.ones(len(AGGREGATE))}
    return aggregate({**standard, "w0": weight, "b0": np.array([sharpness * limit])})


def any_sequence(seed=0, layers=2, window=16):
    rng = np.random.default_rng(seed)

    def linear(name, outputs, inputs):
        return {
            f"{name}.weight": rng.normal(size=(outputs, inputs)) / inputs**0.5,
            f"{name}.bias": rng.normal(size=outputs),
        }

    def norm(name):
        return {f"{name}.weight": rng.normal(1, 0.1, WIDTH), f"{name}.bias": rng.normal(size=WIDTH)}

    arrays = {"mean": rng.normal(size=len(SEQUENCE)), "scale": rng.uniform(0.5, 2, len(SEQUENCE))}
    arrays |= linear("embed", WIDTH, len(SEQUENCE)) | norm("norm") | linear("head", 1, WIDTH)
    for layer in range(layers):
        arrays |= norm(f"{layer}.norm1") | linear(f"{layer}.qkv", 3 * WIDTH, WIDTH)
        arrays |= linear(f"{layer}.out", WIDTH, WIDTH) | norm(f"{layer}.norm2")
        arrays |= linear(f"{layer}.up", 12, WIDTH) | linear(f"{layer}.down", WIDTH, 12)
    return sequence(arrays, heads=HEADS, window=window)


def test_the_aggregate_features_are_those_of_the_paper():
    features = dict(zip(AGGREGATE, aggregate_features(seen(0.4, 0.9, 0.5, 0.8)), strict=True))
    assert features == pytest.approx(
        {"min_earlier": 0.5, "product_earlier": 0.36, "score": 0.4, "tokens": 0.04, "index": 3 / 32}
    )
    assert aggregate_features(seen(0.4))[:2] == [1.0, 1.0]


def test_a_step_without_a_score_changes_nothing_and_says_so():
    assert aggregate_features(seen(0.4, 0.9, None))[:2] == aggregate_features(seen(0.4, 0.9))[:2]
    _, unscored, draft = sequence_features(seen(0.4, 0.9, None), 16)
    assert (unscored[SEQUENCE.index("scored")], unscored[SEQUENCE.index("score")]) == (0.0, 1.0)
    assert (draft[SEQUENCE.index("scored")], draft[SEQUENCE.index("score")]) == (1.0, 0.4)


@given(observations(), st.integers(1, 50))
def test_a_sequence_is_its_last_steps_and_then_the_draft(observation, window):
    rows = sequence_features(observation, window)
    assert len(rows) == min(window, len(observation.scores) + 1)
    assert [row[SEQUENCE.index("draft")] for row in rows] == [0.0] * (len(rows) - 1) + [1.0]
    written = [observation.max_steps * row[SEQUENCE.index("index")] for row in rows]
    assert np.allclose(written, range(observation.index - len(rows) + 1, observation.index + 1))
    large = [row[SEQUENCE.index("large")] for row in rows[:-1]]
    assert large == [
        float(w == "large") for w in observation.writers[len(observation.writers) - len(large) :]
    ]
    assert all(math.isfinite(value) and value >= 0 for row in rows for value in row)


def torch_sequence(policy, rows):
    """The same network of torch's own parts, to compare with."""
    weights = {name: torch.tensor(array) for name, array in policy.arrays.items()}

    def linear(name, x):
        return nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        return nn.functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = linear("embed", (torch.tensor(rows, dtype=torch.float32) - weights["mean"]) / weights["scale"])
    for layer in range(policy._depth):
        attention = nn.MultiheadAttention(WIDTH, HEADS)
        state = {
            "in_proj_weight": weights[f"{layer}.qkv.weight"],
            "in_proj_bias": weights[f"{layer}.qkv.bias"],
        }
        state |= {f"out_proj.{part}": weights[f"{layer}.out.{part}"] for part in ("weight", "bias")}
        attention.load_state_dict(state)
        normed = norm(f"{layer}.norm1", x)
        x = x + attention(normed, normed, normed)[0]
        x = x + linear(f"{layer}.down", torch.relu(linear(f"{layer}.up", norm(f"{layer}.norm2", x))))
    return linear("head", norm("norm", x))[-1, 0].item()


@settings(max_examples=50, deadline=None)
@given(observations(), st.integers(0, 3))
def test_the_transformer_is_torchs(observation, layers):
    policy = any_sequence(seed=layers, layers=layers)
    with torch.inference_mode():
        wanted = torch_sequence(policy, sequence_features(observation, 16))
    assert policy.logit(observation) == pytest.approx(wanted, abs=1e-4)


def test_the_threshold_makes_a_family():
    policy = cuts_at(0.5, sharpness=5.0)
    decisions = {limit: policy.at(limit).decide(seen(0.3)) for limit in (0.0, 0.5, 0.7, 0.75, 1.0)}
    assert policy.probability(seen(0.3)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert list(decisions.values()) == ["regenerate"] * 3 + ["accept"] * 2


@pytest.mark.parametrize("policy", [cuts_at(0.7), any_sequence()], ids=lambda policy: policy.type)
def test_it_comes_back_from_a_file(policy, tmp_path):
    save_policy(policy.at(0.3), tmp_path / "it.json", data="made up")
    back = load_policy(tmp_path / "it.json")
    assert type(back) is type(policy)
    assert (back.threshold, back.made["data"]) == (0.3, "made up")
    for observation in (seen(0.2), seen(0.9, 0.5), seen(0.9, 1.0, None)):
        assert back.logit(observation) == policy.logit(observation)


@pytest.mark.parametrize(
    ("policy", "changes", "complaint"),
    [
        (cuts_at(0.7), {"w0": None}, "0 layers"),
        (cuts_at(0.7), {"mean": None}, "mean is missing"),
        (cuts_at(0.7), {"w0": np.zeros((2, 5)), "b0": np.zeros(2)}, "2 outputs"),
        (cuts_at(0.7), {"w0": np.zeros((1, 4))}, r"w0 has the shape \(1, 4\)"),
        (cuts_at(0.7), {"b0": np.array([np.nan])}, "b0 holds NaN"),
        (any_sequence(), {"1.out.bias": None}, r"1\.out\.bias is missing"),
        (any_sequence(), {"embed.weight": np.zeros((9, 7)), "embed.bias": np.zeros(9)}, "9 does not divide"),
    ],
)
def test_what_is_no_network_is_refused(policy, changes, complaint, tmp_path):
    policy.arrays = {name: array for name, array in {**policy.arrays, **changes}.items() if array is not None}
    save_policy(policy, tmp_path / "it.json")
    with pytest.raises(SettingsError, match=complaint):
        load_policy(tmp_path / "it.json")


def test_a_threshold_is_a_probability():
    with pytest.raises(SettingsError, match=r"threshold is 1\.5"):
        cuts_at(0.5).at(1.5)


@pytest.mark.parametrize("policy", [cuts_at(0.5), any_sequence()], ids=lambda policy: policy.type)
def test_a_decision_takes_no_time_to_speak_of(policy):
    observation, times = seen(0.4, *[0.9] * 15), []
    for _ in range(200):
        begun = time.perf_counter()
        policy.decide(observation)
        times.append(time.perf_counter() - begun)
    assert min(times) < 300e-6  # the quietest moment: other work on the machine is not ours


@pytest.mark.parametrize("asynchronously", [False, True])
def test_it_routes_in_the_graph(make, asynchronously):
    rig = make(scores={"small two": 0.1, "small three": 0.69}, policy=cuts_at(0.7))
    result = rig.solve(asynchronously=asynchronously)
    assert result["trim"]["decisions"] == {"accept": 2, "regenerate": 2}
    kept = make(scores={"small two": 0.1, "small three": 0.69}, policy=cuts_at(0.7) & cuts_at(0.5))
    assert kept.solve(asynchronously=asynchronously)["trim"]["decisions"] == {"accept": 3, "regenerate": 1}
