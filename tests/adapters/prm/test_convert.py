"""Tests of conversion: reward models with a value head in a layout that vLLM serves."""

import json
import shutil

import pytest
import torch

from tests.adapters.prm.test_heads import steps, weights_of
from tests.tiny_prms import QUESTION, TEXTS
from trim_graph.adapters import TransformersProcessReward
from trim_graph.adapters.prm.convert import convert_value_head


@pytest.fixture(scope="session")
def converted(folders, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "prm"
    (folders["skywork"] / "modeling_qwen2_rm.py").write_text("raise SystemExit")
    convert_value_head(str(folders["skywork"]), target)
    return target


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
