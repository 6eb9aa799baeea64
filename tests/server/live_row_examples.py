"""Rows of live sessions for tests."""

from typing import Any

from server.ops.live_rows import LiveRow

MINUTE_MS = 60_000


def live_row(session_id: str = "chat-1", **changed: Any) -> LiveRow:
    """A row of ann's chat, with some fields changed."""
    fields: dict[str, Any] = {
        "tenant": "user:ann",
        "session_id": session_id,
        "version": 1,
        "at": 0,
        "user_id": "ann",
        "org_id": None,
        "account_id": "ann",
        "kind": "chat",
        "state": "active",
        "started_at": 0,
        "elapsed_ms": 0,
        "pace": 1,
        "credits_micros": 10_000_000,
        "burn_micros": 1_000_000,
        "limit": None,
        "remaining_ms": None,
        "metadata": None,
        "nodes": ("web-1",),
    }
    return LiveRow(**{**fields, **changed})
