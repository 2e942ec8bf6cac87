"""Net savings: what the estimate of the large model alone is made of, and what holds for every run."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.budget import ModelPrice, Prices
from trim_graph.budget.usage import Usage, add_usage, count_prompt_once, total_cost, usage_delta, zero_usage
from trim_graph.policies import large_only, random_rate, small_only
from trim_graph.savings import LargeAlone, net_savings

PRICES = Prices(
    small=ModelPrice(input=1, output=2),
    large=ModelPrice(input=10, output=30, cached_input=1),
    scorer=ModelPrice(input=5),
)
COUNT = st.integers(0, 10**6)
PRICE = st.builds(
    ModelPrice,
    input=st.floats(0, 1e6),
    output=st.floats(0, 1e6),
    cached_input=st.none() | st.floats(0, 1e6),
)
PRICE_TABLE = st.builds(Prices, small=PRICE, large=PRICE, scorer=PRICE)
KNOWN = st.builds(
    LargeAlone,
    length_ratio=st.none() | st.floats(0.01, 100),
    seconds_per_token=st.none() | st.floats(0, 100),
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[str, int], Usage]:
    """Draws accepted tokens by writer and a usage that contains them."""
    usage, accepted = zero_usage(), {"small": draw(COUNT), "large": draw(COUNT)}
    for writer in ("small", "large"):
        read = draw(COUNT)
        usage[writer] |= {
            "calls": 1,
            "input_tokens": read,
            "cached_tokens": draw(st.integers(0, read)),
            "output_tokens": accepted[writer] + draw(COUNT),
            "seconds": draw(st.floats(0, 1e4)),
        }
    usage["scorer"] |= {"calls": 1, "input_tokens": draw(COUNT), "output_tokens": draw(COUNT)}
    usage["unaccounted_tokens"] = draw(COUNT)
    usage["unaccounted_cost"] = draw(st.floats(0, 1e3))
    usage["seconds"] = draw(st.floats(0, 1e5))
    read = draw(COUNT)
    usage["prompt"] = count_prompt_once(
        None, "large", 0, input_tokens=read, cached_tokens=draw(st.integers(0, read))
    )
    return accepted, usage


def numbers(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif value is not None:
        yield value


@settings(deadline=None)
@given(runs(), runs(), PRICE_TABLE, st.floats(0, 10), st.floats(0.1, 10))
def test_savings_of_two_parts_add_up_to_those_of_the_whole(first, second, prices, pace, ratio):
    # By a pace that is given: each part has one of its own, of its own calls.
    known = LargeAlone(seconds_per_token=pace, length_ratio=ratio)
    for _, usage in (first, second):
        del usage["large"]["seconds"], usage["small"]["seconds"]
    whole = add_usage(first[1], usage_delta(zero_usage(), second[1]))
    accepted = {writer: first[0][writer] + second[0][writer] for writer in first[0]}
    parts = [net_savings(*one, prices, known) for one in (first, second)]
    found = net_savings(accepted, whole, prices, known)
    for key in ("tokens", "large_tokens", "cost", "seconds"):
        if found[key] is None:
            assert parts[0][key] is None
        else:
            assert found[key] == pytest.approx(parts[0][key] + parts[1][key], rel=1e-9, abs=1e-3)


@settings(deadline=None)
@given(runs(), PRICE_TABLE, KNOWN)
def test_what_is_spent_on_each_kind_adds_up_to_the_run(run, prices, known):
    accepted, usage = run
    savings = net_savings(accepted, usage, prices, known)
    spent = savings["spent"].values()
    written = usage["small"]["output_tokens"] + usage["large"]["output_tokens"] + usage["unaccounted_tokens"]
    read = usage["small"]["input_tokens"] + usage["large"]["input_tokens"]
    scorer = usage["scorer"]["input_tokens"] + usage["scorer"]["output_tokens"]
    assert sum(one["tokens"] for one in spent) == written + read + scorer
    costs = [one["cost"] for one in spent]
    if prices.large.input or prices.large.output:
        assert sum(costs) == pytest.approx(total_cost(usage, prices), rel=1e-9, abs=1e-9)
        assert savings["cost"] == savings["large_alone"]["cost"] - total_cost(usage, prices)
    else:
        assert costs == [None] * 5
        assert savings["cost"] is None


@settings(deadline=None)
@given(runs(), st.floats(0, 1e308), st.floats(0, 1e308), KNOWN)
def test_no_number_is_nan_or_infinite_whatever_the_prices(run, read, written, known):
    price = ModelPrice(input=read, output=written)
    savings = net_savings(*run, Prices(small=price, large=price, scorer=price), known)
    assert all(math.isfinite(number) for number in numbers(savings))
    assert json.loads(json.dumps(savings, allow_nan=False)) == savings


@settings(deadline=None)
@given(COUNT, COUNT, st.integers(1, 10**6), PRICE_TABLE, st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_large_model_alone_saves_minus_its_overhead(read, dropped, kept, prices, busy, idle):
    usage = zero_usage()
    usage["large"] |= {
        "calls": 1,
        "input_tokens": read,
        "output_tokens": kept + dropped,
        "seconds": busy,
    }
    usage["seconds"] = busy + idle
    usage["prompt"] = count_prompt_once(None, "large", 0, input_tokens=read, cached_tokens=0)
    savings = net_savings({"large": kept}, usage, prices, LargeAlone(length_ratio=3.0))
    assert savings["tokens"] == savings["large_tokens"] == -dropped
    if savings["cost"] is not None:
        assert savings["cost"] == pytest.approx(-prices.large.cost(0, dropped), rel=1e-6, abs=1e-6)
        assert savings["cost"] == 0 or dropped
    share = kept / (kept + dropped)
    assert savings["seconds"] == pytest.approx(busy * share - busy - idle, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(0, 10**5))
def test_a_run_whose_drafts_are_all_rewritten_has_negative_savings(draft, rewritten, prompt):
    usage = zero_usage()
    usage["small"] |= {"calls": 1, "input_tokens": prompt, "output_tokens": draft, "seconds": 1.0}
    usage["large"] |= {"calls": 1, "input_tokens": prompt, "output_tokens": rewritten, "seconds": 2.0}
    usage["scorer"] |= {"calls": 1, "input_tokens": prompt + draft}
    usage["seconds"] = 3.5
    usage["prompt"] = count_prompt_once(None, "large", 0, input_tokens=prompt, cached_tokens=0)
    savings = net_savings({"small": 0, "large": rewritten}, usage, PRICES)
    assert savings["tokens"] == -(draft + prompt + prompt + draft)
    assert savings["cost"] < 0
    assert savings["seconds"] == pytest.approx(-1.5)
    assert savings["large_tokens"] == 0


def test_a_large_model_without_a_price_saves_no_known_amount_of_money():
    savings = net_savings({"small": 5}, zero_usage(), Prices(small=ModelPrice(input=1, output=1)))
    assert savings["cost"] is None
    assert [one["cost"] for one in savings["spent"].values()] == [None] * 5


def test_a_run_without_an_answered_call_has_unknown_savings_in_tokens_and_money():
    savings = net_savings({"small": 0, "large": 0}, zero_usage(), PRICES)
    assert savings["tokens"] is savings["cost"] is savings["seconds"] is None
    assert savings["large_alone"]["read"] is None


def test_a_step_by_a_human_makes_the_estimate_unknown():
    usage = zero_usage()
    usage["prompt"] = count_prompt_once(None, "small", 0, input_tokens=9, cached_tokens=0)
    savings = net_savings({"small": 5, "human": 1}, usage, PRICES, LargeAlone(seconds_per_token=1))
    assert savings["tokens"] is savings["cost"] is savings["seconds"] is savings["large_tokens"] is None


def test_seconds_are_unknown_without_a_large_call_unless_a_pace_is_given():
    usage = zero_usage()
    usage["prompt"] = count_prompt_once(None, "small", 0, input_tokens=9, cached_tokens=0)
    usage["seconds"] = 1.0
    assert net_savings({"small": 10}, usage, PRICES)["seconds"] is None
    known = LargeAlone(length_ratio=1.5, seconds_per_token=0.2)
    assert net_savings({"small": 10}, usage, PRICES, known)["seconds"] == pytest.approx(2.0)


def test_the_pace_of_the_runs_own_large_calls_goes_before_one_that_is_given():
    usage = zero_usage()
    usage["large"] |= {"calls": 1, "output_tokens": 10, "seconds": 5.0}
    known = LargeAlone(seconds_per_token=100)
    assert net_savings({"large": 10}, usage, PRICES, known)["large_alone"]["seconds"] == 5.0


def test_the_large_models_count_of_a_prompt_replaces_the_small_ones():
    prompt = count_prompt_once(None, "small", 0, input_tokens=10, cached_tokens=8)
    assert (prompt["input_tokens"], prompt["cached_tokens"]) == (10, 0)
    prompt = count_prompt_once(prompt, "large", 0, input_tokens=12, cached_tokens=4)
    assert (prompt["input_tokens"], prompt["cached_tokens"]) == (12, 4)
    for writer in ("small", "large"):
        assert count_prompt_once(prompt, writer, 0, input_tokens=99, cached_tokens=9) == prompt
    prompt = count_prompt_once(prompt, "small", 1, input_tokens=20, cached_tokens=0)
    assert (prompt["input_tokens"], prompt["cached_tokens"]) == (32, 4)


# In the graph


def test_a_run_reads_its_prompt_once_and_writes_its_solution_in_the_estimate(make):
    rig = make(scores={"small two": 0.1}, prices=PRICES.model_dump(), large_alone={"length_ratio": 2.0})
    summary = rig.ask()["trim"]
    savings, tokens = summary["savings"], summary["tokens"]
    estimate = savings["large_alone"]
    assert estimate["read"] == rig.small.calls[0]["prompt_tokens"]
    assert estimate["written"] == tokens["large"] + 2 * tokens["small"]
    assert savings["spent"]["discarded"]["tokens"] == tokens["small_discarded"] + tokens["large_discarded"]
    assert savings["cost"] == pytest.approx(
        PRICES.large.cost(estimate["read"], estimate["written"]) - summary["cost"]
    )
    usage = summary["usage"]
    assert usage["small"]["seconds"] + usage["large"]["seconds"] <= summary["seconds"]


def test_a_first_step_that_the_large_model_rewrites_has_its_prompt_counted_by_it(make):
    rig = make(scores={"small one": 0.1})
    savings = rig.ask()["trim"]["savings"]
    assert savings["large_alone"]["read"] == rig.large.calls[0]["prompt_tokens"]


def test_the_large_model_alone_saves_nothing_and_spends_nothing_more(make):
    savings = make(policy=large_only(), prices=PRICES.model_dump()).ask()["trim"]["savings"]
    assert savings["tokens"] == savings["large_tokens"] == savings["cost"] == 0
    assert savings["seconds"] <= 0


def test_the_small_model_alone_saves_all_large_tokens(make):
    summary = make(policy=small_only(), prices=PRICES.model_dump()).ask()["trim"]
    assert summary["savings"]["large_tokens"] == summary["tokens"]["small"]
    assert summary["savings"]["seconds"] is None


def test_a_run_whose_every_draft_is_rewritten_has_negative_savings(make):
    summary = make(policy=random_rate(1.0), prices=PRICES.model_dump()).ask()["trim"]
    savings = summary["savings"]
    assert summary["steps"]["small"] == savings["large_tokens"] == 0
    assert savings["tokens"] < 0
    assert savings["cost"] < 0
    assert savings["seconds"] < 0
