"""Tests of settings as dataclasses: a value out of its bound is refused by name, with what to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.bounds import NOT_NEGATIVE, POSITIVE, SHARE, Bound, Bounded, one_of, setting
from trim_graph.errors import SettingsError

Size = Literal["short", "middle", "long"]


@dataclass(frozen=True)
class Some(Bounded):
    size: Size = setting("short", one_of(Size))
    sizes: tuple[Size, ...] = setting(("short",), one_of(Size))
    count: int = setting(1, POSITIVE)
    share: float | None = setting(None, SHARE)
    rate: float = setting(0.5, Bound(lambda value: value < 1, "choose less than 1", "g"))
    free: int = 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count is 0: choose 1 or more"),
        ({"share": 1.5}, "share is 1.5: choose a share from 0 to 1"),
        ({"share": math.nan}, "share is nan: choose a share from 0 to 1"),
        ({"size": "huge"}, "size is 'huge': choose short, middle or long"),
        ({"size": "Short"}, "size is 'Short': choose short, middle or long"),
        ({"sizes": ("short", "huge")}, "sizes is 'huge': choose short, middle or long"),
        ({"sizes": ["huge"]}, "sizes is 'huge': choose short, middle or long"),
        ({"rate": 1234567.0}, "rate is 1.23457e+06: choose less than 1"),
    ],
)
def test_a_value_out_of_its_bound_is_refused_by_name_with_what_to_choose(wrong, said):
    with pytest.raises(SettingsError) as raised:
        Some(**wrong)
    assert str(raised.value) == said


def test_a_copy_is_checked_too():
    with pytest.raises(SettingsError, match="count is -1"):
        replace(Some(), count=-1)


def test_nothing_and_an_empty_list_and_a_setting_without_a_bound_are_within():
    some = Some(share=None, sizes=(), free=-7)
    assert (some.share, some.sizes, some.free) == (None, (), -7)


@pytest.mark.parametrize(
    ("bound", "within"),
    [
        (POSITIVE, lambda value: value >= 1),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf),
        (SHARE, lambda value: 0 <= value <= 1),
    ],
)
@given(value=st.one_of(st.integers(-3, 3), st.floats()))
def test_a_bound_refuses_what_is_out_of_it_and_nothing_else(bound, within, value):
    if within(value):
        bound.check("x", value)
    else:
        with pytest.raises(SettingsError, match=r"^x is "):
            bound.check("x", value)


def test_of_a_list_each_value_is_checked_and_the_wrong_one_is_shown():
    POSITIVE.check("x", [1, 2, None])
    with pytest.raises(SettingsError, match="x is 0: choose 1 or more"):
        POSITIVE.check("x", [1, 0, -1])
