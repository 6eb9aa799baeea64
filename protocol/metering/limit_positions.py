"""Where each limit of a session binds, in counted time.

The results are positions, not durations. They stay the same while time passes, and move only when a
counter changes. So they are computed at changes, and a tick only subtracts.
"""

from protocol import limits
from protocol.metering.counted_time import CountedTime
from protocol.metering.cover import covered_until
from protocol.metering.projection import AccountProjection, MonthProjection
from protocol.metering.session import SessionState
from protocol.metering.terms import MINUTE_MS, minutes_begun


def positions(
    session: SessionState,
    elapsed_ms: int,
    now_ms: int,
    account: AccountProjection,
    member: MonthProjection,
    org: MonthProjection,
    month_ends_at: int | None = None,
) -> dict[str, int]:
    """Returns the counted time at which each limit binds; no entry: never.

    The position is exact for a session that burns alone; with others, it assumes the present burn
    of all (PROTOCOL, ``remaining_ms``). Granted time is sure, so no limit binds before the grant's
    end; at the end of a final grant, its limit binds. A minute belongs to the month in which it
    starts, so what is left of a month counts only up to ``month_ends_at``.
    """
    identity, standing, grant = session.identity, session.standing, session.grant
    terms = identity.terms
    found: dict[str, int] = {}
    if terms.price_micros:
        credits_ms = _credits_position(session, elapsed_ms, now_ms, account)
        if credits_ms is not None:
            found["credits"] = credits_ms
    if terms.counts_minutes:
        begun = minutes_begun(elapsed_ms)
        for limit, counter in (("member_minutes", member), ("org_minutes", org)):
            left = counter.minutes_left(begun - standing.counted_minutes)
            if left is None:
                continue
            found[limit] = (begun + left) * MINUTE_MS
            if month_ends_at is not None:
                # The first minute of the next month, if time runs on from now. The figures of a
                # month that is over are as old as the current minute.
                ahead_ms = elapsed_ms + (month_ends_at - now_ms) * terms.speed
                next_month = max(-(-ahead_ms // MINUTE_MS), begun - 1)
                if begun + left >= next_month:
                    found[limit] = (next_month + (counter.minutes_of_next or 0)) * MINUTE_MS
    if terms.session_cap_ms:
        found["session_cap"] = terms.session_cap_ms
    for limit, position_ms in found.items():
        found[limit] = max(position_ms, elapsed_ms, grant.granted_ms)
    if grant.final is not None and standing.phase == "active":
        found[grant.final] = grant.granted_ms
    return found


def uncovered_ends(
    session: SessionState,
    counted_time: CountedTime,
    now_ms: int,
    account: AccountProjection,
    member: MonthProjection,
    org: MonthProjection,
    month_ends_at: int | None = None,
    *,
    kept_open: str | None = None,
) -> dict[str, int]:
    """Returns how far each counter covers a session without more grants.

    The result has no entry for a counter without a limit. On a counter that other sessions draw on
    too, the session has a share: all sessions that run on until then, together with what is held,
    use no more than there is, as far as this process knows. The limit ``kept_open``, if it is one
    of the months, is different: other sessions hold its minutes and do not answer. These count with
    what they use: one minute for each minute that this session begins.
    """
    identity, standing = session.identity, session.standing
    terms = identity.terms
    found: dict[str, int] = {}
    if terms.price_micros:
        is_alone = account.burns_alone(identity.session_id)
        if is_alone and len(account.lines) <= limits.BURN_LINES_EXACT_MAX:
            micros = account.available_to(identity.session_id, now_ms)
            micros = max(0, micros - account.beginning_beside(identity.session_id))
            found["credits"] = terms.affordable_ms(micros, standing.free_ms) or 0
        else:
            until = covered_until(account)
            if until is not None:
                found["credits"] = counted_time.run_on(until)
    if terms.counts_minutes:
        begun = minutes_begun(counted_time.granted_ms)
        next_month = None
        if month_ends_at is not None:
            next_month = max(-(-counted_time.run_on(month_ends_at) // MINUTE_MS), 0)
        for limit, counter in (("member_minutes", member), ("org_minutes", org)):
            left = counter.minutes_beyond
            if limit == kept_open:
                left = counter.minutes_left(begun - standing.counted_minutes)
            if left is None:
                continue
            minutes = begun + left
            if next_month is not None and minutes >= next_month:
                minutes = max(begun, next_month) + (counter.minutes_of_next or 0)
            found[limit] = minutes * MINUTE_MS
    return found


def _credits_position(
    session: SessionState, elapsed_ms: int, now_ms: int, account: AccountProjection
) -> int | None:
    identity, standing = session.identity, session.standing
    terms, session_id = identity.terms, identity.session_id
    if standing.phase != "active" or account.burns_alone(session_id):
        micros = account.available_to(session_id, now_ms)
        return terms.affordable_ms(max(0, micros), standing.free_ms)
    dry_at = account.dry_at()
    if dry_at is None:
        return None
    return elapsed_ms + max(0, (dry_at - now_ms) * terms.speed)


def first(found: dict[str, int]) -> str | None:
    """Returns the limit that binds first; None: no limit binds."""
    return min(found, key=found.__getitem__) if found else None


def threshold(warn_at_ms: tuple[int, ...], remaining_ms: int) -> int | None:
    """Returns the lowest threshold at or above ``remaining_ms``; None: there is none."""
    under = [at_ms for at_ms in warn_at_ms if remaining_ms <= at_ms]
    return min(under) if under else None
