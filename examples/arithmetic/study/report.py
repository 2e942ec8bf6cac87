"""RESULTS.md, written from the document of a run and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trim_graph.evaluation.metrics import SHARES

from .claims import claims
from .measuring import BUDGET, WITHIN

SHOWN = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Shares whose operating points are in the tables."""
MOST_IBC = sum(SHARES / number for number in range(1, SHARES + 1)) / SHARES
CPTS = ("cpt_50", "cpt_80", "cpt_95")
SCORERS = {
    "prm": "the shipped PRM",
    "prm_early": "the same after a tenth of its training (`prm_early`)",
    "token probability": "none: mean token probability of the draft",
}


def report(document: dict[str, Any]) -> str:
    """Writes the report as Markdown."""
    worlds = document["worlds"]
    parts = [
        _head(document),
        "## What the paper claims, and what holds here",
        "\n".join(f"- {line}" for line in claims(document)),
        "## The models alone",
        _alone(worlds),
        "## Accuracy against the share of large tokens",
        _intro_points(),
        "![accuracy against the share of large tokens](results.png)",
    ]
    for split, world in worlds.items():
        parts += [f"### {split}", _points(world), _curves(world)]
    parts += ["## The paper's own test", _PAPER_TEST, _paper_test(worlds)]
    parts += ["## Against routing whole questions", _AGAINST, _against(worlds)]
    parts += ["## What staying, planning and learning add to the threshold", _ADDS, _adds(worlds)]
    if len(worlds) > 1:
        parts += ["## Tuned on one world, tested on another", _TRANSFER, _transfer(document["transfer"])]
    if document["scorers"]:
        one = next(iter(document["scorers"].values()))
        numbers = f"{one['n']} test and {one['n_validation']} validation problems."
        parts += ["## A worse scorer", f"{_SCORERS} {numbers}", _scorers(document["scorers"])]
    if document["checks"]:
        parts += ["## The recorded solutions are the graph's", _checks(document["checks"])]
    return "\n\n".join(parts) + "\n"


_ORACLE = (
    "A judge without error regenerates exactly the drafts that are wrong: its accuracy and share of large "
    "tokens. "
    f"With hindsight: the least share that comes within {WITHIN:.0%} of the large model, each problem on "
    "its cheapest "
    "way to the right answer; no policy can do it for less."
)
_AGAINST = (
    f"Taken over these shares no mean IBC can be above {MOST_IBC:.2f}, that of a policy which recovers the "
    "whole gap "
    "at the first of them, and no mean Delta IBC above that less 1. "
    "The same measures for the threshold and for what gives a whole question to one model: the trained "
    "router, "
    "and the cascade, which has the small model answer first and asks the large one where the confidence in "
    "the whole answer is low. A ratio is reported only where the interval of what it is divided by is clear "
    "of zero."
)
_PAPER_TEST = (
    "The Delta IBC of each family that routes steps, divided by that of the best query-level method of its "
    "world: the trained router and both cascades, that on the same reward model included. A Delta IBC is the "
    "mean over 20 evenly spaced shares up to the curve's own CPT(95), as in `trim-graph eval`. The paper "
    "reports 4.75 / 0.95 for the threshold on MATH-500 and 5.00 / 0.79 for the planned policy on AIME, and "
    "does not say over which shares it takes the mean. A value without brackets was read off the recorded "
    "operating points, which give no interval."
)
_ADDS = (
    "Each operating point beside the threshold that spends as many large tokens on the same test problems or "
    "slightly more (matched by spend alone); differences of accuracy are paired by problem, in brackets 95 % "
    "intervals. **Bold**: clear of zero."
)
_TRANSFER = (
    f"Operating points for {BUDGET:.0%} of the large tokens, chosen on the validation problems of one "
    "world and "
    "measured on the test problems of another. Beside them two kinds of chance: random steps that spend "
    "there as "
    "much or slightly more, and random whole questions of the same spend. "
    "The networks and the step model were trained on `standard` only; what is tuned is their cost and limit. "
    "Of the router, weights and limit come from the world it is tuned on."
)
_SCORERS = "The threshold on `standard`, tuned anew for each scorer; the texts are the same."


def _head(document: dict[str, Any]) -> str:
    machine, seeds = document["machine"], document["seeds"]
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    sizes = "; ".join(
        f"{split}: {world['n']} test, {world['n_validation']} validation"
        for split, world in document["worlds"].items()
    )
    return (
        "# Measured results of the example world\n\n"
        f"Written by `make results` ({document['date'][:10]}; {machine['processor']}, "
        f"{machine['cpu_count']} cores; {versions}); `results.json` holds every figure.\n\n"
        f"Problems: {sizes}. Seeds: test {seeds['test']}, validation {seeds['validation']}, training of "
        "the query "
        f"router {seeds['training']}, bootstrap {seeds['bootstrap']} ({document['resamples']} resamples). In "
        "brackets 95 % intervals of a paired bootstrap over problems. Operating points and the best family "
        "were "
        "chosen on validation problems; the test problems were looked at once."
    )


def _alone(worlds: dict[str, Any]) -> str:
    rows = [
        [
            split,
            figure(world["small"]),
            f"{world['small_steps_right']:.3f}",
            figure(world["large"]),
            f"{world['large_tokens']:.1f}",
            f"{figure(world['oracle']['accuracy'])} at {figure(world['oracle']['share'])}",
            "not known" if world["floor"] is None else f"{world['floor']:.3f}",
        ]
        for split, world in worlds.items()
    ]
    heads = ["world", "small alone", "its steps right", "large alone", "tokens of large alone"]
    return f"{_ORACLE}\n\n" + table([*heads, "judge without error", "least share, with hindsight"], rows)


