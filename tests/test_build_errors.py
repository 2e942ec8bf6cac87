"""What is wrong with a scorer, a policy or a checkpointer is said when a graph is built."""

import pytest

from trim_graph import ScorableStep, TrimContext, create_trim_graph, open_checkpointer
from trim_graph.agents import TrimMiddleware
from trim_graph.errors import InputError, ScorerError, SettingsError
from trim_graph.policies import Observation, random_rate, small_only, stay_on_large, threshold
from trim_graph.testing import ScriptedChatModel

SCRIPT = ["one", "two \\boxed{2}"]


def rate(question, steps):
    return [1.0] * len(steps)


def build(where, **options):
    models = [ScriptedChatModel(script=SCRIPT) for _ in range(2)]
    given = {"scorer": rate, "policy": threshold(0.5), **options}
    in_graph = where == "graph"
    built = create_trim_graph(*models, **given) if in_graph else TrimMiddleware(models[1], **given)
    assert [model.calls for model in models] == [[], []]
    return built


class WithoutAscore:
    def score(self, question, steps):
        return rate(question, steps)


class OfStepsOnly:
    def score(self, steps):
        return [1.0] * len(steps)

    async def ascore(self, steps):
        return [1.0] * len(steps)


def of_steps(steps):
    return [1.0] * len(steps)


def turned_round(steps, question):
    return [1.0] * len(steps)


def single(question: str, steps: list[ScorableStep]) -> float:
    return 1.0


def nothing(question, steps) -> None: ...


@pytest.mark.parametrize("where", ["graph", "agent"])
@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (
            of_steps,
            r"scorer of_steps\(steps\) cannot be called with a question and the steps .*: give it two param",
        ),
        (OfStepsOnly(), r"scorer OfStepsOnly\.score\(steps\) cannot be called .*: give it two parameters"),
        (turned_round, r"scorer turned_round.* the other way round: \(question, steps\)"),
        (single, "scorer single returns float by its annotation: return a list with one score per step"),
        (nothing, "scorer nothing returns None by its annotation: return a list with one score per step"),
        (WithoutAscore(), "scorer is a WithoutAscore without ascore: it needs both"),
        (WithoutAscore, r"scorer is the class WithoutAscore: pass an instance, WithoutAscore\(\.\.\.\)"),
        (
            ScriptedChatModel(script=[]),
            r"scorer is ScriptedChatModel, a chat model, not a scorer: use LLMJudge\(model\)",
        ),
        (ScriptedChatModel(script=[]).bind(stop=["x"]), r"ScriptedChatModel.*: use LLMJudge\(model\)"),
        ("openai:gpt-4.1", r"scorer is 'openai:gpt-4.1': .* by its name LLMJudge\(name\)"),
        (0.5, r"scorer is 0\.5: pass an object with score and ascore, a Runnable, or a function"),
    ],
)
def test_a_scorer_that_rates_no_steps_is_refused(where, scorer, said):
    with pytest.raises(SettingsError, match=said):
        build(where, scorer=scorer)


@pytest.mark.parametrize("answer", [0.9, None, 1])
def test_a_single_number_for_scores_says_what_is_wanted(answer):
    graph = build("graph", scorer=lambda question, steps: answer)
    with pytest.raises(
        ScorerError, match=rf"one for each of 1 steps, but {answer}: return a list with one score"
    ):
        graph.invoke({"messages": "1 + 1?"})


def is_low(observation):
    return observation.score < 0.5


def falls_through(observation):
    if observation.score < 0.5:
        return "regenerate"


