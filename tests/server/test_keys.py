"""API keys: where they are read, whose a key is, and that no message or representation shows one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.errors import SettingsError
from trim_graph.server.keys import VARIABLE, ApiKeys, read_keys

ADA, BOB = "a-key-of-ada-0123", "a-key-of-bob-0123"


def test_keys_are_read_from_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n ada = {ADA}\n")
    keys = read_keys(file, {VARIABLE: f"bob={BOB}, carl={BOB}4"})
    assert [keys.owner(key) for key in (ADA, BOB, f"{BOB}4")] == ["ada", "bob", "carl"]
    assert not read_keys(None, {})


@given(st.text())
def test_any_other_key_is_nobodys(text):
    keys = ApiKeys({"ada": ADA, "bob": BOB})
    assert keys.owner(text) == {ADA: "ada", BOB: "bob"}.get(text)


def test_the_end_of_a_key_counts_too():
    keys = ApiKeys({"ada": ADA})
    assert keys.owner(ADA[:-1]) is keys.owner(ADA + "x") is keys.owner("") is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("SECRET-WITHOUT-NAME", "line 1 is not NAME=KEY"),
        ("a b=SECRET-0123456789", "line 1 is not NAME=KEY"),
        ("ada=SECRET", "key of ada is not valid"),
        ("ada=SECRET-0123 456789", "key of ada is not valid"),
        ("ada=SECRET-0123456789\nada=SECRET-01234567890", "line 2 names ada a second time"),
        ("ada=SECRET-0123456789\nbob=SECRET-0123456789", "the same key"),
        ("# nothing", "holds no key"),
    ],
)
def test_a_wrong_line_is_named_and_never_shown(tmp_path, text, wrong):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match=wrong) as raised:
        read_keys(file, {})
    assert "SECRET" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"--api-keys .*nowhere cannot be read"):
        read_keys(tmp_path / "nowhere", {})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not a text"):
        read_keys(tmp_path / "bytes", {})


def test_nothing_in_memory_shows_a_key():
    keys = ApiKeys({"ada": ADA})
    assert ADA not in repr(vars(keys))
