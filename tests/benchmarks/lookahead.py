"""What lookahead saves, and what it costs: latency a question with it and without, small tokens thrown away.

``python -m tests.benchmarks.lookahead [--json FILE]`` runs the example models in this process and, where
``TRIM_VLLM_PYTHON`` names a Python with vLLM, behind real vLLM servers; ``waiting`` has no models at all,
only their waiting, a draft and a score of 100 ms each: what the graph itself makes of lookahead. Each line
asks the same questions with lookahead and without, in turns; ``same`` says how many answers agree.
``scorer``: ``here`` it shares the machine's cores with the small model; ``away`` each of its answers takes
``--delay`` seconds more, as if it were on another machine: that time is added, by a proxy before the real
server or by waiting before the real scorer, and uses no core. ``draft`` and ``score`` are the medians of the
calls without lookahead; ``off``, ``on`` and ``ratio`` come from the least of each question's rounds,
``quartiles`` are those of all ratios of neighbouring runs, and ``through`` is the ratio of what gets done in
a second.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackHandler

from tests.fault_proxy import FaultProxy
from trim_graph import create_trim_graph
from trim_graph.adapters import ChatTransformers, ChatVLLM, TransformersProcessReward, VLLMProcessReward
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.policies import large_only, threshold
from trim_graph.testing import ScriptedChatModel

THRESHOLDS = (0.0, 0.5, 0.98)
KINDS = ("waiting", "transformers", "vllm")
WORDS, TOKEN_S = 20, 0.005
"""Of a step, where nothing but waiting is measured."""
CONCURRENCY = (1, 16)


class Away:
    """A scorer whose answers take longer, by waiting."""

    def __init__(self, scorer: Any, seconds: float) -> None:
        self._scorer, self._seconds = scorer, seconds

    def score(self, question: str, steps: Any) -> Any:
        return self._scorer.score(question, steps)

    async def ascore(self, question: str, steps: Any) -> Any:
        await asyncio.sleep(self._seconds)
        return await self._scorer.ascore(question, steps)


class Timed(Away):
    """A scorer whose calls are timed."""

    def __init__(self, scorer: Any) -> None:
        super().__init__(scorer, 0)
        self.seconds: list[float] = []

    async def ascore(self, question: str, steps: Any) -> Any:
        begun = time.monotonic()
        answer = await self._scorer.ascore(question, steps)
        self.seconds.append(time.monotonic() - begun)
        return answer


class Drafts(AsyncCallbackHandler):
    """Times the calls of the small model."""

    def __init__(self) -> None:
        self._begun: dict[Any, float] = {}
        self.seconds: list[float] = []

    async def on_chat_model_start(self, *_: Any, run_id: Any, tags: Any = None, **__: Any) -> None:
        if "trim:small" in (tags or ()):
            self._begun[run_id] = time.monotonic()

    async def on_llm_end(self, *_: Any, run_id: Any, **__: Any) -> None:
        if run_id in self._begun:
            self.seconds.append(time.monotonic() - self._begun.pop(run_id))


async def asked(graph: Any, questions: list[str], concurrency: int, callbacks: list[Any]) -> dict[str, Any]:
    """Asks all questions, so many at once."""
    gate, seconds = asyncio.Semaphore(concurrency), []

    async def one(question: str) -> dict[str, Any]:
        async with gate:
            begun = time.monotonic()
            result: dict[str, Any] = await graph.ainvoke(
                {"messages": [("user", question)]}, {"callbacks": callbacks}
            )
            seconds.append(time.monotonic() - begun)
            return result

    begun = time.monotonic()
    results = await asyncio.gather(*map(one, questions))
    return {"seconds": seconds, "wall": time.monotonic() - begun, "results": results}


async def cell(
    parts: tuple[Any, Any, Any], t: float, concurrency: int, count: int, rounds: int
) -> dict[str, Any]:
    """Measures one line of the table: the arms take turns at every question, or at as many as go at once."""
    small, large, scorer = parts
    timed, drafts = Timed(scorer), Drafts()
    graphs = {
        False: create_trim_graph(small, large, timed, policy=threshold(t)),
        True: create_trim_graph(small, large, scorer, policy=threshold(t), lookahead=True),
    }
    questions = [problem.question for problem in problems("standard", count, part="test", seed=7)]
    for graph in graphs.values():
        await asked(graph, questions[:concurrency], concurrency, [])
    timed.seconds.clear()
    reported: dict[bool, list[list[dict[str, Any]]]] = {on: [] for on in graphs}
    for number in range(rounds):
        for arm in reported.values():
            arm.append([])
        for start in range(0, count, concurrency):
            together = questions[start : start + concurrency]
            # Each arm goes first as often as the other: the machine may not be quiet.
            for on in (False, True) if number % 2 == 0 else (True, False):
                one = await asked(graphs[on], together, concurrency, [] if on else [drafts])
                reported[on][-1].append(one)
    return metrics(reported, timed.seconds, drafts.seconds) | {"t": t, "concurrency": concurrency}


def metrics(
    reported: dict[bool, list[list[dict[str, Any]]]], scores: list[float], drafts: list[float]
) -> dict[str, Any]:
    """Sum up both arms.

    A latency is the least of a question's rounds: what else the machine does only adds to it.
    """

    def results(on: bool) -> list[dict[str, Any]]:
        return [result for one in reported[on] for group in one for result in group["results"]]

    def total(on: bool, name: str) -> int:
        return sum(result["trim"]["tokens"].get(name, 0) for result in results(on))

    def mean(group: dict[str, Any]) -> float:
        return statistics.fmean(group["seconds"])

    def latency(on: bool) -> float:
        return statistics.fmean(min(map(mean, groups)) for groups in zip(*reported[on], strict=True))

    def wall(on: bool) -> float:
        return sum(min(group["wall"] for group in groups) for groups in zip(*reported[on], strict=True))

    decisions = [pair for result in results(False) for pair in result["trim"]["decisions"].items()]
    accepted = sum(count for decision, count in decisions if decision == "accept")
    small = total(False, "small") + total(False, "small_discarded")
    ratios = [
        mean(off) / mean(on)
        for one, other in zip(reported[False], reported[True], strict=True)
        for off, on in zip(one, other, strict=True)
    ]
    texts = [[result["messages"][-1].text for result in results(on)] for on in (False, True)]
    return {
        "accepted": accepted / sum(count for _, count in decisions),
        "draft_ms": 1000 * statistics.median(drafts),
        "score_ms": 1000 * statistics.median(scores),
        "off_s": latency(False),
        "on_s": latency(True),
        "ratio": latency(False) / latency(True),
        "quartiles": statistics.quantiles(ratios, n=4),
        "throughput_ratio": wall(False) / wall(True),
        "extra_small_tokens": (total(True, "small") + total(True, "small_discarded") - small) / small,
        "unaccounted_tokens": total(True, "lookahead_unaccounted"),
        "same_answers": sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0]),
    }


class Waiting(ScriptedChatModel):
    """No model: waits `TOKEN_S` a word of a script."""

    takes_stop_when: ClassVar[bool] = True

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        ended = kwargs.get("stop_when") or (lambda text: False)
        for words in range(1, WORDS + 1):
            await asyncio.sleep(TOKEN_S)
            if ended("word " * words):
                break
        return self._generate(messages, stop, **kwargs)


class WaitingScorer:
    """No scorer: waits as long as a draft takes, and draws a score from the text."""

    def score(self, question: str, steps: Any) -> list[float]:
        return [
            int(hashlib.sha256((question + step).encode()).hexdigest()[:4], 16) / 0xFFFF for step in steps
        ]

    async def ascore(self, question: str, steps: Any) -> list[float]:
        await asyncio.sleep(WORDS * TOKEN_S)
        return self.score(question, steps)


@contextmanager
def waiting(delay: float) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
    """Nothing but waiting: what the graph makes of a draft and a score that take equally long."""

    def script(writer: str) -> list[str]:
        return [f"{writer} {step} " + "word " * (WORDS - 3) for step in range(8)]

    small, large = (Waiting(script=script(writer), name=writer) for writer in ("small", "large"))
    yield {"away": (small, large, WaitingScorer())}


@contextmanager
def in_process(delay: float) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
    """The example models in this process."""
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    scorer = TransformersProcessReward(PRM)
    yield {"here": (small, large, scorer), "away": (small, large, Away(scorer, delay))}


@contextmanager
def on_servers(delay: float) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
    """The example models behind vLLM servers of this machine."""
    from tests.vllm.conftest import KEY, KEY_ENV, running_servers

    os.environ[KEY_ENV] = KEY
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers())
        proxy = stack.enter_context(
            FaultProxy(servers["prm"].url.removesuffix("/v1"), then="delay", delay=delay)
        )
        small = ChatVLLM(model="small", base_url=servers["small"].url)
        large = ChatVLLM(model="large", base_url=servers["large"].url, api_key_env=KEY_ENV)
        here = VLLMProcessReward("prm", base_url=servers["prm"].url)
        away = VLLMProcessReward("prm", base_url=proxy.url)
        yield {"here": (small, large, here), "away": (small, large, away)}


HEAD = f"{'models':13}{'scorer':7}{'at once':>8}{'t':>6}{'accepted':>9}{'draft':>8}{'score':>8}"
HEAD += f"{'off':>8}{'on':>8}{'ratio':>7}  {'quartiles':18}{'through':>8}{'small+':>8}{'same':>6}"


def line(models: str, place: str, one: dict[str, Any]) -> str:
    """One line of the table."""
    rounds = " ".join(f"{ratio:.2f}" for ratio in one["quartiles"])
    return (
        f"{models:13}{place:7}{one['concurrency']:>8}{one['t']:>6}{one['accepted']:>9.2f}"
        f"{one['draft_ms']:>6.0f}ms{one['score_ms']:>6.0f}ms{one['off_s']:>7.2f}s{one['on_s']:>7.2f}s"
        f"{one['ratio']:>7.2f}  {rounds:18}{one['throughput_ratio']:>8.2f}{one['extra_small_tokens']:>8.0%}"
        f"{one['same_answers']:>6.0%}"
    )


async def measured(
    models: str, places: dict[str, tuple[Any, Any, Any]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measures all lines of one kind of models."""
    lines = []
    small, large, scorer = next(iter(places.values()))
    # The large model's weights are loaded, and its server is asked once, before anything is timed.
    await asked(create_trim_graph(small, large, scorer, policy=large_only()), ["What is 1 + 1?"], 1, [])
    for place in (place for place in args.scorer if place in places):
        for concurrency in args.at_once:
            count = args.questions if concurrency == 1 else 2 * concurrency
            for t in (0.0, 0.2, 0.5) if models == "waiting" else THRESHOLDS:
                one = await cell(places[place], t, concurrency, count, args.rounds)
                print(line(models, place, one), flush=True)
                lines.append({"models": models, "scorer": place, "questions": count, **one})
    return lines


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--questions", type=int, default=6, help="of each cell; at least 32 at 16 at once")
    parser.add_argument("--rounds", type=int, default=4, help="of both arms")
    parser.add_argument("--delay", type=float, default=0.06, help="seconds on the way to a scorer away")
    parser.add_argument("--models", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--at-once", nargs="*", type=int, default=list(CONCURRENCY))
    parser.add_argument("--scorer", nargs="*", default=["here", "away"], choices=["here", "away"])
    args = parser.parse_args()
    reported: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
        "delay_s": args.delay,
        "lines": [],
    }
    print(f"{reported['date']}  {reported['machine']}  load {reported['load_before']:.1f}\n{HEAD}")
    for models, made in (("waiting", waiting), ("transformers", in_process), ("vllm", on_servers)):
        if models not in args.models:
            continue
        if models == "vllm" and not os.environ.get("TRIM_VLLM_PYTHON"):
            print("vllm: not measured, TRIM_VLLM_PYTHON names no Python that has vLLM")
            continue
        with made(args.delay) as places:
            reported["lines"] += asyncio.run(measured(models, places, args))
    reported["load_after"] = os.getloadavg()[0]
    print(f"load {reported['load_after']:.1f}")
    if args.json:
        args.json.write_text(json.dumps(reported, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
