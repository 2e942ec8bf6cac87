"""What is examined: a chat model or a scorer of a configuration, and what the checks find out on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trim_graph.adapters.continue_by_prompt import ContinueByPrompt, as_writer
from trim_graph.adapters.vllm_server import VLLMServer, check_base_url
from trim_graph.budget import Budget
from trim_graph.config_schema import FileSettings

from .samples import Sample

T = TypeVar("T")


@dataclass(slots=True)
class Subject:
    """A part under examination.

    Attributes:
        part: ``small``, ``large`` or ``scorer``.
        entry: Its mapping in the configuration; of a replica, with its own address alone.
        adapter: The chat model or scorer, which tries each call once.
        server: The server behind it; None for what runs in this process or elsewhere.
        settings: Of a run.
        budget: Of a run.
        timeout: Most seconds for a check.
        served: What the server tells of the model.
        unauthorised: What it said when it refused the key.
        samples: Questions with steps that this model can read.
        seconds: Median time of a shortest call.
        tokens_per_second: Speed of writing.
        scores: What the scorer gave for right and for wrong steps.
        known: Anything else that a later check needs.
        replica: Whether it is one of several replicas.
    """

    part: str
    entry: Any
    adapter: Any
    server: VLLMServer | None
    settings: FileSettings
    budget: Budget
    timeout: float
    served: dict[str, Any] = field(default_factory=dict)
    unauthorised: str = ""
    samples: tuple[Sample, ...] = ()
    seconds: float | None = None
    tokens_per_second: float | None = None
    scores: tuple[list[float], list[float]] | None = None
    known: dict[str, Any] = field(default_factory=dict)
    replica: bool = False

    @property
    def name(self) -> str:
        """What findings call it: the part, and which of its replicas."""
        return f"{self.part} at {self.on_server.root}" if self.replica else self.part

    @property
    def by_prompt(self) -> bool:
        """Whether it is asked by prompt for each step."""
        return isinstance(self.adapter, ContinueByPrompt)

    @property
    def on_server(self) -> VLLMServer:
        """The server, for checks that run only where there is one."""
        assert self.server is not None
        return self.server


def subjects_of(
    part: str, entry: Any, settings: FileSettings, budget: Budget, timeout: float
) -> list[Subject]:
    """Make what is examined of a part: each replica where ``base_url`` lists several; see `subject_of`."""
    urls = getattr(entry, "base_url", None)
    if not isinstance(urls, list):
        return [subject_of(part, entry, settings, budget, timeout)]
    single = [entry.model_copy(update={"base_url": url}) for url in urls]
    subjects = [subject_of(part, one, settings, budget, timeout) for one in single]
    for subject in subjects:
        subject.replica = len(subjects) > 1
    return subjects


def subject_of(part: str, entry: Any, settings: FileSettings, budget: Budget, timeout: float) -> Subject:
    """Make the adapter of a part, impatient, and find its server.

    Raises:
        ValueError: The adapter refuses its settings.
        ImportError: What it needs is not installed.
    """
    # The entry's own read_timeout is judged against the speed that is seen.
    patience = {"max_retries": 0, "read_timeout": timeout}
    hasty = entry.model_copy(update={k: v for k, v in patience.items() if hasattr(entry, k)})
    # As a run has it: a model that cannot carry on a text is asked by prompt.
    adapter = hasty.build() if part == "scorer" else as_writer(hasty.build(part), settings.delimiter)
    server = None
    if entry.type in ("vllm", "vllm_prm"):
        server = VLLMServer(
            root=check_base_url(entry.base_url),
            api_key_env=entry.api_key_env,
            read_timeout=timeout,
            max_retries=0,
        )
    return Subject(part, entry, adapter, server, settings, budget, timeout)


async def in_thread(work: Callable[[], T]) -> T:
    """Run what blocks in a daemon thread, which a time limit may leave behind without hanging the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def main() -> None:
        try:
            outcome: Any = work()
            set_it: Callable[[Any], None] = done.set_result
        except BaseException as error:
            outcome, set_it = error, done.set_exception
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, set_it, outcome)

    threading.Thread(target=main, name="trim-graph doctor", daemon=True).start()
    return await done
