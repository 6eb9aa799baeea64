"""Steps: changes of a session, made by Redis wholly or never.

A step is computed from the last known state of the session, and is accepted only if no other step
came first. It carries the version that it was computed from, and its figures are final. Redis adds
the one thing that only Redis can know: which of the offered grants there is room for.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering.quota import MonthOf, Offer, OfferBasis
from protocol.metering.records import MinuteUsed, Record, SessionEnded, SessionStarted
from protocol.metering.session import Grant, Identity, SessionState, Standing, joined_segments
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS
from protocol.wire import messages
from protocol.wire.codec import encode
from protocol.wire.money import format_credits


class StartBasis(msgspec.Struct, frozen=True):
    """The data that the start of a session was decided from.

    Redis refuses a start whose basis has changed: the data was read before the session was
    prepared, or before Redis lost data.
    """

    epoch: str
    """The life of Redis's data in which the data was read."""
    preparation: str = ""
    """The fingerprint of the session's preparation; empty: there was none."""


class Step(msgspec.Struct, frozen=True):
    """One atomic change of a session."""

    before: SessionState
    standing: Standing
    """The session's next standing; its version is one higher."""
    month: str
    """The month in which the step is made, by the organisation's calendar."""
    offers: tuple[Offer, ...] = ()
    """Grants to choose from, the best first. Empty: what is held is given back."""
    keep: Offer | None = None
    """The grant that is always affordable: what is held already and not yet used. Without it, Redis
    refuses the step when no offer fits (a start, a resume)."""
    used_minutes: dict[str, int] = {}
    """Minutes that this step settles on the month's counters."""
    free_taken_ms: int = 0
    """Free time taken from a shared allowance; negative: given back."""
    records: tuple[Record, ...] = ()
    notices: tuple[bytes, ...] = ()
    """Encoded, numbered notices; Redis keeps them for clients that missed them."""
    present: bool = False
    """The sending process has sockets of the session, and Redis notes that."""
    leaving: bool = False
    """The step is made only if this process has the session's last socket; else the process just
    leaves."""
    farewell_at: int | None = None
    """With ``leaving``: when the user took leave. Earlier heartbeats on other processes end."""
    recalled: bool = False
    """Other sessions were already asked to give back what they do not need."""
    basis: StartBasis | None = None
    """What a start was decided from; None for other steps."""
    made_at: int = 0
    """The instant at which the step was computed, in cluster time. The standing of a session that
    stood still is much older."""
    insists: bool = False
    """Other sessions had the time to give back: the step takes whatever is available now."""

    rehearsed: bool = False
    """The step is not made: Redis only answers as if it were. Only a start is rehearsed."""
    due_micros: int = 0
    """With ``rehearsed``: credits that a start would add to the account before."""

    @property
    def waits_for_others(self) -> bool:
        """Whether the step starts running time that can claim nothing now.

        Redis does not yet know what other sessions of the account have used. The step is sent when
        Redis does.
        """
        return self.standing.phase is Phase.ACTIVE and not self.offers and self.keep is None

    @property
    def charge_micros(self) -> int:
        """Micro-credits that this step charges the account."""
        return self.standing.charged_micros - self.before.standing.charged_micros

    @property
    def minutes(self) -> tuple[MinuteUsed, ...]:
        """The minutes that this step completes."""
        return tuple(record for record in self.records if isinstance(record, MinuteUsed))

    @property
    def minute_messages(self) -> tuple[bytes, ...]:
        """The messages to the session's sockets about those minutes."""
        return tuple(
            encode(
                messages.Minute(
                    session_id=minute.session_id,
                    minute=minute.minute,
                    seconds=minute.seconds,
                    credits=format_credits(minute.credits_micros),
                )
            )
            for minute in self.minutes
        )


