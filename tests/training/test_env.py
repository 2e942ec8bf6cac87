"""The environment works on both back ends, and pays what it says."""

import asyncio

import numpy as np
import pytest
from toy import build, questions

from trim_graph.policies.learned import AGGREGATE, SEQUENCE
from trim_graph.training.env import (
    RecordedEpisodes,
    RoutingVecEnv,
    SimulatedEpisodes,
    aggregate_extractor,
    sequence_extractor,
)
from trim_graph.training.rollouts import Rollouts
from trim_graph.training.step_model import StepModel

EXTRACTORS = [aggregate_extractor(), sequence_extractor(8)]


def step_model():
    """Scores of right steps are high, of the first wrong one low."""
    right, lost, slip = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    right[:, 3], lost[:, 2], slip[:, 0] = 0.25, 0.25, 0.25
    return StepModel(
        p_small=0.7,
        p_large=0.98,
        hazard=np.array([0, 0, 0, 0.5, 1.0]),
        edges=np.linspace(0, 1, 5),
        tables=np.array([right, lost, slip]),
        tokens=np.array([8.0, 12.0]),
        shrink=np.ones(3),
    )


@pytest.fixture(scope="module")
def rollouts():
    found = Rollouts(questions(12), build)
    asyncio.run(found.explore(40))
    return found


def batches(rollouts, n=1):
    return [RecordedEpisodes(rollouts, n, seed=3), SimulatedEpisodes(step_model(), n, seed=3)]


@pytest.mark.parametrize("back_end", [0, 1], ids=["recorded", "simulated"])
@pytest.mark.parametrize("extractor", EXTRACTORS, ids=["aggregate", "sequence"])
def test_each_observation_is_of_the_space_it_declares(back_end, extractor, rollouts):
    rows = RoutingVecEnv(batches(rollouts, 3)[back_end], extractor, price=0.01)
    seen = rows.reset()
    for action in (0, 1, 0, 1, 1, 0):
        assert all(rows.observation_space.contains(one) for one in seen)
        seen, reward, _, _ = rows.step(np.full(3, action))
        assert reward.dtype == np.float32


@pytest.mark.parametrize("back_end", [0, 1], ids=["recorded", "simulated"])
def test_a_seed_repeats_everything(back_end, rollouts):
    def play():
        rows = RoutingVecEnv(batches(rollouts)[back_end], EXTRACTORS[0], price=0.01)
        rows.seed(5)
        seen = [rows.reset()]
        rng = np.random.default_rng(0)
        seen.extend(rows.step(rng.integers(2, size=1))[0] for _ in range(60))
        return np.array(seen)

    assert np.array_equal(play(), play())


@pytest.mark.parametrize("back_end", [0, 1], ids=["recorded", "simulated"])
def test_the_reward_is_right_answers_less_tokens(back_end, rollouts):
    batch = batches(rollouts)[back_end]
    made, decide = [], batch.decide

    def noted(regenerates):
        observations, transition = decide(regenerates)
        made.append(transition)
        return observations, transition

    batch.decide = noted
    rows = RoutingVecEnv(batch, EXTRACTORS[0], price=0.01)
    rng = np.random.default_rng(1)
    rows.reset()
    for _ in range(40):
        total, tokens, ended = 0.0, 0, False
        while not ended:
            action = rng.integers(2, size=1)
            _, reward, over, _ = rows.step(action)
            total, tokens, ended = total + float(reward[0]), tokens + int(made[-1].large_tokens[0]), over[0]
            assert (made[-1].large_tokens[0] > 0) == (action[0] == 1)
        assert total == pytest.approx(bool(made[-1].correct[0]) - 0.01 * tokens, abs=1e-6)


def test_every_question_comes_once_before_any_comes_again(rollouts):
    batch = RecordedEpisodes(rollouts, 1, seed=0)
    texts, (seen,) = [], batch.begin(None)
    while len(texts) < 2 * len(rollouts):
        texts.append(seen.question)
        ended = False
        while not ended:
            (seen,), transition = batch.decide([False])
            ended = transition.ended[0]
    assert len(set(texts[: len(rollouts)])) == len(set(texts[len(rollouts) :])) == len(rollouts)


@pytest.mark.parametrize("back_end", [0, 1], ids=["recorded", "simulated"])
def test_many_rows_are_as_many_questions(back_end, rollouts):
    batch = batches(rollouts, 5)[back_end]
    rows = RoutingVecEnv(batch, EXTRACTORS[1], price=0.01)
    seen = rows.reset()
    assert seen.shape == (5, 8, len(SEQUENCE))
    present, draft, index = (SEQUENCE.index(name) for name in ("present", "draft", "index"))
    for _ in range(30):
        counts = seen[:, :, present].sum(1)
        assert np.array_equal(seen[:, -1, draft], np.ones(5))
        assert np.allclose(seen[:, -1, index] * 32, counts - 1)
        seen, reward, ended, infos = rows.step(np.zeros(5, int))
        assert (reward[~ended] == 0).all()
        assert (seen[ended, :, present].sum(1) == 1).all()
        assert len(infos) == 5


def test_the_simulator_is_seen_as_the_simulator_sees_itself():
    batch = SimulatedEpisodes(step_model(), 50, seed=0)
    seen = batch.begin(0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        itself = batch._simulator.observations
        features = np.array([EXTRACTORS[0].features(one) for one in seen])
        assert np.allclose(features[:, AGGREGATE.index("min_earlier")], itself.least)
        assert np.allclose(features[:, AGGREGATE.index("product_earlier")], itself.product)
        assert np.allclose(features[:, AGGREGATE.index("score")], itself.score)
        assert np.allclose(features[:, AGGREGATE.index("index")] * 32, itself.index)
        assert [one.writers[-1:] == ("large",) for one in seen] == itself.by_large.tolist()
        seen, _ = batch.decide((rng.random(50) < 0.5).tolist())


def test_branches_that_no_run_has_explored_are_run_for_all_rows_at_a_time(monkeypatch):
    rollouts, together = Rollouts(questions(5), build), []
    asyncio.run(rollouts.explore(1))
    expand = rollouts.expand
    monkeypatch.setattr(rollouts, "expand", lambda scripts: (together.append(len(scripts)), expand(scripts)))
    batch = RecordedEpisodes(rollouts, 5, seed=0)

    batch.begin(0)
    assert batch.explored([True] * 5) == [True] * 5  # the first run regenerates
    turned = batch.explored([False] * 5)  # where both models write the same, that run has explored both
    _, transition = batch.decide([False] * 5)

    assert together == [sum(turned)]
    assert sum(turned) > 1
    assert not transition.large_tokens.any()


def test_two_rows_on_the_same_question_take_branches_of_their_own():
    rollouts = Rollouts(questions(1), build)
    asyncio.run(rollouts.explore(1))
    batch = RecordedEpisodes(rollouts, 2, seed=0)
    batch.begin(0)
    batch.decide([True, False])
    seen, transition = batch.decide([True, True])
    assert (transition.large_tokens > 0).all()
    assert [one.writers for one in seen] == [("large", "large"), ("small", "large")]
