"""LiveKit's REST (Twirp's JSON): who is in a room, and its end."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from server import limits as server_limits
from server.calls import limits as call_limits
from server.calls.event_fields import checked_id
from server.calls.facts import CallRun, CallTruth, Presence, RefusedEventError
from server.calls.livekit_fields import custom_of, is_person, is_present, number, text
from server.calls.rest import RestClient, read_answer, unusable

NAME: Final = "livekit"
PATH: Final = "/twirp/livekit.RoomService/"


class LiveKitRest:
    """Questions to LiveKit; ``now_ms`` is epoch milliseconds."""

    def __init__(
        self, client: RestClient, api_key: str, secret: str, now_ms: Callable[[], int]
    ) -> None:
        self._client = client
        self._api_key = api_key
        self._secret = secret
        self._now_ms = now_ms

    async def sweep(self, run: CallRun) -> CallTruth:
        """Who is in the room now; raises :class:`ProviderError`.

        LiveKit remembers nothing about a room that is over, nor about those who left.
        """
        try:
            return await self._sweep(run)
        except RefusedEventError as error:
            raise unusable(NAME, error) from None

    async def _sweep(self, run: CallRun) -> CallTruth:
        asked_at_ms = self._now_ms()
        # The room is looked at last: if it is still this run, so were its participants.
        participants = await self._participants(run.rest_name) if run.rest_name else []
        room = await self._room(run)
        if room is not None and not run.rest_name:
            participants = await self._participants(checked_id(text(room, "name"), "room.name"))
            room = await self._room(run)
        return CallTruth(
            provider=NAME,
            call=run.call,
            call_session=run.call_session,
            asked_at_ms=asked_at_ms,
            started_at_ms=None if room is None else _created_ms(room),
            ended=room is None,
            ended_at_ms=None,
            presences=() if room is None else _presences(participants, asked_at_ms),
            has_history=False,
            complete=True,
            custom={} if room is None else custom_of(room),
        )

    async def end(self, run: CallRun, participant: str | None) -> None:
        """Removes a participant, or deletes the room; raises :class:`ProviderError`.

        Nothing happens when the room is another run by now, or none.
        """
        try:
            room = await self._room(run)
            name = "" if room is None else checked_id(text(room, "name"), "room.name")
        except RefusedEventError as error:
            raise unusable(NAME, error) from None
        if room is None:
            return
        if participant is None:
            await self._ask("DeleteRoom", {"roomCreate": True}, {"room": name})
        else:
            await self._ask(
                "RemoveParticipant",
                {"roomAdmin": True, "room": name},
                {"room": name, "identity": participant},
            )

    async def _room(self, run: CallRun) -> Mapping[str, Any] | None:
        """The room, when it is still the same run."""
        names = [run.rest_name] if run.rest_name else []
        found = await self._ask("ListRooms", {"roomList": True}, {"names": names})
        if found is None:
            raise unusable(NAME)  # no LiveKit is there: that says nothing about the room
        for room in _objects(found, "rooms"):
            if text(room, "sid") == run.call_session:
                return room
        return None

    async def _participants(self, name: str) -> list[Mapping[str, Any]]:
        grants = {"roomAdmin": True, "room": name}
        found = await self._ask("ListParticipants", grants, {"room": name})
        return _objects(found or {}, "participants")

    async def _ask(self, method: str, grants: dict[str, Any], body: dict[str, Any]) -> Any:
        now_s = self._now_ms() // 1000
        token = jwt.encode(
            {
                "iss": self._api_key,
                "nbf": now_s - server_limits.JWT_LEEWAY_MS // 1000,
                "exp": now_s + call_limits.CALL_TOKEN_MS // 1000,
                "video": grants,
            },
            self._secret,
            algorithm="HS256",
        )
        answer = await self._client.ask(
            "POST", PATH + method, headers={"Authorization": f"Bearer {token}"}, body=body
        )
        return None if answer is None else read_answer(NAME, answer, dict[str, Any])


def _objects(answer: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = answer.get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise unusable(NAME)
    return found


def _created_ms(room: Mapping[str, Any]) -> int | None:
    return number(room, "creationTimeMs") or 1000 * number(room, "creationTime") or None


def _presences(participants: list[Mapping[str, Any]], asked_at_ms: int) -> tuple[Presence, ...]:
    return tuple(
        Presence(
            participant=checked_id(text(each, "identity"), "identity"),
            device=checked_id(text(each, "sid"), "sid"),
            from_at_ms=number(each, "joinedAtMs") or 1000 * number(each, "joinedAt") or asked_at_ms,
            to_at_ms=None,
        )
        for each in participants
        if is_person(each) and is_present(each)
    )
