"""Stream Video that is not there, made from its SDK's models."""

import gzip
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote

import jwt
from getstream import models

from tests.calls.examples import example
from tests.calls.fake_calls import FakeCalls, FakePresence, FakeRun, SentWebhook

API_KEY = "stream-key"
SECRET = "stream-secret-" + "s" * 32
OWN_TIME = 987_654
"""The time of the request itself in each answer: it must never become a bill."""

EVENT_MODELS: dict[str, type] = {
    "call.session_started": models.CallSessionStartedEvent,
    "call.session_participant_joined": models.CallSessionParticipantJoinedEvent,
    "call.session_participant_left": models.CallSessionParticipantLeftEvent,
    "call.session_ended": models.CallSessionEndedEvent,
    "call.ended": models.CallEndedEvent,
    "call.deleted": models.CallDeletedEvent,
    "call.member_added": models.CallMemberAddedEvent,
    "call.updated": models.CallUpdatedEvent,
}


class FakeStream(FakeCalls):
    """Calls at Stream.

    ``names="old"`` sends only the events of older set-ups; ``instants`` says how events write
    times; ``packed`` compresses bodies.
    """

    def __init__(
        self,
        now_ms: int,
        seed: int = 0,
        *,
        names: Literal["new", "old"] = "new",
        instants: Literal["rfc3339", "ns"] = "rfc3339",
        packed: bool = False,
        page_rows: int = 100,
    ) -> None:
        super().__init__(now_ms, seed)
        self.names = names
        self.instants = instants
        self.packed = packed
        self.page_rows = page_rows
        """Most rows of a page, whatever the request asks for."""

    # --- Events -----------------------------------------------------------------------

    def send(self, event_type: str, model: type | None = None, **fields: Any) -> SentWebhook:
        """Sends one event now.

        ``model`` is for types that the SDK does not know.
        """
        event = example(
            model or EVENT_MODELS[event_type],
            self.instant(self.now_ms),
            type=event_type,
            **{"created_at": self.instant(self.now_ms), **fields},
        )
        sent = self.signed(event)
        self.sent.append(sent)
        return sent

    def signed(self, event: Any, **headers: str) -> SentWebhook:
        """An event as Stream signs and sends it."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return SentWebhook(
            self.now_ms,
            "/api/webhooks/stream-call-events",
            {
                "content-type": "application/json",
                "x-signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
                "x-webhook-id": self._hex(32),
                "x-webhook-attempt": "1",
                "x-api-key": API_KEY,
                **({"content-encoding": "gzip"} if self.packed else {}),
                **headers,
            },
            gzip.compress(body) if self.packed else body,
        )

    def instant(self, at_ms: int | None) -> Any:
        """An instant as events have it."""
        if at_ms is None or self.instants == "ns":
            return None if at_ms is None else at_ms * 1_000_000
        return (
            datetime.fromtimestamp(at_ms / 1000, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "456Z")
        )

    def send_started(self, run: FakeRun) -> None:
        """Sends that a session has begun."""
        if self.names == "old":
            # The SDK knows no such event; existing set-ups receive it with the call.
            self.send(
                "call.started", models.CallUpdatedEvent, call_cid=run.call, call=self.call(run),
            )  # fmt: skip
            return
        self._send_session("call.session_started", run)

    def send_joined(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a device came in; older set-ups hear of a member."""
        if self.names == "old":
            self._send_member("call.member_joined", run, presence)
            return
        self.send(
            "call.session_participant_joined", call_cid=run.call, session_id=run.session,
            participant=self.participant(presence),
        )  # fmt: skip

    def send_left(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a device went."""
        if self.names == "old":
            self._send_member("call.member_left", run, presence)
            return
        assert presence.to_ms is not None
        self.send(
            "call.session_participant_left", call_cid=run.call, session_id=run.session,
            participant=self.participant(presence),
            duration_seconds=(presence.to_ms - presence.from_ms) // 1000,
        )  # fmt: skip

    def send_ended(self, run: FakeRun) -> None:
        """Sends that a session is over."""
        if self.names == "old":
            self.send_marked(run)
            return
        self._send_session("call.session_ended", run)

    def send_marked(self, run: FakeRun) -> None:
        """Sends that the call is marked as ended: no session's end."""
        self.send("call.ended", call_cid=run.call, call=self.call(run), members=[])

    def _send_session(self, event_type: str, run: FakeRun) -> None:
        self.send(event_type, call_cid=run.call, session_id=run.session, call=self.call(run))

    def _send_member(self, event_type: str, run: FakeRun, presence: FakePresence) -> None:
        at = self.instant(self.now_ms)
        member = example(models.MemberResponse, at, user_id=presence.user)
        self.send(
            event_type, models.CallMemberAddedEvent, call_cid=run.call, call=self.call(run),
            members=[member],
        )  # fmt: skip

    # --- Objects ----------------------------------------------------------------------

    def call(self, run: FakeRun) -> dict[str, Any]:
        """The call of a run, as events and answers have it."""
        at = self.instant(run.started_ms)
        call_type, _, call_id = run.call.partition(":")
        return example(
            models.CallResponse, at, cid=run.call, type=call_type, id=call_id, custom=run.custom,
            current_session_id=run.session if run.ended_ms is None else "",
            session=self.session(run), ended_at=self.instant(run.ended_ms),
            created_by=example(models.UserResponse, at, id=run.creator),
        )  # fmt: skip

    def session(self, run: FakeRun) -> dict[str, Any]:
        """The session of a run."""
        at = self.instant(run.started_ms)
        return example(
            models.CallSessionResponse, at, id=run.session, started_at=at,
            ended_at=self.instant(run.ended_ms),
            participants=[self.participant(each) for each in run.present()],
        )  # fmt: skip

    def participant(self, presence: FakePresence) -> dict[str, Any]:
        """A participant, as events have one."""
        at = self.instant(presence.from_ms)
        user = example(models.UserResponse, at, id=presence.user, name=f"Name {presence.user}")
        return example(
            models.CallParticipantResponse, at, user=user, user_session_id=presence.device,
            joined_at=at,
        )  # fmt: skip

    def _new_run(self, call: str, custom: dict[str, Any]) -> FakeRun:
        session = "-".join(self._hex(length) for length in (8, 4, 4, 4, 12))
        for run in self.runs:
            if run.call == call:
                custom = {**run.custom, **custom}  # it is the call's, not the session's
        return FakeRun(call, session, call, self.now_ms, custom=custom)

    def _new_device(self) -> str:
        return "-".join(self._hex(length) for length in (8, 4, 4, 4, 12))

    # --- REST -------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        """The answer of Stream's REST, with instants in nanoseconds."""
        kept, self.instants = self.instants, "ns"
        try:
            status, answer = self._answer(method, path, query, headers, body)
        finally:
            self.instants = kept
        return status, "application/json", json.dumps(answer).encode()

    def _answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        try:
            jwt.decode(
                headers.get("authorization", ""), SECRET, algorithms=["HS256"],
                options={"verify_exp": False, "verify_iat": False},
            )  # fmt: skip
        except jwt.PyJWTError:
            return 401, _error(5, "the token is invalid")
        if query.get("api_key") != API_KEY:
            return 401, _error(2, "the api_key is not known")
        parts = [unquote(part) for part in path.split("/")[1:]]
        if parts[:4] != ["api", "v2", "video", "call"] or len(parts) < 6:
            return 404, _error(16, "there is no such path")
        cid, rest = f"{parts[4]}:{parts[5]}", parts[6:]
        runs = [run for run in self.runs if run.call == cid]
        if not runs:
            return 404, _error(16, "there is no such call")
        match (method, rest):
            case ("GET", []):
                return 200, self._call_answer(runs[-1])
            case ("GET", ["session", session, "participant_sessions"]):
                found = next((run for run in runs if run.session == session), None)
                if found is None:
                    return 404, _error(16, "there is no such session")
                return 200, self._sessions_answer(found, query)
            case ("POST", ["kick"]):
                agrees = self.end_asked(runs[-1], json.loads(body)["user_id"])
                done = example(models.KickUserResponse, 0, duration="987654ms")
            case ("POST", ["mark_ended"]):
                agrees = self.end_asked(runs[-1], None)
                done = example(models.EndCallResponse, 0, duration="987654ms")
            case _:
                return 404, _error(16, "there is no such path")
        return (200, done) if agrees else (500, _error(-1, "not now"))

    def _call_answer(self, run: FakeRun) -> dict[str, Any]:
        return example(
            models.GetCallResponse, self.instant(run.started_ms), call=self.call(run), members=[],
            duration="987654ms",
        )  # fmt: skip

    def _sessions_answer(self, run: FakeRun, query: dict[str, str]) -> dict[str, Any]:
        start = int(query.get("next") or 0)
        rows = min(self.page_rows, int(query.get("limit") or self.page_rows))
        page = run.presences[start : start + rows]
        call_type, _, call_id = run.call.partition(":")
        seconds = [self._seconds(each) for each in run.presences]
        return example(
            models.QueryCallParticipantSessionsResponse, 0, call_id=call_id, call_type=call_type,
            call_session_id=run.session, duration=OWN_TIME,
            total_participant_sessions=len(run.presences), total_participant_duration=sum(seconds),
            participants_sessions=[self._session_details(each) for each in page],
            next=str(start + rows) if start + rows < len(run.presences) else None, prev=None,
            session=self.session(run),
        )  # fmt: skip

    def _session_details(self, presence: FakePresence) -> dict[str, Any]:
        return example(
            models.ParticipantSessionDetails, 0, user_id=presence.user,
            user_session_id=presence.device, joined_at=self.instant(presence.from_ms),
            left_at=self.instant(presence.to_ms), duration_in_seconds=self._seconds(presence),
            roles=["user"],
        )  # fmt: skip

    def _seconds(self, presence: FakePresence) -> int:
        until_ms = self.now_ms if presence.to_ms is None else presence.to_ms
        return (until_ms - presence.from_ms) // 1000


def _error(code: int, message: str) -> dict[str, Any]:
    return example(models.APIError, 0, code=code, message=message, duration="987654ms")
