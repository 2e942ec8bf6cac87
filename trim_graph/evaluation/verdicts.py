"""Verdicts: what an arm saves compared to the large model alone, what it costs, and the summary.

"Use it" takes evidence: `LEAST` questions, and a loss of accuracy whose exact upper bound is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trim_graph.config import TrimConfig
from trim_graph.errors import counted

from .comparison import ADDED, LARGE, SMALL, UNKNOWN, Comparison
from .experiment import ExperimentRunner
from .metrics import LEAST
from .noninferiority import (
    CONFIDENCE,
    MAX_LOSS,
    MOST_QUESTIONS,
    PairedOutcomes,
    further_questions,
    rounded_up,
)
from .records import BUDGETS, SUMMARY_VERSION, Headline, Metric, RunSummary, Verdict, arm_label

Use = Literal["yes", "no", "undecided"]
WIDTH = 80
"""Letters of a headline."""
_Finding = tuple[Use, str]
"""What one comparison says, and the sentence for it."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Terms on which savings and losses of an arm are weighed.

    Attributes:
        priced: Whether there is a price table, of everything that is used.
        second: What a second of waiting costs, in the table's currency.
        max_loss: Loss of accuracy against the large model alone that is acceptable.
    """

    priced: bool
    second: float = 0.0
    max_loss: float = MAX_LOSS


def judge(comparison: Comparison, cost_model: CostModel) -> list[Verdict]:
    """Returns a verdict on every arm but those of the models alone and the random ones."""
    return [
        _verdict(comparison, name, cost_model)
        for name, settings in comparison.settings.items()
        if name in comparison.arms and settings["kind"] not in ("reference", "random")
    ]


def best_of(verdicts: Sequence[Verdict], comparison: Comparison) -> Verdict | None:
    """Returns the verdict of the whole evaluation: the best of those that say "use it", else "undecided"."""
    own = [v for v in verdicts if comparison.settings[v["arm"]]["kind"] != "baseline"] or list(verdicts)
    for use in ("yes", "undecided", "no"):
        if those := [verdict for verdict in own if verdict["use"] == use]:
            return max(those, key=lambda verdict: _gain(verdict["arm"], comparison))
    return None


_OVERALL = {
    "yes": "Use it here, with",
    "no": "Do not use it here. The best of them is",
    "undecided": "Undecided. The best so far is",
}


def overall(verdicts: Sequence[Verdict], comparison: Comparison) -> str:
    """Says of the whole evaluation whether to use trim-graph here, and with which policy."""
    best = best_of(verdicts, comparison)
    if best is None:
        return "No policy was evaluated beside the models alone."
    return f"{_OVERALL[best['use']]} {_without_end(best)}"


def headline(verdicts: Sequence[Verdict], comparison: Comparison, cost_model: CostModel) -> Headline:
    """Returns the verdict of the whole evaluation as one number and one short line."""
    best = best_of(verdicts, comparison)
    if best is None:
        return Headline(use="undecided", arm=None, number=None, text="Undecided: no policy was evaluated.")
    use, arm = best["use"], best["arm"]
    if _nothing_right(comparison):
        text = f"Undecided: both models answer 0 of {comparison.n} right. Check grader and prompt."
        return Headline(use=use, arm=arm, number=None, text=text)
    saved = best["net"] if cost_model.priced else best["saved"]
    key = "cost" if cost_model.priced else "large_tokens"
    whole, value = comparison.arms[LARGE].plain[key], saved["value"] or 0.0
    if whole <= 0:
        text = f"{_LEADS[use]}: the large model alone spends nothing."
        return Headline(use=use, arm=arm, number=None, text=text)
    verb, what = "saves" if value >= 0 else "adds", "cost" if cost_model.priced else "large tokens"
    number = f"{abs(100 * value / whole):.0f} %"
    right = best["accuracy"]["value"]
    few = f" on {comparison.n} of {LEAST} questions or more" if comparison.n < LEAST else ""
    lead, end = f"{_LEADS[use]}{few}: ", f" {verb} {number} of {what}"
    end += "." if right is None or few else f", accuracy {100 * right:+.1f} points."
    label, room = arm_label(arm, comparison.settings[arm]), WIDTH - len(lead + end)
    text = f"{lead}{label if len(label) <= room else f'{label[: max(0, room - 3)]}...'}{end}"
    return Headline(use=use, arm=arm, number=f"{verb} {number}", text=text)


_LEADS = {"yes": "Use it", "no": "Do not use it", "undecided": "Undecided"}


def _nothing_right(comparison: Comparison) -> bool:
    """Returns whether neither model alone answers any question right."""
    return comparison.graded and not any(comparison.arms[one].plain["correct"] for one in (SMALL, LARGE))


_ENDS = {"yes": "Use it here.", "no": "Do not use it here.", "undecided": "Undecided."}


def _without_end(verdict: Verdict) -> str:
    return verdict["text"].removesuffix(_ENDS[verdict["use"]]).rstrip()


def _gain(name: str, comparison: Comparison) -> float:
    """Returns how far an arm lies above the line from the small model alone to the large one."""
    share, pgr = comparison.point(name, drawn=False)
    if pgr is None or share is None:
        return -comparison.arms[name].plain["large_tokens"]
    large, own = (0 if comparison.unpriced else comparison.arms[one].plain["cost"] for one in (LARGE, name))
    return float(pgr - (own / large if large > 0 else share))


def _verdict(comparison: Comparison, name: str, cost_model: CostModel) -> Verdict:
    key = "large_cost" if cost_model.priced else "large_tokens"
    saved = _metric(comparison, name, lambda large, arm: _large(large, key) - _large(arm, key))
    seconds = comparison.difference(name, LARGE, "seconds")
    added = net = UNKNOWN
    if cost_model.priced:
        added = _metric(comparison, name, lambda large, arm: arm[ADDED] - large[ADDED])
        net = _metric(comparison, name, lambda large, arm: _net(large, arm, cost_model))
    accuracy = comparison.difference(name, LARGE, "correct")
    bound, findings = _loss(comparison, name, cost_model)
    use, reasons = _decide(comparison, name, net if cost_model.priced else saved, cost_model, findings)
    found = Verdict(
        arm=name,
        use=use,
        text="",
        saved=saved,
        added=added,
        net=net,
        accuracy=accuracy,
        seconds=seconds,
        loss_bound=bound,
    )
    text = [
        _cost_sentence(found, comparison, cost_model),
        *_further_sentences(found, cost_model),
        *_beyond_curve_sentence(comparison, name),
        *reasons,
    ]
    return Verdict(**{**found, "text": f"{name}: {' '.join(text)} {_ENDS[use]}"})


def _net(large: Any, arm: Any, cost_model: CostModel) -> Any:
    saved = large["cost"] - arm["cost"]
    return saved - cost_model.second * (arm["seconds"] - large["seconds"]) if cost_model.second else saved


def _net_spread(comparison: Comparison, name: str, cost_model: CostModel) -> str:
    """Reports the interval of what is saved net, as a share of the large model's cost."""
    large, arm = comparison.arms[LARGE].means, comparison.arms[name].means
    if not (large["cost"] > 0).all():
        return ""
    share = _net(large, arm, cost_model) / large["cost"]
    return _between(Metric(value=None, interval=comparison.spread(share)), 100, "%")


