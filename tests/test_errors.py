import pytest

from trim_graph.errors import counted


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("question",), "1 question"),
        (0, ("question",), "0 questions"),
        (2, ("question is", "questions are"), "2 questions are"),
        (1, ("question is", "questions are"), "1 question is"),
    ],
)
def test_a_number_agrees_with_its_noun(number, words, shown):
    assert counted(number, *words) == shown
