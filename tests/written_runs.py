"""Runs without models, written as an evaluation writes them."""

import json
import random

from trim_graph.evaluation.records import METRICS, SETTINGS, SUMMARY, TOKENS, journal_of, write_rows

ARMS = {"small": "reference", "large": "reference", "threshold-0.5": "policy", "random": "random"}
STEPS = ("Step 1: 47 + 38 = 85.", "Step 2: 85 * 7 = 595, keep 95.", "Step 3: 95 - 21 = 74.")


def a_row(arm, index, sample=0, **changes):
    """One row; by the place of the question every case comes up."""
    drawn = random.Random(f"{arm} {index} {sample}")
    wrong = arm != "large" and (index % 7 == 0 or (arm == "small" and index % 3 > 0))
    answer = "1" if wrong else "2"
    steps = [_step(arm, text, wrong and at == 2, drawn) for at, text in enumerate(STEPS)]
    steps.append(_step(arm, f"The answer is \\boxed{{{answer}}}.", wrong, drawn))
    large = sum(step["tokens"] for step in steps if step["writer"] == "large")
    row = {
        "arm": arm,
        "index": index,
        "id": f"q-{index}",
        "sample": sample,
        "seed": sample,
        "question": f"Start with {47 + index}. Step 1: add 38. Step 2: multiply by 7. What is the result?",
        "expected": "2",
        "correct": not wrong,
        "answer": answer,
        "solution": "\n\n".join(step["text"] for step in steps),
        "error": None,
        "stopped": "finished",
        "notes": [],
        "seconds": 0.25,
        "first_step_seconds": 0.1,
        "large_tokens": large,
        "tokens": {**dict.fromkeys(TOKENS, 0), "large": large, "small": 30},
        "prefill": {"small": 9, "large": 8},
        "cached_prefill": {"small": 4, "large": 0},
        "calls": {"small": 4, "large": 1, "scorer": 4},
        "cost": 0.125,
        "steps": steps,
    }
    return {**row, **changes}


def _step(arm, text, wrong, drawn):
    regenerated = arm in ("threshold-0.5", "random") and drawn.random() < 0.3
    writer = "large" if regenerated or arm == "large" else "small"
    draft = {
        "text": f"{text[:-2]}9.",
        "tokens": 9,
        "score": 0.1,
        "label": False,
        "mean_token_probability": None,
    }
    return {
        "text": text,
        "writer": writer,
        "tokens": 12,
        "score": 0.2 if wrong else 0.9 + drawn.random() / 10,
        "decision": "regenerate" if regenerated else "accept",
        "mean_token_probability": None,
        "label": not wrong,
        "part": None,
        "discarded": draft if regenerated else None,
    }


def a_summary(n, **changes):
    """A summary with plausible metrics; a report only shows them."""
    accuracy = {"small": 0.4, "large": 0.995, "threshold-0.5": 0.97, "random": 0.5}
    share = {"small": 0.0, "large": 1.0, "threshold-0.5": 0.26, "random": 0.26}
    metric = {"value": None, "interval": None}
    arms = []
    for name, kind in ARMS.items():
        metrics = dict.fromkeys(METRICS, metric)
        metrics["accuracy"] = {"value": accuracy[name], "interval": [accuracy[name] - 0.03, accuracy[name]]}
        metrics["share"] = {"value": share[name], "interval": [share[name], share[name] + 0.02]}
        metrics["large_tokens"] = {"value": 62.6 * share[name], "interval": None}
        arms.append(
            {
                "arm": name,
                "kind": kind,
                "family": name.partition("-")[0],
                "policy": {"type": name},
                "n": n,
                "errors": 0,
                "metrics": metrics,
                "matched_budget": {},
                "differences": {"large": {"accuracy": {"value": -0.02, "interval": [-0.03, -0.01]}}},
                "savings": {
                    "tokens": {"value": -120.5, "interval": [-130.0, -111.0]},
                    "large_tokens": {"value": 46.3, "interval": [45.0, 47.5]},
                    "cost": metric,
                    "seconds": {"value": -0.25, "interval": None},
                },
            }
        )
    curve = {
        "family": "threshold",
        "points": [{"arm": "threshold-0.5", "share": 0.26, "pgr": 0.96}],
        "mean_ibc": {"value": 2.1, "interval": [2.0, 2.2]},
        "mean_delta_ibc": {"value": 1.1, "interval": [1.0, 1.2]},
        "delta_ibc": {"value": 1.6, "interval": [1.4, 1.8]},
        "over_query_level": None,
        "cpt": {level: {"value": 0.2, "interval": None} for level in ("50", "80", "95")},
        "budgeted_accuracy": {},
    }
    verdict = {
        "arm": "threshold-0.5",
        "use": "yes",
        "text": "threshold-0.5: It saves 46 large tokens a question and loses 2 points of accuracy",
        **dict.fromkeys(("saved", "added", "net", "accuracy", "seconds"), metric),
    }
    summary = {
        "version": 2,
        "dataset": {"type": "arithmetic", "split": "standard", "part": "test"},
        "n": n,
        "samples": 1,
        "seed": 0,
        "concurrency": 8,
        "priced": False,
        "models": {},
        "budgets": {},
        "arms": arms,
        "curves": [curve],
        "verdicts": [verdict],
        "headline": {
            "use": "yes",
            "arm": "threshold-0.5",
            "number": "saves 74 %",
            "text": "Use it: score < 0.5 saves 74 % of large tokens, accuracy -2.0 points.",
        },
        "max_loss": 0.05,
        "command": "trim-graph eval --dataset arithmetic:standard --out run",
        "verdict": "threshold-0.5 recovers 0.96 of the gap with 0.26 of the large tokens.",
        "warnings": [],
    }
    return {**summary, **changes}


def write_run(folder, rows, *, summary=None, budget=None, arms=ARMS, parquet=False):
    """Writes a run folder."""
    (folder / "rows").mkdir(parents=True)
    settings = {
        "dataset": {"type": "arithmetic", "split": "standard", "part": "test"},
        "small": {"type": "transformers", "model": "a/small"},
        "large": {"type": "transformers", "model": "a/large"},
        "scorer": {"type": "example"},
        "budget": {"large_tokens": budget},
    }
    kinds = {
        name: {"kind": kind, "family": name.partition("-")[0], "policy": {"type": name}}
        for name, kind in arms.items()
    }
    (folder / SETTINGS).write_text(json.dumps({"version": 1, "settings": settings, "arms": kinds}))
    lines = {}
    for row in rows:
        lines.setdefault(row["arm"], []).append(json.dumps(row))
    for arm, those in lines.items():
        journal_of(folder, arm).write_text("\n".join(those) + "\n")
    if parquet or summary is not None:
        write_rows(folder, list(lines))
    if summary is not None:
        (folder / SUMMARY).write_text(json.dumps(summary))
    return folder


def usual_rows(n):
    """Rows of every arm."""
    return [a_row(arm, index) for arm in ARMS for index in range(n)]
