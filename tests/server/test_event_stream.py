"""One event stream over a connection that the test plays."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server import limits as server_limits
from server.transport.event_stream import EventStream, message_event
from server.transport.frames import payload_of, text_frame
from server.transport.keepalive import Keepalive
from storage.tasks import end
from tests.server.peers import until

TICK = text_frame(b'{"type":"tick"}')


class PlayedConnection:
    """The other end of a stream, which may take no more."""

    def __init__(self) -> None:
        self.stream = EventStream()
        self.written = b""
        self.has_ended = False
        self.takes_more = asyncio.Event()
        self.takes_more.set()
        self.is_lost = asyncio.Event()
        self.proofs: list[int] = []
        self.stream.on_alive = self.proofs.append
        self.tasks = [
            asyncio.create_task(self.stream.write(self._send)),
            asyncio.create_task(self.stream.watch(self._receive)),
        ]

    async def _send(self, message: Any) -> None:
        await self.takes_more.wait()
        assert not self.has_ended
        self.written += message["body"]
        self.has_ended = not message["more_body"]

    async def _receive(self) -> Any:
        await self.is_lost.wait()
        return {"type": "http.disconnect"}

    async def events(self, count: int) -> list[str]:
        """The first events, once that many were written."""
        await until(lambda: self.written.count(b"\n\n") >= count)
        return self.written.decode().removesuffix("\n\n").split("\n\n")

    async def close_event(self) -> dict[str, Any]:
        """The data of the last event."""
        await until(lambda: self.has_ended)
        name, data = self.written.decode().removesuffix("\n\n").split("\n\n")[-1].split("\n")
        assert name == "event: close"
        found: dict[str, Any] = json.loads(data.removeprefix("data: "))
        return found

    async def stall(self) -> None:
        """Takes no more, which the stream knows after its next event."""
        self.takes_more.clear()
        self.stream.push(text_frame(b"{}"))
        await until(lambda: not self.stream._flowing)


@pytest.fixture
async def played() -> AsyncIterator[PlayedConnection]:
    connection = PlayedConnection()
    yield connection
    await end(connection.tasks)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 511, 512, 65_535, 65_536])
def test_payload_of_every_frame_is_found(length: int) -> None:
    payload = b"x" * length
    assert payload_of(text_frame(payload)) == payload
    assert message_event(payload) == b"data: " + payload + b"\n\n"


async def test_messages_become_events_in_order(played: PlayedConnection) -> None:
    assert played.stream.push(text_frame(b'{"type":"pong"}'))
    assert played.stream.push_tick(TICK)
    assert played.stream.ping_now()
    assert await played.events(3) == [
        'data: {"type":"pong"}',
        'data: {"type":"tick"}',
        'event: ping\ndata: {"type":"ping"}',
    ]


async def test_slow_peer_loses_ticks_and_gets_the_newest_once_it_reads(
    played: PlayedConnection,
) -> None:
    await played.stall()
    assert not played.stream.push_tick(text_frame(b'{"old":1}'))
    assert not played.stream.ping_now()
    assert played.stream.push(text_frame(b'{"notice":1}'))
    played.takes_more.set()
    await until(lambda: played.stream._flowing)
    assert played.stream.push_tick(text_frame(b'{"new":1}'))
    assert await played.events(3) == ["data: {}", 'data: {"notice":1}', 'data: {"new":1}']


async def test_peer_that_reads_nothing_is_closed_above_a_bound(played: PlayedConnection) -> None:
    await played.stall()
    written = 0
    while played.stream.push(text_frame(b"x" * 4096)):
        written += 4096
    most = server_limits.WRITE_BUFFER_CLOSE_BYTES
    assert most <= written <= most + 3 * 4096
    assert (await played.stream.receive())["code"] == 4001
    # What waited is not kept for a peer that may never read.
    assert sum(map(len, played.stream._waiting)) < 256
    played.takes_more.set()
    assert await played.close_event() == {"type": "close", "code": 4001, "reason": "slow consumer"}


async def test_close_is_the_last_event_and_ends_the_answer(played: PlayedConnection) -> None:
    played.stream.push(TICK)
    played.stream.close(4000, "this process stops")
    played.stream.close(1011, "too late")
    assert not played.stream.push(TICK)
    assert (await played.close_event())["code"] == 4000
    assert (await played.stream.receive())["code"] == 4000
    assert played.written.count(b"tick") == 1
    await asyncio.wait(played.tasks[:1])


@pytest.mark.parametrize(("stalled", "code"), [(False, 1006), (True, 4001)])
async def test_lost_connection_is_told_by_its_code(
    played: PlayedConnection, stalled: bool, code: int
) -> None:
    if stalled:
        await played.stall()
    played.is_lost.set()
    assert (await played.stream.receive())["code"] == code
    assert not played.stream.is_open


async def test_a_request_proves_life_and_its_messages_wait_in_order(
    played: PlayedConnection,
) -> None:
    assert played.stream.take(['{"type":"ping"}', '{"type": "pong"}', "not JSON"], 17)
    assert played.proofs == [17]
    texts = [(await played.stream.receive())["text"] for _ in range(2)]
    assert texts == ['{"type":"ping"}', "not JSON"]


async def test_messages_that_wait_are_bounded(played: PlayedConnection) -> None:
    most = server_limits.INBOX_MESSAGES_MAX
    assert played.stream.take(["{}"] * (most - 1), 1)
    assert not played.stream.take(["{}", "{}"], 2)
    # None of a refused request is taken, but it came.
    assert played.proofs == [1, 2]
    assert played.stream.take(["{}"], 3)
    assert played.stream.take(['{"type":"pong"}'], 4)
    assert len(played.stream._inbox.events) == most


async def test_too_many_pongs_are_4502(played: PlayedConnection) -> None:
    for _ in range(server_limits.CONTROL_FRAMES_MAX):
        assert played.stream.take(['{"type":"pong"}'], 1)
    assert played.stream.is_open
    played.stream.take(['{"type":"pong"}'], 1)
    assert (await played.close_event())["code"] == 4502


async def test_pings_are_answered_or_the_stream_is_4003(played: PlayedConnection) -> None:
    keepalive = Keepalive(asyncio.get_running_loop(), 0.01, 0.01)
    keepalive.add(played.stream)
    for number in range(3):
        await until(lambda: played.stream.awaiting_pong)
        played.stream.take(['{"type":"pong"}'], number)
    assert (await played.close_event())["code"] == 4003
    assert played.written.count(b"event: ping") >= 4
