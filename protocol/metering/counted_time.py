"""Counted time: how it runs on from where a session stands.

Counted time is a straight line from the last standing, at the speed of the terms. It ends where the
grant ends. If Redis does not answer, it runs on uncovered for a while beyond a grant that is not
final, but never beyond a limit that is known here. All methods here answer questions about that
line.
"""

from collections.abc import Mapping

from protocol import limits
from protocol.metering.session import SessionState
from protocol.metering.states import Phase


class CountedTime:
    """The counted time of one session from one standing.

    A new standing needs a new object.
    """

    def __init__(self, session: SessionState, uncovered_ms: int, response_ms: int = 0) -> None:
        standing, grant, terms = session.standing, session.grant, session.identity.terms
        self.speed = terms.speed
        self.settled_ms = standing.settled_ms
        self.running = standing.phase is Phase.ACTIVE
        self.granted_ms = grant.granted_ms
        self.is_final = grant.final is not None
        self.end_ms = grant.granted_ms
        """Counted time at which counting ends in any case."""
        self.end_limit: str | None = grant.final
        """The limit that ends counting there; None: the uncovered time is used up."""
        self.is_sure = True
        """The end depends on no counter: it is the end of a grant, or the cap."""
        self.revision = -1
        """The revision that the end follows from (``bind``); -1: no counter is known yet."""
        if not self.is_final:
            self.end_ms += uncovered_ms * terms.speed
            if 0 < terms.session_cap_ms <= self.end_ms:
                self.end_ms, self.end_limit = terms.session_cap_ms, "session_cap"
        self._unbound = self.end_ms, self.end_limit
        self.claim_ms: int | None = None
        """Counted time at which a claim extends the grant; None for a final grant."""
        self._elapsed_ms = standing.elapsed_ms
        self._at = standing.at
        if self.running and not self.is_final:
            increment_ms = terms.next_increment_ms if terms.price_micros else 0
            margin_ms = max(increment_ms, limits.GRANT_MARGIN_MS_MIN * terms.speed)
            left_ms = max(0, grant.granted_ms - standing.elapsed_ms)
            lead_ms = min(margin_ms - limits.CLAIM_PROOF_WAIT_MS * terms.speed, left_ms // 2)
            # The answer must arrive before the grant ends.
            lead_ms = max(lead_ms, min(response_ms * terms.speed, left_ms))
            self.claim_ms = grant.granted_ms - lead_ms

    def bind(self, ends: Mapping[str, int], revision: int, counted_ms: int = 0) -> None:
        """Ends time that no grant covers at the first limit in ``ends``.

        ``ends`` has the counted time of each limit by name, computed from ``revision``. Time that
        was counted already stays counted.
        """
        self.revision = revision
        if self.is_final:
            return
        self.end_ms, self.end_limit = self._unbound
        self.is_sure = True
        for limit, limit_ms in ends.items():
            end_ms = max(limit_ms, self.granted_ms, counted_ms)
            if end_ms < self.end_ms:
                self.end_ms, self.end_limit, self.is_sure = end_ms, limit, False

    def run_on(self, now_ms: int) -> int:
        """Counted time at ``now_ms``, as if there were no end."""
        return self._elapsed_ms + (now_ms - self._at) * self.speed

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at ``now_ms``."""
        if not self.running:
            return self._elapsed_ms
        return max(self.settled_ms, min(self.run_on(now_ms), self.end_ms))

    def instant_of(self, elapsed_ms: int) -> int:
        """The instant at which running time reaches ``elapsed_ms``."""
        return self._at + -(-(elapsed_ms - self._elapsed_ms) // self.speed)

    def proven_ms(self, alive_at: int) -> int:
        """Counted time of a standing session at a proof of life.

        This time may be settled.
        """
        unproven_ms = max(0, self._at - alive_at) * self.speed
        return max(self.settled_ms, self._elapsed_ms - unproven_ms)
