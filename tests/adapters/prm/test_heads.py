"""Networks of the formats beside Qwen's, how they are served, and how answers become scores."""

import asyncio
import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2Config, Qwen2Model

from tests import tiny_prms
from tests.tiny_prms import QUESTION, TEXTS
from trim_graph import ScorableStep
from trim_graph.adapters import ScorerError, TransformersProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.convert import convert_value_head
from trim_graph.adapters.prm.formats import PRMInput, prm_format
from trim_graph.adapters.prm.scores import probability, read_pooled, serve_options
from trim_graph.errors import is_context_full

NAMES = ["math_shepherd", "skywork", "rlhflow"]


def steps(*texts):
    return [ScorableStep(text) for text in texts]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {
        name: getattr(tiny_prms, f"save_{name}")(tmp_path_factory.mktemp("prms") / name) for name in NAMES
    }


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def weights_of(folder):
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    return weights


@pytest.fixture(scope="session")
def converted(folders, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "prm"
    (folders["skywork"] / "modeling_qwen2_rm.py").write_text("raise SystemExit")
    convert_value_head(str(folders["skywork"]), target)
    return target


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


class TestConversion:
    def test_converted_weights_differ_in_their_names_only(self, folders, converted):
        before, after = weights_of(folders["skywork"]), weights_of(converted)
        renamed = {key.replace("v_head.summary.", "score."): value for key, value in before.items()}
        del renamed["lm_head.weight"]
        assert set(after) == set(renamed)
        assert all(torch.equal(after[key], renamed[key]) for key in after)
        index = json.loads((converted / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(after)
        assert {file.name for file in converted.glob("*.safetensors")} == set(index["weight_map"].values())

    def test_it_is_a_classifier_of_one_label_without_code(self, converted):
        config = json.loads((converted / "config.json").read_text())
        assert config["architectures"] == ["Qwen2ForSequenceClassification"]
        assert len(config["id2label"]) == 1
        assert "auto_map" not in config
        assert not list(converted.glob("*.py"))
        assert (converted / "tokenizer.json").is_file()

    def test_transformers_reads_either_layout(self, folders, converted):
        ours, theirs = (
            TransformersProcessReward(folder, format="skywork").score(QUESTION, steps(*TEXTS))
            for folder in (converted, folders["skywork"])
        )
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-6)

    def test_a_folder_that_cannot_be_converted_is_refused(self, folders, converted, tmp_path):
        with pytest.raises(ValueError, match="is not empty"):
            convert_value_head(str(folders["skywork"]), converted)
        with pytest.raises(
            ValueError, match="of the type 'llama'; only a value head on a qwen2 is converted"
        ):
            convert_value_head(str(folders["rlhflow"]), tmp_path / "a")
        with pytest.raises(ValueError, match="no such folder"):
            convert_value_head(str(tmp_path / "none/x/y"), tmp_path / "b")
        empty = tmp_path / "empty"
        shutil.copytree(folders["skywork"], empty, ignore=shutil.ignore_patterns("*.safetensors*"))
        with pytest.raises(ValueError, match=r"no \*\.safetensors; pickles are not read"):
            convert_value_head(str(empty), tmp_path / "c")


class TestServeOptions:
    def options(self, name, tokenizer, **settings):
        words = serve_options(name, tokenizer=tokenizer, **settings)
        assert words[:2] == ["--runner", "pooling"]
        named = dict(zip(words[::2], words[1::2], strict=True))
        for key in ("--pooler-config", "--hf-overrides"):
            if key in named:
                named[key] = json.loads(named[key])
        return named

    def test_a_qwen_prm_is_served_with_the_pooler_of_its_step_token(self, tokenizer):
        options = self.options("qwen", tokenizer)
        assert options == {
            "--runner": "pooling",
            "--pooler-config": {"pooling_type": "STEP", "step_tag_id": 3},
        }
        other = self.options("qwen", tokenizer, step_token="<|endoftext|>")
        assert other["--pooler-config"]["step_tag_id"] == 0
        with pytest.raises(ValueError, match="step_token='<step>' is not an added token"):
            serve_options("qwen", tokenizer=tokenizer, step_token="<step>")

    def test_qwen_where_vllm_has_the_plugin(self, tokenizer):
        assert self.options("qwen", tokenizer, plugin=True) == {
            "--runner": "pooling",
            "--pooler-config": {"pooling_type": "LAST", "task": "classify"},
            "--hf-overrides": {"architectures": ["TrimQwen2ForProcessReward"]},
        }

    def test_other_formats_are_served_as_classifiers(self, folders, name):
        tokenizer = load_tokenizer(str(folders[name]), chat=False)
        signs = {"math_shepherd": ["▁-", "▁+"], "rlhflow": ["-", "+"]}.get(name)
        expected = {
            "--runner": "pooling",
            "--convert": "classify",
            "--pooler-config": {"pooling_type": "LAST", "task": "classify"},
        }
        if signs:
            expected["--hf-overrides"] = {"method": "from_2_way_softmax", "classifier_from_token": signs}
        assert self.options(name, tokenizer) == expected

    def test_a_format_that_is_not_known_is_refused(self, tokenizer):
        with pytest.raises(ValueError, match="format='other' is not known"):
            serve_options("other", tokenizer=tokenizer)

    def test_it_needs_neither_torch_nor_vllm(self, folders):
        code = (
            "import sys\n"
            "sys.modules['torch'] = sys.modules['vllm'] = None\n"
            "from trim_graph.adapters.model_source import load_tokenizer\n"
            "from trim_graph.adapters.prm.scores import serve_options\n"
            f"tokenizer = load_tokenizer({str(folders['rlhflow'])!r})\n"
            "print(len(serve_options('rlhflow', tokenizer=tokenizer)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "8"


class TestScores:
    @given(st.lists(st.floats(-700, 700), min_size=1, max_size=2))
    def test_a_probability_is_that_of_torch(self, outputs):
        values = torch.tensor(outputs, dtype=torch.float64)
        expected = values.softmax(0)[1] if len(outputs) == 2 else values.sigmoid()[0]
        assert probability(outputs) == pytest.approx(float(expected), rel=1e-9, abs=1e-300)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_is_no_score(self, bad):
        for outputs in ([bad], [bad, 0.0], [0.0, bad], [bad, bad]):
            assert probability(outputs) != probability(outputs)

    ASKED = PRMInput([5, 9, 1, 9, 2, 9], [3, 5])

    def read(self, rows, head="value"):
        return read_pooled(rows, self.ASKED, head, at="http://prm", fix="start it right")

    def test_a_row_for_every_token_or_for_every_tag(self):
        every = [[n / 10] for n in range(6)]
        assert self.read(every) == [0.3, 0.5]
        assert self.read([0.1, 0.3, 0.5]) == [0.3, 0.5]
        pairs = [[1 - n / 10, n / 10] for n in range(6)]
        assert self.read(pairs, "labels") == self.read(pairs, "tokens") == [0.3, 0.5]

    def test_positions_with_different_tokens_need_a_row_for_every_token(self):
        asked = PRMInput([5, 9, 1], [1, 2])
        assert read_pooled([[0.1], [0.2], [0.3]], asked, "value", at="", fix="") == [0.2, 0.3]
        with pytest.raises(ScorerError, match="gave 1 scores for 2 steps"):
            read_pooled([[0.1]], asked, "value", at="", fix="")

    @pytest.mark.parametrize(
        ("rows", "head", "complaint"),
        [
            ([[0.1]] * 2, "value", "at http://prm gave 2 scores for 2 steps; start it right"),
            ([[0.1]] * 5, "value", "gave 5 scores for 2 steps"),
            ([[0.1], [0.2], [0.7, 0.3]], "value", r"gave \[0.7, 0.3\] for step 2; expected one probability"),
            ([[0.1], [1.2], [0.7]], "tokens", "gave 1.2 for step 1 of 2, not a probability"),
            ([[0.1]] * 3, "labels", r"expected \[wrong, right\]"),
            (
                [[0.5, 0.9]] * 3,
                "labels",
                r"gave \[0.5, 0.9\] for step 1 of 2, which are not the probabilities",
            ),
            ([["a", 0.9]] * 3, "labels", "which are not the probabilities of wrong and right"),
            ("no", "value", "gave 0 scores"),
        ],
    )
    def test_anything_else_is_refused(self, rows, head, complaint):
        with pytest.raises(ScorerError, match=complaint):
            self.read(rows, head)
