"""Tests of what is reported about a configuration and its measurements, without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny_prms
from trim_graph.adapters.base import ScorerReply
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.budget import Budget
from trim_graph.config import Parts, make_config
from trim_graph.config.schema import FileSettings
from trim_graph.doctor.chat_checks import room
from trim_graph.doctor.examination import (
    alike,
    checks_of,
    examine,
    graph,
    prefix_cache,
    ranking,
    segmentation,
    thresholds,
    tokenizer,
    two_models,
)
from trim_graph.doctor.subjects import ARITHMETIC, GENERAL, Subject, subject_of, subjects_of
from trim_graph.errors import ModelServerError
from trim_graph.examples.arithmetic import PRM as WEIGHTS
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

SERVED = {"type": "vllm", "model": "m", "base_url": "http://127.0.0.1:8001"}


PRM = {"type": "vllm_prm", "model": "p", "base_url": "http://127.0.0.1:8003"}


def config(**parts):
    other = {**SERVED, "model": "n"}
    return make_config({"small": SERVED, "large": other, "policy": {"type": "threshold", "t": 0.5}, **parts})


def parts(scorer=True):
    return Parts(
        ScriptedChatModel(script=[]), ScriptedChatModel(script=[]), ScriptedScorer({}) if scorer else None
    )


def test_a_policy_that_needs_scores_and_no_scorer():
    finding = graph(config(), parts(scorer=False))
    assert finding.status == "error"
    assert "there is no scorer" in finding.found
    assert graph(config(scorer=PRM), parts()).status == "ok"


def test_a_scorer_that_nobody_asks():
    assert graph(config(scorer=PRM, policy="small_only"), parts()).status == "warning"
    assert graph(config(policy="small_only"), parts(scorer=False)).status == "ok"


def test_a_limit_on_cost_without_prices_limits_nothing():
    finding = graph(config(scorer=PRM, budget={"large_cost": 1}), parts())
    assert finding.status == "error"
    assert "has no price" in finding.found
    prices = {"large": {"output": 1.0}}
    assert graph(config(scorer=PRM, budget={"large_cost": 1}, prices=prices), parts()).status == "ok"


def test_a_judge_without_a_price_beside_others_makes_the_cost_unknown():
    large, free = {"output": 1.0}, {"output": 0}
    judges = {"type": "minimum", "scorers": [PRM, JUDGE]}
    for scorer in (JUDGE, judges):
        finding = graph(config(scorer=scorer, prices={"large": large}), parts())
        assert finding.status == "warning"
        assert "prices.scorer is not given, so the cost is unknown" in finding.found
        assert graph(config(scorer=scorer), parts()).status == "ok"
        assert graph(config(scorer=scorer, prices={"large": large, "scorer": free}), parts()).status == "ok"


def test_what_the_graph_refuses_is_an_error():
    finding = graph(config(scorer=PRM), Parts(None, *parts()[1:]))
    assert finding.status == "error"
    assert "pass a LangChain chat model" in finding.found


def test_a_scorer_of_an_agents_turns_is_not_for_a_graph():
    scorer = {"type": "minimum", "scorers": [{"type": "turn_signals"}, PRM]}
    for one in (scorer, {"type": "turn_signals"}):
        finding = graph(config(scorer=one), parts())
        assert finding.status == "warning"
        assert "for TrimMiddleware only" in finding.found
        made = config(scorer=one)
        assert checks_of(subject_of("scorer", made.scorer, made.settings, made.budget, 1.0)) == []


def test_small_and_large_may_be_the_same():
    assert two_models(config(large=SERVED)).status == "warning"
    assert two_models(config()).status == "ok"


@pytest.mark.parametrize(
    ("policy", "status", "expected"),
    [
        ({"type": "threshold", "t": 0.5}, "ok", "t=0.5"),
        ({"type": "threshold", "t": 0.1}, "warning", "even wrong drafts would be kept"),
        (
            {"type": "stay_on_large", "k": 1, "policy": {"type": "threshold", "t": 0.95}},
            "warning",
            "every draft",
        ),
        (
            {"type": "all_of", "policies": [{"type": "threshold", "t": 0.0}, "small_only"]},
            "warning",
            "raise it",
        ),
        ("small_only", None, None),
    ],
)
def test_thresholds_lie_among_the_scores(policy, status, expected):
    made = config(scorer=PRM, policy=policy)
    subject = subject_of("scorer", made.scorer, made.settings, made.budget, 1.0)
    assert thresholds(made, subject) is None  # nothing was seen
    subject.scores = [0.8, 0.9], [0.1, 0.2]
    finding = thresholds(made, subject)
    assert (finding and finding.status) == status
    assert expected is None or expected in finding.found + finding.fix


@given(st.integers(1, 10_000), st.integers(1, 500), st.integers(1, 100), st.integers(1, 2_000))
def test_a_context_length_is_judged_by_a_step_and_by_a_solution(length, asked, steps, tokens):
    status = room("small", length, asked, steps, tokens).status
    one, all_ = asked + tokens <= length, asked + steps * tokens <= length
    assert status == ("ok" if all_ else "warning" if one else "error")


GENERATIVE = {**PRM, "type": "vllm_generative_prm", "format": "math_shepherd", "cache_size": 9}


JUDGE = {"type": "llm_judge", "model": SERVED}


def names_of_checks(part, made):
    return [name for name, _ in checks_of(subject_of(part, made, FileSettings(), Budget(), 3.0))]


def test_a_scorer_behind_a_server_for_generation_is_examined_as_one():
    made = config(scorer=GENERATIVE).scorer
    names = names_of_checks("scorer", made)
    assert names[:4] == ["server", "key", "model", "tokenizer"]
    assert {"scores", "right and wrong", "prefix cache"} <= set(names)
    assert not {"pooling", "step token", "continuation"} & set(names)


async def test_a_scorer_that_weighs_token_probabilities_is_judged_by_its_head_with_caution():
    class Weighing(ScriptedScorer):
        reads_token_probability = True

        def score(self, question, steps):
            assert all(step.mean_token_probability is None for step in steps)
            return super().score(question, steps)

    subject = subject_of("scorer", config(scorer=PRM).scorer, FileSettings(), Budget(), 3.0)
    subject.samples, subject.adapter = GENERAL, Weighing({})
    finding = await ranking(subject)
    assert (finding.status, subject.scores) == ("warning", None)
    assert "measure it first" in finding.fix
    subject.adapter = ScriptedScorer({})
    finding = await ranking(subject)
    assert finding.status == "error"
    assert subject.scores is not None


async def test_a_reward_model_that_is_no_chat_needs_no_chat_template(tmp_path):
    class Gateway:
        """Lets no question about tokens through."""

        async def post(self, path, body):
            raise ModelServerError("no such route", status=404)

    tiny_prms.save_math_shepherd(tmp_path)
    subject = subject_of("scorer", config(scorer=GENERATIVE).scorer, FileSettings(), Budget(), 3.0)
    subject.served, subject.server = {"root": str(tmp_path)}, Gateway()
    assert (await tokenizer(subject)).status == "warning"
    assert subject.known["tokenizer"].chat_template is None
    chat = subject_of("scorer", config(scorer=PRM).scorer, FileSettings(), Budget(), 3.0)
    chat.served, chat.server = subject.served, subject.server
    assert "has no chat template" in (await tokenizer(chat)).found


async def test_each_part_of_a_combined_scorer_is_examined_under_its_own_name(monkeypatch):
    """No check needs a server here: each of them says what it is of."""
    seen = []

    async def examined(subject, on_check):
        seen.append((subject.name, subject.entry.type))
        return []

    monkeypatch.setattr("trim_graph.doctor.examination._examine", examined)
    scorer = {"type": "cascade", "first": JUDGE, "second": GENERATIVE}
    report = await examine(config(scorer=scorer), limit=3.0, on_check=print)
    assert seen == [
        ("small", "vllm"),
        ("large", "vllm"),
        ("scorer-1", "vllm"),
        ("scorer-2", "vllm_generative_prm"),
        ("scorer", "cascade"),
    ]
    assert not report.errors


def test_steps_are_compared_with_those_of_each_part():
    scorer = {"type": "cascade", "first": {"type": "token_probability"}, "second": GENERATIVE}
    finding = segmentation(config(scorer=scorer))
    assert finding.status == "warning"
    assert "PRMs of the format math_shepherd" in finding.found


def test_each_replica_is_a_subject_and_all_must_be_alike():
    made = config(small={**SERVED, "base_url": ["http://a:1", "http://b:1/v1"]}, scorer=PRM)
    first, second = subjects_of("small", made.small, made.settings, made.budget, 3.0)
    assert (first.name, second.name) == ("small at http://a:1", "small at http://b:1")
    assert second.adapter.base_url == "http://b:1/v1"
    assert [one.name for one in subjects_of("scorer", made.scorer, made.settings, made.budget, 3.0)] == [
        "scorer"
    ]
    assert alike([first, second]).status == "warning"
    first.served = second.served = {"root": "org/m", "max_model_len": 4096}
    assert alike([first, second]).status == "ok"
    second.known["tokens"] = [1]
    assert "another tokenizer" in alike([first, second]).found
    second.served = {"root": "org/m", "max_model_len": 512}
    assert "max_model_len 512" in alike([first, second]).found


@pytest.mark.parametrize(
    ("form", "settings", "status"),
    [
        ("qwen", {}, "ok"),
        ("qwen", {"segmentation": {"type": "markdown"}}, "ok"),
        ("qwen", {"segmentation": {"type": "delimiter", "delimiter": "\n"}}, "warning"),
        ("qwen", {"segmentation": {"type": "pattern", "pattern": "\\n+(?=Step \\d)"}}, "warning"),
        ("qwen", {"segmentation": {"type": "tokens", "tokens": 64}}, "warning"),
        ("qwen", {"delimiter": "###"}, "warning"),
        ("math_shepherd", {}, "warning"),
        ("math_shepherd", {"segmentation": {"type": "pattern", "pattern": "\\n+(?=Step \\d)"}}, "ok"),
        ("skywork", {"segmentation": {"type": "markdown"}}, "warning"),
        ("skywork", {"delimiter": "\n"}, "ok"),
        ("rlhflow", {}, "ok"),
        ("rlhflow", {"delimiter": "\n"}, "ok"),
        ("rlhflow", {"segmentation": {"type": "tokens", "tokens": 64}}, "warning"),
    ],
)
def test_drafts_are_compared_with_those_of_the_prm(form, settings, status):
    found = segmentation(config(scorer={**PRM, "format": form}, settings=settings))
    assert found.status == status
    assert f"format {form}" in found.found
    assert ("segmentation" in found.fix) is (status == "warning")


def test_without_a_prm_steps_are_compared_with_nothing():
    assert segmentation(config(settings={"delimiter": "\n"})) is None
    assert segmentation(config(scorer={"type": "llm_judge", "model": SERVED})) is None


# Whether the scorer's server uses its prefix cache, on scripted counters


ENTRY = {"type": "vllm_prm", "model": "prm", "base_url": "http://127.0.0.1:8003"}


class Scorer:
    """Scores by step or not, and reads a token for each word."""

    def __init__(self, by_step: bool) -> None:
        self.scores_by_step = by_step
        self.read = 0

    def score(self, question, steps):
        words = len(question.split()) + sum(len(step.split()) for step in steps)
        self.read += words
        return ScorerReply([0.5] * len(steps), input_tokens=words)

    async def ascore(self, question, steps):
        return self.score(question, steps)


class Metrics:
    """A server's counters; two engines of it."""

    root = "http://127.0.0.1:8003"

    def __init__(self, hits):
        self.hits = hits

    async def get_text(self, path):
        assert path == "/metrics"
        if self.hits is None:
            raise ModelServerError("no such page", status=404)
        return self.hits()


