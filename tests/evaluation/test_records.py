import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError, SettingsError
from trim_graph.evaluation.records import (
    SUMMARY_VERSION,
    check_folder,
    journal_of,
    parse_row,
    read_run,
    restore_journal,
    write_json,
    write_rows,
)
from trim_graph.storage.journal import to_line

ARMS = ("small", "threshold-0.5", "odd: name/with %2F")


@pytest.fixture
def folder(tmp_path, make_row):
    place = tmp_path / "run"
    check_folder(place)
    (place / "rows").mkdir()
    arm = {"kind": "policy", "family": "f", "policy": {"type": "small_only"}}
    write_json(
        place / "settings.json", {"version": 1, "settings": {"seed": 3}, "arms": dict.fromkeys(ARMS, arm)}
    )
    for name in ARMS:
        rows = [make_row(name, index, sample) for index in (5, 0, 300, 2) for sample in (1, 0)]
        journal_of(place, name).write_bytes(b"".join(map(to_line, rows)))
    return place


def keys(rows):
    return [(row["arm"], row["index"], row["sample"]) for row in rows]


def test_a_folder_is_read_while_it_runs_and_after(folder):
    before = read_run(folder)
    assert before.summary is None
    assert before.settings["settings"] == {"seed": 3}
    assert keys(before.rows("small")) == [("small", i, s) for i in (5, 0, 300, 2) for s in (1, 0)]
    whole = {(row["arm"], row["index"], row["sample"]): row for row in before.rows()}
    assert write_rows(folder, ARMS) == len(whole) == 24
    write_json(folder / "summary.json", {"version": SUMMARY_VERSION, "verdict": "it is"})
    assert not list((folder / "rows").glob("*.jsonl"))
    after = read_run(folder)
    assert after.summary["verdict"] == "it is"
    assert keys(after.rows()) == [(arm, i, s) for arm in ARMS for i in (0, 2, 5, 300) for s in (0, 1)]
    assert all(row == whole[key] for row, key in zip(after.rows(), keys(after.rows()), strict=True))
    assert keys(after.rows(ARMS[2])) == [(ARMS[2], i, s) for i in (0, 2, 5, 300) for s in (0, 1)]


def test_an_arm_goes_on_from_parquet(folder, make_row):
    write_rows(folder, ARMS)
    restore_journal(folder, ARMS[1])
    with journal_of(folder, ARMS[1]).open("ab") as stream:
        stream.write(to_line(make_row(ARMS[1], 1, 0)))
        stream.write(b'{"arm": "torn')
    assert len(keys(read_run(folder).rows(ARMS[1]))) == 9  # the torn line of a killed writer is passed over
    assert len(keys(read_run(folder).rows())) == 25
    journal_of(folder, ARMS[1]).write_bytes(
        journal_of(folder, ARMS[1]).read_bytes().rpartition(b"\n")[0] + b"\n"
    )
    assert write_rows(folder, ARMS) == 25
    assert keys(read_run(folder).rows(ARMS[1]))[2] == (ARMS[1], 1, 0)


def test_an_older_summary_is_not_that_of_a_run_that_goes_on(folder, make_row):
    write_rows(folder, ARMS)
    write_json(folder / "summary.json", {"version": SUMMARY_VERSION, "verdict": "it is"})
    restore_journal(folder, "small")
    assert read_run(folder).summary is None
    write_rows(folder, ARMS)
    assert not (folder / "summary.json").exists()


def test_a_torn_line_is_skipped_and_a_wrong_row_is_refused(folder, make_row):
    with journal_of(folder, "small").open("ab") as stream:
        stream.write(to_line(make_row(index=7))[:-40])
    assert write_rows(folder, ARMS) == 24
    for line in (b"{\n", b"{}\n", b"[1]\n"):
        journal_of(folder, "small").write_bytes(line)
        with pytest.raises(InputError, match=r"small\.jsonl, byte 0: not a row of an evaluation"):
            write_rows(folder, ARMS)


def test_an_older_parquet_file_stays_whole_when_writing_fails(folder, make_row):
    write_rows(folder, ARMS)
    journal_of(folder, "small").write_bytes(to_line(make_row(seconds="long")))
    with pytest.raises(InputError, match="seconds"):
        write_rows(folder, ARMS)
    assert not list(folder.glob(".rows*"))
    journal_of(folder, "small").unlink()
    assert len(keys(read_run(folder).rows())) == 24


def test_many_rows_of_an_arm(folder, make_row, monkeypatch):
    monkeypatch.setattr("trim_graph.evaluation.records._GROUP", 100)
    journal_of(folder, "small").write_bytes(
        b"".join(to_line(make_row(index=index)) for index in reversed(range(600)))
    )
    assert write_rows(folder, ["small"]) == 600
    assert keys(read_run(folder).rows()) == [
        *(("small", index, 0) for index in range(600)),
        *keys(read_run(folder).rows(*ARMS[1:])),
    ]


@given(data=st.data(), value=st.one_of(st.none(), st.text(max_size=5), st.integers(), st.booleans()))
def test_any_value_is_read_or_refused(make_row, data, value):
    key = data.draw(st.sampled_from(sorted(make_row())))
    reported = "nothing"
    try:
        read = parse_row({**make_row(), key: value}, "there, line 3")
    except InputError as error:
        reported = str(error)
    else:
        assert read[key] == value
    assert reported == "nothing" or reported.startswith(f"there, line 3: not a row of an evaluation: {key}: ")


def test_what_is_no_run_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no folder of an evaluation"):
        read_run(tmp_path)
    with pytest.raises(SettingsError, match="choose another folder"):
        check_folder(tmp_path)
    for text, message in (("{", "cannot be read"), ("{}", "is damaged"), ('{"version": 9}', "of version 9")):
        (folder / "settings.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_run(folder)
    (folder / "rows.parquet").write_text(json.dumps({}))
    write_json(folder / "settings.json", {"version": 1, "settings": {}, "arms": {}})
    with pytest.raises(InputError, match="not the rows of an evaluation"):
        list(read_run(folder).rows())
