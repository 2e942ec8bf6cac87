import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import Answering, a_record, ended

from trim_graph import InputError, ScorableStep, SettingsError, TrimError
from trim_graph.adapters import TokenProbability
from trim_graph.evaluation import Question
from trim_graph.evaluation.arms import FAMILIES, ParameterSweep, PolicyList, make_family
from trim_graph.evaluation.calibration import (
    CachedScorer,
    Calibrator,
    MeasuredPoint,
    RecordFile,
    Target,
    choose,
    forecast,
)
from trim_graph.evaluation.noninferiority import PairedOutcomes
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.policies import files, save_policy
from trim_graph.testing import ScriptedScorer

STEPS, TOKENS = 5, 10


class World:
    """Questions whose drafts have scores: a step is wrong with the probability that the score says.

    What costs nothing to compute: a graph that only counts. Its questions are their own seeds.
    """

    def __init__(self, n=200, seed=0, answers=True):
        self.questions = [
            Question(f"{seed}:{i}", (lambda text: text == "right") if answers else None) for i in range(n)
        ]
        self.asked, self.scores, self.broken = [], [], False

    def build(self, policy):
        return Answering(lambda question: self.answer(question, policy))

    async def answer(self, question, policy):
        self.asked.append((question, str(policy)))
        if self.broken:
            raise OSError("gone")
        rng = random.Random(question)
        tokens, right = 0, True
        for _ in range(STEPS):
            score, wrong, drawn = rng.betavariate(0.9, 0.3), rng.random(), rng.random()
            self.scores.append(score)
            regenerate = {
                "small_only": False,
                "large_only": True,
                "threshold": score < policy.get("t", 0),
                "random_rate": drawn < policy.get("rate", 0),
                "file": 1 / (1 + math.exp(4 + 7 * score)) >= policy.get("threshold", 1),
                "advantage": 1 - 2 * score > policy.get("minimum", 1),
            }[policy["type"]]
            tokens += TOKENS * regenerate
            right &= regenerate or wrong < score
        return ended("right" if right else "wrong", large_tokens=tokens, cost=0.01 + tokens / 1000)

    def calibrator(self, **more):
        return Calibrator(self.build, self.questions, scores=lambda: sorted(self.scores), **more)


NOTHING = a_record(0)


class RandomOutcomes(Calibrator):
    """Outcomes that are drawn, not run: the large model alone is right, a threshold loses at its own rate."""

    def __init__(self, n, losses, seed):
        super().__init__(lambda policy: None, [Question("?", bool)] * n)
        self.losses = losses
        rng = random.Random(seed)
        self.luck = [rng.random() for _ in range(n)]

    async def outcomes(self, policy):
        loss = {"large_only": 0.0, "small_only": 0.9}.get(policy["type"])
        if loss is None:
            loss = self.losses[policy["rate"]]
        # A cheaper policy loses what a dearer one does, as with thresholds.
        return [
            {
                **NOTHING,
                "index": index,
                "correct": luck >= loss,
                "large_tokens": round(100 * policy.get("rate", 1)),
            }
            for index, luck in enumerate(self.luck)
        ]


THRESHOLD, RATE = FAMILIES["threshold"], FAMILIES["random_rate"]
LEARNED = POLICIES.resolve() / "aggregate-0.02.json"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("family", [THRESHOLD, RATE])
async def test_a_share_is_hit_in_few_runs_and_on_fresh_questions(family, share):
    calibrator = World(n=600).calibrator()
    found = await calibrator.find(family, Target("large_share", share))
    assert found.share == pytest.approx(share, rel=0.02, abs=0.002)
    assert len(calibrator.points) <= 9
    policy = family.policy(found.setting)
    reported = forecast(await calibrator.outcomes(policy), small=calibrator.small, large=calibrator.large)
    fresh = World(n=3000, seed=1).calibrator()
    await fresh.measure()
    point = await fresh.point(family, found.setting)
    low, high = reported["share"]["interval"]
    assert low <= share <= high
    assert low <= point.share <= high
    for key, seen in (("accuracy", point.accuracy), ("pgr", point.pgr)):  # 1 in 20 is outside its interval
        if reported[key]["interval"] is None:  # nothing differs from the large model
            assert (key, reported[key]["value"]) == ("pgr", 1)
            continue
        low, high = reported[key]["interval"]
        assert low <= reported[key]["value"] <= high
        assert abs(seen - reported[key]["value"]) <= high - low, key


