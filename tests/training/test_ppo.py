"""PPO learns what is obvious, and what it learns is what runs."""

import asyncio
import json

import numpy as np
import pytest
import torch
from test_env import step_model
from toy import build, questions

from trim_graph import SettingsError
from trim_graph.policies import small_only, threshold
from trim_graph.training.env import RecordedEpisodes, RoutingVecEnv, aggregate_extractor, sequence_extractor
from trim_graph.training.ppo import Training, _learner, _sample, export, score, spread_of, train, write_curves
from trim_graph.training.rollouts import Rollouts


def rollouts(n, first=0):
    found = Rollouts(questions(n, first), build)
    asyncio.run(found.explore(60))
    return found


@pytest.fixture(scope="module")
def sets():
    return rollouts(20), rollouts(12, 100)


@pytest.mark.parametrize("kind", ["aggregate", "sequence"])
def test_it_runs_as_it_was_trained(kind, sets):
    given = Training(rows=8, rollout=16, batch=64, window=6)
    extractor = aggregate_extractor() if kind == "aggregate" else sequence_extractor(6)
    batch = RecordedEpisodes(sets[0], 8)
    spread = spread_of(_sample(batch, extractor, 0))
    learner = _learner(kind, RoutingVecEnv(batch, extractor, price=0.01), spread, given, 0)
    learner.learn(512)
    policy = export(kind, learner, given)
    rng, seen, checked = np.random.default_rng(0), batch.begin(1), 0
    for _ in range(40):
        inputs = torch.as_tensor(np.array([extractor.features(one) for one in seen], dtype=np.float32))
        with torch.inference_mode():
            wanted = learner.policy.get_distribution(inputs).distribution.probs[:, 1]
        for one, probability in zip(seen, wanted.tolist(), strict=True):
            assert policy.probability(one) == pytest.approx(probability, abs=1e-5)
            checked += 1
        seen, _ = batch.decide((rng.random(8) < 0.5).tolist())
    assert checked == 320


@pytest.mark.parametrize("kind", ["aggregate", "sequence"])
@pytest.mark.parametrize("simulated", [False, True])
def test_it_learns_to_regenerate_what_scores_low(kind, simulated, sets, tmp_path):
    given = Training(
        simulated_steps=6144 if simulated else 0,
        steps=0 if simulated else 6144,
        rows=32,
        batch=256,
        every=2,
        learning_rate=3e-3,
        window=8,
    )
    model = step_model() if simulated else None
    found = train(kind, 0.01, rollouts=sets[0], validation=sets[1], model=model, training=given)
    plain = score(sets[1], small_only(), 0.01)
    best = score(sets[1], threshold(0.5), 0.01)
    assert plain.reward < 0.4 < 0.7 < best.reward
    assert found.validation.reward > best.reward - 0.05
    assert found.validation == score(sets[1], found.policy, 0.01)
    assert found.validation.reward == max(point.reward for point in found.curve)
    assert {point.phase for point in found.curve} == {"simulator" if simulated else "rollouts"}
    files = write_curves([found], tmp_path, "curves")
    assert len(files[0].read_text().splitlines()) == 1 + len(found.curve)
    assert json.loads(files[1].read_text())[0]["validation"]["reward"] == found.validation.reward
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_training_leaves_no_temporary_files(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = Training(simulated_steps=0, steps=64, rows=8, rollout=8, batch=32, epochs=1)
    train("aggregate", 0.01, rollouts=sets[0], validation=sets[1], training=given)
    assert list(tmp_path.iterdir()) == []


def test_the_spread_of_features_is_measured_without_a_further_run():
    found = Rollouts(questions(4), build)
    asyncio.run(found.explore(2))
    before = found.runs
    inputs = _sample(RecordedEpisodes(found, 4), aggregate_extractor(), 0)
    assert found.runs == before
    assert np.isfinite(inputs).all()


def test_a_seed_repeats_a_training_and_standing_still_ends_it(sets):
    given = Training(
        simulated_steps=0,
        steps=100_000,
        rows=8,
        rollout=8,
        batch=32,
        epochs=1,
        every=1,
        patience=2,
        learning_rate=0.0,
    )
    first, second = (
        train("aggregate", 0.01, rollouts=sets[0], validation=sets[1], training=given, seed=4)
        for _ in range(2)
    )
    assert first.curve == second.curve
    assert first.curve[-1].steps < 1000


def test_nothing_to_train_on_is_refused():
    with pytest.raises(SettingsError, match="both 0"):
        Training(steps=0, simulated_steps=0)
    with pytest.raises(SettingsError, match="rows is 0"):
        Training(rows=0)
