"""Checks of what a call may set; the constructors' values are checked by pydantic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


def check_call_settings(settings: dict[str, Any]) -> None:
    """Check the settings of one call.

    Raises:
        ValueError: One is wrong; the message names it.
    """

    def number(name: str, kind: type | tuple[type, ...], valid: Callable[[Any], bool], what: str) -> None:
        value = settings.get(name)
        if value is None:
            return
        if not isinstance(value, kind) or isinstance(value, bool) or not valid(value):
            raise ValueError(f"{name}={value!r} is not {what}")

    real = (int, float)
    number("max_tokens", int, lambda v: v >= 1, "a whole number of tokens, 1 or more")
    number("temperature", real, lambda v: 0 <= v < math.inf, "a number, 0 or more")
    number("top_p", real, lambda v: 0 < v <= 1, "a number above 0, 1 at most")
    number("top_logprobs", int, lambda v: v >= 0, "a whole number, 0 or more")
    number("seed", int, lambda v: -(2**63) <= v < 2**64, "a 64-bit whole number")
    if settings.get("stop_when") is not None and not callable(settings["stop_when"]):
        raise ValueError(f"stop_when={settings['stop_when']!r} is not a function of the text so far")
    entropy = settings.get("first_token_entropy")
    if entropy is not None and not isinstance(entropy, bool):
        raise ValueError(f"first_token_entropy={entropy!r} is neither True nor False")
    number("timeout", real, lambda v: v > 0, "a number of seconds above 0")


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Check stop strings; one may stand alone.

    Raises:
        ValueError: One is empty, or not a string.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not isinstance(string, str) or not string for string in strings):
        raise ValueError(f"stop={stop!r}: every stop string must be a non-empty string")
    return strings
