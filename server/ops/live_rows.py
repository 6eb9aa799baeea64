"""Rows of live sessions, as processes publish them and operators see them.

A row has the figures of one instant and their pace, so it stays right while time passes. It changes
only when something happens to its session.
"""

from typing import Any

import msgspec

from protocol.metering import limit_positions
from protocol.metering.session import SessionState, session_key
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS
from server.sessions.local_session import LocalSession
from storage.redis.encoding import burn_line_at
from storage.redis.live_feed import StoredSession


class LiveRow(msgspec.Struct, frozen=True, array_like=True):
    """A live session at the instant ``at``, in cluster time.

    ``msgspec`` reads and writes it as an array.
    """

    tenant: str
    session_id: str
    version: int
    """That of the session's last step: of two rows, the higher one is newer."""
    at: int
    user_id: str
    org_id: str | None
    account_id: str
    kind: str
    state: str
    started_at: int
    elapsed_ms: int
    pace: int
    """Counted time for each ms of real time: 0 while the session stands still."""
    credits_micros: int
    """The account's balance, after the burn of all its sessions."""
    burn_micros: int
    """What the account burns in a minute, in micro-credits."""
    limit: str | None
    remaining_ms: int | None
    metadata: dict[str, Any] | None
    nodes: tuple[str, ...]
    """The processes with sockets of the session."""

    @property
    def key(self) -> str:
        """The session's name across tenants."""
        return session_key(self.tenant, self.session_id)

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at an instant; it ends where the limit binds."""
        counted_ms = self.pace * (now_ms - self.at)
        if self.remaining_ms is not None:
            counted_ms = min(counted_ms, self.remaining_ms)
        return self.elapsed_ms + counted_ms

    def remaining_at(self, now_ms: int) -> int | None:
        """Counted time until the limit binds, at an instant; None: no limit."""
        if self.remaining_ms is None:
            return None
        return max(0, self.remaining_ms - self.pace * (now_ms - self.at))

    def credits_at(self, now_ms: int) -> int:
        """The account's balance at an instant, in micro-credits."""
        burnt_micros = self.burn_micros * (now_ms - self.at) // MINUTE_MS
        return max(min(0, self.credits_micros), self.credits_micros - burnt_micros)

    def is_newer_than(self, other: "LiveRow") -> bool:
        """Whether this row of a session has newer figures than another one."""
        return (self.version, self.at) > (other.version, other.at)


def row_of(local: LocalSession, now_ms: int) -> LiveRow | None:
    """The row of a session that is served here; None: it ended."""
    meter = local.meter
    if not meter.session.standing.version or meter.phase is Phase.ENDED:
        return None
    elapsed_ms = meter.shown_at(now_ms)
    limit = limit_positions.first(meter.positions)
    return _row(
        meter.session,
        now_ms,
        state=meter.phase,
        elapsed_ms=elapsed_ms,
        counts=meter.counting,
        credits_micros=meter.credits_at(now_ms),
        burn_micros=local.account.projection.burn_at(now_ms),
        limit=limit,
        remaining_ms=None if limit is None else max(0, meter.positions[limit] - elapsed_ms),
        nodes=(local.node,) if meter.sockets else (),
    )


def stored_row_of(stored: StoredSession, now_ms: int) -> LiveRow | None:
    """The row of a session that Redis has; None: it has ended."""
    session, account = stored.session, stored.account
    standing, grant = session.standing, session.grant
    if standing.phase is Phase.ENDED:
        return None
    counts = standing.phase is Phase.ACTIVE
    elapsed_ms = burn_line_at(session.identity, standing).elapsed_at(now_ms)
    if counts:
        elapsed_ms = max(standing.elapsed_ms, min(elapsed_ms, grant.granted_ms))
    cost_micros = burn_micros = gross_micros = 0
    if account is not None:
        gross_micros = account.gross_micros
        cost_micros = sum(line.cost_at(now_ms) for line in account.lines.values())
        burn_micros = sum(line.burn_at(now_ms) for line in account.lines.values())
    limit = grant.final
    return _row(
        session,
        now_ms,
        state=standing.phase,
        elapsed_ms=elapsed_ms,
        counts=counts,
        credits_micros=gross_micros - cost_micros,
        burn_micros=burn_micros,
        limit=limit,
        remaining_ms=None if limit is None else max(0, grant.granted_ms - elapsed_ms),
        nodes=stored.nodes,
    )


def _row(
    session: SessionState,
    now_ms: int,
    *,
    state: Phase,
    elapsed_ms: int,
    counts: bool,
    credits_micros: int,
    burn_micros: int,
    limit: str | None,
    remaining_ms: int | None,
    nodes: tuple[str, ...],
) -> LiveRow:
    identity = session.identity
    return LiveRow(
        tenant=identity.tenant,
        session_id=identity.session_id,
        version=session.standing.version,
        at=now_ms,
        user_id=identity.user_id,
        org_id=identity.org_id,
        account_id=identity.account_id,
        kind=identity.kind,
        state=state.value,
        started_at=identity.started_at,
        elapsed_ms=elapsed_ms,
        pace=identity.terms.speed if counts else 0,
        credits_micros=credits_micros,
        burn_micros=burn_micros,
        limit=limit,
        remaining_ms=remaining_ms,
        metadata=identity.metadata,
        nodes=nodes,
    )
