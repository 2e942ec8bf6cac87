from hypothesis import given
from hypothesis import strategies as st

from trim_graph.segmentation import divide_tokens, is_step, join_steps, split_steps

paragraph = st.text(alphabet="ab1 .-\n$", min_size=1, max_size=12)
solution = st.lists(paragraph, max_size=8).map("\n\n".join)


def records(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text, "end": "delimiter"} for text in texts]


def test_space_and_punctuation_alone_are_no_step():
    assert not any(map(is_step, ["", " \n", "---", "**", "\\[", "…"]))
    assert all(map(is_step, ["x", "= 4", "\\boxed{4}", "答え"]))


def test_the_delimiter_is_put_back_only_where_the_writer_wrote_it():
    steps = [
        {"text": "cut by its limit", "end": "length"},
        {"text": " and carried on", "end": "delimiter"},
        {"text": "the end", "end": "eos"},
    ]
    assert join_steps(steps) == "cut by its limit and carried on\n\nthe end"
    assert join_steps(steps, "##") == "cut by its limit and carried on##the end"


def test_pieces_that_are_no_step_join_the_one_that_follows_and_blank_ones_vanish():
    assert split_steps("one\n\n\n\n---\n\ntwo") == ["one", "---\n\ntwo"]
    assert split_steps("one\n\n---") == ["one\n\n---"]
    assert split_steps("---") == []


@given(solution)
def test_every_piece_of_a_split_is_a_step(text: str):
    assert all(map(is_step, split_steps(text)))


@given(solution)
def test_splitting_loses_nothing_but_space(text: str):
    steps = split_steps(text)
    if steps:
        assert "".join("".join(steps).split()) == "".join(text.split())


@given(solution)
def test_splitting_a_joined_text_gives_the_same_steps(text: str):
    steps = split_steps(text)
    if not any(step.endswith("\n") for step in steps):  # a newline there would move the delimiter
        assert split_steps(join_steps(records(steps)).removesuffix("\n\n")) == steps


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=20).map(lambda t: f"s {t}"), min_size=1))
def test_plain_paragraphs_survive_joining_and_splitting(steps: list[str]):
    assert split_steps(join_steps(records(steps))) == steps


@given(st.integers(0, 5000), st.lists(st.text(max_size=30), min_size=1, max_size=20))
def test_shared_out_tokens_add_up_and_are_never_negative(total: int, texts: list[str]):
    shares = divide_tokens(total, texts)
    assert sum(shares) == total
    assert min(shares) >= 0
    assert len(shares) == len(texts)
