"""The commands on record."""

from collections.abc import Callable
from typing import Any


def record(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Nothing yet."""
    return {}
