"""LiveKit: its webhooks as facts.

The token in `Authorization` is signed with the project's secret and has the body's hash. The events
carry no duration, may be lost or reversed, and a participant may be a machine.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import jwt
import msgspec

from server import limits as server_limits
from server.calls.event_fields import (
    body_digest,
    check_age,
    checked_id,
    event_digest,
    forged,
    is_signature,
    malformed,
    read_event,
)
from server.calls.facts import CallRun, CallTruth, EventRefusal, Fact, FactKind, RefusedEventError
from server.calls.livekit_fields import custom_of, is_person, number, text
from server.calls.livekit_rest import LiveKitRest

NAME: Final = "livekit"
EVENTS: Final = {
    "room_started": FactKind.STARTED,
    "participant_joined": FactKind.JOINED,
    "participant_left": FactKind.LEFT,
    # The participant never became active, so no time of theirs counts.
    "participant_connection_aborted": FactKind.LEFT,
    "room_finished": FactKind.ENDED,
}


class LiveKitAdapter:
    """The adapter of LiveKit: see :class:`server.calls.facts.Adapter`."""

    name = NAME
    has_duration = False
    maps_calls = True

    def __init__(self, api_key: str, secret: str, rest: LiveKitRest) -> None:
        self._api_key = api_key
        self._secret = secret
        self._rest = rest

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        """Checks the token, its hash of the body, and both ages."""
        given = headers.get("authorization", "").strip()
        scheme, _, rest = given.partition(" ")
        claims = self._claims(rest.strip() if scheme.lower() == "bearer" else given)
        _check_times(claims, now_ms)
        said = claims.get("sha256")
        if not isinstance(said, str) or not said:
            # A participant's own token is signed with the same secret.
            raise forged("the token is not one of a webhook")
        try:
            found = base64.b64decode(said).hex()
        except (binascii.Error, ValueError):
            found = ""
        if not is_signature(hashlib.sha256(body).hexdigest(), found):
            raise RefusedEventError(EventRefusal.ALTERED, "the token is of another body")
        check_age(_created_ms(_read(body)), now_ms)

    def event_key(self, body: bytes) -> str:
        """The key of the event: of the id in the signed body."""
        return _key(_read(body), body)

    def facts(self, body: bytes) -> list[Fact]:
        """The facts of an event; a participant who left has also joined."""
        event = _read(body)
        kind = EVENTS.get(text(event, "event"))
        if kind is None:
            return []
        room = _part(event, "room")
        sid = checked_id(text(room, "sid"), "room.sid")
        created_ms = _created_ms(event)
        fact = Fact(
            provider=NAME, call=sid, call_session=sid, participant=None, device=None, kind=kind,
            at_ms=created_ms, key=_key(event, body), custom=custom_of(room),
            rest_name=checked_id(text(room, "name"), "room.name"),
            # LiveKit gave up on events before this one.
            wants_sweep=number(event, "numDropped") > 0,
        )  # fmt: skip
        if kind is FactKind.STARTED:
            started_ms = number(room, "creationTimeMs") or 1000 * number(room, "creationTime")
            return [msgspec.structs.replace(fact, at_ms=started_ms or created_ms)]
        if kind is FactKind.ENDED:
            return [fact]
        return _of_participant(event, fact)

    async def sweep(self, run: CallRun) -> CallTruth:
        """Asks who is in the room now, and for the room."""
        return await self._rest.sweep(run)

    async def end(self, run: CallRun, participant: str | None) -> None:
        """Removes the participant, or deletes the room."""
        await self._rest.end(run, participant)

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                issuer=self._api_key,
                # The times are checked against the process's clock.
                options={
                    "require": ["exp"], "verify_exp": False, "verify_nbf": False,
                    "verify_iat": False, "verify_aud": False,
                },
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise forged("Authorization has no token of this LiveKit project") from None


def _check_times(claims: Mapping[str, Any], now_ms: int) -> None:
    for name, refusal, sign in (("exp", EventRefusal.ANCIENT, -1), ("nbf", EventRefusal.AHEAD, 1)):
        at_s = claims.get(name)
        if at_s is None:
            continue
        if not isinstance(at_s, int | float) or isinstance(at_s, bool):
            raise forged(f"{name} of the token is no time")
        if sign * (at_s * 1000 - now_ms) > server_limits.JWT_LEEWAY_MS:
            raise RefusedEventError(refusal, f"the token's {name} forbids it now")


def _read(body: bytes) -> dict[str, Any]:
    return read_event(body, dict[str, Any])


def _part(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = event.get(name)
    if not isinstance(found, Mapping):
        raise malformed(f"{name} is missing")
    return found


def _created_ms(event: Mapping[str, Any]) -> int:
    created_ms = 1000 * number(event, "createdAt")
    if created_ms <= 0:
        raise malformed("createdAt is missing")
    return created_ms


def _key(event: Mapping[str, Any], body: bytes) -> str:
    event_id = text(event, "id")
    return event_digest(NAME, text(event, "event"), event_id) if event_id else body_digest(body)


def _of_participant(event: Mapping[str, Any], fact: Fact) -> list[Fact]:
    """The facts of a participant's event; none for machines."""
    found = _part(event, "participant")
    if not is_person(found):
        return []
    fact = msgspec.structs.replace(
        fact,
        participant=checked_id(text(found, "identity"), "participant.identity"),
        device=checked_id(text(found, "sid"), "participant.sid"),
    )
    # Events are dated in whole seconds, joins also in milliseconds.
    joined_ms = number(found, "joinedAtMs") or 1000 * number(found, "joinedAt")
    if fact.kind is FactKind.JOINED:
        return [msgspec.structs.replace(fact, at_ms=joined_ms or fact.at_ms)]
    if text(event, "event") == "participant_connection_aborted":
        return [msgspec.structs.replace(fact, at_ms=joined_ms or fact.at_ms)]
    left = msgspec.structs.replace(fact, at_ms=max(fact.at_ms, joined_ms))
    if not joined_ms:
        return [left]
    joined = msgspec.structs.replace(
        fact, kind=FactKind.JOINED, at_ms=joined_ms, key=f"{fact.key}+joined"
    )
    return [joined, left]
