"""Finding something out once, however many asynchronous calls need it, from whichever event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class Once(Generic[T]):
    """A value made at the first `get`. A failure is not kept: the next call tries again.

    Args:
        make: Makes the value.

    Attributes:
        value: What was made; None before.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.value: T | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Once[T]:
        """Copies share what was found out."""
        return self

    async def get(self) -> T:
        """Return the value; calls that come while it is being made wait for it."""
        if self.value is None:
            async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                if self.value is None:
                    self.value = await self._make()
        return self.value
