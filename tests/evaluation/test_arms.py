import pytest

from trim_graph import SettingsError
from trim_graph.config import example_config
from trim_graph.evaluation.arms import Arm, check_names, identity_of, policy_arms, policy_config, sweep_arms
from trim_graph.evaluation.records import journal_of
from trim_graph.examples.arithmetic.shipped import POLICIES

PATTERN = "{type: by_pattern, pattern: 'PATTERN', rates: {}, default: 0.2}"


def test_a_sweep_leaves_a_number_open():
    given = "{type: stay_on_large, k: 1, policy: {type: threshold, t: TOLD}}:0.1,0.2"
    swept = sweep_arms([given.replace("TOLD", "'?'")])
    assert [arm.policy["policy"]["t"] for arm in swept] == [0.1, 0.2]
    with pytest.raises(SettingsError, match=r'put "\?" in place of the number'):
        sweep_arms([given.replace("TOLD", "0.3")])


def test_a_sweep_moves_the_threshold_of_one_learned_policy(monkeypatch):
    monkeypatch.chdir(POLICIES)
    swept = sweep_arms(["aggregate-0.02.json:0.1,0.3"])
    assert [arm.name for arm in swept] == ["aggregate-0.02-0.1", "aggregate-0.02-0.3"]
    assert {arm.family for arm in swept} == {"aggregate-0.02"}
    assert [policy_config(arm.policy).build().threshold for arm in swept] == [0.1, 0.3]
    check_names(swept)
    # What was run under one threshold is not taken for the results of another.
    assert swept[0].settings != swept[1].settings
    named = sweep_arms(['{type: file, path: aggregate-0.02.json, threshold: "?"}:0.1,0.3'])
    assert [arm.policy for arm in named] == [arm.policy for arm in swept]
    assert [arm.name for arm in sweep_arms(["advantage:-0.1,0.2"])] == ["advantage--0.1", "advantage-0.2"]


def test_a_policy_file_without_a_threshold_is_what_it_was():
    path = str(POLICIES / "aggregate-0.02.json")
    (arm,) = policy_arms([path], {})
    assert arm.policy == {"type": "file", "path": path}
    assert set(arm.settings["policy"]) == {"type", "sha256"}


def test_warming_the_large_models_cache_makes_another_recording_only_where_it_is_on():
    off, on = (identity_of(example_config({"settings": {"warm_large": warm}})) for warm in (False, True))
    assert off == identity_of(example_config())
    assert "warm_large" not in off["settings"]
    assert on["settings"] == {**off["settings"], "warm_large": True}


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ("no.json:0.1", "policy file .*no.json does not exist"),
        ("pomdp-1.json:0.1", "pomdp.* has none; learned policies have one"),
        ("aggregate-0.02.json:1.1", "threshold: is 1.1; it should be less than or equal to 1"),
        ("aggregate-0.02.json:x", "'x' is no number"),
        ("aggregate:0.1", "there is no family 'aggregate'.* or the file of a learned policy"),
    ],
)
def test_what_cannot_be_swept_is_refused(given, reported, monkeypatch):
    monkeypatch.chdir(POLICIES)
    with pytest.raises(SettingsError, match=reported):
        sweep_arms([given])


@pytest.mark.parametrize("word", ["a", "\u9577"])
def test_the_name_of_any_policy_is_one_of_a_file(tmp_path, word):
    arms = policy_arms([PATTERN.replace("PATTERN", f"{word * 300}{end}") for end in "xy"], {})
    check_names(arms)  # they differ in name
    for arm in arms:
        place = journal_of(tmp_path, arm.name)
        place.parent.mkdir(exist_ok=True)
        place.with_name(f".{place.name}.settings.json.12345678").touch()
    assert policy_arms([PATTERN.replace("PATTERN", "a+")], {})[0].name == "by_pattern-a+-None-0.2"


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(SettingsError, match="too long for a file"):
        check_names([Arm("\u9577" * 100, "policy", "f", {"type": "small_only"})])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("threshold", 'policy "threshold": t: this key is missing'),
        ("{type: threshold, t: 2}", r"t: is 2; it should be less than or equal to 1"),
        ("{type: stay_on_large, k: 1, policy: {type: threshold}}", r"policy\.t: this key is missing"),
    ],
)
def test_what_a_policy_lacks_is_named(given, message):
    with pytest.raises(SettingsError, match=message):
        policy_arms([given], {})
