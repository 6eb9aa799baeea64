"""The minutes of an ended session, made from its end.

A session's end determines its minutes: how many there are, how long each lasted, when it began and
what it cost. So Postgres can check the minutes that it has against the end.
"""

from collections.abc import Iterator

from protocol.metering.quota import MonthOf
from protocol.metering.records import MinuteUsed, SessionEnded
from protocol.metering.terms import MINUTE_MS


def minutes_of(ended: SessionEnded, month_of: MonthOf) -> Iterator[MinuteUsed]:
    """Yields the records of all minutes of an end, in their order.

    Their credits add up to those of the end. A client that reports its minutes may have dated them
    differently.
    """
    terms, elapsed_ms = ended.terms, ended.elapsed_ms
    begins = _begins(ended)
    for minute in range(ended.minutes):
        begin_ms = minute * MINUTE_MS
        end_ms = min(begin_ms + MINUTE_MS, elapsed_ms)
        started_at = next(begins)
        yield MinuteUsed(
            tenant=ended.tenant,
            session_id=ended.session_id,
            minute=minute,
            seconds=-(-(end_ms - begin_ms) // 1000),
            user_id=ended.user_id,
            org_id=ended.org_id,
            account_id=ended.account_id,
            counterpart_id=ended.counterpart_id,
            kind=ended.kind,
            started_at=started_at,
            month=month_of(started_at),
            counts=terms.counts_minutes,
            credits_micros=terms.minute_micros(
                begin_ms,
                end_ms,
                free_ms=ended.free_ms,
                charged_micros=ended.credits_micros,
                is_newest=minute == ended.minutes - 1,
            ),
            free_ms=min(ended.free_ms, end_ms) - min(ended.free_ms, begin_ms),
        )


def _begins(ended: SessionEnded) -> Iterator[int]:
    """Yields the instants at which the minutes began, measured along the segments."""
    done_ms, speed, minute = 0, ended.terms.speed, 0
    for from_at, to_at in ended.segments:
        lasted_ms = (to_at - from_at) * speed
        while minute * MINUTE_MS < done_ms + lasted_ms:
            yield from_at + -(-(minute * MINUTE_MS - done_ms) // speed)
            minute += 1
        done_ms += lasted_ms
    while True:
        yield ended.ended_at
