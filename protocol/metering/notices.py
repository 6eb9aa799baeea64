"""The notices of a session: what is said once, under a number that every process agrees on.

The number is the shared sequence plus one, so two processes that reach the same deadline
say the same notice under the same number, and whose step is accepted records it for
both. What was already said follows from the standing (``free_over``, ``warned``), so a
process that lost the race judges its notice again and says it only if it still holds.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering import limit_positions
from protocol.metering.effects import Push
from protocol.metering.session import SessionState, Standing
from protocol.wire import messages
from protocol.wire.codec import encode


class Notices:
    """What one process has said of a session, recorded or not."""

    def __init__(self, standing: Standing) -> None:
        self.seq = standing.seq
        """The number of the last notice said here."""
        self.free_over = standing.free_over
        self.warned = dict(standing.warned)
        """The lowest threshold that was warned of, by limit."""
        self.unrecorded: list[bytes] = []
        """Said here, and not yet recorded by an accepted step."""
        self.recent: tuple[bytes, ...] = ()
        """The newest that are recorded, oldest first, as far as they are known here."""
        self.minutes = Minutes(standing.minutes_kept)

    def adopt(self, standing: Standing, kept: tuple[bytes, ...]) -> list[bytes]:
        """Takes what another process recorded; answers what was not said here yet.

        What was said here under the same numbers is recorded with that, if it is the same,
        and what was said under higher ones stands. Where it differs, which takes a change
        in the very moment, what the clients here heard stays what they know: anything else
        is judged again from there, under numbers that are new everywhere.
        """
        self.remember(kept)
        said = {_read(notice).seq: _read(notice) for notice in self.unrecorded}
        others = {_read(notice).seq: notice for notice in kept}
        differing = [
            notice
            for number, notice in others.items()
            if number in said and not said[number].is_same(_read(notice))
        ]
        news = [notice for number, notice in others.items() if number > self.seq]
        if differing:
            self.seq = max(self.seq, standing.seq)
            self.unrecorded.clear()
            ends = [notice for notice in differing if _read(notice).ends]
            return [*news, *(self._renumber(notice, standing) for notice in ends)]
        if standing.seq < self.seq:
            self.unrecorded = [
                notice for notice in self.unrecorded if _read(notice).seq > standing.seq
            ]
            return []
        self.seq = standing.seq
        self.free_over = standing.free_over
        self.warned = dict(standing.warned)
        self.unrecorded.clear()
        return news

    def _renumber(self, notice: bytes, standing: Standing) -> bytes:
        """A notice under the next number, for clients that heard another under its own."""
        self.seq += 1
        message = decode_notice(notice, standing.elapsed_ms)
        return encode(msgspec.structs.replace(message, seq=self.seq))

    def recorded(self, count: int) -> None:
        """The first ``count`` of the unrecorded notices are recorded now."""
        self.remember(tuple(self.unrecorded[:count]))
        del self.unrecorded[:count]

    def remember(self, kept: tuple[bytes, ...]) -> None:
        """Keeps in mind what is recorded: the store may lose it."""
        if kept:
            found = {_read(notice).seq: notice for notice in (*self.recent, *kept)}
            newest = sorted(found.items())[-limits.NOTICES_KEPT_MAX :]
            self.recent = tuple(notice for _, notice in newest)

    def say(self, kind: Any, session: SessionState, **fields: Any) -> Push:
        """The push of the next notice, of the message type ``kind``."""
        self.seq += 1
        message = kind(session_id=session.identity.session_id, seq=self.seq, **fields)
        encoded = encode(message)
        self.unrecorded.append(encoded)
        return Push(encoded)

    def due(self, session: SessionState, positions: dict[str, int]) -> list[int]:
        """The counted times at which something is to be said next."""
        terms = session.identity.terms
        ends = []
        if not self.free_over and terms.price_micros:
            ends.append(session.standing.free_ms)
        for limit, position_ms in positions.items():
            warned_ms = self.warned.get(limit)
            for threshold_ms in terms.warn_at_ms:
                if warned_ms is None or threshold_ms < warned_ms:
                    ends.append(position_ms - threshold_ms)
                    break
        return ends

    def end_free_time(self, session: SessionState) -> Push | None:
        """Says that free time is over, if there was any."""
        self.free_over = True
        if not session.standing.free_ms:
            return None
        return self.say(messages.FreeTime, session, free_remaining_ms=0, paid=True)

    def warn(
        self,
        session: SessionState,
        elapsed_ms: int,
        positions: dict[str, int],
    ) -> list[Push]:
        """Says which thresholds were crossed, downwards or up again, since the last time.

        Several thresholds crossed at once are one warning, of the lowest.
        """
        said = []
        thresholds = session.identity.terms.warn_at_ms
        for limit in [*positions, *(set(self.warned) - set(positions))]:
            position_ms = positions.get(limit)
            remaining_ms = None if position_ms is None else max(0, position_ms - elapsed_ms)
            warned_ms = self.warned.get(limit)
            level_ms = None
            if remaining_ms is not None:
                level_ms = limit_positions.threshold(thresholds, remaining_ms)
            if level_ms is not None and (warned_ms is None or level_ms < warned_ms):
                self.warned[limit] = level_ms
                said.append(
                    self.say(
                        messages.LimitWarning,
                        session,
                        limit=limit,
                        remaining_ms=remaining_ms,
                        threshold_ms=level_ms,
                    )
                )
            elif warned_ms is not None and (
                remaining_ms is None or remaining_ms > warned_ms + limits.WARNING_HYSTERESIS_MS
            ):
                del self.warned[limit]
                if level_ms is not None:
                    self.warned[limit] = level_ms
                said.append(
                    self.say(messages.LimitCleared, session, limit=limit, remaining_ms=remaining_ms)
                )
        return said


class _Head(msgspec.Struct):
    """What tells one notice from another."""

    type: str
    seq: int
    limit: str | None = None
    threshold_ms: int | None = None

    @property
    def ends(self) -> bool:
        """Whether it says the end of counting, which nobody may miss."""
        return self.type in ("limit_reached", "stopped")

    def is_same(self, other: "_Head") -> bool:
        """Whether both say the same; figures of the moment may differ."""
        return (self.type, self.limit, self.threshold_ms) == (
            other.type,
            other.limit,
            other.threshold_ms,
        )


_read = msgspec.json.Decoder(_Head).decode


_NOTICE: msgspec.json.Decoder[messages.Notice] = msgspec.json.Decoder(messages.Notice)


def decode_notice(notice: bytes, elapsed_ms: int) -> messages.Notice:
    """The message of a kept notice.

    A process of an earlier version kept a ``limit_reached`` without ``elapsed_ms``. Then that of
    the session, which stands still since, is filled in.
    """
    try:
        return _NOTICE.decode(notice)
    except msgspec.ValidationError:
        fields = {"elapsed_ms": elapsed_ms, **msgspec.json.decode(notice)}
        found: messages.Notice = msgspec.convert(fields, messages.Notice)
        return found


def sequence_number(notice: bytes) -> int:
    """The ``seq`` of an encoded notice."""
    return _read(notice).seq


class _MinuteHead(msgspec.Struct):
    minute: int


_read_minute = msgspec.json.Decoder(_MinuteHead).decode


class Minutes:
    """The ``minute`` messages of one session on one process: each is sent once.

    A step of another process is told by the channel and by the answer to one's own step, in
    any order. Only the channel carries its minutes, so they count though the step is known.
    """

    __slots__ = ("_from", "_sent")

    def __init__(self, minutes_kept: int) -> None:
        self._from = minutes_kept
        """Minutes before this one were sent, or completed before this process had the session."""
        self._sent: tuple[int, ...] = ()
        """Those from there on that were sent."""

    def take(self, encoded: tuple[bytes, ...]) -> list[bytes]:
        """Those of some ``minute`` messages that were not sent before, for sending now."""
        fresh = []
        for message in encoded:
            minute = _read_minute(message).minute
            if minute >= self._from and minute not in self._sent:
                fresh.append(message)
                self._sent += (minute,)
        if len(self._sent) > limits.MINUTES_SENT_MAX:
            self._sent = tuple(sorted(self._sent)[-limits.MINUTES_SENT_MAX :])
            self._from = self._sent[0]
        return fresh
