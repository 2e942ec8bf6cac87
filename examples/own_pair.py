"""A user's own pair of models in the examples that measure one: options, configuration, hours, commands."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trim_graph.config.errors import read_yaml
from trim_graph.examples.math.hours import Rates

Work = list[str] | Callable[[], None]
"""Arguments of `trim-graph`, or work of an example's own."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a question with its instruction, and of a solution."""

    prompt: int
    solution: int


def add_options(parser: argparse.ArgumentParser, config: Path) -> None:
    """Adds the options that say which models run where, and how fast.

    Args:
        parser: Of the example's command.
        config: The configuration that is used without ``--config``.
    """
    parser.add_argument("--config", type=Path, default=config, help="a configuration of your own")
    parser.add_argument("--small", help="instead of the configuration's model: hub id or folder")
    parser.add_argument("--large", help="likewise")
    parser.add_argument(
        "--run",
        choices=["servers", "engine", "transformers"],
        default="servers",
        help="where --small and --large run: behind vLLM servers, on vLLM or transformers in this process",
    )
    parser.add_argument("--small-url", default="http://localhost:8101", help="of its server")
    parser.add_argument("--large-url", default="http://localhost:8102", help="likewise")
    parser.add_argument("--device", default="cpu", help="of transformers: cpu, cuda, cuda:1")
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--small-rate", type=float, default=30, help="tokens a second, for the hours")
    parser.add_argument("--large-rate", type=float, default=11, help="likewise")
    parser.add_argument("--reading-rate", type=float, default=90, help="likewise")
    parser.add_argument("--estimate", action="store_true", help="end before a model is called")


def check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuses a pair of which one model is missing."""
    if (given.small is None) != (given.large is None):
        parser.error("give --small and --large, or neither")


def content(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the configuration that the command line describes.

    Raises:
        SettingsError: The file cannot be read, or holds no settings.
    """
    read, _ = read_yaml(given.config)
    if given.small is not None:
        for writer in ("small", "large"):
            read[writer] = model(given, getattr(given, writer), getattr(given, f"{writer}_url"))
    return read


def made_by(given: argparse.Namespace) -> str:
    """Says which models run, when and where, for a page of results."""
    models = {part: content(given)[part] for part in ("small", "large")}
    named = ", ".join(f"{part}: {one.get('model', one['type'])}" for part, one in models.items())
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{named[0].upper()}{named[1:]}; {datetime.now(UTC).date().isoformat()}; {machine}."


def write_configuration(given: argparse.Namespace, name: str, **changes: Any) -> Path:
    """Writes the configuration to the folder ``given.out``, and returns its path.

    Args:
        given: The command line.
        name: Of the file, without its ending.
        changes: Values of top-level keys that replace those of the configuration.
    """
    import yaml

    path = Path(given.out) / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content(given), **changes}, sort_keys=False), "utf-8")
    return path


def model(given: argparse.Namespace, name: str, url: str) -> dict[str, Any]:
    """Returns a model as a configuration names it."""
    place = str(Path(name).resolve()) if Path(name).is_dir() else name
    if given.run == "servers":
        return {"type": "vllm", "model": name, "base_url": url, "read_timeout": 1800, "logprobs": True}
    if given.run == "engine":
        return {"type": "vllm_engine", "model": place, "gpu_memory_utilization": 0.4, "logprobs": True}
    return {"type": "transformers", "model": place, "device": given.device, "logprobs": True}


def trained_scorer(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns a scorer of `train scorer` as a configuration names it: behind ``--scorer-url``, else here."""
    model = str(folder.absolute())
    if given.scorer_url:
        return {"type": "vllm_prm", "model": model, "base_url": given.scorer_url, "read_timeout": 1800}
    return {"type": "transformers_prm", "model": model, "device": given.device}


def run(work: Iterable[Work]) -> int:
    """Does the work in order, up to the first command that fails; returns its exit code, else 0.

    Failures of the example's own work are reported as those of `trim-graph` are.
    """
    import typer

    from trim_graph.cli.app import app
    from trim_graph.cli.terminal import failures_reported

    try:
        with failures_reported():
            for part in work:
                if callable(part):
                    part()
                    continue
                print(f"\ntrim-graph {shlex.join(part)}", flush=True)
                if code := int(app(part, prog_name="trim-graph", standalone_mode=False) or 0):
                    return code
    except typer.Exit as error:
        return error.exit_code
    return 0


def hours(
    given: argparse.Namespace, lengths: Lengths, *, routed: int, alone: int = 0, drafted: int = 0
) -> float:
    """Returns the hours to expect.

    Args:
        given: The command line, with the rates.
        lengths: Of the questions.
        routed: Solutions by both models together: of each question in each arm.
        alone: Questions that both models solve alone.
        drafted: Solutions by the small model alone.
    """
    rates = Rates(given.small_rate, given.large_rate, given.reading_rate)
    both = rates.seconds(lengths.solution, lengths.solution, 2 * lengths.prompt)
    # Half of the steps by either model; a prompt is read once by each, the rest is in its cache.
    shared = rates.seconds(lengths.solution, lengths.solution / 2, 2 * lengths.prompt)
    draft = rates.seconds(lengths.solution, 0, lengths.prompt)
    return (alone * both + routed * shared + drafted * draft) / 3600


def assumption(given: argparse.Namespace, lengths: Lengths) -> str:
    """Says what the hours are estimated from."""
    return (
        f"Assumed: the small model writes {given.small_rate:g} tokens a second, the large one "
        f"{given.large_rate:g}, and {given.reading_rate:g} are read (--small-rate, --large-rate, "
        f"--reading-rate); {lengths.prompt} tokens a question, {lengths.solution} a solution; "
        "no cache for prompts."
    )
