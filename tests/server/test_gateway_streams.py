"""Streams and their requests at any process; what they leave behind."""

import asyncio
from typing import Any

import pytest

from protocol.metering.states import Phase
from server import limits as server_limits
from server.gateway.streams import Streams
from server.runtime.stall_detector import StallDetector
from storage.redis.live import LiveError
from tests.fixtures.server import StartServer, TestServer
from tests.fixtures.stream_client import StreamClient
from tests.server.api import advance, assert_problem
from tests.server.billed_session import CREDIT, closed, connection_of, eventually, found, reaches


def streams_of(server: TestServer) -> Streams:
    streams: Streams = server.app.state.streams
    return streams


class TwoProcesses:
    """A stream of one process, whose requests arrive at another."""

    __test__ = False

    def __init__(self, here: TestServer, there: TestServer, client: StreamClient) -> None:
        self.here = here
        self.there = there
        self.client = client


@pytest.fixture
async def apart(start_server: StartServer) -> TwoProcesses:
    here, there = await start_server(), await start_server()
    await here.grant(5 * CREDIT)
    return TwoProcesses(here, there, await here.stream(post_url=there.url))


async def test_requests_at_another_process_reach_the_stream(apart: TwoProcesses) -> None:
    client = apart.client
    started = await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert started["state"] == "active"
    assert [local.key for local in apart.here.process.registry] == ["user:ann/chat-1"]
    assert list(apart.there.process.registry) == []
    # Each tick of the first seconds waits for a pong, which goes the long way too.
    for _ in range(3):
        await client.until("tick")
    assert client.pings >= 3
    several = [
        {"type": "pause", "id": 100, "session_id": "chat-1"},
        {"type": "resume", "id": 101, "session_id": "chat-1"},
        {"type": "nonsense", "id": 102},
        {"type": "stop", "id": 103, "session_id": "chat-1"},
    ]
    assert (await client.post(several)).status_code == 202
    answers: dict[int, str] = {}
    while len(answers) < len(several):
        message = await client.receive()
        if "id" in message:
            answers[message["id"]] = message["type"]
    assert answers == {100: "session", 101: "session", 102: "error", 103: "stopped"}
    assert streams_of(apart.there)._answers == {}


async def test_refusals_of_another_process_are_its_own(apart: TwoProcesses) -> None:
    client, there = apart.client, apart.there
    pong = {"type": "pong"}
    assert_problem(await client.post(pong, there.token("bob")), 403, "forbidden")
    assert_problem(await client.post(pong, there.token("ann", org="acme")), 403, "forbidden")
    stream_id = client.id
    client.id = stream_id[:-1]
    assert_problem(await client.post(pong), 404, "unknown_stream")
    # No process of that name lives.
    client.id = f"node-000000000000.{stream_id.partition('.')[2]}"
    assert_problem(await client.post(pong), 404, "unknown_stream")
    client.id = stream_id
    assert (await client.post(pong)).status_code == 202


