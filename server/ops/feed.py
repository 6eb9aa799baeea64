"""The feed: live sessions of all processes, for those who watch them.

Every process publishes rows while one of them watches (:class:`RowPublisher`). A process whose
operators watch hears all rows, and keeps one table of them, and one view for each filter and sort
of all its watchers. Each such process does so by itself: none depends on another that may die.
"""

import asyncio
import math
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from protocol import limits
from protocol.wire.filters import RowFilter
from server.ops import limits as ops_limits
from server.ops.live_rows import LiveRow
from server.ops.live_table import REDIS, LiveTable
from server.ops.row_orders import RowOrder, RowSort, order_of
from server.ops.row_publisher import RowPublisher
from server.ops.row_views import RowDelta, RowView, RowWindow
from server.ops.sampler import Sampler
from server.ops.unattended import UnattendedSessions
from server.process import Process
from server.runtime.isolation import isolated
from server.runtime.waiting import Signal
from storage.redis.keys import ROWS_CHANNEL, WATCH_CHANNEL
from storage.redis.live_feed import LiveFeed
from storage.redis.scripts import LiveError
from storage.tasks import end

log = structlog.get_logger()

WindowListener = Callable[[RowWindow, RowDelta], None]
"""Called with each change of a window that is watched."""


class Feed:
    """The feed of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.store = LiveFeed(process.live)
        self.publisher = RowPublisher(process.registry, self.store, process.clock)
        self.sampler = Sampler(process, self.store, self.publisher.watched)
        self.table = LiveTable()
        self._unattended = UnattendedSessions(self.table, self.store, process.clock)
        self._views: dict[tuple[str, str], RowView] = {}
        self._listeners: dict[RowWindow, dict[WindowListener, None]] = {}
        self._used_until: float = -math.inf
        self._is_subscribed = False
        self._question = ""
        """The last question for all rows; empty: it must be asked."""
        self._answered: set[str] = set()
        self._heard_of: dict[str, set[str]] = {}
        """The sessions that each process has published since the question."""
        self._unknown_since: dict[str, int] = {}
        """Processes that publish rows, and are not among the living."""
        self._ready = Signal()
        """Set once every living process has answered."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to write figures, and to answer those who watch. Raises ``LiveError``."""
        channels = self.process.registry.accounts.channels
        await channels.subscribe(WATCH_CHANNEL, self.publisher.asked)
        self.sampler.start()

    async def stop(self) -> None:
        """Ends all of it; the process goes on to stop."""
        await end([self._task])
        await self.sampler.stop()
        await self.publisher.stop()

    # --- What others ask for ---------------------------------------------------------

    async def rows(self, wanted: RowFilter, sort: RowSort, at: int) -> RowOrder:
        """The matching live sessions in order, by their figures at an instant.

        Waits for the other processes, a bounded time: one that does not answer is missing.
        """
        await self.ready()
        return await order_of(self.table, wanted, sort, at)

    async def ready(self) -> None:
        """Waits for the rows of all living processes, a bounded time."""
        self._use()
        try:
            async with asyncio.timeout(ops_limits.FEED_READY_MS / 1000):
                await self._ready.wait()
        except TimeoutError:
            log.warning("rows_missing", nodes=sorted(self._unanswered()))

    def watch(
        self, wanted: RowFilter, sort: RowSort, offset: int, count: int, listener: WindowListener
    ) -> RowWindow:
        """Adds a watcher of a window, which :meth:`unwatch` removes.

        Equal windows are one. The listener hears of each change after the window's present state.
        """
        self._use()
        name = (wanted.text, sort.text)
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = RowView(self.table, wanted, sort, self.process.clock)
        window = view.windows.get((offset, count))
        if window is None:
            window = view.windows[offset, count] = RowWindow(view, offset, count)
        self._listeners.setdefault(window, {})[listener] = None
        return window

    def unwatch(self, window: RowWindow, listener: WindowListener) -> None:
        """Removes a watcher; the last one ends the window, and its view."""
        listeners = self._listeners.get(window, {})
        listeners.pop(listener, None)
        if listeners:
            return
        self._listeners.pop(window, None)
        view = window.view
        view.windows.pop((window.offset, window.count), None)
        if not view.windows:
            view.close()
            self._views = {name: one for name, one in self._views.items() if one is not view}

    # --- Watching --------------------------------------------------------------------

    def _use(self) -> None:
        self._used_until = self.process.clock.now() + ops_limits.FEED_KEPT_MS
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Keeps the table up to date while it is used."""
        channels = self.process.registry.accounts.channels
        renewed_at = ordered_at = -math.inf
        try:
            while True:
                now_ms = self.process.clock.now()
                if not self._listeners and now_ms >= self._used_until:
                    return
                try:
                    if not self._is_subscribed:
                        await channels.subscribe(ROWS_CHANNEL, self.heard)
                        self._is_subscribed = True
                    if not self._question:
                        await self._ask_for_all()
                    if now_ms - renewed_at >= ops_limits.INTEREST_RENEWED_MS:
                        await self.store.watch()
                        renewed_at = now_ms
                        self._forget_the_dead(now_ms)
                    await self._unattended.look()
                except LiveError as error:
                    log.warning("feed_unanswered", error=str(error))
                await self._order(rebuild=now_ms - ordered_at >= ops_limits.ORDER_AGE_MS)
                if now_ms - ordered_at >= ops_limits.ORDER_AGE_MS:
                    ordered_at = now_ms
                self.tell()
                await asyncio.sleep(ops_limits.FEED_PAUSE_MS / 1000)
        finally:
            self._question, self._is_subscribed = "", False
            self._ready.clear()
            self._empty()
            await channels.unsubscribe(ROWS_CHANNEL)

    def _empty(self) -> None:
        for node in [*self.table.nodes(), REDIS]:
            self.table.forget_node(node)

    async def _ask_for_all(self) -> None:
        self._question = question = secrets.token_hex(8)
        self._answered.clear()
        self._heard_of.clear()
        try:
            await self.store.watch()
            await self.store.ask_for_all(question)
        except LiveError:
            self._question = ""
            raise

    def heard(self, message: dict[str, Any]) -> None:
        """Takes rows that a process has published."""
        if message.get("reload"):
            # Messages were lost. The next pass asks for all rows again.
            self._question = ""
            return
        node: str = message["node"]
        heard_of = set() if node in self._answered else self._heard_of.setdefault(node, set())
        for row in msgspec.convert(message["rows"], list[LiveRow]):
            heard_of.add(row.key)
            self.table.put(node, row)
        for key, ended in message["gone"]:
            heard_of.discard(key)
            if self.table.gone(node, key, ended=ended):
                self._unattended.add([key])
        if self._question and self._question in message.get("all", ()):
            self._unattended.add(self.table.keep_only(node, heard_of))
            self._answered.add(node)
            self._heard_of.pop(node, None)
            if not self._unanswered():
                self._ready.set()

    def _unanswered(self) -> set[str]:
        return set(self.process.membership.nodes) - self._answered

    def _forget_the_dead(self, now_ms: int) -> None:
        """Removes rows of processes that were swept.

        A process that has just started publishes rows before this process knows of it.
        """
        living = self.process.membership.nodes
        unknown = [node for node in self.table.nodes() if node not in living]
        self._unknown_since = {node: self._unknown_since.get(node, now_ms) for node in unknown}
        for node, since in self._unknown_since.items():
            if now_ms - since >= limits.NODE_SILENT_MS:
                self._unattended.add(self.table.forget_node(node))
        if self._question and not self._unanswered():
            self._ready.set()

    async def _order(self, *, rebuild: bool) -> None:
        """Builds new views, and those that time has changed."""
        for view in list(self._views.values()):
            if not view.is_complete or (rebuild and view.changes_with_time):
                for _ in view.rebuild():
                    await asyncio.sleep(0)

    def tell(self) -> None:
        """Tells the watchers of each window what has changed."""
        for window, listeners in list(self._listeners.items()):
            if not window.view.is_complete:
                continue
            delta = window.update()
            if delta is not None:
                for listener in list(listeners):
                    isolated("watcher", listener, window, delta)
