"""LaTeX as trees of MathML: what is found in a text, and that nothing in a tree can act."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.report.formulas import _ATTRIBUTES, _TAGS, LONGEST, LONGEST_TEXT, formulas_of, tree_of


def drawn(text):
    """Returns the texts that are drawn."""
    units = text.encode("utf-16-le")
    return [units[2 * begin : 2 * end].decode("utf-16-le") for begin, end, _ in formulas_of(text)]


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("so $x$ and \\(y^2\\) are", ["$x$", "\\(y^2\\)"]),
        ("$$a$$ then \\[ b \\]", ["$$a$$", "\\[ b \\]"]),
        ("The answer is \\boxed{\\frac{1}{2}}.", ["\\boxed{\\frac{1}{2}}"]),
        ("\U0001f642 \U0001d4b3 $x$", ["$x$"]),
        ("pays $5 and then $6", []),
        ("costs $5-$10, or US$7 and US$8", []),
        ("\\$5 and $x", []),
        ("$ x $ and $x\n$", []),
        ("\\boxed{never closed", []),
        ("$\\nonsense{x}$", []),
        ("no formula", []),
    ],
)
def test_formulas_of_a_text(text, formulas):
    assert drawn(text) == formulas


def test_a_formula_in_a_line_of_its_own_is_set_so():
    assert tree_of("x", block=True)[1]["display"] == "block"
    assert tree_of("x")[1]["display"] == "inline"


def test_aligned_lines_are_a_table():
    tree = repr(tree_of(r"\begin{aligned} a &= b \\ c &= d \end{aligned}"))
    assert tree.count("'mtr'") == 2
    assert tree.count("'mtd'") == 4
    assert "&" not in tree


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:pwned=1}{x}",
        r"\color{red;background:url(http://127.0.0.1/)}{x}",
        r"\style{position:fixed}{x}",
        r"\text{<script>pwned = 1</script>}",
    ],
)
def test_no_attribute_that_acts_gets_into_a_tree(latex):
    for tree in filter(None, [tree_of(latex)]):
        check(tree)


def check(tree):
    tag, attributes, content = tree
    assert tag in _TAGS
    assert attributes.keys() <= _ATTRIBUTES
    assert not any(":" in value or "(" in value for value in attributes.values())
    for inner in content if isinstance(content, list) else []:
        check(inner)


PIECES = st.sampled_from(
    ["\\frac", "{", "}", "^", "_", "\\left(", "\\right)", "&", "\\\\", "\\sqrt", "[", "]", "\\begin{matrix}",
     "\\end{matrix}", "\\text{", "x", "12", " ", "$", "\\(", "\\)", "\\boxed{", "\\href", "\\class", "\ud800",
     "\U0001f642", "\u202e", "<script>", "\n"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text_has_formulas_in_order_or_none(text):
    end = 0
    for begin, after, tree in formulas_of(text):
        assert end <= begin < after <= len(text.encode("utf-16-le", "surrogatepass")) // 2
        end = after
        check(tree)


@pytest.mark.parametrize(
    "text",
    [
        "$" + "{" * 400 + "}" * 400 + "$",
        "$" + "x^{" * 300 + "}" * 300 + "$",
        "$" + "x" * LONGEST + "y$",
        "\\[" * (LONGEST_TEXT // 2),
        "\\boxed{" * (LONGEST_TEXT // 7),
        "$x$" * LONGEST_TEXT,
    ],
    ids=["nested", "powers", "long", "open", "boxes", "megabytes"],
)
def test_what_is_deep_or_long_stays_text(text):
    assert formulas_of(text) == []
