"""Measures how far a page's clock is from the server's.

A session runs to its limit in Chromium, first as the machine is, then on a processor that is slowed
down and behind a slow network. The clock must never go back or beyond the limit, and be at most a
second off.
"""

import os
from typing import Any

from playwright.async_api import async_playwright

from server.access.tokens import mint_token
from tests.benchmarks import machine
from tests.benchmarks.environment import open_environment
from tests.browser.clock_witness import ClockFigures, watch_clock
from tests.browser.fixtures import ARGUMENTS, CHROMIUM

OFF_MS_MAX = 1_000
RATES = """
[kinds.metered]
credits_per_minute = "0"
max_session_seconds = {seconds}
"""
HEADS = ("frames", "writes", "p50", "p99", "most", "back", "beyond")


async def measure(seconds: int, cpu_rate: float, latency_ms: int) -> dict[str, Any]:
    """Runs both rounds; returns their figures in milliseconds.

    ``latency_ms`` are those of a round trip, as in a browser's tools for developers.
    """
    rounds = {
        "as the machine is": (1.0, 0),
        f"{cpu_rate:g} x slower, {latency_ms} ms late": (cpu_rate, latency_ms),
    }
    found: dict[str, Any] = {}
    async with open_environment(RATES.format(seconds=seconds)) as environment:
        server = await environment.serve()
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, headless=True, args=ARGUMENTS
            )
            for number, (name, (rate, ms)) in enumerate(rounds.items()):
                token = mint_token(environment.settings, f"customer-{number}")
                options = {"cpu_rate": rate, "delay_s": ms / 2_000}
                figures = await watch_clock(browser, server.port, token, "metered", **options)
                found[name] = _summary(figures)
            await browser.close()
        await server.stop()
    return {
        "machine": machine.describe(),
        "load": os.getloadavg()[0],
        "seconds": seconds,
        "rounds": found,
        "bound_ms": OFF_MS_MAX,
        "kept": all(
            row["most"] <= OFF_MS_MAX and row["back"] == row["beyond"] == 0
            for row in found.values()
        ),
    }


def _summary(figures: ClockFigures) -> dict[str, float]:
    off = figures.off_ms()
    count = len(off)
    values = (
        *(count, figures.writes, off[count // 2], off[count * 99 // 100], off[-1]),
        *(figures.back_ms, figures.beyond_ms),
    )
    return {name: round(value) for name, value in zip(HEADS, values, strict=True)}


def table(result: dict[str, Any]) -> list[str]:
    """The lines of a report."""
    rows = [
        f"{name:<32}" + "".join(f"{row[head]:>9,}" for head in HEADS)
        for name, row in result["rounds"].items()
    ]
    verdict = "kept" if result["kept"] else "broken"
    return [
        f"{result['machine']}, load {result['load']:.1f}",
        f"a session of {result['seconds']} s to its limit; off, back and beyond in ms",
        f"{'':<32}" + "".join(f"{head:>9}" for head in HEADS),
        *rows,
        f"at most {result['bound_ms']} ms off, never back, never beyond: {verdict}",
    ]
