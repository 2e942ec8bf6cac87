"""Shares of a GPU: never more than there is, whatever is given."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.errors import SettingsError
from trim_graph.serving.plan import LEAST, WHOLE, share_out, weights_bytes


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5),
        ("Qwen/Qwen2.5-Math-PRM-7B", 7),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("org/some-model", None),
        ("org/Qwen2.5-base", None),
        ("7B/model", None),
    ],
)
def test_a_name_may_contain_the_size(name, billions):
    assert weights_bytes(name) == (None if billions is None else billions * 2e9)


def test_files_determine_the_size_better(tmp_path):
    folder = tmp_path / "model-7B"
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"1" * 30)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"1" * 12)
    assert weights_bytes(str(folder)) == 42


def test_shares_go_by_size_but_nobody_gets_too_little():
    shares = share_out(dict.fromkeys("abc"), {"a": 3, "b": 15, "c": 15}, 0)
    assert shares == {"a": 0.1, "b": 0.4, "c": 0.4}
    assert share_out({"a": 0.5, "b": None}, {"b": 7}, 0) == {"a": 0.5, "b": 0.4}
    assert share_out(dict.fromkeys("ab"), {"a": 3, "b": None}, 0) == {"a": 0.45, "b": 0.45}


def test_shares_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match=r"small 0.6, large 0.5 make 1.10 of GPU 3"):
        share_out({"small": 0.6, "large": 0.5}, {}, 3)
    with pytest.raises(SettingsError, match=r"small 0.9 leave nothing of GPU 0 for large"):
        share_out({"small": 0.9, "large": None}, {}, 0)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.tuples(st.none() | st.floats(0.01, 0.4), st.none() | st.integers(1, 10**12)),
        min_size=1,
        max_size=9,
    )
)
def test_shares_never_exceed_the_gpu(entries):
    given_, sizes = {n: e[0] for n, e in entries.items()}, {n: e[1] for n, e in entries.items()}
    try:
        shares = share_out(given_, sizes, 0)
    except SettingsError:
        assert math.fsum(share or 0.01 for share in given_.values()) > WHOLE - 0.011 * len(given_)
        return
    assert shares.keys() == entries.keys()
    fixed = {name: share for name, share in given_.items() if share is not None}
    assert all(shares[name] == share for name, share in fixed.items())
    assert math.fsum(shares.values()) <= max(WHOLE, math.fsum(fixed.values())) + 1e-9
    left = [share for name, share in shares.items() if name not in fixed]
    room = (WHOLE - math.fsum(fixed.values())) / len(left) if left else 0
    assert all(share >= math.floor(min(LEAST, room) * 100) / 100 > 0 for share in left) or room < 0.02
