"""What waits for several owners, taken in turns: one of each after the other."""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RoundRobin(Generic[Item]):
    """A queue in which an owner's items delay no other owner's by more than one each.

    It has no bound of its own: the caller has one.
    """

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Item]] = {}
        """Items by their owner; the owner whose turn it is comes first."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    def append(self, owner: Hashable, item: Item) -> None:
        """Puts an item behind those of its owner."""
        self._queues.setdefault(owner, deque()).append(item)

    def popleft(self) -> Item:
        """Takes the first item of the owner whose turn it is, who is the last one then."""
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item

    def heads(self) -> Iterator[Item]:
        """The first item of each owner."""
        return (queue[0] for queue in self._queues.values())
