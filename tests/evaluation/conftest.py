"""A row of an evaluation, as two test files need it."""

import pytest

from trim_graph.evaluation.records import TOKENS


def a_row(arm="small", index=0, sample=0, **changes):
    step = {
        "text": "2 + 2 = 4",
        "writer": "large",
        "tokens": 7,
        "score": 0.25,
        "decision": "regenerate",
        "mean_token_probability": None,
        "label": None,
        "part": None,
        "discarded": {
            "text": "2 + 2 = 5",
            "tokens": 6,
            "score": 0.125,
            "label": False,
            "mean_token_probability": 0.5,
        },
    }
    row = {
        "arm": arm,
        "index": index,
        "id": f"q{index}",
        "sample": sample,
        "seed": 3 + sample,
        "question": "2 + 2 = ?",
        "expected": "4",
        "correct": True,
        "answer": "4",
        "solution": "2 + 2 = 4\n\n\\boxed{4}",
        "error": None,
        "stopped": "finished",
        "notes": ["a note"],
        "seconds": 0.5,
        "first_step_seconds": 0.25,
        "large_tokens": 14,
        "tokens": {**dict.fromkeys(TOKENS, 0), "large": 14, "small_discarded": 6},
        "prefill": {"small": 9, "large": 8},
        "cached_prefill": {"small": 4, "large": 0},
        "calls": {"small": 1, "large": 1, "scorer": 1},
        "cost": 0.125,
        "steps": [step, {**step, "part": "answer", "discarded": None, "decision": None, "score": None}],
    }
    return {**row, **changes}


@pytest.fixture(scope="session")
def make_row():
    return a_row
