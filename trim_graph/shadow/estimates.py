"""What the records of a shadow say: shares, savings and agreement with intervals, a verdict, how many more.

Questions are the units: records of one question (the turns of an agent, a question that was asked again) are
summed first, so that repeated questions do not narrow an interval. Intervals are 95 %:

- shares, and sums an answer, by the ratio estimator, its variance by linearisation, Student's t (Cochran,
  *Sampling Techniques*, section 6.4). Where the share is 0 that variance is 0 too: the bound is then the
  exact one of the share of questions with any large token.
- agreement, and whether the large model is asked at all, by Clopper and Pearson's exact method.
- the loss of accuracy as `trim-graph eval` tests it (`trim_graph.evaluation.noninferiority`); without a
  grader all answers that differ count as lost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from trim_graph.errors import counted
from trim_graph.evaluation.metrics import LEAST
from trim_graph.evaluation.noninferiority import (
    MAX_LOSS,
    PairedOutcomes,
    chance_interval,
    further_questions,
)

from .records import Application, Kind, ShadowRecord

Use = Literal["yes", "no", "undecided"]
_KINDS: tuple[Kind, ...] = ("run", "walk", "turn")


class Estimate(TypedDict):
    """A value with its 95 % interval; None where nothing is known."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Questions that it is computed from."""


class Group(TypedDict):
    """What the records of one kind say."""

    application: Application
    kind: Kind
    records: int
    questions: int
    failed: int
    errors: dict[str, int]
    """Types of the errors of failed records, the most frequent first, with their numbers."""
    refused: int
    """Records of runs that the shadow's budget did not admit."""
    share: Estimate
    """Large tokens as a share of those of the application, if the large model answers."""
    asked: Estimate
    """Share of the questions of which the large model would have written a step at all."""
    large_tokens_saved: Estimate
    """An answer: large tokens of the application's answers minus those of routing."""
    cost_saved: Estimate
    """An answer: cost of the application's answers minus that of routing, small model and scorer included;
    negative where routing costs more. None without prices."""
    seconds_saved: Estimate
    """An answer, as both were measured, the shadow's own load included."""
    savings: dict[str, Estimate]
    """Net savings against the large model alone, as the routed runs' own summaries estimate them."""
    small_tokens: Estimate
    scorer_tokens: Estimate
    agreement: Estimate
    correct: dict[str, Estimate]
    """Accuracy of ``application`` and ``routed``, and ``difference``, where a grader was given."""
    first_large: dict[str, int]
    """Questions by the index of the first step of the large model."""


class ApplicationVerdict(TypedDict):
    """A verdict on routing for one application."""

    application: Application
    use: Use
    text: str
    more_questions: int | None
    """Further examined questions after which the present figures would decide; 0 if they do, None if no
    number of them would."""
    more_answers: int | None
    """The same as answers of the application, at the rates so far."""


class ShadowSummary(TypedDict):
    """All that a file of records says."""

    max_loss: float
    groups: list[Group]
    verdicts: list[ApplicationVerdict]
    counts: dict[str, int]
    """Counts of all shadows that wrote to the file, each as of its last record."""
    warnings: list[str]


UNKNOWN = Estimate(value=None, low=None, high=None, n=0)


@dataclass
class _Question:
    """Sums over the records of one question; a sum is None once a record does not know its part."""

    sums: dict[str, float | None] = field(default_factory=dict)
    answers: int = 0
    """Records of runs or walks; the turns of an agent are one answer."""
    agree: bool | None = None
    asked: bool = False
    first: int | None = None
    correct: dict[str, bool] = field(default_factory=dict)

    def add(self, name: str, value: float | None) -> None:
        known = self.sums.get(name, 0.0)
        self.sums[name] = None if value is None or known is None else known + value


@dataclass
class _Gathered:
    questions: dict[str, _Question] = field(default_factory=lambda: defaultdict(_Question))
    records: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    refused: int = 0


