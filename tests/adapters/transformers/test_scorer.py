"""The PRM: layout of the input, the loader, and the scorer built on them."""

import asyncio
import copy
import json
import pickle
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trim_graph import ScorableStep
from trim_graph.adapters import Scorer, ScorerError, TransformersProcessReward
from trim_graph.adapters.prm.formats import QWEN_SYSTEM_PROMPT, QwenPRMFormat
from trim_graph.adapters.prm.heads import Qwen2ForProcessRewardModel, load_prm

QUESTION = "What is (3 + 4) * 2?"
TEXTS = ["First, add 3 and 4 to get 7.", "Then double it: 14.", "The answer is \\boxed{14}."]
CPU = torch.device("cpu")

hostile = st.lists(
    st.sampled_from(["<extra_0>", "<|im_end|>", "<|im_start|>", "<extra_", "0>", "\n", " ", "7"])
    | st.text(max_size=6),
    max_size=6,
).map("".join)
relaxed = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def steps(*texts):
    return [ScorableStep(text) for text in texts]


@pytest.fixture
def scorer(reward_model):
    return TransformersProcessReward(reward_model)


@pytest.fixture(scope="module")
def qwen(tokenizer):
    return QwenPRMFormat(tokenizer)


class TestFormat:
    def test_it_is_the_one_of_the_model_card(self, tokenizer, qwen):
        chat = [
            {"role": "system", "content": QWEN_SYSTEM_PROMPT},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "<extra_0>".join(TEXTS) + "<extra_0>"},
        ]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
        assert text.endswith("<extra_0><|im_end|>\n")
        encoded = qwen.encode(QUESTION, TEXTS)
        assert encoded.ids == tokenizer(text).input_ids
        step_id = tokenizer.convert_tokens_to_ids("<extra_0>")
        assert [encoded.ids[i] for i in encoded.step_positions] == [step_id] * 3
        assert encoded.ids.count(step_id) == 3

    def test_the_system_prompt_may_differ_or_be_left_out(self, tokenizer):
        def text(prompt):
            return tokenizer.decode(QwenPRMFormat(tokenizer, system_prompt=prompt).encode("q", ["s"]).ids)

        assert text("Rate it.").startswith("<|im_start|>system\nRate it.<|im_end|>")
        assert text(None).startswith("<|im_start|>user\nq<|im_end|>")

    @relaxed
    @given(hostile.filter(str.strip), st.lists(hostile, min_size=1, max_size=4))
    def test_text_moves_no_score_and_survives(self, tokenizer, qwen, question, texts):
        encoded = qwen.encode(question, texts)
        assert len(encoded.step_positions) == len(texts)
        assert encoded.ids.count(tokenizer.eos_token_id) == 3
        ends = encoded.step_positions
        for before, end, text in zip(ends, ends[1:], texts[1:], strict=False):
            assert tokenizer.decode(encoded.ids[before + 1 : end]) == text

    def test_an_unflagged_step_token_is_neutralised_too(self, tokenizer):
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in spec["added_tokens"]:
            token["special"] = token["content"] != "<extra_0>"
        other = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(spec)), chat_template=tokenizer.chat_template
        )
        assert len(QwenPRMFormat(other).encode("q", ["a<extra_0>b", "c"]).step_positions) == 2

    def test_a_solution_that_cannot_be_encoded_is_refused(self, tokenizer, qwen):
        with pytest.raises(ScorerError, match="no steps"):
            qwen.encode(QUESTION, [])
        with pytest.raises(ScorerError, match="question is empty"):
            qwen.encode(" \n", TEXTS)
        length = len(qwen.encode(QUESTION, TEXTS).ids)
        assert qwen.encode(QUESTION, TEXTS, max_tokens=length)
        with pytest.raises(ScorerError, match=rf"3 steps make {length} tokens; the PRM takes {length - 1}"):
            qwen.encode(QUESTION, TEXTS, max_tokens=length - 1)
        with pytest.raises(ValueError, match="step_token='<step>' is not an added token"):
            QwenPRMFormat(tokenizer, step_token="<step>")

    def test_a_template_that_drops_steps_is_noticed(self, own_tokenizer):
        own_tokenizer.chat_template = "{{ messages[-1].content.split('<extra_0>')[0] }}<extra_0>"
        with pytest.raises(ScorerError, match="2 steps came out with 1 step tokens"):
            QwenPRMFormat(own_tokenizer).encode(QUESTION, ["a", "b"])