async def test_a_spend_needs_no_answers():
    calibrator = World(answers=False).calibrator()
    found = await calibrator.find(THRESHOLD, Target("large_share", 0.3))
    assert found.share == pytest.approx(0.3, abs=0.01)
    assert (found.accuracy, found.pgr) == (None, None)
    reported = forecast(await calibrator.outcomes(THRESHOLD.policy(found.setting)), large=calibrator.large)
    assert reported["share"]["value"] == found.share
    assert reported["accuracy"] == reported["pgr"] == {"value": None, "interval": None}
    assert calibrator.small is None  # not run: it would add nothing
    with pytest.raises(InputError, match="the dataset has none: choose a spend"):
        await World(answers=False).calibrator().find(THRESHOLD, Target("pgr", 0.9))


async def test_a_cost_is_a_limit():
    calibrator = World().calibrator()
    found = await calibrator.find(THRESHOLD, Target("max_cost", 0.02))
    assert 0.0195 <= found.cost <= 0.02
    assert calibrator.large is None


async def test_a_limit_that_cannot_be_kept_gives_the_cheapest():
    found = await World().calibrator().find(THRESHOLD, Target("max_cost", 0.001))
    assert found.cost == pytest.approx(0.01)


async def test_a_limit_that_is_never_reached_gives_the_dearest():
    found = await World().calibrator().find(THRESHOLD, Target("max_cost", 1.0))
    assert found.cost > 0.055


async def test_a_pgr_is_recovered_at_the_least_spend():
    calibrator = World(n=600).calibrator()
    found = await calibrator.find(THRESHOLD, Target("pgr", 0.8))
    assert 0.8 <= found.pgr < 0.84
    at_random = await World(n=600).calibrator().find(RATE, Target("pgr", 0.8))
    assert found.share < at_random.share


async def test_without_a_gap_there_is_no_pgr_to_recover():
    world = World()
    world.questions = [Question(q.text, lambda text: True) for q in world.questions]
    with pytest.raises(InputError, match="no better than the small one"):
        await world.calibrator().find(THRESHOLD, Target("pgr", 0.8))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2])
async def test_a_share_is_hit_by_a_number_that_spends_less_the_higher_it_is(share):
    calibrator = World(n=600).calibrator()
    found = await calibrator.find(FAMILIES["advantage"], Target("large_share", share))
    assert found.share == pytest.approx(share, rel=0.02, abs=0.002)
    assert 0 < found.setting < 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
async def test_a_threshold_is_found_among_probabilities_that_crowd_at_zero(share):
    family = make_family([f"{LEARNED}:?"], {"type": "small_only"})
    found = await World(n=600).calibrator().find(family, Target("large_share", share))
    assert found.share == pytest.approx(share, rel=0.1)
    assert 0 < found.setting < 0.02


