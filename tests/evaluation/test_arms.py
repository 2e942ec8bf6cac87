import pytest

from trim_graph import SettingsError
from trim_graph.evaluation.arms import Arm, check_names, policy_arms, sweep_arms
from trim_graph.evaluation.records import journal_of

PATTERN = "{type: by_pattern, pattern: 'PATTERN', rates: {}, default: 0.2}"


def test_a_sweep_leaves_a_number_open():
    given = "{type: stay_on_large, k: 1, policy: {type: threshold, t: TOLD}}:0.1,0.2"
    swept = sweep_arms([given.replace("TOLD", "'?'")])
    assert [arm.policy["policy"]["t"] for arm in swept] == [0.1, 0.2]
    with pytest.raises(SettingsError, match=r'put "\?" in place of the number'):
        sweep_arms([given.replace("TOLD", "0.3")])


@pytest.mark.parametrize("word", ["a", "\u9577"])
def test_the_name_of_any_policy_is_one_of_a_file(tmp_path, word):
    arms = policy_arms([PATTERN.replace("PATTERN", f"{word * 300}{end}") for end in "xy"], {})
    check_names(arms)  # they are told apart
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
        ("threshold", 'policy "threshold": t: Field required'),
        ("{type: threshold, t: 2}", r"t: Input should be less than or equal to 1"),
        ("{type: stay_on_large, k: 1, policy: {type: threshold}}", r"policy\.threshold\.t: Field required"),
    ],
)
def test_what_a_policy_lacks_is_named(given, message):
    with pytest.raises(SettingsError, match=message):
        policy_arms([given], {})
