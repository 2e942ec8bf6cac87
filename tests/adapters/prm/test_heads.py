"""Tests of the networks of the formats beside Qwen's: their scores, and weights that are refused."""

import asyncio
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2Config, Qwen2Model

from tests.tiny_prms import QUESTION, TEXTS
from trim_graph import ScorableStep
from trim_graph.adapters import ScorerError, TransformersProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.convert import convert_value_head
from trim_graph.adapters.prm.formats import prm_format
from trim_graph.errors import is_context_full


def steps(*texts):
    return [ScorableStep(text) for text in texts]


def weights_of(folder):
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    return weights


class TestNetworks:
    def answers(self, kind, folder, encoded, answer_ids):
        """All logits of the whole language model, as the authors compute them."""
        network = kind.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = network(torch.tensor([encoded.ids])).logits[0]
        wrong, right = answer_ids
        return logits[encoded.step_positions][:, [right, wrong]].softmax(-1)[:, 0].tolist()

    def values(self, folder, encoded):
        """The value head from its own tensors, on a plain backbone."""
        weights = weights_of(folder)
        backbone = Qwen2Model(Qwen2Config.from_pretrained(folder)).eval()
        backbone.load_state_dict(
            {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
        )
        with torch.no_grad():
            hidden = backbone(torch.tensor([encoded.ids])).last_hidden_state[0, encoded.step_positions]
            value = hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
        return value[:, 0].sigmoid().tolist()

    def test_scores_are_those_of_the_whole_model(self, folders, name):
        folder = folders[name]
        layout = prm_format(name, load_tokenizer(str(folder), chat=False))
        encoded = layout.encode(QUESTION, TEXTS)
        if name == "skywork":
            expected = self.values(folder, encoded)
        else:
            kind = MistralForCausalLM if name == "math_shepherd" else LlamaForCausalLM
            expected = self.answers(kind, folder, encoded, layout.answer_ids)
        reply = TransformersProcessReward(folder, format=name).score(QUESTION, steps(*TEXTS))
        assert reply.scores == pytest.approx(expected, abs=1e-5)
        assert len({round(score, 3) for score in expected}) > 1
        assert reply.input_tokens == len(encoded.ids)

    async def test_padding_and_batching_change_no_score(self, folders, name):
        scorer = TransformersProcessReward(folders[name], format=name)
        asked = [TEXTS, TEXTS[:1], ["so " * 40], TEXTS * 2, ["x", "y\nz"]]
        alone = [scorer.score(QUESTION, steps(*texts)).scores for texts in asked]
        together = await asyncio.gather(*(scorer.ascore(QUESTION, steps(*texts)) for texts in asked))
        for one, other in zip(alone, together, strict=True):
            assert one == pytest.approx(other.scores, abs=1e-5)

    def test_too_long_an_input_is_refused(self, folders, name):
        with pytest.raises(ScorerError, match=r"make \d+ tokens; the PRM takes 512") as caught:
            TransformersProcessReward(folders[name], format=name).score("q", steps("why " * 600))
        assert is_context_full(caught.value)

    @pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
    def test_scores_in_other_dtypes_are_close_to_exact_ones(self, folders, name, dtype):
        exact = TransformersProcessReward(folders[name], format=name).score(QUESTION, steps(*TEXTS))
        scores = TransformersProcessReward(folders[name], format=name, dtype=dtype).score(
            QUESTION, steps(*TEXTS)
        )
        assert scores.scores == pytest.approx(exact.scores, abs=0.15)

    def test_a_score_that_is_no_probability_is_refused(self, folders):
        scorer = TransformersProcessReward(folders["skywork"], format="skywork", dtype="auto")
        network = scorer._load()[0]._model
        with torch.no_grad():
            network.score.bias.fill_(float("inf"))
        with pytest.raises(ScorerError, match="score of step 1 of 1 is nan, not a probability"):
            scorer.score(QUESTION, steps("a"))

    def test_formats_of_one_model_do_not_share_heads(self, folders):
        shepherd, flow = (
            TransformersProcessReward(folders["math_shepherd"], format="math_shepherd", step_token=tag)
            for tag in ("ки", "так")
        )
        assert shepherd._load()[0] is flow._load()[0]
        value = TransformersProcessReward(folders["skywork"], format="skywork")
        assert value._load()[0] is not shepherd._load()[0]


class TestWrongWeights:
    def test_weights_of_another_architecture_are_refused_by_name(self, folders, reward_model):
        with pytest.raises(
            ValueError, match=r"a \['Qwen2ForProcessRewardModel'\]; as a PRM .* takes LlamaFor.*MistralFor"
        ):
            TransformersProcessReward(reward_model, format="rlhflow").score("q", steps("a"))
        with pytest.raises(ValueError, match=r"lacks weights that a PRM needs: score\.bias, score\.weight"):
            TransformersProcessReward(folders["rlhflow"], format="skywork").score("q", steps("a"))
        with pytest.raises(ValueError, match="no chat template"):
            TransformersProcessReward(folders["skywork"]).score("q", steps("a"))

    def test_a_value_head_that_is_not_there(self, folders, tmp_path):
        folder = tmp_path / "headless"
        shutil.copytree(folders["skywork"], folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        weights = weights_of(folders["skywork"])
        del weights["v_head.summary.bias"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks weights that a PRM needs: score\.bias"):
            TransformersProcessReward(folder, format="skywork").score("q", steps("a"))
        with pytest.raises(ValueError, match=r"no value head: score\.bias"):
            convert_value_head(str(folder), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_pickles_are_refused_with_what_to_do(self, folders, tmp_path, name):
        folder = tmp_path / "pickled"
        shutil.copytree(folders[name], folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        with pytest.raises(
            ValueError, match=r"pickles only \(pytorch_model\.bin\).*save_pretrained\(FOLDER\)"
        ):
            TransformersProcessReward(folder, format=name).score("q", steps("a"))

    @pytest.mark.parametrize(
        ("said", "kind", "complaint"),
        [
            (
                "x does not appear to have a file named model.safetensors",
                ValueError,
                r"no \*\.safetensors: .*AutoM",
            ),
            ("no space left on model.safetensors", OSError, "^no space left"),
        ],
    )
    def test_a_hub_id_without_safetensors(self, folders, monkeypatch, said, kind, complaint):
        def download(*args, **kwargs):
            assert kwargs["use_safetensors"] is True
            raise OSError(said)

        monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", download)
        scorer = TransformersProcessReward(folders["rlhflow"], format="rlhflow", dtype="float16")
        with pytest.raises(kind, match=complaint):
            scorer.score("q", steps("a"))
