"""uvicorn's WebSocket under careless, broken or hostile peers."""

import logging
from typing import cast

from starlette.datastructures import Headers
from websockets.frames import Close, Frame, Opcode

from protocol.limits import MESSAGE_BYTES_MAX
from server.limits import (
    CONTROL_FRAMES_MAX,
    FRAGMENTS_PER_MESSAGE_MAX,
    INBOX_MESSAGES_MAX,
    SLICE_BYTES,
)
from server.transport.frames import text_frame
from server.transport.reading import Readable, Reading
from server.transport.websocket_protocol import forget_handshake
from tests.server.peers import (
    Accepted,
    Hasty,
    everything_logged,
    more,
    on_both_loops,
    request,
    serving,
    text,
    until,
)


def close_frame(code: int, reason: str = "") -> Frame:
    return Frame(Opcode.CLOSE, Close(code, reason).serialize())


def fill(accepted: Accepted) -> None:
    """Fills the buffers, too little to pause writing."""
    while not accepted.push.transport.get_write_buffer_size():
        accepted.push.push(text_frame(b"x" * 16_384))
    assert accepted.push.flowing


@on_both_loops
async def test_a_clean_close_is_told_by_its_code_and_reason() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(text(b"last words"), close_frame(4321, "bye"))
        assert (await accepted.receive_event())["text"] == "last words"
        assert await accepted.receive_event() == {
            "type": "websocket.disconnect",
            "code": 4321,
            "reason": "bye",
        }
        assert await peer.close_code() == 4321
        await peer.end()


@on_both_loops
async def test_a_close_without_code_is_1005() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(Frame(Opcode.CLOSE, b""))
        assert await accepted.disconnect_code() == 1005


@on_both_loops
async def test_a_drop_is_1006() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(text(b"and then"))
        peer.close()
        assert (await accepted.receive_event())["text"] == "and then"
        assert await accepted.disconnect_code() == 1006


@on_both_loops
async def test_our_close_is_a_handshake() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        accepted.push.close(4000, "draining")
        accepted.push.close(4001, "never sent")
        assert await accepted.receive_event() == {
            "type": "websocket.disconnect",
            "code": 4000,
            "reason": "draining",
        }
        assert await peer.frame() == (0x88, b"\x0f\xa0draining")
        await peer.write_frames(close_frame(4000))
        await peer.end()
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_our_close_by_asgi_is_the_same() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await accepted.send({"type": "websocket.close", "code": 4002, "reason": "token expired"})
        assert await peer.frame() == (0x88, b"\x0f\xa2token expired")
        assert await accepted.disconnect_code() == 4002
        await peer.write_frames(close_frame(4002))
        await peer.end()
        # A second close counts as done.
        await accepted.send({"type": "websocket.close"})


@on_both_loops
async def test_a_close_that_is_not_answered_ends_in_an_abort() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        accepted.push.close(4000)
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_a_peer_that_closes_and_does_not_read_is_aborted() -> None:
    async with serving(Hasty) as served:
        peer, accepted = await served.pair()
        fill(accepted)
        await peer.write_frames(close_frame(1000))
        assert await accepted.disconnect_code() == 1000
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_an_application_that_returns_drops_a_peer_that_does_not_read() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        fill(accepted)
        accepted.returned.set()
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_a_server_that_stops_says_1012() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        other, closing = await served.pair()
        closing.push.close(4000)
        gone, left = await served.pair()
        fill(left)
        await gone.write_frames(close_frame(1001))
        assert await left.disconnect_code() == 1001
        for connection in list(served.server.server_state.connections):
            connection.shutdown()
        assert await peer.close_code() == 1012
        assert await accepted.disconnect_code() == 1012
        assert await other.close_code() == 4000


@on_both_loops
async def test_the_whole_shutdown_of_uvicorn_ends_with_a_silent_peer() -> None:
    async with serving(Hasty) as served:
        _, accepted = await served.pair()
        accepted.returned.set()
        await served.server.shutdown(sockets=[])
        assert not served.server.server_state.connections


