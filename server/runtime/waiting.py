"""Events and locks that are small while no task waits for them.

``asyncio.Event`` has a deque of 760 bytes, and every session would have two of them.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Signal:
    """An event: set or not; tasks may wait until it is set."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """Sets the event, and wakes every waiting task."""
        self.is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        """Clears the event: a later ``wait`` waits again."""
        self.is_set = False

    async def wait(self) -> None:
        """Returns once the event was set.

        That holds even if the event is cleared again meanwhile.
        """
        if not self.is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class Locks:
    """Locks by name.

    A lock without a holder or a waiter does not exist, so made-up names leave nothing behind.
    """

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, list[None]]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, name: Hashable) -> AsyncIterator[None]:
        """Holds the lock of that name, after all earlier callers."""
        lock, users = self._locks.setdefault(name, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[name]
