"""Runs all checks on a configuration, each under a time limit; checks of scorers and of the whole."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from trim_graph.adapters.base import ScorableStep, as_scorer, read_scores, reads_token_probability
from trim_graph.adapters.prm.formats import STEP_TOKENS
from trim_graph.adapters.prm.scorer_file import FormatChoice, chosen_format
from trim_graph.adapters.prm.scores import serve_options
from trim_graph.adapters.provider_errors import advice, is_of_client, server_message
from trim_graph.adapters.vllm.plugin import serves
from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.config.load import judge_without_price
from trim_graph.config.schema import asked_by, named_scorers, scorer_parts
from trim_graph.errors import ModelServerError, ScorerError, SettingsError, TrimError
from trim_graph.policies.parsing import Threshold
from trim_graph.segmentation import Segmentation, delimiter

from . import chat_checks
from .chat_checks import longest, median_seconds, room, tokens_of
from .subjects import (
    ARITHMETIC,
    GENERAL,
    PROBE_TEXT,
    Finding,
    Report,
    Subject,
    in_thread,
    reads_arithmetic,
    subjects_of,
)


def graph(config: TrimConfig, parts: Parts) -> Finding:
    """Checks that the graph can be built: policy, scorer, budget and prices fit."""
    policy = config.policy.build()
    if policy.needs_score and config.scorer is None:
        return Finding.error(
            f"the policy {config.policy.type} decides by scores, and there is no scorer",
            "add a scorer, or choose a policy that needs none: small_only, large_only, random_rate",
        )
    if any(part.type == "turn_signals" for part in scorer_parts(config.scorer)):
        return Finding.warning(
            "the scorer turn_signals rates an agent's turns: this configuration is for TrimMiddleware only",
            "choose another scorer for a graph or a command that solves questions",
        )
    try:
        build_graph(for_measuring(config), parts=parts)
    except SettingsError as error:
        return Finding.error(str(error), "correct that key of the configuration")
    if config.scorer is not None and not policy.needs_score:
        return Finding.warning(
            f"the policy {config.policy.type} looks at no score, so the scorer is never asked",
            "leave out the scorer, or choose a policy such as threshold",
        )
    if (unpriced := judge_without_price(config.prices, config.scorer)) is not None:
        return Finding.warning(unpriced, "prices: {scorer: {input: ..., output: ...}}")
    return Finding.ok("policy, scorer, budget and prices go together")


def two_models(config: TrimConfig) -> Finding:
    """Checks that small and large are not the same model."""
    small, large = config.small.model_dump(), config.large.model_dump()
    places = [{key: entry.get(key) for key in ("type", "model", "base_url")} for entry in (small, large)]
    if config.small.type != "example" and places[0] == places[1]:
        return Finding.warning(
            "small and large are the same model, so large adds nothing", "name another one"
        )
    return Finding.ok("small and large are two models")


def alike(replicas: list[Subject]) -> Finding:
    """Checks that the replicas of a part serve one model: a question may move from any to any other."""
    seen = [
        {"model": subject.served.get("root"), "max_model_len": subject.served.get("max_model_len")}
        for subject in replicas
    ]
    asked = [(s, served) for s, served in zip(replicas, seen, strict=True) if s.served]
    if len(asked) < len(replicas):
        return Finding.warning("cannot be checked of all: not every replica serves the model")
    for subject, served in asked[1:]:
        for name, value in served.items():
            if value != seen[0][name]:
                return Finding.error(
                    f"{subject.name} has {name} {value!r}, {replicas[0].name} {seen[0][name]!r}",
                    "start all replicas of a model with the same arguments",
                )
        if subject.known.get("tokens") != replicas[0].known.get("tokens"):
            return Finding.error(
                f"{subject.name} has another tokenizer than {replicas[0].name}",
                "start all replicas of a model with the same weights",
            )
    return Finding.ok(f"all {len(replicas)} serve one model alike")


def shared_tokenizer(small: Subject, large: Subject) -> Finding:
    """Reports whether small and large have one tokenizer."""
    ours, theirs = small.known.get("tokens"), large.known.get("tokens")
    if ours is None or theirs is None:
        return Finding.warning(
            "whether small and large have one tokenizer cannot be checked; nothing here needs it"
        )
    if ours == theirs:
        return Finding.ok("small and large have one tokenizer")
    return Finding.warning(
        "small and large have different tokenizers; nothing here needs one, texts are exchanged"
    )


def thresholds(config: TrimConfig, scorer: Subject) -> Finding | None:
    """Checks that the policy's thresholds lie among the scores that were seen; None without any."""
    found = list(_thresholds(config.policy))
    if not found or scorer.scores is None:
        return None
    right, wrong = scorer.scores
    low, high = min(*right, *wrong), max(*right, *wrong)
    seen = f"the scores seen lie between {low:.3f} and {high:.3f}"
    for t in found:
        if t > high:
            return Finding.warning(
                f"t={t:g} of threshold: {seen}, so every draft would be regenerated", "lower it"
            )
        if t <= low:
            return Finding.warning(
                f"t={t:g} of threshold: {seen}, so even wrong drafts would be kept", "raise it"
            )
    return Finding.ok(f"t={', '.join(f'{t:g}' for t in found)}: {seen}")


