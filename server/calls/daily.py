"""Daily: its webhooks as facts, and its REST.

A participant's events name the room, not the meeting, so a room is one run: use one for each call.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec

from server.calls import event_fields as fields
from server.calls import facts as call_facts
from server.calls import rest
from server.calls.facts import FactKind

NAME: Final = "daily"
GUEST: Final = "guest "
EVENTS: Final = {
    "meeting.started": (FactKind.STARTED, "start_ts"),
    "participant.joined": (FactKind.JOINED, "joined_at"),
    "participant.left": (FactKind.LEFT, "joined_at"),
    "meeting.ended": (FactKind.ENDED, "end_ts"),
}


class DailyEvent(msgspec.Struct):
    """The fields of an event that matter here."""

    type: str = ""
    id: str = ""
    event_ts: float | None = None
    payload: dict[str, Any] = {}


class DailyMeeting(msgspec.Struct):
    """A meeting, as REST has it."""

    start_time: float | None = None
    ongoing: bool = False
    participants: list[dict[str, Any]] = []


class DailyMeetings(msgspec.Struct):
    """The newest meetings of a room; to list none is no end."""

    data: Annotated[list[DailyMeeting], msgspec.Meta(min_length=1)]


class DailyAdapter:
    """The adapter of Daily: see :class:`server.calls.facts.Adapter`."""

    name = NAME
    has_duration, maps_calls = True, False

    def __init__(
        self, secret: str, api_key: str, client: rest.RestClient, now_ms: Callable[[], int]
    ) -> None:
        """``secret`` is the webhook's, in base64 as Daily shows it."""
        self._secret = base64.b64decode(secret)
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._client = client
        self._now_ms = now_ms

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        """Checks the signature over time and body, then the age."""
        sent = headers.get("x-webhook-timestamp", "")
        signed = hmac.new(self._secret, f"{sent}.".encode() + body, hashlib.sha256).digest()
        expected = base64.b64encode(signed).decode()
        if not fields.is_signature(expected, headers.get("x-webhook-signature")):
            raise fields.forged("X-Webhook-Signature is not Daily's of this body")
        event = fields.read_event(body, DailyEvent)
        if event.type:  # the test of a new webhook has none
            fields.check_age(fields.required_ms(event.event_ts, "event_ts"), now_ms)

    def event_key(self, body: bytes) -> str:
        """The key of the event: of the id in the signed body."""
        event = fields.read_event(body, DailyEvent)
        return fields.event_digest(NAME, event.type, event.id or body)

    def facts(self, body: bytes) -> list[call_facts.Fact]:
        """The facts of an event; a participant who left has also joined."""
        event = fields.read_event(body, DailyEvent)
        if event.type not in EVENTS:
            return []
        (kind, field), said = EVENTS[event.type], event.payload
        room, key = fields.checked_id(said.get("room"), "room"), self.event_key(body)
        fact = call_facts.Fact(
            provider=NAME, call=room, call_session=room, participant=None, device=None, kind=kind,
            at_ms=fields.required_ms(said.get(field), field), key=key,
        )  # fmt: skip
        if kind in (FactKind.STARTED, FactKind.ENDED):
            return [fact]
        who, device = _who(said, "session_id")
        joined = msgspec.structs.replace(fact, kind=FactKind.JOINED, participant=who, device=device)
        if kind is FactKind.JOINED:
            return [joined]
        figure_ms = fields.duration_ms(said.get("duration"))
        sent_ms = fields.required_ms(event.event_ts, "event_ts")
        left_ms = sent_ms if figure_ms is None else joined.at_ms + figure_ms
        left = msgspec.structs.replace(
            joined, kind=kind, at_ms=left_ms, provider_duration_ms=figure_ms
        )
        return [msgspec.structs.replace(joined, key=f"{key}+joined"), left]

    async def sweep(self, run: call_facts.CallRun) -> call_facts.CallTruth:
        """Asks for the room's newest meeting."""
        asked_at_ms, query = self._now_ms(), {"room": run.call, "limit": "1"}
        body = await self._client.ask("GET", "/meetings", headers=self._headers, query=query)
        meeting = rest.read_answer(NAME, body or b"", DailyMeetings).data[0]
        try:
            presences = tuple(_presence(one, meeting.ongoing) for one in meeting.participants)
            started_ms = fields.seconds_ms(meeting.start_time)
        except call_facts.RefusedEventError as error:
            raise rest.unusable(NAME, error) from None
        return call_facts.CallTruth(
            provider=NAME, call=run.call, call_session=run.call_session, asked_at_ms=asked_at_ms,
            started_at_ms=started_ms, ended=not meeting.ongoing, ended_at_ms=None,
            presences=presences, has_history=True, complete=True,
            durations_ms=rest.summed_durations_ms(presences),
        )  # fmt: skip

    async def end(self, run: call_facts.CallRun, participant: str | None) -> None:
        """Ejects the participant, or all by letting the room expire."""
        path = f"/rooms/{quote(run.call, safe='')}"
        body: Any = {"properties": {"exp": self._now_ms() // 1000, "eject_at_room_exp": True}}
        if participant is not None:
            ids = "ids" if participant.startswith(GUEST) else "user_ids"
            path, body = f"{path}/eject", {ids: [participant.removeprefix(GUEST)]}
        await self._client.ask("POST", path, headers=self._headers, body=body)


def _who(said: Mapping[str, Any], device_field: str) -> tuple[str, str]:
    """The user, or a guest by their connection; and the connection."""
    device, user = fields.checked_id(said.get(device_field), device_field), said.get("user_id")
    return (GUEST + device if user is None else fields.checked_id(user, "user_id")), device


def _presence(said: Mapping[str, Any], is_ongoing: bool) -> call_facts.Presence:
    figure_ms = fields.duration_ms(said.get("duration"))
    from_ms = fields.required_ms(said.get("join_time"), "join_time")
    who, device = _who(said, "participant_id")
    to_ms = None if is_ongoing else from_ms + (figure_ms or 0)
    return call_facts.Presence(
        participant=who, device=device, from_at_ms=from_ms, to_at_ms=to_ms, duration_ms=figure_ms
    )
