import pytest

from trim_graph.errors import SettingsError
from trim_graph.storage.journal import Journal, differences, moved

THERE, HERE = "http://localhost:8001/v1", "http://localhost:8101/v1"


def settings(url, model="m", data="aa"):
    scorer = {"type": "minimum", "scorers": [{"type": "vllm_prm", "model": "p", "base_url": url}]}
    large = {"type": "vllm", "model": model, "base_url": url}
    return {"large": large, "scorer": scorer, "dataset": {"type": "file", "file": "q.jsonl", "sha256": data}}


def test_a_server_at_another_address_is_the_same_model(tmp_path):
    with Journal(tmp_path / "a.jsonl", settings(THERE)) as journal:
        journal.append({"index": 0})
    with Journal(tmp_path / "a.jsonl", settings(HERE)) as journal:
        assert 0 in journal.finished
    with pytest.raises(SettingsError, match=r'large\.model was "m", is "other"'):
        Journal(tmp_path / "a.jsonl", settings(HERE, model="other"))


def test_what_has_moved_is_named_with_both_addresses():
    assert moved(settings(THERE), settings(THERE)) == []
    assert moved(settings(THERE), settings(HERE)) == [
        f"{part} is at another address {HERE}, and was at {THERE}" for part in ("large", "scorer.scorers.0")
    ]


def test_no_secret_of_an_address_is_shown():
    (line,) = moved({"large": {"base_url": "http://me:secret@there/v1"}}, {"large": {"base_url": HERE}})
    assert "secret" not in line
    assert HERE in line


def test_a_changed_file_is_called_by_its_name():
    assert differences(settings(HERE), settings(HERE, data="bb")) == ["q.jsonl has changed"]
    assert differences({"a": {"sha256": "x"}}, {"a": {"sha256": "y"}}) == ['a.sha256 was "x", is "y"']
