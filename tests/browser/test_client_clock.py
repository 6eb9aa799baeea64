"""The client's clock between ticks: an estimate that never promises more than there is."""

import pytest

from tests.browser.fixtures import PAID, ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, Line, snapshot, tick, welcome

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


async def test_the_clock_stands_at_the_limit_when_its_news_comes(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=209_500, free_remaining_ms=0, paid=True, remaining_ms=500)
    await client.advance(450)
    reached = {"limit": "credits", "stopped_at": SERVER_TIME_AT + 210_000, "grace_ms": 15_000}
    await line.send(type="limit_reached", session_id="session-1", seq=1, **reached)
    assert (await client.take("limit_reached"))["grace_ms"] == 15_000
    await client.advance(5_000)
    reading = await client.reading()
    assert (reading["state"], reading["elapsed_ms"]) == ("stopping", 210_000)


async def test_a_limit_that_comes_early_stops_the_clock_where_it_is(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=100_000, free_remaining_ms=0, remaining_ms=60_000)
    await client.advance(500)
    reached = {"limit": "org_minutes", "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
    await line.send(type="limit_reached", session_id="session-1", seq=1, **reached)
    await client.take("limit_reached")
    await client.advance(5_000)
    assert (await client.reading())["elapsed_ms"] == 100_500


@pytest.mark.parametrize("state", ["paused", "suspended", "stopping", "ended"])
async def test_the_clock_stands_still_when(client: ClientPage, state: str) -> None:
    await client.live(state=state, elapsed_ms=30_000)
    await client.advance(5_000)
    assert (await client.reading())["elapsed_ms"] == 30_000


async def test_the_clock_stands_still_without_a_line(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(300)
    line.cut()
    await client.take_state("reconnecting")
    await client.advance(200)
    assert (await client.reading())["elapsed_ms"] == 300


async def test_the_clock_waits_for_the_snapshot_on_coming_back(client: ClientPage) -> None:
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


async def test_a_correction_sets_the_clock_back(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=20_000)
    await client.advance(1_000)
    assert (await client.reading())["elapsed_ms"] == 21_000
    await line.send(**tick(15_000))
    await client.take("tick")
    assert (await client.reading())["elapsed_ms"] == 15_000


async def test_a_demonstrations_clock_runs_at_its_speed(client: ClientPage) -> None:
    await client.live(speed=10, kind="chat-demo", remaining_ms=90_000)
    await client.advance(700)
    reading = await client.reading()
    assert (reading["elapsed_ms"], reading["speed"]) == (7_000, 10)
    await client.advance(9_000)
    assert (await client.reading())["elapsed_ms"] == 90_000


async def advance_to(client: ClientPage, line: Line, elapsed_ms: int, credits_: str) -> float:
    """A second passes, a tick comes; the credits half a second after it."""
    await client.advance(500)
    await line.send(**tick(elapsed_ms, credits=credits_))
    await client.take("tick")
    await client.advance(500)
    reading = await client.reading()
    estimated: float = reading["credits"]
    return estimated


async def test_credits_flow_to_what_the_server_said(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=60_000, credits="2.5", **PAID)
    for second in range(1, 6):
        credits_ = f"{2.5 - second / 60:.6f}"
        shown = await advance_to(client, line, 60_000 + 1_000 * second, credits_)
        assert shown == pytest.approx(2.5 - (second - 0.5) / 60, abs=1e-5)


async def test_credits_are_never_shown_below_what_the_server_said(client: ClientPage) -> None:
    line = await client.live(elapsed_ms=59_500, free_remaining_ms=500, credits="2.5")
    shown = [await advance_to(client, line, 59_500 + 1_000 * n, "1.5") for n in range(1, 4)]
    assert shown == [2, 1.5, 1.5]


async def test_a_pause_is_seen_at_once_and_takes_nothing_back(client: ClientPage) -> None:
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


async def test_a_pause_that_fails_lets_the_clock_go_on(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(900)
    await client.run("() => { window.answer = settled(session.pause()); }")
    problem = {"code": "unavailable", "message": "Not now.", "retryable": True}
    await line.answer(await line.receive("pause"), type="error", **problem)
    assert (await client.run("() => answer"))["error"]["code"] == "unavailable"
    await client.advance(100)
    assert (await client.reading())["elapsed_ms"] == 1_000


async def test_free_time_that_ended_is_shown_at_once(client: ClientPage) -> None:
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
