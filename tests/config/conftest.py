"""Configuration files, and how they are refused."""

from pathlib import Path

import pytest

from trim_graph import SettingsError
from trim_graph.config import load_config

MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        Path("trim.yaml").write_text(text, encoding="utf-8")
        return "trim.yaml"

    return make


def refused(path, **options) -> str:
    with pytest.raises(SettingsError) as caught:
        load_config(path, **options)
    return str(caught.value)
