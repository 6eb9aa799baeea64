"""A session's notices: each is sent once, under a shared number.

The number is the sequence of all processes plus one. Two processes that reach the same deadline
therefore send the same notice under the same number, and the accepted step of one records it for
both. The standing shows which notices were sent already (``free_over``, ``warned``). A process
whose step was refused judges its notice again, and sends it only if the notice still holds.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering import limit_positions
from protocol.metering.effects import Push
from protocol.metering.session import SessionState, Standing
from protocol.metering.states import Phase
from protocol.wire import messages
from protocol.wire.codec import encode


class Notices:
    """The notices of a session that one process has sent."""

    def __init__(self, standing: Standing) -> None:
        self.seq = standing.seq
        """The number of the last notice sent here."""
        self.free_over = standing.free_over
        self.warned = dict(standing.warned)
        """The lowest threshold with a warning, by limit."""
        self.unrecorded: list[bytes] = []
        """Notices sent here that no accepted step has recorded yet."""
        self._stop: bytes | None = None
        """A stop announced here whose number another notice has."""
        self.recent: tuple[bytes, ...] = ()
        """The newest recorded notices that are known here, oldest first."""
        self.minutes = Minutes(standing.minutes_kept)

    def adopt(self, standing: Standing, kept: tuple[bytes, ...]) -> list[bytes]:
        """Takes what another process recorded; returns the notices not sent here.

        A notice that was sent here under the same number, and is the same, is recorded with that. A
        notice that was sent here under a higher number stands. Two notices under one number differ
        only if a change came in the same moment, or Redis did not answer. Then the clients here
        keep what they heard, and get the end of counting that holds. Everything else is judged
        again from there, under numbers that are new everywhere.
        """
        # A failed Redis may have lost what is recorded: then the others recorded something else.
        known = (*self.recent, *self.unrecorded)
        said = {_read(notice).seq: _read(notice) for notice in known}
        self.remember(kept)
        others = {_read(notice).seq: notice for notice in kept}
        differing = [
            notice
            for number, notice in others.items()
            if number in said and not said[number].is_same(_read(notice))
        ]
        news = [notice for number, notice in others.items() if number > self.seq]
        self._stop = None
        if differing:
            self.seq = max(self.seq, standing.seq)
            stops = [notice for notice in self.unrecorded if _read(notice).ends]
            self._stop = stops[-1] if stops else None
            self.unrecorded.clear()
            end = _end(standing, others)
            return [*news, self._renumber(end, standing)] if end in differing else news
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

    def repeat_stop(self, standing: Standing) -> list[bytes]:
        """Returns the stop announced here whose number another notice has.

        The stop gets a number that is new everywhere, under which the next step records it. The
        caller knows that the stop holds: no other process extended the grant.
        """
        stop, self._stop = self._stop, None
        return [] if stop is None else [self._renumber(stop, standing)]

    def _renumber(self, notice: bytes, standing: Standing) -> bytes:
        """Renumbers a notice for clients that got another under its number.

        The next step records the notice. Otherwise another process would use the number again, and
        the clients here would not get that notice.
        """
        self.seq += 1
        message = decode_notice(notice, standing.elapsed_ms)
        encoded = encode(msgspec.structs.replace(message, seq=self.seq))
        if standing.phase is not Phase.ENDED:
            self.unrecorded.append(encoded)
        return encoded

    def recorded(self, count: int) -> None:
        """Marks the first ``count`` of the unrecorded notices as recorded."""
        self.remember(tuple(self.unrecorded[:count]))
        del self.unrecorded[:count]

    def remember(self, kept: tuple[bytes, ...]) -> None:
        """Keeps recorded notices in memory, because Redis may lose them."""
        if kept:
            found = {_read(notice).seq: notice for notice in (*self.recent, *kept)}
            newest = sorted(found.items())[-limits.NOTICES_KEPT_MAX :]
            self.recent = tuple(notice for _, notice in newest)

    def say(self, kind: Any, session: SessionState, **fields: Any) -> Push:
        """Returns the push of the next notice, of the message type ``kind``."""
        self.seq += 1
        message = kind(session_id=session.identity.session_id, seq=self.seq, **fields)
        encoded = encode(message)
        self.unrecorded.append(encoded)
        return Push(encoded)

    def due(self, session: SessionState, positions: dict[str, int]) -> list[int]:
        """Returns the counted times at which the next notices are due."""
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
        """Returns the notice that free time is over; None: there was none."""
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
        """Returns warnings of thresholds crossed, both ways, since the last call.

        Several thresholds crossed at once make one warning, of the lowest threshold.
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
    """The fields that distinguish one notice from another."""

    type: str
    seq: int
    limit: str | None = None
    threshold_ms: int | None = None
    elapsed_ms: int | None = None
    stopped_at: int | None = None

    @property
    def ends(self) -> bool:
        """Whether the notice announces the end of counting."""
        return self.type in ("limit_reached", "stopped")

    def is_same(self, other: "_Head") -> bool:
        """Whether both announce the same.

        Figures of the moment may differ, but not where counting stopped.
        """
        mine, theirs = (
            (head.type, head.limit, head.threshold_ms, head.stopped_at) for head in (self, other)
        )
        # A process of an earlier version announced no counted time.
        known = {self.elapsed_ms, other.elapsed_ms} - {None}
        return mine == theirs and len(known) < 2


_read = msgspec.json.Decoder(_Head).decode


def _end(standing: Standing, kept: dict[int, bytes]) -> bytes | None:
    """The kept notice of the end that the standing shows.

    None: counting goes on, or the notice is not kept.
    """
    kind = {Phase.STOPPING: "limit_reached", Phase.ENDED: "stopped"}.get(standing.phase)
    numbers = [number for number, notice in kept.items() if _read(notice).type == kind]
    return kept[max(numbers)] if numbers else None


_NOTICE: msgspec.json.Decoder[messages.Notice] = msgspec.json.Decoder(messages.Notice)


def decode_notice(notice: bytes, elapsed_ms: int) -> messages.Notice:
    """Returns the message of a kept notice.

    A process of an earlier version kept a ``limit_reached`` without ``elapsed_ms``. The result then
    has the session's ``elapsed_ms``, because the session has stood still since.
    """
    try:
        return _NOTICE.decode(notice)
    except msgspec.ValidationError:
        fields = {"elapsed_ms": elapsed_ms, **msgspec.json.decode(notice)}
        found: messages.Notice = msgspec.convert(fields, messages.Notice)
        return found


def sequence_number(notice: bytes) -> int:
    """Returns the ``seq`` of an encoded notice."""
    return _read(notice).seq


class _MinuteHead(msgspec.Struct):
    minute: int


_read_minute = msgspec.json.Decoder(_MinuteHead).decode


class Minutes:
    """The ``minute`` messages of a session here: each is sent once.

    A process learns of a remote step from the channel and from the answer to its own step, in any
    order. Only the channel carries the step's minutes, so these count even if the step is known.
    """

    __slots__ = ("_from", "_sent")

    def __init__(self, minutes_kept: int) -> None:
        self._from = minutes_kept
        """Minutes before this were sent, or completed before this process had the session."""
        self._sent: tuple[int, ...] = ()
        """The later minutes that were sent."""

    def take(self, encoded: tuple[bytes, ...]) -> list[bytes]:
        """Returns the ``minute`` messages not sent before; the caller sends them now."""
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
