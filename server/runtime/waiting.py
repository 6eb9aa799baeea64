"""Events and locks by the ten thousand, small while nobody waits.

``asyncio.Event`` brings a deque of 760 bytes, and every session would have two of them.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Signal:
    """An event: it is set or not, and may be waited for."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """Lets everybody go on who waits, and who will."""
        self.is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        """Lets whoever comes wait again."""
        self.is_set = False

    async def wait(self) -> None:
        """Returns when it is set, or was meanwhile."""
        if not self.is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class Locks:
    """Locks by name. One that nobody holds or waits for is not there, so whoever makes names
    up leaves nothing behind."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, list[None]]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, name: Hashable) -> AsyncIterator[None]:
        """Holds the lock of that name, once everybody who asked before has let go of it."""
        lock, users = self._locks.setdefault(name, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[name]
