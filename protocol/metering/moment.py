"""The moment of a transition: a session as its process sees it."""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering.quota import NO_REST, MonthOf, Offer, Rest
from protocol.metering.session import SessionState, joined_segments
from protocol.metering.states import Phase
from protocol.metering.steps import Settling, Step


class Moment(msgspec.Struct, frozen=True):
    """A session at an instant, as the transition's process sees it."""

    session: SessionState
    month_of: MonthOf
    now_ms: int
    elapsed_ms: int
    """Counted time at ``now_ms``."""
    proven_ms: int
    """Counted time at the last proof of life."""
    seq: int
    free_over: bool
    warned: dict[str, int]
    notices: tuple[bytes, ...]
    free_left_ms: int
    """What is left of the shared allowance of free time, as far as is known."""
    alive_at: int
    """The last proof of life that this process knows of."""
    available_micros: tuple[int, int]
    """The least and the most that the account could give this session, with its charges so far."""
    present: bool
    """Whether this process has sockets of the session."""
    farewell_at: int | None
    """When the user last took leave of the session here."""
    rest: Rest = NO_REST
    """What is left on counters that the session draws on alone."""
    yields: bool = False
    """Another session needs what is merely held: running time takes no more than it needs."""
    refreshed: bool = False
    """A limit was changed: what is held beyond it is given back."""
    response_ms: int = 0
    """Response time of Redis in ms."""
    share_until: int | None = None
    """The step claims nothing beyond this instant; None: Redis decides."""
    since: int | None = None
    """When time began that begins to run with this step, by an outside clock; None: now."""

    @property
    def begins_at(self) -> int:
        """When the time begins that runs from this step on."""
        standing, terms = self.session.standing, self.session.identity.terms
        lost_at = standing.lost_at if standing.lost_at is not None else standing.at
        if standing.phase is Phase.SUSPENDED and terms.gap == "bill":
            return lost_at
        if self.since is None or not terms.is_provided:
            return self.now_ms
        since = max(self.since, self.now_ms - limits.PROVIDED_SINCE_MS_MAX)
        if standing.version:
            since = max(since, lost_at)
        return min(since, self.now_ms)

    def instant_of(self, elapsed_ms: int) -> int:
        """Returns the instant at which running time reached ``elapsed_ms``.

        For the present counted time, that may be earlier than now: where the grant ended, and with
        it the uncovered time, counting stopped before.
        """
        standing, speed = self.session.standing, self.session.identity.terms.speed
        return standing.at + -(-(elapsed_ms - standing.elapsed_ms) // speed)

    def settling(self, **changes: Any) -> Settling:
        """Returns the session's next standing, including what this process has noticed."""
        noticed = {
            "version": self.session.standing.version + 1,
            "seq": self.seq,
            "free_over": self.free_over,
            "warned": self.warned,
            "ungranted": self.ungranted,
        }
        standing = msgspec.structs.replace(self.session.standing, **{**noticed, **changes})
        return Settling(self.session.identity, self.month_of, standing)

    def offers(self, settling: Settling) -> tuple[Offer, ...]:
        """Returns the possible grants from the standing that a step makes."""
        offer_basis = settling.offer_basis()
        return offer_basis.offers(shrink=self.yields, rest=self.rest, response_ms=self.response_ms)

    def beginning_offers(self, settling: Settling) -> tuple[Offer, ...]:
        """Returns the offers from a standing at which time begins.

        Where it began before now, the offers cover the time since, as far as there is anything to
        grant.
        """
        before, terms = self.session.standing, settling.identity.terms
        past_ms = max(0, self.now_ms - settling.standing.at)
        if past_ms or (before.phase is Phase.SUSPENDED and terms.gap == "bill"):
            elapsed_ms = settling.standing.elapsed_ms + past_ms * terms.speed
            offers = settling.offer_basis().gap_offers(
                elapsed_ms, self.available_micros, self.rest, self.response_ms
            )
        else:
            offers = self.offers(settling)
        return self.shared(settling, offers)

    def shared(self, settling: Settling, offers: tuple[Offer, ...]) -> tuple[Offer, ...]:
        """Returns the ``offers`` within the session's share, if known here."""
        if self.share_until is None:
            return offers
        return settling.offer_basis().within(offers, self.share_until)

    @property
    def ungranted(self) -> tuple[tuple[int, int], ...]:
        """Time used before it was granted, up to now.

        A later step settles the part that is not proven yet, after more was granted.
        """
        before, granted_ms = self.session.standing, self.session.grant.granted_ms
        if before.phase is not Phase.ACTIVE:
            return before.ungranted
        begin_ms = max(before.settled_ms, granted_ms)
        return joined_segments(before.ungranted, begin_ms, self.elapsed_ms)

    def step(self, settling: Settling, **parts: Any) -> Step:
        """Returns the step to the standing of ``settling``."""
        return Step(
            before=self.session,
            standing=settling.standing,
            month=self.month_of(self.now_ms),
            made_at=self.now_ms,
            used_minutes=settling.used_minutes,
            records=tuple(settling.records),
            notices=self.notices,
            present=self.present,
            **parts,
        )
