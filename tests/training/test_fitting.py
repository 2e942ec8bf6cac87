"""Tests of fitted step models: what is read from traces, what is fitted, and how well it describes them."""

import dataclasses
import json

import numpy as np
import pytest
from goodness import drafts_of, goodness_of_fit, losses
from step_worlds import PUBLISHED, trace, traces_from, world, write

from trim_graph.errors import InputError
from trim_graph.evaluation.scorer_metrics import read_labelled
from trim_graph.training.fitting import draw, ending_chances, estimate, fit, hazard_of, read_training_data
from trim_graph.training.planner import Terms, solve
from trim_graph.training.step_model import LOST, RIGHT, SLIP

PROCESSBENCH = PUBLISHED.parent / "processbench_gsm8k.json"


class TestReading:
    def test_states_and_least_scores(self):
        data = read_training_data(
            [
                trace(("small", 0.9, True), ("large", 0.8, True, 0.1, False), ("small", 0.7, False)),
                trace(
                    ("small", 0.6, False),
                    ("small", 0.5, True),
                    ("small", None, None, 0.4, None),
                    stopped="budget",
                ),
                trace(("small", 0.9, True), ("small", 0.8, None), ("small", 0.7, True)),
            ]
        )
        drafts = data.drafts
        rows = list(zip(drafts.run, drafts.index, drafts.state, drafts.large, drafts.least, strict=True))
        assert rows == [
            (0, 0, RIGHT, False, 1.0),
            (0, 1, SLIP, False, 0.9),  # thrown away
            (0, 1, RIGHT, True, 0.9),
            (0, 2, SLIP, False, 0.8),
            (1, 0, SLIP, False, 1.0),
            (1, 1, LOST, False, 0.6),  # right given what stands before it, and lost all the same
            (1, 2, LOST, False, 0.5),
            (1, 2, LOST, False, 0.5),
            (2, 0, RIGHT, False, 1.0),  # nobody knows behind it
        ]
        assert np.isnan(drafts.score[7])
        assert (data.lengths.tolist(), data.finished.tolist()) == ([3, 3, 3], [True, False, True])
        assert (data.replaced, data.replacing) == (20, 24)

    def test_replay_sees_what_was_seen(self):
        one = trace(("small", 0.9, True), ("large", 0.8, True, 0.1, False), ("small", 0.7, False))
        (first, a), (second, b), (third, c) = drafts_of(one)
        assert (a, b, c) == (RIGHT, SLIP, SLIP)
        assert (second.score, second.scores, second.writers) == (0.1, (0.9,), ("small",))
        assert (third.scores, third.writers) == ((0.9, 0.8), ("small", "large"))
        assert [seen.draft_ends for seen in (first, second, third)] == [False, False, True]

    def test_traces_without_enough_labels_are_refused(self):
        with pytest.raises(InputError, match="no labelled step"):
            read_training_data([trace(("small", 0.9, None))])
        with pytest.raises(InputError, match="only 1 scored drafts of the small model are right"):
            fit([trace(("small", 0.9, True))])

    def test_what_the_traces_do_not_hold_must_be_given(self):
        traces = traces_from(world(), 300, rate=0.0)
        with pytest.raises(
            InputError,
            match=r"no labelled step of the large model in the traces, and 0 advantage labels.*give p_large",
        ):
            fit(traces)
        for one in traces:
            for step in one["steps"]:
                step["tokens"] = 0
        with pytest.raises(InputError, match="nobody counted tokens"):
            fit(traces, p_large=0.9)
        model = fit(traces, p_large=0.9, tokens=30)
        assert (model.p_large, model.tokens.tolist(), model.large_ratio) == (0.9, [30.0], 1.0)

    def test_targets_say_what_is_right_where_labels_are_missing(self):
        unlabelled = trace(("small", 0.9, None), ("small", 0.4, None), ("small", 0.3, None))
        for step, value in zip(unlabelled["steps"], (0.8, 0.3, 0.9), strict=True):
            step["value"] = value
        states = read_training_data([unlabelled]).drafts.state
        assert states.tolist() == [RIGHT, SLIP, LOST]
        with pytest.raises(InputError, match="no labelled step"):
            # A target of 0.3 says that a rewrite helps, not that the step is wrong.
            read_training_data([{**unlabelled, "policy": {"type": "labelled", "method": "advantage"}}])

    @pytest.mark.parametrize("p_large", [0.85, 0.95])
    def test_advantage_labels_say_how_good_the_large_model_is(self, p_large):
        """Solutions of a chain: each step is right with p_small, and nothing ends right behind a slip."""
        rng, p_small, length, traces = np.random.default_rng(1), 0.8, 4, []
        for _ in range(3000):
            right = np.cumprod(rng.random(length) < p_small).astype(bool)
            alive = np.concatenate([[True], right[:-1]])
            labels = [bool(good) if before else None for good, before in zip(right, alive, strict=True)]
            one = trace(*(("small", rng.random(), label) for label in labels))
            one |= {"policy": {"type": "labelled", "method": "advantage"}, "correct": bool(right[-1])}
            place = rng.integers(length)
            if alive[place]:
                left = p_small ** (length - 1 - place)
                # As labels have it: what a whole solution shows of its own last step, else continuations.
                small = rng.binomial(4, left if right[place] else 0.0) / 4
                large = rng.binomial(4, p_large * left) / 4
                one["steps"][place]["value"] = (1 + small - large) / 2
            traces.append(one)
        data = read_training_data(traces)
        assert fit(data).p_large == pytest.approx(p_large, abs=0.03)
        assert fit(data, p_large=0.7).p_large == 0.7

    def test_labelled_solutions_of_both_models_say_how_good_and_how_long_their_steps_are(self):
        traces = traces_from(world(), 300, rate=0.0)
        large = trace(*[("large", None, True)] * 19, ("large", None, False))
        for step in large["steps"]:
            step["tokens"] = 60
        model = fit([*traces, large])
        assert model.p_large == pytest.approx(19.5 / 21)
        mean = np.mean([step["tokens"] for one in traces for step in one["steps"]])
        assert model.large_ratio == pytest.approx(60 / mean)

    @pytest.mark.skipif(not PROCESSBENCH.exists(), reason="ProcessBench is not here")
    def test_a_model_is_fitted_to_labelled_solutions(self):
        """Real labels; the scores are drawn from a known world, state by state."""
        rng, tables = np.random.default_rng(0), world().score_alone()
        traces, slips, drafts = [], 0, 0
        for solution in read_labelled(PROCESSBENCH):
            steps, lost = [], False
            for label in solution["labels"]:
                state = LOST if lost else RIGHT if label else SLIP
                steps.append(("small", (rng.choice(5, p=tables[state]) + rng.random()) / 5, label))
                slips, drafts = slips + (state == SLIP), drafts + (state != LOST)
                lost = lost or label is False
            traces.append(trace(*steps))
        model = fit(traces, p_large=0.95, bins=5)
        assert model.p_small == pytest.approx(1 - slips / drafts, abs=1e-3)
        assert np.abs(model.score_alone() - tables).sum(1).max() < 0.25


