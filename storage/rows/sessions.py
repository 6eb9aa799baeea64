"""Sessions: prepared, live and ended."""

import hashlib
from typing import Any, Literal

import msgspec

from protocol.metering.session import Identity
from protocol.metering.terms import Terms

RecordedState = Literal["prepared", "live", "ended"]


class RecordedSession(msgspec.Struct, frozen=True):
    """What of a session's time is in Postgres already."""

    session_id: str
    minutes: int
    """How many of its minutes those are: the first ones, for they are written in order."""
    charged_micros: int
    free_ms: int
    user_id: str | None = None


class SessionPrepared(msgspec.Struct, frozen=True):
    """A session that a backend prepared for a user, with terms of its own."""

    tenant: str
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    terms: Terms
    expires_at: int
    """It may be started before that instant."""
    metadata: dict[str, Any] | None = None

    @property
    def preparation(self) -> str:
        """The fingerprint by which a start says what it was decided from."""
        parts = (self.user_id, self.account_id, self.counterpart_id, self.terms, self.expires_at)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class SessionRow(msgspec.Struct, frozen=True):
    """A chat, recording or call; the figures are final when its state is ``ended``."""

    tenant: str
    session_id: str
    state: RecordedState
    kind: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    started_at: int | None
    ended_at: int | None
    reason: str | None
    limit_name: str | None
    elapsed_ms: int
    free_ms: int
    billed_ms: int
    minutes: int
    charged_micros: int
    uncovered_ms: int
    segments: list[tuple[int, int]]
    gaps: list[tuple[int, int, bool]]
    terms: Terms
    metadata: dict[str, Any] | None
    is_reported: bool = False
    """Its client counts for itself."""
    expires_at: int | None = None
    """A prepared session may be started before that instant."""

    @property
    def prepared(self) -> SessionPrepared | None:
        """The preparation, of a session that has not started."""
        if self.state != "prepared":
            return None
        names = SessionPrepared.__struct_fields__
        return SessionPrepared(**{name: getattr(self, name) for name in names})

    @property
    def identity(self) -> Identity:
        """Who a session that has started belongs to. The allowance that it shares is not
        written down; see ``protocol.metering.session.free_key``."""
        assert self.started_at is not None
        return Identity(
            tenant=self.tenant,
            session_id=self.session_id,
            user_id=self.user_id,
            org_id=self.org_id,
            account_id=self.account_id,
            counterpart_id=self.counterpart_id,
            kind=self.kind,
            started_at=self.started_at,
            terms=self.terms,
            metadata=self.metadata,
            is_reported=self.is_reported,
        )


class LiveSession(msgspec.Struct, frozen=True):
    """A session that runs as far as the record knows."""

    tenant: str
    session_id: str
    is_reported: bool
    """Its client counts for itself."""


class ReportedSession(msgspec.Struct, frozen=True):
    """A session that runs as far as the record knows, and whose client counts for itself."""

    tenant: str
    session_id: str
    minutes: int
    """How many are written down."""


class MissingMinute(msgspec.Struct, frozen=True):
    """A minute that a session has completed, and that is not written down."""

    tenant: str
    session_id: str
    minute: int
