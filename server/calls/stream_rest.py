"""Stream's REST: the truth about a call, and its end."""

from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import jwt

from server.calls import limits as call_limits
from server.calls.event_fields import checked_id, duration_ms, instant_ms
from server.calls.facts import CallRun, CallTruth, Presence, ProviderError, RefusedEventError
from server.calls.rest import RestClient, read_answer, summed_durations_ms, unusable
from server.calls.stream_types import (
    VideoCall,
    VideoCallAnswer,
    VideoParticipantSession,
    VideoSession,
    VideoSessionsPage,
)

NAME: Final = "stream"


class StreamRest:
    """Questions to Stream; ``now_ms`` is epoch milliseconds."""

    def __init__(
        self, client: RestClient, api_key: str, secret: str, now_ms: Callable[[], int]
    ) -> None:
        self._client = client
        self._api_key = api_key
        self._secret = secret
        self._now_ms = now_ms

    async def sweep(self, run: CallRun, *, trusts_custom: bool = True) -> CallTruth:
        """The truth about one session of a call; raises :class:`ProviderError`.

        A session is over when Stream says when it ended, or shows a later one of the call. That it
        is shown no longer, or not yet, is no end: then those of whom Stream says nothing have left
        as of their last proof, until it shows them again.
        """
        asked_at_ms = self._now_ms()
        call = await self._call(run)
        sessions, session, complete = await self._sessions(run)
        current = call.session if call is not None else None
        if session is None and current is not None and current.id == run.call_session:
            session = current
        known = session or VideoSession()
        try:
            ended_at_ms = instant_ms(known.ended_at)
            started_at_ms = instant_ms(known.started_at)
            is_current = call is not None and call.current_session_id == run.call_session
            presences = _presences(sessions)
            return CallTruth(
                provider=NAME,
                call=run.call,
                call_session=run.call_session,
                asked_at_ms=asked_at_ms,
                started_at_ms=started_at_ms,
                ended=ended_at_ms is not None or _is_followed(run, started_at_ms, current),
                ended_at_ms=ended_at_ms,
                presences=presences,
                has_history=sessions is not None,
                complete=complete and not (is_current and sessions is None),
                durations_ms=summed_durations_ms(presences),
                custom=call.said(trusts_custom=trusts_custom) if call is not None else {},
            )
        except RefusedEventError as error:
            raise unusable(NAME, error) from None

    async def end(self, run: CallRun, participant: str | None) -> None:
        """Kicks a participant, or marks the call as ended; raises :class:`ProviderError`.

        Nothing happens when the call has another session by now, or none.
        """
        call = await self._call(run)
        if call is None or call.current_session_id != run.call_session:
            return
        path = _path(run)
        if participant is None:
            await self._ask("POST", f"{path}/mark_ended", body={})
        else:
            await self._ask("POST", f"{path}/kick", body={"user_id": participant})

    async def _call(self, run: CallRun) -> VideoCall | None:
        """The call as it is now; None when Stream knows none."""
        body = await self._ask("GET", _path(run))
        if body is None:
            return None
        call = read_answer(NAME, body, VideoCallAnswer).call
        if call.cid != run.call:
            raise unusable(NAME)  # of another call, which says nothing about this one's end
        return call

    async def _sessions(
        self, run: CallRun
    ) -> tuple[list[VideoParticipantSession] | None, VideoSession | None, bool]:
        """All participants' sessions, the session itself, and whether every page was read.

        The sessions are None when Stream does not know the session.
        """
        path = f"{_path(run)}/session/{quote(run.call_session, safe='')}/participant_sessions"
        found: list[VideoParticipantSession] = []
        session: VideoSession | None = None
        query = {"limit": str(call_limits.CALL_SWEEP_PAGE_ROWS)}
        for _ in range(call_limits.CALL_SWEEP_PAGES_MAX):
            body = await self._ask("GET", path, query)
            if body is None:
                return (found or None), session, True
            page = read_answer(NAME, body, VideoSessionsPage)
            found += page.participants_sessions
            if page.session is not None and page.session.id in ("", run.call_session):
                session = page.session
            if not page.next:
                return found, session, True
            query["next"] = page.next
        return found, session, False

    async def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, str] | None = None,
    ) -> bytes | None:
        now_s = self._now_ms() // 1000
        token = jwt.encode(
            {
                "server": True,
                "iat": now_s - call_limits.CALL_TOKEN_BACKDATED_MS // 1000,
                "exp": now_s + call_limits.CALL_TOKEN_MS // 1000,
            },
            self._secret,
            algorithm="HS256",
        )
        return await self._client.ask(
            method,
            path,
            headers={"Authorization": token, "stream-auth-type": "jwt"},
            query={"api_key": self._api_key, **(query or {})},
            body=body,
        )


def _path(run: CallRun) -> str:
    """The call's path: its cid is its type and its id."""
    call_type, colon, call_id = run.call.partition(":")
    if not colon or not call_type or not call_id:
        raise ProviderError(f"{run.call} is no cid of Stream", retryable=False)
    return f"/api/v2/video/call/{quote(call_type, safe='')}/{quote(call_id, safe='')}"


def _is_followed(run: CallRun, started_at_ms: int | None, current: VideoSession | None) -> bool:
    """Whether the call has a session that began later."""
    if current is None or current.id in ("", run.call_session) or started_at_ms is None:
        return False
    since_ms = instant_ms(current.started_at)
    return since_ms is not None and since_ms > started_at_ms


def _presences(sessions: list[VideoParticipantSession] | None) -> tuple[Presence, ...]:
    found = []
    for each in sessions or ():
        joined_ms = instant_ms(each.joined_at)
        if joined_ms is None:
            continue  # the device never came in
        found.append(
            Presence(
                participant=checked_id(each.user_id, "user_id"),
                device=checked_id(each.user_session_id, "user_session_id"),
                from_at_ms=joined_ms,
                to_at_ms=instant_ms(each.left_at),
                duration_ms=duration_ms(each.duration_in_seconds),
            )
        )
    return tuple(found)
