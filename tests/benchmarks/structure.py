"""How much a reader must hop: the size of the tree, and the files that one question goes through.

``python -m tests.benchmarks.structure [--json FILE]`` prints each metric, the one from before the tree was
rebuilt and the goal; ``structure.json`` has those from before and after. `tests/test_structure.py` holds the
goals, except those for size and for ``trim-graph eval``. Production code is `trim_graph`, `trim_graph.nodes`
and `trim_graph.adapters`, found by these names wherever their files lie; the examples do not count.

The question is solved in three steps, the second of which the large model writes again, by `invoke` on
scripted models after one run to warm up. `sys.setprofile` sees each start and each resumption of a named
function or method (no lambda, comprehension or module body); those of production files are the calls, the
scripted models' included. A crossing is a call in another file than the call before it: where a reader who
follows the run turns to another file. The files of a ``generate_step`` are the most that one execution of
that node enters.

A unit is a sub-package, or a module of `trim_graph` itself; all import statements count, also those under
``TYPE_CHECKING`` and in functions. (`trim_graph`'s own modules as one unit would always be in a circle with
the nodes: ``graph.py`` is above them, ``state.py`` below.) A circle is a pair of units that import each
other, or a longer ring without such a pair.

The layers of ``trim-graph eval`` are the functions and methods on the way from `main` to the driver of the
graph's nodes, through tasks and threads to what started them; the example models answer one question.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from trim_graph import create_trim_graph, driver
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

NAME = "trim_graph"
ROOT = Path(__file__).resolve().parents[2]
BEFORE = Path(__file__).with_suffix(".json")

ROWS = {
    "files": ("production files", 150),
    "lines": ("production lines", 31_000),
    "node_files": ("files in nodes/", 8),
    "entered": ("files entered, 3-step question", 24),
    "crossings": ("crossings from file to file", 285),
    "calls": ("calls of our functions", None),
    "generate_step": ("files one generate_step enters", 12),
    "circles": ("circles between packages", 0),
    "architecture": ("rows in ARCHITECTURE.md", 15),
    "eval_layers": ("functions from `trim-graph eval` to the graph", 11),
    "eval_modules": ("files of these functions", None),
}
"""Each metric's words and the most it should be."""


def folder_of(package: str) -> Path:
    """Returns the real folder of a package."""
    return Path(str(import_module(package).__file__)).resolve().parent


@cache
def production() -> dict[Path, str]:
    """Returns the production files with the names of their modules."""
    files = {}
    excluded = folder_of(f"{NAME}.examples")
    for package in (NAME, f"{NAME}.nodes", f"{NAME}.adapters"):
        folder = folder_of(package)
        for file in sorted(folder.rglob("*.py")):
            real = file.resolve()
            if not real.is_relative_to(excluded):
                parts = file.relative_to(folder).with_suffix("").parts
                name = ".".join([package, *parts]).removesuffix(".__init__")
                files[real] = name
    return files


@cache
def our_file(filename: str) -> str | None:
    """Returns the module of a production file; None for all other code."""
    return production().get(Path(filename).resolve())


def our_function(frame: FrameType) -> str | None:
    """Returns the module of a production function; None for other code and functions without a name."""
    return None if frame.f_code.co_name.startswith("<") else our_file(frame.f_code.co_filename)


def imports() -> Iterator[tuple[str, str]]:
    """Yields who imports whom, module by module."""
    names = {name: file for file, name in production().items()}
    for name, file in names.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                found = [f"{base}.{alias.name}" for alias in node.names]
            for target in found:
                if target.startswith("trim_graph.examples"):  # no part of it, so not the root either
                    continue
                while target and target not in names:
                    target = target.rpartition(".")[0]
                if target:
                    yield name, target


def circles() -> list[list[str]]:
    """Returns the units that import each other: pairs, and longer rings without a pair."""
    below: dict[str, set[str]] = {}
    for one, other in imports():
        units = [".".join(name.split(".")[:2]) for name in (one, other)]
        if units[0] != units[1]:
            below.setdefault(units[0], set()).add(units[1])

    def reached(unit: str) -> set[str]:
        seen, left = set[str](), [unit]
        while left:
            new = below.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    pairs = {frozenset((a, b)) for a in below for b in below[a] if a in below.get(b, ())}
    rings = {frozenset(b for b in reached(a) if a in reached(b)) for a in below}
    alone = {ring for ring in rings if ring and not any(pair <= ring for pair in pairs)}
    return sorted(sorted(circle) for circle in pairs | alone)


