"""LiveKit that is not there, made from the messages of LiveKit's SDK."""

import base64
import hashlib
import json
from typing import Any, cast

import jwt
from google.protobuf.json_format import MessageToDict, MessageToJson, ParseDict
from google.protobuf.message import Message
from livekit.protocol import room as rooms
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from tests.calls.fake_calls import FakeCalls, FakePresence, FakeRun, SentWebhook

API_KEY = "APIfake"
SECRET = "livekit-secret-" + "s" * 32
TOKEN_S = 300
"""Life of the token of a webhook, as LiveKit makes it."""

ABSENT = {
    "livekit.WebhookEvent": {
        # Set on events of egress, ingress, tracks and agents' jobs, which are no facts.
        "egress_info", "ingress_info", "track", "job", "num_dropped", "room_end_reason",
    },
    "livekit.Room": {"turn_password", "enabled_codecs", "active_recording", "version"},
    "livekit.ParticipantInfo": {
        "tracks", "permission", "region", "data_tracks", "kind_details", "disconnect_reason",
        "capabilities", "client_protocol",
    },
}  # fmt: skip
"""Fields of the messages that the fake leaves out, as LiveKit may."""

REQUESTS: dict[str, Any] = {
    "ListRooms": rooms.ListRoomsRequest,
    "ListParticipants": rooms.ListParticipantsRequest,
    "RemoveParticipant": rooms.RoomParticipantIdentity,
    "DeleteRoom": rooms.DeleteRoomRequest,
}


class FakeLiveKit(FakeCalls):
    """Rooms at LiveKit: each run has a sid of its own."""

    # --- Events -----------------------------------------------------------------------

    def send(self, event: str, run: FakeRun, **fields: Any) -> SentWebhook:
        """Sends one event now, dated in whole seconds."""
        sent = self.signed(
            WebhookEvent(
                event=event, id=f"EV_{self._hex(12)}", created_at=self.now_ms // 1000,
                room=self.room(run), **fields,
            )
        )  # fmt: skip
        self.sent.append(sent)
        return sent

    def signed(self, event: WebhookEvent | bytes, **claims: Any) -> SentWebhook:
        """An event as LiveKit signs and sends it."""
        body = event if isinstance(event, bytes) else MessageToJson(event, indent=None).encode()
        now_s = self.now_ms // 1000
        found = {
            "iss": API_KEY,
            "nbf": now_s,
            "exp": now_s + TOKEN_S,
            "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
            **claims,
        }
        return SentWebhook(
            self.now_ms,
            "/v1/calls/events/livekit",
            {
                "content-type": "application/webhook+json",
                "authorization": jwt.encode(found, SECRET, algorithm="HS256"),
            },
            body,
        )

    def send_started(self, run: FakeRun) -> None:
        """Sends that a room has begun."""
        self.send("room_started", run)

    def send_joined(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a participant came in."""
        self.send("participant_joined", run, participant=self.participant(presence))

    def send_left(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a participant went; without a duration."""
        self.send("participant_left", run, participant=self.participant(presence))

    def send_ended(self, run: FakeRun) -> None:
        """Sends that a room is over."""
        self.send("room_finished", run)

    # --- Objects ----------------------------------------------------------------------

    def room(self, run: FakeRun) -> Room:
        """The room of a run."""
        return Room(
            sid=run.session, name=run.name, empty_timeout=300, departure_timeout=20,
            max_participants=50, creation_time=run.started_ms // 1000,
            creation_time_ms=run.started_ms, metadata=json.dumps(run.custom) if run.custom else "",
            num_participants=len(run.present()), num_publishers=len(run.present()),
        )  # fmt: skip

    def participant(self, presence: FakePresence, **fields: Any) -> ParticipantInfo:
        """A participant, who is a person."""
        is_present = presence.to_ms is None
        return ParticipantInfo(
            **{
                "sid": presence.device, "identity": presence.user,
                "state": ParticipantInfo.ACTIVE if is_present else ParticipantInfo.DISCONNECTED,
                "joined_at": presence.from_ms // 1000, "joined_at_ms": presence.from_ms,
                "name": f"Name {presence.user}", "version": 3, "metadata": "", "is_publisher": True,
                "kind": ParticipantInfo.STANDARD, "attributes": {}, **fields,
            }
        )  # fmt: skip

    def _new_run(self, call: str, custom: dict[str, Any]) -> FakeRun:
        sid = f"RM_{self._hex(12)}"
        return FakeRun(sid, sid, call, self.now_ms, custom=custom)

    def _new_device(self) -> str:
        return f"PA_{self._hex(12)}"

    # --- REST (Twirp) -----------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        """The answer of LiveKit's REST, in JSON or protobuf."""
        name = path.removeprefix("/twirp/livekit.RoomService/")
        if method != "POST" or name not in REQUESTS:
            return _error(404, "bad_route")
        is_binary = headers.get("content-type") == "application/protobuf"
        request = REQUESTS[name]()
        if is_binary:
            request.ParseFromString(body)
        else:
            ParseDict(json.loads(body), request)
        grants = _grants(headers.get("authorization", ""))
        if grants is None:
            return _error(401, "unauthenticated")
        if not _may(name, grants, request):
            return _error(403, "permission_denied")
        found = self._do(name, request)
        if isinstance(found, tuple):
            return found
        if is_binary:
            return 200, "application/protobuf", found.SerializeToString()
        # Twirp's JSON keeps the names of the protocol.
        said = MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return 200, "application/json", json.dumps(said).encode()

    def _do(self, name: str, request: Any) -> Message | tuple[int, str, bytes]:
        if name == "ListRooms":
            names = list(request.names)
            return rooms.ListRoomsResponse(
                rooms=[
                    self.room(run)
                    for run in self.runs
                    if run.ended_ms is None and (not names or run.name in names)
                ]
            )
        run = self.current(request.room)
        if run is None:
            return _error(404, "not_found")
        if name == "ListParticipants":
            present = [self.participant(each) for each in run.present()]
            return rooms.ListParticipantsResponse(participants=present)
        user = request.identity if name == "RemoveParticipant" else None
        if user is not None and not any(each.user == user for each in run.present()):
            return _error(404, "not_found")
        if not self.end_asked(run, user):
            return _error(503, "unavailable")
        if user is None:
            return rooms.DeleteRoomResponse()
        return rooms.RemoveParticipantResponse()


def _grants(authorization: str) -> dict[str, Any] | None:
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"], issuer=API_KEY,
            options={"verify_exp": False, "verify_nbf": False},
        )  # fmt: skip
    except jwt.PyJWTError:
        return None
    return cast("dict[str, Any]", claims.get("video", {}))


def _may(name: str, grants: dict[str, Any], request: Any) -> bool:
    if name == "ListRooms":
        return bool(grants.get("roomList"))
    if name == "DeleteRoom":
        return bool(grants.get("roomCreate"))
    return bool(grants.get("roomAdmin")) and grants.get("room") == request.room


def _error(status: int, code: str) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps({"code": code, "msg": code}).encode()
