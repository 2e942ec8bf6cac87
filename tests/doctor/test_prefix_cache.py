"""Whether the scorer's server uses its prefix cache, as `doctor` reports it, on scripted counters."""

import pytest

from trim_graph.adapters.base import ScorerReply
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.budget import Budget
from trim_graph.config import make_config
from trim_graph.config.schema import FileSettings
from trim_graph.doctor.examination import prefix_cache
from trim_graph.doctor.subjects import ARITHMETIC, Subject, subject_of
from trim_graph.errors import ModelServerError
from trim_graph.examples.arithmetic import PRM

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


def subject(scorer, metrics, root=PRM, **entry):
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
    made.known |= {"tokenizer": load_tokenizer(str(PRM)), "tokenizer_place": str(PRM)}
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
