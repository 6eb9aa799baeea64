"""Pages of sessions: all rows, one page after the other."""

import pytest

from server import limits as server_limits
from server.recovery.session_pages import session_pages
from storage.rows.sessions import LiveSession


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, [0]), (1, [1]), (2, [2, 0]), (3, [2, 1]), (4, [2, 2, 0])]
)
async def test_pages_have_every_row_once(
    monkeypatch: pytest.MonkeyPatch, rows: int, expected: list[int]
) -> None:
    monkeypatch.setattr(server_limits, "LOST_SESSIONS_PAGE_ROWS", 2)
    recorded = [LiveSession(f"user:{n % 2}", f"s{n}", is_reported=False) for n in range(rows)]
    recorded.sort(key=lambda one: (one.tenant, one.session_id))
    asked = []

    async def read(tenant: str, session_id: str, limit: int) -> tuple[LiveSession, ...]:
        asked.append((tenant, session_id))
        after = [one for one in recorded if (one.tenant, one.session_id) > (tenant, session_id)]
        return tuple(after[:limit])

    pages = [page async for page in session_pages(read)]
    assert [len(page) for page in pages] == expected
    assert [one for page in pages for one in page] == recorded
    assert len(asked) == len(expected)