def _large(of: Any, key: str) -> Any:
    return of["cost"] - of[ADDED] if key == "large_cost" else of[key]


def _metric(comparison: Comparison, name: str, compute: Any) -> Metric:
    large, arm = comparison.arms[LARGE], comparison.arms[name]
    return Metric(
        value=float(compute(large.plain, arm.plain)),
        interval=comparison.spread(compute(large.means, arm.means)),
    )


def _loss(comparison: Comparison, name: str, cost_model: CostModel) -> tuple[float | None, list[_Finding]]:
    """Returns the exact upper bound of the loss against the large model alone, and what it says."""
    seen = comparison.outcomes(name, LARGE)
    if seen is None or comparison.n < LEAST:
        return None, []
    bound, allowed = seen.loss_bound(), cost_model.max_loss
    margin = f"{100 * allowed:.3g} points that --max-loss allows"
    if bound <= allowed:
        return bound, []
    least = 0.0 - seen.gain_interval().high
    if least > allowed:
        text = f"It loses at least {100 * least:.1f} points of accuracy, more than the {margin}."
        return bound, [("no", text)]
    text = (
        f"These questions do not show that it loses at most the {margin}: its loss may be "
        f"{100 * bound:.1f} points ({100 * CONFIDENCE:g} % confidence)."
    )
    if comparison.settings[name]["kind"] != "baseline":
        text += f" {_needed(seen, allowed)}"
    return bound, [("undecided", text)]


def _needed(seen: PairedOutcomes, allowed: float) -> str:
    """Says how many more questions are likely to show that a loss is within the margin."""
    more = further_questions(seen, allowed)
    if more is not None:
        return (
            f"About {rounded_up(more)} more questions are likely to show it, if questions are lost and "
            "gained as here, half a question added to either count."
        )
    if seen.loss < allowed:
        return f"If questions are lost and gained as here, that takes more than {MOST_QUESTIONS} questions."
    return f"Here it lost {100 * seen.loss:.1f} points: more questions show it only if that was chance."


