"""The connection to a Ray cluster: reached within a time limit, left as it was found."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from trim_graph.adapters.redaction import shown_address
from trim_graph.errors import SettingsError

REACHED_IN = 5.0
"""Seconds for a connection to be taken."""
ANSWERED_IN = 60.0
"""Seconds for a cluster to answer; a Ray that is asked goes on trying without end, and takes no signal."""
_TRIAL = """\
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}".strip().splitlines()[0])
"""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster; until the end what is printed goes to stderr.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the one that this machine is part of.

    Yields:
        The module ``ray``.

    Raises:
        SettingsError: There is none, or it does not answer in time.
    """
    import ray

    if ray.is_initialized():  # by the application that calls
        yield ray
        return
    _reach(address)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    # Ray prints notes of its own, the last of them as it ends; they do not belong into a command's output.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            if main:  # Ray's own would end the process without a word of what is left
                signal.signal(signal.SIGTERM, handler)
            yield ray
        finally:
            ray.shutdown()
            if main:
                signal.signal(signal.SIGTERM, handler)


def _reach(address: str) -> None:
    """Try in a process that can be ended."""
    if address != "auto":
        _take_connection(address)
    told = f"--ray {address}: "
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, address], capture_output=True, text=True, timeout=ANSWERED_IN
        )
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"{told}no Ray cluster answers in {ANSWERED_IN:g} s. This machine must be part of it: ray start "
            "--address=HOST:PORT"
        ) from error
    if trial.returncode:
        why = (trial.stderr.strip().splitlines() or ["it ended at once"])[-1]
        hint = "ray start --head begins one" if address == "auto" else "is this machine part of it?"
        raise SettingsError(f"{told}{why} ({hint})")


def _take_connection(address: str) -> None:
    host, _, port = address.rpartition(":")
    if shown_address(address) is None:
        raise SettingsError(
            "--ray is neither HOST:PORT nor auto: give HOST:PORT of the cluster's head, such as "
            "10.0.0.1:6379; run this command on one of its machines, or hand it in with ray job submit"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_IN).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(f"--ray {address} cannot be reached: {error}") from error
