import pytest


def test_the_summary_adds_up_to_what_the_models_were_billed(make):
    rig = make(scores={"small two": 0.1, "small three": 0.2})
    summary = rig.ask()["trim"]
    for writer in ("small", "large"):
        calls = getattr(rig, writer).calls
        spend, tokens = summary["usage"][writer], summary["tokens"]
        assert spend["calls"] == len(calls)
        assert spend["output_tokens"] == sum(call["tokens"] for call in calls)
        assert spend["input_tokens"] == sum(call["prompt_tokens"] for call in calls)
        assert tokens[writer] + tokens[f"{writer}_discarded"] == spend["output_tokens"]
    assert summary["steps"] == {"small": 2, "large": 2}
    assert summary["decisions"] == {"accept": 2, "regenerate": 2}
    assert summary["tokens"]["small_discarded"] == 6
    assert summary["usage"]["scorer"]["calls"] == len(rig.scorer.calls) == 4
    assert summary["stopped"] == "finished"
    assert summary["answer"] == "4"


def test_the_cost_is_the_price_of_every_call(make):
    prices = {
        "small": {"input": 1, "output": 2},
        "large": {"input": 10, "output": 30},
        "scorer": {"input": 5},
    }
    rig = make(prices=prices)
    summary = rig.ask()["trim"]
    billed = sum(
        call["prompt_tokens"] * prices[writer]["input"] + call["tokens"] * prices[writer]["output"]
        for writer in ("small", "large")
        for call in getattr(rig, writer).calls
    )
    assert summary["cost"] == pytest.approx((billed + 5 * summary["tokens"]["scorer"]) / 1e6)


def test_pieces_that_were_no_step_are_counted_in_the_step_that_begins_with_them(make):
    def script(prefix: str) -> str:
        return "" if prefix.endswith("done") else "---\n\nall done" if not prefix else "all done"

    result = make(script, scores={}).ask()
    assert result["messages"][-1].text == "---\n\nall done"
    assert (result["trim"]["tokens"]["small"], result["trim"]["tokens"]["small_discarded"]) == (5, 0)