def _intro_points() -> str:
    return (
        "For each share of large tokens, the setting of a family that was right most often on validation "
        "problems "
        "within that share: its accuracy on the test problems, and the share it took there. Mean IBC and "
        "mean "
        "Delta IBC are taken over shares of 0.05, 0.10, ..., 1.00 of the curve through all such points; "
        "CPT(x) is "
        "the least share that recovers x % of the gap on it."
    )


def _points(world: dict[str, Any]) -> str:
    rows = []
    for name, family in world["families"].items():
        known = {point["target"]: point for point in family["points"]}
        cells = [
            f"{known[share]['accuracy']['value']:.3f} at {known[share]['share']['value']:.3f}"
            if share in known
            else ""
            for share in SHOWN
        ]
        rows.append([name, *cells])
    return table(["family", *(f"within {share:g}" for share in SHOWN)], rows)


def _curves(world: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(figure(family["curve"].get(key), 2) for key in ("mean_ibc", "mean_delta_ibc")),
            *_cpts(family["curve"]),
        ]
        for name, family in world["families"].items()
    ]
    return table(["family", "mean IBC", "mean Delta IBC", "CPT(50)", "CPT(80)", "CPT(95)"], rows)


def _cpts(curve: dict[str, Any]) -> list[str]:
    return [figure(curve.get(key)) for key in CPTS]


def _against(worlds: dict[str, Any]) -> str:
    rows = []
    for split, world in worlds.items():
        for other, measures in world["against"].items():
            for key, name in (("mean_ibc", "mean IBC"), ("mean_delta_ibc", "mean Delta IBC")):
                ours = world["families"]["threshold"]["curve"][key]
                theirs = world["families"][other]["curve"][key]
                found = measures[key]
                rows.append(
                    [
                        split,
                        other,
                        name,
                        figure(ours, 2),
                        figure(theirs, 2),
                        figure(found["difference"], 2),
                        figure(found["ratio"], 1) or "not reported",
                    ]
                )
    return table(["world", "beside", "measure", "threshold", "the other", "difference", "ratio"], rows)


def _paper_test(worlds: dict[str, Any]) -> str:
    rows = [
        [
            split,
            name,
            figure(world["families"][name]["curve"]["delta_ibc"], 2),
            figure(world["families"][name]["curve"]["cpt_95"]),
            f"{found['beside']}: {figure(world['families'][found['beside']]['curve']['delta_ibc'], 2)}",
            figure(found["difference"], 2),
            figure(found["ratio"], 1) or "not reported",
        ]
        for split, world in worlds.items()
        for name, found in world["over_query_level"].items()
    ]
    heads = ["world", "family", "Delta IBC", "CPT(95)", "best query-level", "difference", "ratio"]
    return table(heads, rows)


def _adds(worlds: dict[str, Any]) -> str:
    rows = []
    for split, world in worlds.items():
        for row in world["adds"]:
            rows.append(
                [
                    split,
                    row["family"],
                    f"{row['accuracy']:.3f} at {row['share']:.3f}",
                    f"{row['threshold_share']:.3f}",
                    signed(row["difference"]),
                ]
            )
    return table(
        ["world", "family", "accuracy", "share of the threshold", "accuracy over the threshold"], rows
    )


def _transfer(rows: Sequence[dict[str, Any]]) -> str:
    worlds = list(dict.fromkeys(row["tested_on"] for row in rows))
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        for source in worlds:
            found = {
                row["tested_on"]: row for row in rows if (row["family"], row["tuned_on"]) == (family, source)
            }
            if found:
                lines.append([family, source, *(_transferred(found[target]) for target in worlds)])
    return table(["family", "tuned on", *(f"tested on {target}" for target in worlds)], lines)


def _transferred(row: dict[str, Any]) -> str:
    home = " (its own)" if row["tuned_on"] == row["tested_on"] else ""
    return (
        f"{row['accuracy']:.3f} at {row['share']:.3f}{home}; over random steps "
        f"{signed(row['over_random'])}, over "
        f"random questions {signed(row['over_questions'])}"
    )


def _scorers(scorers: dict[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        at = found["budget"]
        rows.append(
            [
                SCORERS[name],
                f"{found['auc']:.3f}",
                "" if at is None else f"{figure(at['accuracy'])} at {at['share']['value']:.3f}",
                figure(found["curve"]["mean_ibc"], 2),
                *_cpts(found["curve"]),
            ]
        )
    heads = [
        "scorer",
        "AUC of a step",
        f"accuracy within {BUDGET:g}",
        "mean IBC",
        "CPT(50)",
        "CPT(80)",
        "CPT(95)",
    ]
    return table(heads, rows)


def _checks(checks: dict[str, Any]) -> str:
    lines = [
        f"- `{policy}`, {found['split']}: {found['same']} of {found['n']} problems came out the same, "
        "answer and "
        "large tokens"
        for policy, found in checks.items()
    ]
    intro = "What is read off recorded solutions, beside runs of the graph on the first test problems:"
    return f"{intro}\n\n" + "\n".join(lines)


def figure(found: dict[str, Any] | None, digits: int = 3) -> str:
    """Writes a figure with its interval; nothing where there is none."""
    if found is None or found["value"] is None:
        return ""
    spread = found["interval"]
    within = "" if spread is None else f" ({spread[0]:.{digits}f} to {spread[1]:.{digits}f})"
    return f"{found['value']:.{digits}f}{within}"


def signed(found: dict[str, Any]) -> str:
    """Writes a difference of accuracy, bold where its interval is clear of zero."""
    low, high = found["interval"]
    text = f"{found['accuracy']:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a table as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
