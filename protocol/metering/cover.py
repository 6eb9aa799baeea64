"""How long an account covers sessions that run on without Redis.

While Redis is away, no session gets a grant. What the account still has must be enough for all its
sessions: for each session's last grant, used or not, and for the use beyond that grant. All
sessions run on until the same instant, which every process computes from the last figures that it
received. A process does not know the grants of sessions that other processes serve: of these it
counts the use.
"""

import heapq
from collections.abc import Mapping

from protocol import limits
from protocol.metering.projection import AccountProjection, BurnLine, Granted
from protocol.metering.terms import MINUTE_MS


def covered_until(account: AccountProjection) -> int | None:
    """Returns the last instant at which an account covers all its sessions.

    Each session counts with at least its grant. None: there is no end. The result is computed once
    for each change of its basis.
    """
    revision, until = account.cover
    if revision != account.revision:
        micros = account.gross_micros - account.reserved_micros - account.beginning_beside("")
        until = _covered_until(account.lines, account.granted, micros)
        account.cover = account.revision, until
    return until


def covered_with(account: AccountProjection, session_id: str, line: BurnLine) -> int:
    """As ``covered_until``, with one more session that begins to run on ``line``.

    Returns the anchor of ``line`` if the account does not cover all of them.
    """
    lines = {**account.lines, session_id: line}
    granted = {name: may_use for name, may_use in account.granted.items() if name != session_id}
    micros = account.gross_micros - account.reserved_micros
    until = _covered_until(lines, granted, micros - account.beginning_beside(session_id))
    since = max(one.at for one in lines.values() if one.running)
    return until if until is not None and until > since else line.at


def _covered_until(
    lines: Mapping[str, BurnLine], granted: Mapping[str, Granted], micros: int
) -> int | None:
    """As ``covered_until``, for ``micros`` without what is reserved.

    The result is exact for few sessions. With more than ``BURN_LINES_EXACT_MAX`` running sessions,
    it is up to one increment of each session too early. If the sessions are not covered up to the
    latest of their anchors, the result lies before it: one session may have time that became known
    late, and others are settled beyond that. With many sessions it is then the first anchor.
    """
    standing, running = 0, []
    for session_id, line in lines.items():
        may_use = granted.get(session_id)
        if not line.running:
            standing += line.cost_of(line.elapsed_ms)
        elif may_use is not None and may_use.is_final:
            standing += line.cost_of(may_use.until_ms)
        elif line.burn_micros:
            running.append((line, may_use.until_ms if may_use is not None else 0))
    if not running:
        return None
    first, since = min(line.at for line, _ in running), max(line.at for line, _ in running)
    left = micros - standing
    are_many = len(running) > limits.BURN_LINES_EXACT_MAX

    def covers(at: int) -> bool:
        return sum(line.cost_of(max(line.elapsed_at(at), held)) for line, held in running) <= left

    if are_many and covers(since):
        return _estimated(running, since, left)
    if are_many or not covers(first):
        return first
    if covers(since):
        low, step_ms = since, MINUTE_MS
        while covers(low + step_ms):
            low, step_ms = low + step_ms, 2 * step_ms
        high = low + step_ms
    else:
        low, high = first, since
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if covers(middle) else (low, middle)
    return low


def _estimated(running: list[tuple[BurnLine, int]], since: int, left_micros: int) -> int:
    """As ``_covered_until``, at each session's price, with one increment more begun.

    A session burns from the end of its grant, or of its free time, on.
    """
    left, burn_micros, beginnings = left_micros * MINUTE_MS, 0, []
    for line, held_ms in running:
        sure_ms = max(line.elapsed_at(since), held_ms, line.free_ms)
        left -= line.price_micros * (sure_ms - line.free_ms)
        left -= line.price_micros * max(line.first_increment_ms, line.next_increment_ms)
        begins_at = since + (sure_ms - line.elapsed_at(since)) // line.speed
        beginnings.append((begins_at, line.burn_micros))
    at = since
    heapq.heapify(beginnings)
    while beginnings:
        begins_at, more_micros = heapq.heappop(beginnings)
        if burn_micros and at + left // burn_micros <= begins_at:
            break
        left -= (begins_at - at) * burn_micros
        at, burn_micros = begins_at, burn_micros + more_micros
    return max(since, at + left // burn_micros)
