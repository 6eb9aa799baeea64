"""Tests the page at ``/`` against the real server.

The tests follow a ride from the first tick to the receipt, the minutes in Postgres and the ledger.
"""

import re
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, expect

from protocol.wire.money import parse_credits
from tests.browser.fixtures import chromium, context
from tests.fixtures.server import StartServer

__all__ = ["chromium", "context"]

RATES = """
# An even faster demonstration: a minute lasts 0.6 s, which keeps this test short.
[kinds.chat-demo]
free_seconds = 60
credits_per_minute = "1"
speed = 100
stop_grace_seconds = 60

[kinds.recording-demo]
credits_per_minute = "0"
increment_seconds = [60, 60]
counts_minutes = true
speed = 100
"""
ARTIFACTS = Path("artifacts")


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(RATES)
    return path


async def test_a_chat_from_the_first_tick_to_the_minute_in_postgres(
    start_server: StartServer, context: BrowserContext, rates: Path
) -> None:
    server = await start_server(rates=rates)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(f"{server.url}/")
    await page.locator("label", has_text="Fast demonstration").click()
    await expect(page.locator("#estimate-text")).to_have_text(
        "3:30 on the meter, the first 1:00 of it free. Your credits run out then."
    )
    await page.locator("#start").click()

    # Free time, then paid time, then the end of 2.5 credits at 3:30 of counted time.
    await expect(page.locator("#notices [part~=limit]")).to_be_visible(timeout=30_000)
    await expect(page.locator("[part=time]")).to_have_text("3:30")
    await page.screenshot(path=ARTIFACTS / "real-limit-reached.png")
    minutes = page.locator("#minutes tr")
    await expect(minutes).to_have_count(3)

    await page.locator("#go-on").click()
    await expect(page.locator("#notices [part~=limit]")).to_be_hidden()
    await expect(minutes.nth(4)).to_be_visible(timeout=30_000)
    await page.screenshot(path=ARTIFACTS / "real-running.png")
    # On a slow machine the session has reached its limit again, and the halt panel has the button.
    await page.locator("#stop:visible, #end-now:visible").first.click()
    paper = page.locator("#receipt")
    await expect(paper).to_be_visible()
    await page.screenshot(path=ARTIFACTS / "real-receipt.png", full_page=True)
    assert errors == []

    await server.flush()
    user = re.search(r"visitor-[0-9a-f]+", await page.content())
    assert user is not None
    tenant = f"user:{user[0]}"
    ledger = await server.process.records.ledger(tenant, user[0], None, 100)
    burnt = -sum(entry.amount_micros for entry in ledger if entry.entry_kind == "burn")
    paid = re.search(r"Credits\s+([0-9.]+)", await paper.inner_text())
    assert paid is not None
    assert burnt == parse_credits(paid[1])
    granted = sum(entry.amount_micros for entry in ledger if entry.entry_kind == "grant")
    account = await server.process.records.load_account(tenant, user[0])
    assert account.balance_micros == granted - burnt

    bill = await paper.locator("dl").all_inner_texts()
    await page.locator("#again").click()
    await page.locator("#past-list button").click()
    await expect(paper.locator("dl")).to_have_count(len(bill))  # the minutes are read apart
    assert await paper.locator("dl").all_inner_texts() == bill
    assert errors == []


async def test_two_tabs_on_two_processes_show_one_session(
    start_server: StartServer, context: BrowserContext, rates: Path
) -> None:
    """Two tabs on two processes show one session and its stop.

    The second tab joins late, and on a process that does not record the stop.
    """
    here, there = await start_server(rates=rates), await start_server(rates=rates)
    first, second = await context.new_page(), await context.new_page()
    await first.goto(f"{here.url}/")
    await first.locator("label", has_text="Fast demonstration").click()
    await first.locator("#start").click()
    await expect(first.locator("#minutes tr").first).to_be_visible(timeout=30_000)
    await first.locator("#pause").click()
    await expect(first.locator("#phase")).to_have_text("Paused")
    rows = await first.locator("#minutes tr").all_text_contents()

    href = await first.locator("#second-tab").get_attribute("href")
    assert href is not None
    await second.goto(there.url + href)
    await expect(second.locator("#phase")).to_have_text("Paused")
    await expect(second.locator("#minutes tr")).to_have_text(rows)

    await first.locator("#pause").click()
    for tab in (first, second):
        await expect(tab.locator("#notices [part~=limit]")).to_be_visible(timeout=30_000)
        await expect(tab.locator("[part=time]")).to_have_text("3:30")
        await expect(tab.locator("taximeter-credits:visible [part=amount]")).to_have_text("0.0000")
    await first.locator("#end-now").click()
    lines = []
    for tab in (first, second):
        await expect(tab.locator("#receipt")).to_contain_text("Minute 4, 30 s")
        lines.append(await tab.locator("#receipt dl").all_inner_texts())
    assert lines[0] == lines[1]
