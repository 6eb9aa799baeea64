"""Encodes steps and sessions for Redis, and decodes them again."""

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from protocol import limits
from protocol.metering.effects import RemoteStep, Reply
from protocol.metering.projection import BurnLine, MonthProjection, burn_line_of
from protocol.metering.quota import Offer
from protocol.metering.records import EntryPosted, HoldChanged, Record
from protocol.metering.session import Grant, Identity, SessionState, Standing
from protocol.metering.states import Phase
from protocol.metering.steps import StartBasis, Step
from protocol.metering.terms import Terms
from storage import limits as storage_limits
from storage.redis.keys import Keys

_ENCODER = msgspec.json.Encoder()
_IDENTITY = msgspec.json.Decoder(Identity)
_STANDING = msgspec.json.Decoder(Standing)
_GRANT = msgspec.json.Decoder(Grant)
_LINE = msgspec.json.Decoder(tuple[int, int, int, int, int, int, int, bool])
_RECORDS = msgspec.json.Decoder(list[Record])

_TERMS: dict[Terms, Terms] = {}
"""Terms that sessions share: most have a kind's terms, and save 900 bytes each."""


def decode_records(encoded: bytes) -> list[Record]:
    """Returns the records of one outbox entry."""
    return _RECORDS.decode(encoded)


def appended_at(entry_id: bytes) -> int:
    """Returns when an outbox entry was appended, by Redis's clock (ms)."""
    return int(entry_id.split(b"-")[0])


def decided_at(entry_id: bytes, fields: Mapping[bytes, bytes]) -> int:
    """Returns when an outbox entry's change was decided, or a little before.

    The result is in cluster time. An entry about a session's end or move has the instant beside its
    records; spends and holds have it in their records.
    """
    if b"t" in fields:
        return int(fields[b"t"])
    try:
        first, *_ = decode_records(fields[b"r"])
    except (KeyError, ValueError, msgspec.MsgspecError):
        return appended_at(entry_id)
    if isinstance(first, EntryPosted):
        return first.at
    return first.changed_at if isinstance(first, HoldChanged) else appended_at(entry_id)


def made_at(entry_id: bytes, fields: Mapping[bytes, bytes]) -> int:
    """Returns when an outbox entry's step was made, in cluster time.

    A session that ends while paused stood still long before: the change in its entry was decided
    then, but Redis knows of it only since the step.
    """
    return int(fields[b"m"]) if b"m" in fields else decided_at(entry_id, fields)


def session_of(fields: list[bytes], known: Identity | None = None) -> SessionState:
    """Returns the session of its hash's fields: identity, standing, grant, final, mark.

    ``known`` is the identity if it is known already: it never changes.
    """
    identity, standing, grant, final, *mark = fields
    return SessionState(
        identity=known or _identity_of(identity),
        standing=_STANDING.decode(standing),
        grant=msgspec.structs.replace(
            _GRANT.decode(grant), final=final.decode() if final else None
        ),
        mark=mark[0].decode() if mark and mark[0] else "",
    )


def _identity_of(encoded: bytes) -> Identity:
    """Returns the identity; sessions with equal terms share one object for them."""
    identity = _IDENTITY.decode(encoded)
    if len(_TERMS) >= storage_limits.TERMS_SHARED_MAX:
        _TERMS.clear()
    terms = _TERMS.setdefault(identity.terms, identity.terms)
    return msgspec.structs.replace(identity, terms=terms)


def burn_line_from(encoded: bytes | str) -> BurnLine:
    """Decodes a session's burn line from its account's hash."""
    return BurnLine(*_LINE.decode(encoded))


def encode_burn_line(line: BurnLine) -> str:
    """Encodes a session's burn line for its account's hash."""
    return orjson.dumps(list(msgspec.structs.astuple(line))).decode()


def month_of(month: str, counter: list[bytes], as_of_us: int = 0) -> MonthProjection:
    """Returns a month's counter from an answer: limit, used, active, held.

    A process of an earlier version does not send the last. ``as_of_us`` is the time of the figures,
    if known.
    """
    limit, used, active, held = (*counter, b"0")[:4]
    return MonthProjection(
        month=month,
        limit_minutes=int(limit) if limit else None,
        used_minutes=int(used),
        active=int(active),
        held_minutes=int(held),
        as_of_us=as_of_us,
    )


def burn_line_at(identity: Identity, standing: Standing) -> BurnLine:
    """Returns the burn line of a session with this standing."""
    return burn_line_of(
        identity.terms,
        standing.elapsed_ms,
        standing.at,
        standing.free_ms,
        running=standing.phase is Phase.ACTIVE,
    )


def encode_grant(grant: Grant) -> str:
    """Encodes a grant for its hash, without the limit it exhausts."""
    return _ENCODER.encode(msgspec.structs.replace(grant, final=None)).decode()


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "grant": encode_grant(offer.grant),
        "held": offer.grant.held_micros,
        "minutes": offer.grant.held_minutes,
        "more": offer.more_micros,
        "more_minutes": offer.more_minutes,
        "floor_ms": offer.floor_ms,
        **({"final": offer.grant.final} if offer.grant.final else {}),
        **({"part": True} if offer.part else {}),
        **({"rest": True} if offer.rest else {}),
    }


def _months(step: Step) -> dict[str, dict[str, int]]:
    held = step.before.grant.held_minutes
    offers = [*step.offers, *([step.keep] if step.keep else [])]
    months = {step.month, *held, *step.used_minutes}
    for offer in offers:
        months.update(offer.grant.held_minutes, offer.more_minutes)
    return {
        month: {"used": step.used_minutes.get(month, 0), "held": held.get(month, 0)}
        for month in sorted(months)
    }


