"""The auditor's part about notices: their numbers and meaning.

Like ``auditor``, this module follows from DESIGN section 1 and PROTOCOL section 1 alone.
"""

import itertools
from typing import Any

from protocol.limits import NOTICES_KEPT_MAX, NOTICES_UNRECORDED_MAX
from tests.simulation.clients import SimulatedClient
from tests.simulation.state import State
from tests.simulation.world import World

MOMENT_MS = 50
"""What two processes hear within this time, they may hear in a different order."""


def _told(client: SimulatedClient, session_id: str) -> list[dict[str, Any]]:
    """A client's notices of a session in order, missed ones too."""
    told: list[dict[str, Any]] = []
    for message in client.of_session.get(session_id, ()):
        if message["type"] == "session":
            # A client that asks again receives the same notices again.
            heard = told[-1]["seq"] if told else 0
            told.extend(missed for missed in message["missed"] if missed["seq"] > heard)
        elif "seq" in message:
            told.append(message)
    return told


def _heard(client: SimulatedClient, session_id: str) -> set[int]:
    """The numbers of all notices that a client received.

    Missed notices may arrive after notices that were sent while the join waited for a step."""
    messages = client.of_session.get(session_id, [])
    numbers = {one["seq"] for one in messages if "seq" in one and one["type"] != "session"}
    return numbers | {notice["seq"] for one in messages for notice in one.get("missed", ())}


def _plain(notice: dict[str, Any]) -> dict[str, Any]:
    """A notice without the fields that differ between deliveries."""
    changing = ("received_at", "id", "remaining_ms")
    return {name: part for name, part in notice.items() if name not in changing}


def check_notices(state: State, name: str, world: World) -> None:
    """Numbers of notices rise, and each means the same notice everywhere."""
    session_id = name.rpartition("/")[2]
    said: dict[int, dict[str, Any]] = {}
    kept = state.notices.get(name, [])
    numbers = [notice["seq"] for notice in kept]
    for notice in kept:
        said[notice["seq"]] = notice
    standing = state.sessions[name]["standing"]
    crossing = _crossing(kept, [_told(client, session_id) for client in world.clients])
    skipped = _skipped(numbers, standing["seq"], crossing)
    crossed = False
    for client in world.clients:
        if session_id not in client.of_session and session_id not in client.joins:
            continue  # the client has nothing to do with the session
        told = _told(client, session_id)
        for before, after in itertools.pairwise(told):
            assert before["seq"] < after["seq"], (client.name, told)
        other: list[dict[str, Any]] = []
        for notice in told:
            if notice["seq"] <= standing["seq"] and notice["seq"] not in skipped:
                first = said.setdefault(notice["seq"], notice)
                if _plain(notice) != _plain(first):
                    is_crossing = notice["seq"] in crossing
                    assert world.was_away or is_crossing, (client.name, notice, first)
                    other.append(notice)
        is_there = not client.is_cut and client.node.is_alive and world.is_quiet
        crossed = crossed or bool(other)
        for notice in other if is_there else ():
            is_corrected = _is_corrected(notice, kept, standing, told, client)
            assert is_corrected, (client.name, notice, told, kept)
        takes_part = session_id in client.sessions and session_id in client.local_sessions
        takes_part = takes_part or session_id in client.watched
        if takes_part and is_there:
            since = client.joined(session_id).last_seq
            if since is None:
                since = _seen_at_joining(client, session_id)
            if len(numbers) == NOTICES_KEPT_MAX:
                since = max(since, numbers[0] - 1)  # older notices are not kept
            expected = [number for number in numbers if number > since]
            recorded = _heard(client, session_id) - skipped
            heard = sorted(number for number in recorded if number > since)
            assert heard == expected, (client.name, heard, expected, kept)
    notices = [said[number] for number in sorted(said)]
    if world.was_away:
        # The clients that heard another notice may be gone: a process whose client was cut
        # announces again, too.
        notices = _without_twins(notices)
    _check_warnings(_without_repeats(notices) if crossed else notices)


def _is_corrected(
    notice: dict[str, Any],
    kept: list[dict[str, Any]],
    standing: dict[str, Any],
    told: list[dict[str, Any]],
    client: SimulatedClient,
) -> bool:
    """Whether a client knows better after a notice that the record lacks.

    While Redis does not answer, two processes know different figures, and may send different
    notices under one number. Later notices and snapshots show the client what holds.
    """
    if standing["phase"] == "stopping" or standing["reason"] == "limit":
        return all(_last(told, kind) == _last(kept, kind) for kind in ("limit_reached", "stopped"))
    if standing["phase"] == "ended":
        return _last(told, "stopped") == _last(kept, "stopped")
    if notice["type"] == "limit_reached":
        shown = [one for one in client.of_session[notice["session_id"]] if one["type"] == "session"]
        return str(shown[-1]["state"]) != "stopping"
    return _warned(told).get(notice.get("limit")) == _warned(kept).get(notice.get("limit"))


