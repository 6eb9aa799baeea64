"""The push path, and the parts of uvicorn that it overrides."""

import asyncio
import gc
import inspect
from importlib.metadata import version

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets import websockets_sansio_impl
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State

from protocol.limits import MESSAGE_BYTES_MAX
from server.limits import WRITE_BUFFER_CLOSE_BYTES, WRITE_BUFFER_SKIP_BYTES
from server.transport.frames import EMPTY_PING, FrameReader, text_frame
from server.transport.push import EXTENSION, PushProtocol, uvicorn_options
from server.transport.websocket_protocol import BoundedWebSocket
from tests.server.peers import Hasty, Served, on_both_loops, serving, text, until

TICK = text_frame(b"t" * 116)
NOTICE = text_frame(b"n" * 16_384)
OUR_ATTRIBUTES = {
    "control_frames",
    "control_until",
    "slot",
    "flowing",
    "inbox",
    "is_open",
    "on_alive",
    "peer_closed",
    "parse_planned",
    "reading",
    "unread",
}


async def client(served: Served) -> ClientConnection:
    return await connect(
        f"ws://127.0.0.1:{served.port}/v1/ws", compression=None, max_size=None, ping_interval=None
    )


@on_both_loops
async def test_frames_of_every_length_arrive() -> None:
    async with serving() as served, await client(served) as websocket:
        accepted = await served.arrivals.get()
        for length in (0, 125, 126, 65_535, 65_536):
            payload = b"x" * length
            assert accepted.push.push(text_frame(payload))
            assert await websocket.recv(decode=False) == payload


@on_both_loops
async def test_push_and_send_keep_their_order() -> None:
    async with serving() as served, await client(served) as websocket:
        accepted = await served.arrivals.get()
        for number in range(0, 300, 3):
            await accepted.send_text(str(number))
            accepted.push.push(text_frame(b"%d" % (number + 1)))
            accepted.push.push_tick(text_frame(b"%d" % (number + 2)))
        assert [await websocket.recv() for _ in range(300)] == [str(n) for n in range(300)]


@on_both_loops
async def test_order_is_kept_behind_a_full_write_buffer() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        while accepted.push.push_tick(NOTICE):
            pass
        assert accepted.push.push(text_frame(b"pushed"))
        sending = asyncio.create_task(accepted.send_text("sent"))
        received = []
        while b"sent" not in received:
            received.append((await peer.frame())[1])
        await sending
        assert [payload for payload in received if len(payload) < 100] == [b"pushed", b"sent"]


@on_both_loops
async def test_slow_peer_loses_ticks_and_gets_the_newest_once_it_reads() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        written = 0
        while push.push_tick(TICK):
            written += 1
        piled_up = push.transport.get_write_buffer_size()
        assert WRITE_BUFFER_SKIP_BYTES < piled_up <= WRITE_BUFFER_SKIP_BYTES + len(TICK)
        assert not push.push_tick(text_frame(b"old"))
        assert push.transport.get_write_buffer_size() == piled_up
        for _ in range(written):
            assert (await peer.frame())[1] == TICK[2:]
        await until(lambda: push.push_tick(text_frame(b"new")))
        assert (await peer.frame())[1] == b"new"


@on_both_loops
async def test_peer_that_stops_reading_is_aborted() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        while accepted.push.push_tick(TICK):
            pass
        assert await accepted.disconnect_code() == 4001
        assert not accepted.push.is_open
        await served.lost.get()
        assert not accepted.push.push(TICK)


@on_both_loops
async def test_peer_that_reads_again_in_time_is_not_aborted() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        while push.push_tick(TICK):
            pass
        timer = push.drain_timer
        assert timer is not None
        while not push.flowing:
            await peer.frame()
        assert timer.cancelled()
        assert push.drain_timer is None


