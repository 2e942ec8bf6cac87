"""Does a shadow say what routing would do? ``python -m trim_graph.examples.shadow.study [-n 200]``.

The application asks the large arithmetic model alone, with two shadows beside it: one walks along every
answer, one routes every question. In a second part it asks the small model, with a shadow that walks. The
same questions are then routed by the graph itself. The result, ``study.json``, holds the figures of all, and
whether each figure of a shadow has the routed runs' in its interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trim_graph import Quota, Shadow
from trim_graph.config import Parts, TrimConfig, build_graph, build_parts, example_config
from trim_graph.evaluation import Question, run_arm
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.shadow import read_shadow
from trim_graph.shadow.estimates import Group, proportion, share_of, summarise_shadow
from trim_graph.shadow.records import text_of

from .application import PRICES, answer, questions

RESULT = Path(__file__).with_name("study.json")
NAMES = ("large answers, walks", "large answers, runs", "small answers, walks")


class Study:
    """The study of some questions.

    Args:
        n: Questions.
        folder: Gets the records.
    """

    def __init__(self, n: int, folder: Path) -> None:
        self.n, self.folder = n, folder
        self.config: TrimConfig = example_config()
        self.parts: Parts = build_parts(self.config)
        self.problems = questions(n)
        self.asked: Sequence[Question] = [arithmetic_question(problem) for problem in self.problems]

    def shadow(self, name: str) -> Shadow:
        """Returns the shadow of a name."""
        right: dict[str, Any] = {question.text: question.grade for question in self.asked}
        # The application's own prompt asks for steps: the runs' prompts are then those of the graph.
        settings = {**self.config.settings.model_dump(), "instruction": None}
        return Shadow(
            self.parts.small,
            self.parts.large,
            self.parts.scorer,
            policy=self.config.policy.build(),
            answers="large" if name.startswith("large") else "small",
            record=self.folder / f"{name}.jsonl",
            run_rate=1.0 if name.endswith("runs") else 0.0,
            shadow_budget=Quota(large_tokens=10**9),
            prices=PRICES,
            capacity=self.n,
            grade=lambda question, text: right[question](text),
            **settings,
        )

    def shadowed(self) -> dict[str, Group]:
        """Returns what the shadows say beside the application."""
        walks, runs, small = shadows = [self.shadow(name) for name in NAMES]
        answer(walks.watch(runs.watch(self.parts.large)), self.problems)
        answer(small.watch(self.parts.small), self.problems)
        groups = {}
        for name, shadow in zip(NAMES, shadows, strict=True):
            shadow.drain()
            if shadow.counts.recorded != self.n:
                raise RuntimeError(f"{name}: {shadow.counts}: not every question has a record")
            shadow.close()
            (groups[name],) = summarise_shadow(read_shadow(self.folder / f"{name}.jsonl"))["groups"]
        return groups

    def routed(self) -> dict[str, Any]:
        """Returns the same figures of the graph itself."""
        graph = build_graph(self.config, parts=self.parts)
        runs = asyncio.run(run_arm(graph, self.asked, concurrency=2))
        alone = {
            record["question"]["sha256"]: record["answered"]
            for record in read_shadow(self.folder / f"{NAMES[0]}.jsonl")
        }
        whole = [alone[text_of(question.text, kept=False)["sha256"]] for question in self.asked]
        tokens = [float(one["output_tokens"] or 0) if one is not None else 0.0 for one in whole]
        return {
            "share": share_of([(run["large_tokens"], of) for run, of in zip(runs, tokens, strict=True)]),
            "asked": proportion(sum(run["large_tokens"] > 0 for run in runs), len(runs)),
            "accuracy": proportion(sum(bool(run["correct"]) for run in runs), len(runs)),
        }


def compared(groups: dict[str, Group], routed: dict[str, Any]) -> dict[str, bool]:
    """Returns of each figure of a shadow whether the routed runs' is in its interval."""
    matches = {}
    for name, group in groups.items():
        figures: dict[str, Any] = {"asked": group["asked"], "share": group["share"]}
        figures["accuracy"] = group["correct"].get("routed")
        for figure, one in figures.items():
            if one is not None and one["value"] is not None:
                value = routed[figure]["value"]
                matches[f"{name}: {figure}"] = one["low"] <= value <= one["high"]
    return matches


def study(n: int) -> dict[str, Any]:
    """Returns the figures of shadows and graph, and which of them agree.

    Args:
        n: Questions.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Study(n, Path(folder))
        groups = work.shadowed()
        routed = work.routed()
    return {
        "command": f"python -m trim_graph.examples.shadow.study -n {n}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "n": n,
        "routed": routed,
        "shadows": groups,
        "matches": compared(groups, routed),
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
