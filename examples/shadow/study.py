"""Does a shadow say what routing would do? ``python -m trim_graph.examples.shadow.study [-n 200]``.

The application asks the large arithmetic model alone, and in a second part the small one. Its shadows walk
along the answers, and route the questions. Beside them the same questions are routed by the graph itself.
The result, ``study.json``, holds the figures of all, and whether each figure of a shadow has the routed run's
in its interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage

from trim_graph import DEFAULT_INSTRUCTION, Prices, Quota, Shadow
from trim_graph.config import Parts, TrimConfig, build_graph, build_parts, example_config
from trim_graph.evaluation import Question, run_arm
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.examples.arithmetic import problems
from trim_graph.shadow import read_shadow
from trim_graph.shadow.estimates import Group, proportion, share_of, summarise_shadow

RESULT = Path(__file__).with_name("study.json")
PRICES = Prices.model_validate(
    {"small": {"input": 0.1, "output": 0.3}, "large": {"input": 1.5, "output": 4.5}, "scorer": {"input": 0.1}}
)
"""Per million tokens: the ratio of hosted 7B and 72B models, with a 7B reward model."""
SHADOWS: tuple[tuple[str, Any, float], ...] = (
    ("large answers, walks", "large", 0.0),
    ("large answers, runs", "large", 1.0),
    ("small answers, walks", "small", 0.0),
)


def held_out(n: int) -> list[Question]:
    """Returns problems that no model, policy or threshold was made with."""
    return [arithmetic_question(problem) for problem in problems("standard", n, part="test")]


async def answer_all(model: Any, questions: Sequence[Question]) -> None:
    """Has an application answer questions, one after the other, with one call each."""
    for question in questions:
        await model.ainvoke([SystemMessage(DEFAULT_INSTRUCTION), HumanMessage(question.text)])


def shadowed(
    config: TrimConfig, parts: Parts, questions: Sequence[Question], answers: Any, run_rate: float, file: Path
) -> Group:
    """Returns what a shadow says beside an application that answers questions.

    Args:
        config: Whose policy would route.
        parts: The models.
        questions: The questions.
        answers: Model of the application, ``large`` or ``small``.
        run_rate: As in `Shadow`.
        file: Gets the records.
    """
    right: dict[str, Any] = {question.text: question.grade for question in questions}
    # Each run may use what its limits allow: the budget admits all of them.
    budget = Quota(large_tokens=10**9)
    with Shadow(
        parts.small,
        parts.large,
        parts.scorer,
        policy=config.policy.build(),
        answers=answers,
        record=file,
        run_rate=run_rate,
        shadow_budget=budget,
        prices=PRICES,
        capacity=len(questions),
        grade=lambda question, text: right[question](text),
        **config.settings.model_dump(),
    ) as shadow:
        asyncio.run(answer_all(shadow.watch(getattr(parts, answers)), questions))
        shadow.drain()
        if shadow.counts.recorded != len(questions):
            raise RuntimeError(f"{shadow.counts}: not every question has a record")
    (group,) = summarise_shadow(read_shadow(file))["groups"]
    return group


def routed(config: TrimConfig, parts: Parts, questions: Sequence[Question]) -> dict[str, Any]:
    """Returns the same figures of the graph itself, and of the large model alone."""
    graph = build_graph(config, parts=parts)
    only_large = build_graph(example_config({"policy": {"type": "large_only"}}), parts=parts)
    runs = asyncio.run(run_arm(graph, questions, concurrency=2))
    whole = asyncio.run(run_arm(only_large, questions, concurrency=2))
    large = [(float(a["large_tokens"]), float(b["large_tokens"])) for a, b in zip(runs, whole, strict=True)]
    return {
        "share": share_of(large),
        "asked": proportion(sum(run["large_tokens"] > 0 for run in runs), len(runs)),
        "accuracy": proportion(sum(bool(run["correct"]) for run in runs), len(runs)),
        "accuracy_large": proportion(sum(bool(run["correct"]) for run in whole), len(whole)),
    }


def study(n: int) -> dict[str, Any]:
    """Returns the figures of shadows and graph, and which of them agree.

    Args:
        n: Questions.
    """
    config = example_config({})
    parts, questions = build_parts(config), held_out(n)
    own = routed(config, parts, questions)
    shadows: dict[str, Any] = {}
    matches: dict[str, bool] = {}
    with TemporaryDirectory() as folder:
        for name, answers, run_rate in SHADOWS:
            file = Path(folder) / f"{name}.jsonl"
            group = shadows[name] = shadowed(config, parts, questions, answers, run_rate, file)
            wanted = {"asked": own["asked"]["value"]}
            if answers == "large":
                wanted["share"] = own["share"]["value"]
            if run_rate:
                wanted["accuracy"] = own["accuracy"]["value"]
            for figure, value in wanted.items():
                one: Any = group["correct"]["routed"] if figure == "accuracy" else group[figure]  # type: ignore[literal-required]
                matches[f"{name}: {figure}"] = one["low"] <= value <= one["high"]
    return {
        "command": f"python -m trim_graph.examples.shadow.study -n {n}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "n": n,
        "routed": own,
        "shadows": shadows,
        "matches": matches,
    }


def main(arguments: list[str] | None = None) -> None:
    """Runs the study, writes its result, and prints which figures agree."""
    parser = argparse.ArgumentParser(prog="python -m trim_graph.examples.shadow.study", description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="questions")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    result = study(given.n)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for figure, agrees in result["matches"].items():
        print(f"{figure}: {'within' if agrees else 'OUTSIDE'} the interval")


if __name__ == "__main__":
    main()