class Settling(msgspec.Struct):
    """A standing that moves forward, with the records it produces."""

    identity: Identity
    month_of: MonthOf
    standing: Standing
    used_minutes: dict[str, int] = msgspec.field(default_factory=dict)
    records: list[Record] = msgspec.field(default_factory=list)

    def offer_basis(self) -> OfferBasis:
        """Returns the basis that offers are measured from."""
        return OfferBasis(self.identity, self.standing, self.month_of)

    def settle(self, to_ms: int) -> None:
        """Charges time up to ``to_ms`` and keeps the minutes it completes.

        One call settles at most ``MINUTES_PER_CLAIM_MAX`` minutes; the next claim settles the rest.
        A position that is settled already changes nothing.
        """
        standing, terms = self.standing, self.identity.terms
        to_ms = min(to_ms, (standing.minutes_kept + limits.MINUTES_PER_CLAIM_MAX) * MINUTE_MS)
        if to_ms <= standing.settled_ms:
            return
        offer_basis = self.offer_basis()
        self.used_minutes = offer_basis.minutes_by_month(standing.settled_ms, to_ms)
        cost_micros = terms.cost_micros(to_ms, standing.free_ms)
        changes: dict[str, Any] = {
            "settled_ms": to_ms,
            # Free time that came late can make the cost less than the charge so far. Nothing is
            # given back here; the difference covers the time that follows.
            "charged_micros": max(standing.charged_micros, cost_micros),
            "uncovered_ms": standing.uncovered_ms
            + sum(
                max(0, min(to_ms, end_ms) - max(standing.settled_ms, begin_ms))
                for begin_ms, end_ms in standing.ungranted
            ),
            "ungranted": tuple(part for part in standing.ungranted if part[1] > to_ms),
        }
        while self.standing.minute_end_ms <= to_ms:
            self._keep_minute(offer_basis, self.standing.minute_end_ms)
        self.standing = standing = msgspec.structs.replace(self.standing, **changes)
        if standing.counted_minutes > standing.minutes_kept and not standing.minute_month:
            month = self.month_of(standing.minute_at)
            self.standing = msgspec.structs.replace(standing, minute_month=month)

    def _keep_minute(self, offer_basis: OfferBasis, end_ms: int) -> None:
        standing, identity = self.standing, self.identity
        charged_micros = max(
            standing.minute_charged_micros,
            identity.terms.cost_micros(end_ms, standing.free_ms),
        )
        minute = standing.minutes_kept
        begin_ms = minute * MINUTE_MS
        self.records.append(
            minute_record(
                identity,
                minute,
                seconds=min(60, -(-(end_ms - begin_ms) // 1000)),
                started_at=standing.minute_at,
                month=standing.minute_month or self.month_of(standing.minute_at),
                counts=identity.terms.counts_minutes,
                credits_micros=charged_micros - standing.minute_charged_micros,
                free_ms=min(standing.free_ms, end_ms) - min(standing.free_ms, begin_ms),
            )
        )
        self.standing = msgspec.structs.replace(
            standing,
            minutes_kept=minute + 1,
            minute_at=offer_basis.minute_begins_at(minute + 1),
            minute_month="",
            minute_charged_micros=charged_micros,
        )

    def halt(self, at: int) -> None:
        """Closes the open segment at the position of the standing."""
        standing = self.standing
        self.standing = msgspec.structs.replace(
            standing, segments=joined_segments(standing.segments, standing.run_at, at)
        )

    def end(self, at: int, reason: str, limit: str | None) -> None:
        """Ends the session: its last minute, and its receipt's figures."""
        standing = self.standing
        if standing.elapsed_ms > standing.minutes_kept * MINUTE_MS:
            self._keep_minute(self.offer_basis(), standing.elapsed_ms)
        self.standing = standing = msgspec.structs.replace(
            self.standing,
            phase=Phase.ENDED,
            ended_at=at,
            reason=reason,
            limit=limit,
            grace_until=None,
            free_ms=min(standing.free_ms, standing.elapsed_ms),
        )
        self.records.append(ended_record(self.identity, standing))


def minute_record(
    identity: Identity,
    minute: int,
    *,
    seconds: int,
    started_at: int,
    month: str,
    counts: bool,
    credits_micros: int,
    free_ms: int,
) -> MinuteUsed:
    """Returns the record of a session's minute, by the minute's number."""
    return MinuteUsed(
        tenant=identity.tenant,
        session_id=identity.session_id,
        minute=minute,
        seconds=seconds,
        user_id=identity.user_id,
        org_id=identity.org_id,
        account_id=identity.account_id,
        counterpart_id=identity.counterpart_id,
        kind=identity.kind,
        started_at=started_at,
        month=month,
        counts=counts,
        credits_micros=credits_micros,
        free_ms=free_ms,
    )


def started_record(identity: Identity) -> SessionStarted:
    """Returns the record of a session that begins."""
    return SessionStarted(
        tenant=identity.tenant,
        session_id=identity.session_id,
        user_id=identity.user_id,
        org_id=identity.org_id,
        account_id=identity.account_id,
        counterpart_id=identity.counterpart_id,
        kind=identity.kind,
        started_at=identity.started_at,
        terms=identity.terms,
        metadata=identity.metadata,
        is_reported=identity.is_reported,
    )


def ended_record(identity: Identity, standing: Standing) -> SessionEnded:
    """Returns the record of an ended session: its receipt's figures."""
    assert standing.ended_at is not None
    assert standing.reason is not None
    started_at, ended_at = identity.started_at, standing.ended_at
    if identity.is_reported and standing.segments:
        # The client's clock dates the minutes. It may be ahead, and minutes come in any order.
        started_at = min(started_at, standing.segments[0][0])
        ended_at = max(ended_at, standing.segments[-1][1])
    return SessionEnded(
        tenant=identity.tenant,
        session_id=identity.session_id,
        user_id=identity.user_id,
        org_id=identity.org_id,
        account_id=identity.account_id,
        counterpart_id=identity.counterpart_id,
        kind=identity.kind,
        started_at=started_at,
        ended_at=ended_at,
        reason=standing.reason,
        limit=standing.limit,
        elapsed_ms=standing.elapsed_ms,
        free_ms=standing.free_ms,
        billed_ms=identity.terms.billed_ms(standing.elapsed_ms, standing.free_ms),
        minutes=standing.minutes_kept,
        credits_micros=standing.charged_micros,
        uncovered_ms=standing.uncovered_ms,
        segments=list(standing.segments),
        gaps=list(standing.gaps),
        terms=identity.terms,
        metadata=identity.metadata,
        is_reported=identity.is_reported,
    )


def kept_offer(offer_basis: OfferBasis, before: SessionState) -> Offer:
    """Returns a session's present grant as an offer.

    It is always affordable, because it is held. A month's limit may end it inside an increment. The
    rest of that increment needs no further credits, so what more would need counts from there.

    Time used beyond the grant keeps its place, but nothing is held for that time any more. What the
    step charges beyond what was held is debt already.
    """
    standing, grant = offer_basis.standing, before.grant
    granted_ms = max(grant.granted_ms, standing.elapsed_ms)
    charge_micros = standing.charged_micros - before.standing.charged_micros
    left_micros = max(0, grant.held_micros - charge_micros)
    offer = offer_basis.offer(granted_ms, 0, within_ms=granted_ms)
    return msgspec.structs.replace(
        offer,
        grant=Grant(
            granted_ms=granted_ms,
            held_micros=min(offer_basis.held_micros(granted_ms), left_micros),
            held_minutes=offer_basis.minutes_by_month(standing.settled_ms, grant.granted_ms),
            final=offer.grant.final,
        ),
    )
