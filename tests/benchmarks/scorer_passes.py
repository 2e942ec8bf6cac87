"""What a scorer's passes cost: one a step over a long solution, and many runs that are scored together.

``TRIM_VLLM_PYTHON=... python -m tests.benchmarks.scorer_passes [--json FILE]`` prints two tables. The first
scores a solution step by step, as a run does, on vLLM servers with and without prefix caching: tokens sent,
those of them that the server took from its cache (by its metrics), seconds. The second has 64 runs at once,
and counts what their passes are sent as: requests to a vLLM server, batches in this process.

Two scorers: the PRM of the examples (two-layer head; LAST by the plugin, where trim-graph is installed beside
that vLLM), and a random Qwen2 of 4 layers and 256 hidden units in the layout of ``trim-graph train scorer``.
``--only NAME ...`` takes some of the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx

from tests.vllm.conftest import STARTED_WITHIN, start_server, stop_servers, wait_for
from trim_graph import ScorableStep, create_trim_graph
from trim_graph.adapters import TransformersProcessReward, VLLMProcessReward, serve_options
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.heads import linear_scorer
from trim_graph.adapters.prm.scorer_file import ScorerFile
from trim_graph.adapters.vllm.client import VLLMServer
from trim_graph.examples.arithmetic import PRM, problems
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

LENGTHS = (10, 30, 100, 200)
"""Steps of a solution. The PRM of the examples has 2048 positions, which 200 steps do not fit."""
RUNS = 64
_CACHE = "--enable-prefix-caching"
_NO_CACHE = "--no-enable-prefix-caching"
_CACHED = re.compile(r"^vllm:prefix_cache_hits_total\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """A server: its name in the table, its weights, and the arguments that decide how it pools."""

    name: str
    weights: Path
    options: list[str]


def variants(folder: Path) -> list[Variant]:
    """The servers; ``folder`` gets the weights of the random scorer."""
    tokenizer = load_tokenizer(str(PRM))
    step = serve_options("qwen", tokenizer=tokenizer)
    every = ["--runner", "pooling", "--pooler-config", json.dumps({"pooling_type": "ALL"})]
    last = serve_options("qwen", tokenizer=tokenizer, plugin=True)
    scorer = random_scorer(folder)
    linear = serve_options("trim", tokenizer=tokenizer)
    pooler = {"pooling_type": "STEP", "step_tag_id": tokenizer.eos_token_id, "task": "token_classify"}
    tags = ["--runner", "pooling", "--convert", "classify", "--pooler-config", json.dumps(pooler)]
    return [
        Variant("PRM STEP", PRM, step),
        Variant(f"PRM STEP {_CACHE}", PRM, [*step, _CACHE]),
        Variant(f"PRM ALL {_CACHE}", PRM, [*every, _CACHE]),
        Variant(f"PRM LAST {_NO_CACHE}", PRM, [*last, _NO_CACHE]),
        Variant("PRM LAST", PRM, last),
        Variant("random STEP", scorer, tags),
        Variant(f"random LAST {_NO_CACHE}", scorer, [*linear, _NO_CACHE]),
        Variant("random LAST", scorer, linear),
    ]


def random_scorer(folder: Path) -> Path:
    """A scorer whose passes take a while, with the tokenizer of the examples."""
    import torch
    from transformers import Qwen2Config

    tokenizer = load_tokenizer(str(PRM))
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="float32",
        id2label={0: "right"},
        label2id={"right": 0},
    )
    linear_scorer(config)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tag = str(tokenizer.eos_token)
    ScorerFile(step_token=tag, base="random", tuning="full", method="none").write(folder)
    return folder


@contextmanager
def served(weights: Path, options: list[str]) -> Iterator[str]:
    """A PRM server; gives its address."""
    python = os.environ.get("TRIM_VLLM_PYTHON", "")
    if not Path(python).is_file():
        raise SystemExit(f"TRIM_VLLM_PYTHON={python!r}: name the python of an environment with vLLM")
    with tempfile.TemporaryDirectory(prefix="trim-vllm-") as logs:
        server = start_server(python, "prm", weights, tuple(options), None, Path(logs) / "prm.log")
        try:
            wait_for(server, time.monotonic() + STARTED_WITHIN)
            yield server.url
        finally:
            stop_servers(server)


def solution(steps: int) -> tuple[str, list[dict[str, Any]]]:
    """A question and right steps of several problems, the shortest: of 100 the PRM holds all tokens."""
    found = problems("standard", 200, seed=5)
    texts = sorted({step for problem in found for step in problem.steps}, key=len)[:steps]
    return found[0].question, [ScorableStep(text) for text in texts]


def cached_tokens(url: str) -> int:
    """Prompt tokens that the server has taken from its cache since it started."""
    found = _CACHED.search(httpx.get(url.replace("/v1", "/metrics")).text)
    return int(float(found.group(1))) if found else 0


def step_by_step(name: str, url: str, local: TransformersProcessReward) -> list[dict[str, Any]]:
    """Scores growing solutions, one pass a step."""
    rows = []
    scorer = VLLMProcessReward("prm", base_url=url, tokenizer=local.model)
    scorer.score(*solution(1))
    for steps in LENGTHS if name.startswith("random") else LENGTHS[:-1]:
        question, records = solution(steps)
        question = f"{steps}: {question}"  # else the cache held the first steps already
        before, begun, read = cached_tokens(url), time.monotonic(), 0
        passes = []
        for count in range(1, steps + 1):
            begun_pass = time.monotonic()
            reply = scorer.score(question, records[:count])
            passes.append(time.monotonic() - begun_pass)
            read += reply.input_tokens
        took = time.monotonic() - begun
        expected = local.score(question, records)
        apart = max(abs(a - b) for a, b in zip(reply.scores, expected.scores, strict=True))
        rows.append(
            {
                "server": name,
                "steps": steps,
                "tokens_of_the_whole": expected.input_tokens,
                "tokens_read": read,
                "tokens_cached": cached_tokens(url) - before,
                "seconds": took,
                "first_pass_ms": passes[0] * 1000,
                "last_pass_ms": sum(passes[-5:]) / 5 * 1000,
                "largest_difference": apart,
            }
        )
    return rows


class _Counted(VLLMProcessReward):
    """Notes how many solutions each request holds."""

    sizes: ClassVar[list[int]] = []

    async def _send(self, server: VLLMServer, inputs: list[Any]) -> list[Any]:
        self.sizes.append(len(inputs))
        return await super()._send(server, inputs)


@dataclass
class Together:
    """What the passes of many runs were sent as."""

    scorer: str
    passes: int
    batches: int


def _run_all(scorer: Any) -> None:
    (problem,) = problems("standard", 1, seed=11)
    script = list(problem.steps)
    model = ScriptedChatModel(script=script)
    graph = create_trim_graph(model, model, scorer, policy=threshold(0.0), max_steps=len(script))
    questions = [{"messages": [("user", problem.question)]}] * RUNS

    async def ask() -> None:
        states = await graph.abatch(questions)
        assert all(state["trim"]["steps"]["small"] == len(script) for state in states)

    asyncio.run(ask())


def together_vllm(name: str, url: str) -> Together:
    """64 runs at once, scored by a server."""
    scorer = _Counted("prm", base_url=url)
    scorer.score(*solution(1))
    scorer.sizes.clear()
    _run_all(scorer)
    return Together(f"vllm_prm, {name}", sum(scorer.sizes), len(scorer.sizes))


def together_here(local: TransformersProcessReward) -> Together:
    """64 runs at once, scored in this process."""
    engine = local._load()[0]
    run, sizes = engine.worker._run, []

    def counted(batch: list[Any]) -> None:
        sizes.append(len(batch))
        run(batch)

    engine.worker._run = counted  # type: ignore[method-assign]
    _run_all(local)
    return Together("transformers_prm", sum(sizes), len(sizes))


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Cost of a scorer's passes.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="servers of the table, by name")
    given = parser.parse_args(arguments)
    rows, together = [], []
    with tempfile.TemporaryDirectory(prefix="trim-scorer-") as folder:
        for one in variants(Path(folder)):
            if given.only and one.name not in given.only:
                continue
            local = TransformersProcessReward(str(one.weights), max_batch_size=RUNS)
            with served(one.weights, one.options) as url:
                rows += step_by_step(one.name, url, local)
                if one.name in ("PRM STEP", "PRM LAST"):
                    together.append(together_vllm(one.name, url))
    together.append(together_here(TransformersProcessReward(str(PRM), max_batch_size=RUNS)))
    print(f"{datetime.now(UTC).date()}  two scorers on {os.cpu_count()} CPU cores, vLLM beside the caller")
    print("| server | steps | tokens at the end | sent in all | cached | s | first pass, ms | last, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        counts = [row[n] for n in ("steps", "tokens_of_the_whole", "tokens_read", "tokens_cached")]
        times = [f"{row['seconds']:.2f}", f"{row['first_pass_ms']:.1f}", f"{row['last_pass_ms']:.1f}"]
        print("|", " | ".join([row["server"], *map(str, counts), *times]), "|")
    print(f"largest difference from transformers: {max(row['largest_difference'] for row in rows):.1e}")
    print(f"\n{RUNS} runs at once")
    print("| scorer | passes | sent as | passes in each |")
    print("|---|---|---|---|")
    for one in together:
        print(f"| {one.scorer} | {one.passes} | {one.batches} | {one.passes / one.batches:.1f} |")
    if given.json:
        results = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}
        results |= {"runs": RUNS, "together": [vars(one) for one in together]}
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
