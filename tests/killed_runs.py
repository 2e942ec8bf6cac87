"""Runs that are killed at chosen instants and resumed, each attempt in a process of its own.

An instant is a point that a run passes: before, within and after every call of a model or the scorer, before
and after everything its checkpointer writes. A process at its instant sends itself SIGKILL. What the models
generate goes into a file at once, as a server would bill it: half of an answer before its call can be killed,
half after.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trim_graph import Budget, ScorableStep, create_trim_graph, open_checkpointer
from trim_graph.policies import random_rate, stay_on_large, threshold
from trim_graph.testing import ScriptedChatModel

POINTS = int(os.environ.get("TRIM_KILL_POINTS", "200"))
"""Processes to kill."""
QUESTION = {"messages": [("user", "What comes of it?")]}
STEP_TOKENS = 12
POLICIES: dict[str, Callable[[], Any]] = {
    "threshold": lambda: threshold(0.5),
    "handover": lambda: lambda seen: "handover" if seen.score < 0.15 else "accept",
    "stays": lambda: stay_on_large(threshold(0.5), k=2),
    "random": lambda: random_rate(0.5),
}


@dataclass
class Instants:
    """Counts the instants of a process; at number ``last`` it is killed."""

    last: int | None = None
    passed: int = 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class BilledModel(ScriptedChatModel):
    """A scripted model whose tokens are billed as they are generated."""

    instant: Any
    bill: Path

    def _generate(self, *arguments: Any, **settings: Any) -> Any:
        self.instant()
        result = super()._generate(*arguments, **settings)
        tokens = result.generations[0].message.usage_metadata["output_tokens"]
        self._charge(tokens // 2)
        self.instant()
        self._charge(tokens - tokens // 2)
        self.instant()
        return result

    def _charge(self, tokens: int) -> None:
        with self.bill.open("a") as bill:
            bill.write(f"{self.name} {tokens}\n")


@dataclass(frozen=True)
class World:
    """One problem: how many steps it has, what they score, who routes, what may be spent."""

    number: int
    policy: str
    steps: int
    large_tokens: int | None
    poor: frozenset[int] = field(default_factory=frozenset)
    ahead: bool = False
    """Whether the small model writes ahead; the run is an asynchronous one then."""

    def text(self, writer: str, step: int) -> str:
        """Every text differs, so that a step lost, doubled or out of order is seen."""
        words = " ".join(f"w{word}" for word in range((self.number + step) % 6))
        end = f" so \\boxed{{{writer}}}" if step == self.steps - 1 else ""
        return f"{writer} writes {step} {words}{end}".replace("  ", " ")

    def script(self, writer: str) -> Callable[[str], str]:
        def rest(prefix: str) -> str:
            done = sum(bool(piece.strip()) for piece in prefix.split("\n\n"))
            return "\n\n".join(self.text(writer, step) for step in range(done, self.steps))

        return rest

    def score(self, step: ScorableStep, index: int) -> float:
        return 0.1 if step.writer == "small" and index in self.poor else 0.9


def chance_of_this_run() -> random.Random:
    """Draws a seed, and prints it: ``TRIM_KILL_SEED`` repeats a run."""
    seed = int(os.environ.get("TRIM_KILL_SEED") or random.SystemRandom().randrange(10**9))
    print(f"TRIM_KILL_SEED={seed}")
    return random.Random(seed)


def draw(chance: random.Random, *, tight: bool) -> World:
    """Draws a world; a tight budget is spent before the solution ends."""
    steps = chance.randint(2, 7)
    return World(
        number=chance.randrange(1000),
        policy=chance.choice(sorted(POLICIES)),
        steps=steps,
        large_tokens=chance.randint(10, 30) if tight else None,
        poor=frozenset(step for step in range(steps) if chance.random() < 0.6),
    )


def attempt(world: World, spec: str, thread: str, bill: Path, instant: Instants) -> dict[str, Any]:
    """Begins the run, or resumes it, in the recommended configuration."""

    def score(question: str, steps: Any) -> list[float]:
        instant()
        return [world.score(step, index) for index, step in enumerate(steps)]

    def model(name: str) -> BilledModel:
        return BilledModel(script=world.script(name), name=name, instant=instant, bill=bill)

    def build(checkpointer: Any) -> Any:
        return create_trim_graph(
            model("small"),
            model("large"),
            scorer,
            policy=POLICIES[world.policy](),
            budget=Budget(large_tokens=world.large_tokens),
            checkpointer=checkpointer,
            max_step_tokens=STEP_TOKENS,
            seed=1,
            lookahead=world.ahead,
        )

    config = {"configurable": {"thread_id": thread}}
    scorer: Any = _Slow(score) if world.ahead else score
    if world.ahead:
        return asyncio.run(_agone_on_with(build, spec, config, instant))
    with open_checkpointer(spec) as checkpointer:
        for method in ("put", "put_writes"):
            setattr(checkpointer, method, _watched(getattr(checkpointer, method), instant))
        graph = build(checkpointer)
        known = graph.get_state(config)
        # Not `next`: it is empty too where a node's writes are stored and the step's checkpoint is not.
        if known.values.get("trim"):
            result = known.values
        else:
            result = graph.invoke(None if known.values else QUESTION, config, durability="sync")
        return _told(result, graph.get_state(config).values)


async def _agone_on_with(build: Any, spec: str, config: Any, instant: Instants) -> dict[str, Any]:
    async with open_checkpointer(spec) as checkpointer:
        for method in ("aput", "aput_writes"):
            setattr(checkpointer, method, _awatched(getattr(checkpointer, method), instant))
        graph = build(checkpointer)
        known = await graph.aget_state(config)
        if known.values.get("trim"):
            result = known.values
        else:
            result = await graph.ainvoke(None if known.values else QUESTION, config, durability="sync")
        return _told(result, (await graph.aget_state(config)).values)


class _Slow:
    """A scorer during whose work the small model writes ahead."""

    def __init__(self, score: Any) -> None:
        self.score = score

    async def ascore(self, question: str, steps: Any) -> Any:
        for _ in range(20):
            await asyncio.sleep(0)
        return self.score(question, steps)


def _told(result: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": result["messages"][-1].text,
        "messages": len(result["messages"]),
        "steps": [step["text"] for step in values["steps"]],
        "decisions": values["decisions"],
        "scores": values["scores"],
        "trim": result["trim"],
    }


def _awatched(method: Any, instant: Instants) -> Any:
    async def call(*arguments: Any, **settings: Any) -> Any:
        instant()
        result = await method(*arguments, **settings)
        instant()
        return result

    return call


def _watched(method: Any, instant: Instants) -> Any:
    def call(*arguments: Any, **settings: Any) -> Any:
        instant()
        result = method(*arguments, **settings)
        instant()
        return result

    return call


@dataclass
class Outcome:
    """Totals of a run, over all its processes."""

    kills: int
    instants: int
    """That the last process passed."""
    result: dict[str, Any]
    billed: dict[str, int]


def run(world: World, spec: str, thread: str, folder: Path, kill_at: list[int]) -> Outcome:
    """Runs a world, killed at one instant after the other, each counted from where it was resumed.

    Args:
        world: What is run.
        spec: Of the checkpointer.
        thread: Its thread.
        folder: For the bill and the result.
        kill_at: The instants, from 1; one that lies beyond the end of the run kills nothing.

    Raises:
        RuntimeError: A process failed; its traceback is on stderr.
    """
    bill, out = folder / f"{thread}.bill", folder / f"{thread}.json"
    kills = 0
    for last in [*kill_at, None]:
        child = os.fork()
        if child == 0:
            _child(world, spec, thread, bill, out, Instants(last))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the process ended with {status}")
        kills += status == -signal.SIGKILL
        if status == 0:
            break
    reported = json.loads(out.read_text())
    billed = {"small": 0, "large": 0}
    for line in bill.read_text().splitlines():
        name, tokens = line.split()
        billed[name] += int(tokens)
    return Outcome(kills, reported["instants"], reported["result"], billed)


def _child(world: World, spec: str, thread: str, bill: Path, out: Path, instant: Instants) -> None:
    import traceback

    status = 1
    try:
        result = attempt(world, spec, thread, bill, instant)
        out.write_text(json.dumps({"instants": instant.passed, "result": result}))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def check_text(world: World, reported: Outcome, whole: Outcome) -> None:
    """The killed run ends as the whole one does, step by step."""
    for key in ("text", "messages", "steps", "decisions", "scores"):
        assert reported.result[key] == whole.result[key], (key, world)
    assert reported.result["trim"]["answer"] == whole.result["trim"]["answer"]
    assert reported.result["trim"]["stopped"] == "finished"


def check_bill(world: World, reported: Outcome) -> None:
    """Nothing that was generated is missing from the summary, and a crash costs at most one step."""
    trim = reported.result["trim"]
    charged = (
        trim["tokens"]["large"] + trim["tokens"]["large_discarded"] + trim["tokens"]["large_unaccounted"]
    )
    assert reported.billed["large"] <= charged, world
    said = [note for note in trim["notes"] if "cut off by a crash" in note]
    assert bool(said) == bool(trim["tokens"]["large_unaccounted"]), world
    assert len(said) <= reported.kills
    if world.large_tokens is not None:
        assert charged <= world.large_tokens, world
        assert reported.billed["large"] <= world.large_tokens + reported.kills * STEP_TOKENS


def kill_at_random(chance: random.Random, spec: str, folder: Path, count: int) -> int:
    """Kills runs until so many processes were killed; most once, some up to four times."""
    done = number = 0
    while done < count:
        number += 1
        tight = chance.random() < 0.4
        world = draw(chance, tight=tight)
        whole = run(world, spec, f"{number}-whole", folder, [])
        # A resumed run is killed again soon: a call that a crash cut off is cut off once more.
        instants = [chance.randint(1, whole.instants)]
        instants += [chance.randint(1, 6) for _ in range(chance.choice((0, 1, 3)))]
        reported = run(world, spec, f"{number}-killed", folder, instants)
        if not tight:
            check_text(world, reported, whole)
        check_bill(world, reported)
        done += reported.kills
    return done
