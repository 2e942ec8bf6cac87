"""Tests of data files read row by row: JSONL, JSON arrays, Parquet, and what is refused with its place."""

from __future__ import annotations

import json
import math
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.errors import InputError
from trim_graph.storage.rows import read_rows

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def read(file, **options):
    return [row.values for row in read_rows(file, **options)]


@given(rows, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n \t\n"]), st.booleans())
def test_lines_are_read_as_they_were_written_whatever_separates_them(
    folder, given, ascii_only, mark, end, last
):
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in given]
    text = end.join(lines) + (end if last else "")
    file = folder / "data.jsonl"
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode("utf-8", "surrogatepass"))
    assert read(file) == read(file, torn=True) == given


@given(rows, st.integers(0, 3))
def test_an_array_is_read_as_it_was_written(folder, given, indent):
    file = folder / "data.json"
    file.write_text(json.dumps(given, indent=indent or None), "utf-8")
    assert read(file) == given


@given(rows.filter(len), st.data())
def test_of_a_torn_file_all_but_its_last_line_is_read(folder, given, data):
    lines = [json.dumps(row).encode() for row in given]
    cut = data.draw(st.integers(1, len(lines[-1]) - 1))  # behind the bracket, so that it is no row
    file = folder / "torn.jsonl"
    file.write_bytes(b"\n".join([*lines[:-1], lines[-1][:cut]]))
    assert read(file, torn=True) == given[:-1]
    with pytest.raises(InputError, match=rf"line {len(lines)}: not JSON: .*as an interrupted writer leaves"):
        read(file)


def test_a_wrong_line_that_has_an_end_is_refused_in_a_torn_file_too(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: not JSON: Expecting value at column \d+$"):
        read(file, torn=True)


@given(st.binary(max_size=40))
def test_any_bytes_are_rows_or_refused_by_the_name_of_the_file(folder, content):
    for name in ("any.jsonl", "any.ndjson", "any.json", "any.parquet"):
        file = folder / name
        file.write_bytes(content)
        refused = ""
        try:
            assert all(isinstance(row, dict) for row in read(file))
        except InputError as error:
            refused = str(error)
        assert not refused or (refused.startswith(str(file)) and "\n" not in refused)


def test_rows_before_a_wrong_one_are_given_first_and_their_places_count_blank_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n[3]\n')
    found = read_rows(file)
    assert next(found) == (f"{file}, line 1", {"a": 1})
    assert next(found) == (f"{file}, line 3", {"a": 2})
    with pytest.raises(InputError, match="line 4: holds a JSON list; expected an object"):
        next(found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "3\n", "line 1: holds a JSON int; expected an object"),
        ("a.jsonl", "null\n", "line 1: holds a JSON NoneType; expected an object"),
        ("a.json", "[{}, 3]", "row 2: holds a JSON int; expected an object"),
        ("a.json", '{"a": 1}', "a.json holds a JSON dict; expected an array of objects"),
        ("a.json", '{"a": 1}\n{"a": 2}', "rows one a line go into a file named .jsonl"),
        ("a.json", "", "not JSON"),
        ("a.parquet", "PAR1", "after row 0: not Parquet"),
        ("a.csv", "a\n1\n", "its name ends in '.csv'; expected one of .jsonl, .ndjson, .json, .parquet"),
        ("a", "{}", "its name ends in ''"),
    ],
)
def test_another_shape_is_refused_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as raised:
        read(tmp_path / name)
    assert said in str(raised.value)


def test_json_nested_too_deeply_is_refused_with_its_line(tmp_path):
    depth = 100 * sys.getrecursionlimit()
    (tmp_path / "a.jsonl").write_text('{"a": ' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_missing_file_is_named_with_the_place_that_was_looked_at(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        read(name)
    assert str(raised.value) == f"{name} does not exist (looked for {tmp_path / name})"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_folder_cannot_be_read(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"a\.\w+ cannot be read"):
        read(tmp_path / name)


def test_parquet_is_read_in_batches_with_the_number_of_each_row(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(700)), "b": [None, "x"] * 350}), file, row_group_size=100)
    found = list(read_rows(file))
    assert [row.values["a"] for row in found] == list(range(700))
    assert found[0].values["b"] is None
    assert found[-1].place == f"{file}, row 700"


def test_what_python_writes_as_nan_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n')
    assert math.isnan(read(tmp_path / "a.jsonl")[0]["a"])


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "trim-graph\[eval\]"'):
        read(tmp_path / "a.parquet")
