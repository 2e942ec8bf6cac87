import pytest

from trim_graph import SettingsError
from trim_graph.config import build_graph, load_config, quality_policy

MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"
CALIBRATED = f"""{MODELS}policy: {{type: quality, name: high}}
quality:
  high: {{max_loss: 0.01, policy: {{type: threshold, t: 0.9}}, measured: {{n: 500, saved: 0.6}}}}
  safest: {{max_loss: 0.005, policy: {{type: threshold, t: 0.99}}, measured: {{n: 500, saved: 0.5}}}}
  low: {{max_loss: 0.05, policy: {{type: threshold, t: 0.4}}, measured: {{n: 500, saved: 0.9}}}}
  new: {{max_loss: 0.02}}
  fast: {{save: 0.7, policy: {{type: random_rate, rate: 0.3}}, measured: {{n: 500, saved: 0.7}}}}
"""


@pytest.fixture
def load(tmp_path):
    def write(text):
        (tmp_path / "trim.yaml").write_text(text)
        return load_config(tmp_path / "trim.yaml")

    return write


def test_a_policy_by_name_is_the_calibrated_one(load):
    assert repr(load(CALIBRATED).policy.build()) == "threshold(0.9)"


def test_a_policy_file_of_a_name_is_found_beside_the_configuration(load, tmp_path):
    text = (
        f"{MODELS}policy: {{type: quality, name: high}}\nquality: {{high: {{max_loss: 0.1, policy: a.json}}}}"
    )
    assert load(text).policy.path == str(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("wanted", "policy"),
    [
        ("high", {"type": "threshold", "t": 0.9}),
        ("fast", {"type": "random_rate", "rate": 0.3}),
        ("0.02", {"type": "threshold", "t": 0.9}),
        (0.02, {"type": "threshold", "t": 0.9}),
        (0.05, {"type": "threshold", "t": 0.4}),
        (0.005, {"type": "threshold", "t": 0.99}),
    ],
)
def test_a_name_or_a_loss_finds_the_policy_that_saves_most(load, wanted, policy):
    assert quality_policy(load(CALIBRATED).quality, wanted).model_dump() == policy


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("hgih", "unknown quality 'hgih', did you mean high"),
        ("new", "quality 'new' is not calibrated: run trim-graph calibrate --write"),
        ("0.001", r"no operating point is calibrated for a loss of 0.001 or less; there are high \(max_loss"),
        ("1.5", "quality is 1.5: choose a name, or a loss of accuracy between 0 and 1"),
        ("nan", "quality is nan"),
    ],
)
def test_what_is_not_calibrated_is_refused_by_name(load, wanted, message):
    with pytest.raises(SettingsError, match=message):
        quality_policy(load(CALIBRATED).quality, wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: {type: quality, name: high}", "unknown quality 'high'"),
        ("policy: {type: quality}", "line 4: policy.name: this key is missing"),
        (
            "policy: {type: quality, name: hihg}\nquality: {high: {save: 0.5}}",
            "unknown quality 'hihg', did you mean high",
        ),
        ("policy: small_only\nquality: {high: {}}", "quality.high: give one of max_loss and save"),
        (
            "policy: small_only\nquality: {high: {max_los: 0.1}}",
            "quality.high.max_los: unknown key, did you mean max_loss",
        ),
        (
            "policy: small_only\nquality: {high: {save: 1}}",
            "quality.high.save: is 1; it should be less than 1",
        ),
        ("policy: small_only\nquality: {'0.5': {save: 0.1}}", "'0.5' is no name of an operating point"),
    ],
)
def test_what_is_wrong_names_its_line_and_key(load, text, message):
    with pytest.raises(SettingsError, match=message):
        load(MODELS + text)


def test_a_name_that_is_not_calibrated_loads_and_does_not_run(load):
    config = load(f"{MODELS}policy: {{type: quality, name: high}}\nquality: {{high: {{max_loss: 0.1}}}}")
    with pytest.raises(SettingsError, match="quality 'high' has no policy here"):
        build_graph(config)