_STEPS = ("Step 1: 2 + 2 = 4.", "Step 2: 4 + 1 = 5.")
_ENDS = {"\n": "a line break", "\n\n": "a blank line"}
_TRAINED_ON = {
    "qwen": ("\n\n",),
    "math_shepherd": ("\n",),
    "skywork": ("\n",),
    "rlhflow": ("\n\n", "\n"),  # Deepseek-Data, Mistral-Data
}
"""Ends of steps in the solutions that PRMs of each format were trained on."""


def segmentation(config: TrimConfig) -> Finding | None:
    """Checks that steps end as those that each PRM was trained on; None without a PRM."""
    findings = [_segmentation(config, part) for part in scorer_parts(config.scorer)]
    known = [finding for finding in findings if finding is not None]
    return next((one for one in known if one.status != "ok"), known[0] if known else None)


def _segmentation(config: TrimConfig, scorer: Any) -> Finding | None:
    form = _format_of(scorer)
    if form in (None, "trim"):  # a scorer trained here learned from the user's own steps
        return None
    trained = " or ".join(_ENDS[end] for end in _TRAINED_ON[form])
    found = _step_end(config.settings.segmentation or delimiter(config.settings.delimiter))
    if found in _TRAINED_ON[form]:
        return Finding.ok(
            f"steps end at {_ENDS[found]}, as those that PRMs of the format {form} were trained on"
        )
    ends = "at neither a line break nor a blank line" if found is None else f"at {_ENDS[found]}"
    return Finding.warning(
        f"steps end {ends}; those that PRMs of the format {form} were trained on end at {trained}, and of "
        "other steps the scores mean little",
        "set segmentation in settings to the PRM's own way to make steps, unless yours was trained on these",
    )


def _format_of(scorer: Any) -> str | None:
    """Returns the format of a PRM as far as it is known without a download; None without a PRM."""
    form: str | None = getattr(scorer, "format", None)
    if form != "auto":
        return form
    place: str = getattr(scorer, "tokenizer", None) or scorer.model
    return chosen_format(scorer, place, download=False).name


def _step_end(way: Segmentation) -> str | None:
    """Returns the least that ends a step; None where neither a line break nor a blank line does."""
    cuts = (end for end in _ENDS if [step for step, _ in way.split(end.join(_STEPS))] == list(_STEPS))
    return next(cuts, None)


def _thresholds(policy: Any) -> Iterator[float]:
    if isinstance(policy, Threshold):
        yield policy.t
    for name in ("policy", "policies"):
        inner = getattr(policy, name, None) or ()
        for one in inner if isinstance(inner, list) else [inner] if inner else []:
            yield from _thresholds(one)


_RANKED_RIGHT = 0.8
"""Share of the samples that must come out right; a PRM worth its name gets nearly all of them."""


