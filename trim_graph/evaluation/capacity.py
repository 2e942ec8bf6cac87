"""How many servers a load needs: from tokens a question, as measured, and tokens a second, as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trim_graph.errors import SettingsError

from .run_summary import ArmSummary, RunSummary

Part = Literal["small", "large", "scorer"]
PARTS: tuple[Part, ...] = ("small", "large", "scorer")


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a model.

    Attributes:
        tokens_per_second: What it manages at the load it is to run at: tokens written by a chat model, tokens
            read by a scorer.
        gpus: GPUs that it takes.
    """

    tokens_per_second: float
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Need:
    """What one part needs.

    Attributes:
        part: Which one.
        tokens: A question; written by a chat model, read by a scorer.
        calls: A question.
        prompt: Prompt tokens of a call of a chat model, and how many of them came from a cache, as far as the
            servers told; None of a scorer.
        load: Tokens a second.
        replicas: Servers.
        gpus: Of all of them.
        busy: Share of their time that they are at work, were every second alike.
    """

    part: Part
    tokens: float
    calls: float
    prompt: tuple[float, float] | None
    load: float
    replicas: int
    gpus: int
    busy: float


@dataclass(frozen=True, slots=True)
class ArmNeeds:
    """What an arm of an evaluation needs.

    Attributes:
        arm: Its name.
        share: Large tokens, as a share of what the large model alone uses.
        needs: Of the parts that it asks.
    """

    arm: str
    share: float | None
    needs: tuple[Need, ...]

    @property
    def gpus(self) -> int:
        """Of all parts."""
        return sum(need.gpus for need in self.needs)


def capacity(
    summary: RunSummary,
    arms: list[str],
    servers: Mapping[Part, Server],
    *,
    questions_per_second: float,
    utilisation: float = 0.7,
) -> list[ArmNeeds]:
    """Work out the servers of each arm.

    A part's load is questions a second times its tokens a question; a server carries ``utilisation`` times
    what it was measured to manage, and their number is rounded up. All tokens count, also of drafts that were
    thrown away. Prompts count by the measurement: a chat server's tokens a second must be taken at prompts of
    this length and share of cached tokens.

    Args:
        summary: Of an evaluation.
        arms: Which of its arms.
        servers: The measured server of each part.
        questions_per_second: Mean rate at which questions arrive.
        utilisation: Share of its time that a server is to be at work; what is left carries bursts.

    Raises:
        SettingsError: A number is out of range, the evaluation has no such arm, or a part that it asks has no
            measured server.
    """
    if not (math.isfinite(questions_per_second) and questions_per_second > 0):
        raise SettingsError(f"questions_per_second={questions_per_second!r} must be a number above 0")
    if not 0 < utilisation <= 1:
        raise SettingsError(f"utilisation={utilisation!r} must be above 0 and at most 1")
    known = {arm["arm"]: arm for arm in summary["arms"]}
    if unknown := [arm for arm in arms if arm not in known]:
        raise SettingsError(f"the evaluation has no arm {unknown[0]!r}; it has {', '.join(known)}")
    found = []
    for name in arms:
        arm = known[name]
        needs = (_need(arm, part, servers, questions_per_second, utilisation) for part in PARTS)
        share = arm["figures"]["share"]["value"]
        found.append(ArmNeeds(name, share, tuple(need for need in needs if need is not None)))
    return found


def _need(
    arm: ArmSummary, part: Part, servers: Mapping[Part, Server], rate: float, utilisation: float
) -> Need | None:
    tokens = _figure(arm, f"{part}_tokens")
    if not tokens:
        return None
    if (server := servers.get(part)) is None:
        raise SettingsError(
            f"{arm['arm']} has {part} {'read' if part == 'scorer' else 'write'} {tokens:.0f} tokens a "
            f"question, and no measured tokens a second of {part} were given"
        )
    if not (math.isfinite(server.tokens_per_second) and server.tokens_per_second > 0):
        raise SettingsError(f"{part}: {server.tokens_per_second!r} tokens a second must be a number above 0")
    if server.gpus < 1:
        raise SettingsError(f"{part}: {server.gpus!r} GPUs a server must be 1 or more")
    load, calls = rate * tokens, _figure(arm, f"{part}_calls")
    replicas = max(1, math.ceil(load / (utilisation * server.tokens_per_second) - 1e-9))
    prompt = None
    if part != "scorer" and calls:
        read, cached = _figure(arm, f"{part}_prefill"), _figure(arm, f"{part}_cached_prefill")
        prompt = read / calls, cached / calls
    busy = load / (replicas * server.tokens_per_second)
    return Need(part, tokens, calls, prompt, load, replicas, replicas * server.gpus, busy)


def _figure(arm: ArmSummary, name: str) -> float:
    return arm["figures"][name]["value"] or 0.0
