"""Grants: what a claim asks for, the best offer first.

RFC 8506 (credit control) calls a grant quota: a session may use what was granted to it, and no
more. Redis, where the counters are, decides in one atomic step which offer a claim gets; this
module decides which offers there are. An offer is affordable when every counter has room for what
the offer holds beyond what the session holds already.

In plenty, the first offer is taken: to the end of the next minute, plus a margin. When less is left
than twice what the account's sessions burn in that time, the next shorter offer is considered
(DESIGN section 2). The last offer is a single increment, because an increment is billed when it
begins, and no part of an increment is available.
"""

import calendar
from collections.abc import Callable
from functools import cache

import msgspec

from protocol import limits
from protocol.metering.session import Grant, Identity, SessionState, Standing
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS, minutes_begun

MonthOf = Callable[[int], str]
"""Returns the month of an instant in the organisation's time zone: ``2026-11-01``."""


def month_ends_at(month: str, month_of: MonthOf) -> int:
    """Returns the first instant that lies in a later month than ``month``.

    A binary search finds it around the month's end in UTC: no time zone is 15 hours away.
    """
    year, number = map(int, month_after(month)[:7].split("-"))
    middle_ms = calendar.timegm((year, number, 1, 0, 0, 0)) * 1000
    low, high = middle_ms - limits.MONTH_START_SPREAD_MS, middle_ms + limits.MONTH_START_SPREAD_MS
    while low < high:
        at = (low + high) // 2
        low, high = (at + 1, high) if month_of(at) <= month else (low, at)
    return low


class Offer(msgspec.Struct, frozen=True):
    """A possible grant, and the conditions on which it is taken."""

    grant: Grant
    more_micros: int
    """What one further increment would need held; without room for it, the grant is final."""
    more_minutes: dict[str, int]
    floor_ms: int
    """The offer is taken only while the counters cover all their sessions for this time."""
    part: bool = False
    """The offer covers only a part of a billed gap: the session stops where the part ends."""
    rest: bool = False
    """The offer is the whole rest. It is taken only while the counters do not cover their sessions
    for ``floor_ms``, and only by a session that draws alone on each of these counters."""

    def within(self, other: "Offer") -> bool:
        """Whether the offer needs nothing held that ``other`` does not need."""
        held = other.grant.held_minutes
        return self.grant.held_micros <= other.grant.held_micros and all(
            minutes <= held.get(month, 0) for month, minutes in self.grant.held_minutes.items()
        )


class Rest(msgspec.Struct, frozen=True):
    """What is left where one session alone draws, if known."""

    micros: int | None = None
    """Micro-credits of the account, with the session's charges; None: others burn them too."""
    minutes: int | None = None
    """Minutes of the session, from its start, that the month covers. None: others count on the
    month too, or it has no limit."""


NO_REST = Rest()
"""No rest is known."""


def month_after(month: str) -> str:
    """Returns the month that follows ``month`` (``2026-12-01`` after ``2026-11-01``)."""
    year, number = int(month[:4]), int(month[5:7])
    return f"{year + number // 12:04d}-{number % 12 + 1:02d}-01"


def keeps_more(session: SessionState, now_ms: int) -> bool:
    """Whether a session visibly holds more credits than it needs.

    If the credits were recalled, the session's process has not answered yet.
    """
    terms, standing = session.identity.terms, session.standing
    if standing.phase is not Phase.ACTIVE or not terms.price_micros:
        return False
    run_ms = max(0, now_ms - standing.at) + limits.GRANT_SHRUNKEN_MS[-1]
    until_ms = standing.elapsed_ms + run_ms * terms.speed
    needed_micros = terms.cost_micros(until_ms, standing.free_ms) - standing.charged_micros
    return session.grant.held_micros > max(0, needed_micros)


def keeps_more_minutes(session: SessionState, now_ms: int) -> bool:
    """As ``keeps_more``, for the minutes of a month that a session holds."""
    terms, standing = session.identity.terms, session.standing
    if standing.phase is not Phase.ACTIVE or not terms.counts_minutes:
        return False
    run_ms = max(0, now_ms - standing.at) + limits.GRANT_SHRUNKEN_MS[-1]
    until_ms = standing.elapsed_ms + run_ms * terms.speed
    if terms.price_micros:  # a part of an increment cannot be given back
        until_ms = terms.increment_end_ms(until_ms, standing.free_ms)
    needed = minutes_begun(until_ms)
    held = sum(session.grant.held_minutes.values())
    return held > needed - minutes_begun(standing.settled_ms)


