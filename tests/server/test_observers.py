"""Observers see all, keep no session alive, and take no place."""

import pytest

from protocol.metering.states import Phase
from server import limits as server_limits
from tests.fixtures.server import API_KEY, BOTH_CARRIERS, TestServer
from tests.server.api import ask
from tests.server.billed_session import CREDIT, eventually, reaches


@BOTH_CARRIERS
async def test_a_observer_sees_everything_and_keeps_nothing_alive(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client, observer = await server.login(), await server.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    watched = await observer.ask("watch", session_id="chat-1")
    assert (watched["type"], watched["state"]) == ("session", "active")
    await observer.until("tick")
    await client.ask("pause", session_id="chat-1")
    assert (await observer.until("session"))["state"] == "paused"
    await client.ask("resume", session_id="chat-1")

    await client.close()
    await reaches(server, "chat-1", Phase.SUSPENDED)
    told = await observer.until("session", lambda message: message["state"] == "suspended")
    assert told["remaining_ms"] is None or told["remaining_ms"] >= 0

    # An observer may also take part, and then keeps the session alive.
    back = await observer.ask("start", kind="chat", session_id="chat-1")
    assert back["state"] == "active"
    stopped = await observer.ask("stop", session_id="chat-1")
    assert stopped["type"] == "stopped"


@BOTH_CARRIERS
async def test_who_takes_part_and_watches_still_takes_part(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    assert (await client.ask("watch", session_id="chat-1"))["type"] == "session"
    assert (await client.ask("pause", session_id="chat-1"))["state"] == "paused"


@BOTH_CARRIERS
@pytest.mark.parametrize("claims", [{"scope": "ops"}, {"sessions": ["chat-1"]}])
async def test_those_who_may_watch_anothers_session(
    server: TestServer, claims: dict[str, object]
) -> None:
    await server.grant(5 * CREDIT, org_id="acme")
    client = await server.login(org="acme")
    await client.ask("start", kind="chat", session_id="chat-1")
    observer = await server.login("eve", org="acme", **claims)
    watched = await observer.ask("watch", session_id="chat-1")
    assert (watched["type"], watched["session_id"]) == ("session", "chat-1")
    assert (await observer.ask("pause", session_id="chat-1"))["code"] == "forbidden"
    stopped = await client.ask("stop", session_id="chat-1")
    told = await observer.until("stopped")
    assert told["receipt"] == stopped["receipt"]


@BOTH_CARRIERS
async def test_operators_watch_in_every_tenant(server: TestServer) -> None:
    await server.grant(5 * CREDIT, org_id="acme")
    await server.grant(5 * CREDIT, "bob")
    ann, bob = await server.login(org="acme"), await server.login("bob")
    await ann.ask("start", kind="chat", session_id="chat-1")
    await bob.ask("start", kind="chat", session_id="chat-2")
    operator = await server.login("olga", scope="ops")
    assert (await operator.ask("watch", session_id="chat-1"))["code"] == "unknown_session"
    watched = await operator.ask("watch", session_id="chat-1", org="acme")
    assert (watched["type"], watched["session_id"]) == ("session", "chat-1")
    watched = await operator.ask("watch", session_id="chat-2", user="bob")
    assert (watched["type"], watched["session_id"]) == ("session", "chat-2")
    # A session of another tenant with this id would have the same name.
    await bob.ask("start", kind="chat", session_id="chat-1")
    answer = await operator.ask("watch", session_id="chat-1", user="bob")
    assert answer["code"] == "bad_message"
    assert (await operator.ask("stop", session_id="chat-2"))["code"] == "forbidden"
    await ann.ask("stop", session_id="chat-1")
    told = await operator.until("stopped")
    assert told["receipt"]["org_id"] == "acme"
    bad = await operator.ask("watch", session_id="chat-1", org="a b")
    assert (bad["code"], bad["message"].partition(":")[0]) == ("bad_message", "org")


@BOTH_CARRIERS
async def test_observers_take_no_place_of_the_sessions_own_user(server: TestServer) -> None:
    await server.grant(5 * CREDIT, org_id="acme")
    first = await server.login(org="acme")
    await first.ask("start", kind="chat", session_id="chat-1")
    observers = []
    for number in range(server_limits.OBSERVERS_PER_SESSION_MAX):
        observer = await server.login(f"ops-{number}", org="acme", scope="ops")
        assert (await observer.ask("watch", session_id="chat-1"))["type"] == "session"
        observers.append(observer)
    late = await server.login("late", org="acme", scope="ops")
    assert (await late.ask("watch", session_id="chat-1"))["code"] == "rate_limited"
    # Her own sockets have places of their own.
    own = [first]
    for _ in range(server_limits.SOCKETS_PER_SESSION_MAX - 1):
        own.append(await server.login(org="acme"))
        joined = await own[-1].ask("start", kind="chat", session_id="chat-1")
        assert joined["type"] == "session"
    extra = await server.login(org="acme")
    refused = await extra.ask("start", kind="chat", session_id="chat-1")
    assert refused["code"] == "rate_limited"
    # Where she only watches, the oldest observer is removed, and gets an error.
    assert (await extra.ask("watch", session_id="chat-1"))["type"] == "session"
    told = await observers[0].until("error")
    assert (told["code"], told.get("id")) == ("rate_limited", None)
    assert "chat-1" in told["message"]
    assert (await observers[0].ask("stop", session_id="chat-1"))["code"] == "unknown_session"
    assert (await observers[0].ask("watch", session_id="chat-1"))["code"] == "rate_limited"
    # A free place can be taken again, and all observers get the end.
    await observers[1].close()
    local = server.process.registry.local_sessions["org:acme/chat-1"]

    async def left() -> bool:
        return len(local.service.observers) < server_limits.OBSERVERS_PER_SESSION_MAX

    await eventually(left)
    assert (await late.ask("watch", session_id="chat-1"))["type"] == "session"
    await first.ask("stop", session_id="chat-1")
    for client in (late, extra, observers[2], own[-1]):
        assert (await client.until("stopped"))["session_id"] == "chat-1"


@BOTH_CARRIERS
@pytest.mark.parametrize("who", ["user", "key", "operator"])
async def test_a_full_session_is_stopped_over_http(server: TestServer, who: str) -> None:
    clients = [await server.login() for _ in range(server_limits.SOCKETS_PER_SESSION_MAX)]
    for client in clients:
        await client.ask("start", kind="chat", session_id="chat-1")
    for number in range(server_limits.OBSERVERS_PER_SESSION_MAX):
        observer = await server.login(f"ops-{number}", scope="ops")
        await observer.ask("watch", session_id="chat-1", user="ann")
    bearer = {"user": server.token(), "key": API_KEY, "operator": server.token("o", scope="ops")}
    path = "/v1/sessions/chat-1/stop" + ("" if who == "user" else "?user=ann")
    stopped = await ask(server, "POST", path, bearer[who])
    assert stopped.status_code == 200, stopped.text
    reason = "operator" if who == "operator" else "client"
    assert stopped.json()["reason"] == reason
    assert (await clients[0].until("stopped"))["reason"] == reason


@BOTH_CARRIERS
@pytest.mark.parametrize(
    "fields", [{"org": "acme"}, {"user": "bob"}, {"org": "acme", "user": "ann"}, {"user": "ann"}]
)
@pytest.mark.parametrize("claims", [{}, {"scope": "ops:read"}, {"scope": "org:read"}])
async def test_others_watch_in_their_own_tenant_alone(
    server: TestServer, fields: dict[str, str], claims: dict[str, str]
) -> None:
    ann = await server.login("ann", org="acme")
    await ann.ask("start", kind="chat", session_id="chat-1")
    bob = await server.login("bob")
    await bob.ask("start", kind="chat", session_id="chat-1")
    eve = await server.login("eve", sessions=["chat-1"], **claims)
    assert (await eve.ask("watch", session_id="chat-1", **fields))["code"] == "forbidden"
    # Who names themselves says nothing new.
    own = await ann.ask("watch", session_id="chat-1", org="acme", user="ann")
    assert own["type"] == "session"
