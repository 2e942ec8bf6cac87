"""What warming the large model's cache saves and costs, with a pair of one's own on vLLM servers.

``python -m tests.benchmarks.warming CONFIG DATA [-n 20] [--at-once 1] [--rounds 2] [--json FILE]`` asks the
questions of DATA (as `trim-graph eval --data` takes them) with ``warm_large`` off and on in turns. CONFIG is
a configuration whose writers are of ``type: vllm``; its servers run already. Each run has a ``cache_salt`` of
its own for the writers, so that no run profits from another's prefix cache. Printed are the mean seconds of a
question, the mean time of a call that rewrites, the prompt tokens of those calls and how many of them came
from the cache, and what the calls used that only warm it. ``ratio`` is that of the mean seconds of a
question, off to on; the quartiles are those of the questions' own ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trim_graph.budget.usage import warming_usage
from trim_graph.config import build_graph, build_parts, load_config
from trim_graph.config.load import Parts, TrimConfig
from trim_graph.evaluation.datasets import first_questions, make_dataset

ARMS = (False, True)
"""Values of ``warm_large``."""


def salted(model: Any) -> Any:
    """Returns a model whose requests share no prefix with those of another run."""
    if "extra_body" not in type(model).model_fields:
        raise SystemExit(f"{type(model).__name__} takes no cache_salt: measure models of type: vllm")
    return model.model_copy(update={"extra_body": {**model.extra_body, "cache_salt": uuid.uuid4().hex}})


async def asked(config: TrimConfig, parts: Parts, question: str, warm: bool) -> dict[str, Any]:
    """Asks one question, with caches that hold nothing of it."""
    settings = config.settings.model_copy(update={"warm_large": warm})
    own = parts._replace(small=salted(parts.small), large=salted(parts.large))
    graph = build_graph(config.model_copy(update={"settings": settings}), parts=own)
    begun = time.monotonic()
    result = await graph.ainvoke({"messages": [("user", question)]})
    seconds = time.monotonic() - begun
    usage = result["trim"]["usage"]
    large, warming = usage["large"], warming_usage(usage)
    return {
        "seconds": seconds,
        "rewrites": large["calls"] - warming["calls"],
        "rewrite_seconds": large.get("seconds", 0.0),
        "read": large["input_tokens"] - warming["input_tokens"],
        "cached": large["cached_tokens"] - warming["cached_tokens"],
        "warming": dict(warming),
        "unaccounted_tokens": usage["unaccounted_tokens"],
        "text": result["messages"][-1].text,
    }


async def measured(
    config: TrimConfig, questions: Sequence[str], *, at_once: int, rounds: int
) -> dict[bool, list[dict[str, Any]]]:
    """Asks all questions in both arms, so many at once; each arm goes first as often as the other."""
    parts = build_parts(config)
    found: dict[bool, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for start in range(0, len(questions), at_once):
            together = questions[start : start + at_once]
            for arm in ARMS if (number + start // at_once) % 2 == 0 else reversed(ARMS):
                runs = (asked(config, parts, question, arm) for question in together)
                found[arm] += await asyncio.gather(*runs)
    return found


def summed(found: dict[bool, list[dict[str, Any]]]) -> dict[str, Any]:
    """Sums up both arms."""

    def total(arm: bool, key: str) -> float:
        return sum(run[key] for run in found[arm])

    def warm(key: str) -> int:
        return sum(run["warming"][key] for run in found[True])

    ratios = [off["seconds"] / on["seconds"] for off, on in zip(found[False], found[True], strict=True)]
    same = [off["text"] == on["text"] for off, on in zip(found[False], found[True], strict=True)]
    arms = {
        "on" if arm else "off": {
            "seconds": total(arm, "seconds") / len(found[arm]),
            "rewrites": total(arm, "rewrites"),
            "rewrite_seconds": total(arm, "rewrite_seconds") / max(total(arm, "rewrites"), 1),
            "read": total(arm, "read"),
            "cached": total(arm, "cached"),
        }
        for arm in ARMS
    }
    return {
        "runs": len(ratios),
        **arms,
        "ratio": arms["off"]["seconds"] / arms["on"]["seconds"],
        "quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3,
        "same_answers": sum(same) / len(same),
        "warming": {key: warm(key) for key in found[True][0]["warming"]},
        "unaccounted_tokens": total(True, "unaccounted_tokens"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("data")
    parser.add_argument("-n", type=int, default=20, help="questions, the first of DATA")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of both arms")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    config = load_config(args.config)
    questions = [one.text for one in first_questions(make_dataset(args.data), args.n, default=args.n)]
    load_before = os.getloadavg()[0]
    found = asyncio.run(measured(config, questions, at_once=args.at_once, rounds=args.rounds))
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": [load_before, os.getloadavg()[0]],
        "questions": len(questions),
        "at_once": args.at_once,
        "rounds": args.rounds,
        **summed(found),
    }
    for name in ("off", "on"):
        arm = document[name]
        print(
            f"warm_large {name:3}  {arm['seconds']:.2f} s a question, {arm['rewrites']} rewrites of "
            f"{1000 * arm['rewrite_seconds']:.0f} ms, {arm['cached']} of {arm['read']} tokens cached"
        )
    warm = document["warming"]
    quartiles = " ".join(f"{ratio:.2f}" for ratio in document["quartiles"])
    print(
        f"ratio {document['ratio']:.2f} (quartiles {quartiles}); {warm['calls']} warm calls, "
        f"{warm['failed_calls']} failed, {warm['output_tokens'] + warm['unaccounted_tokens']} tokens, "
        f"{warm['input_tokens']} prompt tokens, {warm['cached_tokens']} of them cached; "
        f"{document['same_answers']:.0%} same answers"
    )
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
