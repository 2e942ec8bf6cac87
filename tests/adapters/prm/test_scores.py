"""Tests of how reward models are served, and of how a server's answers become scores."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters import ScorerError
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import PRMInput
from trim_graph.adapters.prm.scores import probability, read_pooled, serve_options


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
