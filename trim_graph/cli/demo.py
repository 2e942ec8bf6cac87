"""`trim-graph demo`: the models alone, and ways to route, on held-out problems of the arithmetic world."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from trim_graph.config import Parts, TrimConfig, build_graph, example_config
from trim_graph.errors import SettingsError, TrimError, counted
from trim_graph.evaluation import (
    ArmMetrics,
    Difference,
    Interval,
    Question,
    Record,
    accuracy_difference,
    compare,
    run_arm,
    share_of_large_tokens,
)
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.evaluation.metrics import RESAMPLES
from trim_graph.examples.arithmetic import Split, problems

from .common import load_parts
from .options import DemoOptions
from .terminal import Interrupted, need

FROM_FILES = ("planned", "aggregate", "sequence")
"""Policies that come with the example models."""
ARMS = ("small", "large", "threshold", *FROM_FILES, "random")
"""In this order: the random arm spends what the threshold arm was seen to spend."""
CLOSE = 0.01
"""How far the share of the random arm may be from that of the threshold arm."""
ROUNDS = 4
"""Most attempts to find its rate."""


@dataclass
class Arm:
    """One way to solve the problems, as far as it has come."""

    policy: dict[str, Any]
    outcomes: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False


@dataclass
class Demo:
    """A demo under way; it holds what is there when it is cut short."""

    options: DemoOptions
    config: TrimConfig
    parts: Parts
    questions: list[Question]
    files: dict[str, Path] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    random_rate: float | None = None

    @property
    def threshold(self) -> float:
        """The threshold of the arm of that name."""
        return float(self.config.policy.model_dump()["t"])

    async def run(self, on_question: Callable[[str, int], None]) -> None:
        """Runs all arms.

        Args:
            on_question: Called after each question with the name of its arm and how many are done there.
        """
        await self._run_arm("small", {"type": "small_only"}, on_question)
        await self._run_arm("large", {"type": "large_only"}, on_question)
        await self._run_arm("threshold", {"type": "threshold", "t": self.threshold}, on_question)
        for name, file in self.files.items():
            await self._run_arm(name, {"type": "file", "path": str(file)}, on_question)
        await self._run_random(on_question)

    async def _run_random(self, on_question: Callable[[str, int], None]) -> None:
        """Runs the random policy at the rate that spends what the threshold was seen to spend."""
        wanted = self._share("threshold")
        rate = self._calibrated_rate()
        # Where every step is as likely to be the large model's, the rate is about the share.
        rate = wanted if rate is None else rate
        for _ in range(ROUNDS):
            self.random_rate = round(min(max(rate, 0.0), 1.0), 4)
            await self._run_arm("random", {"type": "random_rate", "rate": self.random_rate}, on_question)
            off = wanted - self._share("random")
            if abs(off) <= CLOSE:
                break
            rate = self.random_rate + off

    def _calibrated_rate(self) -> float | None:
        from trim_graph.examples.arithmetic.shipped import load_calibration

        if self.options.threshold is not None:
            return None
        known = load_calibration()
        return known.random_rate if known.split == self.options.split else None

    async def _run_arm(
        self, name: str, policy: dict[str, Any], on_question: Callable[[str, int], None]
    ) -> None:
        arm = self.arms[name] = Arm(policy)
        config = example_config({"policy": policy, "settings": self.config.settings.model_dump()})
        graph = build_graph(config, parts=self.parts)

        def keep(record: Record) -> None:
            arm.outcomes.append(record)
            arm.seconds = time.monotonic() - begun
            on_question(name, len(arm.outcomes))

        begun = time.monotonic()
        arm.outcomes = await run_arm(
            graph, self.questions, concurrency=self.options.concurrency, on_record=keep
        )
        arm.complete, arm.seconds = True, time.monotonic() - begun
        errors = [record["error"] for record in arm.outcomes if record["error"]]
        if len(errors) == len(arm.outcomes):
            raise TrimError(f"every question of the arm {name} failed; the first: {errors[0]}")

    def _share(self, name: str) -> float:
        spent, whole = (sum(o["large_tokens"] for o in self.arms[arm].outcomes) for arm in (name, "large"))
        return share_of_large_tokens(spent, whole) or 0.0


def run_demo(options: DemoOptions) -> None:
    """Runs the demo and prints its table.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    _check(options)
    need("cli,local", "numpy", "safetensors")
    from trim_graph.examples.arithmetic.shipped import load_chosen

    changes: dict[str, Any] = {"settings": {"seed": options.seed}}
    if options.threshold is not None:
        changes["policy"] = {"type": "threshold", "t": options.threshold}
    config, files = example_config(changes), load_chosen()
    parts = load_parts(config)
    demo = Demo(options, config, parts, _questions(options), files)
    try:
        _run_with_progress(demo)
    except BaseException as error:
        if not demo.arms:
            raise
        kept = ""
        if options.json_file is not None:
            write_report(demo, options.json_file, partial=True)
            kept = f"; what is there is in {options.json_file}, marked partial"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted{kept}") from error
        raise
    if options.json_file is not None:
        write_report(demo, options.json_file, partial=False)
    show_table(demo)