async def tokenizer(subject: Subject) -> Finding:
    """Checks that the tokenizer used here is the server's."""
    from trim_graph.adapters.model_source import check_model, load_tokenizer

    entry = subject.entry
    place = entry.tokenizer or str(subject.served.get("root") or entry.model)
    fix = "name the PRM's own folder or hub id in the setting tokenizer of scorer"

    def load() -> Any:
        choice = chosen_format(entry, check_model(place))
        return load_tokenizer(place, chat=choice.needs_chat_template)

    try:
        loaded = await in_thread(load)
    except (OSError, ValueError) as error:
        return Finding.error(f"the tokenizer cannot be loaded from {place}: {error}", fix, ends=True)
    subject.known |= {"tokenizer": loaded, "tokenizer_place": place}
    ours = list(loaded.encode(PROBE_TEXT, add_special_tokens=False))
    theirs = await tokens_of(subject, PROBE_TEXT)
    if theirs is None:
        subject.samples = ARITHMETIC if reads_arithmetic(ours) else GENERAL
        return Finding.warning(
            f"whether {place} has the server's tokenizer cannot be checked: /tokenize is not let through",
            "let a gateway pass /tokenize on",
        )
    if theirs != ours:
        return Finding.error(
            f"the tokenizer from {place} is another model's: it makes {len(ours)} tokens of a text of which "
            f"the server makes {len(theirs)}, or others",
            fix,
            ends=True,
        )
    subject.samples = ARITHMETIC if reads_arithmetic(ours) else GENERAL
    return Finding.ok(f"the server's, from {place}")


async def step_token(subject: Subject) -> Finding:
    """Checks that the step token is one token of the PRM's tokenizer."""
    loaded = subject.known["tokenizer"]
    choice = await _choice(subject)
    token = choice.step_token or (STEP_TOKENS["qwen"] if choice.name == "qwen" else None)
    if token is None:
        return Finding.ok("the format's own")
    ids = list(loaded.encode(token, add_special_tokens=False))
    if len(ids) != 1 or (choice.name in ("qwen", "trim") and token not in loaded.get_added_vocab()):
        special = ", ".join(_like_step_tokens(loaded.get_added_vocab()))
        return Finding.error(
            f"step_token={token!r} is no token of its own in the PRM's tokenizer, so nothing holds a score",
            f"write the PRM's step token, often one of its added tokens: {special}",
            ends=True,
        )
    return Finding.ok(f"{token!r} is token {ids[0]}")


def _like_step_tokens(added: Iterable[str]) -> list[str]:
    """Returns the added tokens that look like a step token, the likeliest first."""
    marks = [token for token in added if token[:1] in "<[|" and " " not in token]
    words = ("extra", "step", "score", "prm")
    return sorted(marks, key=lambda token: (not any(word in token.lower() for word in words), token))[:8]


async def scores(subject: Subject) -> Finding:
    """Checks that the scorer gives one probability for each step."""
    sample = max(subject.samples, key=lambda sample: len(sample.right))
    try:
        for steps in (sample.right_steps[:1], sample.right_steps):
            await _scores(subject, sample.question, steps)
    except ScorerError as error:
        # The text of a judge says what to do about its model's server.
        cause = error.__cause__
        of_server = cause is not None and is_of_client(cause)
        fix = "see what it says" if of_server else "a scorer gives one probability per step"
        if subject.entry.type == "vllm_prm" and not isinstance(error.__cause__, ModelServerError):
            start = await _serve_line(subject, plugin=False)
            fix = f"start the server with {start} (trim-graph up --print shows the whole command)"
        return Finding.error(str(error), fix, ends=True)
    return Finding.ok("one probability a step")


async def ranking(subject: Subject) -> Finding:
    """Checks that right steps score above wrong ones."""
    right, wrong = [], []
    for sample in subject.samples:
        right.append((await _scores(subject, sample.question, sample.right_steps))[-1])
        wrong.append((await _scores(subject, sample.question, sample.wrong_steps))[-1])
    if not reads_token_probability(as_scorer(subject.adapter)):  # else scores of runs lie elsewhere
        subject.scores = right, wrong
    pairs = list(zip(right, wrong, strict=True))
    apart, turned = sum(r > w for r, w in pairs), sum(r < w for r, w in pairs)
    seen = f"{apart} of {len(pairs)} right steps score above their wrong form"
    means = f"on average {sum(right) / len(right):.2f} against {sum(wrong) / len(wrong):.2f}"
    if apart >= _RANKED_RIGHT * len(pairs):
        return Finding.ok(f"{seen}, {means}")
    if turned >= _RANKED_RIGHT * len(pairs):
        return Finding.error(
            f"the scores are the wrong way round: only {seen}, {means}; it is as if the labels right "
            "and wrong were swapped",
            "use a PRM whose label 1 means right, as in Qwen2.5-Math-PRM, or swap the labels in its config "
            "and head",
        )
    if not _is_reward_model(subject) or reads_token_probability(as_scorer(subject.adapter)):
        return Finding.warning(
            f"{seen}, {means}", "such a scorer separates single steps poorly; measure it first"
        )
    return Finding.error(
        f"the scorer does not separate right from wrong: {seen}, {means}",
        "check that the server has the PRM's weights with their head, and that format is the PRM's",
    )