def _decide(
    comparison: Comparison, name: str, net: Metric, cost_model: CostModel, found: list[_Finding]
) -> tuple[Use, list[str]]:
    """Weighs an arm: the worst of what is found counts; of too few questions nothing does."""
    if _nothing_right(comparison):
        text = f"Neither model answers any of the {comparison.n} questions right: check grader and prompt."
        return "undecided", [text]
    if comparison.n < LEAST:
        few = counted(comparison.n, "question is", "questions are")
        return "undecided", [f"{few} too few to decide: take {LEAST} or more."]

    def above(metric: Metric, least: float, failed: str, doubtful: str) -> None:
        value, spread = metric["value"], metric["interval"]
        if value is None:
            return
        if value <= least:
            found.append(("no", failed))
        elif spread is None or spread.low <= least:
            found.append(("undecided", doubtful))

    what = "than the large model alone"
    above(net, 0.0, f"It costs no less {what}.", f"These questions do not show whether it costs less {what}.")
    if not comparison.graded:
        found.append(("undecided", "Without right answers nothing is known of accuracy."))
    elif comparison.difference(LARGE, SMALL, "correct")["value"] <= 0:  # type: ignore[operator]
        found.append(("no", "The large model is no better than the small one here: use the small one alone."))
    else:
        gained = comparison.difference(name, SMALL, "correct")
        above(gained, 0.0, "It is no more often right than the small model alone.", "")
        line = _above_line(comparison, name)
        lottery = "drawing one of the two models for each question"
        above(
            line,
            0.0,
            f"At its spend {lottery} is as often right.",
            f"These questions do not show whether it beats {lottery}.",
        )
    matched = comparison.matched_budget(name)
    random = matched.pop("random", None)
    if random is not None and comparison.settings[name]["kind"] != "baseline":
        above(
            random["difference"],
            0.0,
            "Routing at random with the same spend is as often right: the scores are of no use.",
            "These questions do not show whether it beats routing at random with the same spend.",
        )
        if random["curve_ends"] is not None:
            found.append(("undecided", ""))  # `_beyond_curve_sentence` says why
    better = [family for family, one in matched.items() if _below_zero(one["difference"])]
    if better:
        found.append(
            ("no", f"With the same large tokens {' and '.join(better)} is more often right: use that.")
        )
    if not cost_model.priced:
        lacking = f"a price of {_listed(comparison.unpriced)}" if comparison.unpriced else "prices"
        found.append(("undecided", f"Without {lacking} nobody can say whether that pays."))
    order = ("no", "undecided", "yes")
    use: Use = min((use for use, _ in found), key=order.index, default="yes")
    return use, [reason for one, reason in found if one == use and reason]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def unpriced_warning(names: Sequence[str]) -> str:
    """Says that prices are lacking, and how to state them."""
    absent = {name.partition(".")[0] for name in names}
    example = ", ".join(f"{name}: {{input: 0, output: 0}}" for name in sorted(absent))
    return (
        f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no price, and what has none is not free: "
        f"costs are unknown. State it in prices, where it is free as 0: {{{example}}}"
    )


def _below_zero(difference: Metric) -> bool:
    """Returns whether a difference is below 0 beyond doubt."""
    spread = difference["interval"]
    return spread is not None and spread.high < 0


def _beyond_curve_sentence(comparison: Comparison, name: str) -> list[str]:
    """Says where an arm spends more than any point of the curve of random routing."""
    random = comparison.matched_budget(name).get("random")
    if random is None or random["curve_ends"] is None:
        return []
    spend = comparison.arms[name].plain["large_tokens"]
    return [
        f"It spends {spend:.4g} large tokens a question, and routing at random was measured up to "
        f"{random['curve_ends']:.4g}: which of the two is more often right there is not known."
    ]


def _above_line(comparison: Comparison, name: str) -> Metric:
    """Returns accuracy above the straight line from small alone to large alone, at the arm's spend."""
    (share, pgr), (shares, pgrs) = (comparison.point(name, drawn=drawn) for drawn in (False, True))
    if share is None or pgr is None:
        return UNKNOWN
    return Metric(value=pgr - share, interval=comparison.spread(pgrs - shares))