@on_both_loops
async def test_slow_consumer_is_closed_4001_above_a_mebibyte() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        pushed = 0
        while push.push(NOTICE):
            pushed += 1
        bound = WRITE_BUFFER_CLOSE_BYTES + len(NOTICE) + 64
        assert WRITE_BUFFER_CLOSE_BYTES < push.transport.get_write_buffer_size() <= bound
        assert await accepted.disconnect_code() == 4001
        assert not push.push(NOTICE)
        # If the consumer reads after all, it gets the close code.
        for _ in range(pushed):
            assert (await peer.frame())[1] == NOTICE[4:]
        assert await peer.close_code() == 4001


@on_both_loops
async def test_slow_consumer_that_never_reads_is_aborted_after_its_close() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        while accepted.push.push(NOTICE):
            pass
        assert await accepted.disconnect_code() == 4001
        lost = await served.lost.get()
        assert lost is accepted.push
        assert not served.server.server_state.connections


@on_both_loops
async def test_send_waits_for_a_slow_peer_and_ends_with_it() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        while accepted.push.push_tick(NOTICE):
            pass
        [outcome] = await asyncio.gather(accepted.send_text("late"), return_exceptions=True)
        assert isinstance(outcome, ClientDisconnected)


@on_both_loops
async def test_pings_come_and_silence_is_closed_4003() -> None:
    async with serving(Hasty, ws_ping_interval=0.02, ws_ping_timeout=0.02) as served:
        peer, accepted = await served.pair()
        assert await peer.frame() == (0x89, b"")
        assert await peer.close_code() == 4003
        assert await accepted.disconnect_code() == 4003
        # The peer does not answer the close, either.
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_a_peer_that_answers_pings_stays() -> None:
    async with (
        serving(ws_ping_interval=0.01, ws_ping_timeout=0.01) as served,
        await client(served) as websocket,
    ):
        accepted = await served.arrivals.get()
        pongs: asyncio.Queue[None] = asyncio.Queue()
        accepted.push.on_alive = lambda: pongs.put_nowait(None)
        for _ in range(5):
            await pongs.get()
        assert accepted.push.is_open
        assert websocket.state is State.OPEN


@on_both_loops
async def test_every_sign_of_life_is_noted_and_answers_the_keepalive() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        signs: asyncio.Queue[None] = asyncio.Queue()
        push.on_alive = lambda: signs.put_nowait(None)
        for frame in (
            Frame(Opcode.PONG, b""),
            Frame(Opcode.PONG, b"nobody asked"),
            text(b"message"),
            text(b"begun", fin=False),
            Frame(Opcode.CONT, b"ended", fin=True),
            Frame(Opcode.BINARY, b"bytes"),
        ):
            push.send_keepalive_ping()
            assert push.awaiting_pong
            await peer.write_frames(frame)
            await signs.get()
            assert not push.awaiting_pong
        assert [await accepted.receive_event() for _ in range(3)] == [
            {"type": "websocket.receive", "text": "message"},
            {"type": "websocket.receive", "text": "begunended"},
            {"type": "websocket.receive", "bytes": b"bytes"},
        ]
        await peer.write_frames(Frame(Opcode.CLOSE, Close(1000, "").serialize()))
        await signs.get()
        assert await accepted.disconnect_code() == 1000


@on_both_loops
async def test_nothing_is_life_after_our_close() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        signs: list[None] = []
        accepted.push.on_alive = lambda: signs.append(None)
        accepted.push.close(4002, "token expired")
        await peer.write_frames(
            Frame(Opcode.PONG, b""), text(b"late"), Frame(Opcode.CLOSE, b"\x0f\xa2")
        )
        await served.lost.get()
        assert signs == []
        assert await accepted.disconnect_code() == 4002


@on_both_loops
async def test_ping_now_asks_at_once_beside_the_keepalive() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        due_at = push.due_at
        assert push.ping_now()
        assert await peer.frame() == (0x89, b"")
        assert (push.due_at, push.awaiting_pong) == (due_at, False)
        while push.push_tick(NOTICE):
            pass
        assert not push.ping_now()


@on_both_loops
async def test_pongs_behind_a_full_write_buffer_do_not_pile_up() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        while push.push_tick(NOTICE):
            pass
        piled_up = push.transport.get_write_buffer_size()
        await peer.write_frames(*(Frame(Opcode.PING, b"%d" % n) for n in range(100)))
        await until(lambda: push.owed_pong == b"\x8a\x0299")
        assert push.transport.get_write_buffer_size() <= piled_up
        while (answer := await peer.frame())[0] != 0x8A:
            pass
        assert answer == (0x8A, b"99")


