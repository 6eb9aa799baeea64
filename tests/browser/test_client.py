"""Tests the client's connection, in Chromium, against a scripted server."""

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import snapshot, stopped, tick, warning, welcome

__all__ = ["chromium", "client", "mock_server"]

ALMOST_ONE = 0.999999

COMES_BACK_AFTER = [
    *(1000, 1001, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014, 3000, 3999),
    *(4000, 4001, 4003, 4499),
]
"""Nothing can send 1005, 1006 and 1015: they mean that no code was sent."""


# How a connection begins


async def test_the_token_is_in_the_first_message_only(
    client: ClientPage,
) -> None:
    await client.construct("token: async () => 'secret-token'")
    await client.start("counterpartId: 'advisor-1', tickMs: 500, metadata: { room: 7 }")
    line = await client.server.line()
    assert line.path == "/v1/ws"
    assert line.subprotocol == "taximeter.v1"
    auth = await line.welcome()
    assert auth == {"type": "auth", "token": "secret-token", "id": 1}
    start = await line.join()
    assert start == {
        "type": "start",
        "kind": "chat",
        "session_id": "session-1",
        "counterpart_id": "advisor-1",
        "tick_ms": 500,
        "metadata": {"room": 7},
        "id": 2,
    }
    session = await client.take("session")
    assert session["credits"] == "2.5"
    assert await client.run("async () => (await session.ready).session_id") == "session-1"
    assert await client.run("() => meter.welcome.user_id") == "user-1"


async def test_requests_before_the_welcome_wait(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    auth = await line.receive("auth")
    await client.run("() => { window.answer = settled(session.pause()); }")
    await line.answer(auth, **welcome())
    await line.join()  # receives `start`: no message came before it
    await line.answer(await line.receive("pause"), **snapshot(state="paused"))
    answer = await client.run("() => answer")
    assert answer["value"]["state"] == "paused"


async def test_several_sessions_share_one_connection(client: ClientPage) -> None:
    line = await client.live()
    await client.run(
        "() => { window.other = meter.watch('session-2'); listenToSession(other, 'other'); }"
    )
    watch = await line.receive("watch")
    assert watch["session_id"] == "session-2"
    await line.answer(watch, **snapshot(session_id="session-2", kind="recording"))
    assert (await client.take("session"))["kind"] == "recording"
    await line.send(**tick(1_000, session_id="session-2"))
    await client.take("tick")
    elapsed = await client.run("() => [session.now().elapsed_ms, other.now().elapsed_ms]")
    assert elapsed == [0, 1_000]
    assert await client.run("() => meter.watch('session-1') === session")


# Reconnecting


@pytest.mark.parametrize("code", COMES_BACK_AFTER)
async def test_reconnects_after(client: ClientPage, code: int) -> None:
    line = await client.live()
    await line.close(code)
    change = await client.take_loss()
    assert change["code"] == code
    await client.advance(10_000)
    line = await client.server.line()
    await line.welcome()
    assert (await line.join())["session_id"] == "session-1"


@pytest.mark.parametrize("code", [1005, 1006, 1015])
async def test_reconnects_after_a_close_without_a_code(client: ClientPage, code: int) -> None:
    await client.construct(
        "token: 'token-1', platform: { ...platform, WebSocket: class extends WebSocket {"
        " constructor(...address) { super(...address); window.socket = this; } } }"
    )
    await client.start()
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    await client.run("(code) => { socket.onclose({ code, reason: '' }); }", code)
    assert (await client.take_loss())["code"] == code
    await client.advance(10_000)
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-1"


async def test_reconnects_after_a_lost_connection(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    line = await client.next_line()
    await line.welcome()
    assert (await line.join())["session_id"] == "session-1"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (4500, "unauthenticated"),
        (4501, "unauthenticated"),
        (4502, "bad_message"),
        (4503, "rate_limited"),
        (4999, "disconnected"),
    ],
)
async def test_never_reconnects_after(client: ClientPage, code: int, error: str) -> None:
    line = await client.live()
    await client.run("() => { window.answer = settled(session.pause()); }")
    await line.receive("pause")
    await line.close(code)
    told = await client.take("error")
    assert (told["name"], told["code"], told["closeCode"]) == ("TaximeterError", error, code)
    assert (await client.take_state("offline"))["code"] == code
    assert (await client.run("() => answer"))["error"]["code"] == error
    assert await client.run("() => clock.timers.size") == 0, "something is still planned"
    later = await client.run("() => settled(session.stop())")
    assert later["error"]["code"] == "offline"


async def test_close_codes_match_the_protocol(client: ClientPage) -> None:
    await client.construct()
    codes = await client.run(
        "() => Array.from({ length: 4000 }, (_, i) => 1000 + i).filter(comesBackAfter)"
    )
    assert codes == [*range(1000, 4500)]


async def test_the_backoff_doubles_up_to_its_bound(client: ClientPage) -> None:
    line = await client.live()
    await client.chance(ALMOST_ONE)
    delays = []
    for _ in range(7):
        line.cut()
        delays.append(await client.take_backoff())
        await client.advance(delays[-1])
        line = await client.server.line()
        await line.receive("auth")
    assert [round(delay) for delay in delays] == [500, 1000, 2000, 4000, 8000, 10_000, 10_000]


async def test_the_backoff_is_full_jitter(client: ClientPage) -> None:
    line = await client.live()
    await client.chance(0)
    line.cut()
    assert await client.take_backoff() == 0
    await client.chance(0.25)
    await client.advance(0)
    line = await client.server.line()
    await line.receive("auth")
    line.cut()
    assert await client.take_backoff() == 250


