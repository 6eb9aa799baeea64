"""The calls of event streams: who may, and what is refused."""

import asyncio
import json
import socket
from typing import Any

import pytest

from protocol import limits
from server import limits as server_limits
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.fixtures.stream_client import StreamClient, StreamRefusedError
from tests.server.api import ask, assert_problem
from tests.server.billed_session import CREDIT, closed, connection_of, eventually


async def refusal(server: TestServer, bearer: str | None) -> Any:
    """The answer to a stream that is not opened."""
    client = StreamClient(server.url)
    with pytest.raises(StreamRefusedError) as refused:
        await client.open(bearer)
    return refused.value.response


# --- Opening -------------------------------------------------------------------------


async def test_a_stream_is_told_not_to_be_kept_back(server: TestServer) -> None:
    client = await server.stream()
    assert client.response is not None
    headers = client.response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers
    assert client.id.partition(".")[0] == server.process.node
    assert len(client.id) >= len(server.process.node) + 24


async def test_the_first_events_are_open_and_welcome(server: TestServer) -> None:
    client = StreamClient(server.url)
    await client.open(server.token("ann", org="acme", account="team", ttl_seconds=600))
    welcome = await client.receive()
    await client.close()
    assert (welcome["type"], welcome["user_id"], welcome["org_id"]) == ("welcome", "ann", "acme")
    assert (welcome["account_id"], welcome["ping_ms"]) == ("team", 10_000)
    assert "id" not in welcome


async def test_only_a_users_good_token_opens_a_stream(server: TestServer) -> None:
    assert_problem(await refusal(server, None), 401, "unauthenticated")
    assert_problem(await refusal(server, "nonsense"), 401, "unauthenticated")
    assert_problem(await refusal(server, API_KEY), 403, "forbidden")
    in_url = await ask(server, "GET", f"/v1/stream?token={server.token()}", None)
    assert_problem(in_url, 401, "unauthenticated")
    assert not server.process.sockets._by_network


async def test_head_opens_no_stream(server: TestServer) -> None:
    response = await ask(server, "HEAD", "/v1/stream", server.token())
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert server.process.metrics.streams_opened._value.get() == 0


