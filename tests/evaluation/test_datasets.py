import json
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError, SettingsError
from trim_graph.evaluation.datasets import first_questions, make_dataset, read_through
from trim_graph.examples.arithmetic import problems

DATA = Path(__file__).parents[3] / "shared" / "data"
SHAPES = {
    "MATH-500": (
        {"problem": "p", "solution": "so \\boxed{1/2}", "answer": "\\frac{1}{2}", "unique_id": "u"},
        "0.5",
        "u",
    ),
    "AIME, two answers": (
        {"ID": "2", "problem": "p", "solution": "80 or 081 (both were accepted)"},
        "81",
        "2",
    ),
    "AIME": ({"ID": "1983-1", "problem": "p", "solution": "60"}, "60", "1983-1"),
    "GSM8K": ({"question": "p", "answer": "48/2 = 24, so\n#### 1,200"}, "1200", "0"),
    "GSM8K without a space": ({"question": "p", "answer": "so\n####42"}, "42", "0"),
    "MATH": ({"problem": "p", "solution": "so it is \\boxed{7}"}, "7.0", "0"),
    "MATH with headings": ({"problem": "p", "solution": "#### Step 1\nso it is \\boxed{7}"}, "7.0", "0"),
    "an answer, and another key without": ({"problem": "p", "final_answer": None, "answer": "7"}, "7", "0"),
    "plain": ({"prompt": "p", "expected": "4", "id": 9}, "4", "9"),
    "OlympiadBench": (
        {"id": 7, "question": "p", "solution": ["so"], "final_answer": ["$\\frac{1}{2}$"], "context": None},
        "0.5",
        "7",
    ),
    "OlympiadBench, two answers": ({"question": "p", "final_answer": ["1", "$3$"]}, "3, 1", "0"),
    "AIME 2024": ({"ID": "2024-I-1", "Problem": "p", "Solution": "so", "Answer": 204}, "204", "2024-I-1"),
}


def write(folder, rows, name="q.jsonl"):
    file = folder / name
    if file.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)) if file.suffix == ".jsonl" else json.dumps(rows))
    return str(file)


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_known_shapes_need_no_more_than_the_path(tmp_path, shape, name):
    row, answer, id = SHAPES[shape]
    dataset = make_dataset(write(tmp_path, [row, row], name))
    first, second = dataset.questions()
    assert (first.text, first.id) == ("p", id)
    assert first.grade(f"it is \\boxed{{{answer}}}")
    assert not first.grade("it is \\boxed{17}")
    assert dataset.count() == 2
    assert second.text == "p"


def test_repeated_questions_are_found_by_their_text(tmp_path):
    texts = ["a b", "c", "a  b", "d", "c", "a b"]
    dataset = make_dataset(write(tmp_path, [{"problem": text, "answer": "1"} for text in texts]))
    assert read_through(dataset, 6) == {2, 4, 5}
    assert read_through(dataset, 3) == {2}


def test_an_id_of_two_questions_is_refused(tmp_path):
    rows = [{"id": "x", "problem": "a", "answer": "1"}, {"id": "x", "problem": "b", "answer": "1"}]
    with pytest.raises(InputError, match=r"two questions have the id 'x'.* name another key"):
        read_through(make_dataset(write(tmp_path, rows)), 2)
    assert read_through(make_dataset(write(tmp_path, [rows[0], rows[0]])), 2) == {1}


def test_processbench_has_questions_and_no_answers(tmp_path):
    row = {"id": "math-0", "problem": "p", "steps": ["a"], "label": 0, "final_answer_correct": True}
    (question,) = make_dataset(write(tmp_path, [row])).questions()
    assert (question.text, question.grade, question.id) == ("p", None, "math-0")


