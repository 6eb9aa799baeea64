"""What a process knows of the counters that its sessions draw on, projected to an instant.

Between two messages from Redis nothing is asked: an account's balance is what it was,
less what its sessions have burnt since, and every process can compute that alone. The
figure that makes it simple is the account's *gross*: the balance plus all that its live
sessions were charged so far. Claims move money from the one to the other and leave the
gross as it is, so it changes only with money in, spends and ends of sessions::

    credits(now) = gross - sum of cost(elapsed(now)) over the live sessions
"""

import math
from bisect import bisect_left, insort

import msgspec

from protocol import limits
from protocol.metering.terms import MINUTE_MS, Terms


class BurnLine(msgspec.Struct, frozen=True):
    """One live session as its account sees it: how it burns, from which anchor."""

    elapsed_ms: int
    at: int
    free_ms: int
    price_micros: int
    first_increment_ms: int
    next_increment_ms: int
    speed: int
    running: bool

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at ``now_ms``."""
        if not self.running:
            return self.elapsed_ms
        return self.elapsed_ms + max(0, now_ms - self.at) * self.speed

    def cost_at(self, now_ms: int) -> int:
        """Cost of the session up to ``now_ms``, in micro-credits."""
        return self.cost_of(self.elapsed_at(now_ms))

    def cost_of(self, elapsed_ms: int) -> int:
        """Cost of the session up to a counted time, in micro-credits."""
        paid_ms = elapsed_ms - self.free_ms
        if paid_ms <= 0:
            return 0
        first_ms, next_ms = self.first_increment_ms, self.next_increment_ms
        further_ms = max(0, -(-(paid_ms - first_ms) // next_ms)) * next_ms
        return self.price_micros * (first_ms + further_ms) // MINUTE_MS

    @property
    def burn_micros(self) -> int:
        """Micro-credits burnt in a real minute of paid time."""
        return self.price_micros * self.speed if self.running else 0

    @property
    def paid_from(self) -> int:
        """The instant from which running time is paid, times ``burn_micros``: exact, where
        the instant itself may be a fraction."""
        return self.price_micros * (self.speed * self.at + self.free_ms - self.elapsed_ms)


def burn_line_of(
    terms: Terms, elapsed_ms: int, at: int, free_ms: int, *, running: bool
) -> BurnLine:
    """The line of a session with ``terms`` that stands at ``elapsed_ms`` since ``at``."""
    return BurnLine(
        elapsed_ms=elapsed_ms,
        at=at,
        free_ms=free_ms,
        price_micros=terms.price_micros,
        first_increment_ms=terms.first_increment_ms,
        next_increment_ms=terms.next_increment_ms,
        speed=terms.speed,
        running=running,
    )


class Granted(msgspec.Struct, frozen=True):
    """What a session that is served here may use in any case."""

    until_ms: int
    """Counted time."""
    is_final: bool
    """The session stops there."""


class AccountProjection:
    """One account on one process.

    ``replace`` and ``apply`` take what Redis says; everything else is a question. The
    version tells whether a message was missed: ``apply`` answers False then, and the
    shell reads the account anew.

    An account may have hundreds of sessions, and each change of one of them is asked about by
    all. So what the lines add up to is kept as sums: a change costs as much with a thousand
    lines as with ten, and so does a question, but for the sum of every ``BURN_SUM_KEPT_MS``.
    """

    __slots__ = (
        "_beginnings", "_begun", "_burning", "_dry_at", "_dry_known", "_idle_micros", "_paid_from",
        "_rate", "_since", "_sum_at", "_sum_micros", "account_id", "beginning", "cover", "granted",
        "gross_micros", "lines", "reserved_micros", "revision", "tenant", "uncovered", "version",
    )  # fmt: skip

    def __init__(self, tenant: str, account_id: str) -> None:
        self.tenant = tenant
        self.account_id = account_id
        self.version = -1
        self.gross_micros = 0
        self.reserved_micros = 0
        """Held for operations, not for time."""
        self.lines: dict[str, BurnLine] = {}
        self.granted: dict[str, Granted] = {}
        """What sessions that are served here were granted; see ``protocol.metering.cover``."""
        self.uncovered: set[str] = set()
        """Sessions that are served here and run on beyond what they were granted."""
        self.beginning: dict[str, int] = {}
        """What those that are about to begin here may be granted meanwhile, in micro-credits."""
        self.revision = 0
        """Rises with every change of what uncovered time depends on."""
        self.cover: tuple[int, int | None] = (-1, None)
        """The ground that the account's cover was computed on, and its end."""
        self._dry_at: int | None = None
        self._dry_known = False
        self._empty()

    def _empty(self) -> None:
        self._sum_at = -1
        self._sum_micros = 0
        self._idle_micros = 0
        """The cost of the sessions that stand still."""
        self._burning: dict[str, BurnLine] = {}
        self._rate = 0
        """What they burn in a minute of which all is paid."""
        self._paid_from = 0
        self._begun = 0
        """Price times a further increment, of each."""
        self._beginnings: list[tuple[float, str]] = []
        """When the time of each is paid, the earliest first."""
        self._since: int | None = None
        """The latest anchor of them; None: it is to be looked for."""

    def _put(self, session_id: str, line: BurnLine) -> None:
        self.lines[session_id] = line
        if self._sum_at >= 0:
            self._sum_micros += line.cost_at(self._sum_at)
        burn_micros = line.burn_micros
        if not burn_micros:
            self._idle_micros += line.cost_at(line.at)
            return
        if self._since is not None or not self._burning:
            self._since = max(self._since or line.at, line.at)
        self._burning[session_id] = line
        self._rate += burn_micros
        self._paid_from += line.paid_from
        self._begun += line.price_micros * line.next_increment_ms
        insort(self._beginnings, (line.paid_from / burn_micros, session_id))

    def _take(self, session_id: str) -> None:
        line = self.lines.pop(session_id, None)
        if line is None:
            return
        if self._sum_at >= 0:
            self._sum_micros -= line.cost_at(self._sum_at)
        burn_micros = line.burn_micros
        if not burn_micros:
            self._idle_micros -= line.cost_at(line.at)
            return
        if line.at == self._since:
            self._since = None
        del self._burning[session_id]
        self._rate -= burn_micros
        self._paid_from -= line.paid_from
        self._begun -= line.price_micros * line.next_increment_ms
        beginning = (line.paid_from / burn_micros, session_id)
        del self._beginnings[bisect_left(self._beginnings, beginning)]

    def replace(
        self, version: int, gross_micros: int, reserved_micros: int, lines: dict[str, BurnLine]
    ) -> None:
        """Takes the whole account as Redis has it."""
        self.version = version
        self.gross_micros = gross_micros
        self.reserved_micros = reserved_micros
        self.lines = {}
        self._empty()
        for session_id, line in lines.items():
            self._put(session_id, line)
        self._forget()

    def apply(
        self,
        version: int,
        gross_micros: int,
        reserved_micros: int,
        session_id: str | None,
        line: BurnLine | None,
    ) -> bool:
        """Takes one change. False: messages before it were missed, nothing was taken."""
        if version <= self.version:
            return True
        if version != self.version + 1:
            return False
        self.version = version
        self.gross_micros = gross_micros
        self.reserved_micros = reserved_micros
        if session_id is not None and line != self.lines.get(session_id):
            self._take(session_id)
            if line is not None:
                self._put(session_id, line)
        self._forget()
        return True

    def grant(self, session_id: str, granted: Granted | None, *, beginning_micros: int = 0) -> None:
        """Takes what a session that is served here was granted; None: it is no more, or about to
        begin, and may be granted ``beginning_micros``."""
        self.uncovered.discard(session_id)
        if self.beginning.pop(session_id, 0) != beginning_micros:
            self.revision += 1
        if beginning_micros:
            self.beginning[session_id] = beginning_micros
        if self.granted.get(session_id) == granted:
            return
        if granted is None:
            del self.granted[session_id]
        else:
            self.granted[session_id] = granted
        self.revision += 1

    def _forget(self) -> None:
        self.revision += 1
        self._dry_known = False

    def cost_micros(self, now_ms: int) -> int:
        """What the live sessions have cost up to ``now_ms``, charged or not."""
        lines = self.lines
        if len(lines) <= limits.BURN_LINES_EXACT_MAX:
            return sum(line.cost_at(now_ms) for line in lines.values())
        if not 0 <= now_ms - self._sum_at < limits.BURN_SUM_KEPT_MS:
            self._sum_at = now_ms
            burnt = sum(line.cost_at(now_ms) for line in self._burning.values())
            self._sum_micros = self._idle_micros + burnt
        return self._sum_micros

    def credits_micros(self, now_ms: int) -> int:
        """The balance at ``now_ms``, after the burn of all sessions so far."""
        return self.gross_micros - self.cost_micros(now_ms)

    def beginning_beside(self, session_id: str) -> int:
        """What other sessions that are about to begin here may be granted, in micro-credits."""
        return sum(self.beginning.values()) - self.beginning.get(session_id, 0)

    def available_to(self, session_id: str, now_ms: int) -> int:
        """What would be left for one session if all others stopped at ``now_ms``."""
        line = self.lines.get(session_id)
        own_micros = line.cost_at(now_ms) if line is not None else 0
        return self.credits_micros(now_ms) - self.reserved_micros + own_micros

    def burns_alone(self, session_id: str) -> bool:
        """Whether no other session of the account burns credits."""
        return len(self._burning) == (session_id in self._burning)

    def dry_at(self) -> int | None:
        """The instant up to which the account covers its sessions together; None: for ever.

        It follows from the account alone, whenever it is asked, so that processes agree on
        it: one that took a warning back which another gives would be answered with the next.
        By their increments with up to ``BURN_LINES_EXACT_MAX`` sessions; with more at the price of
        each, as if every one of them had begun half an increment more.
        """
        if not self._dry_known:
            self._dry_at = self._find_dry()
            self._dry_known = True
        return self._dry_at

    def _find_dry(self) -> int | None:
        if not self._burning:
            return None
        if self._since is None:
            self._since = max(line.at for line in self._burning.values())
        micros = self.gross_micros - self.reserved_micros - self._idle_micros
        if len(self._burning) <= limits.BURN_LINES_EXACT_MAX:
            return _covered_until(list(self._burning.values()), self._since, micros)
        return max(self._since, self._all_burn_until(micros * MINUTE_MS - self._begun // 2))

    def _all_burn_until(self, left: int) -> int:
        """The instant at which ``left`` (micro-credits times 60,000) is burnt, if each session
        burns its price from the end of its free time on.

        Those whose free time ends after that instant do not burn: they are left out, from the
        last one backwards.
        """
        rate, paid_from = self._rate, self._paid_from
        for _, session_id in reversed(self._beginnings):
            line = self._burning[session_id]
            if (left + paid_from) * line.burn_micros >= line.paid_from * rate:
                return (left + paid_from) // rate
            rate -= line.burn_micros
            paid_from -= line.paid_from
        return 0


def _burnt_at(burning: list[BurnLine], since: int, left: int) -> float:
    """The instant at which ``left`` (micro-credits times 60,000) is burnt, at the price of
    each session from the end of its free time; ``since`` where it is already."""
    burn_micros = 0
    beginnings = []
    for line in burning:
        paid_ms = line.elapsed_at(since) - line.free_ms
        if paid_ms >= 0:
            left -= line.price_micros * paid_ms
            burn_micros += line.burn_micros
        else:
            beginnings.append((since - paid_ms / line.speed, line.burn_micros))
    at, rest = float(since), float(left)
    for begins_at, more_micros in sorted(beginnings):
        if burn_micros and at + rest / burn_micros <= begins_at:
            break
        rest -= (begins_at - at) * burn_micros
        at = begins_at
        burn_micros += more_micros
    return at + max(0.0, rest) / burn_micros


def _covered_until(burning: list[BurnLine], since: int, micros: int) -> int:
    """The last instant at which ``micros`` covers every increment that was begun; ``since``
    where it does not even then."""

    def covers(at: int) -> bool:
        return sum(line.cost_at(at) for line in burning) <= micros

    if not covers(since):
        return since
    # Increments are begun before they are used: it is at most one of them earlier.
    longest_ms = max(max(line.first_increment_ms, line.next_increment_ms) for line in burning)
    high = int(_burnt_at(burning, since, micros * MINUTE_MS)) + 1
    low, step_ms = max(since, high - 1 - longest_ms), 1
    while covers(high):  # fractions of a micro-credit are not charged
        high, step_ms = high + step_ms, 2 * step_ms
    while not covers(low):
        low = max(since, low - longest_ms)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if covers(middle) else (low, middle)
    return low


class MonthProjection(msgspec.Struct, frozen=True):
    """A month's counter of a member or an organisation, as the last answer gave it."""

    month: str = ""
    """The month, by its first day; empty while nothing is known of it."""
    limit_minutes: int | None = None
    used_minutes: int = 0
    """Minutes begun and settled, of all sessions."""
    active: int = 0
    """Sessions that count on it now."""
    held_minutes: int = 0
    """Minutes that are held for them, and not settled."""
    as_of_us: int = 0
    """When that was so, by the clock of Redis, in microseconds since the epoch; 0: not known. It
    orders answers and nothing else."""

    def minutes_left(self, unsettled: int) -> int | None:
        """Minutes that one session can still begin, an equal share of what is left."""
        if self.limit_minutes is None:
            return None
        return self._share(self.limit_minutes - self.used_minutes - unsettled)

    @property
    def minutes_beyond(self) -> int | None:
        """Minutes that one session can begin beyond what is held for it, should nothing more be
        granted: an equal share of what is not held for any."""
        if self.limit_minutes is None:
            return None
        return self._share(self.limit_minutes - self.used_minutes - self.held_minutes)

    @property
    def minutes_of_next(self) -> int | None:
        """The same of the month that follows, of which nothing is used yet."""
        return None if self.limit_minutes is None else self._share(self.limit_minutes)

    def _share(self, minutes: int) -> int:
        return max(0, math.floor(minutes / max(1, self.active)))