async def test_too_many_streams_of_an_address_are_refused(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_ADDRESS_MAX", 2)
    await server.login()
    await server.stream()
    assert_problem(await refusal(server, server.token()), 503, "unavailable")


async def test_too_many_streams_and_sockets_of_a_user_are_4503(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_USER_MAX", 2)
    await server.login()
    await server.stream()
    third = StreamClient(server.url)
    await third.open(server.token())
    assert await closed(third) == (4503, [])
    await third.close()


async def test_a_draining_process_sends_streams_away_and_takes_none(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "DRAIN_LEFT_MS", 0)
    client = await server.stream()
    await server.process.drain()
    assert (await client.until("reconnect"))["after_ms"] <= server_limits.DRAIN_SPREAD_MS
    assert await closed(client) == (4000, [])
    assert_problem(await refusal(server, server.token()), 503, "unavailable")


async def test_a_stream_ends_with_its_token_unless_refreshed(server: TestServer) -> None:
    client = await server.stream(server.token(ttl_seconds=60))
    connection = connection_of(server)
    before = connection._deadline
    token = server.token(ttl_seconds=7200)
    welcome = await client.ask("refresh", token=token)
    assert welcome["expires_at"] - welcome["server_time_at"] > 7_000_000
    assert before is not None
    assert connection._deadline is not None
    assert connection._deadline.at - before.at > 7_000_000
    connection._expired(0)
    assert await closed(client) == (4002, [])


async def test_a_listed_page_may_open_and_ask(start_server: StartServer) -> None:
    server = await start_server(origins=("https://app.example",))
    for method, path in (("GET", "/v1/stream"), ("POST", "/v1/stream/x")):
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            response = await ask(
                server, "OPTIONS", path, None,
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": method,
                    "Access-Control-Request-Headers": "authorization,content-type",
                },
            )  # fmt: skip
            assert response.is_success is allowed
            assert ("access-control-allow-origin" in response.headers) is allowed
    client = StreamClient(server.url)
    await client.open(server.token(), Origin="https://app.example")
    assert client.response is not None
    assert client.response.headers["access-control-allow-origin"] == "https://app.example"
    await client.close()


async def test_a_stream_is_measured_to_its_beginning(server: TestServer) -> None:
    client = await server.stream()
    assert b"taximeter_streams 1.0" in server.process.metrics.render()[0]
    await client.close()

    async def is_counted() -> bool:
        return b'route="/v1/stream",status="200"' in server.process.metrics.render()[0]

    await eventually(is_counted)


# --- Requests ------------------------------------------------------------------------


async def test_requests_are_accepted_and_answered_on_the_stream(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.stream()
    response = await client.post('  {"type": "ping", "id": 7}\n')
    assert (response.status_code, response.content) == (202, b"")
    assert response.headers["cache-control"] == "no-store"
    assert (await client.until("pong"))["id"] == 7
    several = [{"type": "ping", "id": number} for number in range(server_limits.INBOX_MESSAGES_MAX)]
    assert (await client.post(several)).status_code == 202
    for number in range(server_limits.INBOX_MESSAGES_MAX):
        assert (await client.until("pong"))["id"] == number
    assert (await client.ask("auth", token=server.token()))["code"] == "bad_message"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ("  ", 400),
        ("null", 400),
        ('\u00a0{"type": "ping"}', 400),
        ("7", 400),
        ('"ping"', 400),
        ("[]", 400),
        ("[7]", 400),
        ('[{"type": "ping"}, null]', 400),
        ("[[]]", 400),
        ('[{"type": "ping"}', 400),
        (json.dumps([{"type": "ping"}] * 33), 400),
        (b'[{"type": "\xff"}]', 400),
        (b"\xff", 400),
        ('{"type": "ping", "x": "' + "x" * limits.MESSAGE_BYTES_MAX + '"}', 413),
        ("[" * 10_000, 400),
        ("[" * 5_000 + "]" * 5_000, 400),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_message_is_a_problem(
    server: TestServer, body: str | bytes, status: int
) -> None:
    client = await server.stream()
    assert_problem(await client.post(body), status, "bad_message")
    assert (await client.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"id": 3}', 3),
        ('{"type": "pong", "id": 3, "type": "ping"}', None),
        ('{"type": "ping", "id": 3, "id": 3}', None),
        ('{"type": "ping", "id": 3, "x": ' + "[" * 5_000 + "]" * 5_000 + "}", None),
        ('{"type": "start", "id": 3}', 3),
        ('{"type": "pongs", "id": 3}', 3),
        ('{"type": "ping", "id": "3"}', None),
        ('{"type": NaN}', None),
        ('{"type": "ping"', None),
        ('[{"type": "start", "id": 3, "a": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}]', None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_message_is_answered_as_on_a_socket(
    server: TestServer, body: str, told: int | None
) -> None:
    client = await server.stream()
    assert (await client.post(body)).status_code == 202
    error = await client.until("error")
    assert error["code"] == "bad_message"
    assert error.get("id") == told
    assert (await client.ask("ping"))["type"] == "pong"


async def test_only_the_streams_user_asks(server: TestServer) -> None:
    client = await server.stream(server.token("ann", org="acme"))
    pong = {"type": "pong"}
    for stranger in (
        server.token("bob", org="acme"),
        server.token("ann"),
        server.token("ann", org="other"),
        server.token("olga", org="acme", scope="ops"),
        API_KEY,
    ):
        assert_problem(await client.post(pong, stranger), 403, "forbidden")
    assert_problem(await client.post(pong, "nonsense"), 401, "unauthenticated")
    past = server.token("ann", org="acme", ttl_seconds=60, now_ms=1_000_000)
    assert_problem(await client.post(pong, past), 401, "unauthenticated")
    assert (await client.post(pong, server.token("ann", org="acme"))).status_code == 202


async def test_unknown_and_ended_streams_are_404(server: TestServer) -> None:
    client = await server.stream()
    stream_id = client.id
    for unknown in ("x", "x.y", f"{server.process.node}.x", server.process.node, "~" * 128):
        client.id = unknown
        assert_problem(await client.post({"type": "pong"}), 404, "unknown_stream")
    for malformed in ("a b", "x" * 129, "a*b"):
        client.id = malformed
        assert_problem(await client.post({"type": "pong"}), 400, "bad_message")
    client.id = stream_id
    connection_of(server).close(1011, "an error")
    assert (await closed(client))[0] == 1011
    assert_problem(await client.post({"type": "pong"}), 404, "unknown_stream")


async def test_requests_of_a_user_are_bounded(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.stream()
    client.answers_pings = False
    monkeypatch.setattr(server_limits, "USER_REQUESTS_BURST", 3)
    monkeypatch.setattr(server_limits, "USER_REQUESTS_PER_SECOND", 0)
    answers = [await client.post({"type": "pong"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert_problem(answers[3], 429, "rate_limited")
    # Pongs take nothing of the budget of other calls, nor of messages.
    assert (await ask(server, "GET", "/v1/accounts/ann", server.token())).status_code == 200


# --- A peer that stops reading -----------------------------------------------------------


async def test_a_stream_that_is_not_read_is_cut(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.process.limiter, "drain_s", 0.1)
    monkeypatch.setattr(server.process.limiter, "look_s", 0.05)
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10**6)
    monkeypatch.setattr(server_limits, "USER_REQUESTS_BURST", 10**6)
    neighbour = await server.stream(server.token("bob"))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(
            f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token()}\r\n\r\n"
            .encode()
        )  # fmt: skip

        async def is_there() -> bool:
            return len(server.process.sockets.connections) == 2

        await eventually(is_there)
        connection = connection_of(server)
        stream: Any = connection.socket
        most = 0
        async with asyncio.timeout(30):
            while connection in server.process.sockets.connections:
                if stream._waiting_bytes < 500_000:
                    connection.send(b"\x81\x7e\x0f\xff" + b"x" * 0xFFF)
                connection.send_tick(b"\x81\x02{}")
                most = max(most, stream._waiting_bytes)
                await asyncio.sleep(0)
    assert most < server_limits.WRITE_BUFFER_CLOSE_BYTES
    metrics = server.process.metrics.render()[0]
    assert b'taximeter_connections_cut_total{why="not_reading"} 1.0' in metrics
    assert b'taximeter_streams_closed_total{code="4001"} 1.0' in metrics
    assert (await neighbour.ask("ping"))["type"] == "pong"


async def test_http_1_0_is_served(server: TestServer) -> None:
    """nginx speaks it to the server unless told otherwise."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    bearer = f"Authorization: Bearer {server.token()}"
    writer.write(f"GET /v1/stream HTTP/1.0\r\n{bearer}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"event: open" in await reader.readuntil(b"\n\n")
    writer.close()
