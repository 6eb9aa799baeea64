"""Sessions: prepared, live and ended."""

import hashlib
from typing import Any, Literal

import msgspec

from protocol.metering.records import SessionEnded
from protocol.metering.session import Identity
from protocol.metering.terms import Terms

RecordedState = Literal["prepared", "live", "ended"]


class RecordedSession(msgspec.Struct, frozen=True):
    """The part of a session's time that is in Postgres already."""

    session_id: str
    minutes: int
    """How many minutes Postgres has: the first ones, because they are written in order."""
    charged_micros: int
    free_ms: int
    user_id: str | None = None


class SessionPrepared(msgspec.Struct, frozen=True):
    """A session that a backend prepared, with terms of its own."""

    tenant: str
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    terms: Terms
    expires_at: int
    """The session may start before this instant."""
    metadata: dict[str, Any] | None = None

    @property
    def preparation(self) -> str:
        """The preparation's fingerprint, which a start carries as its basis."""
        parts = (self.user_id, self.account_id, self.counterpart_id, self.terms, self.expires_at)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class SessionRow(msgspec.Struct, frozen=True):
    """A chat, recording or call; ``ended`` makes its figures final."""

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
    """The client counts the minutes itself."""
    expires_at: int | None = None
    """A prepared session may start before this instant."""

    @property
    def prepared(self) -> SessionPrepared | None:
        """The preparation of an unstarted session; None for others."""
        if self.state != "prepared":
            return None
        names = SessionPrepared.__struct_fields__
        return SessionPrepared(**{name: getattr(self, name) for name in names})

    @property
    def identity(self) -> Identity:
        """The identity of a session that has started.

        The record does not have the shared allowance; see ``protocol.metering.session.free_key``.
        """
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

    @property
    def end(self) -> SessionEnded:
        """The recorded end of a session: its receipt's figures."""
        assert self.state == "ended"
        known = set(self.__struct_fields__) & set(SessionEnded.__struct_fields__)
        return SessionEnded(
            limit=self.limit_name,
            credits_micros=self.charged_micros,
            **{name: getattr(self, name) for name in known},
        )


class SessionFilter(msgspec.Struct, frozen=True):
    """Which sessions of a tenant a page shows; None lets all pass.

    The fields are in the order of the parameters of ``sessions_page.sql``.
    """

    user_id: str | None = None
    counterpart_id: str | None = None
    kind: str | None = None
    from_at: int | None = None
    """The first instant of beginning, in epoch ms."""
    to_at: int | None = None
    """The instant after the last of beginning, in epoch ms."""


class LiveSession(msgspec.Struct, frozen=True):
    """A running session, as far as Postgres knows."""

    tenant: str
    session_id: str
    is_reported: bool
    """The client counts the minutes itself."""


class ReportedSession(msgspec.Struct, frozen=True):
    """A running session with reported minutes, as far as Postgres knows."""

    tenant: str
    session_id: str
    minutes: int
    """How many minutes Postgres has."""


class SessionMinute(msgspec.Struct, frozen=True):
    """One minute of a session, as Postgres has it."""

    minute: int
    started_at: int
    seconds: int
    free_ms: int
    charged_micros: int
    month: str
    """The first day of the month in which the minute counts."""


class MissingMinute(msgspec.Struct, frozen=True):
    """A minute that a session has completed, and that Postgres lacks."""

    tenant: str
    session_id: str
    minute: int