@on_both_loops
async def test_a_closed_socket_takes_nothing() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        peer.close()
        await served.lost.get()
        assert not push.is_open
        assert not push.push(TICK)
        assert not push.push_tick(TICK)
        assert not push.ping_now()
        push.close(1000)
        assert await accepted.disconnect_code() == 1006


@on_both_loops
async def test_the_socket_offers_itself_and_holds_no_dictionary() -> None:
    def handshakes() -> set[int]:
        gc.collect()
        return {id(kept) for kept in gc.get_objects() if isinstance(kept, Request | Response)}

    others = handshakes()
    async with serving() as served:
        _, accepted = await served.pair()
        push = accepted.scope["extensions"][EXTENSION]
        assert isinstance(push, PushProtocol)
        # An attribute that an upgrade adds works, and costs each socket a dictionary.
        assert vars(push) == {}
        assert vars(push.conn) == {}
        # Nor what only the handshake needed, of which websockets' parser has a share.
        assert handshakes() <= others


def test_options_are_the_wire_s() -> None:
    options = uvicorn_options()
    config = uvicorn.Config(lambda: None, log_config=None, **options)
    assert config.ws is PushProtocol
    assert config.ws_max_size == MESSAGE_BYTES_MAX == 16_384
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (10, 10)
    assert not config.ws_per_message_deflate


def test_the_seam_to_uvicorn_is_as_it_was() -> None:
    """What is overridden, called or set exists in uvicorn by these names.

    Fails at an upgrade that moves one: then read uvicorn's websockets_sansio_impl.py against
    server/transport/websocket_protocol.py, and set the version here.
    """
    assert version("uvicorn") == "0.54.0"
    assert version("websockets") == "17.4"
    base = websockets_sansio_impl.WebSocketsSansIOProtocol
    overridden = {
        "connection_made": ["transport"],
        "connection_lost": ["exc"],
        "data_received": ["data"],
        "handle_bytes": ["event"],
        "handle_close": ["event"],
        "handle_connect": ["event"],
        "handle_cont": ["event"],
        "handle_parser_exception": [],
        "handle_ping": [],
        "handle_pong": ["event"],
        "handle_text": ["event"],
        "keepalive_timeout": [],
        "on_task_complete": ["task"],
        "pause_writing": [],
        "receive": [],
        "resume_writing": [],
        "send": ["message"],
        "send_keepalive_ping": [],
        "send_receive_event_to_app": [],
        "shutdown": [],
        "start_keepalive": [],
    }
    for name, parameters in overridden.items():
        assert list(inspect.signature(getattr(base, name)).parameters)[1:] == parameters, name
        assert getattr(PushProtocol, name) is not getattr(base, name), name
    # Called as it is.
    assert list(inspect.signature(base.handle_events).parameters) == ["self"]
    assert PushProtocol.handle_events is base.handle_events
    assert PushProtocol.run_asgi is base.run_asgi
    # Attributes that the base sets and that are read or set here.
    source = inspect.getsource(base)
    for name in set(BoundedWebSocket.__slots__) - OUR_ATTRIBUTES:
        assert f"self.{name}" in source, name


def test_the_seam_to_websockets_is_as_it_was() -> None:
    reader = FrameReader(MESSAGE_BYTES_MAX)
    assert vars(reader) == {}
    assert reader.max_message_size == MESSAGE_BYTES_MAX
    assert (reader.events, reader.writes, reader.parser_exc) == ([], [], None)
    assert reader.reader.buffer == b""
    assert inspect.isgenerator(reader.parser)
    assert not reader.debug
    reader.state = State.OPEN
    reader.forget_request()
    reader.receive_data(text(b"read on").serialize(mask=True))
    [frame] = reader.events_received()
    assert isinstance(frame, Frame)
    assert frame.data == b"read on"
    assert EMPTY_PING[0] == 0x80 | Opcode.PING