def test_keys_and_grader_can_be_named(tmp_path):
    path = write(tmp_path, [{"q": "which?", "right": "b", "name": "n"}])
    mapping = {"type": "file", "path": path, "question": "q", "answer": "right", "id": "name"}
    (question,) = make_dataset({**mapping, "grader": "multiple_choice"}).questions()
    assert question.id == "n"
    assert question.grade("The answer is (B).")
    (question,) = make_dataset({**mapping, "grader": "none"}).questions()
    assert question.grade is None


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"text": "p"}], {}, r"line 1: which key holds the question\? There are text"),
        ([{"problem": "p", "answer": "1"}, {"problem": " ", "answer": "1"}], {}, "line 2: problem is ' '"),
        (
            [{"problem": "p", "answer": "1"}, {"problem": "p"}],
            {},
            "line 2 has no field answer; it has problem",
        ),
        ([{"problem": "p", "answer": "x"}], {"grader": "numeric"}, "line 1: answer: .*'x' is no number"),
        (
            [{"question": "p", "answer": "so\n#### 5"}, {"question": "p", "answer": "it is 5"}],
            {},
            "line 2: answer: .*'it is 5' is no number",
        ),
        (
            [{"question": "p", "answer": "so\n#### 5"}, {"question": "p", "answer": "so\n#### 5 or x"}],
            {},
            "line 2: answer: .*'5 or x' is no number",
        ),
        (
            [{"problem": "p", "solution": "5"}, {"problem": "p", "solution": "3, 4"}],
            {},
            "line 2: solution: .*'3, 4' is no number",
        ),
        (
            [{"problem": "p", "answer": 2}],
            {"grader": "multiple_choice"},
            "line 1: answer: .*'2' is no letter from A to J",
        ),
        (
            [{"problem": "p", "answer": "1"}, {"problem": "p", "answer": "}{"}],
            {},
            "line 2: answer: .*'}{' fits no box",
        ),
        (
            [{"problem": "p", "answer": None}],
            {},
            "line 1: answer is None; expected an answer, or grader: none",
        ),
        ([{"problem": "p", "answer": float("nan")}], {}, "line 1: answer is nan; expected an answer"),
        (
            [{"problem": "p", "solution": "The result is 48."}],
            {},
            "line 1: solution is .*, a sentence around a number",
        ),
        ([{"problem": "p", "final_answer": []}], {}, r"line 1: final_answer is \[\]; expected an answer"),
        (
            [{"problem": "p", "final_answer": ["1", None]}],
            {},
            "line 1: final_answer is .*; expected an answer",
        ),
        (
            [{"problem": "p", "answer": "1"}, {"problem": "p", "answer": True}],
            {},
            "line 2: answer is True; expected",
        ),
        ([{"problem": "p"}], {"grader": "exact"}, "line 1: the grader exact needs answers"),
        ([["p"]], {}, "line 1: holds a JSON list"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, rows, more, message):
    dataset = make_dataset({"type": "file", "path": write(tmp_path, rows), **more})
    with pytest.raises(InputError, match=rf"q\.jsonl, {message}"):
        list(dataset.questions())


def test_ones_own_grader_needs_no_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_grader.py").write_text("def right(solution, row):\n    return row['answer'] is None\n")
    path = write(tmp_path, [{"problem": "p", "answer": None}])
    (question,) = make_dataset({"type": "file", "path": path, "grader": "own_grader:right"}).questions()
    assert question.grade("anything")


def test_a_file_is_read_as_it_is_needed(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"problem": "p", "answer": "1"}) + "\nnot json\n")
    assert len(list(first_questions(make_dataset(str(file)), 1, default=5))) == 1


def test_identity_is_the_content_not_the_place(tmp_path):
    rows = [{"problem": "p", "answer": "1"}]
    (tmp_path / "b").mkdir()
    one, other = (make_dataset(write(folder, rows)) for folder in (tmp_path, tmp_path / "b"))
    assert one.identity() == other.identity()
    assert one.identity() != make_dataset(write(tmp_path, rows * 2)).identity()


