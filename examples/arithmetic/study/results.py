"""Measure the example world and write RESULTS.md: `python -m ...arithmetic.study.results FOLDER`.

Every branch of a solution is recorded once, in FOLDER, from which an interrupted run resumes.
Operating points are chosen on validation problems; the test problems are looked at once. With --rewrite
RESULTS.md is written anew from results.json, and nothing is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from trim_graph.examples.arithmetic import WEIGHTS
from trim_graph.examples.arithmetic.problems import Part, Split
from trim_graph.examples.arithmetic.shipped import POLICIES

from .trees import Problems, keep_trees, recorded_trees, weights_identity

if TYPE_CHECKING:
    from .measuring import Studied
    from .worlds import World

HERE = Path(__file__).parent
TEST: dict[Split, int] = {"standard": 2000, "words": 2000, "hard": 2000}
VALIDATION: dict[Split, int] = {"standard": 1000, "words": 500, "hard": 200}
TRAINING = 600
"""Problems that the query router of each world is trained on."""
LEAST_TRAINING = 60
"""Of them, where fewer problems are asked for."""
TEST_SEED, VALIDATION_SEED, TRAINING_SEED = 0, 3, 0
"""Policies were trained on validation problems of the seeds 1 and 2."""
SCORERS_ON: Split = "standard"
SCORED = (300, 600)
"""Validation and test problems of the study of scorers."""
CHECKED = 50
RESAMPLES = 1000
"""Of the bootstrap."""
_PACKAGES = ("trim-graph", "langgraph", "langchain-core", "torch", "transformers", "numpy")


def study(given: argparse.Namespace) -> dict[str, Any]:
    """Records what is missing, and measure."""
    from .measuring import study_scorers, study_transfer, study_world

    worlds: dict[str, Studied] = {split: _world(split, given) for split in given.split}
    found: dict[str, Any] = {}
    for split, world in worlds.items():
        try:
            measure = partial(study_world, world, resamples=given.resamples)
            found[split] = _once(split, given, measure)
        finally:
            _keep(world, given)
    transfer = _once("transfer", given, lambda: study_transfer(worlds, found))
    scorers = {}
    if SCORERS_ON in worlds:
        scorers = _once("scorers", given, lambda: study_scorers(_scored(given), resamples=given.resamples))
    return {
        "what": "python -m trim_graph.examples.arithmetic.study.results",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": {
            "test": TEST_SEED,
            "validation": VALIDATION_SEED,
            "training": TRAINING_SEED,
            "bootstrap": 0,
        },
        "resamples": given.resamples,
        "weights": weights_identity(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "worlds": found,
        "transfer": transfer,
        "scorers": scorers,
        "checks": _once("checks", given, lambda: _checks(worlds, given)),
    }


def _once(name: str, given: argparse.Namespace, make: Callable[[], Any]) -> Any:
    """Returns a part of the document that an earlier run made of the same numbers of problems, or make it."""
    file = given.folder / f"study-{name}.json"
    settings = {
        "split": given.split,
        "n": [[_drawn(split, given).n for split in given.split] for _drawn in (_validation, _test)],
        "training": TRAINING,
        "scored": [_at_most(n, given) for n in SCORED],
        "resamples": given.resamples,
        "check": given.check,
        "weights": weights_identity(),
        "code": _code(),
    }
    if name in given.split:
        at = given.split.index(name)
        settings |= {"split": name, "n": [numbers[at] for numbers in settings["n"]], "check": None}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return kept["found"]
    found = json.loads(json.dumps(make()))
    file.write_text(json.dumps({"settings": settings, "found": found}) + "\n", encoding="utf-8")
    _report_progress(f"{name}: measured")
    return found


def _code() -> str:
    """Returns the digest of what measures and of what is measured."""
    whole = hashlib.sha256()
    measuring = [
        HERE / f"{name}.py"
        for name in ("families", "figures", "measuring", "paper_test", "scorers", "worlds")
    ]
    for file in [*measuring, *sorted(POLICIES.glob("*.json"))]:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def _world(split: Split, given: argparse.Namespace) -> Studied:
    from .measuring import Studied
    from .router import trained_router
    from .worlds import World

    validation, test = (
        World(split, recorded_trees(drawn, given.folder))
        for drawn in (_validation(split, given), _test(split, given))
    )
    training = max(_at_most(TRAINING, given), min(LEAST_TRAINING, TRAINING))
    router = trained_router(Problems(split, "train", training, TRAINING_SEED), given.folder)
    return Studied(validation, test, router)


def _keep(world: Studied, given: argparse.Namespace) -> None:
    """Stores the trees that policies have expanded."""
    split: Any = world.test.split
    for drawn, measured in ((_validation(split, given), world.validation), (_test(split, given), world.test)):
        rollouts = measured.rollouts
        keep_trees(drawn, given.folder, {index: rollouts.trees[index] for index in sorted(rollouts.expanded)})
        rollouts.expanded.clear()


def _test(split: Split, given: argparse.Namespace) -> Problems:
    return Problems(split, "test", _at_most(TEST[split], given), TEST_SEED)


def _validation(split: Split, given: argparse.Namespace) -> Problems:
    return Problems(split, "validation", _at_most(VALIDATION[split], given), VALIDATION_SEED)


def _at_most(n: int, given: argparse.Namespace) -> int:
    return n if given.at_most is None else min(n, given.at_most)


def _scored(given: argparse.Namespace) -> dict[str, tuple[World, World]]:
    from .scorers import TOKEN_PROBABILITY, by_token_probability, rescored
    from .worlds import World

    seeds: list[tuple[Part, int]] = [("validation", VALIDATION_SEED), ("test", TEST_SEED)]
    drawn = [
        Problems(SCORERS_ON, part, _at_most(n, given), seed)
        for n, (part, seed) in zip(SCORED, seeds, strict=True)
    ]
    shipped = [World(SCORERS_ON, recorded_trees(problems, given.folder)) for problems in drawn]
    early = [rescored(problems, given.folder, WEIGHTS / "prm_early") for problems in drawn]
    bare = [by_token_probability(problems, given.folder) for problems in drawn]
    return {
        "prm": (shipped[0], shipped[1]),
        "prm_early": (early[0], early[1]),
        TOKEN_PROBABILITY: (bare[0], bare[1]),
    }


def _checks(worlds: dict[str, Studied], given: argparse.Namespace) -> dict[str, Any]:
    """Runs some policies through the graph as well, on the first test problems."""
    from trim_graph.adapters import ChatTransformers, TransformersProcessReward
    from trim_graph.evaluation import run_arm
    from trim_graph.examples.arithmetic import LARGE, PRM, SMALL
    from trim_graph.graph import create_trim_graph
    from trim_graph.policies import (
        entropy_probe,
        large_only,
        load_policy,
        random_rate,
        stay_on_large,
        threshold,
    )

    if not given.check:
        return {}
    split = next(iter(worlds))
    test = worlds[split].test
    questions = [tree.question for tree in test.trees[: given.check]]
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    policies = [
        threshold(0.8),
        stay_on_large(threshold(0.5), k=2),
        load_policy(POLICIES / "pomdp-1.json"),
        load_policy(POLICIES / "aggregate-0.01.json"),
        load_policy(POLICIES / "sequence-0.01.json"),
        entropy_probe(0.004),
        random_rate(0.3),
        large_only(),
    ]
    found = {}
    for policy in policies:
        graph = create_trim_graph(small, large, TransformersProcessReward(str(PRM)), policy=policy, seed=0)
        ran = asyncio.run(run_arm(graph, questions))
        read = test.solved(policy).outcomes()
        pairs = list(zip(ran, read, strict=False))
        same = sum(all(a[key] == b[key] for key in ("correct", "large_tokens")) for a, b in pairs)
        found[repr(policy)] = {"split": split, "n": len(pairs), "same": same}
        _report_progress(f"{policy!r}: {same} of {len(pairs)} problems came out the same in the graph")
    return found


def rounded(value: Any) -> Any:
    """Returns a document whose numbers have as many digits as mean something."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Describes the machine that measures."""
    return {"platform": platform.platform(), "processor": _processor(), "cpu_count": os.cpu_count()}


