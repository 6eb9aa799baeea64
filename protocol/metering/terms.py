"""What a session is charged by: price, increments, free time and bounds.

This module has the one function from counted time to money.

The charge is a pure function of counted time (DESIGN section 7)::

    cost(elapsed) = price x billed(max(0, elapsed - free))
    billed(t)     = 0 if t = 0 else I if t <= I else I + ceil((t - I) / N) x N

The function is evaluated on the whole session and rounded once, so a pause inside an
increment, a reconnect and a repeated claim cannot round twice. A claim charges the
difference to what was charged before.
"""

from typing import Literal

import msgspec

from protocol import limits

MINUTE_MS = 60_000

FreeScope = Literal["session", "pair", "day"]
Gap = Literal["skip", "bill"]
Clock = Literal["server", "provider"]
Enforce = Literal["none", "participant", "call"]


class Terms(msgspec.Struct, frozen=True):
    """A session's terms, fixed at its start, the same on every process.

    They come from a kind of the rate card (``protocol.rate_card``) and, for prepared sessions, from
    the backend. All times are counted milliseconds.
    """

    kind: str
    price_micros: int
    """Micro-credits for each billed minute."""
    free_ms: int
    free_scope: FreeScope
    first_increment_ms: int
    next_increment_ms: int
    counts_minutes: bool
    warn_at_ms: tuple[int, ...]
    """Thresholds of ``limit_warning``, highest first."""
    stop_grace_ms: int
    reconnect_grace_ms: int
    gap: Gap
    session_cap_ms: int
    """The longest counted time; 0: no bound."""
    tick_ms: int
    speed: int = 1
    """Counted milliseconds for each real one: 1, except in a demonstration."""
    max_live_sessions: int = 0
    """Most live sessions of this kind for one user; 0: no bound."""
    clock: Clock = "server"
    """Whose word decides when time runs. With ``provider``, an outside service says when the user
    is there: absence is never billed, and only that service's word ends the session."""
    tolerance_ms: int = 2_000
    """With an outside clock: a difference up to this is left as it is."""
    enforce: Enforce = "none"
    """With an outside clock: what the outside service must end at a limit."""

    @property
    def is_provided(self) -> bool:
        """Whether an outside service's word decides when time runs."""
        return self.clock == "provider"

    @property
    def lost_grace_ms(self) -> int:
        """How long a session without sockets waits for a return.

        With an outside clock that clock ends the session, so only its silence is bounded.
        """
        return limits.PROVIDED_SILENCE_MS_MAX if self.is_provided else self.reconnect_grace_ms

    def with_unknown_counterpart(self) -> "Terms":
        """Returns the terms of a session whose counterpart no backend has named.

        Free time of the scope ``pair`` begins anew with each counterpart, and a browser can invent
        any number of counterparts. So there is none here.
        """
        return msgspec.structs.replace(self, free_ms=0) if self.free_scope == "pair" else self

    def billed_ms(self, elapsed_ms: int, free_ms: int) -> int:
        """Returns the billed time, in whole increments, of ``elapsed_ms`` with ``free_ms`` free."""
        paid_ms = elapsed_ms - free_ms
        if paid_ms <= 0:
            return 0
        first_ms = self.first_increment_ms
        if paid_ms <= first_ms:
            return first_ms
        next_ms = self.next_increment_ms
        return first_ms + -(-(paid_ms - first_ms) // next_ms) * next_ms

    def cost_micros(self, elapsed_ms: int, free_ms: int) -> int:
        """Returns the cost of the whole session so far, in micro-credits.

        A fraction of a micro-credit is dropped, once a session, in the user's favour.
        """
        return self.price_micros * self.billed_ms(elapsed_ms, free_ms) // MINUTE_MS

    def minute_micros(
        self, begin_ms: int, end_ms: int, *, free_ms: int, charged_micros: int, is_newest: bool
    ) -> int:
        """Returns a minute's part of what its session was charged, in micro-credits.

        Free time that came late may have lowered the cost below the charge. The newest minute takes
        the difference, so that all parts together equal the charge.
        """
        cost_micros = min(self.cost_micros(begin_ms, free_ms), charged_micros)
        if is_newest:
            return charged_micros - cost_micros
        return min(self.cost_micros(end_ms, free_ms), charged_micros) - cost_micros

    def increment_end_ms(self, elapsed_ms: int, free_ms: int) -> int:
        """Returns the counted time at which the increment of ``elapsed_ms`` ends.

        A position on a boundary belongs to the increment that ends there: an increment is billed
        when it begins, and only then. Within free time, the result is the end of free time.
        """
        if elapsed_ms <= free_ms:
            return free_ms
        return free_ms + self.billed_ms(elapsed_ms, free_ms)

    def affordable_ms(self, micros: int, free_ms: int) -> int | None:
        """Returns the longest time for at most ``micros``; None: no bound."""
        if self.price_micros == 0:
            return None
        # The largest b with price * b // 60000 <= micros.
        billable_ms = ((micros + 1) * MINUTE_MS - 1) // self.price_micros
        if billable_ms < self.first_increment_ms:
            return free_ms
        further = (billable_ms - self.first_increment_ms) // self.next_increment_ms
        return free_ms + self.first_increment_ms + further * self.next_increment_ms


def minutes_begun(elapsed_ms: int) -> int:
    """Returns how many of a session's minutes have begun: one row each."""
    return -(-elapsed_ms // MINUTE_MS)
