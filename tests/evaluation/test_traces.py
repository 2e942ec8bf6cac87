import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError
from trim_graph.evaluation.records import TOKENS
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.storage.journal import to_line


def a_trace(index=0, **changes):
    step = {
        "text": "2 + 2 = 4",
        "writer": "large",
        "tokens": 7,
        "score": 0.25,
        "decision": "regenerate",
        "mean_token_probability": None,
        "label": True,
        "value": 0.75,
        "discarded": {
            "text": "2 + 2 = 5",
            "tokens": 6,
            "score": 0.125,
            "label": False,
            "mean_token_probability": 0.5,
        },
    }
    unlabelled = {**step, "label": None}
    trace = {
        "id": f"q{index}",
        "index": index,
        "dataset": "sums",
        "split": "train",
        "question": "2 + 2 = ?",
        "policy": {"type": "random_rate", "rate": 0.3},
        "seed": 0,
        "correct": True,
        "answer": "4",
        "stopped": "finished",
        "steps": [step, {**unlabelled, "discarded": None, "decision": None, "score": None, "value": None}],
        "tokens": {**dict.fromkeys(TOKENS, 0), "large": 14, "small_discarded": 6},
        "error": None,
    }
    return {**trace, **changes}


def failed(index=0):
    return a_trace(index, steps=[], correct=None, stopped="", answer=None, error="OSError: gone")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_written_is_read_again(tmp_path, name):
    traces = [a_trace(i) for i in range(1200)]  # several row groups
    assert write_traces(tmp_path / name, iter(traces)) == 1200
    assert list(read_traces(tmp_path / name)) == traces
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_questions_that_failed_are_left_out_unless_asked_for(tmp_path, name):
    write_traces(tmp_path / name, [a_trace(0), failed(1)])
    assert [t["index"] for t in read_traces(tmp_path / name)] == [0]
    assert [t["index"] for t in read_traces(tmp_path / name, errors=True)] == [0, 1]


def test_an_older_file_stays_whole_when_writing_fails(tmp_path):
    file = tmp_path / "a.jsonl"
    write_traces(file, [a_trace()])

    def breaking():
        yield a_trace(1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_traces(file, breaking())
    assert [t["index"] for t in read_traces(file)] == [0]
    assert len(list(tmp_path.iterdir())) == 1


def test_several_files_follow_each_other(tmp_path):
    write_traces(tmp_path / "a.jsonl", [a_trace(0)])
    write_traces(tmp_path / "b.parquet", [a_trace(1)])
    assert [t["index"] for t in read_traces(tmp_path / "a.jsonl", tmp_path / "b.parquet")] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{**a_trace()["steps"][0], "score": 1.5}]}, r"steps\.0\.score: .*\(is 1\.5\)"),
        ({"steps": [{**a_trace()["steps"][0], "score": float("nan")}]}, r"steps\.0\.score: .*finite"),
        ({"steps": [{**a_trace()["steps"][0], "writer": "me"}]}, r"steps\.0\.writer: .*'small' or 'large'"),
        ({"tokens": {"small": -1}}, r"tokens\.small: .*\(is -1\)"),
        ({"policy": "not json"}, "policy: is no JSON"),
        ({"correct": "perhaps"}, r"correct: .*\(is 'perhaps'\)"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line_and_key(tmp_path, change, message):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(a_trace()) + "\n\n" + json.dumps(a_trace(1, **change)) + "\n")
    with pytest.raises(InputError, match=rf"a\.jsonl, line 3: (not a trace: )?{message}"):
        list(read_traces(file))


def test_a_file_of_questions_is_told_what_makes_traces(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: a question without steps: .* trim-graph label"):
        list(read_traces(tmp_path / "a.jsonl"))


def test_a_missing_key_is_named(tmp_path):
    trace = a_trace()
    del trace["steps"][0]["label"]
    (tmp_path / "a.jsonl").write_bytes(to_line(trace))
    with pytest.raises(InputError, match=r"line 1: not a trace: steps\.0\.label: Field required$"):
        list(read_traces(tmp_path / "a.jsonl"))


@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_an_error_that_says_so(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("torn") / "a.jsonl"
    file.write_bytes(to_line(a_trace(0)) + to_line(a_trace(1))[:cut])
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not JSON: .*interrupted writer"):
        list(read_traces(file))


@given(garbage=st.binary(min_size=1, max_size=200).filter(lambda b: b.strip()))
def test_garbage_between_traces_is_an_error_that_names_its_line(tmp_path_factory, garbage):
    file = tmp_path_factory.mktemp("garbage") / "a.jsonl"
    file.write_bytes(to_line(a_trace(0)) + b"}" + garbage.replace(b"\n", b" ") + b"\n" + to_line(a_trace(1)))
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not JSON"):
        list(read_traces(file))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(a_trace())), value=json_values)
def test_a_trace_with_any_value_in_it_is_read_or_refused(tmp_path_factory, key, value):
    file = tmp_path_factory.mktemp("values") / "a.jsonl"
    file.write_bytes(to_line(a_trace(**{key: value})))
    try:
        assert len(list(read_traces(file, errors=True))) == 1
    except InputError as error:
        assert "a.jsonl, line 1: " in str(error)  # noqa: PT017


@given(text=st.text(st.characters()))
def test_any_text_in_a_trace_is_read_back(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("texts") / "a.jsonl"
    file.write_bytes(to_line(a_trace(question=text)) + to_line(a_trace(1)))
    first, second = read_traces(file)
    assert first["question"] == text.encode("utf-8", "replace").decode()
    assert second["index"] == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} does not exist \(looked for /"):
        list(read_traces(tmp_path / name))


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"its name ends in '.csv'; expected one of .jsonl"):
        list(read_traces(tmp_path / "a.csv"))
    with pytest.raises(InputError, match=r"a \.jsonl or \.parquet file, and .*a.csv is neither"):
        write_traces(tmp_path / "a.csv", [])


@given(garbage=st.binary(max_size=200))
def test_what_is_called_parquet_and_is_not(tmp_path_factory, garbage):
    file = tmp_path_factory.mktemp("garbage") / "a.parquet"
    file.write_bytes(garbage)
    with pytest.raises(InputError, match=r"a\.parquet"):
        list(read_traces(file))


def test_a_parquet_file_of_something_else(tmp_path):
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([{"problem": "2 + 2"}]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 1: not a trace: id: Field required"):
        list(read_traces(tmp_path / "a.parquet"))