def encode_basis(basis: StartBasis) -> dict[str, str]:
    """Encodes the basis of a start, as the scripts compare it."""
    return {"epoch": basis.epoch, "preparation": basis.preparation}


def _start(step: Step) -> dict[str, Any]:
    """The part of a step that only a start has."""
    encoded: dict[str, Any] = {"identity": _ENCODER.encode(step.before.identity).decode()}
    if step.basis is not None:
        encoded["basis"] = encode_basis(step.basis)
    if step.rehearsed:
        encoded |= {"rehearsed": True, "due": step.due_micros}
    return encoded


def encode_step(step: Step, node: str, mark: str, publish: str, keys: Keys) -> bytes:
    """Encodes ``commit.lua``'s argument: step, mark, and each counter's changes."""
    session, before, after = step.before, step.before.standing, step.standing
    tenant, terms = session.identity.tenant, session.identity.terms
    was_active, is_active = before.phase is Phase.ACTIVE, after.phase is Phase.ACTIVE
    started, ended = before.version == 0, after.phase is Phase.ENDED
    burn_change = (int(is_active) - int(was_active)) * terms.price_micros * terms.speed
    shared = session.identity.free_key is not None
    encoded: dict[str, Any] = {
        "version": before.version,
        "after": session.mark,
        "mark": mark,
        "node": node,
        "id": session.identity.session_id,
        "session": session.key,
        "user_id": session.identity.user_id,
        "standing": _ENCODER.encode(after).decode(),
        "at": after.at,
        "made_at": step.made_at,
        "released": encode_grant(Grant()),
        "offers": [_offer(offer) for offer in step.offers],
        "held": session.grant.held_micros,
        "charge": step.charge_micros,
        "charged_live_change": -before.charged_micros if ended else step.charge_micros,
        "burn_change": burn_change,
        "burn": int(is_active) * terms.price_micros * terms.speed,
        "paid": terms.price_micros > 0,
        "counts": terms.counts_minutes,
        "month": step.month,
        "months": _months(step) if terms.counts_minutes else {},
        "active": int(is_active),
        "active_change": int(is_active) - int(was_active),
        "live_change": int(started) - int(ended),
        "free_limit": terms.free_ms if shared else 0,
        "free_taken": step.free_taken_ms,
        "notices": [notice.decode() for notice in step.notices],
        "notices_kept": limits.NOTICES_KEPT_MAX,
        "minutes": [minute.decode() for minute in step.minute_messages],
        "present": step.present,
        "recalled": step.recalled,
        "insists": step.insists,
        # A process that watches a grace has no socket any more, and still needs the message.
        "graced": before.grace_until is not None,
        "leaving": step.leaving,
        **({} if step.farewell_at is None else {"farewell_at": step.farewell_at}),
        "ended": ended,
        "idle_ms": storage_limits.ACCOUNT_IDLE_MS,
        "outbox_max": storage_limits.OUTBOX_ENTRIES_MAX,
        "live_max": terms.max_live_sessions,
        "publish": publish,
        "channel": keys.channel(tenant, session.identity.account_id),
        "limits_channel": keys.limits_channel(tenant),
        "usage_channel": keys.usage_channel(tenant, session.identity.user_id),
    }
    if started:
        encoded |= _start(step)
    if step.keep is not None:
        encoded["keep"] = _offer(step.keep)
    if after.grace_until is not None:
        encoded["grace_until"] = after.grace_until
    if step.records:
        encoded["records"] = _ENCODER.encode(list(step.records)).decode()
    # Running time stays on its line, unless it restarts at the same position, after a gap.
    moved = after.run_at != before.run_at if is_active else after.elapsed_ms != before.elapsed_ms
    if not ended and (was_active != is_active or moved or after.free_ms != before.free_ms):
        encoded["line"] = encode_burn_line(burn_line_at(session.identity, after))
    return orjson.dumps(encoded)


def remote_step_of(message: dict[str, Any]) -> RemoteStep:
    """Decodes the message of ``commit.lua`` about a step, from the account's channel."""
    member, org = (
        month_of(
            message["month"], [part.encode() for part in counter], int(message.get("as_of", 0))
        )
        for counter in message["months"]
    )
    fields = [part.encode() for part in [*message["moved"], message.get("mark", "")]]
    return RemoteStep(
        session=session_of(fields),
        notices=tuple(notice.encode() for notice in message["notices"]),
        minutes=tuple(minute.encode() for minute in message["minutes"]),
        member=member,
        org=org,
    )


def reply_of(step: Step, answer: list[Any]) -> Reply:
    """Decodes ``commit.lua``'s answer to ``step``, for its meter."""
    status, detail, fields, counters, _, notices = answer
    if status == b"left":
        return Reply(accepted=False, session=None, left=True)
    session = step.before
    if fields and fields[0]:
        session = session_of(fields, step.before.identity if status == b"ok" else None)
    member, organization, _, free_left, as_of = counters
    return Reply(
        accepted=status == b"ok",
        session=session,
        member=month_of(step.month, member, int(as_of)),
        org=month_of(step.month, organization, int(as_of)),
        refused_by=detail.decode() if status in {b"refused", b"held"} else None,
        free_left_ms=int(free_left) if free_left else None,
        notices=tuple(reversed(notices)),
    )