def summarise_shadow(records: Iterable[ShadowRecord], *, max_loss: float = MAX_LOSS) -> ShadowSummary:
    """Returns what records say.

    Args:
        records: Of any order.
        max_loss: Loss of accuracy, as a share of the questions, that is acceptable.

    Raises:
        ImportError: scipy is not installed.
    """
    gathered: dict[tuple[Application, Kind], _Gathered] = defaultdict(_Gathered)
    sessions: dict[str, dict[str, int]] = {}
    for record in records:
        known = sessions.setdefault(record["session"], {})
        for name, count in record["counts"].items():
            known[name] = max(count, known.get(name, 0))
        _gather(gathered[record["application"], record["kind"]], record)
    counts: dict[str, int] = defaultdict(int)
    for session in sessions.values():
        for name, count in session.items():
            if name != "pending":
                counts[name] += count
    groups = [
        _group(application, kind, gathered[application, kind])
        for application in ("large", "small")
        for kind in _KINDS
        if (application, kind) in gathered
    ]
    verdicts = [
        _verdict(
            application,
            gathered,
            [group for group in groups if group["application"] == application],
            counts,
            max_loss,
        )
        for application in ("large", "small")
        if any(group["application"] == application for group in groups)
    ]
    return ShadowSummary(
        max_loss=max_loss,
        groups=groups,
        verdicts=verdicts,
        counts=dict(counts),
        warnings=_warnings(groups, counts),
    )


def _gather(into: _Gathered, record: ShadowRecord) -> None:
    into.records += 1
    into.refused += record["refused"] is not None
    would, answered = record["would"], record["answered"]
    if record["error"] is not None or would is None or answered is None:
        # Its type: a message may be in the record, and repeat a text.
        into.errors[(record["error"] or "incomplete record").partition(":")[0]] += 1
        return
    question = into.questions[record["question"]["sha256"]]
    question.answers = 1 if record["kind"] == "turn" else question.answers + 1
    own_large = answered["output_tokens"] if record["application"] == "large" else 0
    question.add("own_large", own_large)
    question.add("would_large", would["large_tokens"])
    question.add("small_tokens", would["small_tokens"])
    question.add("scorer_tokens", would["scorer_tokens"])
    question.add("cost_saved", _difference(answered["cost"], would["cost"]))
    question.add("seconds_saved", _difference(answered["seconds"], would["seconds"]))
    savings = (record["summary"] or {}).get("savings")
    if isinstance(savings, dict):
        for name in ("tokens", "cost", "seconds"):
            value = savings.get(name)
            question.add(f"savings_{name}", float(value) if isinstance(value, int | float) else None)
    question.asked = question.asked or would["first_large"] is not None
    if would["first_large"] is not None and question.first is None:
        question.first = record["turn"] if record["turn"] is not None else would["first_large"]
    if record["agree"] is not None:
        question.agree = record["agree"] and question.agree is not False
    for name, right in (record["correct"] or {}).items():
        if right is not None:
            question.correct[name] = right and question.correct.get(name, True)


def _difference(own: float | None, would: float | None) -> float | None:
    return None if own is None or would is None else own - would


