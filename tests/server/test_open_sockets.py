"""The open sockets of a process: too many, unwanted, and drained."""

import asyncio
import json
import logging
import socket
import struct

import pytest
from websockets.exceptions import InvalidStatus

from protocol import limits
from protocol.metering.states import Phase
from server import limits as server_limits
from server.runtime.metrics import Metrics
from server.transport.open_sockets import Sockets
from tests.fixtures.server import BOTH_CARRIERS, StartServer, TestServer
from tests.server.api import ask
from tests.server.billed_session import (
    BilledSession,
    closed,
    connection_of,
    eventually,
    found,
)

# --- Going ---------------------------------------------------------------------------


@BOTH_CARRIERS
async def test_reconnect_says_how_far_to_spread(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "DRAIN_SOCKETS_PER_SECOND", 4)
    monkeypatch.setattr(server_limits, "DRAIN_LEFT_MS", 0)
    client, other = await server.login(), await server.login()
    await server.process.drain()
    for one in (client, other):
        assert (await one.until("reconnect"))["after_ms"] == 500
    monkeypatch.setattr(server_limits, "DRAIN_SPREAD_MS", 10)
    server.process.draining = False
    third = await server.login()
    await server.process.drain()
    assert (await third.until("reconnect"))["after_ms"] == 10


@BOTH_CARRIERS
async def test_a_storm_of_clients_is_served(server: TestServer) -> None:
    clients = await asyncio.gather(*(server.login(f"user-{number}") for number in range(60)))
    answers = await asyncio.gather(
        *(client.ask("start", kind="chat", session_id="chat-1") for client in clients)
    )
    assert {answer["type"] for answer in answers} == {"session"}
    await asyncio.gather(*(client.close() for client in clients))


# --- Too many, and unwanted ones ------------------------------------------------------


@BOTH_CARRIERS
async def test_a_flood_is_rate_limited_and_then_closed(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10)
    monkeypatch.setattr(server_limits, "REQUESTS_PER_SECOND", 0)
    client = await scene.server.login()
    # On a WebSocket, `auth` was the first.
    for number in range(9 if scene.server.carrier == "websocket" else 10):
        assert (await client.ask("ping"))["type"] == "pong", number
    limited = await client.ask("ping")
    assert (limited["code"], limited["retryable"]) == ("rate_limited", True)
    await client.write("{not JSON, and too often")
    assert (await client.until("error"))["code"] == "rate_limited"
    for _ in range(server_limits.REFUSALS_PER_SOCKET_MAX - 1):
        await client.send("stop", session_id="bill-1")
    code, types = await closed(client)
    assert code == 4502
    assert set(types) == {"error"}
    assert len(types) == server_limits.REFUSALS_PER_SOCKET_MAX - 2
    # A well-behaved client beside it is served as before.
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10_000)


@BOTH_CARRIERS
async def test_a_socket_that_slows_down_is_forgiven(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await scene.server.login("bob")
    bucket = connection_of(scene.server, "bob")._bucket
    bucket.refused = server_limits.REFUSALS_PER_SOCKET_MAX
    bucket._tokens = 0.0
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 2)
    monkeypatch.setattr(server_limits, "REQUESTS_PER_SECOND", 10_000_000)
    bucket._at -= 1_000
    assert (await client.ask("ping"))["type"] == "pong"
    assert bucket.refused == 0
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10_000)