@on_both_loops
async def test_a_message_too_big_is_1009_despite_further_sending() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        whole = text(b"x" * MESSAGE_BYTES_MAX)
        await peer.write_frames(whole)
        assert len((await accepted.receive_event())["text"]) == MESSAGE_BYTES_MAX
        await peer.write_frames(*(text(b"x" * (MESSAGE_BYTES_MAX + 1)) for _ in range(20)))
        assert await peer.close_code() == 1009
        # The end of the stream, not a reset that would have hidden the code.
        await peer.end()
        assert await accepted.disconnect_code() == 1009


@on_both_loops
async def test_a_message_too_big_in_fragments_is_1009() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        half = b"x" * (MESSAGE_BYTES_MAX // 2)
        await peer.write_frames(text(half, fin=False), more(half, fin=False), more(b"x"))
        assert await peer.close_code() == 1009
        assert await accepted.disconnect_code() == 1009


@on_both_loops
async def test_invalid_utf_8_is_1007() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(text(b"caf\xc3", fin=False), more(b"\xa9"), text(b"\xff"))
        assert (await accepted.receive_event())["text"] == "café"
        assert await peer.close_code() == 1007
        assert await accepted.disconnect_code() == 1007


@on_both_loops
async def test_a_broken_frame_is_1002_after_the_messages_before_it() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        unmasked = text(b"x").serialize(mask=False)
        await peer.write(text(b"good").serialize(mask=True) + unmasked)
        assert (await accepted.receive_event())["text"] == "good"
        assert await accepted.disconnect_code() == 1002
        assert await peer.close_code() == 1002
        await peer.end()


@on_both_loops
async def test_fragments_up_to_the_cap_are_one_message() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(
            text(b"a", fin=False),
            *(more(b"b", fin=False) for _ in range(FRAGMENTS_PER_MESSAGE_MAX - 2)),
            more(b"c"),
        )
        message = (await accepted.receive_event())["text"]
        assert message == "a" + "b" * (FRAGMENTS_PER_MESSAGE_MAX - 2) + "c"


@on_both_loops
async def test_a_flood_of_empty_fragments_is_4502() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        flood = more(b"", fin=False).serialize(mask=True) * 10_000
        await peer.write(text(b"", fin=False).serialize(mask=True) + flood)
        assert await peer.close_code() == 4502
        assert await accepted.disconnect_code() == 4502
        assert len(accepted.push.frames) <= FRAGMENTS_PER_MESSAGE_MAX


@on_both_loops
async def test_fragments_with_pings_between_them_count_the_same() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        frames = [text(b"", fin=False)]
        for _ in range(FRAGMENTS_PER_MESSAGE_MAX):
            frames += [Frame(Opcode.PING, b""), more(b"", fin=False)]
        await peer.write_frames(*frames)
        assert await peer.close_code() == 4502
        assert await accepted.disconnect_code() == 4502


@on_both_loops
async def test_a_flood_of_control_frames_is_4502() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write_frames(*(Frame(Opcode.PONG, b"") for _ in range(CONTROL_FRAMES_MAX)))
        await peer.write_frames(text(b"still there"))
        assert (await accepted.receive_event())["text"] == "still there"
        await peer.write_frames(Frame(Opcode.PING, b""))
        assert await peer.close_code() == 4502
        assert await accepted.disconnect_code() == 4502


@on_both_loops
async def test_pings_are_answered() -> None:
    async with serving() as served:
        peer, _ = await served.pair()
        await peer.write_frames(Frame(Opcode.PING, b"one"), Frame(Opcode.PING, b"two"))
        assert [await peer.frame() for _ in range(2)] == [(0x8A, b"one"), (0x8A, b"two")]


@on_both_loops
async def test_an_application_that_is_behind_stops_reading_and_loses_nothing() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        push = accepted.push
        sent = [f"{n:0100}" for n in range(1_000)]
        await peer.write_frames(*(text(message.encode()) for message in sent))
        await until(lambda: push.read_paused)
        held = len(push.inbox.events)
        assert INBOX_MESSAGES_MAX <= held <= INBOX_MESSAGES_MAX + SLICE_BYTES // 100
        assert [(await accepted.receive_event())["text"] for _ in sent] == sent
        await until(lambda: not push.read_paused)
        assert len(push.unread) == 0


@on_both_loops
async def test_a_few_messages_do_not_hold_back_a_pong() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        signs: list[None] = []
        accepted.push.on_alive = lambda: signs.append(None)
        messages = [text(b"unread")] * (INBOX_MESSAGES_MAX - 1)
        await peer.write_frames(*messages, Frame(Opcode.PONG, b""))
        await until(lambda: len(signs) == INBOX_MESSAGES_MAX)
        assert not accepted.push.read_paused


@on_both_loops
async def test_a_flood_shares_the_loop() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        turns = 0
        signs: list[int] = []
        accepted.push.on_alive = lambda: signs.append(turns)
        await peer.write_frames(*(Frame(Opcode.PONG, b"") for _ in range(CONTROL_FRAMES_MAX)))

        def count_turns() -> None:
            nonlocal turns
            turns += 1
            if len(signs) < CONTROL_FRAMES_MAX:
                peer.loop.call_soon(count_turns)

        count_turns()
        await until(lambda: len(signs) == CONTROL_FRAMES_MAX)
        assert len(set(signs)) >= 2


@on_both_loops
async def test_an_unread_close_survives_the_loss_of_the_connection() -> None:
    class Full:
        def take(self) -> bool:
            return False

        def later(self, socket: Readable) -> None:
            pass

    async with serving() as served:
        peer, accepted = await served.pair()
        signs: list[None] = []
        accepted.push.on_alive = lambda: signs.append(None)
        accepted.push.reading = cast(Reading, Full())
        await peer.write_frames(text(b"last words"), close_frame(1000))
        peer.close()
        assert await served.lost.get() is accepted.push
        assert accepted.push.peer_closed
        assert len(signs) == 2
        assert (await accepted.receive_event())["text"] == "last words"


@on_both_loops
async def test_our_close_reads_past_unwanted_messages() -> None:
    async with serving() as served:
        peer, accepted = await served.pair()
        await peer.write(text(b"x").serialize(mask=True) * 5_000)
        await until(lambda: accepted.push.read_paused)
        accepted.push.close(4000)
        await peer.write_frames(close_frame(4000))
        assert await peer.close_code() == 4000
        await peer.end()
        assert await served.lost.get() is accepted.push


@on_both_loops
async def test_a_request_with_too_long_a_header_is_answered() -> None:
    async with serving() as served:
        peer = await served.peer(request("/v1/ws", "Cookie: " + "x" * 20_000))
        assert (await peer.head()).startswith(b"HTTP/1.1 431 ")
        await served.lost.get()
        assert served.arrivals.empty()


@on_both_loops
async def test_a_request_that_is_no_handshake_is_answered() -> None:
    async with serving() as served:
        peer = await served.peer(request().replace(b"Version: 13", b"Version: 12"))
        assert (await peer.head()).startswith(b"HTTP/1.1 400 ")
        await served.lost.get()
        assert served.arrivals.empty()


@on_both_loops
async def test_an_application_can_refuse() -> None:
    async with serving() as served:
        peer = await served.peer(request("/refused"))
        assert (await peer.head()).startswith(b"HTTP/1.1 403 ")
        await served.lost.get()
        assert not served.server.server_state.connections


@on_both_loops
async def test_neither_query_nor_message_is_logged() -> None:
    with everything_logged() as lines:
        async with serving() as served:
            peer, accepted = await served.pair("/v1/ws?token=hunter2")
            await peer.write_frames(text(b'{"type": "auth", "token": "hunter3"}'))
            assert "hunter3" in (await accepted.receive_event())["text"]
            assert accepted.scope["query_string"] == b"token=hunter2"
            await served.peer(request("/refused?token=hunter4"))
            await served.lost.get()
            logging.getLogger("uvicorn.error").info("is heard")
    assert "is heard" in lines
    # The log has other lines, but neither of these, nor a line for each socket.
    assert not any("hunter" in line or "/v1/ws" in line or "/refused" in line for line in lines)


@on_both_loops
async def test_an_accepted_socket_can_forget_its_headers() -> None:
    async with serving() as served:
        _, accepted = await served.pair("/v1/ws?x=1")
        scope = accepted.scope
        # The way a framework holds them.
        headers = Headers(scope=scope)
        assert headers["upgrade"] == "websocket"
        scope["app"] = served
        forget_handshake(scope)
        assert scope == {"type": "websocket", "app": served, "path": "/v1/ws"}
        assert not headers
