"""Whose question is whose, and what a merge makes of journals that are whole, lacking, doubled or foreign."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph import InputError, SettingsError
from trim_graph.distributed.merging import Join, join_all
from trim_graph.distributed.shards import Shard, open_shard, read_shards
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.evaluation.running import unit_of
from trim_graph.evaluation.units import Units
from trim_graph.journal import Finished, Journal
from trim_graph.rows import read_rows

SETTINGS = {"model": "tiny"}
WORK = {"command": "eval", "code": {"version": "1", "sha256": "a"}, "request": {"n": 3}, "folder": "/here"}
counts = st.integers(1, 6)
slow = settings(deadline=None, max_examples=40)


@given(counts, st.integers(0, 40))
def test_every_question_has_one_shard(of, n):
    shards = [Shard(number, of) for number in range(1, of + 1)]
    taken = [[index for index in range(n) if shard.takes(index)] for shard in shards]
    assert sorted(index for part in taken for index in part) == list(range(n))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    assert [Shard.parse(str(shard)) for shard in shards] == shards


@slow
@given(counts, st.integers(1, 20), st.integers(1, 3), st.data())
def test_units_are_those_of_the_shard_that_are_left(of, n, samples, data):
    dataset = make_dataset("arithmetic:standard")
    finished, tasks = Finished(), []
    for unit in data.draw(st.sets(st.integers(0, n * samples - 1))):
        finished.add(unit)
    for number in range(1, of + 1):
        units = Units(dataset, n, samples, Shard(number, of))
        mine = [(task.index, task.sample) for task in units.tasks(finished)]
        assert len(mine) == units.left(finished) <= len(units)
        tasks += mine
    left = [(i, s) for i in range(n) for s in range(samples) if unit_of(i, s, samples) not in finished]
    assert sorted(tasks) == left


@pytest.mark.parametrize("wrong", ["", "2", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/4"])
def test_what_is_no_shard_is_told(wrong):
    with pytest.raises(SettingsError, match="from 1/4 to 4/4"):
        Shard.parse(wrong)


def write(out, shard, units, settings=SETTINGS, name="rows/a.jsonl", **work):
    folder = open_shard(out, shard, {**WORK, **work})
    (folder.path / name).parent.mkdir(exist_ok=True)
    with Journal(folder.journal(name), settings, unit=lambda record: 0) as journal:
        for index, sample in units:
            journal.append({"index": index, "sample": sample, "by": str(shard)})
    return folder


def joined(out, n, samples=1, name="rows/a.jsonl"):
    shards = read_shards(out)
    join_all(out, [Join(shards, name, out / name, SETTINGS, n, samples)])
    return [(record["index"], record["sample"]) for _, record in read_rows(out / name)]


@slow
@given(counts, st.integers(1, 14), st.integers(1, 3), st.data())
def test_a_merge_has_every_unit_once_or_says_what_is_missing(of, n, samples, data):
    every = [(index, sample) for index in range(n) for sample in range(samples)]
    missing = data.draw(st.sets(st.sampled_from(every), max_size=3))
    there = data.draw(st.permutations([unit for unit in every if unit not in missing]))
    shards = [Shard(number, of) for number in range(1, of + 1)]
    absent = data.draw(st.sets(st.sampled_from(shards), max_size=of - 1))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for shard in shards:
            if shard not in absent:
                write(out, shard, [unit for unit in there if shard.takes(unit[0])])
        if not missing and not absent:
            assert joined(out, n, samples) == every
            assert joined(out, n, samples) == every  # once more, and nothing is there twice
            return
        with pytest.raises(InputError) as told:
            joined(out, n, samples)
        assert not (out / "rows/a.jsonl").exists()
    for shard in shards:
        line = next((line for line in str(told.value).splitlines() if f"shard {shard} " in line), "")
        gone = sorted({index for index, _ in missing if shard.takes(index)})
        if shard in absent:
            assert line.endswith(f"shard {shard} is not there")
        elif gone:
            assert line.endswith(f"shard {shard} lacks rows/a.jsonl: questions {', '.join(map(str, gone))}")
        else:
            assert not line


@slow
@given(counts, st.integers(1, 9), st.data())
def test_a_unit_that_is_there_twice_or_at_another_shard_is_refused(of, n, data):
    at = data.draw(st.integers(1, of))
    index = data.draw(st.integers(0, n - 1))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, of + 1):
            shard = Shard(number, of)
            more = [(index, 0)] if number == at else []
            write(Path(folder), shard, [(i, 0) for i in range(n) if shard.takes(i)] + more)
        told = "is there twice" if Shard(at, of).takes(index) else f"is not shard {at}/{of}'s, but shard"
        with pytest.raises(
            InputError, match=rf"{at}-of-{of}/rows/a.jsonl, line \d+: question {index} {told}"
        ):
            joined(Path(folder), n)


def test_what_a_killed_shard_was_writing_is_missing(tmp_path):
    folder = write(tmp_path, Shard(1, 2), [(0, 0), (2, 0)])
    write(tmp_path, Shard(2, 2), [(1, 0)])
    file = folder.journal("rows/a.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"shard 1/2 lacks rows/a.jsonl: questions 2\n"):
        joined(tmp_path, 3)


def test_what_an_earlier_command_line_wanted_besides_is_passed_over(tmp_path):
    write(tmp_path, Shard(1, 2), [(4, 0), (0, 0), (2, 0)])
    write(tmp_path, Shard(2, 2), [(1, 0), (3, 0)])
    assert joined(tmp_path, 2) == [(0, 0), (1, 0)]


def test_many_that_are_missing_are_counted(tmp_path):
    write(tmp_path, Shard(1, 1), [])
    with pytest.raises(InputError, match="questions 0, 1, 2, 3, 4 and 15 more"):
        joined(tmp_path, 20)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"settings": {"model": "other"}}, 'was begun with other settings .* model was "other", is "tiny"'),
        ({"request": {"n": 4}}, "shard 2/2 is of other work than shard 1/2: request.n was 3, is 4"),
        ({"code": {"version": "1", "sha256": "b"}}, 'code.sha256 was "a", is "b"'),
        ({"command": "collect"}, 'command was "eval", is "collect"'),
        ({"shard": Shard(2, 3)}, "shards of different divisions, 1/2 and 2/3"),
    ],
)
def test_foreign_shards_are_refused(tmp_path, changed, told):
    write(tmp_path, Shard(1, 2), [(0, 0)])
    write(tmp_path, changed.pop("shard", Shard(2, 2)), [(1, 0)], **changed)
    with pytest.raises(InputError, match=told):
        joined(tmp_path, 2)


def test_shards_that_were_called_elsewhere_belong_together(tmp_path):
    write(tmp_path, Shard(1, 2), [(0, 0)])
    write(tmp_path, Shard(2, 2), [(1, 0)], folder="/there")
    assert joined(tmp_path, 2) == [(0, 0), (1, 0)]


def test_a_shard_goes_on_with_the_same_code_only(tmp_path):
    open_shard(tmp_path, Shard(1, 2), WORK)
    open_shard(tmp_path, Shard(1, 2), {**WORK, "request": {"n": 5}})
    with pytest.raises(SettingsError, match=r'code\.version was "1", is "2"'):
        open_shard(tmp_path, Shard(1, 2), {**WORK, "code": {"version": "2", "sha256": "a"}})


def test_what_holds_no_shards_or_damaged_ones_is_told(tmp_path):
    with pytest.raises(InputError, match="has no shards"):
        read_shards(tmp_path)
    folder = open_shard(tmp_path, Shard(1, 1), WORK)
    (folder.path / "shard.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(InputError, match="is not what this release writes"):
        read_shards(tmp_path)
    (folder.path / "shard.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_shards(tmp_path)
