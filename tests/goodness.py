"""How well a step model describes traces, and a plan's beliefs the true states; for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trim_graph.policies.base import Observation, with_memory
from trim_graph.policies.pomdp import Floats, pomdp
from trim_graph.training.fitting import Drafts, TrainingData, counts_of, ending_chances, step_accuracy
from trim_graph.training.planner import BatchPomdp
from trim_graph.training.simulator import ACCEPT, ObservationBatch, Simulator, StatelessBatchPolicy
from trim_graph.training.step_model import STATES, Ints, StepModel, labelled_steps


def goodness_of_fit(model: StepModel, data: TrainingData, *, simulated: int = 5000) -> dict[str, Any]:
    """Compares a model with traces, best with others than it was fitted on.

    Args:
        model: The step model.
        data: From `trim_graph.training.fitting.read_training_data`.
        simulated: Solutions to draw for the comparison of least scores.

    Returns:
        JSON-native. ``observation``: of each state the number of drafts ``n``; mean log-likelihood in nats of
        (least, score) under the model, with the two taken as independent, and uniform; total variation of
        the score and of the pair. ``accuracy``: by step, and the p-value of its being the same everywhere
        (chi-square). ``length``: means, and the greatest distance of the distribution functions.
        ``simulated_least``: total variation between the least scores that the simulator derives and those of
        the tables.
    """
    drafts = data.drafts.scored()
    return {
        "observation": {
            name: _observation(model, drafts.of(drafts.state == state), state)
            for state, name in enumerate(STATES)
        },
        "accuracy": {
            "small": step_accuracy(data.drafts, model.p_small, large=False),
            "large": step_accuracy(data.drafts, model.p_large, large=True),
        },
        "length": _length(model, data),
        "simulated_least": least_distance(model, simulated),
    }


def _observation(model: StepModel, drafts: Drafts, state: int) -> dict[str, Any]:
    counts = counts_of(model, drafts)
    n = int(counts.sum())
    if not n:
        return {"n": 0}
    table, share = model.tables[state], counts / n
    margins = np.outer(table.sum(1), table.sum(0))
    tiny = np.finfo(np.float64).tiny

    def mean(of: Floats) -> float:
        return float((share * np.log(np.maximum(of, tiny))).sum())

    return {
        "n": n,
        "log_likelihood": mean(table),
        "log_likelihood_independent": mean(margins),
        "log_likelihood_uniform": -float(np.log(counts.size)),
        "total_variation_score": float(np.abs(share.sum(0) - table.sum(0)).sum() / 2),
        "total_variation_pair": float(np.abs(share - table).sum() / 2),
    }


def _length(model: StepModel, data: TrainingData) -> dict[str, float]:
    lengths, chances = data.lengths[data.finished], ending_chances(model)
    if not len(lengths):
        return {"n": 0}
    seen = np.bincount(np.minimum(lengths, model.steps) - 1, minlength=model.steps) / len(lengths)
    return {
        "n": len(lengths),
        "mean": float(lengths.mean()),
        "mean_modelled": float((chances * np.arange(1, model.steps + 1)).sum()),
        "distance": float(np.abs(np.cumsum(seen) - np.cumsum(chances)).max()),
    }


def least_distance(model: StepModel, n: int, seed: int = 0) -> dict[str, float]:
    """Returns, by state, the total variation between derived least scores and the tables'.

    All drafts are accepted. The scores themselves agree by construction, given the least one.
    """
    counts = np.zeros((3, model.bins))
    simulator = Simulator(model, n, seed=seed)
    while not simulator.done.all():
        under_way = ~simulator.done
        np.add.at(counts, (simulator.state[under_way], model.bin_of(simulator.least[under_way])), 1)
        simulator.step(np.zeros(n, np.intp))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return dict(zip(STATES, (np.abs(shares - model.tables.sum(2)).sum(1) / 2).tolist(), strict=True))


def log_loss(belief: Floats, state: Ints) -> Floats:
    """Returns minus the log of the belief in the true state, in nats; beliefs below 1e-6 count as that."""
    return np.asarray(-np.log(np.maximum(belief[state, np.arange(len(state))], 1e-6)))


def drafts_of(trace: Mapping[str, Any]) -> Iterator[tuple[Observation, int | None]]:
    """Yields the observation and the true state of each draft of the small model, discarded drafts included.

    The state is None where the labels do not show it. Steps of the large model are not yielded; the
    observations behind them hold their scores.
    """
    steps = trace["steps"]
    for index, step, state, discarded_state in labelled_steps(trace):
        before = steps[:index]
        draft = step["discarded"] or (step if step["writer"] == "small" else None)
        if draft is not None:
            observation = Observation(
                question=trace["question"],
                index=index,
                max_steps=max(len(steps), 1),
                scores=tuple(other["score"] for other in before),
                tokens=tuple(other["tokens"] for other in before),
                writers=tuple(other["writer"] for other in before),
                score=draft["score"],
                draft=draft["text"],
                draft_tokens=draft["tokens"],
                draft_ends=index == len(steps) - 1 and trace["stopped"] == "finished",
            )
            yield observation, discarded_state if step["discarded"] else state


def losses(policy: pomdp, trace: Mapping[str, Any]) -> Floats:
    """Returns the log-loss of the true state, in nats, at each draft whose state is known."""
    beliefs, states, memory = [], [], None
    for observation, state in drafts_of(trace):
        remembered = with_memory(observation, memory)
        if state is not None:
            beliefs.append(policy.belief(remembered))
            states.append(state)
        memory = policy.decide(remembered).memory
    if not states:
        return np.zeros(0)
    return log_loss(np.array(beliefs).T, np.array(states))


def batch_threshold(t: float) -> StatelessBatchPolicy:
    """Regenerates drafts whose score is below ``t``."""
    return StatelessBatchPolicy(lambda batch: (batch.score < t).astype(np.intp))


@dataclass
class CutOff:
    """A planned policy that knows no budget; a draft that the budget cannot replace stays."""

    policy: BatchPomdp

    def begin(self, n: int) -> None:
        """Begins ``n`` new solutions."""
        self.policy.begin(n)

    def decide(self, seen: ObservationBatch) -> Ints:
        """Returns one decision a row."""
        unlimited = replace(seen, large_left=np.full_like(seen.large_left, np.inf))
        affordable = seen.tokens * self.policy.plan.large_ratio <= seen.large_left
        return np.where(affordable, self.policy.decide(unlimited), ACCEPT)
