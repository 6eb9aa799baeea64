"""A process's knowledge of its sessions' counters, projected to an instant.

Between two messages from Redis, a process asks nothing: the balance of an account is the last known
balance less what its sessions have burnt since, and every process can compute that alone. The
account's *gross* makes this simple: the balance plus all charges of its live sessions so far.
Claims move money from one to the other and leave the gross unchanged, so the gross changes only
with money in, spends and ends of sessions::

    credits(now) = gross - sum of cost(elapsed(now)) over the live sessions
"""

import math
from bisect import bisect_left, insort

import msgspec

from protocol import limits
from protocol.metering.terms import MINUTE_MS, Terms


class BurnLine(msgspec.Struct, frozen=True):
    """A live session as its account sees it: its burn and anchor."""

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

    def burn_at(self, now_ms: int) -> int:
        """Micro-credits burnt in a minute at ``now_ms``: 0 while time is free."""
        return self.burn_micros if self.elapsed_at(now_ms) >= self.free_ms else 0

    @property
    def paid_from(self) -> int:
        """The instant from which running time is paid, times ``burn_micros``.

        The product is exact; the instant itself may be a fraction.
        """
        return self.price_micros * (self.speed * self.at + self.free_ms - self.elapsed_ms)


def burn_line_of(
    terms: Terms, elapsed_ms: int, at: int, free_ms: int, *, running: bool
) -> BurnLine:
    """Returns the line of a session that stands at ``elapsed_ms``."""
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

    ``replace`` and ``apply`` take the data of Redis; all other methods answer questions. The
    version shows whether a message was missed: ``apply`` then returns False, and the shell reads
    the account anew.

    An account may have hundreds of sessions, and after each change of one of them, all ask about
    the account. So the totals over the lines are kept as sums. A change costs as much with a
    thousand lines as with ten, and so does a question, except for the one sum in every
    ``BURN_SUM_KEPT_MS``.
    """

    __slots__ = (
        "_beginnings", "_begun", "_burning", "_dry_at", "_dry_known", "_idle_micros", "_paid_from",
        "_rate", "_since", "_sum_at", "_sum_micros", "account_id", "beginning", "cover", "granted",
        "gross_micros", "lines", "reserved_micros", "revision", "tenant", "uncovered", "version",
        "yields_until",
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
        """The grants of sessions that are served here; see ``protocol.metering.cover``."""
        self.uncovered: set[str] = set()
        """Sessions that are served here and run on beyond their grants."""
        self.beginning: dict[str, int] = {}
        """Micro-credits that sessions about to begin here may be granted meanwhile."""
        self.revision = 0
        """Rises with every change of the data that uncovered time depends on."""
        self.yields_until = 0
        """Until then sessions take no more than they need: another one was refused the rest."""
        self.cover: tuple[int, int | None] = (-1, None)
        """The revision that the account's cover was computed from, and the cover's end."""
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
        """What the burning sessions burn in a minute when all pay."""
        self._paid_from = 0
        self._begun = 0
        """The sum of price times a further increment, over the burning sessions."""
        self._beginnings: list[tuple[float, str]] = []
        """When each burning session begins to pay, the earliest first."""
        self._since: int | None = None
        """The latest anchor of the burning sessions; None: not computed yet."""

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
        """Takes one change. False: earlier messages were missed, and nothing was taken."""
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
        """Takes the grant of a session that is served here.

        None: the session has left or ended, or is about to begin and may be granted
        ``beginning_micros``.
        """
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
        """Returns what live sessions have cost up to ``now_ms``, charged or not."""
        lines = self.lines
        if len(lines) <= limits.BURN_LINES_EXACT_MAX:
            return sum(line.cost_at(now_ms) for line in lines.values())
        if not 0 <= now_ms - self._sum_at < limits.BURN_SUM_KEPT_MS:
            self._sum_at = now_ms
            burnt = sum(line.cost_at(now_ms) for line in self._burning.values())
            self._sum_micros = self._idle_micros + burnt
        return self._sum_micros

    def credits_micros(self, now_ms: int) -> int:
        """Returns the balance at ``now_ms``, after the burn of all sessions."""
        return self.gross_micros - self.cost_micros(now_ms)

    def burn_at(self, now_ms: int) -> int:
        """Micro-credits that live sessions burn in a minute at ``now_ms``."""
        return sum(line.burn_at(now_ms) for line in self.lines.values())

    def beginning_beside(self, session_id: str) -> int:
        """Micro-credits that the other sessions about to begin here may be granted."""
        return sum(self.beginning.values()) - self.beginning.get(session_id, 0)

    def available_to(self, session_id: str, now_ms: int) -> int:
        """What one session would have if all others stopped at ``now_ms``."""
        line = self.lines.get(session_id)
        own_micros = line.cost_at(now_ms) if line is not None else 0
        return self.credits_micros(now_ms) - self.reserved_micros + own_micros

    def needed_beside(self, session_id: str, now_ms: int) -> int:
        """What the other sessions need to run on, after a recall.

        With more than ``BURN_LINES_EXACT_MAX`` sessions, the result is a little too much.
        """
        ahead_ms = limits.GRANT_SHRUNKEN_MS[-1] + limits.RECALL_WAIT_MS
        if len(self.lines) <= limits.BURN_LINES_EXACT_MAX:
            others = [line for name, line in self._burning.items() if name != session_id]
            return sum(line.cost_at(now_ms + ahead_ms) - line.cost_at(now_ms) for line in others)
        return -(-(self._rate * ahead_ms + self._begun) // MINUTE_MS)

    def burns_alone(self, session_id: str) -> bool:
        """Whether no other session of the account burns credits."""
        return len(self._burning) == (session_id in self._burning)

    def dry_at(self) -> int | None:
        """Returns the instant up to which the account covers its sessions together.

        None: there is no end. The result follows from the account alone, whenever it is computed,
        so that processes agree on it. If they disagreed, one process would clear a warning that
        another sends, and the two would alternate. With up to ``BURN_LINES_EXACT_MAX`` sessions,
        the result counts increments; with more, it counts the price of each, as if each session had
        begun half an increment more.
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
        """Returns when ``left`` is burnt, at each session's price.

        ``left`` is micro-credits times 60,000. Each session burns from the end of its free time on.
        Sessions whose free time ends after that instant do not burn: they are left out, from the
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
    """Returns when ``left`` is burnt; ``since`` if it already is.

    ``left`` is micro-credits times 60,000. Each session burns its price from the end of its free
    time.
    """
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
    """Returns the last instant at which ``micros`` covers every begun increment.

    The result is ``since`` if ``micros`` does not cover them even then.
    """

    def covers(at: int) -> bool:
        return sum(line.cost_at(at) for line in burning) <= micros

    if not covers(since):
        return since
    # An increment begins before its time is used, so the instant is at most one of them earlier.
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
    """A member's or organisation's month, as in the last answer."""

    month: str = ""
    """The month, by its first day; empty: nothing is known of the counter."""
    limit_minutes: int | None = None
    used_minutes: int = 0
    """Minutes begun and settled, of all sessions."""
    active: int = 0
    """Sessions that use the counter now."""
    held_minutes: int = 0
    """Minutes held for those sessions and not settled."""
    as_of_us: int = 0
    """The time of these figures by the clock of Redis, in microseconds since the epoch; 0: not
    known. This field only orders answers."""

    def minutes_left(self, unsettled: int) -> int | None:
        """Minutes that one session can still begin: an equal share."""
        if self.limit_minutes is None:
            return None
        return self._share(self.limit_minutes - self.used_minutes - unsettled)

    @property
    def minutes_beyond(self) -> int | None:
        """Minutes that one session can begin without a further grant.

        The result is an equal share of the minutes that are held for no session.
        """
        if self.limit_minutes is None:
            return None
        return self._share(self.limit_minutes - self.used_minutes - self.held_minutes)

    @property
    def minutes_of_next(self) -> int | None:
        """Minutes that one session can begin in the unused next month."""
        return None if self.limit_minutes is None else self._share(self.limit_minutes)

    def _share(self, minutes: int) -> int:
        return max(0, math.floor(minutes / max(1, self.active)))