def _questions(options: DemoOptions) -> list[Question]:
    drawn = problems(options.split, options.n, part="test", seed=options.seed)  # type: ignore[arg-type]
    return [arithmetic_question(problem) for problem in drawn]


def _check(options: DemoOptions) -> None:
    """Refuses before minutes of work what would fail after them."""
    if options.split not in get_args(Split):
        raise SettingsError(f"--split is {options.split!r}: choose one of {', '.join(get_args(Split))}")
    file = options.json_file
    if file is None:
        return
    if file.is_dir():
        raise SettingsError(f"--json {file} is a folder: name a file")
    if not file.absolute().parent.is_dir():
        raise SettingsError(f"--json {file}: the folder {file.absolute().parent} does not exist")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise SettingsError(f"--json {file} cannot be written: no permission")


def _run_with_progress(demo: Demo) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from .common import Console, live, text_column

    columns = (
        text_column("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with live(Progress(*columns, console=Console(stderr=True))) as progress:
        bars = {name: progress.add_task(name, total=demo.options.n, start=False) for name in ARMS}

        def on_question(name: str, done: int) -> None:
            if done == 1:
                progress.reset(bars[name])
            progress.update(bars[name], completed=done)

        asyncio.run(demo.run(on_question))


INTERVALS_FROM = 200
"""Fewest questions for which the table shows intervals; below, they say little but noise."""
WIDTH = 120
"""Width of the table where stdout is no terminal."""
_PACKAGES = ("trim-graph", "langgraph", "langchain-core", "torch", "transformers", "numpy")


def metrics_of(demo: Demo) -> tuple[dict[str, ArmMetrics], Difference | None]:
    """Computes the metrics of the arms that are complete; nothing without the two models alone."""
    done = {name: arm.outcomes for name, arm in demo.arms.items() if arm.complete}
    if not {"small", "large"} <= done.keys():
        return {}, None
    metrics = compare(done, seed=demo.options.seed)
    if not {"threshold", "random"} <= done.keys():
        return metrics, None
    return metrics, accuracy_difference(done["threshold"], done["random"])


def report(demo: Demo, *, partial: bool) -> dict[str, Any]:
    """Returns everything, JSON-native."""
    metrics, difference = metrics_of(demo)
    options = demo.options
    return {
        "what": "trim-graph demo",
        "partial": partial,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": options.n,
        "split": options.split,
        "part": "test",
        "seed": options.seed,
        "concurrency": options.concurrency,
        "threshold": demo.threshold,
        "random_rate": demo.random_rate,
        "intervals": {
            "level": 0.95,
            "method": "paired bootstrap over questions",
            "resamples": RESAMPLES,
            "accuracy": "Clopper and Pearson",
            "difference": "Tango",
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpu_count": os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "arms": {
            name: {
                "policy": arm.policy,
                "complete": arm.complete,
                "seconds": arm.seconds,
                **metrics.get(name, {}),
                "outcomes": arm.outcomes,
            }
            for name, arm in demo.arms.items()
        },
        "threshold_minus_random": difference,
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def write_report(demo: Demo, file: Path, *, partial: bool) -> None:
    """Writes the report; an older file stays whole until the new one is."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(report(demo, partial=partial), indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def show_table(demo: Demo) -> None:
    """Prints the arms side by side on stdout."""
    from rich.table import Table

    from .common import Console

    console = Console(plain_width=WIDTH)
    options = demo.options
    metrics, difference = metrics_of(demo)
    precise = options.n >= INTERVALS_FROM
    table = Table(title=f"{options.n} held-out problems, split {options.split}, seed {options.seed}")
    table.add_column("arm")
    for heading in ("accuracy", "large tokens", "share", "PGR", "seconds"):
        table.add_column(heading, justify="right")
    names = {"threshold": f"threshold {demo.threshold:g}", "random": f"random {demo.random_rate:g}"}
    names |= {name: file.stem for name, file in demo.files.items()}
    for name, arm in demo.arms.items():
        row = metrics[name]
        table.add_row(
            names.get(name, f"{name} alone"),
            _figure(row["accuracy"], row["accuracy_interval"] if precise else None),
            str(row["large_tokens"]),
            _figure(row["share"], row["share_interval"] if precise else None),
            _figure(row["pgr"], row["pgr_interval"] if precise else None),
            f"{arm.seconds:.1f}",
        )
    console.print(table)
    if difference is not None:
        text = _figure(difference["accuracy"], difference["interval"] if precise else None, "+.3f")
        console.print(f"accuracy of threshold minus random: {text}")
    if precise:
        console.print(
            f"in brackets: 95 % intervals, paired bootstrap, {RESAMPLES} resamples; of accuracies exact ones"
        )
    errors = {name: row["errors"] for name, row in metrics.items() if row["errors"]}
    for name, count in errors.items():
        console.print(f"{name}: {count} of {counted(options.n, 'question')} failed and count as wrong")


def _figure(value: float | None, within: Interval | None, form: str = ".3f") -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" ({within.low:{form}} to {within.high:{form}})" if within else "")
