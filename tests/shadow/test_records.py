"""Records of a shadow: written and read back from both kinds of files, damage refused by name."""

import json
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.errors import InputError, SettingsError
from trim_graph.shadow.records import open_sink, read_shadow, summary_record, text_of
from trim_graph.shadow.runner import new_record


@pytest.mark.parametrize("name", ["shadow.jsonl", "shadow.db", "shadow.sqlite3"])
def test_what_was_written_is_read_back_in_order(tmp_path, name):
    records = [new_record("large", priced=True) for _ in range(5)]
    sink = open_sink(tmp_path / name)
    for record in records:
        sink.write(record)
    assert list(read_shadow(tmp_path / name)) == records  # while it is open
    sink.close()
    sink.close()
    again = open_sink(tmp_path / name)
    again.write(new_record("small", priced=False))
    again.close()
    assert [record["application"] for record in read_shadow(tmp_path / name)] == ["large"] * 5 + ["small"]


def test_writers_that_make_one_database_at_the_same_time_do_not_refuse_each_other(tmp_path):
    refused = []

    def write(file, barrier):
        barrier.wait()
        try:
            open_sink(file).close()
        except SettingsError as error:
            refused.append(error)

    for number in range(30):
        barrier = threading.Barrier(6)
        threads = [
            threading.Thread(target=write, args=(tmp_path / f"{number}.db", barrier)) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not refused


@pytest.mark.parametrize("name", ["shadow.jsonl", "shadow.db"])
def test_several_writers_do_not_mix_their_records(tmp_path, name):
    def write():
        sink = open_sink(tmp_path / name)
        for _ in range(20):
            sink.write({**new_record("large", priced=True), "error": "x" * 3000})
        sink.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(1 for _ in read_shadow(tmp_path / name)) == 80


def test_a_torn_last_line_is_skipped(tmp_path):
    file = tmp_path / "shadow.jsonl"
    sink = open_sink(file)
    sink.write(new_record("large", priced=True))
    sink.close()
    file.write_bytes(file.read_bytes() + b'{"version": 1, "id')
    assert len(list(read_shadow(file))) == 1


@pytest.mark.parametrize("name", ["shadow.txt", "shadow", "shadow.json"])
def test_a_file_of_another_name_is_refused(tmp_path, name):
    with pytest.raises(SettingsError, match=r"must end in \.jsonl"):
        open_sink(tmp_path / name)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    for name in ("no/shadow.jsonl", "no/shadow.db"):
        with pytest.raises(SettingsError, match=r"record .* cannot be"):
            open_sink(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version is 2"),
        ({"application": "medium"}, "application is 'medium'"),
        ({"kind": "x"}, "kind is 'x'"),
        ({"counts": None}, "counts"),
        ({"would": []}, "would is no object"),
        ({"would": {"large_tokens": "9"}}, "would.large_tokens is '9'"),
        ({"question": {}}, "question has no digest"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_place(tmp_path, change, complaint):
    file = tmp_path / "shadow.jsonl"
    file.write_text(json.dumps({**new_record("large", priced=True), **change}) + "\n")
    with pytest.raises(InputError, match=rf"line 1: .*{complaint}"):
        list(read_shadow(file))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["version", "kind", "would", "counts", "x"]), inner)
        ),
    )
)
def test_nothing_but_an_input_error_comes_of_any_json(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("any") / "shadow.jsonl"
    file.write_text(json.dumps(values) + "\n")
    with pytest.raises(InputError):
        list(read_shadow(file))


def test_a_database_of_something_else_is_refused(tmp_path):
    file = tmp_path / "shadow.db"
    sqlite3.connect(file).close()
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="no file of shadow records"):
        list(read_shadow(file))
    with pytest.raises(InputError, match="does not exist"):
        list(read_shadow(tmp_path / "other.db"))


def test_without_text_only_digests_and_counts_are_kept():
    assert text_of("hello", kept=False) == {
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "text": None,
    }
    summary = {"answer": "42", "notes": ["it wrote 'secret'"], "cost": 1.0}
    assert summary_record(summary, text=False) == {"answer": None, "notes": ["1 left out"], "cost": 1.0}
    assert summary_record(summary, text=True) == summary
