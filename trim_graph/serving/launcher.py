"""How vLLM is called."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from trim_graph.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Launcher:
    """How vLLM is called.

    Attributes:
        command: Everything before the weights.
        module: Whether it is the server's module, which wants ``--model``.
    """

    command: tuple[str, ...]
    module: bool

    def __call__(self, weights: str) -> list[str]:
        """The command up to and with the weights."""
        return [*self.command, *(["--model"] if self.module else []), weights]


PROGRAM = Launcher(("vllm", "serve"), False)
"""The program that an installed vLLM brings."""


def find_launcher(python: str | None) -> Launcher:
    """Find vLLM.

    Args:
        python: A Python that has it; None: this one if it does, else the program ``vllm``.

    Raises:
        SettingsError: There is none.
    """
    module = ("-m", "vllm.entrypoints.openai.api_server")
    if python is None:
        # A folder of that name on the path has a spec, but no origin.
        if (spec := importlib.util.find_spec("vllm")) is not None and spec.origin:
            return Launcher((sys.executable, *module), True)
        if shutil.which("vllm") is None:
            raise SettingsError(
                "vLLM is not installed here: pip install vllm, or name the Python of an environment that has "
                "it, with --python or in TRIM_VLLM_PYTHON"
            )
        return PROGRAM
    place = shutil.which(os.path.expanduser(python))
    if place is None:
        raise SettingsError(f"--python {python}: there is no such program")
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    # Isolated: a folder of that name in the working directory is not vLLM.
    try:
        found = subprocess.run([place, "-I", "-c", code], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"--python {python} does not run: {error}") from error
    if found.returncode:
        raise SettingsError(f"--python {python} has no vLLM: name the Python of an environment that has it")
    return Launcher((os.path.abspath(place), *module), True)
