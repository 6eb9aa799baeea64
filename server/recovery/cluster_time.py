"""A starting process takes cluster time over from the live ones."""

import asyncio

from protocol import limits
from server import limits as server_limits
from server.runtime.clock import ClusterClock, Sample
from storage.redis.beats import ClusterView
from storage.redis.live import Live

LATE_MS = 2 * limits.REDIS_TIMEOUT_MS
"""The longest time for which a beat counts as on its way. Its sender gives up earlier, but the beat
arrives all the same. A beat that seems later still was not late: Redis was stepped."""
assert LATE_MS < server_limits.BEAT_LATE_MS_MAX


async def take_over_time(clock: ClusterClock, live: Live) -> None:
    """Takes cluster time over from the live processes.

    They are asked for a beat; a beat that arrives between two looks has the time. A live process
    beats within ``PRESENCE_BEAT_MS`` after Redis has come back. A beat that was long on its way
    names a time that has passed, so a prompt beat is waited for. If none comes, the sender's
    estimate of the clock of Redis tells how far that clock is from cluster time.

    The time that Redis reports is as old as half a round trip, so the look with the fastest reply
    counts. If no beat comes meanwhile, and the last beat shows that some process proved its life a
    moment ago, that beat gives the time. If it came so late that Redis may have been stepped
    instead, this machine's own clock decides which of the two it was. Otherwise the time is that of
    Redis, but never before the last time that dead processes have left. Raises ``LiveError``.
    """
    until_s = (server_limits.PRESENCE_BEAT_MS + limits.REDIS_TIMEOUT_MS) / 1000
    began_at = asked_at = clock.reading()
    ahead_ms: float | None = None  # how far the clock of Redis is ahead of cluster time
    behind_ms = 0.0
    last = view = await live.look(ask=True)
    best = sample = Sample.of(view.redis_ms, asked_at, clock.reading())
    while (view.nodes or view.heard) and clock.reading() - began_at < until_s:
        await asyncio.sleep(server_limits.BEAT_LOOK_PAUSE_S)
        last, sent_at, asked_at = view, asked_at, clock.reading()
        view = await live.look(ask=False)
        sample = Sample.of(view.redis_ms, asked_at, clock.reading())
        since_ms = view.redis_ms - view.beaten_redis_ms
        # The clock of Redis was not stepped between that beat and this look.
        most_ms = (clock.reading() - sent_at) * 1000 + server_limits.CLOCK_STEADY_MS
        is_steady = 0 <= since_ms <= most_ms
        # Samples from before a step say nothing about the time after it.
        is_alike = abs(sample.redis_ms - best.redis_ms - sample.middle_ms + best.middle_ms) <= (
            (sample.round_trip_ms + best.round_trip_ms) / 2 + server_limits.CLOCK_STEADY_MS
        )
        if not is_alike:
            best, ahead_ms, behind_ms = sample, None, 0.0
        elif sample.round_trip_ms <= best.round_trip_ms:
            best = sample
        if view.beats != last.beats and is_steady:
            late_ms = view.beaten_redis_ms - view.believed_redis_ms
            if -server_limits.BEAT_PROMPT_MS <= late_ms <= LATE_MS:
                ahead_ms, behind_ms = view.believed_redis_ms - view.beaten_at, 0.0
                if late_ms <= server_limits.BEAT_PROMPT_MS:
                    break
            elif ahead_ms is None or behind_ms:
                # Redis was stepped, so it is unknown how long this beat was on its way.
                told_ms = _ahead_at_last_beat(view, clock.at_ms(sample.middle_ms / 1000))
                ahead_ms = told_ms if ahead_ms is None else min(ahead_ms, told_ms)
                behind_ms = until_s * 1000
    if ahead_ms is not None:
        clock.set(best, ahead_ms, behind_ms)
    else:
        wall_ms = clock.at_ms(sample.middle_ms / 1000)  # not set yet: the machine's own time
        _set_without_beat(clock, view, best, sample, wall_ms)


def _set_without_beat(
    clock: ClusterClock, view: ClusterView, best: Sample, newest: Sample, wall_ms: float
) -> None:
    """Sets the clock by the last beat in Redis, or Redis alone.

    ``wall_ms`` is what this machine's own clock showed at the ``newest`` sample.
    """
    left_at = max([view.beaten_at, *view.nodes.values()]) if view.nodes else 0
    ahead_ms = _ahead_at_last_beat(view, wall_ms)
    if (
        left_at
        and -server_limits.BEAT_PROMPT_MS
        <= view.redis_ms - ahead_ms - left_at
        <= limits.NODE_SILENT_MS
    ):
        clock.set(best, min(ahead_ms, view.redis_ms - left_at))
        return
    # A process that lives nevertheless is ahead by less than the silence that counts as death.
    behind_ms = limits.NODE_SILENT_MS if left_at > view.redis_ms else 0.0
    clock.set(newest, view.redis_ms - max(view.redis_ms, left_at), behind_ms)


def _ahead_at_last_beat(view: ClusterView, wall_ms: float) -> float:
    """How far (ms) Redis was ahead of cluster time at last beat.

    The beat arrived later than its sender thought by the clock of Redis: that clock was stepped, or
    the beat was long on its way, as where Redis stood still. In the latter case cluster time is
    near to ``wall_ms``.
    """
    late_ms = view.beaten_redis_ms - view.believed_redis_ms
    ahead_ms = view.believed_redis_ms - view.beaten_at
    apart_ms = abs(view.redis_ms - ahead_ms - wall_ms)
    is_near = apart_ms < min(late_ms / 2, limits.NODE_SILENT_MS)
    if 0 < late_ms <= LATE_MS or (is_near and late_ms <= server_limits.BEAT_LATE_MS_MAX):
        return ahead_ms
    return view.beaten_redis_ms - view.beaten_at
