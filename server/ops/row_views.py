"""Views of the table that stay up to date, for many watchers.

A :class:`RowView` keeps the matching rows in order. A :class:`RowWindow` is a part of a view, and
makes one message for all its watchers: however many watch it, the work is done once.
"""

from collections.abc import Iterator

import msgspec

from protocol.wire.filters import RowFilter
from server.ops.live_rows import LiveRow
from server.ops.live_table import LiveTable
from server.ops.row_orders import RowOrder, RowSort, filling
from server.runtime.clock import Clock


class RowView:
    """The rows of a table that match a filter, in order."""

    def __init__(self, table: LiveTable, wanted: RowFilter, sort: RowSort, clock: Clock) -> None:
        self._table = table
        self._clock = clock
        self._order = RowOrder(wanted, sort, clock.now())
        self._next: RowOrder | None = None
        """The order that is being built anew."""
        self.windows: dict[tuple[int, int], RowWindow] = {}
        self.is_complete = False
        """Whether every row of the table has been looked at."""
        self.revision = 0
        """Rises with each change of the rows or their order."""
        table.listeners[self._changed] = None

    def close(self) -> None:
        """Follows the table no longer."""
        self._table.listeners.pop(self._changed, None)

    @property
    def changes_with_time(self) -> bool:
        """Whether the view must be built anew from time to time."""
        return self._order.sort.changes_with_time or self._order.wanted.changes_with_time

    def _changed(self, key: str, row: LiveRow | None) -> None:
        now_ms = self._clock.now()
        self.revision += self._order.put(key, row, now_ms)
        if self._next is not None:
            self._next.put(key, row, now_ms)

    def rebuild(self) -> Iterator[None]:
        """Builds the view anew, by the figures of now, in bounded steps.

        The old order serves until the last step.
        """
        now_ms = self._clock.now()
        order = self._next = RowOrder(self._order.wanted, self._order.sort, now_ms)
        yield from filling(order, self._table, now_ms)
        self._order, self._next = order, None
        self.is_complete = True
        self.revision += 1

    @property
    def total(self) -> int:
        """How many rows match."""
        return len(self._order)

    def rows(self, offset: int, count: int) -> list[LiveRow]:
        """A window of the rows."""
        rows = self._table.rows
        return [rows[key] for key in self._order.keys(offset, count) if key in rows]


class RowDelta(msgspec.Struct, frozen=True):
    """What changed in a window; None: nothing did."""

    seq: int
    set: list[LiveRow]
    """Rows that are new in the window, or changed."""
    gone: list[LiveRow]
    """Rows that have left the window, as they were."""
    order: list[str] | None
    """The keys of all rows of the window; None: the order follows from ``set`` and ``gone``."""
    total: int


class RowWindow:
    """A part of a view: ``count`` rows from ``offset`` on."""

    def __init__(self, view: RowView, offset: int, count: int) -> None:
        self.view = view
        self.offset = offset
        self.count = count
        self.seq = 0
        """The number of the last change: a snapshot has it, and each delta the next."""
        self.watchers = 0
        self._revision = -1
        self.rows: list[LiveRow] = []
        """The rows as the watchers have them."""
        self.total = 0

    def update(self) -> RowDelta | None:
        """Takes the rows of now; returns what changed since the last time."""
        if self._revision == self.view.revision:
            return None
        self._revision = self.view.revision
        new, old = self.view.rows(self.offset, self.count), self.rows
        total, old_total = self.view.total, self.total
        if new == old and total == old_total:
            return None
        self.rows, self.total = new, total
        self.seq += 1
        before, after = {row.key: row for row in old}, {row.key: row for row in new}
        changed = [row for row in new if before.get(row.key) != row]
        kept = [key for key in before if key in after]
        added = [row.key for row in changed if row.key not in before]
        follows = kept + added == list(after)
        return RowDelta(
            seq=self.seq,
            set=changed,
            gone=[row for row in old if row.key not in after],
            order=None if follows else list(after),
            total=total,
        )