@pytest.mark.parametrize(("lived_ms", "delay_ms"), [(9_999, 1_000), (10_000, 500)])
async def test_only_a_long_connection_resets_the_backoff(
    client: ClientPage, lived_ms: int, delay_ms: int
) -> None:
    line = await client.live()
    await client.chance(ALMOST_ONE)
    line.cut()
    line = await client.next_line()
    await line.welcome(ping_ms=3_600_000)
    await line.join()
    await client.take("session")
    await client.advance(lived_ms)
    line.cut()
    delay = await client.take_backoff()
    assert round(delay) == delay_ms


async def test_the_return_of_the_network_ends_the_wait(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    await client.take_loss()
    await client.run("() => dispatchEvent(new Event('online'))")
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-1"
    assert await client.run("() => clock.nowMs") == 1_000, "no time has passed"


async def test_a_drain_moves_the_client_at_a_random_instant(client: ClientPage) -> None:
    old = await client.live()
    await client.chance(0.25)
    await old.send(type="reconnect", after_ms=8_000)
    await old.send(**tick(1_000))
    await client.take("tick")
    await client.advance(1_999)
    assert await client.run("() => meter.state") == "live"
    await client.advance(1)
    line = await client.server.line()
    await line.welcome()
    await client.take_state("live")
    # The old connection keeps the session alive until it is joined over the new one.
    assert old.is_open
    assert (await line.join())["last_seq"] == 0
    assert await old.receive_close() == 1000
    await client.take("session")
    await line.send(**tick(2_000))
    await client.take("tick")


async def test_a_drain_keeps_its_instant_after_a_close(client: ClientPage) -> None:
    line = await client.live()
    await client.chance(0.75)
    await line.send(type="reconnect", after_ms=8_000)
    await line.close(4000)
    change = await client.take_state("reconnecting")
    assert change["retry_in_ms"] is None
    assert await client.run("() => [...clock.timers.values()].map((t) => t.atMs)") == [7_000]
    await client.advance(6_000)
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-1"


async def test_close_is_for_good(client: ClientPage) -> None:
    line = await client.live()
    await client.run("() => { window.answer = settled(session.pause()); }")
    await line.receive("pause")
    await client.run("() => meter.close()")
    assert await line.receive_close() == 1000
    assert (await client.run("() => answer"))["error"]["code"] == "closed"
    await client.take_state("closed")
    assert await client.run("() => clock.timers.size") == 0
    thrown = await client.run(
        "() => { try { meter.watch('x'); } catch (error) { return plain(error); } }"
    )
    assert thrown["code"] == "closed"


# Notices: each once, in order


async def test_missed_notices_come_after_a_reconnect(client: ClientPage) -> None:
    line = await client.live()
    await line.send(**warning(3))
    assert (await client.take("limit_warning"))["seq"] == 3
    line.cut()
    line = await client.next_line()
    await line.welcome()
    missed = [warning(5), warning(3), {**warning(4), "type": "limit_cleared"}]
    start = await line.join(seq=5, missed=missed)
    assert start["last_seq"] == 3
    assert (await client.take("limit_cleared"))["seq"] == 4
    assert (await client.take("limit_warning"))["seq"] == 5
    assert (await client.take("session"))["seq"] == 5
    assert await client.run("() => session.lastSeq") == 5


async def test_a_notice_is_delivered_once(client: ClientPage) -> None:
    line = await client.live()
    for seq in (1, 2, 2, 1):
        await line.send(**warning(seq))
    await line.send(**snapshot(seq=2, missed=[warning(1), warning(2)]))
    await line.send(**tick(1_000))
    assert (await client.take("limit_warning"))["seq"] == 1
    assert (await client.take("limit_warning"))["seq"] == 2
    await client.take("session")
    await client.take("tick")


async def test_a_missed_stop_comes_with_its_receipt(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await line.join(state="ended", seq=1, missed=[stopped(1)], elapsed_ms=210_000)
    assert (await client.take("stopped"))["receipt"]["minutes"] == 4
    await client.take("session")
    assert await client.run("() => session.receipt.credits") == "2.5"
    assert await client.run("() => session.state") == "ended"
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9", "it was joined again"


async def test_a_reloaded_page_continues_from_its_last_notice(client: ClientPage) -> None:
    await client.construct()
    await client.start("lastSeq: 7")
    line = await client.server.line()
    await line.welcome()
    assert (await line.join(seq=8, missed=[warning(7), warning(8)]))["last_seq"] == 7
    assert (await client.take("limit_warning"))["seq"] == 8
    await client.take("session")


async def test_a_late_joiner_gets_no_old_notices_after_a_reconnect(client: ClientPage) -> None:
    line = await client.live(seq=12)
    line.cut()
    line = await client.next_line()
    await line.welcome()
    assert (await line.join(seq=12))["last_seq"] == 12
    await client.take("session")


async def test_a_minute_is_passed_on(client: ClientPage) -> None:
    line = await client.live()
    minute = {"minute": 0, "seconds": 60, "credits": "0", "session_id": "session-1"}
    await line.send(type="minute", **minute)
    assert await client.take("minute") == {"type": "minute", **minute}


async def test_an_account_change_is_delivered_and_shown(client: ClientPage) -> None:
    line = await client.live(state="paused", credits="1")
    credit = {"account_id": "user-1", "credits": "6", "delta": "5", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    assert (await client.take("credit"))["delta"] == "5"
    assert (await client.reading())["credits"] == 6
    await line.send(type="credit", entry_id="entry-2", **{**credit, "account_id": "other"})
    await client.take("credit")
    assert (await client.reading())["credits"] == 6
