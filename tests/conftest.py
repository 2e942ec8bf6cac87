"""A rig: two scripted models, a scripted scorer, and the graph that routes between them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis  # here, or its plugin does at the very end, where Python 3.11 fails to parse it
import pytest
from langchain_core.messages import BaseMessage, HumanMessage

from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

# On a busy machine any example may take long; what must be fast has a test of its own.
hypothesis.settings.register_profile("tests", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("tests")

SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
QUESTION = "What is 2 + 2?"


@dataclass
class Rig:
    """One graph and the models it was built from."""

    small: Any
    large: Any
    scorer: Any
    graph: Any

    def ask(self, question: str = QUESTION, config: Any = None, **options: Any) -> dict[str, Any]:
        return self.graph.invoke({"messages": [HumanMessage(question)]}, config, **options)

    async def aask(self, question: str = QUESTION, config: Any = None, **options: Any) -> dict[str, Any]:
        return await self.graph.ainvoke({"messages": [HumanMessage(question)]}, config, **options)

    def solve(self, *, asynchronously: bool, **options: Any) -> dict[str, Any]:
        return asyncio.run(self.aask(**options)) if asynchronously else self.ask(**options)

    @property
    def unasked(self) -> bool:
        return not (self.small.calls or self.large.calls)

    def prompts(self, writer: str) -> list[list[BaseMessage]]:
        return [call["messages"] for call in getattr(self, writer).calls]

    def steps(self, question: str = QUESTION, **options: Any) -> list[dict[str, Any]]:
        """The accepted steps, as the events of a run report them."""
        stream = self.graph.stream({"messages": [HumanMessage(question)]}, stream_mode="custom", **options)
        return [event for event in stream if event["event"] == "accepted"]


def build(
    small: Any = SMALL,
    large: Any = LARGE,
    scores: dict[str, float] | None = None,
    *,
    scorer: Any = "scripted",
    policy: Any = None,
    **settings: Any,
) -> Rig:
    """Builds a rig; by default ``small two`` scores 0.1 and everything else 1.0, under ``threshold(0.5)``."""
    if scorer == "scripted":
        scorer = ScriptedScorer({"small two": 0.1} if scores is None else scores)

    def model(given: Any, name: str) -> Any:
        scripted = isinstance(given, list) or (callable(given) and not hasattr(given, "invoke"))
        return ScriptedChatModel(script=given, name=name) if scripted else given

    small, large = model(small, "tiny"), model(large, "huge")
    graph = create_trim_graph(small, large, scorer, policy=policy or threshold(0.5), **settings)
    return Rig(small, large, scorer, graph)


@pytest.fixture(scope="session")
def make() -> Callable[..., Rig]:
    return build


@pytest.fixture
def rig() -> Rig:
    return build()


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and so would the commands under test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(Path(__file__).parent))
    from no_skips import register

    register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # They take longest, so another process does the rest meanwhile.
    items.sort(key=lambda item: Path(__file__).parent / "vllm" not in item.path.parents)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from by_folder import ByFolder

    return ByFolder(config, log)
