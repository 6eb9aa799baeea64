"""The client's clock between ticks never exceeds the limit."""

from typing import Any

import pytest

from tests.browser.fixtures import PAID, ClientPage, chromium, client, mock_server
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    BrowserSocket,
    Message,
    snapshot,
    tick,
    welcome,
)

__all__ = ["chromium", "client", "mock_server"]


async def test_time_moves_between_ticks(client: ClientPage) -> None:
    line = await client.live()
    assert await client.run("() => session.state") == "active"
    await client.advance(700)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["free_remaining_ms"]) == (700, 59_300)
    assert (reading["credits"], reading["paid"]) == (2.5, False)
    assert reading["remaining_ms"] == 209_300
    await line.send(**tick(1_000))
    await client.take("tick")
    assert (await client.reading())["elapsed_ms"] == 1_000


async def test_free_time_runs_over_into_credits(client: ClientPage) -> None:
    await client.live(elapsed_ms=59_800, free_remaining_ms=200, remaining_ms=150_200)
    await client.advance(800)
    reading = await client.reading()
    assert (reading["free_remaining_ms"], reading["paid"]) == (0, True)
    assert reading["credits"] == 2.5, "what was charged is for the server to say"


async def test_the_clock_never_runs_past_the_limit(client: ClientPage) -> None:
    line = await client.live(
        elapsed_ms=209_500,
        free_remaining_ms=0,
        paid=True,
        credits="0.008333",
        remaining_ms=500,
    )
    await client.advance(60_000)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["remaining_ms"]) == (210_000, 0)
    await line.receive("ping")


def reached(elapsed_ms: int, **changes: Any) -> Message:
    """A ``limit_reached`` of the session at ``elapsed_ms``."""
    stop = {"limit": "credits", "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
    notice = {"type": "limit_reached", "session_id": "session-1", "seq": 1}
    return {**notice, **stop, "elapsed_ms": elapsed_ms, **changes}


@pytest.mark.parametrize("stopped_ms", [210_000, 209_700, 209_960])
async def test_the_clock_stops_at_the_servers_stop(client: ClientPage, stopped_ms: int) -> None:
    line = await client.live(elapsed_ms=209_500, free_remaining_ms=0, paid=True, remaining_ms=500)
    await client.advance(450)
    assert (await client.reading())["elapsed_ms"] == 209_950
    await line.send(**reached(stopped_ms))
    assert (await client.take("limit_reached"))["elapsed_ms"] == stopped_ms
    await client.advance(5_000)
    reading = await client.reading()
    assert (reading["state"], reading["elapsed_ms"]) == ("stopping", stopped_ms)
    assert (reading["limit"], reading["remaining_ms"]) == ("credits", 0)


async def test_an_early_limit_stops_the_clock_at_its_time(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=100_000, free_remaining_ms=0, remaining_ms=60_000)
    await client.advance(500)
    await line.send(**reached(100_480, limit="org_minutes"))
    await client.take("limit_reached")
    await client.advance(5_000)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["limit"]) == (100_480, "org_minutes")


async def test_a_tick_after_the_stop_changes_nothing(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=209_500, free_remaining_ms=0, paid=True, remaining_ms=500)
    await line.send(**reached(210_000))
    await line.send(**snapshot(state="stopping", elapsed_ms=210_000, credits="0", **PAID))
    await line.send(**tick(209_800, credits="0.003"))
    await client.take("limit_reached")
    await client.take("session")
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    assert (await client.take("error"))["message"] == "Marker.", "an old tick was passed on"
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["credits"]) == (210_000, 0)


@pytest.mark.parametrize("speed", [1, 10])
@pytest.mark.parametrize("kind", ["snapshot", "tick", "free_time"])
async def test_no_estimate_passes_the_limit(client: ClientPage, speed: int, kind: str) -> None:
    line = await client.live(speed=speed, elapsed_ms=59_000, remaining_ms=2_000)
    if kind == "tick":
        await line.send(**tick(59_500, remaining_ms=1_500))
    if kind == "free_time":
        notice = {"type": "free_time", "free_remaining_ms": 0, "paid": True}
        await line.send(session_id="session-1", seq=1, **notice)
    if kind != "snapshot":
        await client.take(kind)
    shown = []
    for _ in range(50):
        await client.advance(100)
        shown.append((await client.reading())["elapsed_ms"])
    assert max(shown) == 61_000
    assert shown == sorted(shown)