def _thinned(begin_ms: int, end_ms: int, every_ms: int, most: int) -> range:
    """Returns positions at equal distances; wider distances bound their number by ``most``."""
    count = max(0, end_ms - begin_ms) // every_ms
    return range(begin_ms, end_ms, every_ms * max(1, -(-count // most)))


class OfferBasis(msgspec.Struct, frozen=True):
    """The claim's standing, from which a session's offers are measured."""

    identity: Identity
    standing: Standing
    month_of: MonthOf

    def minute_begins_at(self, minute: int) -> int:
        """Returns when a minute began, or will begin in running time."""
        if minute <= self.standing.minutes_kept:
            return self.standing.minute_at
        return self.instant_of(minute * MINUTE_MS)

    def instant_of(self, elapsed_ms: int) -> int:
        """Returns the instant at which running time reaches ``elapsed_ms``."""
        standing = self.standing
        ahead_ms = elapsed_ms - standing.elapsed_ms
        return standing.at + -(-ahead_ms // self.identity.terms.speed)

    def minutes_by_month(self, settled_ms: int, until_ms: int) -> dict[str, int]:
        """Returns the minutes that begin between two positions, counted by month.

        A minute belongs to the month in which it starts (DESIGN section 3).
        """
        months: dict[str, int] = {}
        if self.identity.terms.counts_minutes:
            for minute in range(minutes_begun(settled_ms), minutes_begun(until_ms)):
                month = self.month_of(self.minute_begins_at(minute))
                months[month] = months.get(month, 0) + 1
        return months

    def held_micros(self, until_ms: int) -> int:
        """Returns the micro-credits to hold for running until ``until_ms``."""
        standing, terms = self.standing, self.identity.terms
        return max(0, terms.cost_micros(until_ms, standing.free_ms) - standing.charged_micros)

    def offer(self, until_ms: int, floor_ms: int, *, within_ms: int | None = None) -> Offer:
        """Returns the offer up to ``until_ms``, rounded up to increments.

        ``within_ms`` is an upper bound of the grant's end, in the middle of an increment if
        necessary.
        """
        standing, terms = self.standing, self.identity.terms
        cap_ms = terms.session_cap_ms
        granted_ms = until_ms
        if terms.price_micros:
            granted_ms = max(until_ms, terms.increment_end_ms(until_ms, standing.free_ms))
        if within_ms is not None:
            granted_ms = min(granted_ms, within_ms)
        final = None
        if cap_ms and granted_ms >= cap_ms:
            granted_ms, final = cap_ms, "session_cap"
        further_ms = granted_ms + 1
        if terms.price_micros:
            further_ms = terms.increment_end_ms(further_ms, standing.free_ms)
        if terms.counts_minutes:
            further_ms = min(further_ms, (granted_ms // MINUTE_MS + 1) * MINUTE_MS)
        return Offer(
            grant=Grant(
                granted_ms=granted_ms,
                held_micros=self.held_micros(granted_ms),
                held_minutes=self.minutes_by_month(standing.settled_ms, granted_ms),
                final=final,
            ),
            more_micros=self.held_micros(further_ms),
            more_minutes=self.minutes_by_month(standing.settled_ms, further_ms),
            floor_ms=floor_ms,
        )

    def offers(
        self, *, shrink: bool, rest: Rest = NO_REST, response_ms: int = 0
    ) -> tuple[Offer, ...]:
        """Returns every offer beyond the present position, the longest first.

        The whole rest comes before the others, if it is low. ``shrink`` leaves the long offers out:
        a holder that is recalled keeps no more than it needs to run on. The next claim's answer
        must arrive before a grant ends, so if answers take longer (``response_ms``), the shortest
        offers are longer too.

        Where minutes are counted, a begun minute can be used to its end. So an offer beyond the
        minute's end is also made up to that end: the next minute may not be available. A session
        that costs nothing has no smaller part than that. Its offers also reach to the end of the
        minute that begins before the next claim can be answered.
        """
        standing, terms = self.standing, self.identity.terms
        position_ms, speed = standing.elapsed_ms, terms.speed
        minute_end_ms = (position_ms // MINUTE_MS + 1) * MINUTE_MS
        wanted: list[tuple[int, int]] = []
        if not shrink:
            increment_ms = terms.next_increment_ms if terms.price_micros else 0
            margin_ms = max(increment_ms, limits.GRANT_MARGIN_MS_MIN * speed)
            floor_ms = limits.GRANT_LOW_MINUTES * MINUTE_MS
            wanted.append((minute_end_ms + margin_ms, floor_ms))
            wanted.append((position_ms + limits.GRANT_SHRUNKEN_MS[0] * speed, floor_ms // 6))
            if 2 * response_ms > limits.GRANT_SHRUNKEN_MS[1]:
                wanted.append((position_ms + 2 * response_ms * speed, 0))
        shrunken_ms = position_ms + limits.GRANT_SHRUNKEN_MS[1] * speed
        if terms.price_micros or not terms.counts_minutes:
            wanted.append((shrunken_ms, 0))
            wanted.append((position_ms + 1, 0))
        else:
            wanted.append((minutes_begun(shrunken_ms) * MINUTE_MS, 0))
            wanted.append((minute_end_ms, 0))
        found: dict[int, Offer] = {}
        for until_ms, floor_ms in wanted:
            self._add(found, self.offer(until_ms, floor_ms))
            if terms.counts_minutes:
                self._add(found, self.offer(until_ms, floor_ms, within_ms=minute_end_ms))
        ordered = tuple(sorted(found.values(), key=lambda offer: -offer.grant.granted_ms))
        return ordered if shrink else (*self._rest_offers(rest), *ordered)

    def within(self, offers: tuple[Offer, ...], until: int) -> tuple[Offer, ...]:
        """Returns the ``offers`` that are used up by the instant ``until``.

        An offer that ends at that instant replaces the longer ones.
        """
        standing, terms = self.standing, self.identity.terms
        end_ms = standing.elapsed_ms + (until - standing.at) * terms.speed
        if terms.price_micros:
            end_ms = terms.increment_end_ms(max(0, end_ms), standing.free_ms)
        kept = tuple(offer for offer in offers if offer.grant.granted_ms <= end_ms)
        if len(kept) == len(offers) or end_ms <= standing.elapsed_ms:
            return kept
        ends_there = any(offer.grant.granted_ms == end_ms for offer in kept)
        return kept if ends_there else (self.offer(end_ms, 0, within_ms=end_ms), *kept)

    def _rest_offers(self, rest: Rest) -> tuple[Offer, ...]:
        """Returns the offer of the whole rest if it is low."""
        standing, terms = self.standing, self.identity.terms
        ends = []
        if rest.micros is not None and terms.price_micros:
            ends.append(terms.affordable_ms(max(0, rest.micros), standing.free_ms) or 0)
        if rest.minutes is not None and terms.counts_minutes:
            ends.append(rest.minutes * MINUTE_MS)
        low_ms = limits.GRANT_LOW_MINUTES * MINUTE_MS
        if not ends or not 0 < min(ends) - standing.elapsed_ms <= low_ms * terms.speed:
            return ()
        offer = self.offer(min(ends), low_ms, within_ms=min(ends))
        return (msgspec.structs.replace(offer, rest=True),)

    def gap_offers(
        self,
        until_ms: int,
        available_micros: tuple[int, int],
        rest: Rest = NO_REST,
        response_ms: int = 0,
    ) -> tuple[Offer, ...]:
        """Returns the offers for past time, and for time beyond ``until_ms``.

        A session that gets less than that stands still where its grant ends. So each offer names
        the next longer offer as the need of more: if the longer one is not available, the offer is
        final. ``available_micros`` is the least and the most that the account may have for the
        session. Between the two, each increment is offered.
        """
        here = msgspec.structs.replace(
            self.standing, elapsed_ms=until_ms, at=self.instant_of(until_ms)
        )
        beyond = msgspec.structs.replace(self, standing=here).offers(
            shrink=False, rest=rest, response_ms=response_ms
        )
        offers = list(beyond)
        # Most parts have the same minutes.
        each = msgspec.structs.replace(self, month_of=cache(self.month_of))
        for position_ms in self._parts(until_ms, *available_micros):
            part, longer = each.offer(position_ms, 0, within_ms=position_ms), offers[-1].grant
            offers.append(
                msgspec.structs.replace(
                    part,
                    more_micros=longer.held_micros,
                    more_minutes=longer.held_minutes,
                    part=True,
                )
            )
        return tuple(offers)

    def _parts(self, until_ms: int, least_micros: int, most_micros: int) -> list[int]:
        """Returns positions on the way to ``until_ms``, the farthest first.

        These are the ends of what the account is thought to have, and the ends of minutes and
        increments. Their number is bounded.
        """
        terms, free_ms = self.identity.terms, self.standing.free_ms
        begin_ms = self.standing.elapsed_ms
        if terms.session_cap_ms:
            until_ms = min(until_ms, terms.session_cap_ms)
        found: set[int] = set()
        if terms.counts_minutes:
            minute_ms = begin_ms // MINUTE_MS * MINUTE_MS
            found.update(_thinned(minute_ms, until_ms, MINUTE_MS, limits.GAP_MINUTES_MAX))
        if terms.price_micros:
            first_ms, next_ms = free_ms + terms.first_increment_ms, terms.next_increment_ms
            least_ms, most_ms = (
                terms.affordable_ms(max(0, micros), free_ms) or 0
                for micros in (least_micros, most_micros)
            )
            found.update((free_ms, most_ms))
            found.update(_thinned(first_ms, until_ms, next_ms, limits.GAP_PARTS_MAX))
            near_ms, end_ms = max(first_ms, least_ms), min(most_ms, until_ms)
            found.update(_thinned(near_ms, end_ms, next_ms, limits.GAP_PARTS_MAX))
        return sorted((at for at in found if begin_ms < at < until_ms), reverse=True)

    def _add(self, found: dict[int, Offer], offer: Offer) -> None:
        granted_ms = offer.grant.granted_ms
        if granted_ms > self.standing.elapsed_ms or offer.grant.final:
            known = found.get(granted_ms)
            if known is None or known.floor_ms > offer.floor_ms:
                found[granted_ms] = offer
