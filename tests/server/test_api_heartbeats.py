"""Sessions of clients without a WebSocket, alone and beside sockets."""

import asyncio
from typing import Any

import pytest

from protocol import limits
from server import limits as server_limits
from storage.redis.live import LiveError
from tests.faults.processes import eventually
from tests.fixtures.database import Connection
from tests.fixtures.server import BOTH_CARRIERS, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, settled

PATH = "/v1/sessions/chat-1/heartbeat"


async def test_a_session_lives_by_heartbeats(server: TestServer) -> None:
    await server.grant(10_000_000)
    token = server.token()
    begun = await ask(server, "POST", PATH, token, json={"kind": "chat"})
    assert begun.status_code == 200, begun.text
    assert begun.json()["state"] == "active"
    for _ in range(3):
        advance(server, 40_000)
        snapshot = (await ask(server, "POST", PATH, token)).json()
        assert snapshot["state"] == "active"
    assert 120_000 <= snapshot["elapsed_ms"] < 130_000
    receipt = (await ask(server, "POST", "/v1/sessions/chat-1/stop", token)).json()
    assert receipt["minutes"] == 3
    assert receipt["reason"] == "client"
    ended = await ask(server, "POST", PATH, token, json={"kind": "chat"})
    assert_problem(ended, 409, "session_ended")


async def test_the_proof_of_a_heartbeat_ends(server: TestServer) -> None:
    await server.grant(10_000_000)
    token = server.token()
    await ask(server, "POST", PATH, token, json={"kind": "chat"})
    advance(server, server_limits.HEARTBEAT_PROOF_MS + 5_000)

    async def suspended() -> dict[str, Any] | None:
        found = (await ask(server, "GET", "/v1/sessions/chat-1", token)).json()
        return found if found["state"] == "suspended" else None

    snapshot = await eventually(suspended)
    assert abs(snapshot["elapsed_ms"] - server_limits.HEARTBEAT_PROOF_MS) < 1_000
    back = (await ask(server, "POST", PATH, token)).json()
    assert back["state"] == "active"


