"""`trim-graph capacity`: how many servers and GPUs a load needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError
from trim_graph.evaluation.capacity import PARTS, ArmNeeds, Part, Server, capacity
from trim_graph.evaluation.run_files import read_run
from trim_graph.evaluation.run_summary import RunSummary

WIDTH = 120
"""Of the table where stdout is no terminal."""
_MEASURED: dict[Part, str] = {
    "small": "output_throughput",
    "large": "output_throughput",
    "scorer": "total_token_throughput",
}
"""What ``vllm bench serve --save-result`` calls the tokens a second of a part."""

_COLUMNS = (
    *("arm", "share", "part", "tokens/question", "tokens/call", "prompt (cached)"),
    *("tokens/s", "servers", "GPUs", "busy"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `capacity`, as given."""

    run: Path
    rate: float
    servers: dict[Part, str | None]
    arms: Sequence[str]
    utilisation: float
    as_json: bool


def run_capacity(request: Request) -> None:
    """Print the servers that a load needs.

    Raises:
        SettingsError: The evaluation, a measurement or a number is not right.
    """
    summary = read_run(request.run).summary
    if summary is None:
        raise SettingsError(f"{request.run} has no summary yet: the same eval command goes on with it")
    arms = list(request.arms) or _usual(summary)
    servers = {part: server_of(part, given) for part, given in request.servers.items() if given is not None}
    found = capacity(
        summary, arms, servers, questions_per_second=request.rate, utilisation=request.utilisation
    )
    if request.as_json:
        print(json.dumps([{**asdict(one), "gpus": one.gpus} for one in found], indent=1))
        return
    failed = {arm["arm"]: arm["errors"] for arm in summary["arms"] if arm["errors"]}
    _show(found, {arm: failed[arm] for arm in arms if arm in failed}, request)


def _usual(summary: RunSummary) -> list[str]:
    """The large model alone, and every policy, of a sweep too."""
    kinds = {arm["arm"]: arm["kind"] for arm in summary["arms"]}
    return [name for name, kind in kinds.items() if name == "large" or kind in ("policy", "sweep")]


def server_of(part: Part, given: str) -> Server:
    """Read one measurement: ``1200`` or a file of ``vllm bench serve``, perhaps with GPUs: ``1200x2``.

    Raises:
        SettingsError: It is neither a number nor such a file.
    """
    speed, cross, gpus = given.rpartition("x")
    if not cross or not gpus.isdigit():
        speed, gpus = given, "1"
    try:
        return Server(float(speed), int(gpus))
    except ValueError:
        return Server(_of_file(part, Path(speed)), int(gpus))


def _of_file(part: Part, file: Path) -> float:
    name = _MEASURED[part]
    try:
        told: Any = json.loads(file.read_text("utf-8"))
        return float(told[name])
    except OSError as error:
        raise SettingsError(
            f"--{part} {file}: give tokens a second, or a result file of vllm bench serve ({error.strerror})"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"--{part} {file}: is no result of vllm bench serve --save-result: it has no number {name}"
        ) from error


def _show(found: list[ArmNeeds], failed: dict[str, int], request: Request) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from .console import Console

    console = Console(plain_width=WIDTH)
    console.print(
        f"{request.rate:g} questions/s; a server carries {request.utilisation:.0%} of what it was measured at"
    )
    table = Table(box=SIMPLE, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("arm", "part") else "right")
    for one in found:
        share = "" if one.share is None else f"{one.share:.0%}"
        for need in one.needs:
            prompt = "" if need.prompt is None else f"{need.prompt[0]:.0f} ({need.prompt[1]:.0f})"
            call = f"{need.tokens / need.calls:.0f}" if need.calls else ""
            cells = [f"{need.tokens:.0f}", call, prompt, f"{need.load:.0f}"]
            table.add_row(
                one.arm, share, need.part, *cells, str(need.replicas), str(need.gpus), f"{need.busy:.0%}"
            )
        table.add_row(one.arm, share, "all", "", "", "", "", "", str(one.gpus), "", end_section=True)
    console.print(table)
    for arm, count in failed.items():
        console.print(f"warning: {count} questions of {arm} failed and count as nothing spent")


def parts_given(small: str | None, large: str | None, scorer: str | None) -> dict[Part, str | None]:
    """The options by part."""
    return dict(zip(PARTS, (small, large, scorer), strict=True))
