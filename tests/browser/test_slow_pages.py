"""Tests the clock on slow machines and slow networks."""

from pathlib import Path

from playwright.async_api import Browser

from tests.browser.clock_witness import watch_clock
from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import tick
from tests.fixtures.server import StartServer

__all__ = ["chromium", "client", "mock_server"]

RATES = """
[kinds.brief]
credits_per_minute = "0"
max_session_seconds = 20
speed = 10
"""
LATE_MS = (300, 450, 320, 600, 300, 380)
"""How late the ticks are, in turn."""


async def test_a_minute_of_late_ticks_and_rare_frames(client: ClientPage) -> None:
    """The clock never goes back, and is at most a second off."""
    line = await client.live(elapsed_ms=0, remaining_ms=60_000)  # 300 ms ago
    due = [(1_000 * n + LATE_MS[n % len(LATE_MS)], n) for n in range(1, 61)]
    now_ms, shown = 300, []
    for due_ms, number in [*due, (61_500, 61)]:
        # Six frames of the sixty of a second, up to the next tick.
        steps = (due_ms - now_ms) // 100
        readings = await client.run(
            """(steps) => Array.from({ length: steps }, () => {
              clock.advance(100);
              return session.now().elapsed_ms;
            })""",
            steps,
        )
        for elapsed_ms in readings:
            now_ms += 100
            assert abs(min(now_ms, 60_000) - elapsed_ms) <= 1_000
        shown += readings
        if number <= 60:
            await line.send(**tick(1_000 * number, remaining_ms=60_000 - 1_000 * number))
            await client.take("tick")
    assert shown == sorted(shown)
    assert shown[-1] == 60_000


async def test_a_slow_page_shows_no_step_back_and_no_time_beyond(
    start_server: StartServer, chromium: Browser, tmp_path: Path
) -> None:
    """How far it is off, ``scripts/bench clock`` measures."""
    rates = tmp_path / "rates.toml"
    rates.write_text(RATES)
    server = await start_server(rates=rates)
    options = {"cpu_rate": 6.0, "delay_s": 0.3}
    figures = await watch_clock(chromium, server.port, server.token(), "brief", **options)
    assert figures.limit_ms == 20_000
    assert (figures.back_ms, figures.beyond_ms) == (0, 0)
    assert figures.frames[-1][1:] == (20_000, 20)
    assert figures.writes <= 21, "a frame wrote a text that was there"
