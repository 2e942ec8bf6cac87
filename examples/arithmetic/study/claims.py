"""Claims of TRIM's paper (arXiv 2601.10245) beside the results of a run, in plain sentences."""

from __future__ import annotations

from typing import Any

from .measuring import BUDGET, STEPWISE, WITHIN

RATIO = {"standard": 5.0, "words": 5.0, "hard": 6.0}
"""Cost efficiency of step over query routing that the paper reports; the larger one on harder problems."""
PAPERS_POLICIES = ("threshold", *STEPWISE[2:])
CPT_95 = 0.2
"""Share of the large model's tokens for 95 % of the gap: "80 % fewer tokens" (MATH-500: 17.2 to 18.0 %)."""


def claims(document: dict[str, Any]) -> list[str]:
    """Returns a sentence on each claim: where it holds."""
    lines = []
    for split, world in document["worlds"].items():
        lines += [
            f(split, world)
            for f in (_paper_test, _cpt_95, _efficiency, _cascade, _within, _budget, _possible)
        ]
    lines += _added(document["worlds"])
    lines += _transferred(document["transfer"]) if len(document["worlds"]) > 1 else []
    return lines + _scorers(document["scorers"])


def _range(found: dict[str, Any], digits: int = 1) -> str:
    if found["value"] is None:
        return "not defined"
    if found["interval"] is None:
        return f"{found['value']:.{digits}f} (no interval)"
    low, high = found["interval"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _verdict(found: dict[str, Any], claimed: float) -> str:
    low, high = found["interval"] or (found["value"], found["value"])
    if low >= claimed:
        return "it holds"
    return "it does not hold" if high < claimed else "open: the interval holds both"


def _paper_test(split: str, world: dict[str, Any]) -> str:
    """Says whether the paper's own test holds: Delta IBC over the best query-level method's."""
    claimed, compared = RATIO[split], world["over_query_level"]
    begin = f"`{split}`, the paper's test, {claimed:g} times the Delta IBC of the best query-level method"
    if not compared:
        return f"{begin}: no query-level method was measured."
    delta = {name: family["curve"].get("delta_ibc") for name, family in world["families"].items()}
    beside = next(iter(compared.values()))["beside"]
    begin += f", here the {beside} at {_brief(delta[beside], 2)}"
    said: dict[str, list[str]] = {}
    for name in (one for one in PAPERS_POLICIES if one in compared):
        ratio, own = compared[name]["ratio"], f"{name} at {_brief(delta[name], 2)}"
        if ratio is None:
            said.setdefault("that is not clear of zero, so no ratio can be reported for", []).append(own)
        else:
            verdict = f"{_verdict(ratio, claimed)} for"
            said.setdefault(verdict, []).append(f"{own}, {_brief(ratio, 1)} times")
    text = "; ".join(f"{verdict} {_listed(names)}" for verdict, names in said.items())
    bare = "" if delta[beside]["interval"] else " (values of recorded points, without intervals)"
    return f"{begin}: {text}{bare}."


def _listed(names: list[str]) -> str:
    return ", the ".join(["", *names]).removeprefix(", ")


def _brief(found: dict[str, Any], digits: int) -> str:
    return _range(found, digits).removesuffix(" (no interval)")


def _cpt_95(split: str, world: dict[str, Any]) -> str:
    said = [
        f"{name} {_range(curve['cpt_95'], 3)}: {_at_most(curve['cpt_95'], CPT_95)}"
        for name in PAPERS_POLICIES
        if "cpt_95" in (curve := world["families"][name]["curve"])
    ]
    return f"`{split}`, CPT(95) of at most {CPT_95:g} of the large model's tokens: {'; '.join(said)}."


def _at_most(found: dict[str, Any], claimed: float) -> str:
    if found["value"] is None:
        return "not defined"
    low, high = found["interval"] or (found["value"], found["value"])
    if high <= claimed:
        return "it holds"
    return "it does not hold" if low > claimed else "open: the interval holds both"


def _efficiency(split: str, world: dict[str, Any]) -> str:
    claimed, auc = RATIO[split], world["router"]["auc"]
    text = "" if auc is None else f" (AUC of the router on the test problems {auc:.3f})"
    begin = f"`{split}`, {claimed:g} times the cost efficiency of query-level routing{text}: "
    measures = world["against"].get("query router")
    if measures is None:
        return f"{begin}not measured"
    said = []
    for key, name in (("mean_ibc", "mean IBC"), ("mean_delta_ibc", "mean Delta IBC")):
        ratio = measures[key]["ratio"]
        if ratio is None or ratio["interval"] is None:
            gap = measures[key]["difference"]
            said.append(
                f"by {name} no ratio can be reported, as the router's own is not clear of zero; "
                f"the threshold is {_range(gap, 2)} above it"
            )
        else:
            said.append(f"by {name} {_range(ratio)} times: {_verdict(ratio, claimed)}")
    return begin + "; ".join(said) + "."


def _cascade(split: str, world: dict[str, Any]) -> str:
    said = []
    for name in ("cascade, token probability", "cascade, least PRM score"):
        found = world["against"].get(name)
        if found is not None:
            curve = world["families"][name]["curve"]
            said.append(
                f"{_range(curve['mean_ibc'], 2)} for the {name}, and the threshold is "
                f"{_range(found['mean_ibc']['difference'], 2)} above it"
            )
    ours = world["families"]["threshold"]["curve"].get("mean_ibc")
    head = "" if ours is None else f" {_range(ours, 2)} for the threshold,"
    return f"`{split}`, whole-answer cascades, by mean IBC:{head} {'; '.join(said)}."


def _within(split: str, world: dict[str, Any]) -> str:
    found = world["best"]["within"]
    below, share = found["below_large"], found["share"]
    low, high = below["interval"]
    reached = below["accuracy"] >= -WITHIN and share["value"] <= BUDGET
    return (
        f"`{split}`, the large model's accuracy within {WITHIN:.0%} for {BUDGET:.0%} of its tokens: "
        f"{'reached' if reached else '**not reached**'}. The cheapest setting that came as near on "
        "validation "
        f"problems, {found['family']} at {_setting(found['setting'])}, took {share['value']:.3f} of the "
        "tokens "
        f"({share['interval'][0]:.3f} to {share['interval'][1]:.3f}) and came to "
        f"{below['accuracy']:+.3f} ({low:+.3f} to {high:+.3f}) of the large model."
    )


def _budget(split: str, world: dict[str, Any]) -> str:
    found = world["best"]["budget"]
    below = found["below_large"]
    low, high = below["interval"]
    accuracy = found["accuracy"]
    return (
        f"`{split}`, the best for {BUDGET:.0%} of the tokens by validation problems: {found['family']} at "
        f"{_setting(found['setting'])}, accuracy {_range(accuracy, 3)} at a share of "
        f"{found['share']['value']:.3f}, "
        f"{below['accuracy']:+.3f} ({low:+.3f} to {high:+.3f}) of the large model."
    )


def _possible(split: str, world: dict[str, Any]) -> str:
    share, floor = world["oracle"]["share"]["value"], world["floor"]
    accuracy = world["oracle"]["accuracy"]["value"]
    least = (
        "takes an unknown share at least" if floor is None else f"takes {floor:.3f} at least, with hindsight"
    )
    return (
        f"`{split}`, what is possible: the small model gets {world['small_steps_right']:.3f} of its steps "
        "right. A "
        f"judge that errs in none takes {share:.3f} of the large model's tokens for {accuracy:.3f}; the "
        "large "
        f"model's accuracy within {WITHIN:.0%} {least}."
    )


def _setting(value: Any) -> str:
    return ", ".join(
        f"{one:g}" if isinstance(one, float) else str(one)
        for one in (value if isinstance(value, list | tuple) else [value])
    )


def _added(worlds: dict[str, Any]) -> list[str]:
    lines = []
    for family in STEPWISE:
        sides: dict[str, list[str]] = {"more": [], "less": [], "nothing": []}
        for split, world in worlds.items():
            for row in world["adds"]:
                if row["family"] == family:
                    low, high = row["difference"]["interval"]
                    side = "more" if low > 0 else "less" if high < 0 else "nothing"
                    gain = row["difference"]["accuracy"]
                    text = "" if side == "nothing" else f" ({gain:+.3f})"
                    sides[side].append(f"`{split}` {row['share']:.2f}{text}")
        said = [
            f"{name} at {', '.join(sides[side])}"
            for side, name in (("more", "better"), ("less", "worse"), ("nothing", "no difference"))
            if sides[side]
        ]
        if said:
            lines.append(
                f"{family[0].upper()}{family[1:]}, beside the threshold of as much spend or slightly more: "
                f"{'; '.join(said)}."
            )
    return lines


def _transferred(rows: list[dict[str, Any]]) -> list[str]:
    abroad = [row for row in rows if row["tuned_on"] != row["tested_on"]]
    lines = []
    for family in dict.fromkeys(row["family"] for row in abroad):
        those = [row for row in abroad if row["family"] == family]
        spread = [row["share"] for row in those]
        said = "; ".join(
            _clear(those, key, name)
            for key, name in (("over_random", "random steps"), ("over_questions", "random questions"))
        )
        lines.append(
            f"Transfer, {family}: tuned for {BUDGET:.0%} it took {min(spread):.3f} to {max(spread):.3f} of "
            "the "
            f"tokens elsewhere. Of {len(those)} cases it beats, with the interval clear of zero, {said}."
        )
    return lines


def _clear(rows: list[dict[str, Any]], key: str, name: str) -> str:
    """Returns in how many cases a transferred policy beats chance of equal spend, and where it does not."""
    clear = [row for row in rows if row[key]["interval"][0] > 0]
    failed = [
        f"{row['tuned_on']} to {row['tested_on']}: {row[key]['accuracy']:+.3f} at a share of "
        f"{row['share']:.3f}"
        for row in rows
        if row not in clear
    ]
    text = f"{name} in {len(clear)}"
    return f"{text} (not {'; '.join(failed)})" if failed else text


def _scorers(scorers: dict[str, Any]) -> list[str]:
    if not scorers:
        return []
    said = [
        f"{name} (AUC {found['auc']:.3f}) {found['budget']['accuracy']['value']:.3f} at a share of "
        f"{found['budget']['share']['value']:.3f}, mean IBC {_range(found['curve']['mean_ibc'], 2)}"
        for name, found in scorers.items()
        if found["budget"] is not None
    ]
    return [f"A worse scorer, threshold within {BUDGET:.0%} on `standard`: {'; '.join(said)}."]
