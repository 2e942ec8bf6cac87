"""Step models for tests, and traces drawn from one."""

import json
from pathlib import Path

import numpy as np

from trim_graph.training.simulator import Simulator
from trim_graph.training.step_model import LOST, SLIP, StepModel

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "trim_published_parameters.json"


def tables_from(scores, least=None):
    """P(least, score | state) with independent parts; ``scores``: one row a state."""
    scores = np.array(scores, float)
    scores /= scores.sum(1, keepdims=True)
    least = np.ones_like(scores) if least is None else np.array(least, float)
    least /= least.sum(1, keepdims=True)
    return least[:, :, None] * scores[:, None, :]


def world(**changes):
    """Six steps at most, five bins, a scorer that sees slips well and lost solutions a little."""
    scores = [[1, 1, 2, 6, 30], [6, 3, 3, 6, 12], [20, 8, 4, 3, 3]]
    least = [[1, 1, 2, 6, 30], [20, 6, 3, 2, 1], [1, 1, 2, 6, 20]]
    given = {
        "p_small": 0.8,
        "p_large": 0.95,
        "hazard": np.array([0, 0.1, 0.3, 0.4, 0.5, 1.0]),
        "edges": np.linspace(0, 1, 6),
        "tables": tables_from(scores, least),
        "tokens": np.array([20.0]),
    }
    return StepModel(**(given | changes))


def dependent(seed=0, bins=3):
    """Tables without structure: every row of P(score | least, state) is its own."""
    table = np.random.default_rng(seed).dirichlet(np.full(bins * bins, 0.5), 3).reshape(3, bins, bins)
    return table / table.sum((1, 2), keepdims=True)


def traces_from(model, n, rate=0.3, seed=0, labels=True):
    """Simulated solutions as traces, three drafts in ten regenerated."""
    simulator, rng = Simulator(model, n, seed=seed), np.random.default_rng(seed + 1)
    traces = [
        {"question": f"q{i}", "steps": [], "stopped": "finished", "correct": None, "error": None}
        for i in range(n)
    ]
    while not simulator.done.all():
        rows = np.flatnonzero(~simulator.done)
        seen, state = simulator.observations, simulator.state.copy()
        for row in rows:
            if seen.by_large[row]:
                traces[row]["steps"][-1]["score"] = float(seen.large_score[row])
        decisions = (rng.random(n) < rate).astype(int)
        before_lost = state == LOST
        simulator.step(decisions)
        for row in rows:
            draft = {
                "text": "x",
                "tokens": int(seen.tokens[row]),
                "score": float(seen.score[row]),
                "label": bool(state[row] != SLIP) if labels else None,
            }
            step = {**draft, "writer": "small", "decision": "accept", "discarded": None}
            if decisions[row]:
                ended = simulator.done[row]
                right = simulator.right[row] if ended else None
                if not ended:  # what the large model wrote shows in whether the next draft is lost
                    right = before_lost[row] or simulator.state[row] != LOST
                label = bool(right or before_lost[row]) if labels else None
                step = {**draft, "writer": "large", "decision": "regenerate", "label": label, "score": None}
                step |= {"discarded": draft, "tokens": int(seen.tokens[row] * model.large_ratio)}
            traces[row]["steps"].append(step)
    return traces


def trace(*steps, stopped="finished"):
    """A trace from tuples: (writer, score, label), or (score, label) of a draft before them."""
    made = []
    for step in steps:
        writer, score, label, *draft = step
        discarded = {"text": "d", "tokens": 10, "score": draft[0], "label": draft[1]} if draft else None
        made.append(
            {
                "text": "x",
                "writer": writer,
                "tokens": 12,
                "score": score,
                "label": label,
                "decision": "regenerate" if draft else "accept",
                "discarded": discarded,
            }
        )
    return {"question": "q", "steps": made, "stopped": stopped, "error": None, "correct": None}


def write(path, traces):
    """Writes them in the trace format, what nobody looks at made up."""
    with Path(path).open("w") as file:
        for index, one in enumerate(traces):
            rest = {
                "id": str(index),
                "index": index,
                "dataset": "d",
                "split": None,
                "policy": {},
                "seed": None,
                "answer": None,
                "tokens": {},
            }
            steps = [{"mean_token_probability": None, **step} for step in one["steps"]]
            file.write(json.dumps({**rest, **one, "steps": steps}) + "\n")
    return path