@BOTH_CARRIERS
async def test_heartbeats_beside_a_socket_are_counted_once(server: TestServer) -> None:
    await server.grant(10_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    token = server.token()
    assert (await ask(server, "POST", PATH, token)).json()["state"] == "active"
    advance(server, 30_000)
    await client.close()
    snapshot = (await ask(server, "POST", PATH, token)).json()
    assert snapshot["state"] == "active"
    assert 30_000 <= snapshot["elapsed_ms"] < 40_000


async def test_what_a_heartbeat_may_not_do(server: TestServer) -> None:
    assert_problem(await ask(server, "POST", PATH, server.token()), 404, "unknown_session")
    assert_problem(
        await ask(server, "POST", PATH, server.token(), json={"kind": "nothing"}),
        422,
        "unknown_kind",
    )
    for wrong in (
        {"kind": 1},
        {"kind": ""},
        {"kind": "chat", "counterpart_id": "a b"},
        {"kind": "chat", "last_seq": -1},
        {"kind": "chat", "metadata": {"topic": "x" * limits.METADATA_BYTES_MAX}},
    ):
        response = await ask(server, "POST", PATH, server.token(), json=wrong)
        assert_problem(response, 400, "bad_message")
    assert_problem(await ask(server, "POST", PATH, None), 401, "unauthenticated")
    assert_problem(await ask(server, "POST", PATH), 403, "forbidden")
    other = server.token(sessions=["another"])
    assert_problem(await ask(server, "POST", PATH, other, json={"kind": "chat"}), 403, "forbidden")


async def test_a_first_heartbeat_without_an_answer_keeps_nothing_alive(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client got an error, and may never come back."""
    await server.grant(10_000_000)
    token, live = server.token(), server.process.live
    timeout_ms = server_limits.REQUEST_TIMEOUT_MS
    monkeypatch.setattr(server_limits, "REQUEST_TIMEOUT_MS", 50)
    real, go_on = live.commit, asyncio.Event()

    async def slow(*asked: Any, **options: Any) -> Any:
        await go_on.wait()
        return await real(*asked, **options)

    monkeypatch.setattr(live, "commit", slow)
    refused = await ask(server, "POST", PATH, token, json={"kind": "chat"})
    assert_problem(refused, 503, "unavailable")
    monkeypatch.setattr(server_limits, "REQUEST_TIMEOUT_MS", timeout_ms)
    go_on.set()
    await settled(server)
    advance(server, 90_000)
    await settled(server)
    found = (await ask(server, "GET", "/v1/sessions/chat-1", token)).json()
    assert found["reason"] == "disconnected"
    assert found["elapsed_ms"] < 10_000


@BOTH_CARRIERS
async def test_a_heartbeat_that_is_refused_keeps_nothing_alive(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused heartbeat keeps no session alive.

    The heartbeat was to bring a suspended session back. Redis did not answer, and its client got an
    error: the step that the process retries serves no client any more.
    """
    await server.grant(10_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await client.close()
    token, live = server.token(), server.process.live
    await until_state(server, "suspended")

    async def away(*_: Any, **__: Any) -> Any:
        raise LiveError("Redis is away")

    monkeypatch.setattr(live, "commit", away)
    refused = await ask(server, "POST", PATH, token)
    assert_problem(refused, 503, "unavailable")
    monkeypatch.undo()
    advance(server, 5_000)
    await settled(server)
    advance(server, server_limits.HEARTBEAT_PROOF_MS)
    await settled(server)
    found = (await ask(server, "GET", "/v1/sessions/chat-1", token)).json()
    assert found.get("state") in ("suspended", None)  # None: the session has ended by then
    assert found["elapsed_ms"] < 10_000


async def until_state(server: TestServer, state: str) -> None:
    """Waits until the session is in a state."""
    async with asyncio.timeout(30):
        while True:
            found = await ask(server, "GET", "/v1/sessions/chat-1", server.token())
            if found.json().get("state") == state:
                return


@pytest.mark.usefixtures("patience")
async def test_many_first_heartbeats_at_once_start_one_session(
    start_server: StartServer, connection: Connection
) -> None:
    servers = [await start_server(), await start_server()]
    await servers[0].grant(10_000_000)
    token = servers[0].token()
    responses = await asyncio.gather(
        *(ask(servers[n % 2], "POST", PATH, token, json={"kind": "chat"}) for n in range(20))
    )
    assert {response.json().get("state") for response in responses} == {"active"}, [
        response.text for response in responses
    ]
    stopped = await ask(servers[0], "POST", "/v1/sessions/chat-1/stop", token)
    assert stopped.json()["minutes"] == 1
    await servers[0].flush()
    assert await connection.fetchval("SELECT count(*) FROM sessions") == 1
    assert await connection.fetchval("SELECT count(*) FROM usage_tracking") == 1


# --- Good-bye over a socket ------------------------------------------------------------


async def reaches_suspended(servers: list[TestServer], ms: int) -> int:
    """Lets time pass on all servers; returns the suspended session's counted time."""
    await until_state(servers[0], "suspended")
    for server in servers:
        advance(server, ms)
        await settled(server)
    found = await ask(servers[0], "GET", "/v1/sessions/chat-1", servers[0].token())
    return int(found.json()["elapsed_ms"])


@pytest.mark.parametrize("how", ["close", "going away", "leave"])
@pytest.mark.parametrize("processes", [1, 2])
async def test_a_clean_close_ends_the_proof_of_a_heartbeat(
    start_server: StartServer, processes: int, how: str
) -> None:
    servers = [await start_server() for _ in range(processes)]
    await servers[0].grant(10_000_000)
    client = await servers[0].login()
    await client.ask("start", kind="chat", session_id="chat-1")
    beaten = await ask(servers[-1], "POST", PATH, servers[-1].token())
    assert beaten.json()["state"] == "active"
    # Only what came before the farewell ends with it. Two processes agree on the time to some
    # milliseconds, and one that has just stood still dates what it reads before that.
    for server in servers:
        advance(server, 5_000)
        await settled(server)
    if how == "leave":
        await client.send("leave", session_id="chat-1")
    else:
        await client.connection.close(1001 if how == "going away" else 1000)
    assert await reaches_suspended(servers, 30_000) < 20_000


@BOTH_CARRIERS
async def test_a_cut_socket_leaves_the_proof_of_a_heartbeat_alone(server: TestServer) -> None:
    """A cut socket does not shorten the proof of a heartbeat.

    The client sent no farewell: the heartbeat keeps the session alive for its time.
    """
    await server.grant(10_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await ask(server, "POST", PATH, server.token())
    await client.drop()
    await server.process.sockets.gone()
    advance(server, server_limits.HEARTBEAT_PROOF_MS - 5_000)
    await settled(server)
    found = (await ask(server, "GET", "/v1/sessions/chat-1", server.token())).json()
    assert found["state"] == "active"
    assert found["elapsed_ms"] >= server_limits.HEARTBEAT_PROOF_MS - 5_000


@BOTH_CARRIERS
async def test_a_close_from_this_side_is_no_farewell(server: TestServer) -> None:
    await server.grant(10_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await ask(server, "POST", PATH, server.token())
    (connection,) = list(server.process.sockets.connections)
    connection.close(4000, "this process stops")
    await server.process.sockets.gone()
    found = (await ask(server, "GET", "/v1/sessions/chat-1", server.token())).json()
    assert found["state"] == "active"


@BOTH_CARRIERS
async def test_a_clean_close_ends_no_other_socket(server: TestServer) -> None:
    await server.grant(10_000_000)
    first, second = await server.login(), await server.login()
    await first.ask("start", kind="chat", session_id="chat-1")
    await second.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    await first.close()
    await second.until("tick")
    assert (await second.ask("pause", session_id="chat-1"))["state"] == "paused"
