"""`ShadowProcess`: a shadow whose models, scorer and routing run in a process of their own.

Threads of one Python process share one interpreter lock. A shadow in a thread competes for it with the
application, up to five milliseconds at a time while it computes. With a process of its own the application's
process only writes each drawn answer into a pipe and its record into the file.

The child is ``python -m trim_graph.shadow.process``. It reads lines of JSON from its standard input, first
the settings and then answers, and writes a line for each record. It ends with its input, so also with the
application. A child that ended is started again with the next answer; the answers it had are failures.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.messages import (
    AIMessage,
    convert_to_messages,
    message_to_dict,
    messages_from_dict,
    messages_to_dict,
)
from typing_extensions import Unpack

from trim_graph.budget import Quota
from trim_graph.config import TrimConfig, make_config
from trim_graph.errors import SettingsError, TrimError
from trim_graph.settings import ShadowKeywords

from .records import Application, RecordSink, error_of
from .runner import ApplicationAnswer, Shadow, ShadowBase, new_record, split_settings
from .worker import ShadowWorker

LONGEST = 2**26
"""Most bytes of one line between the processes."""
NICE = 10
"""By how much the child yields to other processes, where the system knows that."""


class _Nowhere:
    """Takes no record: the process of the application writes them."""

    def write(self, record: Mapping[str, Any]) -> None:
        raise AssertionError("records are written by the application's process")

    def close(self) -> None:
        pass


class ShadowProcess(ShadowBase):
    """A shadow in a process of its own, of the models in a configuration file.

    It is used as a `Shadow`. Functions are named, since they run in the other process.

    Args:
        config: Models, scorer, policy, budget, prices and settings: the path of a YAML file, or what was read
            of one.
        answers: Model that the application answers with; this and the others are as in `Shadow`.
        record: File of the records, or a sink.
        shadow_budget: Limits of all runs together.
        ledger: Spec of the ledger that counts them, as `trim_graph.open_ledger` takes it; default: the
            memory of the child.
        agreement: Function that compares two answers, as ``module:function``.
        grade: Function that says whether an answer is right, as ``module:function``.
        **settings: Fields of `trim_graph.settings.ShadowSettings`, which documents each.

    Raises:
        SettingsError: The configuration or an option is not valid.

    Example:
        ```python
        shadow = ShadowProcess("trim.yaml", answers="large", record="shadow.jsonl", rate=0.1)
        model = shadow.watch(large)
        ```
    """

    def __init__(
        self,
        config: str | Path | TrimConfig,
        *,
        answers: Application,
        record: str | Path | RecordSink,
        shadow_budget: Quota | None = None,
        ledger: str | None = None,
        agreement: str | None = None,
        grade: str | None = None,
        **settings: Unpack[ShadowKeywords],
    ) -> None:
        own, others = split_settings(settings, answers, shadow_budget)
        if others:
            raise TypeError(f"ShadowProcess takes no keyword {', '.join(others)}")
        self.answers, self.text = answers, own.text
        self._settings = {
            "config": _portable(config),
            "answers": answers,
            "shadow_budget": None if shadow_budget is None else shadow_budget.model_dump(mode="json"),
            "ledger": ledger,
            "agreement": agreement,
            "grade": grade,
            "settings": own.model_dump(),
        }
        # Built here too, for its errors: weights are loaded at the first call, which is the child's.
        self.priced = _built({**self._settings, "ledger": None}).priced
        self._worker = ShadowWorker(record, own)
        self._child: _Child | None = None

    @classmethod
    def from_config(cls, config: TrimConfig) -> Self:
        """Builds the shadow that the section ``shadow`` of a configuration describes.

        Args:
            config: The configuration; its ``ledger`` counts the budget of the section.

        Raises:
            SettingsError: There is no such section, or the configuration is not valid.
        """
        if config.shadow is None:
            raise SettingsError(
                "the configuration has no section shadow: add {answers: large, record: shadow.jsonl}"
            )
        ledger = None if config.shadow.budget is None else config.ledger
        return cls(config, ledger=ledger, **config.shadow.options())

    async def _examine(self, given: ApplicationAnswer) -> dict[str, Any]:
        try:
            kept = [("user", given.messages)] if isinstance(given.messages, str) else given.messages
            answer = given.answer if isinstance(given.answer, AIMessage) else AIMessage(given.answer)
            question = {
                "messages": messages_to_dict(convert_to_messages(kept)),
                "answer": message_to_dict(answer),
                "usage": None if given.usage is None else dict(given.usage),
                "seconds": given.seconds,
            }
            if self._child is None or self._child.ended or self._child.pid != os.getpid():
                self._child = _Child(self._settings)
            return await self._child.ask(question)
        except Exception as error:
            record = new_record(self.answers, priced=self.priced)
            record["error"] = error_of(error, kept=self.text)
            return cast(dict[str, Any], record)


class _Child:
    """The child, as the worker's thread talks with it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.pid = os.getpid()
        self._open: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._ready = asyncio.create_task(self._start(settings))
        self._reading: asyncio.Task[None] | None = None
        self.ended = False

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Returns the record of an answer.

        Raises:
            TrimError: The child has ended.
        """
        process = await asyncio.shield(self._ready)  # which goes on if this answer's time is up
        name = uuid.uuid4().hex
        answered = self._open[name] = asyncio.get_running_loop().create_future()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**question, "name": name}).encode() + b"\n")
            await process.stdin.drain()
            record: dict[str, Any] = await answered
            return record
        except OSError as error:
            raise TrimError("the process of the shadow has ended") from error
        finally:
            self._open.pop(name, None)

    async def _start(self, settings: dict[str, Any]) -> asyncio.subprocess.Process:
        process: asyncio.subprocess.Process | None = None
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __name__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                limit=LONGEST,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            # However long its imports take: an answer that waits for them has a time limit of its own.
            if not await process.stdout.readline():
                raise TrimError("the process of the shadow has ended before it was ready")
        except BaseException:
            self.ended = True
            if process is not None and process.returncode is None:
                process.kill()
            raise
        self._reading = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                answer = json.loads(line)
                waiting = self._open.get(answer["name"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer["record"])
        finally:
            self.ended = True
            for waiting in self._open.values():
                if not waiting.done():
                    waiting.set_exception(TrimError("the process of the shadow has ended"))
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


# In the child


def _built(settings: dict[str, Any], ledger: Any = None) -> Shadow:
    options: dict[str, Any] = {"answers": settings["answers"], **settings["settings"]}
    if settings["shadow_budget"] is not None:
        options["shadow_budget"] = Quota.model_validate(settings["shadow_budget"])
    for name in ("agreement", "grade"):
        if settings[name] is not None:
            options[name] = _function(name, settings[name])
    config = settings["config"]
    if isinstance(config, dict):
        config = make_config(config)  # its paths are absolute
    return Shadow.from_config(config, record=_Nowhere(), ledger=ledger, **options)


def _portable(config: str | Path | TrimConfig) -> Any:
    """Returns a configuration as JSON that another process can read, or the path of its file."""
    if isinstance(config, str | Path):
        return str(Path(config).absolute())
    # Without the section, whose options are given by themselves, and without defaults: a price table that
    # nobody gave is none.
    return config.model_dump(mode="json", exclude_unset=True, exclude={"shadow"})


def _function(option: str, name: str) -> Any:
    """Returns the function of a name.

    Raises:
        SettingsError: There is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"{option} is {name!r}, which is no module:function here: {error}") from error
    if not callable(found):
        raise SettingsError(f"{option} is {name!r}, which is no function")
    return found


async def _serve() -> None:
    """Reads answers and writes their records, until the input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    sys.stdout = sys.stderr  # whatever a model's library prints is no record
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LONGEST)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    settings = json.loads(await reader.readline())
    with _ledger(settings["ledger"]) as ledger:
        shadow = _built(settings, ledger)
        out.write(b'{"ready": true}\n')

        async def examine(question: dict[str, Any]) -> None:
            (answer,) = messages_from_dict([question["answer"]])
            given = ApplicationAnswer(
                messages_from_dict(question["messages"]),
                cast(AIMessage, answer),
                question["usage"],
                question["seconds"],
            )
            async with asyncio.timeout(settings["settings"]["timeout"]):
                record = await shadow._examine(given)
            out.write(json.dumps({"name": question["name"], "record": record}).encode() + b"\n")

        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(examine(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def _ledger(spec: str | None) -> Any:
    from contextlib import nullcontext

    from trim_graph.budget.ledger import open_ledger

    return nullcontext() if spec is None else open_ledger(spec)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICE)
    asyncio.run(_serve())
