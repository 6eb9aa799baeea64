"""Pages of all sessions that a query of the record names."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from server import limits as server_limits


class NamedSession(Protocol):
    """A row with a session's name."""

    @property
    def tenant(self) -> str:
        """The tenant."""

    @property
    def session_id(self) -> str:
        """The session's id in the tenant."""


Row = TypeVar("Row", bound=NamedSession)
ReadPage = Callable[[str, str, int], Awaitable[tuple[Row, ...]]]
"""Reads at most this many rows after a tenant's session, in the order of these names."""


async def session_pages(read: ReadPage[Row]) -> AsyncIterator[tuple[Row, ...]]:
    """Yields every page of a query; the last page may be empty.

    A page is read when the page before is done. Raises what ``read`` raises.
    """
    rows = server_limits.LOST_SESSIONS_PAGE_ROWS
    page = await read("", "", rows)
    while len(page) == rows:
        yield page
        page = await read(page[-1].tenant, page[-1].session_id, rows)
    yield page
