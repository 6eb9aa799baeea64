"""Study sessions of existing applications: minutes, hours of a day, active calls."""

import asyncio
from typing import Any

import pytest

from server import limits as server_limits
from server.calls import limits as call_limits
from server.calls.facts import FactKind, Presence, ProviderError
from server.calls.service import Calls
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, settled
from tests.server.call_facts import CALL, RUN, BookAdapter, fact, truth

PATH = "/api/study-sessions/stream-duration"
DAY = "/api/study-sessions/daily-hours"
ACTIVE = "/api/study-sessions/active-calls"
MINUTE_MS, STEP_MS = 60_000, 20_000


@pytest.fixture
def stream(server: TestServer) -> BookAdapter:
    """Stream is set up."""
    adapter = BookAdapter()
    adapter.truth = truth()
    server.app.state.calls.adapters["stream"] = adapter
    return adapter


async def act(
    server: TestServer, action: str, bearer: str | None = None, **fields: str
) -> dict[str, Any]:
    body = {"userId": "ann", "callId": "abc", "action": action, **fields}
    response = await ask(server, "POST", PATH, bearer or server.token(), json=body)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


async def read(server: TestServer, path: str, bearer: str | None = None) -> dict[str, Any]:
    response = await ask(server, "GET", path, bearer or server.token())
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


async def passes(server: TestServer, ms: int) -> None:
    """Time passes in small steps, as the process's leases need it."""
    for begun_ms in range(0, ms, STEP_MS):
        advance(server, min(STEP_MS, ms - begun_ms))
        await settled(server)
    await server.flush()


async def hear(server: TestServer, kind: FactKind, **fields: Any) -> None:
    """The provider says something, now."""
    calls: Calls = server.app.state.calls
    at_ms = fields.pop("at_ms", server.process.clock.now())
    await calls.inbox.keep([fact(kind, at_ms=at_ms, **fields)])
    await calls.applier.idle()


def seconds(milliseconds: int) -> int:
    return milliseconds // 1000


# --- Without a provider ------------------------------------------------------------------


async def test_without_a_provider_the_page_is_the_clock(server: TestServer) -> None:
    began = await act(server, "start")
    assert (began["callId"], began["isActive"], began["clock"]) == (CALL, True, "page")
    assert (await act(server, "start"))["sessionId"] == began["sessionId"]
    await passes(server, 5 * MINUTE_MS + 9_000)
    active = await read(server, ACTIVE)
    assert [one["callId"] for one in active["calls"]] == [CALL]
    assert 5 * 60 + 9 <= (await read(server, DAY))["seconds"] < 5 * 60 + 30
    ended = await act(server, "end")
    assert (ended["duration"], ended["clock"], ended["isActive"]) == (5, "page", False)
    assert 5 * 60 + 9 <= ended["durationSeconds"] < 5 * 60 + 30
    assert ended["sessionId"] == began["sessionId"]
    await passes(server, MINUTE_MS)
    assert await act(server, "end") == ended
    assert await read(server, "/api/study-sessions/calls/abc") == ended
    assert (await read(server, ACTIVE))["calls"] == []
    bill = await read(server, f"/v1/sessions/{ended['sessionId']}")
    assert (bill["reason"], bill["kind"]) == ("call_ended", "call")
    assert seconds(bill["elapsed_ms"]) == ended["durationSeconds"]
    day = await read(server, DAY)
    assert 0 <= day["seconds"] - ended["durationSeconds"] <= 1  # a row has whole seconds


async def test_a_call_that_begins_again_is_another_session(server: TestServer) -> None:
    names = []
    for _ in range(3):
        names.append((await act(server, "start"))["sessionId"])
        await passes(server, MINUTE_MS)
        assert (await act(server, "end"))["sessionId"] == names[-1]
    assert len(set(names)) == 3


async def test_two_tabs_that_begin_at_once_are_one_session(server: TestServer) -> None:
    begun = await asyncio.gather(*(act(server, "start") for _ in range(4)))
    assert len({one["sessionId"] for one in begun}) == 1
    assert len((await read(server, ACTIVE))["calls"]) == 1


async def test_a_call_longer_than_the_proof_is_billed_by_the_end(server: TestServer) -> None:
    session = (await act(server, "start"))["sessionId"]
    await passes(server, 2 * call_limits.CALL_PROOF_MS)
    assert (await read(server, ACTIVE))["calls"] == []
    ended = await act(server, "end")
    assert (ended["duration"], ended["clock"]) == (60, "page")
    bill = await read(server, f"/v1/sessions/{session}")
    (correction,) = bill["corrections"]
    assert correction["minutes"] + bill["minutes"] in (60, 61)
    assert correction["reason"].startswith("longer:")