async def test_a_proof_counts_from_its_arrival_at_any_process(
    apart: TwoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may deliver late, and that time is not the client's."""
    connection = connection_of(apart.here)
    heard: list[int | None] = []
    before = connection.alive_at
    connection.socket.on_alive = lambda came_at=None: heard.append(came_at)
    monkeypatch.setattr(StallDetector, "proof_at", lambda self, now_ms: before - 500)
    await apart.client.post({"type": "pong"})
    assert heard == [before - 500]
    monkeypatch.undo()
    advance(apart.here, 1_000)
    connection._alive(before + 1)
    assert connection.alive_at == before + 1
    # A process whose clock is ahead proves nothing of the future.
    connection._alive(before + 3_600_000)
    assert connection.alive_at < before + 3_600_000


async def test_a_process_that_does_not_answer_is_503(
    apart: TwoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise LiveError("no connection")

    monkeypatch.setattr(server_limits, "REQUEST_TIMEOUT_MS", 10)
    monkeypatch.setattr(apart.here.process.live, "tell_process", lost)
    assert_problem(await apart.client.post({"type": "ping", "id": 1}), 503, "unavailable")
    assert streams_of(apart.there)._answers == {}
    # The message was taken nevertheless; only the answer is lost.
    assert (await apart.client.until("pong"))["id"] == 1


async def test_requests_that_wait_for_other_processes_are_bounded(
    apart: TwoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "STREAM_POSTS_WAITING_MAX", 0)
    assert_problem(await apart.client.post({"type": "pong"}), 503, "unavailable")


async def test_what_is_no_request_harms_no_stream(apart: TwoProcesses) -> None:
    streams = streams_of(apart.here)
    answers: list[Any] = [{"reload": True}, {"answer": 10**9, "outcome": "taken"}, {}]
    for message in answers:
        streams._hears(message)
    assert (await apart.client.ask("ping"))["type"] == "pong"


async def test_a_stream_that_breaks_off_is_suspended_and_leaves_nothing(
    server: TestServer,
) -> None:
    await server.grant(5 * CREDIT)
    client = await server.stream()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=60_000)
    connection = connection_of(server)
    await client.drop()
    await reaches(server, "chat-1", Phase.SUSPENDED)
    session = (await found(server, "chat-1")).session
    proven_ms = connection.alive_at - session.identity.started_at
    assert session.standing.elapsed_ms <= max(0, proven_ms)

    async def forgotten() -> bool:
        return not server.process.sockets.connections

    await eventually(forgotten)
    assert streams_of(server)._streams == {}
    assert not server.process.sockets._by_user
    assert not server.process.sockets._by_network
    metrics = server.process.metrics.render()[0]
    assert b"taximeter_streams 0.0" in metrics
    assert b'taximeter_streams_closed_total{code="1006"} 1.0' in metrics
    assert b"taximeter_sockets_opened_total 0.0" in metrics


async def test_a_client_that_answers_no_ping_is_billed_to_its_last_proof(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.grant(5 * CREDIT)
    monkeypatch.setattr(server_limits, "PING_INTERVAL_MS", 300)
    monkeypatch.setattr(server_limits, "PONG_TIMEOUT_MS", 300)
    client = await server.stream()
    client.answers_pings = False
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    connection = connection_of(server)
    proven_at = connection.alive_at
    code, types = await closed(client)
    assert code == 4003
    assert "tick" not in types
    await reaches(server, "chat-1", Phase.SUSPENDED)
    session = (await found(server, "chat-1")).session
    assert connection.alive_at == proven_at
    assert session.standing.elapsed_ms <= max(0, proven_at - session.identity.started_at)
    # It reads everything, but a stream that has ended takes no proof.
    assert_problem(await client.post({"type": "pong"}), 404, "unknown_stream")


async def test_a_pong_frees_the_tick_that_waits_for_it(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.stream()
    client.answers_pings = False
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    tally = server.process.metrics.tally

    async def is_asked() -> bool:
        return client.pings >= 1

    await eventually(is_asked)
    assert tally.ticks_pushed == 0
    await client.post({"type": "pong"})
    assert (await client.until("tick"))["elapsed_ms"] > 0


async def test_streams_and_sockets_share_a_session(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    socket, stream = await server.login(), await server.stream()
    for client in (socket, stream):
        await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    (local,) = server.process.registry
    assert local.meter.sockets == 2
    await socket.until("tick")
    await stream.until("tick")
    await socket.drop()
    await stream.until("tick")
    assert (await found(server, "chat-1")).session.standing.phase is Phase.ACTIVE
    stopped = await stream.ask("stop", session_id="chat-1")
    assert stopped["receipt"]["gaps"] == []


async def test_a_failed_stream_is_cleaned_up(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account that cannot be opened ends the stream."""

    async def lost(*_: object) -> None:
        raise LiveError("no connection")

    monkeypatch.setattr(server.process.ledger, "ensure_monthly_allotment", lost)
    client = StreamClient(server.url)
    await client.open(server.token())
    assert await closed(client) == (1011, ["error"])
    await client.close()
    monkeypatch.undo()
    assert (await (await server.stream()).ask("ping"))["type"] == "pong"
    assert len(streams_of(server)._streams) == 1


async def test_redis_away_refuses_the_first_stream(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise LiveError("no connection")

    monkeypatch.setattr(server.process.registry.accounts.channels, "subscribe", lost)
    client = StreamClient(server.url)
    with pytest.raises(Exception, match="does not answer"):
        await client.open(server.token())
    assert not server.process.sockets._by_network
    await asyncio.sleep(0)
