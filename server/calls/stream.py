"""Stream Video: its webhooks as facts.

Stream signs the uncompressed body with the application's secret; the header's id and attempt are
not signed, so they count for nothing here. Stream tries an event three times within 15 s: a longer
outage loses events, and the sweep finds what they said.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

import msgspec

from server.calls.event_fields import (
    body_digest,
    check_age,
    checked_id,
    duration_ms,
    event_digest,
    forged,
    instant_ms,
    instant_ns,
    is_signature,
    malformed,
    read_event,
)
from server.calls.facts import CallRun, CallTruth, Fact, FactKind
from server.calls.stream_rest import StreamRest
from server.calls.stream_types import VideoEvent, VideoParticipant, VideoSession

NAME: Final = "stream"
SESSION_EVENTS: Final = {
    "call.session_started": FactKind.STARTED,
    "call.session_participant_joined": FactKind.JOINED,
    "call.session_participant_left": FactKind.LEFT,
    "call.session_ended": FactKind.ENDED,
    # The older name of the first.
    "call.started": FactKind.STARTED,
    # Stream forgets the call, and says nothing further about it.
    "call.deleted": FactKind.ENDED,
}
HINTS: Final = frozenset(
    {
        # Older names. A member is invited, and may never be present: ask who is.
        "call.member_joined",
        "call.member_left",
        # The call is marked as ended, its session may still run: ask whether it does.
        "call.ended",
    }
)


class StreamAdapter:
    """The adapter of Stream: see :class:`server.calls.facts.Adapter`."""

    name = NAME
    has_duration = True

    @property
    def maps_calls(self) -> bool:
        """Whether a call's custom data may say whose it is."""
        return self._trusts_custom

    def __init__(self, secret: str, rest: StreamRest, *, trusts_custom: bool = True) -> None:
        """``trusts_custom``: only backends may write a call's custom data."""
        self._secret = secret.encode()
        self._trusts_custom = trusts_custom
        self._rest = rest

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        """Checks the signature over the uncompressed body, then the event's age."""
        expected = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        if not is_signature(expected, headers.get("x-signature")):
            raise forged("X-Signature is not Stream's of this body")
        check_age(_created_ms(read_event(body, VideoEvent)), now_ms)

    def event_key(self, body: bytes) -> str:
        """The key of the event: of its identity or its body."""
        return _key(read_event(body, VideoEvent), body)

    def facts(self, body: bytes) -> list[Fact]:
        """The facts of an event; a participant who left has also joined."""
        event = read_event(body, VideoEvent)
        kind = SESSION_EVENTS.get(event.type)
        if kind is None and event.type not in HINTS:
            return []
        call, session_id = _run_of(event)
        if not session_id:
            return []  # an older event, or one of a call without anybody in it
        session = _session_of(event, session_id)
        ended_ms = instant_ms(session.ended_at)
        if kind is None:
            kind = FactKind.STARTED if ended_ms is None else FactKind.ENDED
        created_ms = _created_ms(event)
        custom: dict[str, str] = {}
        if event.call is not None:
            custom = event.call.said(trusts_custom=self._trusts_custom)
        key = _key(event, body)
        if kind in (FactKind.JOINED, FactKind.LEFT):
            return _of_participant(event, kind, call, session_id, key, custom)
        started_ms = instant_ms(session.started_at)
        at_ms = ended_ms if kind is FactKind.ENDED else started_ms
        return [
            Fact(
                provider=NAME, call=call, call_session=session_id, participant=None, device=None,
                kind=kind, at_ms=created_ms if at_ms is None else at_ms, key=key, custom=custom,
                wants_sweep=event.type in HINTS,
            )
        ]  # fmt: skip

    async def sweep(self, run: CallRun) -> CallTruth:
        """Asks for the call, its session and all participants' sessions."""
        return await self._rest.sweep(run, trusts_custom=self._trusts_custom)

    async def end(self, run: CallRun, participant: str | None) -> None:
        """Kicks the participant, or marks the call as ended."""
        await self._rest.end(run, participant)


def _run_of(event: VideoEvent) -> tuple[str, str]:
    """The call's cid, and its session or an empty text."""
    call = event.call
    cid = checked_id(event.call_cid or (call.cid if call is not None else ""), "call_cid")
    session_id = event.session_id
    if not session_id and call is not None:
        session_id = call.current_session_id or (
            call.session.id if call.session is not None else ""
        )
    return cid, checked_id(session_id, "session_id") if session_id else ""


def _session_of(event: VideoEvent, session_id: str) -> VideoSession:
    """What the event says about the session, which may be nothing."""
    found = event.call.session if event.call is not None else None
    return found if found is not None and found.id in ("", session_id) else VideoSession()


def _created_ms(event: VideoEvent) -> int:
    created_ms = instant_ms(event.created_at)
    if created_ms is None:
        raise malformed("created_at is missing")
    return created_ms


def _key(event: VideoEvent, body: bytes) -> str:
    if event.type not in SESSION_EVENTS:
        return body_digest(body)
    participant = event.participant or VideoParticipant()
    user_id = participant.user.id if participant.user is not None else participant.user_id
    return event_digest(
        NAME, event.type, *_run_of(event), user_id, participant.user_session_id,
        instant_ns(event.created_at),
    )  # fmt: skip


def _of_participant(
    event: VideoEvent,
    kind: FactKind,
    call: str,
    session_id: str,
    key: str,
    custom: dict[str, str],
) -> list[Fact]:
    """The facts of a participant's event; `left` has `joined` in it."""
    found = event.participant
    if found is None:
        raise malformed("participant is missing")
    user_id = found.user.id if found.user is not None else found.user_id
    joined_ms = instant_ms(found.joined_at)
    created_ms = _created_ms(event)
    joined = Fact(
        provider=NAME, call=call, call_session=session_id,
        participant=checked_id(user_id, "participant.user.id"),
        device=checked_id(found.user_session_id, "participant.user_session_id"),
        kind=FactKind.JOINED, at_ms=created_ms if joined_ms is None else joined_ms, key=key,
        custom=custom,
    )  # fmt: skip
    if kind is FactKind.JOINED:
        return [joined]
    left = msgspec.structs.replace(
        joined,
        kind=FactKind.LEFT,
        at_ms=max(created_ms, joined.at_ms if joined_ms is not None else 0),
        provider_duration_ms=duration_ms(event.duration_seconds),
    )
    if joined_ms is None:
        return [left]
    return [msgspec.structs.replace(joined, key=f"{key}+joined"), left]
