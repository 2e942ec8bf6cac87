"""An arithmetic world without weights: the small model errs in hard steps, the scorer sees it, large knows.

A subprocess gets the same by running this file (`runpy`).
"""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from typer.testing import CliRunner

from trim_graph.config import Parts
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.arithmetic.problems import DELIMITER, expected_step, kind_of_step
from trim_graph.testing import ScriptedChatModel

HERE = Path(__file__)
CHAIN = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)
WORLD = {
    p.question: p
    for part, seed in (("test", 0), ("validation", 0), ("validation", 1), ("train", 0))
    for p in problems("standard", 250, part=part, seed=seed)
}


def known(question):
    """The problem behind a question; the chain above is done by hand."""
    return WORLD.get(question) or question


def next_step(problem, before, errs):
    if problem == CHAIN:
        steps = ["Step 1: 34 + 12 = 46.", "Step 2: 46 * 7 = 322, keep 22.", "Step 3: 22 - 5 = 17."]
        steps += ["Step 4: the larger of 17 and 20 is 20.", "The answer is \\boxed{20}."]
        right = steps[len(before)] if len(before) < len(steps) else None
        hard = len(before) == 1
    else:
        right = expected_step(problem, before)
        hard = kind_of_step(problem, len(before)) in ("multiply", "remainder", "subtract")
    if right is None:
        return "The answer is \\boxed{0}." if not before or "boxed" not in before[-1] else None
    return f"{right[:-1].rsplit(' ', 1)[0]} 1." if errs and hard else right


class World(BaseChatModel):
    """Solves the problems of the world step by step."""

    continues_exactly: ClassVar[bool] = True
    errs: bool
    delay: float = 0.0

    @property
    def _llm_type(self):
        return "world"

    def count_prompt_tokens(self, messages):
        return 1

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if self.delay:
            Path("started").touch()  # shows a test that the work is under way
            time.sleep(self.delay)
        problem = known(next(m.text for m in messages if m.type == "human"))

        def rest(prefix):
            before = [piece for piece in prefix.split(DELIMITER) if piece]
            wrote = []
            while (step := next_step(problem, [*before, *wrote], self.errs)) is not None:
                wrote.append(step)
            return DELIMITER.join(wrote)

        model = ScriptedChatModel(script=rest, name="small" if self.errs else "large")
        return model._generate(messages, stop, run_manager, **kwargs)


class Judge:
    """Knows a wrong step; where it wavers, its scores spread over [0.4, 1] and [0, 0.6]."""

    def __init__(self, wavers=False):
        self.wavers = wavers

    def rate(self, question, texts):
        right = texts[-1] == next_step(known(question), texts[:-1], errs=False)
        if not self.wavers:
            return 0.9 if right else 0.1
        part = int.from_bytes(hashlib.sha256("|".join([question, *texts]).encode()).digest()[:4]) / 2**32
        return (0.4 if right else 0.0) + 0.6 * part

    def score(self, question, steps):
        texts = [str(step) for step in steps]
        return [self.rate(question, texts[:end]) for end in range(1, len(texts) + 1)]

    async def ascore(self, question, steps):
        return self.score(question, steps)


def world_parts(delay=0.0, wavers=False):
    return Parts(World(errs=True, delay=delay), World(errs=False, delay=delay), Judge(wavers))


COMMANDS = {"solve": False, "demo": False, "collect": True, "calibrate": True, "eval": False, "label": False}
"""The modules that load models, and whether the judge wavers there."""


CALIBRATION = {
    "threshold": 0.5,
    "random_rate": 0.2,
    "split": "standard",
    "n": 1,
    "seed": 0,
    "accuracy_small": 0.5,
    "accuracy_large": 1.0,
    "random": {},
    "curve": [],
}


def enter_world(folder, delay=0.0):
    """Puts the world in place of the weights; also in a subprocess."""
    from trim_graph.examples.arithmetic import shipped

    file = Path(folder) / "calibrated.json"
    file.write_text(json.dumps(CALIBRATION))
    shipped.CALIBRATED = file
    for command, wavers in COMMANDS.items():
        module = importlib.import_module(f"trim_graph.cli.{command}")
        module.load_parts = lambda config, wavers=wavers, **_: world_parts(delay, wavers)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibrate = "trim_graph.examples.arithmetic.shipped.CALIBRATED"
    (tmp_path / "calibrated.json").write_text(json.dumps(CALIBRATION))
    monkeypatch.setattr(calibrate, tmp_path / "calibrated.json")
    for command, wavers in COMMANDS.items():
        monkeypatch.setattr(
            f"trim_graph.cli.{command}.load_parts", lambda config, w=wavers, **_: world_parts(wavers=w)
        )
    return tmp_path


@pytest.fixture
def models():
    """The classes of the world's models, to build others on."""
    return SimpleNamespace(World=World, Judge=Judge)


@pytest.fixture
def run():
    """Runs a command in this process."""
    from trim_graph.cli.app import app

    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def start(tmp_path):
    """Starts a command in a process of its own, with slow models and, if wanted, modules that are missing."""
    started = []

    def begin(*arguments, delay=0.0, missing=(), in_world=True):
        code = [
            "import runpy, sys",
            f"sys.modules.update(dict.fromkeys({list(missing)!r}))",
            f"sys.argv = ['trim-graph', *{[str(a) for a in arguments]!r}]",
        ]
        if in_world:
            code.append(f"runpy.run_path({str(HERE)!r})['enter_world']({str(tmp_path)!r}, {delay})")
        code.append("from trim_graph.cli import main; main()")
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
