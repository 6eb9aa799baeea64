"""The course of a session: how its counted time runs on from where it stands.

Counted time is a straight line from the last standing, at the terms' speed, that ends
where the grant ends; beyond a grant that is not final it goes on uncovered for a while,
when Redis does not answer. Everything here is a question about that line.
"""

from protocol import limits
from protocol.session import Session
from protocol.states import Phase

PROOF_WAIT_MS = 1_000
"""How long the claim of a minute waits for a proof of life before the grant is extended."""


class Course:
    """The line of one session, from one standing; another standing is another course."""

    def __init__(self, session: Session, uncovered_ms: int) -> None:
        standing, grant, terms = session.standing, session.grant, session.identity.terms
        self.speed = terms.speed
        self.settled_ms = standing.settled_ms
        self.running = standing.phase is Phase.ACTIVE
        self.uncovered_end_ms = grant.granted_ms + uncovered_ms * terms.speed
        """Where time that no grant covers ends too."""
        self.end_ms = grant.granted_ms if grant.final else self.uncovered_end_ms
        """Where counting ends, whatever happens."""
        self.is_capped = not grant.final and 0 < terms.session_cap_ms <= self.end_ms
        """It ends at the session's cap, which needs no grant to be known."""
        if self.is_capped:
            self.end_ms = terms.session_cap_ms
        self.claim_ms: int | None = None
        """Where the grant is to be extended; None for one that is final."""
        self._elapsed_ms = standing.elapsed_ms
        self._at = standing.at
        if self.running and grant.final is None:
            increment_ms = terms.next_increment_ms if terms.price_micros else 0
            margin_ms = max(increment_ms, limits.GRANT_MARGIN_MS_MIN * terms.speed)
            lead_ms = min(
                margin_ms - PROOF_WAIT_MS * terms.speed,
                (grant.granted_ms - standing.elapsed_ms) // 2,
            )
            self.claim_ms = grant.granted_ms - lead_ms

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at ``now_ms``."""
        if not self.running:
            return self._elapsed_ms
        elapsed_ms = self._elapsed_ms + (now_ms - self._at) * self.speed
        return max(self.settled_ms, min(elapsed_ms, self.end_ms))

    def instant_of(self, elapsed_ms: int) -> int:
        """The instant at which running time reaches ``elapsed_ms``."""
        return self._at + -(-(elapsed_ms - self._elapsed_ms) // self.speed)

    def proven_ms(self, alive_at: int, now_ms: int) -> int:
        """Counted time at the last proof of life: what may be settled."""
        if self.running:
            return self.elapsed_at(min(now_ms, alive_at))
        unproven_ms = max(0, self._at - alive_at) * self.speed
        return max(self.settled_ms, self._elapsed_ms - unproven_ms)
