"""The loop that research code uses: all questions advance one step together, a batch for each phase.

All drafts, then all scores, then all regenerations; each phase waits for its slowest answer. What the prompts
begin with is rendered before the clock starts, since research code renders them in its own process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from langchain_core.messages import HumanMessage

from trim_graph.adapters.prm.formats import PRMFormat, PRMInput
from trim_graph.adapters.prm.scores import read_pooled
from trim_graph.conversation import DEFAULT_INSTRUCTION, compose
from trim_graph.segmentation import DEFAULT_DELIMITER, is_step

from .ways import MAX_STEP_TOKENS, MAX_STEPS, THRESHOLD, Solved, Written, prefix_of


class Batches(Protocol):
    """Answers a batch at a time."""

    async def write(self, writer: str, prompts: list[Any]) -> list[Written]:
        """Has one model write one step for each prompt."""
        ...

    async def score(self, asked: list[tuple[str, list[str]]]) -> list[float]:
        """Has the PRM rate the last of each question's steps."""
        ...


@dataclass(slots=True)
class _Question:
    text: str
    heads: dict[str, Any]
    """What each writer's prompts begin with."""
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    first: float | None = None
    seconds: float = 0.0

    @property
    def prefix(self) -> str:
        return prefix_of(self.texts)


async def solve_all(
    questions: Sequence[str],
    heads: Sequence[dict[str, Any]],
    batches: Batches,
    join: Callable[[str, Any, str], Any],
) -> list[Solved]:
    """Solves questions in lock-step.

    Args:
        questions: All of them advance together; those that have ended leave the batch.
        heads: What each writer's prompts begin with, by question.
        batches: Answers.
        join: Makes a prompt of writer, head and accepted steps.
    """
    begun = time.perf_counter()
    everyone = [_Question(text, head) for text, head in zip(questions, heads, strict=True)]
    live = everyone
    while live:
        drafts = await batches.write("small", [join("small", q.heads["small"], q.prefix) for q in live])
        steps = dict(zip(map(id, live), drafts, strict=True))
        scored = [q for q in live if is_step(steps[id(q)].text)]
        asked = [(q.text, [*q.texts, steps[id(q)].text]) for q in scored]
        rated = zip(scored, await batches.score(asked) if asked else [], strict=True)
        again = [q for q, score in rated if score < THRESHOLD]
        for q in live:
            q.tokens += steps[id(q)].tokens
        if again:
            prompts = [join("large", q.heads["large"], q.prefix) for q in again]
            for q, written in zip(again, await batches.write("large", prompts), strict=True):
                q.tokens += written.tokens
                steps[id(q)] = written
        now, going = time.perf_counter() - begun, []
        for q in live:
            written = steps[id(q)]
            q.seconds = now
            if is_step(written.text):
                q.texts.append(written.text)
                q.first = q.first or now
                if not written.ended and len(q.texts) < MAX_STEPS:
                    going.append(q)
        live = going
    return [
        Solved(DEFAULT_DELIMITER.join(q.texts), len(q.texts), q.tokens, q.seconds, q.first or q.seconds)
        for q in everyone
    ]


class ServerBatches:
    """One HTTP request a phase: the completions endpoint takes a list of prompts, ``/pooling`` one of inputs.

    Args:
        client: Without a limit on time.
        roots: The servers' addresses by model.
        keys: Their keys.
        further: Fields of every request for text.
        layout: Of the PRM.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        roots: dict[str, str],
        keys: dict[str, str],
        further: dict[str, Any],
        layout: PRMFormat,
    ) -> None:
        self._client, self._roots, self._keys, self._further = client, roots, keys, further
        self._layout = layout

    async def write(self, writer: str, prompts: list[str]) -> list[Written]:
        """One request."""
        body = {
            "model": writer,
            "prompt": prompts,
            "max_tokens": MAX_STEP_TOKENS,
            "temperature": 0.0,
            "stop": [DEFAULT_DELIMITER],
            "add_special_tokens": False,
            "return_token_ids": True,
            **self._further,
        }
        answer = await self._post(writer, "/v1/completions", body)
        return [
            Written(choice["text"], choice["stop_reason"] is None, len(choice["token_ids"]))
            for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
        ]

    async def score(self, asked: list[tuple[str, list[str]]]) -> list[float]:
        """One request."""
        inputs = [self._layout.encode(*one) for one in asked]
        ids = [one.ids for one in inputs]
        body = {"model": "prm", "task": "token_classify", "use_activation": True, "input": ids}
        answer = await self._post("prm", "/pooling", body)
        rows = [entry["data"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]
        return _last_scores(rows, inputs, self._layout)

    async def _post(self, name: str, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self._keys[name]}"} if name in self._keys else {}
        response = await self._client.post(self._roots[name] + path, json=body, headers=headers)
        response.raise_for_status()
        return response.json()


class EngineBatches:
    """All prompts of a phase are given to the engine at once, as vLLM's ``LLM.generate`` does.

    Args:
        generate: By writer: from a prompt's token ids to the step.
        encode: From token ids to the PRM's rows.
        layout: Of the PRM.
        run: Runs a coroutine on the event loop that the engines live on.
    """

    def __init__(
        self,
        generate: dict[str, Callable[[list[int]], Awaitable[Written]]],
        encode: Callable[[list[int]], Awaitable[Any]],
        layout: PRMFormat,
        run: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._generate, self._encode, self._layout, self._run = generate, encode, layout, run

    async def write(self, writer: str, prompts: list[list[int]]) -> list[Written]:
        """One batch."""
        return await self._run(_all(self._generate[writer], prompts))

    async def score(self, asked: list[tuple[str, list[str]]]) -> list[float]:
        """One batch."""
        inputs = [self._layout.encode(*one) for one in asked]
        rows = await self._run(_all(self._encode, [one.ids for one in inputs]))
        return _last_scores(rows, inputs, self._layout)


async def _all(ask: Callable[[list[int]], Awaitable[Any]], given: list[list[int]]) -> list[Any]:
    return list(await asyncio.gather(*map(ask, given)))


def _last_scores(rows: Sequence[Any], inputs: Sequence[PRMInput], layout: PRMFormat) -> list[float]:
    pairs = zip(rows, inputs, strict=True)
    return [read_pooled(row, one, layout.head, at="the PRM", fix="")[-1] for row, one in pairs]


def conversation(question: str) -> Any:
    """What both writers are asked before there is a step."""
    return compose([HumanMessage(question)], DEFAULT_INSTRUCTION, "")