def _group(application: Application, kind: Kind, found: _Gathered) -> Group:
    questions = list(found.questions.values())

    def mean(name: str) -> Estimate:
        known = [(value, q.answers) for q in questions if (value := q.sums.get(name)) is not None]
        # A walk knows the cost of the questions that need no large model: no sample of all.
        return UNKNOWN if kind != "run" and len(known) < len(questions) else ratio_of(known)

    pairs = [
        (would, own, q.answers)
        for q in questions
        if (would := q.sums.get("would_large")) is not None and (own := q.sums.get("own_large")) is not None
    ]
    first: dict[str, int] = defaultdict(int)
    for q in questions:
        if q.first is not None:
            first[str(q.first)] += 1
    agreeing = [q.agree for q in questions if q.agree is not None]
    # Of a walk only the questions that it settles are known, which is no sample of all.
    agreement = proportion(sum(agreeing), len(agreeing)) if kind != "walk" else UNKNOWN
    graded = [q.correct for q in questions if {"application", "routed"} <= q.correct.keys()]
    correct: dict[str, Estimate] = {}
    if graded and kind == "run":
        for name in ("application", "routed"):
            correct[name] = proportion(sum(one[name] for one in graded), len(graded))
        correct["difference"] = _accuracy_difference(graded)
    large = application == "large"
    return Group(
        application=application,
        kind=kind,
        records=found.records,
        questions=len(questions),
        failed=found.errors.total(),
        errors=dict(found.errors.most_common()),
        refused=found.refused,
        share=share_of([(would, own) for would, own, _ in pairs]) if large else UNKNOWN,
        asked=proportion(sum(q.asked for q in questions), len(questions)),
        large_tokens_saved=ratio_of([(own - would, count) for would, own, count in pairs])
        if large
        else UNKNOWN,
        cost_saved=mean("cost_saved"),
        seconds_saved=mean("seconds_saved"),
        savings={
            name: one for name in ("tokens", "cost", "seconds") if (one := mean(f"savings_{name}"))["n"]
        },
        small_tokens=mean("small_tokens"),
        scorer_tokens=mean("scorer_tokens"),
        agreement=agreement,
        correct=correct,
        first_large=dict(sorted(first.items(), key=lambda item: int(item[0]))),
    )


def proportion(count: int, n: int) -> Estimate:
    """Returns a share of questions with Clopper and Pearson's interval."""
    if not n:
        return UNKNOWN
    low, high = chance_interval(count, n)
    return Estimate(value=count / n, low=low, high=high, n=n)


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Returns the ratio of two sums with its interval; without one for a single question.

    Args:
        pairs: Numerator and denominator of each question.
    """
    n, whole = len(pairs), math.fsum(own for _, own in pairs)
    if not n or whole <= 0:
        return UNKNOWN
    ratio = math.fsum(part for part, _ in pairs) / whole
    if n == 1:
        return Estimate(value=ratio, low=None, high=None, n=1)
    scatter = math.fsum((part - ratio * own) ** 2 for part, own in pairs)
    half = _student(n) * math.sqrt(scatter / (n * (n - 1))) / (whole / n)
    return Estimate(value=ratio, low=ratio - half, high=ratio + half, n=n)


def share_of(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Returns a ratio that is never negative; of 0 its bound is that of the questions with any of it."""
    found = ratio_of(pairs)
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return found
    if found["value"] == 0:
        high = proportion(0, found["n"])["high"]
    return Estimate(value=found["value"], low=max(0.0, low), high=high, n=found["n"])


def _student(n: int) -> float:
    from scipy.stats import t  # type: ignore[import-untyped]

    return float(t.ppf(0.975, n - 1))


def _paired(graded: Sequence[dict[str, bool]]) -> PairedOutcomes:
    """Returns how many questions routing loses and gains against the application."""
    return PairedOutcomes.of(*([one[name] for one in graded] for name in ("routed", "application")))


def _accuracy_difference(graded: Sequence[dict[str, bool]]) -> Estimate:
    """Returns the accuracy of routing minus the application's."""
    paired = _paired(graded)
    low, high = paired.gain_interval()
    return Estimate(value=0.0 - paired.loss, low=low, high=high, n=paired.n)


@dataclass(frozen=True)
class _Finding:
    use: Use
    text: str
    needed: int | None = None
    """Questions with which the finding would be "yes"; None if no number would do."""