@pytest.mark.parametrize("family", [*FAMILIES.values(), make_family([f"{LEARNED}:?"], {})])
@given(positions=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_higher_position_never_spends_less(family, positions):
    low, high = (family.setting(position) for position in sorted(positions))
    assert 0 <= min(low, high) <= max(low, high) <= 1
    assert low <= high if family.rising else low >= high
    ends = [family.setting(0.0), family.setting(1.0)]
    assert ends == ([0, 1] if family.rising else [1, 0])


async def test_a_gain_below_zero_is_not_bought_for_a_share():
    calibrator = World(n=200).calibrator()
    found = await calibrator.find(FAMILIES["advantage"], Target("large_share", 0.9))
    assert found.setting == 0
    assert len(calibrator.points) == 1


async def test_a_list_is_measured_whole():
    policies = {name: {"type": "threshold", "t": t} for name, t in (("a", 0.2), ("b", 0.6), ("c", 0.99))}
    calibrator = World().calibrator()
    found = await calibrator.find(PolicyList(policies), Target("large_share", 0.25))
    nearest = min(calibrator.points.values(), key=lambda point: abs(point.share - 0.25))
    assert found == nearest
    assert len(calibrator.points) == 3


async def test_no_policy_is_run_twice():
    world = World(n=50)
    calibrator = world.calibrator()
    await calibrator.find(THRESHOLD, Target("large_share", 0.2))
    await calibrator.find(THRESHOLD, Target("pgr", 0.8))
    assert len(world.asked) == len(set(world.asked))


async def test_a_question_that_fails_ends_it():
    world = World()
    world.broken = True
    with pytest.raises(TrimError, match="cannot leave questions out: OSError: gone"):
        await world.calibrator().find(THRESHOLD, Target("large_share", 0.2))


async def test_what_was_kept_is_not_run_again(tmp_path):
    def store(policy):
        return RecordFile(tmp_path, {"policy": policy})

    target = Target("large_share", 0.2)
    first = World(n=60)
    done = []

    def interrupt(outcome):
        done.append(outcome)
        if len(done) == 100:  # in the second policy
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await first.calibrator(store=store, concurrency=1, on_record=interrupt).find(THRESHOLD, target)
    second = World(n=60)
    calibrator = second.calibrator(store=store)
    found = await calibrator.find(THRESHOLD, target)
    assert not set(first.asked) & set(second.asked)
    whole = await World(n=60).calibrator().find(THRESHOLD, target)
    assert found == whole
    third = World(n=60)
    third.scores = second.scores
    assert (await third.calibrator(store=store).outcomes({"type": "large_only"})) == calibrator.large
    assert third.asked == []


async def test_a_loss_is_shown_at_the_least_spend_and_holds_on_fresh_questions():
    calibrator = World(n=300).calibrator()
    found = await calibrator.select(THRESHOLD, Target("max_loss", 0.05))
    assert found.point.paired.loss_bound() <= 0.05
    assert 0 < found.point.share < 1
    tried = [point.setting for point in calibrator.points.values()]
    assert tried == sorted(tried, reverse=True)
    *shown, failed = calibrator.points.values()
    assert found.point == shown[-1]
    assert failed.paired == found.undecided
    assert failed.paired.loss_bound() > 0.05
    fresh = World(n=1000, seed=1).calibrator()
    await fresh.measure(small=False)
    assert (await fresh.point(THRESHOLD, found.point.setting)).paired.loss <= 0.05


async def test_a_choice_for_a_loss_is_wrong_in_at_most_5_of_100_calibrations():
    rates = RATE.sequence()
    losses = {rate: 0.12 * (1 - rate) for rate in rates}
    allowed = losses[rates[20]] - 1e-6  # from there on too much is lost, and just before hardly less
    wrong, decided, runs = 0, 0, 200
    for seed in range(runs):
        found = await RandomOutcomes(80, losses, seed).select(RATE, Target("max_loss", allowed))
        if found.point is not None:
            decided += 1
            wrong += losses[found.point.setting] > allowed
    assert decided > 0.7 * runs
    assert wrong <= 0.05 * runs


@pytest.mark.parametrize("n", [1, 20])
async def test_too_few_questions_decide_nothing_and_say_how_many_do(n):
    found = await World(n=n).calibrator().select(THRESHOLD, Target("max_loss", 0.02))
    assert found.point is None
    assert found.undecided == PairedOutcomes(n, 0, 0)
    assert n + found.further > 149


async def test_one_question_shows_no_gap_to_recover():
    found = await World(n=60, seed=3).calibrator().select(THRESHOLD, Target("pgr", 0.9))
    assert found.point is not None
    world = World(n=60, seed=3)
    small = [
        (await world.answer(q.text, {"type": "small_only"}))["messages"][0].text for q in world.questions
    ]
    world.questions = [world.questions[small.index("wrong")]]
    found = await world.calibrator().select(THRESHOLD, Target("pgr", 0.9))
    assert found.point is None
    assert found.undecided == PairedOutcomes(1, lost=0, gained=1)


async def test_policies_of_a_list_share_the_error():
    policies = {name: {"type": "threshold", "t": t} for name, t in (("a", 0.2), ("b", 0.95), ("c", 0.99))}
    found = await World(n=600).calibrator().select(PolicyList(policies), Target("max_loss", 0.05))
    assert found.confidence == pytest.approx(1 - 0.05 / 3)
    assert found.point.setting in ("b", "c")
    assert found.point.paired.loss_bound(found.confidence) <= 0.05


async def test_runs_that_decide_alike_are_not_repeated():
    calibrator = World(n=3).calibrator()
    await calibrator.select(THRESHOLD, Target("max_loss", 0.999))
    assert 1 < len(calibrator.points) <= 3 * STEPS + 1 < len(THRESHOLD.sequence())


@pytest.mark.parametrize("family", FAMILIES.values())
def test_a_sequence_goes_from_the_most_spent_to_the_least(family):
    sequence = family.sequence()
    assert sequence == sorted(set(sequence), reverse=family.rising)
    assert [sequence[0], sequence[-1]] == ([1, 0] if family.rising else [0, 1])


@pytest.mark.parametrize("save", [0.5, 0.9])
async def test_so_much_is_saved_at_least_and_hardly_more(save):
    found = (await World(n=600).calibrator().select(THRESHOLD, Target("save", save))).point
    assert 0.97 * (1 - save) <= found.share <= 1 - save


def test_of_a_list_the_most_accurate_that_saves_enough_is_chosen():
    points = [
        MeasuredPoint("a", 0.9, 0.25, 0.5),
        MeasuredPoint("b", 0.8, 0.3, 0.5),
        MeasuredPoint("c", 1.0, 0.4, 0.5),
    ]
    assert choose(points, Target("save", 0.7), by_accuracy=True).setting == "a"
    assert choose(points, Target("save", 0.7)).setting == "b"
    assert choose(points, Target("save", 0.9)).setting == "a"  # none saves enough: the nearest


@pytest.mark.parametrize("target", [Target("max_loss", 0.1), Target("save", 0.5), Target("pgr", 0.9)])
async def test_where_neither_model_has_an_answer_right_the_grader_is_in_doubt(target):
    world = World(n=10)
    world.questions = [Question(q.text, lambda text: False) for q in world.questions]
    with pytest.raises(InputError, match=r"of 10 questions right.* check the grader and the prompt"):
        await world.calibrator().select(THRESHOLD, target)


async def test_a_loss_needs_answers():
    with pytest.raises(InputError, match="a loss of accuracy needs the right answers"):
        await World(answers=False).calibrator().select(THRESHOLD, Target("max_loss", 0.1))


def test_a_small_sample_is_not_expected_to_be_certain():
    right = [a_record(index, correct=True, large_tokens=10) for index in range(20)]
    expected = forecast(right, small=[{**record, "correct": False} for record in right], large=right)
    assert expected["accuracy"]["interval"] == pytest.approx((0.8316, 1), abs=1e-4)
    assert expected["pgr"] == {"value": 1, "interval": None}
    assert expected["loss"] == {"value": 0, "bound": pytest.approx(0.139, abs=1e-3), "lost": 0, "gained": 0}


def point(setting, share, pgr, cost=0.0):
    return MeasuredPoint(setting, 0.5, share, pgr, cost)


def test_the_cheapest_that_recovers_enough_is_chosen():
    points = [point(0.1, 0.1, 0.5), point(0.5, 0.3, 0.96), point(0.6, 0.2, 0.95), point(0.9, 0.9, 1.0)]
    assert choose(points, Target("pgr", 0.95)).setting == 0.6


def test_where_none_recovers_enough_the_best_is_chosen():
    points = [point(0.1, 0.1, 0.5), point(0.5, 0.5, 0.8), point(0.6, 0.4, 0.8)]
    assert choose(points, Target("pgr", 0.95)).setting == 0.6


def test_without_a_gap_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match="no better than the small one"):
        choose([point(0.1, 0.1, None)], Target("pgr", 0.95))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("large_share", 0),
        ("large_share", 1.1),
        ("pgr", 2),
        ("max_cost", -1),
        ("max_loss", 0),
        ("max_loss", 1),
        ("save", 1),
    ],
)
def test_a_target_out_of_range(kind, value):
    with pytest.raises(SettingsError, match=rf"{kind} is {value}: choose a number above 0"):
        Target(kind, value)


