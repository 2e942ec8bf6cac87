"""Settings as dataclasses, whose fields declare bound and help; the options of commands read them there.

Nothing heavy is imported here, for ``--help``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args

T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """Bound of a value, or of each value in a list.

    Attributes:
        holds: Whether a value is within it.
        advice: What to choose instead, for the error.
        form: Format of a number in the error.
    """

    holds: Callable[[Any], bool]
    advice: str
    form: str = ""

    def check(self, name: str, given: Any) -> None:
        """Raises a `SettingsError` that begins with the name if a value is out of the bound."""
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and not self.holds(value):
                from .errors import SettingsError  # not above: it loads langchain_core

                seen = repr(value) if isinstance(value, str) else f"{value:{self.form}}"
                raise SettingsError(f"{name} is {seen}: {self.advice}")


POSITIVE = Bound(lambda value: value >= 1, "choose 1 or more")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < float("inf"), "choose 0 or more")
SHARE = Bound(lambda value: 0 <= value <= 1, "choose a share from 0 to 1")


def one_of(choices: Any) -> Bound:
    """Returns the bound of a `Literal`: its values."""
    *others, last = get_args(choices)
    return Bound(lambda value: value in get_args(choices), f"choose {', '.join(others)} or {last}")


def setting(default: T, bound: Bound | None = None, *, help: str = "") -> T:
    """Declares a field of a `Bounded` dataclass.

    Args:
        default: Its default.
        bound: Its bound.
        help: Help of the option of a command that is this setting; an option's own help replaces it.
    """
    return field(default=default, metadata={"bound": bound, "help": help})


@dataclass(frozen=True)
class Bounded:
    """Base of a dataclass of settings.

    Raises:
        SettingsError: A value is out of its bound.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            if (bound := one.metadata.get("bound")) is not None:
                bound.check(one.name, getattr(self, one.name))