def _verdict(
    application: Application,
    gathered: dict[tuple[Application, Kind], _Gathered],
    groups: Sequence[Group],
    counts: dict[str, int],
    max_loss: float,
) -> ApplicationVerdict:
    by_kind = {group["kind"]: group for group in groups}
    best = next(by_kind[kind] for kind in ("run", "turn", "walk") if kind in by_kind)
    found = gathered[application, best["kind"]]
    graded = [q.correct for q in found.questions.values() if {"application", "routed"} <= q.correct.keys()]
    if application == "large":
        findings = [_saves(best), _keeps_quality(best, graded, max_loss)]
    else:
        findings = [_gains(best, graded)]
    if best["questions"] < LEAST:
        few = counted(best["questions"], "question is", "questions are")
        findings.append(_Finding("undecided", f"{few} too few to decide.", LEAST))
    order = ("no", "undecided", "yes")
    use: Use = min((one.use for one in findings), key=order.index)
    end = {"yes": "Turn it on.", "no": "Do not turn it on.", "undecided": "Undecided."}[use]
    more: int | None = 0
    if use == "undecided":
        needed = [one.needed for one in findings if one.use == "undecided"]
        known = [one for one in needed if one is not None]
        more = None if len(known) < len(needed) else max(0, max(known) - best["questions"])
    answers = None
    if more is not None and best["questions"]:
        answers = math.ceil(more * max(counts.get("seen", 0), best["records"]) / best["questions"])
    if use == "undecided" and more:
        decide = counted(more, "more examined question decides", "more examined questions decide")
        end += f" With figures as these, {decide}"
        further = "" if answers is None else counted(answers, "more answer")
        end += f" (about {further} of the application)." if answers else "."
    elif use == "undecided" and more is None:
        end += " More questions of this kind do not decide."
    text = " ".join([*(one.text for one in findings), end])
    return ApplicationVerdict(
        application=application, use=use, text=text, more_questions=more, more_answers=answers
    )


def _saves(group: Group) -> _Finding:
    share, saved = group["share"], group["cost_saved"]
    what = {"run": "Routed", "walk": "Along its answers", "turn": "Turn by turn"}[group["kind"]]
    text = "Nothing is known of the share of large tokens: the answers have no usage."
    if share["value"] is not None:
        text = f"{what}, the large model would write {_percent(share)} of its tokens."
    if saved["value"] is None:
        return _Finding("undecided", f"{text} Without prices nobody can say whether that pays.")
    text += f" Net saving an answer {_number(saved)}."
    low, high = saved["low"], saved["high"]
    if low is not None and low > 0:
        return _Finding("yes", text)
    if high is not None and high <= 0:
        return _Finding("no", f"{text} Routing costs more than the large model alone.")
    needed = None
    if high is not None and saved["value"] > 0:
        half, n = high - saved["value"], saved["n"]
        needed = math.ceil(n * (half / saved["value"]) ** 2)
    return _Finding("undecided", text, needed)


def _keeps_quality(group: Group, graded: Sequence[dict[str, bool]], max_loss: float) -> _Finding:
    if group["kind"] == "walk":
        return _Finding(
            "undecided", "A walk does not know the routed answers: set run_rate above 0 to compare them."
        )
    if graded:
        paired = _paired(graded)
        what = (
            f"Of {counted(paired.n, 'graded question')} routing loses {paired.lost:g} and gains "
            f"{paired.gained:g}"
        )
    else:
        agreement = group["agreement"]
        if agreement["value"] is None:
            return _Finding(
                "undecided", "No answers could be compared: give agreement= or grade= to the shadow."
            )
        n = agreement["n"]
        # At worst all answers that differ are lost.
        paired = PairedOutcomes(n, lost=round((1 - agreement["value"]) * n), gained=0)
        unit = counted(n, "question") + ("" if group["kind"] == "run" else ", turn by turn")
        what = f"The answers agree in {n - paired.lost:g} of {unit} ({_percent(agreement)})"
    bound = paired.loss_bound()
    text = f"{what}: at most {100 * bound:.3g} points of accuracy are lost, with 95 % confidence."
    if group["kind"] == "turn":
        return _Finding("undecided", f"{text} What tools would have answered to another turn is not known.")
    if bound <= max_loss:
        return _Finding("yes", text)
    if graded and paired.gain_interval().high < -max_loss:
        return _Finding("no", f"{text} More than {100 * max_loss:.3g} points are lost.")
    text += f" {100 * max_loss:.3g} points are acceptable."
    further = further_questions(paired, max_loss)
    if further is None and not graded:
        text += " Answers that differ need not be wrong: give grade= to the shadow."
    return _Finding("undecided", text, None if further is None else paired.n + further)


