"""Rows that match a filter, in an order.

Some orders change while nothing happens: counted time and credits run on. Their keys are all of one
instant, because rows of different instants cannot be compared. An order is built in parts, so that
ten thousand rows delay nothing.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from protocol.wire.errors import BadMessageError
from protocol.wire.filters import RowFilter
from server.ops import limits as ops_limits
from server.ops.live_rows import LiveRow
from server.ops.live_table import LiveTable

SortValue = int | str | None
OrderKey = tuple[bool, int | str, str]
"""Whether the value is missing, the value, and the session's key, which makes the order total."""

_VALUES: Final[dict[str, Callable[[LiveRow, int], SortValue]]] = {
    "session_id": lambda row, _: row.session_id,
    "user_id": lambda row, _: row.user_id,
    "org_id": lambda row, _: row.org_id,
    "account_id": lambda row, _: row.account_id,
    "kind": lambda row, _: row.kind,
    "state": lambda row, _: row.state,
    "started_at": lambda row, _: row.started_at,
    "elapsed_ms": lambda row, now_ms: row.elapsed_at(now_ms),
    "credits": lambda row, now_ms: row.credits_at(now_ms),
    "limit": lambda row, _: row.limit,
    "remaining_ms": lambda row, now_ms: row.remaining_at(now_ms),
}
_RUNNING: Final = frozenset({"elapsed_ms", "credits", "remaining_ms"})
_NUMBERS: Final = _RUNNING | {"started_at"}
SORT_FIELDS: Final = tuple(_VALUES)
DEFAULT_SORT: Final = "-started_at"


class RowSort(NamedTuple):
    """By which field rows are sorted; rows without a value come last."""

    field: str
    descends: bool

    @property
    def text(self) -> str:
        """The sort as a request names it."""
        return "-" * self.descends + self.field

    @property
    def changes_with_time(self) -> bool:
        """Whether the order changes while nothing happens."""
        return self.field in _RUNNING

    def has_place(self, place: OrderKey) -> bool:
        """Whether a place can be one of this order."""
        is_missing = place[0] != self.descends
        is_number = isinstance(place[1], int)
        return place[1] == "" if is_missing else is_number == (self.field in _NUMBERS)

    def key_of(self, row: LiveRow, now_ms: int) -> OrderKey:
        """The row's place at an instant.

        With ``descends``, an order is read from its end.
        """
        value = _VALUES[self.field](row, now_ms)
        is_missing = value is None
        # Of one order all values are texts, or all are numbers, but for the missing ones.
        return (is_missing != self.descends, "" if value is None else value, row.key)


def parse_sort(text: str) -> RowSort:
    """Reads ``elapsed_ms``, or ``-elapsed_ms`` for the greatest first.

    Raises ``bad_message`` for another field.
    """
    sort = RowSort(text.removeprefix("-"), text.startswith("-"))
    if sort.field not in _VALUES:
        raise BadMessageError(f"sort: expected one of {', '.join(SORT_FIELDS)}, or - and one")
    return sort


class RowOrder:
    """The matching rows in order, by their figures of one instant."""

    def __init__(self, wanted: RowFilter, sort: RowSort, at: int) -> None:
        self.wanted = wanted
        self.sort = sort
        self.at = at
        self._ordered: list[OrderKey] = []
        self._places: dict[str, OrderKey] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, key: str, row: LiveRow | None, now_ms: int) -> bool:
        """Takes a row, or removes it; returns whether anything changed."""
        matches = row is not None and self.wanted.matches(row, now_ms)
        new = self.sort.key_of(row, self.at) if row is not None and matches else None
        old = self._places.get(key)
        if old == new:
            return new is not None
        if old is not None:
            del self._ordered[bisect_left(self._ordered, old)]
            del self._places[key]
        if new is not None:
            insort(self._ordered, new)
            self._places[key] = new
        return True

    def keys(self, offset: int, count: int) -> list[str]:
        """The sessions of a window."""
        return [place[2] for place in self._window(offset, count)]

    def _window(self, offset: int, count: int) -> list[OrderKey]:
        if self.sort.descends:
            end = max(0, len(self._ordered) - offset)
            return self._ordered[max(0, end - count) : end][::-1]
        return self._ordered[offset : offset + count]

    def after(self, place: OrderKey, count: int) -> list[OrderKey]:
        """The places that follow one, which may be gone."""
        if self.sort.descends:
            offset = len(self._ordered) - bisect_left(self._ordered, place)
        else:
            offset = bisect_right(self._ordered, place)
        return self._window(offset, count)

    def first(self, count: int) -> list[OrderKey]:
        """The first places."""
        return self._window(0, count)


def filling(order: RowOrder, table: LiveTable, now_ms: int) -> Iterator[None]:
    """Puts all rows of a table into an order.

    Each step puts ``ORDERED_PER_TURN`` of them. The caller puts what changes meanwhile into the
    order as well.
    """
    for number, key in enumerate(list(table.rows), 1):
        order.put(key, table.rows.get(key), now_ms)
        if number % ops_limits.ORDERED_PER_TURN == 0:
            yield


async def order_of(table: LiveTable, wanted: RowFilter, sort: RowSort, at: int) -> RowOrder:
    """The matching rows of a table at an instant, for one answer."""
    order = RowOrder(wanted, sort, at)
    for _ in filling(order, table, at):
        await asyncio.sleep(0)
    return order