async def test_no_solution_is_scored_twice():
    scorer = ScriptedScorer()
    cached = CachedScorer(scorer)
    steps = [ScorableStep("a"), ScorableStep("b")]
    replies = [await cached.ascore("q", steps), cached.score("q", steps)]
    assert replies[0] == replies[1]
    assert len(scorer.calls) == 1
    cached.score("q", steps[:1])
    cached.score("another", steps)
    assert len(scorer.calls) == 3
    assert cached.draft_scores() == [1, 1, 1]


class Lambda:
    """A policy in a file."""

    needs_score, decides = True, True

    def __init__(self, cost):
        self.cost = cost

    def contents(self):
        return files.PolicyContents("lambda", {"cost": self.cost})

    @classmethod
    def from_contents(cls, contents):
        return cls(contents.parameters["cost"])


def test_a_family_is_made_of_a_folder_of_policies(tmp_path, monkeypatch):
    monkeypatch.setitem(files.KINDS, "lambda", f"{__name__}:Lambda")
    monkeypatch.setattr(
        "trim_graph.evaluation.arms.policy_config", lambda policy: SimpleNamespace(build=dict)
    )
    for cost in (1, 2):
        save_policy(Lambda(cost), tmp_path / f"cost{cost}.json")
    (tmp_path / "lambda-curves.json").write_text('[{"step": 1}]')  # as trim-graph train leaves it there
    family = make_family([str(tmp_path)], {"type": "threshold", "t": 0.5})
    assert [policy["path"] for policy in family.policies.values()] == [
        str(tmp_path / "cost1.json"),
        str(tmp_path / "cost2.json"),
    ]
    assert make_family([], {"type": "random_rate", "rate": 0.1}) == RATE
    assert make_family(["threshold"], {"type": "small_only"}) == THRESHOLD


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (["aggregate-0.02.json:?"], {"type": "small_only"}),
        (['{type: file, path: aggregate-0.02.json, threshold: "?"}'], {"type": "small_only"}),
        ([], {"type": "file", "path": str(LEARNED), "threshold": 0.3}),
    ],
)
def test_the_thresholds_of_one_learned_policy_are_a_family(given, own, monkeypatch):
    monkeypatch.chdir(POLICIES)
    family = make_family(given, own)
    assert (family.rising, family.scored) == (False, False)
    # Absolute: the configuration with the result may be in another folder.
    assert family.policy(0.25) == {"type": "file", "path": str(LEARNED), "threshold": 0.25}


