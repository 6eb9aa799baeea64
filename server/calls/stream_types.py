"""What Stream sends and answers: the fields that matter here."""

from typing import Any

import msgspec

from server.calls.event_fields import Instant, custom_texts


class VideoUser(msgspec.Struct):
    """A user, as events name one."""

    id: str = ""


class VideoParticipant(msgspec.Struct):
    """A participant of a session."""

    user: VideoUser | None = None
    user_id: str = ""
    user_session_id: str = ""
    joined_at: Instant = None


class VideoSession(msgspec.Struct):
    """One run of a call."""

    id: str = ""
    started_at: Instant = None
    ended_at: Instant = None


class VideoCall(msgspec.Struct):
    """A call as events and answers have it."""

    cid: str = ""
    current_session_id: str | None = ""
    custom: dict[str, Any] | None = None
    created_by: VideoUser | None = None
    session: VideoSession | None = None

    def said(self, *, trusts_custom: bool) -> dict[str, str]:
        """The call's own data, and its creator as the host.

        ``trusts_custom``: the custom data count. Stream itself names the creator.
        """
        creator = self.created_by.id if self.created_by is not None else ""
        host = custom_texts({"host": creator}) if creator else {}
        return {**host, **custom_texts(self.custom if trusts_custom else None)}


class VideoEvent(msgspec.Struct):
    """The fields of an event that matter here."""

    type: str
    created_at: Instant = None
    call_cid: str = ""
    session_id: str | None = ""
    call: VideoCall | None = None
    participant: VideoParticipant | None = None
    duration_seconds: int | float | None = None


class VideoParticipantSession(msgspec.Struct):
    """One stretch of one device, as REST has it."""

    user_id: str = ""
    user_session_id: str = ""
    joined_at: Instant = None
    left_at: Instant = None
    duration_in_seconds: int | float | None = None


class VideoSessionsPage(msgspec.Struct):
    """A page of a session's participants' sessions.

    The answer's `duration` is the time that the request took, so it is not read.
    """

    participants_sessions: list[VideoParticipantSession] = []
    next: str | None = None
    session: VideoSession | None = None


class VideoCallAnswer(msgspec.Struct):
    """The answer about a call."""

    call: VideoCall