class TestFitting:
    def test_it_finds_the_world_the_traces_come_from(self):
        true = world(large_ratio=1.5)
        traces = traces_from(true, 2000)
        model = fit(traces[:1700], bins=5)
        assert model.p_small == pytest.approx(true.p_small, abs=0.02)
        assert model.p_large == pytest.approx(true.p_large, abs=0.02)
        assert np.abs(ending_chances(model)[:6] - ending_chances(true)).max() < 0.03
        assert (set(model.tokens), model.large_ratio) == ({20.0}, 1.5)
        assert np.abs(model.score_alone() - true.score_alone()).sum(1).max() < 0.15
        loss = [
            np.concatenate([losses(PlanPolicy(one), held) for held in traces[1700:]]).mean()
            for one in (true, model, world(tables=np.full((3, 5, 5), 1 / 25)))
        ]
        assert loss[0] - 0.02 < loss[1] < loss[0] + 0.02 < loss[2]

    def test_where_the_least_score_says_nothing_it_is_made_to_count_for_nothing(self):
        """Scores independent of it: shrunk; scores that follow it: not."""
        scores = world().score_alone()
        independent = fit(traces_from(world(), 1500), bins=5)
        follows = np.stack([np.roll(np.diag([0.9] * 5) + 0.02, state, axis=1) for state in range(3)])
        tables = follows / follows.sum(2, keepdims=True) / 5
        dependent = fit(traces_from(world(tables=tables), 1500), bins=5)
        assert independent.shrink.min() > 10 * dependent.shrink.max()
        assert np.abs(independent.score_given_min() - scores[:, None]).max() < 0.2

    def test_hazard_of_solutions_that_were_cut_off(self):
        lengths, finished = np.array([2, 2, 3, 3, 3]), np.array([True, True, True, True, False])
        overall = 4 / 13  # 4 ends, 5 + 5 + 3 solutions that got to a step
        assert hazard_of(lengths, finished).tolist() == [0.0, (2 + 2 * overall) / (5 + 2), 1.0]
        with pytest.raises(InputError, match="ended by itself"):
            hazard_of(lengths, np.zeros(5, bool))

    def test_kernels_keep_their_mass_at_the_borders(self):
        drafts = read_training_data(traces_from(world(), 200)).drafts.scored()
        top = dataclasses.replace(drafts, score=np.ones_like(drafts.score), least=np.ones_like(drafts.least))
        table, _, _ = estimate(top, np.linspace(0, 1, 11))
        assert table.sum() == pytest.approx(1)
        assert table[-1, -1] > 0.95


def PlanPolicy(model):
    from trim_graph.policies.pomdp import pomdp

    return pomdp(solve(model, Terms(0.1)))


class TestGoodness:
    def test_a_right_model_and_a_wrong_one(self):
        data = read_training_data(traces_from(world(), 2000))
        right = goodness_of_fit(world(), data, simulated=500)
        wrong = goodness_of_fit(world(p_small=0.6, hazard=np.array([0.5, 1.0])), data, simulated=500)
        assert right["accuracy"]["small"]["same_everywhere_p"] > 0.001
        assert right["length"]["distance"] < 0.05 < wrong["length"]["distance"]
        for state in right["observation"].values():
            assert state["n"] > 100
            assert state["log_likelihood"] > state["log_likelihood_uniform"]
            assert state["total_variation_score"] < 0.1
        assert json.loads(json.dumps(right)) == right

    def test_accuracy_that_changes_from_step_to_step_is_reported(self):
        traces = traces_from(world(), 1500, rate=0.0)
        for one in traces:
            one["steps"][0]["label"] = True  # nobody slips in the first step
        report = goodness_of_fit(world(), read_training_data(traces), simulated=100)
        assert report["accuracy"]["small"]["same_everywhere_p"] < 1e-6

    def test_a_plot_is_drawn_with_and_without_data(self, tmp_path):
        draw(world(), tmp_path / "model.png")
        draw(world(), tmp_path / "both.png", read_training_data(traces_from(world(), 100)))
        for name in ("model", "both"):
            assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_traces_files_are_read(tmp_path):
    from trim_graph.evaluation.traces import read_traces

    file = write(tmp_path / "traces.jsonl", traces_from(world(), 300))
    assert fit(read_traces(file), bins=5).p_small == pytest.approx(0.8, abs=0.05)