def traced_question() -> dict[str, Any]:
    """Solves the question, and counts calls, files and crossings."""
    steps = ["first step", "second step", "the answer is \\boxed{1}"]
    small, large = ScriptedChatModel(script=[steps[0], "slip", steps[2]]), ScriptedChatModel(script=steps)
    graph = create_trim_graph(small, large, ScriptedScorer({"slip": 0.1}), policy=threshold(0.5))
    question: Any = {"messages": [("user", "a question")]}
    graph.invoke(question)
    writing = graph.nodes["generate_step"].bound
    entered: list[str] = []
    executions: list[set[str]] = []
    running: list[FrameType] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and running and frame is running[-1]:
            running.pop()
        if event != "call" or (module := our_function(frame)) is None:
            return
        entered.append(module)
        if not running and frame.f_locals.get("self") is writing:
            running.append(frame)
            executions.append(set())
        if running:
            executions[-1].add(module)

    sys.setprofile(watch)
    try:
        solved = graph.invoke(question)
    finally:
        sys.setprofile(None)
    assert solved["trim"]["decisions"] == {"accept": 2, "regenerate": 1}
    assert len(executions) == 4
    return {
        "entered": len(set(entered)),
        "crossings": sum(one != other for one, other in pairwise(entered)),
        "calls": len(entered),
        "generate_step": max(map(len, executions)),
    }


def way_to_the_graph() -> list[tuple[str, str]]:
    """Runs ``trim-graph eval`` on one question; returns module and name of the functions on the way."""
    from trim_graph.cli import main

    started: dict[Any, list[FrameType]] = {}
    paths: list[list[FrameType]] = []

    def stack() -> list[FrameType]:
        frames, frame = [], sys._getframe(2)
        while frame:
            frames.append(frame)
            frame = frame.f_back  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):
            if (task := asyncio.current_task()) in started:
                # What is below the task is the loop, which its starter's stack holds as well.
                inside = [f.f_code for f in frames].index(asyncio.Handle._run.__code__)
                return frames[:inside] + started[task]
        return frames + started.get(threading.current_thread(), [])

    def starting(function: Callable[..., Any], *, by_result: bool) -> Callable[..., Any]:
        def started_with(self: Any, *args: Any, **kwargs: Any) -> Any:
            frames = stack()
            made = function(self, *args, **kwargs)
            started[made if by_result else self] = frames
            return made

        return started_with

    def arrived(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            paths.append(stack())
            return function(*args, **kwargs)

        return called

    loop = asyncio.BaseEventLoop
    words = ["eval", "--dataset", "arithmetic:standard", "-n", "1", "--policy", "small_only"]
    with contextlib.ExitStack() as stacked:
        folder = stacked.enter_context(tempfile.TemporaryDirectory())
        enter = stacked.enter_context
        enter(contextlib.redirect_stdout(io.StringIO()))
        enter(contextlib.redirect_stderr(io.StringIO()))
        enter(mock.patch.object(sys, "argv", [NAME, *words, "--baselines", "none", "--out", f"{folder}/run"]))
        enter(mock.patch.object(loop, "create_task", starting(loop.create_task, by_result=True)))
        enter(mock.patch.object(threading.Thread, "start", starting(threading.Thread.start, by_result=False)))
        enter(mock.patch.object(driver, "adrive", arrived(driver.adrive)))
        with contextlib.suppress(SystemExit):
            main()
    functions = []
    for frame in reversed(paths[0]):
        if module := our_function(frame):
            functions.append((module, frame.f_code.co_qualname))
    return functions


def sizes() -> dict[str, int]:
    """Counts files, lines and the rows of the map."""
    nodes = folder_of(f"{NAME}.nodes")
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines()
    architecture = [line for line in page if line.startswith("|")]
    heads = sum(not line.strip("|-: ") for line in architecture)
    return {
        "files": len(production()),
        "lines": sum(len(file.read_text("utf-8").splitlines()) for file in production()),
        "node_files": sum(file.is_relative_to(nodes) for file in production()),
        "architecture": len(architecture) - 2 * heads,
    }


def measure() -> tuple[dict[str, Any], list[str]]:
    """Returns the metrics, and the evidence for those that a reader cannot count alone."""
    rings, way = circles(), way_to_the_graph()
    metrics = {
        "date": datetime.now(UTC).date().isoformat(),
        **sizes(),
        **traced_question(),
        "circles": len(rings),
        "eval_layers": len(way),
        "eval_modules": len({module for module, _ in way}),
    }
    details = ["circles:", *("  " + " <-> ".join(ring) for ring in rings), "eval:"]
    return metrics, [*details, *(f"  {module}: {name}" for module, name in way)]


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the metrics")
    args = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    before = json.loads(BEFORE.read_text("utf-8"))["before"] if BEFORE.exists() else {}
    metrics, details = measure()
    print(*details, sep="\n", end="\n\n")
    print(f"{'':46} {before.get('date', 'before'):>11} {metrics['date']:>11} {'goal':>9}")
    for key, (words, goal) in ROWS.items():
        wanted = "" if goal is None else f"<= {goal}" if goal else "0"
        print(f"{words:46} {before.get(key, '-'):>11} {metrics[key]:>11} {wanted:>9}")
    if args.json:
        args.json.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
