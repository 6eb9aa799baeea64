"""A queue of several owners, who take turns, one item each."""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RoundRobin(Generic[Item]):
    """A queue in which owners take turns with one item each.

    The queue has no bound of its own: the caller has one.
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
        """Takes the next item, and moves its owner to the end."""
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item

    def heads(self) -> Iterator[Item]:
        """The first item of each owner."""
        return (queue[0] for queue in self._queues.values())