def test_the_price_of_a_token_stays_where_the_minimum_is_chosen():
    family = make_family([], {"type": "advantage", "minimum": 0.1, "price_per_token": 0.01})
    assert family.policy(0.3) == {"type": "advantage", "minimum": 0.3, "price_per_token": 0.01}
    assert not family.rising


def test_numbers_that_pull_apart_are_no_family():
    both = '{type: any_of, policies: [{type: threshold, t: "?"}, {type: advantage, minimum: "?"}]}'
    with pytest.raises(SettingsError, match="some spend more the higher they are and some less"):
        make_family([both], {"type": "small_only"})


def test_any_policy_with_a_number_to_choose():
    own = {"type": "small_only"}
    stay = make_family(['{type: stay_on_large, k: 2, policy: {type: threshold, t: "?"}}'], own)
    assert stay.policy(0.25)["policy"] == {"type": "threshold", "t": 0.25}
    assert stay.scored
    two = make_family(['{type: any_of, policies: [{type: random_rate, rate: "?"}]}'], own)
    assert two == ParameterSweep(
        {"type": "any_of", "policies": [{"type": "random_rate", "rate": "?"}]}, scored=False
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--family is missing: the policy small_only has no number to choose"),
        (["thresh"], "--family thresh: choose threshold, random_rate, advantage, policy files"),
        (["{type: threshold, t: 0.5}"], r'put "\?" in place of the number'),
        (['{type: threshold, x: "?"}'], "policy .*: x: unknown key.*; t: this key is missing"),
        (["{type: "], "is not YAML"),
        (['{type: entropy_probe, limit: "?"}'], "entropy_probe.limit does not. Give policy files"),
        (["no.json"], "policy file .*no.json does not exist"),
        (["no.json:?"], "policy file .*no.json does not exist"),
        ([f"{POLICIES / 'pomdp-1.json'}:?"], r"threshold is 0\.5, and pomdp.* has none"),
        ([f"{{type: file, path: {LEARNED}, threshold: 0.5}}"], r'put "\?" in place of the number'),
    ],
)
def test_what_is_no_family(given, message):
    with pytest.raises(SettingsError, match=message):
        make_family(given, {"type": "small_only"})


def test_a_folder_without_policies(tmp_path):
    with pytest.raises(SettingsError, match="there is no policy file"):
        make_family([str(tmp_path)], {"type": "small_only"})


def test_equal_texts_are_apart_where_the_scorer_reads_more():
    scorer = CachedScorer(TokenProbability())
    seen = [ScorableStep("a", mean_token_probability=probability) for probability in (0.2, 0.8)]
    assert [scorer.score("q", [one]).scores[0] for one in seen] == [0.2, 0.8]
