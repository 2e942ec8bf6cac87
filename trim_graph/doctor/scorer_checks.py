"""Whether a scorer rates steps, one by one, and right steps above wrong ones."""

from __future__ import annotations

from collections.abc import Iterable

from trim_graph.adapters.prm_formats import STEP_TOKENS
from trim_graph.adapters.protocols import ScorableStep
from trim_graph.adapters.scorers import as_scorer, read_scores
from trim_graph.errors import ModelServerError, ScorerError

from .chat_checks import longest, median_seconds, room
from .findings import Finding, fault, hint, ok
from .samples import ARITHMETIC, GENERAL, PROBE_TEXT, reads_arithmetic
from .server_checks import tokens_of
from .subjects import Subject, in_thread

_TOLD_APART = 0.8
"""Share of the samples that must come out right; a PRM worth its name gets nearly all of them."""


async def tokenizer(subject: Subject) -> Finding:
    """The tokenizer used here is the server's."""
    from trim_graph.adapters.model_source import check_model, load_tokenizer

    entry = subject.entry
    place = entry.tokenizer or str(subject.served.get("root") or entry.model)
    mend = "name the PRM's own folder or hub id in the setting tokenizer of scorer"
    try:
        loaded = await in_thread(lambda: load_tokenizer(check_model(place)))
    except (OSError, ValueError) as error:
        return fault(f"the tokenizer cannot be loaded from {place}: {error}", mend, ends=True)
    subject.known["tokenizer"] = loaded
    ours = list(loaded.encode(PROBE_TEXT, add_special_tokens=False))
    theirs = await tokens_of(subject, PROBE_TEXT)
    if theirs is None:
        subject.samples = ARITHMETIC if reads_arithmetic(ours) else GENERAL
        return hint(
            f"whether {place} has the server's tokenizer cannot be told: /tokenize is not let through",
            "let a gateway pass /tokenize on",
        )
    if theirs != ours:
        return fault(
            f"the tokenizer from {place} is another model's: it makes {len(ours)} tokens of a text of which "
            f"the server makes {len(theirs)}, or others",
            mend,
            ends=True,
        )
    subject.samples = ARITHMETIC if reads_arithmetic(ours) else GENERAL
    return ok(f"the server's, from {place}")


async def step_token(subject: Subject) -> Finding:
    """The step token is one token of the PRM's tokenizer."""
    token, loaded = subject.entry.step_token, subject.known["tokenizer"]
    if token is None and subject.entry.format == "qwen":
        token = STEP_TOKENS["qwen"]
    if token is None:
        return ok("the format's own")
    ids = list(loaded.encode(token, add_special_tokens=False))
    if len(ids) != 1 or (subject.entry.format == "qwen" and token not in loaded.get_added_vocab()):
        special = ", ".join(_like_step_tokens(loaded.get_added_vocab()))
        return fault(
            f"step_token={token!r} is no token of its own in the PRM's tokenizer, so nothing holds a score",
            f"write the PRM's step token, often one of its added tokens: {special}",
            ends=True,
        )
    subject.known["step_id"] = ids[0]
    return ok(f"{token!r} is token {ids[0]}")


def _like_step_tokens(added: Iterable[str]) -> list[str]:
    """Added tokens that look like one, the likeliest first."""
    marks = [token for token in added if token[:1] in "<[|" and " " not in token]
    words = ("extra", "step", "score", "prm")
    return sorted(marks, key=lambda token: (not any(word in token.lower() for word in words), token))[:8]


async def scores(subject: Subject) -> Finding:
    """One probability comes for each step."""
    sample = max(subject.samples, key=lambda sample: len(sample.right))
    try:
        for steps in (sample.right_steps[:1], sample.right_steps):
            await _scores(subject, sample.question, steps)
    except ScorerError as error:
        mend = "a scorer gives one probability per step"
        if "step_id" in subject.known and not isinstance(error.__cause__, ModelServerError):
            mend = (
                "start the server with --runner pooling --pooler-config "
                f'\'{{"pooling_type": "STEP", "step_tag_id": {subject.known["step_id"]}}}\' '
                "(trim-graph up --print shows the whole command)"
            )
        return fault(str(error), mend, ends=True)
    return ok("one probability a step")


async def ranking(subject: Subject) -> Finding:
    """Right steps score above wrong ones."""
    right, wrong = [], []
    for sample in subject.samples:
        right.append((await _scores(subject, sample.question, sample.right_steps))[-1])
        wrong.append((await _scores(subject, sample.question, sample.wrong_steps))[-1])
    subject.scores = right, wrong
    pairs = list(zip(right, wrong, strict=True))
    apart, turned = sum(r > w for r, w in pairs), sum(r < w for r, w in pairs)
    seen = f"{apart} of {len(pairs)} right steps score above their wrong form"
    means = f"on average {sum(right) / len(right):.2f} against {sum(wrong) / len(wrong):.2f}"
    if apart >= _TOLD_APART * len(pairs):
        return ok(f"{seen}, {means}")
    if turned >= _TOLD_APART * len(pairs):
        return fault(
            f"the scores are the wrong way round: only {seen}, {means}; it is as if the labels right "
            "and wrong were swapped",
            "use a PRM whose label 1 means right, as in Qwen2.5-Math-PRM, or swap the labels in its config "
            "and head",
        )
    if not _is_reward_model(subject):
        return hint(f"{seen}, {means}", "such a scorer tells little about a single step; measure it first")
    return fault(
        f"the scorer does not tell right from wrong: {seen}, {means}",
        "check that the server has the PRM's weights with their head, and that format is the PRM's",
    )


def _is_reward_model(subject: Subject) -> bool:
    return "prm" in subject.entry.type or subject.entry.type == "example"


async def context_length(subject: Subject) -> Finding:
    """The scorer reads a question with a step, and better with a whole solution."""
    length, settings = longest(subject), subject.settings
    if length is None:
        return ok("not told, so taken as enough")
    sample = subject.samples[0]
    await _scores(subject, sample.question, sample.right_steps[:1])
    asked = subject.known["input_tokens"][sample.question, 1]
    return room(subject.part, length, asked, settings.max_steps, settings.max_step_tokens)


async def latency(subject: Subject) -> Finding:
    """How long one scoring takes."""
    sample = subject.samples[0]
    subject.seconds = await median_seconds(lambda: _scores(subject, sample.question, sample.right_steps))
    patience = getattr(subject.entry, "read_timeout", None)
    if patience is not None and subject.seconds > patience / 4:
        return hint(
            f"{subject.seconds:.1f} s for one short solution; read_timeout={patience:g} is close",
            "raise read_timeout of scorer",
        )
    return ok(f"{subject.seconds * 1000:.0f} ms for one short solution (median)")


async def _scores(subject: Subject, question: str, steps: list[ScorableStep]) -> list[float]:
    reply = read_scores(await as_scorer(subject.adapter).ascore(question, steps), len(steps))
    subject.known.setdefault("input_tokens", {})[question, len(steps)] = reply.input_tokens
    return [float(score) for score in reply.scores]