def test_the_arithmetic_world_is_a_dataset_by_name():
    dataset = make_dataset("arithmetic:hard", part="validation", seed=3)
    assert (dataset.name, dataset.part_name, dataset.count()) == ("arithmetic:hard", "validation", None)
    drawn = problems("hard", 4, part="validation", seed=3)
    questions = list(first_questions(dataset, 4, default=9))
    assert [question.text for question in questions] == [problem.question for problem in drawn]
    assert questions[0].grade(drawn[0].solution)
    assert not questions[0].grade(drawn[1].solution)
    assert all(questions[0].label_steps(drawn[0].steps))
    assert len(list(first_questions(dataset, None, default=9))) == 9
    assert make_dataset("arithmetic:words:test").part_name == "test"
    assert make_dataset("arithmetic", part="train").name == "arithmetic:standard"
    assert len({question.id for question in islice(dataset.questions(), 50)}) == 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("arithmetic:easy", "split: is 'easy'; it should be 'standard', 'hard' or 'words'"),
        ({"type": "web"}, "unknown type 'web'. There are: arithmetic, file, hub"),
        (
            {"type": "file", "path": "q.jsonl", "colour": "red"},
            "colour: unknown key. There are: type, path, question",
        ),
        ({"path": "q.jsonl"}, "expected a mapping with a type"),
    ],
)
def test_what_is_no_dataset(given, message):
    with pytest.raises(SettingsError, match=message):
        make_dataset(given)


@given(text=st.text(max_size=20).filter(lambda text: "/" not in text))  # an id of the hub has one
def test_any_name_is_a_dataset_or_refused(text):
    with suppress(SettingsError, InputError):
        next(first_questions(make_dataset(text), 1, default=1), None)


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder beside the repository is absent")
@pytest.mark.parametrize(
    ("name", "count", "graded"),
    [("math500.jsonl", 500, True), ("aime.jsonl", 482, True), ("processbench_gsm8k.json", 400, False)],
)
def test_real_datasets_are_read_and_graded(name, count, graded):
    dataset = make_dataset(str(DATA / name))
    questions = list(dataset.questions())
    assert dataset.count() == len(questions) == count
    assert len({question.id for question in questions}) == count
    assert all((question.grade is not None) == graded for question in questions)
    for question in questions[:40] if graded else ():
        assert question.grade(f"So it is \\boxed{{{question.expected}}}.")
        assert not question.grade("So it is \\boxed{-987654}.")


def test_the_context_of_a_question_stands_before_it(tmp_path):
    row = {"context": "Let f be so.", "question": "What is f?", "final_answer": ["x"]}
    (question,) = make_dataset(write(tmp_path, [row])).questions()
    assert question.text == "Let f be so.\n\nWhat is f?"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset in the layout of the hub, in a folder: the package reads both by the same way."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here/data").mkdir(parents=True)
    rows = [{"problem": f"p{number}", "answer": str(number)} for number in range(4)]
    (tmp_path / "here/data/test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "here/data/validation.jsonl").write_text(json.dumps(rows[0]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_dataset_of_the_hub(hub):
    dataset = make_dataset({"type": "hub", "path": "here"})
    assert dataset.count() == 4
    questions = list(dataset.questions())
    assert [question.text for question in questions] == ["p0", "p1", "p2", "p3"]
    assert questions[3].grade("\\boxed{3}")
    assert len(list(make_dataset({"type": "hub", "path": "here", "split": "validation"}).questions())) == 1
    other = make_dataset({"type": "hub", "path": "here", "split": "validation"})
    assert dataset.identity() == make_dataset({"type": "hub", "path": "here"}).identity()
    assert dataset.identity()["fingerprint"] != other.identity()["fingerprint"]
    with pytest.raises(InputError, match="split train"):
        next(make_dataset({"type": "hub", "path": "here", "split": "train"}).questions())


def test_ids_of_the_hub_are_distinguished_from_files(tmp_path, monkeypatch):
    named = make_dataset("HuggingFaceH4/MATH-500")
    assert (named.type, named.path, named.split) == ("hub", "HuggingFaceH4/MATH-500", "test")
    assert make_dataset("openai/gsm8k:train").split == "train"
    assert make_dataset("a/q.jsonl").type == "file"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("")
    monkeypatch.chdir(tmp_path)
    assert make_dataset("a/b").type == "file"