def lines(*hits):
    name = "vllm:prefix_cache_hits"
    return "".join(f'{name}_created{{engine="{n}"}} 9\n{name}_total{{engine="{n}"}} {h}\n' for n, h in hits)


def subject(scorer, metrics, root=WEIGHTS, **entry):
    config = make_config(
        {
            "small": {**ENTRY, "type": "vllm"},
            "large": {**ENTRY, "type": "vllm", "model": "n"},
            "policy": "large_only",
            "scorer": {**ENTRY, **entry},
        }
    )
    made = Subject("scorer", config.scorer, scorer, metrics, FileSettings(), Budget(), 9.0)
    made.served = {"root": str(root), "max_model_len": 2048}
    made.samples = ARITHMETIC
    made.known |= {"tokenizer": load_tokenizer(str(WEIGHTS)), "tokenizer_place": str(WEIGHTS)}
    made.known["input_tokens"] = {(ARITHMETIC[0].question, 1): 40}
    return made


async def test_tokens_from_the_cache_are_reported():
    scorer = Scorer(by_step=True)
    finding = await prefix_cache(
        subject(scorer, Metrics(lambda: lines((0, max(0, scorer.read - 200)), (1, 0))))
    )
    assert finding.status == "ok"
    assert "tokens of a repeated input came from it" in finding.found