def _processor() -> str:
    """Names the processor as Linux does; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _report_progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes ``RESULTS.md``, ``results.json`` and ``results.png``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="keeps what was recorded; a later run goes on there"
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="write RESULTS.md from the results.json in --out, measure nothing",
    )
    parser.add_argument(
        "--split",
        action="append",
        choices=get_args(Split),
        help="world to measure, may be repeated; default: all, the transfer between them too",
    )
    parser.add_argument("--at-most", type=int, help="problems of each kind: to try it out")
    parser.add_argument(
        "--check", type=int, default=CHECKED, help="problems to run through the graph as well"
    )
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is written")
    given = parser.parse_args(arguments)
    for option in ("at_most", "resamples"):
        value = getattr(given, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} is {value}: choose 1 or more")
    if not given.out.is_dir():
        parser.error(f"--out {given.out}: name a folder that exists")
    if given.rewrite:
        _rewrite(given.out)
        return
    if given.folder is None:
        parser.error("name the FOLDER that keeps what is recorded, or --rewrite")
    given.split = list(dict.fromkeys(given.split or TEST))
    document = rounded(study(given))
    from .picture import draw
    from .report import report

    (given.out / "results.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    (given.out / "RESULTS.md").write_text(report(document), encoding="utf-8")
    draw(document, given.out / "results.png")
    print(f"written: RESULTS.md, results.json and results.png in {given.out}")


def _rewrite(out: Path) -> None:
    """Writes ``RESULTS.md`` from ``results.json``."""
    from .report import report

    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (out / "RESULTS.md").write_text(report(document), encoding="utf-8")
    print(f"written: RESULTS.md in {out}; nothing was measured")


if __name__ == "__main__":
    main()
