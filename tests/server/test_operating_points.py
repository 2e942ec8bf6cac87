"""Names of models: which operating point each stands for, and which do not exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.budget import Budget
from trim_graph.config import make_config
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.server.errors import ApiError
from trim_graph.server.operating_points import OperatingPoints, tightened
from trim_graph.server.protocol import BudgetOptions, read_request

MODELS = {part: {"type": "example"} for part in ("small", "large", "scorer")}
ASKED = b'{"messages": [{"role": "user", "content": "x"}], "model": "%s", "trim": %s}'


def config(policy="small_only", **more):
    return make_config({**MODELS, "policy": policy, **more})


@pytest.fixture
def points():
    """Of a configuration with the mapping ``quality``; ``best`` is not calibrated."""
    measured = {"n": 200, "saved": 0.2}
    qualities = {
        "best": {"max_loss": 0.001},
        "high": {"max_loss": 0.01, "policy": {"type": "threshold", "t": 0.9}, "measured": measured},
        "good": {
            "max_loss": 0.02,
            "policy": {"type": "threshold", "t": 0.7},
            "measured": {**measured, "saved": 0.5},
        },
        "fast": {"save": 0.7, "policy": "small_only", "measured": {**measured, "saved": 0.9}},
    }
    return OperatingPoints(config(quality=qualities), "trim")


def test_names_stand_for_operating_points(points):
    assert points.of_model("trim") == ("configured", "configured", {})
    assert points.of_model("trim:0.6") == ("threshold", "0.6", {"threshold": 0.6})
    assert points.of_model("small") == ("small", "small", {"policy": {"type": "small_only"}})
    assert points.of_model("trim:large") == points.of_model("large")
    assert points.of_model("trim:quality=fast").settings == {"policy": {"type": "small_only"}}
    assert points.names == [
        "trim",
        *(f"trim:quality={one}" for one in ("high", "good", "fast")),
        "small",
        "large",
    ]


def test_a_number_is_the_most_accuracy_that_may_be_lost(points):
    for most, name in (("0.02", "good"), ("0.5", "good"), ("0.015", "high"), ("0.0100", "high")):
        point = points.of_model(f"trim:quality={most}")
        assert (point.kind, point.name) == ("quality", f"quality={name}")
    assert point.settings["policy"]["t"] == 0.9


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4",
        "",
        "trim:",
        "trim:2",
        "trim:-0.1",
        "trim:nan",
        "trim:x",
        "trim:quality=best",
        "trim:quality=0.005",
        "Trim",
        "trim:0.5:1",
    ],
)
def test_other_names_do_not_exist(points, name):
    with pytest.raises(ApiError) as raised:
        points.of_model(name)
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")
    for known in points.names:
        assert known in raised.value.message


@given(st.text(max_size=30))
def test_any_name_is_known_or_does_not_exist(text):
    points = OperatingPoints(config(), "trim")
    for name in (text, f"trim:{text}", f"trim:quality={text}"):
        try:
            kind = points.of_model(name).kind
        except ApiError as error:
            kind = error.code
        assert kind in ("configured", "threshold", "small", "large", "model_not_found")


def test_without_a_mapping_quality_the_error_says_so():
    with pytest.raises(ApiError, match=r"calibrated for a loss of 0\.02 or less; there are none"):
        OperatingPoints(config(), "trim").of_model("trim:quality=0.02")


def test_the_error_of_an_unknown_quality_reads_as_sentences(points):
    with pytest.raises(ApiError) as unknown:
        points.of_model("trim:quality=nope")
    assert "'nope'. There are: best, fast, good, high. Models: trim, " in str(unknown.value)
    with pytest.raises(ApiError, match=r"exist: unknown quality 'nope'\. Models: trim, "):
        OperatingPoints(config(), "trim").of_model("trim:quality=nope")


def test_a_threshold_is_of_the_learned_policy_if_there_is_one():
    path = str(POLICIES / "aggregate-0.02.json")
    settings = OperatingPoints(config(path), "trim").of_model("trim:0.3").settings
    assert settings == {"policy": {"type": "file", "path": path, "threshold": 0.3}}


def test_a_threshold_needs_a_scorer():
    without = make_config({"small": MODELS["small"], "large": MODELS["large"], "policy": "small_only"})
    with pytest.raises(ApiError, match="needs a scorer"):
        OperatingPoints(without, "trim").of_model("trim:0.3")


def test_the_field_trim_chooses_too_and_contradicts_a_name_with_a_point(points):
    def of(model, trim):
        return points.of_request(read_request(ASKED % (model, trim)))

    assert of(b"trim", b"0.6") == of(b"trim:0.6", b"null") == of(b"trim", b'{"threshold": 0.6}')
    assert of(b"trim", b'{"model": "large"}').kind == "large"
    with pytest.raises(ApiError, match="give one of them"):
        of(b"trim:0.6", b"0.7")
    with pytest.raises(ApiError) as raised:
        of(b"trim", b'"x"')
    assert (raised.value.status, raised.value.param) == (404, "trim")


def test_a_request_lowers_limits_and_never_raises_them():
    own = Budget(large_tokens=100, seconds=9, on_exhausted="stop")
    assert tightened(own, BudgetOptions()) is None
    more = tightened(own, BudgetOptions(large_tokens=500, large_calls=2))
    assert (more.large_tokens, more.large_calls, more.seconds, more.on_exhausted) == (100, 2, 9, "stop")
    assert tightened(own, BudgetOptions(large_tokens=50)).large_tokens == 50
