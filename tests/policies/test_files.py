"""Policy files: what goes in comes out, and what is no whole policy file is named and refused."""

import json

import numpy as np
import pytest

from trim_graph import SettingsError
from trim_graph.config import make_config
from trim_graph.policies import Policy, files, load_policy, save_policy
from trim_graph.policies.files import PolicyContents


class Table(Policy):
    """Scores below the table's entry for this step are regenerated."""

    def __init__(self, limits):
        self.limits = limits

    def decide(self, observation):
        return "accept" if observation.score >= self.limits[observation.index] else "regenerate"

    def contents(self):
        return PolicyContents("table", {"steps": len(self.limits)}, {"limits": self.limits}, {"by": "a test"})

    @classmethod
    def from_contents(cls, contents):
        if contents.parameters["steps"] != len(contents.arrays["limits"]):
            raise ValueError(f"steps={contents.parameters['steps']}")
        return cls(contents.arrays["limits"])


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(files.KINDS, "table", f"{__name__}:Table")


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "import_module", lambda name: __import__("types").SimpleNamespace(Table=Table))
    save_policy(Table(np.array([0.25, 0.5])), tmp_path / "table.json", data="made up")
    return tmp_path / "table.json"


def edited(file, **changes):
    document = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return file


def test_a_saved_policy_is_loaded_as_it_was(file):
    policy = load_policy(file)
    assert policy.limits.tolist() == [0.25, 0.5]
    assert json.loads(file.read_text())["made"] == {"by": "a test", "data": "made up"}
    assert {p.name for p in file.parent.iterdir()} == {"table.json", "table.safetensors"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "recipe"}, "no policy file"),
        ({"version": 2}, "has version 2; this release of trim-graph reads version 1"),
        ({"version": None}, "has version None"),
        ({"type": "oracle"}, "type 'oracle'; there are: .*table"),
        ({"parameters": None}, "has no parameters"),
        ({"parameters": {"steps": 3}}, "not a valid table policy: steps=3"),
        ({"parameters": {}}, "not a valid table policy"),
        ({"arrays": {"file": "../x.safetensors", "sha256": ""}}, "are beside it"),
        ({"arrays": {"file": "x.safetensors", "sha256": ""}}, "cannot be read"),
        ({"arrays": {"file": "table.safetensors", "sha256": "0"}}, "not the file it was written with"),
    ],
)
def test_a_wrong_file_is_refused(file, changes, complaint):
    with pytest.raises(SettingsError, match=complaint):
        load_policy(edited(file, **changes))


def test_a_file_cut_off_is_refused(file):
    arrays = file.with_suffix(".safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-3])
    with pytest.raises(SettingsError, match="not the file it was written with"):
        load_policy(file)
    file.write_text(file.read_text()[:40])
    with pytest.raises(SettingsError, match=r"table\.json cannot be read"):
        load_policy(file)
    with pytest.raises(SettingsError, match="does not exist"):
        load_policy(file.with_name("other.json"))


def test_a_configuration_finds_it_beside_itself(file):
    models = {"small": {"type": "example"}, "large": {"type": "example"}}
    config = make_config({**models, "policy": "table.json"}, base=file.parent)
    assert isinstance(config.policy.build(), Table)
    nested = {"type": "stay_on_large", "policy": {"type": "file", "path": "table.json"}, "k": 2}
    assert "Table" in repr(make_config({**models, "policy": nested}, base=file.parent).policy.build())


def test_a_call_cannot_name_a_file(make):
    rig = make()
    with pytest.raises(SettingsError, match="named in a configuration, not in a call"):
        rig.ask(context={"policy": {"type": "file", "path": "/etc/x.json"}})
    assert rig.unasked