async def test_too_many_sockets_of_a_user_are_4503(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_USER_MAX", 2)
    server = scene.server
    second = await server.login()
    third = await server.connect()
    await third.send("auth", token=server.token())
    assert await closed(third) == (4503, [])
    await server.login("bob")
    await second.close()

    async def counted_down() -> bool:
        return server.process.sockets._by_user["user:ann/ann"] == 1

    await eventually(counted_down)
    await server.login()


async def test_too_many_sockets_of_an_address_are_refused(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_ADDRESS_MAX", 1)
    with pytest.raises(InvalidStatus) as refused:
        await scene.server.connect()
    assert refused.value.response.status_code == 503


async def test_only_a_proxy_says_who_stands_behind_it(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    await server.connect(additional_headers=told)
    await server.connect(additional_headers=told, local_addr=("127.0.0.5", 0))
    assert server.process.sockets._by_network == {"198.51.100.7": 1, "127.0.0.5": 1}
    # Entries that the client itself sent to the proxy are not trusted, either.
    await server.connect(additional_headers={"X-Forwarded-For": "203.0.113.1, 198.51.100.7"})
    assert server.process.sockets._by_network["198.51.100.7"] == 2

    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.5,127.0.0.6")
    server = await start_server()
    await server.connect(additional_headers=told)
    await server.connect(additional_headers=told, local_addr=("127.0.0.5", 0))
    assert server.process.sockets._by_network == {"127.0.0.1": 1, "198.51.100.7": 1}


@BOTH_CARRIERS
@pytest.mark.usefixtures("patience")
async def test_too_many_sessions_of_an_account_are_refused(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_SESSIONS_PER_ACCOUNT_MAX", 3)
    one, two = await start_server(), await start_server()
    first, second = await one.login(), await two.login()
    for number, client in enumerate((first, second, first)):
        started = await client.ask("start", kind="chat", session_id=f"chat-{number}")
        assert started["type"] == "session"

    async def known() -> bool:
        account = two.process.registry.accounts.get("user:ann", "ann")
        return account is not None and len(account.projection.lines) == 3

    await eventually(known)
    for client in (first, second):
        refused = await client.ask("start", kind="chat", session_id="chat-more")
        assert (refused["code"], refused["retryable"]) == ("rate_limited", True)
    beat = await ask(
        one, "POST", "/v1/sessions/chat-more/heartbeat", one.token(), json={"kind": "chat"}
    )
    assert beat.status_code == 429
    # Running sessions can be joined, and an ended session makes room.
    assert (await second.ask("start", kind="chat", session_id="chat-0"))["type"] == "session"
    await first.ask("stop", session_id="chat-0")
    assert (await first.ask("start", kind="chat", session_id="chat-more"))["type"] == "session"
    assert len(list(one.process.registry)) == 2


@BOTH_CARRIERS
async def test_ids_that_are_made_up_leave_nothing_behind(scene: BilledSession) -> None:
    registry = scene.server.process.registry
    for number in range(50):
        answer = await scene.client.ask("watch", session_id=f"made-up-{number}")
        assert answer["code"] == "unknown_session"
    for _ in range(2):
        started = await asyncio.gather(
            *(scene.client.send("start", kind="chat", session_id="chat-1") for _ in range(10))
        )
        assert len(started) == 10
    assert (await scene.client.ask("ping"))["type"] == "pong"
    assert len(registry._locks) == 0
    await scene.client.ask("stop", session_id="chat-1")


async def test_more_sockets_than_descriptors_are_refused(scene: BilledSession) -> None:
    scene.server.process.limiter.connections_max = 1
    with pytest.raises(InvalidStatus) as refused:
        await scene.server.connect()
    assert refused.value.response.status_code == 503


def test_sockets_are_counted_before_they_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_ADDRESS_MAX", 1)
    sockets = Sockets(Metrics(with_process=False))
    assert sockets.admit("1.1.1.1")
    assert not sockets.admit("1.1.1.1")
    assert sockets.admit("2001:db8::1")
    # A host has as many addresses of its network as it likes.
    assert not sockets.admit("2001:db8::2")
    assert sockets.admit("2001:db8:0:1::2")
    sockets.dismiss("1.1.1.1")
    assert sockets.admit("1.1.1.1")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://[", "http://127.0.0.1", "http://127.0.0.1:1"],
)
async def test_a_page_of_another_site_is_refused(
    scene: BilledSession, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await scene.server.connect(additional_headers={"Origin": origin})
    assert refused.value.response.status_code == 403
    assert refused.value.response.headers["Content-Type"] == "application/problem+json"
    body = refused.value.response.body
    assert body is not None
    assert json.loads(body)["code"] == "forbidden"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_page_of_the_same_site_is_served(scene: BilledSession) -> None:
    client = await scene.server.connect(additional_headers={"Origin": scene.server.url})
    assert (await client.ask("auth", token=scene.server.token()))["type"] == "welcome"


async def test_a_page_of_an_allowed_site_is_served(start_server: StartServer) -> None:
    server = await start_server(origins=("https://app.example",))
    client = await server.connect(additional_headers={"Origin": "https://app.example"})
    assert (await client.ask("auth", token=server.token()))["type"] == "welcome"
    with pytest.raises(InvalidStatus):
        await server.connect(additional_headers={"Origin": "https://evil.example"})


@BOTH_CARRIERS
async def test_a_client_that_vanishes_while_it_connects_is_no_error(
    scene: BilledSession, caplog: pytest.LogCaptureFixture
) -> None:
    sockets = scene.server.process.sockets
    opened = sockets.metrics.sockets_opened._value.get()
    for with_token in (False, True):
        bearer = f"Authorization: Bearer {scene.server.token()}\r\n" if with_token else ""
        request = (
            f"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n{bearer}\r\n"
        )
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", scene.server.port)) as peer:
                # Closed with a reset, and nothing of the answer is read.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.sendall(request.encode())
            assert (await scene.client.ask("ping"))["type"] == "pong"

    async def gone() -> bool:
        return len(sockets.connections) == 1 and sockets._by_network["127.0.0.1"] == 1

    await eventually(gone)
    assert sockets.metrics.sockets_opened._value.get() >= opened
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_session_is_not_stopped_by_a_socket_that_breaks_off(scene: BilledSession) -> None:
    client = await scene.server.login()
    await client.ask("start", kind="talk", session_id="bill-1")
    # Cut in the middle of a message: the frame announces 100 bytes and has ten.
    client.connection.transport.write(b"\x81\xe4\0\0\0\0" + b'{"type":"s')
    client.connection.transport.abort()
    await closed(client)

    async def gone() -> bool:
        return len(scene.server.process.sockets.connections) == 1

    await eventually(gone)
    assert (await found(scene.server, "bill-1")).session.standing.phase is Phase.PAUSED