def _cost_sentence(verdict: Verdict, comparison: Comparison, cost_model: CostModel) -> str:
    large, arm = comparison.arms[LARGE].plain, comparison.arms[verdict["arm"]].plain
    saved = verdict["saved"]["value"] or 0.0
    whole = large["cost" if cost_model.priced else "large_tokens"]
    if not cost_model.priced:
        extra, written = arm["small_tokens"], arm["scorer_output_tokens"]
        judged = f", and {written:.4g} that it writes" if written else ""
        text = (
            f"It saves {saved:.4g} of {whole:.4g} large tokens a question{_percent(saved, whole)} and spends "
            f"{extra:.4g} small tokens and {arm['scorer_tokens']:.4g} that the scorer reads{judged}."
        )
        if saved > 0:
            ratio = (extra + arm["scorer_tokens"] + written) / saved
            text += f" That pays where a large token costs more than {ratio:.3g} small or scorer tokens."
        return text
    added, net = verdict["added"]["value"] or 0.0, verdict["net"]["value"] or 0.0
    return (
        f"It saves {_share(saved, whole)} of the large model's cost and spends {_share(added, whole)} on the "
        f"small model and the scorer: {_share(net, whole)} net"
        f"{_net_spread(comparison, verdict['arm'], cost_model)}"
        f"{', waiting paid' if cost_model.second else ''}."
    )


def _further_sentences(verdict: Verdict, cost_model: CostModel) -> list[str]:
    text = []
    accuracy, seconds = verdict["accuracy"], verdict["seconds"]
    if accuracy["value"] is not None:
        text.append(f"Accuracy {accuracy['value']:+.3f}{_between(accuracy, 1, '')} beside the large model.")
    if seconds["value"] is not None:
        text.append(f"Wall clock {seconds['value']:+.3g} s a question{_between(seconds, 1, 's')}.")
    net = verdict["net"]["value"]
    if net is not None and net > 0 and not cost_model.second and (seconds["value"] or 0.0) > 0:
        text.append(f"That pays where a second of waiting costs less than {net / seconds['value']:.3g}.")  # type: ignore[operator]
    return text


def _share(value: float, whole: float) -> str:
    return f"{round(100 * value / whole, 6):.3g} %" if whole else f"{value:.3g}"


def _percent(value: float, whole: float) -> str:
    return f" ({100 * value / whole:.3g} %)" if whole else ""


def _between(metric: Metric, scale: float, unit: str) -> str:
    spread = metric["interval"]
    if spread is None:
        return ""
    return f" ({scale * spread.low:.3g} to {scale * spread.high:.3g}{' ' + unit if unit else ''})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def summarise_run(
    runner: ExperimentRunner,
    config: TrimConfig,
    cost_model: CostModel,
    warnings: Sequence[str],
    *,
    command: str,
) -> RunSummary:
    """Returns metrics, curves and verdicts of all arms that are complete.

    Args:
        runner: After its last arm.
        config: Whose models they are.
        cost_model: How costs are compared.
        warnings: What a reader should know besides.
        command: That made it.
    """
    run_config = runner.run_config
    done = {name: runner.done[name] for name in (SMALL, LARGE)} | runner.done
    unpriced = runner.unpriced() if cost_model.priced else []
    if unpriced:
        cost_model = replace(cost_model, priced=False)
        warnings = [*warnings, unpriced_warning(unpriced)]
    comparison = Comparison(done, runner.arms, n=run_config.distinct, unpriced=unpriced)
    verdicts = judge(comparison, cost_model)
    whole = done[LARGE].plain["large_tokens"]
    failed = {name: arm.errors for name, arm in done.items() if arm.errors}
    text = [
        f"{counted(count, 'run')} of {name} failed: "
        f"{'it counts' if count == 1 else 'they count'} as wrong, and as free; "
        f"the first with {_short(runner.first_error(name))}"
        for name, count in failed.items()
    ]
    return RunSummary(
        version=SUMMARY_VERSION,
        dataset={"name": run_config.dataset.name, **run_config.dataset.identity()},
        n=run_config.distinct,
        samples=run_config.samples,
        seed=run_config.seed,
        concurrency=run_config.concurrency,
        priced=cost_model.priced,
        models={
            part: config.model_dump(mode="json", include={part})[part]
            for part in ("small", "large", "scorer")
        },
        budgets={f"{share:g}": share * whole for share in BUDGETS},
        arms=comparison.summaries(),
        curves=comparison.curves(),
        verdicts=verdicts,
        verdict=overall(verdicts, comparison),
        headline=headline(verdicts, comparison, cost_model),
        max_loss=cost_model.max_loss,
        command=command,
        large_alone=comparison.large_alone().model_dump(),
        warnings=[*warnings, *text],
    )
