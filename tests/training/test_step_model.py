"""Tests of files of step models, and of the published parameters."""

import dataclasses
import json

import numpy as np
import pytest
from step_worlds import PUBLISHED, world

from trim_graph import SettingsError
from trim_graph.training.step_model import StepModel, load_published


class TestFile:
    def test_a_saved_model_is_loaded_as_it_was(self, tmp_path):
        model = world(made={"by": "a test"}, shrink=np.array([0.1, 0.2, 0.3]))
        model.save(tmp_path / "model.json")
        loaded = StepModel.load(tmp_path / "model.json")
        for field in dataclasses.fields(StepModel):
            assert np.array_equal(getattr(loaded, field.name), getattr(model, field.name)), field.name

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"format": "recipe"}, "no step model"),
            ({"version": 2}, "version 2; this release of trim-graph reads version 1"),
            ({"p_small": 1.5}, r"p_small is 1\.5"),
            ({"hazard": [0.1, 0.2]}, "hazard must end with 1"),
            ({"edges": [0, 1]}, "tables have shape"),
            ({"tokens": None}, "not valid"),
            ({"tokens": [0]}, "tokens must be positive"),
            ({"tables": [[[1.0]]]}, "tables have shape"),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path, changes, complaint):
        file = tmp_path / "model.json"
        world().save(file)
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        with pytest.raises(SettingsError, match=complaint):
            StepModel.load(file)

    def test_a_missing_or_damaged_file_is_refused(self, tmp_path):
        with pytest.raises(SettingsError, match="does not exist"):
            StepModel.load(tmp_path / "model.json")
        (tmp_path / "model.json").write_text("{")
        with pytest.raises(SettingsError, match="cannot be read"):
            StepModel.load(tmp_path / "model.json")

    @pytest.mark.skipif(not PUBLISHED.exists(), reason="the published parameters are not here")
    def test_the_published_parameters_are_loaded(self):
        model = load_published(PUBLISHED)
        assert (model.p_large, model.tokens.tolist()) == (pytest.approx(0.97043, abs=1e-5), [60])

    def test_published_without_an_entry(self, tmp_path):
        (tmp_path / "published.json").write_text('{"obs": {}}')
        with pytest.raises(SettingsError, match="no entry 'math-train'"):
            load_published(tmp_path / "published.json")