@pytest.mark.parametrize("state", ["paused", "suspended", "stopping", "ended"])
async def test_the_clock_stands_still_when(client: ClientPage, state: str) -> None:
    await client.live(state=state, elapsed_ms=30_000)
    await client.advance(5_000)
    assert (await client.reading())["elapsed_ms"] == 30_000


async def test_the_clock_stands_still_without_a_connection(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(300)
    line.cut()
    await client.take_loss()
    await client.advance(200)
    assert (await client.reading())["elapsed_ms"] == 300


async def test_the_clock_waits_for_the_snapshot_after_a_reconnect(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(300)
    line.cut()
    line = await client.next_line()
    await line.answer(await line.receive("auth"), **welcome())
    start = await line.receive("start")
    credit = {"account_id": "user-1", "credits": "6", "delta": "5", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    await client.take("credit")
    await client.advance(700)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["credits"]) == (300, 6)
    await line.answer(start, **snapshot(elapsed_ms=4_000))
    await client.take("session")
    await client.advance(100)
    assert (await client.reading())["elapsed_ms"] == 4_100


async def test_a_late_tick_does_not_set_the_clock_back(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(1_080)
    assert (await client.reading())["elapsed_ms"] == 1_080
    await line.send(**tick(1_000))
    await client.take("tick")
    assert (await client.reading())["elapsed_ms"] == 1_080
    await client.advance(100)
    assert (await client.reading())["elapsed_ms"] == 1_100


@pytest.mark.parametrize("speed", [1, 10])
async def test_a_backlog_of_ticks_does_not_set_the_clock_back(
    client: ClientPage, speed: int
) -> None:
    """A backlog of ticks does not set the clock back.

    The example is 8 s of silence, then all messages of that time at once.
    """
    line = await client.live(speed=speed, remaining_ms=600_000)
    for second in range(1, 4):
        await client.advance(1_000)
        await line.send(**tick(1_000 * speed * second, remaining_ms=500_000))
        await client.take("tick")
    await client.advance(8_000)
    shown = [(await client.reading())["elapsed_ms"]]
    assert shown == [11_000 * speed]
    for second in range(4, 12):
        await line.send(**tick(1_000 * speed * second, remaining_ms=500_000))
        if second == 7:  # a change of the account, as old as the ticks beside it
            state = {"elapsed_ms": 7_000 * speed, "remaining_ms": 500_000, "speed": speed}
            await line.send(**snapshot(**state))
            await client.take("tick")
            await client.take("session")
        else:
            await client.take("tick")
        shown.append((await client.reading())["elapsed_ms"])
    assert set(shown) == {11_000 * speed}
    await client.advance(500)
    assert (await client.reading())["elapsed_ms"] == 11_500 * speed


async def test_a_tick_older_than_the_last_is_dropped(client: ClientPage) -> None:
    line = await client.live()
    await line.send(**tick(3_000))
    await line.send(**tick(2_000))
    await line.send(**tick(4_000))
    assert (await client.take("tick"))["elapsed_ms"] == 3_000
    assert (await client.take("tick"))["elapsed_ms"] == 4_000
    await line.send(**snapshot(elapsed_ms=6_000))
    await line.send(**tick(5_000))
    await line.send(**tick(7_000))
    await client.take("session")
    assert (await client.take("tick"))["elapsed_ms"] == 7_000


async def test_a_clock_ahead_of_the_server_waits(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=20_000)
    await client.advance(6_000)
    assert (await client.reading())["elapsed_ms"] == 26_000
    await line.send(**tick(24_000))
    await client.take("tick")
    await client.advance(1_500)
    assert (await client.reading())["elapsed_ms"] == 26_000
    await client.advance(1_000)
    assert (await client.reading())["elapsed_ms"] == 26_500


@pytest.mark.parametrize("state", ["active", "paused"])
async def test_a_correction_sets_the_clock_back(client: ClientPage, state: str) -> None:
    line = await client.live(elapsed_ms=20_000)
    await client.advance(1_000)
    assert (await client.reading())["elapsed_ms"] == 21_000
    await line.send(**snapshot(elapsed_ms=15_000, state=state))
    await client.take("session")
    assert (await client.reading())["elapsed_ms"] == 15_000


@pytest.mark.parametrize(("behind_ms", "shown_ms"), [(400, 2_000), (1_900, 100)])
async def test_a_reconnect_sets_the_clock_to_the_servers(
    client: ClientPage, behind_ms: int, shown_ms: int
) -> None:
    line = await client.live()
    await client.advance(2_000)
    assert (await client.reading())["elapsed_ms"] == 2_000
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await line.join(elapsed_ms=2_000 - behind_ms)
    await client.take("session")
    assert (await client.reading())["elapsed_ms"] == shown_ms


async def test_a_demonstrations_clock_runs_at_its_speed(client: ClientPage) -> None:
    await client.live(speed=10, kind="chat-demo", remaining_ms=90_000)
    await client.advance(700)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["speed"]) == (7_000, 10)
    await client.advance(9_000)
    assert (await client.reading())["elapsed_ms"] == 90_000


async def advance_to(
    client: ClientPage, line: BrowserSocket, elapsed_ms: int, credits_: str
) -> float:
    """Passes a second with a tick in its middle; returns the credits.

    The credits are those shown at the end of the second.
    """
    await client.advance(500)
    await line.send(**tick(elapsed_ms, credits=credits_))
    await client.take("tick")
    await client.advance(500)
    reading = await client.reading()
    estimated: float = reading["credits"]
    return estimated


async def test_credits_flow_to_the_servers_figure(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=60_000, credits="2.5", **PAID)
    for second in range(1, 6):
        credits_ = f"{2.5 - second / 60:.6f}"
        shown = await advance_to(client, line, 60_000 + 1_000 * second, credits_)
        assert shown == pytest.approx(2.5 - (second - 0.5) / 60, abs=1e-5)


async def test_credits_never_fall_below_the_servers_figure(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=59_500, free_remaining_ms=500, credits="2.5")
    shown = [await advance_to(client, line, 59_500 + 1_000 * n, "1.5") for n in range(1, 4)]
    assert shown == [2, 1.5, 1.5]


async def test_a_pause_is_shown_at_once_without_a_step_back(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(900)
    await client.run("() => { window.answer = settled(session.pause()); }")
    await client.advance(80)
    assert (await client.reading())["elapsed_ms"] == 900
    await line.send(**tick(890))
    await client.take("tick")
    assert (await client.reading())["elapsed_ms"] == 900
    await line.answer(await line.receive("pause"), **snapshot(state="paused", elapsed_ms=910))
    await client.take("session")
    await client.advance(500)
    assert (await client.reading())["elapsed_ms"] == 910


async def test_a_failed_pause_lets_the_clock_continue(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(900)
    await client.run("() => { window.answer = settled(session.pause()); }")
    problem = {"code": "unavailable", "message": "Not now.", "retryable": True}
    await line.answer(await line.receive("pause"), type="error", **problem)
    assert (await client.run("() => answer"))["error"]["code"] == "unavailable"
    await client.advance(100)
    assert (await client.reading())["elapsed_ms"] == 1_000


async def test_the_end_of_free_time_is_shown_at_once(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=59_900, free_remaining_ms=100)
    notice = {"type": "free_time", "free_remaining_ms": 0, "paid": True}
    await line.send(session_id="session-1", seq=1, **notice)
    await client.take("free_time")
    reading = await client.reading()
    assert (reading["free_remaining_ms"], reading["paid"]) == (0, True)


async def test_there_is_no_reading_before_the_first_snapshot(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    assert await client.run("() => [session.now(), session.state]") == [None, "starting"]
    assert await client.run("() => session.lastSeq === undefined")
