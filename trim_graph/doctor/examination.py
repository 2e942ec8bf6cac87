"""Runs all checks on a configuration, each under a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from trim_graph.config import Parts, TrimConfig
from trim_graph.errors import TrimError

from . import chat_checks, scorer_checks, server_checks, setup_checks, stop_checks
from .findings import Finding, Report, fault
from .samples import ARITHMETIC, GENERAL, PROBE_TEXT, Sample, reads_arithmetic
from .subjects import Subject, in_thread, subjects_of

Check = Callable[[Subject], Awaitable[Finding]]
Told = Callable[[str], None]

SERVER: tuple[tuple[str, Check], ...] = (
    ("server", server_checks.server),
    ("key", server_checks.key),
    ("model", server_checks.model),
)
CHAT: tuple[tuple[str, Check], ...] = (
    ("writing", chat_checks.writing),
    ("continuation", chat_checks.continuation),
    ("carrying on", chat_checks.carrying_on),
    ("system message", chat_checks.system_message),
    ("special tokens", chat_checks.special_tokens),
    ("stop string", stop_checks.stop),
    ("stop string, streamed", stop_checks.stop_streamed),
    ("end of sequence", stop_checks.end_of_sequence),
    ("usage", chat_checks.usage),
    ("cached tokens", chat_checks.cached_tokens),
    ("context length", chat_checks.context_length),
    ("latency", chat_checks.latency),
    ("time limits", chat_checks.time_limits),
)
_OF_SERVERS = {"special tokens", "cached tokens"}
"""Checks of a chat model behind a server."""
_EXACT = {
    *("continuation", "carrying on", "system message", "stop string", "stop string, streamed"),
    *_OF_SERVERS,
}
"""Checks of a model that carries on a text itself."""
SCORER: tuple[tuple[str, Check], ...] = (
    ("scores", scorer_checks.scores),
    ("right and wrong", scorer_checks.ranking),
    ("context length", scorer_checks.context_length),
    ("latency", scorer_checks.latency),
)


def checks_of(subject: Subject) -> list[tuple[str, Check]]:
    """The checks that apply to a part, in order."""
    if subject.entry.type == "token_probability":
        return []  # it reads what the writers tell; `graph` checks that they do
    if subject.by_prompt:
        return [("continuation", chat_checks.by_prompt), *(one for one in CHAT if one[0] not in _EXACT)]
    if subject.part == "scorer":
        if subject.server is None:
            return list(SCORER)
        first = [("pooling", server_checks.pools), ("tokenizer", scorer_checks.tokenizer)]
        return [*SERVER, *first, ("step token", scorer_checks.step_token), *SCORER]
    if subject.server is None:
        return [(name, check) for name, check in CHAT if name not in _OF_SERVERS]
    return [*SERVER, ("generation", server_checks.writes), *CHAT]


async def examine(
    config: TrimConfig,
    *,
    limit: float,
    told: Told,
    unusable: Sequence[Finding] = (),
) -> Report:
    """Check a configuration.

    Args:
        config: The configuration.
        limit: Most seconds for one check; a part whose check takes longer is left.
        told: Called with what is about to be checked.
        unusable: Findings on parts that could not be loaded, which are left out.

    Raises:
        TrimError: A part cannot be made as configured.
        ImportError: What a part needs is not installed.
    """
    left_out = {finding.part for finding in unusable}
    subjects: dict[str, list[Subject]] = {}
    for part in ("small", "large", "scorer"):
        entry = getattr(config, part)
        if entry is None:
            continue
        try:
            subjects[part] = subjects_of(part, entry, config.settings, config.budget, limit)
        except ValueError as error:
            raise TrimError(f"{part}: {error}") from error
    adapters = {part: replicas[0].adapter for part, replicas in subjects.items()}
    parts = Parts(adapters["small"], adapters["large"], adapters.get("scorer"))
    findings = [
        _named(setup_checks.graph(config, parts), "set-up", "graph"),
        _named(setup_checks.two_models(config), "set-up", "models"),
    ]
    if (steps := setup_checks.segmentation(config)) is not None:
        findings.append(_named(steps, "set-up", "segmentation"))
    findings += unusable
    for part, replicas in subjects.items():
        if part not in left_out:
            for subject in replicas:
                findings += await _examine(subject, told)
            if len(replicas) > 1:
                findings.append(_named(setup_checks.alike(replicas), part, "replicas"))
    small, large = subjects["small"][0], subjects["large"][0]
    findings.append(_named(setup_checks.shared_tokenizer(small, large), "set-up", "tokenizers"))
    if "scorer" in subjects and (about := setup_checks.thresholds(config, subjects["scorer"][0])):
        findings.append(_named(about, "set-up", "threshold"))
    return Report(tuple(findings))


async def _examine(subject: Subject, told: Told) -> list[Finding]:
    findings: list[Finding] = []
    checks = checks_of(subject)
    for place, (name, check) in enumerate(checks):
        if name == "writing":
            await _limited(chat_checks.choose_samples, subject)
        elif subject.part == "scorer" and not subject.samples and subject.server is None:
            subject.samples = await _samples_here(subject)
        told(f"{subject.name}: {name}")
        finding = _named(await _limited(check, subject), subject.name, name)
        findings.append(finding)
        if finding.ends:
            rest = [other for other, _ in checks[place + 1 :]]
            findings += [
                Finding("skipped", f"not checked, because of {name}", part=subject.name, check=other)
                for other in rest
            ]
            break
    return findings


async def _limited(check: Callable[[Subject], Awaitable[Finding | None]], subject: Subject) -> Finding:
    try:
        async with asyncio.timeout(subject.timeout):
            return await check(subject) or Finding("ok", "")
    except TimeoutError:
        return fault(
            f"nothing came within {subject.timeout:g} s",
            "look at the server's log and load; a longer limit: --timeout SECONDS",
            ends=True,
        )
    except Exception as error:  # whatever stands between us and a model may answer anything
        lines = str(error).strip().splitlines() or [""]
        told = isinstance(error, TrimError | OSError | ValueError) and lines[0]
        return fault(
            lines[0] if told else f"an answer could not be read: {type(error).__name__}: {lines[0]}",
            "see what it says; a gateway must pass vLLM's answers on as they are",
            ends=True,
        )


async def _samples_here(subject: Subject) -> tuple[Sample, ...]:
    """Samples for a scorer in this process, by its tokenizer."""
    if subject.entry.type == "example":
        return ARITHMETIC
    from trim_graph.adapters.model_source import load_tokenizer

    place = getattr(subject.entry, "model", None)
    if not isinstance(place, str):
        return GENERAL
    try:
        loaded = await in_thread(lambda: load_tokenizer(place))
    except (OSError, ValueError):
        return GENERAL
    return ARITHMETIC if reads_arithmetic(loaded.encode(PROBE_TEXT, add_special_tokens=False)) else GENERAL


def _named(finding: Finding, part: str, check: str) -> Finding:
    return replace(finding, part=part, check=check)
