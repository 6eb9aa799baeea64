"""Transitions: the step that each event makes of a session.

Every function takes the :class:`Moment` and returns the step to send to Redis. Nothing here keeps
state; the meter decides when a transition is due.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering.intents import Intent
from protocol.metering.moment import Moment
from protocol.metering.quota import Offer
from protocol.metering.receipts import receipt
from protocol.metering.session import Grant
from protocol.metering.states import Event, Phase, after
from protocol.metering.steps import Settling, Step, ended_record, kept_offer, started_record
from protocol.metering.terms import MINUTE_MS
from protocol.wire import messages
from protocol.wire.codec import encode


def step_for(intent: Intent, moment: Moment) -> Step | None:
    """Returns the step that an intent makes; None: there is none."""
    before = moment.session.standing
    phase = after(before.phase, intent.event)
    if phase is None or (before.version == 0 and not intent.starts):
        return None  # a session begins with its start, whatever happened meanwhile
    match intent.event:
        case Event.PAUSE:
            return pause(moment)
        case Event.RESUME if before.phase is Phase.STOPPING and before.limit == "session_cap":
            return None  # no top-up raises a cap, and the grace of a cap runs once
        case Event.RESUME if moment.proven_ms < before.elapsed_ms:
            return None  # a request from before the stop does not prove the time up to it
        case Event.RESUME:
            return resume(moment)
        case Event.RETURNED:
            return come_back(moment)
        case Event.UNPROVEN:
            return skip_gap(moment, intent.at)
        case Event.LIMIT:
            return reach_limit(moment, intent.reason, intent.at)
        case Event.LOST:
            return lose(moment, phase, died=intent.reason == "died")
        case Event.EXPIRED if before.grace_until is None or moment.now_ms < before.grace_until:
            return None  # another grace ran out: a socket has returned meanwhile
        case Event.EXPIRED:
            return end(moment, "limit" if before.phase is Phase.STOPPING else "disconnected")
        case Event.STOP:
            by_limit = before.phase is Phase.STOPPING and intent.reason == "client"
            return end(moment, "limit" if by_limit else intent.reason)


def claim(moment: Moment) -> Step:
    """Settles proven time, keeps completed minutes, and extends the grant.

    Time that was used without a grant, because Redis was away, is settled as well.
    """
    at = moment.instant_of(moment.elapsed_ms)
    settling = moment.settling(elapsed_ms=moment.elapsed_ms, at=at)
    settling.settle(moment.proven_ms)
    offers, keep = _running_offers(moment, settling, settling)
    return moment.step(settling, offers=offers, keep=keep)


def _running_offers(
    moment: Moment, settling: Settling, present: Settling
) -> tuple[tuple[Offer, ...], Offer]:
    """Returns the offers to running time, and the grant it keeps.

    It keeps no less than it was granted, which it uses until the answer arrives. It gives back a
    part where others need it, or where a limit was lowered. The offers reach ahead from
    ``present``.
    """
    offers = moment.shared(present, moment.offers(present))
    keep = kept_offer(settling.offer_basis(), moment.session)
    if moment.yields and offers and offers[0].within(keep):
        # This offer is available even if the account owes. A session that kept all of it would be
        # recalled again at once, and two such sessions would recall each other without end.
        return offers[:1], offers[0]
    if moment.refreshed:
        return offers, keep
    kept_ms = keep.grant.granted_ms
    return tuple(offer for offer in offers if offer.grant.granted_ms > kept_ms), keep


def frees(step: Step, *, minutes: bool) -> bool:
    """Whether a claim gives back credits or ``minutes`` for others."""
    best = step.offers[0] if step.offers else step.keep
    held, offered = step.before.grant, best.grant if best is not None else Grant()
    if not minutes:
        return step.charge_micros + offered.held_micros < held.held_micros
    used = sum(step.used_minutes.values())
    return used + sum(offered.held_minutes.values()) < sum(held.held_minutes.values())


def note(moment: Moment) -> Step:
    """Records notices, settles proven time, and leaves the grant as it is.

    A notice is no reason to claim more. Two sessions that share the last increment each learn of
    the other's grant and send a notice of that; each would then take the increment back.
    """
    before = moment.session
    settling = moment.settling(
        elapsed_ms=moment.elapsed_ms, at=moment.instant_of(moment.elapsed_ms)
    )
    settling.settle(moment.proven_ms)
    kept = kept_offer(settling.offer_basis(), before)
    grant = msgspec.structs.replace(kept.grant, final=before.grant.final)
    return moment.step(
        settling,
        keep=msgspec.structs.replace(kept, grant=grant, more_micros=0, more_minutes={}),
    )


def pause(moment: Moment) -> Step:
    """Stops time at the request, and gives back what is held.

    The request is a proof of life. If Redis was away for a while, time stops at the newest proof
    since the request: nothing proves the time beyond it, and the client wanted an earlier stop.
    """
    at = moment.instant_of(moment.proven_ms)
    settling = _stand_still(moment, Phase.PAUSED, moment.proven_ms, at)
    return _released(moment, settling)


def resume(moment: Moment) -> Step:
    """Continues time if granted, after a start, pause or stop grace."""
    before = moment.session.standing
    settling = moment.settling()
    settling.settle(before.elapsed_ms)  # the request proves the time before the stop
    taken_ms = _free_to_take(moment) if moment.session.identity.free_key else 0
    began_at = moment.begins_at if before.version == 0 else moment.now_ms
    changes: dict[str, Any] = {
        "phase": Phase.ACTIVE,
        "at": began_at,
        "run_at": began_at,
        "free_ms": before.free_ms + taken_ms,
        "free_over": moment.free_over and not taken_ms,
        "limit": None,
        "grace_until": None,
        "lost_at": None,
    }
    if before.elapsed_ms == settling.standing.minutes_kept * MINUTE_MS:
        changes["minute_at"] = began_at
    settling.standing = msgspec.structs.replace(settling.standing, **changes)
    if before.version == 0:
        settling.records.append(started_record(moment.session.identity))
    offers = moment.beginning_offers(settling)
    return moment.step(settling, offers=offers, free_taken_ms=taken_ms)


def come_back(moment: Moment) -> Step:
    """Continues time when a socket joins in the reconnect grace.

    A paused session stays paused. Where the kind bills gaps, time has run on since the last proof
    of life; the step claims it now, as far as there is anything to grant. So it does where an
    outside clock says afterwards when the user came back.
    """
    before = moment.session.standing
    if before.phase is not Phase.SUSPENDED:
        settling = moment.settling(grace_until=None, lost_at=None)
        return moment.step(settling)
    lost_at = before.lost_at if before.lost_at is not None else before.at
    billed = moment.session.identity.terms.gap == "bill"
    began_at = moment.begins_at
    gaps = (*before.gaps[-255:], (lost_at, moment.now_ms if billed else began_at, billed))
    if moment.session.identity.terms.is_provided and began_at == lost_at:
        gaps = before.gaps  # another process goes on where a dead one stopped
    taken_ms = _free_to_take(moment) if moment.session.identity.free_key else 0
    changes: dict[str, Any] = {
        "phase": Phase.ACTIVE,
        "at": began_at,
        "run_at": began_at,
        "free_ms": before.free_ms + taken_ms,
        "free_over": moment.free_over and not taken_ms,
        "grace_until": None,
        "lost_at": None,
        "gaps": gaps,
    }
    if before.elapsed_ms == before.minutes_kept * MINUTE_MS:
        changes["minute_at"] = began_at
    settling = moment.settling(**changes)
    offers = moment.beginning_offers(settling)
    return moment.step(settling, offers=offers, free_taken_ms=taken_ms)


def skip_gap(moment: Moment, came_at: int) -> Step | None:
    """Stops time at the last proof of life; resumes at ``came_at``.

    The step combines a loss that no process noticed and the return, when a socket joined. It is
    only for kinds that bill no gaps. None: there is no gap.
    """
    position_ms = moment.proven_ms
    lost_at = moment.instant_of(position_ms)
    if lost_at >= came_at:
        return None  # another proof covers the time meanwhile
    settling = _stand_still(moment, Phase.ACTIVE, position_ms, lost_at)
    standing = settling.standing
    changes: dict[str, Any] = {
        "at": came_at,
        "run_at": came_at,
        "ungranted": (),
        "gaps": (*standing.gaps[-255:], (lost_at, came_at, False)),
    }
    if position_ms == standing.minutes_kept * MINUTE_MS:
        changes["minute_at"] = came_at
    settling.standing = msgspec.structs.replace(standing, **changes)
    offers, keep = _running_offers(moment, settling, _at_present(moment, settling))
    return moment.step(settling, offers=offers, keep=keep)


def _at_present(moment: Moment, settling: Settling) -> Settling:
    """Returns the session with its time since the join run on.

    Offers reach ahead from there. The shortest one, measured from the join, would be over by now.
    """
    standing, speed = settling.standing, moment.session.identity.terms.speed
    now_ms = max(standing.at, moment.now_ms)
    elapsed_ms = standing.elapsed_ms + (now_ms - standing.at) * speed
    present = msgspec.structs.replace(standing, elapsed_ms=elapsed_ms, at=now_ms)
    return Settling(settling.identity, settling.month_of, present)


def reach_limit(moment: Moment, limit: str, said_at: int) -> Step:
    """Records the end of counting; the save grace runs since its announcement.

    Time that is not proven yet stays held until the next proof of life settles it.
    """
    before, terms = moment.session.standing, moment.session.identity.terms
    active = before.phase is Phase.ACTIVE
    stopped_at = moment.instant_of(moment.elapsed_ms) if active else said_at
    settling = _stand_still(moment, Phase.STOPPING, moment.elapsed_ms, stopped_at)
    settling.standing = msgspec.structs.replace(
        settling.standing, limit=limit, grace_until=said_at + terms.stop_grace_ms, lost_at=None
    )
    if settling.standing.settled_ms >= moment.elapsed_ms:
        return _released(moment, settling)
    return moment.step(settling, keep=kept_offer(settling.offer_basis(), moment.session))


def stand(moment: Moment) -> Step:
    """Records the last notices of a session that does not run.

    Time proven in the stop grace is settled. When all time is settled, what is held is given back.
    The state stays the same.
    """
    settling = moment.settling()
    settling.settle(moment.proven_ms)
    if settling.standing.settled_ms >= settling.standing.elapsed_ms:
        return _released(moment, settling)
    return moment.step(settling, keep=kept_offer(settling.offer_basis(), moment.session))


def lose(moment: Moment, phase: Phase, *, died: bool) -> Step:
    """Records that this process has no socket of the session any more.

    Time ended at the last proof of life. Redis makes the step only if no other process has a
    socket. The grace begins now, when the loss is found, and costs nothing. A process that died may
    have sent notices that it did not record. Clients know these by numbers, which no other notice
    may get: otherwise a client would take a stop for a notice that it knows already.
    """
    before = moment.session
    lost_at = min(moment.alive_at, moment.now_ms)
    at = before.standing.at
    if before.standing.phase is Phase.ACTIVE:
        # Another process may have proven more time than this one knows of.
        at = lost_at = moment.instant_of(moment.proven_ms)
    settling = _stand_still(moment, phase, moment.proven_ms, at)
    if died:
        seq = moment.seq + limits.NOTICES_UNRECORDED_MAX
        settling.standing = msgspec.structs.replace(settling.standing, seq=seq)
    if before.standing.phase is not Phase.STOPPING:
        grace_ms = before.identity.terms.lost_grace_ms
        settling.standing = msgspec.structs.replace(
            settling.standing, grace_until=moment.now_ms + grace_ms, lost_at=lost_at
        )
    step = _released(moment, settling)
    return msgspec.structs.replace(step, leaving=True, farewell_at=moment.farewell_at)


def end(moment: Moment, reason: str) -> Step:
    """Ends the session at the last proven time; no event follows.

    The step carries the ``stopped`` notice, which contains the receipt.
    """
    identity, before = moment.session.identity, moment.session.standing
    limit = before.limit if reason == "limit" else None
    position_ms = moment.proven_ms
    at = before.at
    if before.phase is Phase.ACTIVE:
        at = moment.instant_of(position_ms)
    settling = _stand_still(moment, Phase.ENDED, position_ms, at)
    settling.end(at if reason in ("disconnected", "limit") else moment.now_ms, reason, limit)
    stopped = messages.Stopped(
        session_id=identity.session_id,
        seq=moment.seq + 1,
        reason=reason,  # type: ignore[arg-type]
        limit=limit,  # type: ignore[arg-type]
        receipt=receipt(ended_record(identity, settling.standing)),
    )
    settling.standing = msgspec.structs.replace(settling.standing, seq=stopped.seq)
    step = _released(moment, settling)
    return msgspec.structs.replace(step, notices=(*step.notices, encode(stopped)))


def _stand_still(moment: Moment, phase: Phase, position_ms: int, at: int) -> Settling:
    """Settles proven time, and closes the segment if one is open."""
    before = moment.session.standing
    settling = moment.settling(phase=phase, elapsed_ms=position_ms, at=at)
    settling.standing = msgspec.structs.replace(
        settling.standing, elapsed_ms=before.elapsed_ms, at=before.at
    )
    settling.settle(min(position_ms, max(moment.proven_ms, before.settled_ms)))
    settling.standing = msgspec.structs.replace(settling.standing, elapsed_ms=position_ms, at=at)
    if before.phase is Phase.ACTIVE:
        settling.halt(at)
    elif position_ms < before.elapsed_ms:
        # The stop grace showed that the client was gone before the stop.
        speed = moment.session.identity.terms.speed
        gone_ms = -(-(before.elapsed_ms - position_ms) // speed)
        from_at, to_at = before.segments[-1]
        segments = (*before.segments[:-1], (from_at, max(from_at, to_at - gone_ms)))
        settling.standing = msgspec.structs.replace(settling.standing, segments=segments)
    return settling


def _released(moment: Moment, settling: Settling) -> Step:
    """Returns the step that gives back held credits and shared free time.

    Time that is not proven is dropped here, also where it had no grant: when the session continues,
    it may reach the same position with a grant.
    """
    settling.standing = standing = msgspec.structs.replace(settling.standing, ungranted=())
    used_ms = min(standing.free_ms, standing.elapsed_ms)
    taken_ms = 0
    if moment.session.identity.free_key:
        taken_ms = used_ms - moment.session.standing.free_ms
        settling.standing = msgspec.structs.replace(standing, free_ms=used_ms)
    return moment.step(settling, free_taken_ms=taken_ms)


def _free_to_take(moment: Moment) -> int:
    """Returns the free time that a session takes of an allowance (ms).

    That is 0 once the session costs credits: the charge is a function of the whole time, whose free
    part comes first.
    """
    before = moment.session.standing
    if before.elapsed_ms > before.free_ms:
        return 0
    return max(0, moment.free_left_ms)