def _gains(group: Group, graded: Sequence[dict[str, bool]]) -> _Finding:
    asked = group["asked"]
    text = f"Routing would ask the large model in {_percent(asked)} of the questions."
    saved = group["cost_saved"]
    if saved["value"] is not None and group["kind"] == "run":
        text += f" It would cost {_number(_negative(saved))} more an answer."
    if group["kind"] != "run":
        return _Finding("undecided", f"{text} What it would answer there is not known: set run_rate above 0.")
    if not graded:
        return _Finding(
            "undecided", f"{text} Whether its answers are better only a grader can say: give grade=."
        )
    paired = _paired(graded)
    text += (
        f" Of {counted(paired.n, 'graded question')} it gains {paired.gained:g} and loses {paired.lost:g}."
    )
    if paired.loss_bound() < 0:
        return _Finding("yes", text)
    if paired.reversed.loss_bound() <= 0:
        return _Finding("no", f"{text} It is no more often right than the small model alone.")
    further = further_questions(paired, 0.0)
    return _Finding("undecided", text, None if further is None else paired.n + further)


def _warnings(groups: Sequence[Group], counts: dict[str, int]) -> list[str]:
    warnings = []
    if dropped := counts.get("dropped"):
        of = counts.get("submitted", 0)
        warnings.append(
            f"{dropped} of {of} drawn answers were dropped because the queue was full: busy times are "
            "underrepresented. Lower rate, or raise concurrency"
        )
    for group in groups:
        name = f"application={group['application']}, kind={group['kind']}"
        if group["failed"]:
            warnings.append(
                f"{group['failed']} of {counted(group['records'], 'record')} failed ({name}), by "
                f"{_by_number(group['errors'])}: no figure has them"
            )
        if group["refused"]:
            warnings.append(
                f"{counted(group['refused'], 'run was', 'runs were')} refused because the shadow's "
                f"budget was spent ({name}): what "
                "came later is underrepresented among the runs"
            )
    by_kind: dict[Any, Group] = {(g["application"], g["kind"]): g for g in groups}
    run, walk = by_kind.get(("large", "run")), by_kind.get(("large", "walk"))
    if walk and walk["share"]["value"] is not None:
        text = "shares of walks are teacher-forced: each draft follows the large model's own steps"
        if run and run["share"]["value"] is not None:
            off = walk["share"]["value"] - run["share"]["value"]
            text += f". Here they are {100 * off:+.3g} points beside those of runs"
        warnings.append(text)
    return warnings


def _by_number(errors: dict[str, int]) -> str:
    """Returns the types of errors, the most frequent first, with their numbers."""
    return ", ".join(f"{name} ({number})" for name, number in errors.items())


def _negative(one: Estimate) -> Estimate:
    value, low, high = one["value"], one["low"], one["high"]
    return Estimate(
        value=None if value is None else -value,
        low=None if high is None else -high,
        high=None if low is None else -low,
        n=one["n"],
    )


def _percent(one: Estimate) -> str:
    if one["value"] is None:
        return "an unknown share"
    text = f"{100 * one['value']:.3g} %"
    if one["low"] is None or one["high"] is None:
        return text
    return f"{text} ({100 * one['low']:.3g} to {100 * one['high']:.3g} %)"


def _number(one: Estimate) -> str:
    if one["value"] is None:
        return "unknown"
    if one["low"] is None or one["high"] is None:
        return f"{one['value']:.3g}"
    return f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})"