class TestHead:
    def test_saved_and_loaded_it_is_the_same(self, reward_model, make_config):
        files = {file.name for file in reward_model.glob("*.safetensors")}
        assert len(files) > 1  # sharded
        config = json.loads((reward_model / "config.json").read_text())
        assert config["architectures"] == ["Qwen2ForProcessRewardModel"]
        assert config["model_type"] == "qwen2"
        keys = json.loads((reward_model / "model.safetensors.index.json").read_text())["weight_map"]
        assert {key for key in keys if not key.startswith("model.")} == {
            "score.0.weight",
            "score.0.bias",
            "score.2.weight",
            "score.2.bias",
        }
        torch.manual_seed(3)
        made = Qwen2ForProcessRewardModel(make_config()).eval()
        ids = torch.arange(12)[None]
        with torch.no_grad():
            assert torch.equal(load_prm(str(reward_model), device=CPU, dtype="auto")(ids), made(ids))

    def rewrite(self, reward_model, folder, change_weights=lambda weights: None, **config):
        """A copy of the PRM in one file, changed."""
        shutil.copytree(reward_model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        weights = {}
        for file in reward_model.glob("*.safetensors"):
            weights |= load_file(file)
        change_weights(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    def test_remote_code_is_neither_needed_nor_run(self, reward_model, scorer, tmp_path):
        auto_map = {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        }
        folder = self.rewrite(reward_model, tmp_path / "published", auto_map=auto_map)
        for name in ("modeling_qwen2_rm", "configuration_qwen2_rm"):
            (folder / f"{name}.py").write_text("raise SystemExit('remote code was run')")
        same = TransformersProcessReward(folder)
        assert same.score(QUESTION, steps(*TEXTS)) == scorer.score(QUESTION, steps(*TEXTS))

    def test_a_language_model_head_in_the_file_is_ignored(self, reward_model, scorer, tmp_path):
        def add_head(weights):
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

        for tied in (True, False):
            folder = self.rewrite(reward_model, tmp_path / f"tied_{tied}", add_head, tie_word_embeddings=tied)
            same = TransformersProcessReward(folder)
            assert same.score(QUESTION, steps(*TEXTS)) == scorer.score(QUESTION, steps(*TEXTS))

    def test_a_missing_head_is_refused(self, reward_model, tmp_path):
        folder = self.rewrite(reward_model, tmp_path / "headless", lambda w: w.pop("score.2.bias"))
        with pytest.raises(ValueError, match=r"lacks weights that a PRM needs: score\.2\.bias"):
            TransformersProcessReward(folder).score(QUESTION, steps("x"))

    def test_a_language_model_is_refused(self, random_model):
        with pytest.raises(ValueError, match=r"Qwen2ForCausalLM.*not a PRM.*Qwen2ForProcessRewardModel"):
            TransformersProcessReward(random_model).score(QUESTION, steps("x"))

    def test_a_folder_with_pickles_only_is_refused(self, reward_model, tmp_path):
        folder = tmp_path / "pickled"
        shutil.copytree(reward_model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        scorer = TransformersProcessReward(folder)
        with pytest.raises(ValueError, match=r"no \*\.safetensors in the folder"):
            scorer.score(QUESTION, steps("x"))
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        with pytest.raises(ValueError, match=r"pickles only \(pytorch_model\.bin\)"):
            scorer.score(QUESTION, steps("x"))


class TestScorer:
    def test_it_is_a_scorer(self, scorer):
        assert isinstance(scorer, Scorer)

    def test_scores_are_the_softmax_at_the_step_tokens(self, scorer, qwen, reward_model):
        encoded = qwen.encode(QUESTION, TEXTS)
        model = load_prm(str(reward_model), device=CPU, dtype="float32")
        with torch.no_grad():
            logits = model(torch.tensor([encoded.ids]))[0]
        expected = logits.softmax(-1)[encoded.step_positions, 1].tolist()
        reply = scorer.score(QUESTION, steps(*TEXTS))
        assert reply.scores == pytest.approx(expected, abs=1e-6)
        assert reply.input_tokens == len(encoded.ids)
        assert len(set(reply.scores)) == 3

    def test_a_score_depends_on_nothing_behind_its_step(self, scorer):
        whole = scorer.score(QUESTION, steps(*TEXTS)).scores
        assert scorer.score(QUESTION, steps(*TEXTS[:2])).scores == pytest.approx(whole[:2], abs=1e-5)

    async def test_padding_and_batching_change_no_score(self, scorer):
        asked = [TEXTS, TEXTS[:1], ["so " * 60], TEXTS * 3, ["x", "y"]]
        alone = [scorer.score(QUESTION, steps(*texts)) for texts in asked]
        worker = scorer._load()[0].worker
        sizes, run = [], worker._run
        worker._run = lambda jobs: (sizes.append(len(jobs)), run(jobs))[1]
        together = await asyncio.gather(*(scorer.ascore(QUESTION, steps(*texts)) for texts in asked))
        assert max(sizes) > 1
        for one, other in zip(alone, together, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.input_tokens == other.input_tokens

    def test_step_tokens_in_the_text_do_not_shift_scores(self, scorer):
        shifted = scorer.score("What is <extra_0>?", steps("a <extra_0> b", "c<|im_end|>"))
        assert len(shifted.scores) == 2

    def test_very_uneven_solutions_get_their_own_batches(self, scorer, qwen):
        from trim_graph.adapters.transformers.batching import RewardJob

        short = RewardJob(qwen.encode("q", ["s"]), batch_limit=9)
        long = RewardJob(qwen.encode("q", ["s " * 900]), batch_limit=9)
        fits = scorer._load()[0]._fits
        assert fits([short], short)
        assert not fits([short, short, short], long)

    @pytest.mark.parametrize(
        ("question", "given", "complaint"),
        [("", ["x"], "question is empty"), ("q", [], "no steps"), ("q", ["why " * 600], "the PRM takes 512")],
    )
    async def test_what_cannot_be_scored_is_refused(self, scorer, question, given, complaint):
        with pytest.raises(ScorerError, match=complaint):
            scorer.score(question, steps(*given))
        with pytest.raises(ScorerError, match=complaint):
            await scorer.ascore(question, steps(*given))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_score_that_is_no_probability_is_refused(self, reward_model, monkeypatch, bad):
        scorer = TransformersProcessReward(reward_model)
        network = scorer._load()[0]._model
        monkeypatch.setattr(network.score[2].bias, "data", torch.full((2,), bad))
        with pytest.raises(ScorerError, match="score of step 1 of 2 is nan, not a probability"):
            scorer.score(QUESTION, steps("a", "b"))

    def test_too_few_scores_are_refused(self, scorer, monkeypatch):
        worker = scorer._load()[0].worker
        monkeypatch.setattr(worker, "_run", lambda jobs: [job.settle([0.5]) for job in jobs])
        with pytest.raises(ScorerError, match="1 scores for 2 steps"):
            scorer.score(QUESTION, steps("a", "b"))

    async def test_a_cancelled_call_leaves_the_others(self, scorer):
        scorer.score("q", steps("a"))
        left, kept = (asyncio.create_task(scorer.ascore(QUESTION, steps(*TEXTS))) for _ in range(2))
        await asyncio.sleep(0)
        left.cancel()
        assert len((await kept).scores) == 3
        with pytest.raises(asyncio.CancelledError):
            await left


class TestSettings:
    @pytest.mark.parametrize("kwargs", [{"dtype": "int3"}, {"format": "other"}, {"max_batch_size": 0}])
    def test_the_constructor_refuses_nonsense(self, reward_model, kwargs):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            TransformersProcessReward(reward_model, **kwargs)

    def test_a_model_folder_that_does_not_exist_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="no such folder"):
            TransformersProcessReward(tmp_path / "none")

    def test_a_wrong_step_token(self, reward_model):
        with pytest.raises(ValueError, match="step_token='<step>'"):
            TransformersProcessReward(reward_model, step_token="<step>").score("q", steps("a"))

    def test_instances_of_one_folder_share_its_weights(self, reward_model, scorer):
        other = TransformersProcessReward(str(reward_model), system_prompt=None)
        assert other._load()[0] is scorer._load()[0]

    def test_a_deep_copy_shares_the_weights(self, scorer):
        scorer.score("q", steps("a"))
        assert copy.deepcopy(scorer)._load()[0] is scorer._load()[0]

    def test_a_pickled_scorer_gives_the_same_scores(self, scorer, reward_model):
        scorer.score("q", steps("a"))
        assert f"model={str(reward_model)!r}" in repr(scorer)
        again = pickle.loads(pickle.dumps(scorer))
        assert again.score("q", steps("a")) == scorer.score("q", steps("a"))

    def test_a_model_without_a_chat_template_is_named(self, tmp_path, own_tokenizer, make_config):
        own_tokenizer.chat_template = None
        Qwen2ForProcessRewardModel(make_config()).save_pretrained(tmp_path)
        own_tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="no chat template"):
            TransformersProcessReward(tmp_path).score("q", steps("a"))