def _is_reward_model(subject: Subject) -> bool:
    return "prm" in subject.entry.type or subject.entry.type == "example"


async def context_length(subject: Subject) -> Finding:
    """Checks that the scorer can read a question with a step, and better with a whole solution."""
    length, settings = longest(subject), subject.settings
    if length is None:
        return Finding.ok("not reported, so taken as enough")
    sample = subject.samples[0]
    await _scores(subject, sample.question, sample.right_steps[:1])
    asked = subject.known["input_tokens"][sample.question, 1]
    return room(subject.part, length, asked, settings.max_steps, settings.max_step_tokens)


async def latency(subject: Subject) -> Finding:
    """Measures the seconds of one scoring."""
    sample = subject.samples[0]
    subject.seconds = await median_seconds(lambda: _scores(subject, sample.question, sample.right_steps))
    read_timeout = getattr(subject.entry, "read_timeout", None)
    if read_timeout is not None and subject.seconds > read_timeout / 4:
        return Finding.warning(
            f"{subject.seconds:.1f} s for one short solution; read_timeout={read_timeout:g} is close",
            "raise read_timeout of scorer",
        )
    return Finding.ok(f"{subject.seconds * 1000:.0f} ms for one short solution (median)")


_CACHED_INPUT = 640
"""Tokens of the input that is asked twice: several blocks, which have 128 tokens on CPUs and 16 on GPUs."""
_HITS = re.compile(r"^vllm:prefix_cache_hits_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


async def prefix_cache(subject: Subject) -> Finding:
    """Checks that the server takes what it has read before from its prefix cache."""
    if subject.entry.type == "vllm_prm" and not subject.adapter.scores_by_step:
        return await _without_cache(subject)
    sample = subject.samples[0]
    once = subject.known["input_tokens"][sample.question, 1]
    most = min(_CACHED_INPUT, (longest(subject) or _CACHED_INPUT) * 3 // 4)
    text = " ".join(sample.right[:1] * max(1, (most - once) // once))
    steps = [ScorableStep(text, mean_token_probability=0.9)]
    await _scores(subject, sample.question, steps)
    before = await _cache_hits(subject)
    await _scores(subject, sample.question, steps)
    after = await _cache_hits(subject)
    if before is None or after is None:
        return Finding.warning(
            "whether the prefix cache is used cannot be checked: the server does not answer /metrics with "
            "vllm:prefix_cache_hits",
            "let a gateway pass /metrics on, and start vLLM without --disable-log-stats",
        )
    read = subject.known["input_tokens"][sample.question, 1]
    subject.known["input_tokens"][sample.question, 1] = once
    if after <= before:
        return Finding.warning(
            f"none of the {read} tokens of a repeated input came from the server's prefix cache, so each "
            "pass reads the whole solution again",
            "start the server with --enable-prefix-caching and with room for the cache "
            "(--gpu-memory-utilization, on CPUs --kv-cache-memory-bytes)",
        )
    return Finding.ok(f"{min(after - before, read):.0f} of {read} tokens of a repeated input came from it")


async def _cache_hits(subject: Subject) -> float | None:
    """Returns the tokens that the server has taken from its prefix cache; None where it does not say."""
    try:
        found = _HITS.findall(await subject.on_server.get_text("/metrics"))
    except ModelServerError:
        return None
    return sum(map(float, found)) if found else None


async def _without_cache(subject: Subject) -> Finding:
    """Judges a server that pools STEP or ALL, for which vLLM reads no prefix from its cache."""
    choice = await _choice(subject)
    seen = "each pass reads the whole solution: the server pools tokens (STEP or ALL)"
    if choice.name == "qwen" and not serves(str(subject.served.get("root") or subject.entry.model)):
        return Finding.ok(f"{seen}, the only way for this model")
    options = await _serve_line(subject, plugin=True)
    start = f"start the server with {options}, and a pass reads the newest step only"
    if choice.name == "qwen":
        return Finding.ok(f"{seen}; where trim-graph is installed beside vLLM, {start}")
    return Finding.warning(seen, start)


async def _choice(subject: Subject) -> FormatChoice:
    """Returns the format of a served PRM, after `tokenizer`."""
    return await in_thread(lambda: chosen_format(subject.entry, subject.known["tokenizer_place"]))


async def _serve_line(subject: Subject, *, plugin: bool) -> str:
    choice, loaded = await _choice(subject), subject.known["tokenizer"]
    return shlex.join(
        serve_options(choice.name, tokenizer=loaded, step_token=choice.step_token, plugin=plugin)
    )


async def _scores(subject: Subject, question: str, steps: list[ScorableStep]) -> list[float]:
    scorer = as_scorer(subject.adapter)
    if reads_token_probability(scorer):  # of a sample they say nothing: the head alone rates it
        steps = [ScorableStep(step) for step in steps]
    reply = read_scores(await scorer.ascore(question, steps), len(steps))
    subject.known.setdefault("input_tokens", {})[question, len(steps)] = reply.input_tokens
    return [float(score) for score in reply.scores]


Check = Callable[[Subject], Awaitable[Finding]]
OnCheck = Callable[[str], None]

SERVER: tuple[tuple[str, Check], ...] = (
    ("server", chat_checks.server),
    ("key", chat_checks.key),
    ("model", chat_checks.model),
)
CHAT: tuple[tuple[str, Check], ...] = (
    ("writing", chat_checks.writing),
    ("continuation", chat_checks.continuation),
    ("carrying on", chat_checks.carrying_on),
    ("system message", chat_checks.system_message),
    ("special tokens", chat_checks.special_tokens),
    ("stop string", chat_checks.stop),
    ("stop string, streamed", chat_checks.stop_streamed),
    ("end of sequence", chat_checks.end_of_sequence),
    ("usage", chat_checks.usage),
    ("cached tokens", chat_checks.cached_tokens),
    ("reasoning limit", chat_checks.reasoning_limit),
    ("context length", chat_checks.context_length),
    ("latency", chat_checks.latency),
    ("time limits", chat_checks.time_limits),
)
_OF_SERVERS = {"special tokens", "cached tokens", "reasoning limit"}
"""Checks of a chat model behind a server."""
_EXACT = {
    *("continuation", "carrying on", "system message", "stop string", "stop string, streamed"),
    *_OF_SERVERS,
}
"""Checks of a model that carries on a text itself."""
SCORER: tuple[tuple[str, Check], ...] = (
    ("scores", scores),
    ("right and wrong", ranking),
    ("context length", context_length),
    ("latency", latency),
)


_OF_SERVED_SCORERS: dict[str, list[tuple[str, Check]]] = {
    "vllm": [("generation", chat_checks.writes), *SCORER],  # a judge
    "vllm_prm": [
        ("pooling", chat_checks.pools),
        ("tokenizer", tokenizer),
        ("step token", step_token),
        *SCORER,
        ("prefix cache", prefix_cache),
    ],
    "vllm_generative_prm": [("tokenizer", tokenizer), *SCORER, ("prefix cache", prefix_cache)],
}
"""Checks of a scorer behind a server, by the type of its part in a configuration."""


def checks_of(subject: Subject) -> list[tuple[str, Check]]:
    """Returns the checks that apply to a part, in order."""
    if any(part.type in ("token_probability", "turn_signals") for part in scorer_parts(subject.entry)):
        return []  # it reads what the writers report, or an agent's turns; `graph` checks that there are any
    if subject.by_prompt:
        return [("continuation", chat_checks.by_prompt), *(one for one in CHAT if one[0] not in _EXACT)]
    if subject.is_scorer:
        if subject.server is None:
            return list(SCORER)
        return [*SERVER, *_OF_SERVED_SCORERS[subject.entry.type]]
    if subject.server is None:
        return [(name, check) for name, check in CHAT if name not in _OF_SERVERS]
    limited = getattr(subject.entry, "min_answer_tokens", None) is not None
    chat = [one for one in CHAT if limited or one[0] != "reasoning limit"]
    return [*SERVER, ("generation", chat_checks.writes), *chat]


async def examine(
    config: TrimConfig,
    *,
    limit: float,
    on_check: OnCheck,
    unusable: Sequence[Finding] = (),
) -> Report:
    """Checks a configuration.

    Args:
        config: The configuration.
        limit: Most seconds for one check; a part whose check takes longer is left.
        on_check: Called with the part and the check that is next.
        unusable: Findings on parts that could not be loaded, which are left out.

    Raises:
        TrimError: A part cannot be made as configured.
        ImportError: What a part needs is not installed.
    """
    left_out = {finding.part for finding in unusable}
    subjects: dict[str, list[Subject]] = {}
    entries = {"small": config.small, "large": config.large, **named_scorers(config.scorer)}
    if config.scorer is not None:
        entries["scorer"] = config.scorer
    for part, entry in entries.items():
        try:
            subjects[part] = subjects_of(part, entry, config.settings, config.budget, limit)
        except ValueError as error:
            raise TrimError(f"{part}: {error}") from error
    adapters = {part: replicas[0].adapter for part, replicas in subjects.items()}
    parts = Parts(adapters["small"], adapters["large"], adapters.get("scorer"))
    findings = [
        _named(graph(config, parts), "set-up", "graph"),
        _named(two_models(config), "set-up", "models"),
    ]
    if (steps := segmentation(config)) is not None:
        findings.append(_named(steps, "set-up", "segmentation"))
    findings += unusable
    for part, replicas in subjects.items():
        if part == "scorer":
            _share_samples(subjects)
        if part not in left_out:
            for subject in replicas:
                findings += await _examine(subject, on_check)
            if len(replicas) > 1:
                findings.append(_named(alike(replicas), part, "replicas"))
    small, large = subjects["small"][0], subjects["large"][0]
    findings.append(_named(shared_tokenizer(small, large), "set-up", "tokenizers"))
    if "scorer" in subjects and (about := thresholds(config, subjects["scorer"][0])):
        findings.append(_named(about, "set-up", "threshold"))
    return Report(tuple(findings))


def _share_samples(subjects: dict[str, list[Subject]]) -> None:
    """Gives a scorer that combines several the samples that one of them reads, if it reads nothing else."""
    parts = [one for part, replicas in subjects.items() if part.startswith("scorer-") for one in replicas]
    if any(one.samples == ARITHMETIC for one in parts):
        subjects["scorer"][0].samples = ARITHMETIC


async def _examine(subject: Subject, on_check: OnCheck) -> list[Finding]:
    findings: list[Finding] = []
    checks = checks_of(subject)
    for place, (name, check) in enumerate(checks):
        if name == "writing":
            await _limited(chat_checks.choose_samples, subject)
        elif subject.is_scorer and not subject.samples and name in ("generation", "scores"):
            await _limited(_choose_samples, subject)
        on_check(f"{subject.name}: {name}")
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
        return Finding.error(
            f"nothing came within {subject.timeout:g} s",
            "look at the server's log and load; a longer limit: --timeout SECONDS",
            ends=True,
        )
    except Exception as error:  # whatever is between us and a model may answer anything
        if is_of_client(error):
            fix = advice(error, subject.adapter) or "see what it says"
            return Finding.error(server_message(error), fix, ends=True)
        lines = str(error).strip().splitlines() or [""]
        readable = isinstance(error, TrimError | OSError | ValueError) and lines[0]
        return Finding.error(
            lines[0] if readable else f"an answer could not be read: {type(error).__name__}: {lines[0]}",
            "see what it says"
            + ("; a gateway must pass vLLM's answers on as they are" if subject.server is not None else ""),
            ends=True,
        )


async def _choose_samples(subject: Subject) -> None:
    """Finds the samples that a scorer, or the model of a judge, reads."""
    if subject.server is not None:
        await chat_checks.choose_samples(subject)
        return
    asked = asked_by(subject.entry)
    subject.samples = ARITHMETIC if asked.type == "example" else GENERAL
    place = getattr(asked, "model", None)
    if asked.type == "langchain" or not isinstance(place, str):
        return
    from trim_graph.adapters.model_source import load_tokenizer

    with suppress(OSError, ValueError):
        loaded = await in_thread(lambda: load_tokenizer(place, chat=False))
        if reads_arithmetic(loaded.encode(PROBE_TEXT, add_special_tokens=False)):
            subject.samples = ARITHMETIC


def _named(finding: Finding, part: str, check: str) -> Finding:
    return replace(finding, part=part, check=check)