async def test_a_page_that_repeats_its_start_keeps_counting(server: TestServer) -> None:
    session = (await act(server, "start"))["sessionId"]
    for _ in range(3):
        await passes(server, call_limits.CALL_PROOF_MS // 2)
        assert (await act(server, "start"))["sessionId"] == session
    bill = await read(server, f"/v1/sessions/{session}")
    assert bill["state"] == "active"
    assert bill["elapsed_ms"] >= 3 * (call_limits.CALL_PROOF_MS // 2)


async def test_a_page_that_never_ended_costs_half_an_hour(server: TestServer) -> None:
    first = (await act(server, "start"))["sessionId"]
    await passes(server, 12 * 3_600_000)
    second = await act(server, "start")
    assert second["sessionId"] != first
    assert second["durationSeconds"] < 30
    bill = await read(server, f"/v1/sessions/{first}")
    assert bill["reason"] == "call_ended"
    assert seconds(bill["elapsed_ms"]) == seconds(call_limits.CALL_PROOF_MS)
    assert bill.get("corrections", []) == []


async def test_no_end_is_believed_for_a_whole_night(server: TestServer) -> None:
    await act(server, "start")
    await passes(server, 12 * 3_600_000)
    ended = await act(server, "end")
    assert ended["durationSeconds"] == seconds(call_limits.STUDY_PAGE_MS_MAX)


async def test_the_time_up_to_a_repeated_start_is_proven(server: TestServer) -> None:
    """An end is bounded from the last word before it."""
    session = (await act(server, "start"))["sessionId"]
    words = call_limits.STUDY_PAGE_MS_MAX // (call_limits.CALL_PROOF_MS - MINUTE_MS) + 3
    for _ in range(words):
        await passes(server, call_limits.CALL_PROOF_MS - MINUTE_MS)
        assert (await act(server, "start"))["sessionId"] == session
    proven_ms = words * (call_limits.CALL_PROOF_MS - MINUTE_MS)
    assert proven_ms > call_limits.STUDY_PAGE_MS_MAX + MINUTE_MS
    ended = await act(server, "end")
    assert 0 <= ended["durationSeconds"] - seconds(proven_ms) < 60
    bill = await read(server, f"/v1/sessions/{session}")
    assert 0 <= bill["elapsed_ms"] - proven_ms < MINUTE_MS


async def test_an_end_long_after_the_last_word_is_believed_up_to_a_bound(
    server: TestServer,
) -> None:
    await act(server, "start")
    await passes(server, 10 * MINUTE_MS)
    await act(server, "start")
    await passes(server, call_limits.STUDY_PAGE_MS_MAX + 3_600_000)
    ended = await act(server, "end")
    most = call_limits.STUDY_PAGE_MS_MAX + 10 * MINUTE_MS
    assert 0 <= ended["durationSeconds"] - seconds(most) < 60


async def test_a_user_begins_no_more_study_sessions_than_other_sessions(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "STARTS_BURST", 3)
    monkeypatch.setattr(server_limits, "STARTS_PER_MINUTE", 0)
    for number in range(3):
        for _ in range(5):  # a repeated start begins nothing
            await act(server, "start", callId=f"call-{number}")
    for call_id in ("call-3", "call-2"):
        await act(server, "end", callId="call-2")  # also where the same call begins again
        body = {"callId": call_id, "action": "start"}
        response = await ask(server, "POST", PATH, server.token(), json=body)
        assert_problem(response, 429, "rate_limited")
    assert (await act(server, "start", callId="call-1"))["isActive"]
    assert (await act(server, "start", server.token("ben"), userId="ben"))["isActive"]
    assert (await act(server, "start", API_KEY, callId="call-9"))["isActive"]


async def test_a_backend_names_the_account_that_pays(server: TestServer) -> None:
    named = {"userId": "ann", "callId": "abc"}
    for action in ("start", "end"):
        path, body = f"{PATH}?org=acme&account=school", {**named, "action": action}
        response = await ask(server, "POST", path, API_KEY, json=body)
        assert response.status_code == 200, response.text
    call = await read(server, f"/v1/calls/{CALL}", API_KEY)
    (person,) = call["participants"]
    assert (person["user_id"], person["org_id"], person["account_id"]) == ("ann", "acme", "school")
    # Left out, the user's own account pays.
    body = {**named, "callId": "other", "action": "start"}
    await ask(server, "POST", f"{PATH}?org=acme", API_KEY, json=body)
    (person,) = (await read(server, "/v1/calls/default:other", API_KEY))["participants"]
    assert person["account_id"] == "ann"
    response = await ask(server, "POST", f"{PATH}?account=sch%20ool", API_KEY, json=body)
    assert_problem(response, 400, "bad_message")


async def test_a_user_names_no_other_account(server: TestServer) -> None:
    body, path = {"callId": "abc", "action": "start"}, f"{PATH}?account=school"
    response = await ask(server, "POST", path, server.token(), json=body)
    assert_problem(response, 403, "forbidden")
    mine = server.token("ann", account="school")
    assert (await ask(server, "POST", path, mine, json=body)).status_code == 200
    (person,) = (await read(server, f"/v1/calls/{CALL}", API_KEY))["participants"]
    assert person["account_id"] == "school"


async def test_a_member_is_counted_in_the_organisation(server: TestServer) -> None:
    member = server.token("ann", org="acme", account="school")
    session = (await act(server, "start", member))["sessionId"]
    await read(server, f"/v1/sessions/{session}", member)
    call = await read(server, f"/v1/calls/{CALL}", API_KEY)
    (person,) = call["participants"]
    assert (person["org_id"], person["account_id"]) == ("acme", "school")


async def test_a_user_reaches_only_own_calls(server: TestServer) -> None:
    await act(server, "start")
    body = {"userId": "ann", "callId": "abc", "action": "end"}
    response = await ask(server, "POST", PATH, server.token("eve"), json=body)
    assert_problem(response, 403, "forbidden")
    response = await ask(server, "GET", "/api/study-sessions/calls/abc", server.token("eve"))
    assert_problem(response, 404, "unknown_call")
    del body["userId"]
    response = await ask(server, "POST", PATH, server.token("eve"), json=body)
    assert_problem(response, 404, "unknown_call")
    response = await ask(server, "POST", PATH, API_KEY, json=body)
    assert_problem(response, 400, "bad_message")
    assert (await read(server, ACTIVE, server.token("eve")))["calls"] == []
    assert (await act(server, "end", API_KEY))["isActive"] is False


@pytest.mark.parametrize("claims", [{"sessions": ["chat-1"]}, {"kinds": ["chat"]}])
async def test_a_token_for_other_sessions_begins_none(
    server: TestServer, claims: dict[str, Any]
) -> None:
    body = {"callId": "abc", "action": "start"}
    response = await ask(server, "POST", PATH, server.token("ann", **claims), json=body)
    assert_problem(response, 403, "forbidden")


async def test_where_only_prepared_sessions_start_a_page_begins_none(
    start_server: StartServer,
) -> None:
    server = await start_server(start="prepared")
    body = {"userId": "ann", "callId": "abc", "action": "start"}
    assert_problem(await ask(server, "POST", PATH, server.token(), json=body), 403, "forbidden")
    assert (await act(server, "start", API_KEY))["isActive"]


# --- With a provider -----------------------------------------------------------------------


async def test_the_providers_figure_is_the_duration(
    server: TestServer, stream: BookAdapter
) -> None:
    began = await act(server, "start")
    assert (began["sessionId"], began["clock"], began["isActive"]) == (None, None, False)
    now_ms = server.process.clock.now()
    await hear(server, FactKind.JOINED)
    assert (await act(server, "start"))["sessionId"] == f"call:stream:{RUN}:ann"
    await passes(server, 9 * MINUTE_MS)
    is_there = Presence(participant="ann", device="ann-1", from_at_ms=now_ms, to_at_ms=None)
    stream.truth = truth(is_there, durations_ms={"ann": MINUTE_MS})
    ended = await act(server, "end")
    # The provider has no figure for one who is there still.
    assert (ended["duration"], ended["clock"], ended["isActive"]) == (9, "own", True)
    await passes(server, call_limits.STUDY_ASK_MS)
    stream.truth = truth(durations_ms={"ann": 10 * MINUTE_MS + 30_000})
    ended = await act(server, "end")
    assert (ended["duration"], ended["clock"]) == (11, "provider")
    await hear(server, FactKind.LEFT, provider_duration_ms=8 * MINUTE_MS)
    ended = await act(server, "end")
    assert (ended["duration"], ended["clock"], ended["isActive"]) == (8, "provider", False)
    assert await read(server, "/api/study-sessions/calls/abc") == ended


async def test_a_page_asks_the_provider_no_more_than_once_in_a_while(
    server: TestServer, stream: BookAdapter
) -> None:
    await hear(server, FactKind.JOINED)
    stream.truth = ProviderError("503")
    stream.asked.clear()
    for _ in range(5):
        assert (await act(server, "end"))["clock"] == "own"
    assert len(stream.asked) == 1


async def test_a_page_changes_no_bill_of_a_provider(
    server: TestServer, stream: BookAdapter
) -> None:
    body = {"userId": "ann", "callId": "abc", "action": "end"}
    await act(server, "start")
    response = await ask(server, "POST", PATH, server.token(), json=body)
    assert_problem(response, 404, "unknown_call")
    await hear(server, FactKind.JOINED)
    await act(server, "end")
    await passes(server, MINUTE_MS)
    bill = await read(server, f"/v1/sessions/call:stream:{RUN}:ann")
    assert bill["state"] == "active"
    assert bill["elapsed_ms"] >= MINUTE_MS
    await hear(server, FactKind.LEFT)
    # The run goes on, but its user has gone.
    assert (await read(server, ACTIVE))["calls"] == []


# --- A day --------------------------------------------------------------------------------


async def test_the_hours_of_a_day(server: TestServer) -> None:
    today = await read(server, DAY)
    assert (today["hours"], today["seconds"], today["timezone"]) == (0.0, 0, "UTC")
    assert await read(server, f"{DAY}?date=2026-11-10") == {
        "date": "2026-11-10", "timezone": "UTC", "hours": 0.0, "seconds": 0,
    }  # fmt: skip
    for date in ("2026-13-10", "20261110", "10", "0001-01-01"):
        response = await ask(server, "GET", f"{DAY}?date={date}", server.token())
        assert_problem(response, 400, "bad_message")
