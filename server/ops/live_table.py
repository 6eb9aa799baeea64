"""The table of live sessions: rows of all processes, joined by session.

A session may have sockets on several processes, each of which publishes a row of it. The table
shows the newest, with all the processes.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from server.ops.live_rows import LiveRow

REDIS: Final = ""
"""Stands for a process where Redis alone has a session."""

TableListener = Callable[[str, LiveRow | None], None]
"""Called with a session's key and its new row; None: it is in the table no longer."""


class LiveTable:
    """The live sessions of all processes, as this one heard of them."""

    def __init__(self) -> None:
        self.rows: dict[str, LiveRow] = {}
        """The row of each session, by the session's key."""
        self._spoken: dict[str, dict[str, LiveRow]] = {}
        """The rows of each session by the process that published them."""
        self._of_node: dict[str, set[str]] = {}
        self.listeners: dict[TableListener, None] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def put(self, node: str, row: LiveRow) -> None:
        """Takes a row that a process published; ``REDIS``: that was found there."""
        spoken = self._spoken.setdefault(row.key, {})
        if node == REDIS and spoken.keys() - {REDIS}:
            return  # a process has begun to speak for it
        if REDIS in spoken:
            self._forget(REDIS, row.key)
        spoken[node] = row
        self._of_node.setdefault(node, set()).add(row.key)
        self._show(row.key)

    def gone(self, node: str, key: str, *, ended: bool) -> bool:
        """Removes what a process said of a session.

        A session that has ended goes altogether. Returns whether the session may live on although
        no process speaks for it.
        """
        spoken = self._spoken.get(key)
        if spoken is None:
            return not ended
        if ended:
            for other in list(spoken):
                self._forget(other, key)
        elif node in spoken:
            self._forget(node, key)
        self._show(key)
        return not ended and key not in self.rows

    def forget_node(self, node: str) -> list[str]:
        """Removes what a process said; returns sessions without a row now."""
        keys = list(self._of_node.get(node, ()))
        return [key for key in keys if self.gone(node, key, ended=False)]

    def nodes(self) -> list[str]:
        """The processes that have spoken for a session."""
        return [node for node in self._of_node if node != REDIS]

    def keys_of(self, node: str) -> frozenset[str]:
        """The sessions that a process has spoken for."""
        return frozenset(self._of_node.get(node, ()))

    def keep_only(self, node: str, keys: Iterable[str]) -> list[str]:
        """Removes what a process said of other sessions than these.

        Returns the sessions that are left without a row.
        """
        others = self.keys_of(node).difference(keys)
        return [key for key in others if self.gone(node, key, ended=False)]

    def _forget(self, node: str, key: str) -> None:
        self._spoken[key].pop(node, None)
        of_node = self._of_node[node]
        of_node.discard(key)
        if not of_node:
            del self._of_node[node]

    def _show(self, key: str) -> None:
        spoken = self._spoken[key]
        shown = None
        for row in spoken.values():
            if shown is None or row.is_newer_than(shown):
                shown = row
        if shown is None:
            del self._spoken[key]
            if self.rows.pop(key, None) is None:
                return
        else:
            nodes = tuple(sorted({node for row in spoken.values() for node in row.nodes}))
            if nodes != shown.nodes:
                shown = msgspec.structs.replace(shown, nodes=nodes)
            if self.rows.get(key) == shown:
                return
            self.rows[key] = shown
        for listener in list(self.listeners):
            listener(key, shown)