@pytest.mark.parametrize("where", ["graph", "agent"])
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (is_low, 'policy is_low answered True; .*: return "regenerate" where the large model is to write'),
        (falls_through, "policy falls_through answered None; .*: return one on every path"),
        (
            lambda observation, more: "accept",
            r"cannot be called with an Observation alone .*: give it one parameter",
        ),
        (True, "policy is True: choose small, large, a threshold in"),
        (1.5, "policy is 1.5: choose small, large, a threshold in"),
        ("treshold", "unknown type 'treshold', did you mean threshold"),
        ("0.9", r"policy is '0\.9', a text: write the number without quotes"),
        (
            {"type": "threshold", "tt": 0.9},
            r"t: Field required; threshold\.tt: unknown field, did you mean t\? There are: type, t",
        ),
        ({"type": "random_rate"}, "random_rate.rate: Field required"),
        (
            "threshold",
            r'policy is not valid: threshold\.t: Field required; .* such as {"type": "threshold", "t": 0\.5}',
        ),
        ({"type": "random_rat", "rate": 0.3}, "unknown type 'random_rat', did you mean random_rate"),
        ("missing.json", "policy file missing.json does not exist"),
        (None, r"policy is None: pass a policy such as threshold\(0.5\)"),
    ],
)
def test_a_policy_that_decides_nothing_is_refused(where, policy, said):
    with pytest.raises(SettingsError, match=said):
        build(where, policy=policy)


def test_a_function_that_needs_what_a_sample_lacks_is_taken():
    def by_first_score(observation):
        return "accept" if observation.scores[0] > 0.5 else "regenerate"

    build("graph", policy=by_first_score)


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        (0.25, threshold(0.25)),
        ("small", small_only()),
        ({"type": "random_rate", "rate": 0.3}, random_rate(0.3)),
        ({"type": "stay_on_large", "policy": 0.5, "k": 2}, stay_on_large(threshold(0.5), 2)),
        (threshold(0.5) | 0.25, threshold(0.5) | threshold(0.25)),
        (stay_on_large(0.5, 1), stay_on_large(threshold(0.5), 1)),
    ],
)
def test_a_policy_may_be_given_as_yaml_takes_it(given, policy):
    assert repr(build("agent", policy=given).policy) == repr(policy)
    build("graph", policy=given)


def test_a_number_as_policy_is_a_threshold():
    small, large = ScriptedChatModel(script=SCRIPT), ScriptedChatModel(script=["LARGE \\boxed{3}"])
    graph = create_trim_graph(small, large, lambda q, steps: [0.4 for _ in steps], policy=0.5)
    assert graph.invoke({"messages": "1 + 1?"})["trim"]["steps"] == {"small": 0, "large": 1}


def test_quotes_around_a_threshold_are_named():
    with pytest.raises(
        SettingsError, match=r"threshold is '0.5': .* choose a value in \[0, 1\], and the number with"
    ):
        threshold("0.5")


@pytest.mark.parametrize(
    ("checkpointer", "seen"),
    [
        ("sqlite:runs.db", "a text"),
        (open_checkpointer("memory"), r"open_checkpointer\(\.\.\.\), which is not open yet"),
    ],
    ids=["name", "not entered"],
)
def test_a_checkpointer_that_is_not_open_says_who_opens_one(checkpointer, seen):
    said = (
        rf"checkpointer is {seen}: a store is opened and closed around its use, as in with open_checkpointer"
    )
    with pytest.raises(SettingsError, match=said):
        build("graph", checkpointer=checkpointer)


@pytest.mark.parametrize(
    "call",
    [
        lambda: TrimContext(treshold=0.6),
        lambda: build("graph").invoke({"messages": "1 + 1?"}, context={"treshold": 0.6}),
        lambda: build("graph").invoke({"messages": "1 + 1?"}, context={"trim": {"treshold": 0.6}}),
        lambda: build("graph").invoke({"messages": "1 + 1?"}, {"configurable": {"trim": {"treshold": 0.6}}}),
    ],
)
def test_a_typo_in_the_context_names_the_field_that_is_meant(call):
    with pytest.raises(ValueError, match=r"treshold\W+unknown field, did you mean threshold\?"):
        call()


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
async def test_an_input_without_messages_names_the_keys_that_it_has(asynchronously):
    graph = build("graph")
    with pytest.raises(InputError, match="the input has the keys mesages: give the problem under messages"):
        await graph.ainvoke({"mesages": "1 + 1?"}) if asynchronously else graph.invoke({"mesages": "1 + 1?"})


def test_an_observation_of_the_sample_is_a_whole_one():
    seen = []

    def watches(observation: Observation) -> str:
        seen.append(observation)
        return "accept"

    build("graph", policy=watches)
    assert [one.score for one in seen] == [0.0, 1.0]
    assert all(one.draft and one.draft_tokens and one.question for one in seen)
