"""The format of a reward model, as its settings and the file beside its weights say."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from transformers import GPT2Config, LlamaConfig, Qwen2Config, T5Config

from tests import tiny_prms
from tests.tiny_prms import QUESTION, TEXTS
from trim_graph import ScorableStep, Shadow, create_trim_graph
from trim_graph.adapters import (
    CascadeScorer,
    ChatTransformers,
    ContinueByPrompt,
    MinimumScorer,
    TransformersProcessReward,
    VLLMProcessReward,
)
from trim_graph.adapters.base import reads_reports
from trim_graph.adapters.capabilities import bound_setting
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import TrimPRMFormat
from trim_graph.adapters.prm.heads import linear_scorer
from trim_graph.adapters.prm.scorer_file import (
    SCORER_FILE,
    FormatChoice,
    ScorerFile,
    Stacking,
    chosen_format,
)
from trim_graph.adapters.settings import TransformersPRMSettings
from trim_graph.adapters.token_confidence import reporting
from trim_graph.config import example_config
from trim_graph.errors import SettingsError
from trim_graph.evaluation.arms import identity_of
from trim_graph.evaluation.calibration import CachedScorer
from trim_graph.examples import arithmetic
from trim_graph.policies import threshold

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
CONFIGS = {
    "qwen2": Qwen2Config(vocab_size=1000, num_key_value_heads=1, **SMALL),
    "llama": LlamaConfig(vocab_size=1000, **SMALL),
    "gpt2": GPT2Config(vocab_size=1000, n_embd=32, n_layer=2, n_head=2),
}
STEPS = [ScorableStep(text) for text in TEXTS]


def written(**changes):
    facts = {"step_token": "<|im_end|>", "base": "tiny", "tuning": "head", "method": "labelled"}
    return ScorerFile(**facts | changes)


@pytest.fixture
def folder(tmp_path, tokenizer):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def choice(folder, **settings):
    return chosen_format(TransformersPRMSettings(model=str(folder), **settings), str(folder))


def test_auto_without_the_file_is_qwens_format(folder):
    assert choice(folder) == FormatChoice("qwen", None, "auto")
    assert choice(folder, step_token="<s>", system_prompt=None) == FormatChoice("qwen", "<s>", None)


def test_the_file_answers_what_the_settings_leave_open(folder):
    written(step_token="<tag>", system_prompt="Rate.").write(folder)
    assert choice(folder) == FormatChoice("trim", "<tag>", "Rate.")
    assert choice(folder, format="trim") == FormatChoice("trim", "<tag>", "Rate.")
    assert choice(folder, step_token="<s>", system_prompt=None) == FormatChoice("trim", "<s>", None)
    assert choice(folder, format="rlhflow") == FormatChoice("rlhflow", None, "auto")


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', "\udcff"])
def test_another_file_is_refused_by_name(folder, content):
    (folder / SCORER_FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"trim_scorer\.json of .* is not a trained scorer's"):
        choice(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_any_causal_model_is_read_as_it_is(tmp_path, tokenizer, name):
    torch.manual_seed(3)
    config = CONFIGS[name]
    network = linear_scorer(config)(config).eval()
    with torch.no_grad():
        network.score.weight.normal_(std=2.0)
        network.score.bias.fill_(0.3)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written().write(tmp_path)
    encoded = TrimPRMFormat(load_tokenizer(str(tmp_path))).encode(QUESTION, TEXTS)
    backbone = getattr(network, network.base_model_prefix)
    with torch.no_grad():
        hidden = backbone(torch.tensor([encoded.ids])).last_hidden_state[0, encoded.step_positions]
    values = (hidden @ network.score.weight.T + network.score.bias)[:, 0].tolist()

    reply = TransformersProcessReward(tmp_path).score(QUESTION, STEPS)

    assert reply.scores == pytest.approx([1 / (1 + math.exp(-value)) for value in values], abs=1e-6)
    assert len(set(reply.scores)) == 3
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert kind == [type(network).__name__]
    assert kind[0].endswith("ForSequenceClassification")


def test_a_model_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="type 't5' is no causal language model"):
        linear_scorer(T5Config())


def test_a_skywork_prm_is_read_by_the_same_class(tmp_path):
    folder = tiny_prms.save_skywork(tmp_path / "prm")
    scores = TransformersProcessReward(folder, format="skywork").score(QUESTION, STEPS).scores
    assert len(set(scores)) == 3


STACKING = Stacking(intercept=-1.0, score=0.5, token_probability=2.0)


class TestStacking:
    @pytest.fixture
    def scorer(self, tmp_path):
        folder = tiny_prms.save_trim(tmp_path / "scorer")
        written(stacking=STACKING).write(folder)
        return TransformersProcessReward(folder)

    def test_a_small_models_step_gets_the_combination_and_others_the_heads_score(self, scorer, tmp_path):
        alone = TransformersProcessReward(tiny_prms.save_trim(tmp_path / "alone")).score(QUESTION, STEPS)
        steps = [
            ScorableStep(TEXTS[0], mean_token_probability=0.9),
            ScorableStep(TEXTS[1], "large", mean_token_probability=0.9),
            ScorableStep(TEXTS[2]),
        ]
        value = -1 + 0.5 * math.log(alone.scores[0] / (1 - alone.scores[0])) + 2 * math.log(9)
        found = scorer.score(QUESTION, steps)
        assert found.scores[0] == pytest.approx(1 / (1 + math.exp(-value)))
        assert found.scores[1:] == pytest.approx(alone.scores[1:])
        assert found.input_tokens == alone.input_tokens

    async def test_an_asynchronous_call_gives_the_same(self, scorer):
        steps = [ScorableStep(text, mean_token_probability=0.6) for text in TEXTS]
        assert (await scorer.ascore(QUESTION, steps)).scores == scorer.score(QUESTION, steps).scores

    def test_plain_texts_get_the_heads_scores(self, scorer):
        assert scorer.score(QUESTION, TEXTS).scores == scorer.score(QUESTION, STEPS).scores

    @settings(max_examples=200)
    @given(st.floats(0, 1), st.floats(0, 1), st.floats(-1e3, 1e3))
    def test_any_score_and_probability_give_a_probability(self, score, probability, intercept):
        stacking = Stacking(intercept=intercept, score=1.0, token_probability=50.0)
        (found,) = stacking.scores([score], [ScorableStep("a", mean_token_probability=probability)])
        assert 0 <= found <= 1

    def test_a_surer_step_scores_no_lower(self):
        steps = [ScorableStep("a", mean_token_probability=one) for one in (0.0, 0.3, 0.9, 1.0)]
        scores = STACKING.scores([0.5] * 4, steps)
        assert scores == sorted(scores)
        assert scores[0] < 0.01
        assert scores[-1] > 0.99

    def test_a_certain_step_outweighs_no_score_by_more_than_a_bound(self):
        certain, bounded = (
            STACKING.scores([0.01], [ScorableStep("a", mean_token_probability=one)]) for one in (1.0, 0.999)
        )
        assert certain == bounded

    def test_a_scorer_within_others_is_read_anew_where_its_file_comes_later(self, tmp_path):
        folder = tiny_prms.save_trim(tmp_path / "later")
        scorer = TransformersProcessReward(folder)
        others = [CachedScorer(scorer), MinimumScorer(scorer, scorer), CascadeScorer(scorer, scorer)]
        assert not any(one.reads_token_probability for one in others)
        written(stacking=STACKING).write(folder)
        assert all(one.reads_token_probability and reads_reports(one) for one in others)

    def test_a_model_that_continues_by_prompt_has_its_own_model_asked(self, scorer):
        class Hosted(FakeListChatModel):
            logprobs: bool | None = None

        small = ContinueByPrompt(Hosted(responses=["x"]))
        assert bound_setting(reporting(small, scorer, "small").model, "logprobs") is True
        assert reporting(small, scorer, "large") is small

    def test_a_small_model_that_is_not_known_to_report_them_is_named(self, scorer):
        with pytest.warns(RuntimeWarning, match="which FakeListChatModel is not known to report"):
            reporting(FakeListChatModel(responses=["x"]), scorer, "small")

    def test_a_damaged_file_is_a_settings_error_of_the_graph(self, scorer):
        small, large = (
            ChatTransformers(model=str(folder)) for folder in (arithmetic.SMALL, arithmetic.LARGE)
        )
        (Path(scorer.model) / SCORER_FILE).write_text("{}")
        with pytest.raises(SettingsError, match=r"trim_scorer\.json of .* is not a trained scorer's"):
            create_trim_graph(small, large, scorer, policy=threshold(0.5))

    def test_a_changed_file_is_another_scorer_for_an_evaluation(self, scorer):
        def identity():
            parts = {"scorer": {"type": "transformers_prm", "model": scorer.model}, "policy": "small_only"}
            return identity_of(example_config(parts))

        before = identity()
        written(stacking=None).write(Path(scorer.model))
        assert identity() != before

    def test_a_shadow_of_answers_without_token_probabilities_is_refused(self, scorer, tmp_path):
        small, large = (
            ChatTransformers(model=str(folder)) for folder in (arithmetic.SMALL, arithmetic.LARGE)
        )
        record = str(tmp_path / "shadow.jsonl")
        with pytest.raises(SettingsError, match="which an answer of the application does not have"):
            Shadow(small, large, scorer, policy=threshold(0.5), answers="small", record=record)
        Shadow(small, large, scorer, policy=threshold(0.5), answers="large", record=record).close()

    def test_scorers_that_keep_scores_tell_reports_apart(self, scorer, tmp_path):
        assert reads_reports(scorer)
        assert not reads_reports(TransformersProcessReward(tiny_prms.save_trim(tmp_path / "alone")))
        assert not reads_reports(TransformersProcessReward(scorer.model, format="qwen"))
        assert reads_reports(VLLMProcessReward("served", tokenizer=scorer.model))
        assert reads_reports(MinimumScorer(scorer, lambda question, steps: [1.0] * len(steps)))
        cached = CachedScorer(scorer)
        sure, unsure = (
            cached.score(QUESTION, [ScorableStep(TEXTS[0], mean_token_probability=one)]).scores
            for one in (0.9, 0.5)
        )
        assert sure[0] > unsure[0]

    @pytest.mark.parametrize(
        "wrap", [lambda scorer: scorer, CachedScorer, lambda one: MinimumScorer(one, one)]
    )
    def test_a_graph_asks_the_small_model_for_them(self, scorer, wrap):
        small, large = (
            ChatTransformers(model=str(folder)) for folder in (arithmetic.SMALL, arithmetic.LARGE)
        )
        seen = []

        class Seeing(type(scorer)):
            def score(self, question, steps):
                seen.extend(steps)
                return super().score(question, steps)

        (problem,) = arithmetic.problems("standard", 1)
        graph = create_trim_graph(small, large, wrap(Seeing(scorer.model)), policy=threshold(0.0))
        graph.invoke({"messages": [("user", problem.question)]})
        assert seen
        assert all(step.mean_token_probability is not None for step in seen)