async def test_a_cache_that_is_off_is_a_warning_with_the_flag():
    finding = await prefix_cache(subject(Scorer(by_step=True), Metrics(lambda: lines((0, 7), (1, 0)))))
    assert finding.status == "warning"
    assert "--enable-prefix-caching" in finding.fix


@pytest.mark.parametrize("hits", [None, lambda: "", lambda: "nothing of vllm\n"])
async def test_counters_that_cannot_be_read_are_a_warning(hits):
    finding = await prefix_cache(subject(Scorer(by_step=True), Metrics(hits)))
    assert finding.status == "warning"
    assert "/metrics" in finding.fix


async def test_pooling_of_tokens_names_what_the_cache_needs(tmp_path):
    finding = await prefix_cache(subject(Scorer(by_step=False), Metrics(None)))
    assert finding.status == "ok"  # vLLM alone serves it in no other way
    assert "TrimQwen2ForProcessReward" in finding.found
    other = await prefix_cache(subject(Scorer(by_step=False), Metrics(None), root=tmp_path))
    assert other.status == "ok"
    assert "the only way" in other.found
    linear = await prefix_cache(subject(Scorer(by_step=False), Metrics(None), format="trim"))
    assert linear.status == "warning"
    assert '"pooling_type": "LAST"' in linear.fix


def test_a_scorer_under_examination_keeps_no_scores():
    made = subject_of("scorer", subject(None, None).entry, FileSettings(), Budget(), 9.0)
    assert made.adapter.cache_size == 0
