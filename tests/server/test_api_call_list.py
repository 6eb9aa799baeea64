"""``/v1/calls``: plans, one call, and the list."""

from typing import Any

import pytest

from server.calls import limits as call_limits
from server.calls.facts import FactKind
from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.call_facts import CALL, RUN, InboxScene, fact

PATH = f"/v1/calls/{CALL}"
STREAM = f"{PATH}?provider=stream"


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    """An inbox whose applier is the process's own."""
    made = InboxScene(server.process)
    calls = server.app.state.calls
    calls.meter = calls.applier.meter = made.meter
    made.applier = made.inbox.applier = calls.applier
    return made


async def put(server: TestServer, path: str = STREAM, **plan: Any) -> Any:
    response = await ask(server, "PUT", path, json=plan)
    assert response.status_code == 200, response.text
    return response.json()


async def read(server: TestServer, path: str = PATH) -> Any:
    response = await ask(server, "GET", path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_call_is_planned_before_it_begins(server: TestServer) -> None:
    shown = await put(server, f"{STREAM}&org=acme", participants={"p1": {"user_id": "ann"}})
    assert (shown["state"], shown["plan_version"]) == ("planned", 1)
    assert shown["plan"]["org_id"] == "acme"
    assert (shown["plan"]["payer"], shown["plan"]["kind"]) == ("each", "call")
    assert shown == await read(server)
    assert (await put(server))["plan_version"] == 2


async def test_a_participant_shows_facts_and_session(server: TestServer, scene: InboxScene) -> None:
    await scene.receive(fact(), fact(FactKind.LEFT, at_ms=9_000), fact(FactKind.ENDED))
    shown = await read(server)
    (person,) = shown["participants"]
    assert (person["provider_user_id"], person["user_id"]) == ("ann", "ann")
    assert person["session_id"] == f"call:stream:{RUN}:ann"
    assert [(one["kind"], one["happened_at"], one["state"]) for one in person["facts"]] == [
        ("joined", 1_000, "applied"), ("left", 9_000, "applied"),
    ]  # fmt: skip
    (run,) = shown["runs"]
    assert (run["state"], run["ended_at"]) == ("ended", 1_000)


async def test_facts_that_fail_each_time_are_listed_until_the_plan_is_put_again(
    server: TestServer, scene: InboxScene
) -> None:
    joined = fact()
    scene.meter.poison = {joined.key}
    await scene.receive(joined)
    for _ in range(call_limits.CALL_FACT_ATTEMPTS_MAX):
        advance(server, 64 * call_limits.CALL_FACT_LEASE_MS)
        await scene.take()
    (listed,) = (await read(server, "/v1/calls?state=parked"))["items"]
    (shown,) = (await read(server))["runs"]
    (parked,) = listed["parked_facts"]
    assert (shown["state"], shown["parked_facts"]) == ("parked", [parked])
    assert (parked["kind"], parked["provider_user_id"], parked["happened_at"]) == (
        "joined", "ann", 1_000,
    )  # fmt: skip
    assert parked["attempts"] == call_limits.CALL_FACT_ATTEMPTS_MAX
    assert parked["error"] == "ValueError: a bug of ours in joined"
    scene.meter.poison.clear()
    await put(server)
    await scene.take()
    while await scene.records.facts_waiting(0, server.process.clock.now() + 1):
        await scene.applier.idle()
    (shown,) = (await read(server))["runs"]
    assert (shown["state"], shown["parked_facts"]) == ("active", [])


async def test_what_is_parked_is_listed_and_mapped_by_a_plan(
    server: TestServer, scene: InboxScene
) -> None:
    stranger = fact(participant="a stranger")
    await scene.receive(stranger, fact())
    listed = (await read(server, "/v1/calls?state=parked"))["items"]
    assert [(one["id"], one["state"]) for one in listed] == [(CALL, "parked")]
    people = {one["provider_user_id"]: one["parked_because"] for one in listed[0]["participants"]}
    assert people == {"a stranger": "bad_user_id", "ann": None}
    await put(server, participants={"a stranger": {"user_id": "eve"}})
    await scene.applier.take()  # the process may have taken it already
    await scene.applier.idle()
    while await scene.records.facts_waiting(0, server.process.clock.now() + 1):
        await scene.applier.idle()
    assert (stranger.key, "a stranger") in scene.meter.applied
    assert (await read(server, "/v1/calls?state=parked"))["items"] == []
    listed = (await read(server, "/v1/calls?user=eve"))["items"]
    assert [one["state"] for one in listed] == ["active"]


async def test_pages_have_a_cursor(server: TestServer, scene: InboxScene) -> None:
    for number in range(3):
        await scene.receive(fact(call_session=f"run-{number}"))
    first = await read(server, "/v1/calls?limit=2&state=active")
    then = await read(server, f"/v1/calls?limit=2&state=active&cursor={first['next_cursor']}")
    names = [one["call_session"] for page in (first, then) for one in page["items"]]
    assert sorted(names) == ["run-0", "run-1", "run-2"]
    assert then["next_cursor"] is None
    response = await ask(server, "GET", "/v1/calls?cursor=abc")
    assert "cursor" in assert_problem(response, 400, "bad_message")["detail"]


async def test_the_provider_is_named_where_it_is_not_clear(server: TestServer) -> None:
    response = await ask(server, "PUT", PATH, json={})
    assert "provider" in assert_problem(response, 400, "bad_message")["detail"]
    await put(server)
    await put(server, PATH)  # now there is one
    await put(server, f"{PATH}?provider=livekit")
    response = await ask(server, "GET", PATH)
    assert "provider" in assert_problem(response, 400, "bad_message")["detail"]
    assert (await read(server, f"{PATH}?provider=livekit"))["provider"] == "livekit"


@pytest.mark.parametrize(
    ("plan", "status", "code", "word"),
    [
        ({"kind": "chat"}, 422, "unknown_kind", "outside clock"),
        ({"kind": "none"}, 422, "unknown_kind", "outside clock"),
        ({"payer": "no id"}, 400, "bad_message", "payer"),
        ({"devices": "most"}, 400, "bad_message", "devices"),
        ({"participants": {"p": {}}}, 400, "bad_message", "user_id"),
        ({"participants": {"p": {"user_id": "a"}}, "payer": "b"}, 400, "bad_message", "payer"),
        (
            {"participants": {"p": {"user_id": "a"}}, "payer": "host", "host": "q"},
            400, "bad_message", "host",
        ),
    ],
)  # fmt: skip
async def test_a_plan_by_which_nobody_can_be_billed_is_refused(
    server: TestServer, plan: dict[str, Any], status: int, code: str, word: str
) -> None:
    problem = assert_problem(await ask(server, "PUT", STREAM, json=plan), status, code)
    assert word in problem["detail"]
    assert_problem(await ask(server, "GET", STREAM), 404, "unknown_call")


async def test_a_participant_shows_what_was_corrected(server: TestServer) -> None:
    calls = server.app.state.calls
    now_ms = server.process.clock.now()
    ten_minutes_ms = 600_000
    await calls.inbox.keep(
        [
            fact(at_ms=now_ms - ten_minutes_ms),
            fact(FactKind.LEFT, at_ms=now_ms, provider_duration_ms=ten_minutes_ms // 2),
            fact(FactKind.ENDED, at_ms=now_ms),
        ]
    )
    await calls.applier.idle()
    await server.flush()  # minutes are given back once they are recorded
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    await calls.applier.take()
    await calls.applier.idle()
    (person,) = (await read(server))["participants"]
    assert person["provider_ms"] == ten_minutes_ms // 2
    (correction,) = person["corrections"]
    assert correction["minutes"] in (-5, -6)  # what was begun
    assert correction["reason"].startswith("shorter: the provider counted 300.000 s")
    path = f"/v1/sessions/{person['session_id']}"
    bill = (await ask(server, "GET", path, server.token("ann"))).json()
    assert person["receipt"]["corrections"] == bill["corrections"] == person["corrections"]
    assert person["receipt"]["difference_ms"] == person["difference_ms"] < 0
