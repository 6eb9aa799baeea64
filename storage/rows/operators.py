"""Rows about operators: who they are, their sessions, and their log."""

from typing import Any, Literal

import msgspec

OperatorRole = Literal["read", "act"]
SessionVia = Literal["password", "proxy", "token"]
"""How a session of a cookie was opened."""
Outcome = Literal["done", "refused", "failed"]


class OperatorRow(msgspec.Struct, frozen=True):
    """A named operator."""

    name: str
    role: OperatorRole
    password_hash: str | None
    """In the text form of argon2; None: a trusted proxy names the operator."""
    created_at: int


class OperatorSession(msgspec.Struct, frozen=True):
    """A session of a cookie, with its present scope."""

    actor: str
    via: SessionVia
    scope: str
    org_id: str | None
    expires_at: int


class ActionIntent(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator is about to do."""

    action_id: str
    """The same at every attempt."""
    at: int
    actor: str
    via: str
    action: str
    target: str
    tenant: str | None
    reason: str | None
    before: Any
    request_id: str


class LoggedAction(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the operators' log."""

    action_id: str
    position: int
    at: int
    actor: str
    via: str
    action: str
    target: str
    tenant: str | None
    reason: str | None
    before: Any
    after: Any
    outcome: Literal["begun", "done", "refused", "failed"]
    """``begun``: no outcome was recorded."""
    code: str | None
    """The stable code of an error."""
    request_id: str


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the operators' log that a reader wants; None: any."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    outcome: str | None = None
    from_at: int | None = None
    to_at: int | None = None
