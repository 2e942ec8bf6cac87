"""`trim-graph serve`: a configuration behind OpenAI's protocol, in one process or several."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError, TrimError

from .common import chosen_config, load_parts, need_extras
from .options import ServeOptions
from .terminal import MissingExtra, need

if TYPE_CHECKING:
    from fastapi import FastAPI

    from trim_graph.server import ApiKeys
    from trim_graph.telemetry import TrimTelemetry

_OPTIONS = "TRIM_SERVE_OPTIONS"
"""Environment variable from which a worker process reads the options, which hold no key."""
_FAILED = "failed"
"""File in the shared folder by which a worker process says that it could not start."""
_STARTUP_FAILURE = 3
"""Exit code by which a process tells uvicorn that another one would not start either."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def run_serve(options: ServeOptions) -> int:
    """Serves a configuration until SIGTERM or Ctrl-C.

    Returns:
        The exit code: 0, or 1 where no process could serve.

    Raises:
        TrimError: An option or the configuration is not valid, or the address is taken.
        MissingExtra: A package is not installed.
    """
    need("serve", "fastapi", "uvicorn", "prometheus_client")
    if options.telemetry:
        need("otel", "opentelemetry")
    config, _ = _checked(options)
    with _listening(options) as bound:
        return (
            _serve_alone(options, bound) if options.workers == 1 else _serve_together(options, config, bound)
        )


def _checked(options: ServeOptions) -> tuple[TrimConfig, ApiKeys]:
    """Checks the options before a model is loaded.

    Raises:
        SettingsError: One is not valid, or does not go with the configuration.
    """
    from trim_graph.server import check_servable, read_keys

    if not _MODEL_NAME.fullmatch(options.model_name) or options.model_name in ("small", "large"):
        raise SettingsError(
            f"--model-name {options.model_name}: use letters, digits and . _ / -, and neither small nor large"
        )
    config, keys = chosen_config(options.config, {}), read_keys(options.api_keys)
    check_servable(config, keys)
    if keys and options.no_auth:
        raise SettingsError("--no-auth contradicts the API keys that are given: leave out one of them")
    if not (keys or options.no_auth or _is_local(options.host)):
        raise SettingsError(
            f"--host {options.host} lets others ask at your cost: give --api-keys FILE, or --no-auth if "
            "something else checks who asks"
        )
    if options.workers > 1 and config.ledger == "memory":
        raise SettingsError("ledger: memory counts in each of --workers by itself: choose sqlite:PATH")
    if options.workers > 1 and config.ledger is None and config.shadow is not None and config.shadow.budget:
        raise SettingsError(
            "shadow.budget would hold for each of --workers by itself: add ledger: sqlite:PATH, which counts "
            "for all of them"
        )
    return config, keys


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """Binds the address, before models are loaded.

    Raises:
        SettingsError: It is taken, or is none of this machine.
    """
    place = f"--host {options.host} --port {options.port}: cannot listen there"
    with ExitStack() as resources:
        try:
            found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
            family, *_, address = found[0]
            bound = resources.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "there is no such host"
            raise SettingsError(f"{place}: {why}") from error
        yield bound


def _serve_alone(options: ServeOptions, bound: socket.socket) -> int:
    """Serves in this process."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(_app(options), **_uvicorn_settings(options)))
    print(_ready(options), file=sys.stderr)
    with suppress(KeyboardInterrupt):  # uvicorn repeats the signal once all questions have ended
        server.run([bound])
    return 0 if server.started else 1


def _serve_together(options: ServeOptions, config: TrimConfig, bound: socket.socket) -> int:
    """Serves in several processes, whose metrics are summed in a folder that they share."""
    import uvicorn

    need_extras(config)
    bound.close()  # it was free; uvicorn binds it for all its processes
    with tempfile.TemporaryDirectory(prefix="trim-graph-serve-") as folder:
        # Set before the processes import prometheus_client, which reads it then.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ[_OPTIONS] = json.dumps(asdict(options), default=os.fspath)
        print(_ready(options), file=sys.stderr)
        uvicorn.run(
            "trim_graph.cli.serve:worker_app",
            factory=True,
            host=options.host,
            port=options.port,
            workers=options.workers,
            # A process that loads models answers its parent late; one that died is found as late.
            timeout_worker_healthcheck=20,
            **_uvicorn_settings(options),
        )
        return 1 if Path(folder, _FAILED).exists() else 0


def worker_app() -> FastAPI:
    """Builds the application in a worker process, by the options in its environment."""
    given = json.loads(os.environ[_OPTIONS])
    paths = {name: Path(given[name]) for name in ("config", "api_keys") if given[name] is not None}
    try:
        # In a thread, since uvicorn calls this in a running event loop, where some adapters refuse to load.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(_app, ServeOptions(**{**given, **paths})).result()
    except (TrimError, MissingExtra) as error:
        print(f"trim-graph: {error}", file=sys.stderr)
    Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], _FAILED).touch()
    sys.exit(_STARTUP_FAILURE)


def _app(options: ServeOptions) -> FastAPI:
    from trim_graph.server import create_app

    config, keys = _checked(options)
    return create_app(
        config,
        parts=load_parts(config, servers=False),
        keys=keys,
        model_name=options.model_name,
        max_questions=options.max_questions,
        telemetry=_telemetry(options),
    )


def _telemetry(options: ServeOptions) -> TrimTelemetry | None:
    if not options.telemetry:
        return None
    from trim_graph.telemetry import TrimTelemetry

    return TrimTelemetry()


def _uvicorn_settings(options: ServeOptions) -> dict[str, Any]:
    from uvicorn.config import LOGGING_CONFIG

    log: dict[str, Any] = deepcopy(LOGGING_CONFIG)
    log["loggers"]["trim_graph.server"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return {
        "log_config": log,
        # The server logs each question itself; uvicorn's lines would repeat the query of a URL.
        "access_log": False,
        "server_header": False,
        # Longer than proxies keep an idle connection, so that none sends into one that is being closed.
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": max(1, round(options.drain)),
    }


def _ready(options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"answers at http://{host}:{options.port}/v1 as {options.model_name}; Ctrl-C ends it"