def _last(notices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The last notice of a kind, without its number."""
    found = [notice for notice in notices if notice["type"] == kind]
    return {**_plain(found[-1]), "seq": None} if found else {}


def _warned(notices: list[dict[str, Any]]) -> dict[str | None, tuple[str, int | None]]:
    """The last warning of each limit, or that it was cleared."""
    kinds = ("limit_warning", "limit_cleared")
    return {
        one["limit"]: (one["type"], one.get("threshold_ms"))
        for one in notices
        if one["type"] in kinds
    }


def _without_repeats(notices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out what is announced again to clients that heard another notice.

    All clients hear that, because each number has one notice in the record.
    """
    return [
        notice
        for index, notice in enumerate(notices)
        if _warned(notices[: index + 1]) != _warned(notices[:index])
        or notice["type"] not in ("limit_warning", "limit_cleared")
    ]


def _without_twins(notices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out what the limit's notice before announces, too."""
    kept: list[dict[str, Any]] = []
    before: dict[str | None, dict[str, Any]] = {}
    for notice in notices:
        twin = {**notice, "seq": 0, "received_at": 0}
        if before.get(notice.get("limit")) != twin:
            kept.append(notice)
        before[notice.get("limit")] = twin
    return kept


def _crossing(kept: list[dict[str, Any]], told: list[list[dict[str, Any]]]) -> set[int]:
    """The numbers that two processes used for different notices in one moment.

    Each knew another part of what happened in that moment. The one whose step came second goes on
    with new numbers, so its later ones of the same moment stand for no notice in the record.
    """
    recorded = {notice["seq"]: _plain(notice) for notice in kept}
    heard_at = {
        notice["seq"]: notice["received_at"]
        for notices in told
        for notice in notices
        if "received_at" in notice and _plain(notice) == recorded.get(notice["seq"])
    }
    crossing: set[int] = set()
    for notices in told:
        since = None
        for notice in notices:
            at, seq = notice.get("received_at"), notice["seq"]
            is_other = seq in recorded and _plain(notice) != recorded[seq]
            if at is not None and is_other and abs(at - heard_at.get(seq, -MOMENT_MS)) < MOMENT_MS:
                since = at
            if since is not None and at is not None and at - since < MOMENT_MS:
                crossing.add(seq)
    return crossing


def _skipped(numbers: list[int], last: int, crossing: set[int]) -> set[int]:
    """The numbers that stand for no notice in the record.

    A process taken for dead may have used them, in multiples of ``NOTICES_UNRECORDED_MAX``. Others
    were used in a moment in which two processes said different notices."""
    skipped: set[int] = set()
    first = numbers[0] - 1 if len(numbers) == NOTICES_KEPT_MAX else 0
    for before, after in itertools.pairwise([first, *numbers, last + 1]):
        missing = set(range(before + 1, after))
        assert len(missing - crossing) % NOTICES_UNRECORDED_MAX == 0, (numbers, last)
        skipped |= missing
    return skipped


def _seen_at_joining(client: SimulatedClient, session_id: str) -> int:
    """The last notice's number at a client's join, from the join's snapshot."""
    for message in client.messages[client.joined(session_id).messages_before :]:
        if message["type"] == "session" and message["session_id"] == session_id:
            return int(message["seq"])
        if message.get("session_id") == session_id and "seq" in message:
            return int(message["seq"]) - 1
    return 0


def _check_warnings(notices: list[dict[str, Any]]) -> None:
    """One warning for each crossing of a threshold, and one stop."""
    warned: dict[str, int] = {}
    stopped = False
    for notice in notices:
        limit = str(notice.get("limit"))
        match notice["type"]:
            case "limit_warning":
                assert notice["remaining_ms"] <= notice["threshold_ms"], notices
                assert notice["threshold_ms"] < warned.get(limit, 2**53), notices
                warned[limit] = notice["threshold_ms"]
            case "limit_cleared":
                cleared_ms = notice["remaining_ms"]
                assert limit in warned, notices
                assert cleared_ms is None or cleared_ms > warned[limit], notices
                del warned[limit]
                for level_ms in (60_000, 300_000, 600_000):
                    if cleared_ms is not None and cleared_ms <= level_ms:
                        warned[limit] = level_ms
                        break
            case "limit_reached":
                # Another limit was used up when the session went on, or this limit was warned of.
                assert limit in warned or not notice["elapsed_ms"], notices
            case "stopped":
                assert not stopped, notices
                stopped = True
