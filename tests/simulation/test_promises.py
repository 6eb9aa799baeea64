"""The promises of Taximeter, each shown with single sessions in virtual time."""

import datetime

import msgspec
import pytest

from protocol.metering.states import Event
from protocol.metering.terms import Terms
from protocol.rate_card import parse_rate_card
from protocol.wire.errors import RefusedError
from server.runtime.rate_card_file import load_rate_card
from storage.postgres.records import Records
from tests.simulation.cluster import Cluster, Node

CHAT = load_rate_card().terms("chat")
RECORDING = load_rate_card().terms("recording")
CREDIT = 1_000_000


def chat(**changes: object) -> Terms:
    return msgspec.structs.replace(CHAT, **changes)


async def test_chat_ends_exactly_with_its_credits(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT * 3 // 2)
    browser = node.browser()
    started = await browser.start("chat-1", CHAT)
    started_at = cluster.clock.now()
    assert started["remaining_ms"] == 150_000
    assert started["limit"] == "credits"

    await cluster.advance(60_000)
    (free_time,) = browser.all("free_time")
    assert abs(free_time["received_at"] - started_at - 60_000) <= 20

    await cluster.advance(30_000)
    await browser.start("chat-1", CHAT)
    assert browser.last("session")["credits"] == "1"

    await cluster.advance(60_000)
    (reached,) = browser.all("limit_reached")
    assert reached["limit"] == "credits"
    assert reached["stopped_at"] == started_at + 150_000
    assert reached["received_at"] == started_at + 150_000
    session = browser.last("session")
    assert session["state"] == "stopping"
    assert session["elapsed_ms"] == 150_000
    assert session["credits"] == "0"

    await cluster.advance(CHAT.stop_grace_ms)
    (stopped,) = browser.all("stopped")
    assert stopped["reason"] == "limit"
    assert stopped["receipt"]["elapsed_ms"] == 150_000
    assert stopped["receipt"]["billed_ms"] == 90_000
    assert stopped["receipt"]["credits"] == "1.5"
    assert stopped["receipt"]["minutes"] == 3
    assert [minute["seconds"] for minute in browser.all("minute")] == [60, 60, 30]

    account = await cluster.account()
    assert (account["balance"], account["held"], account["burn"]) == (0, 0, 0)
    await cluster.flush()
    ledger = await cluster.records.ledger("user:ann", "ann", None, 10)
    assert sum(entry.amount_micros for entry in ledger) == 0
    assert [entry.amount_micros for entry in ledger] == [-500_000, -1_000_000, 1_500_000]


async def test_warnings_come_once_for_each_crossing(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT * 3 // 2)
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(149_000)
    warnings = browser.all("limit_warning")
    # At the start 150 s are left, below two thresholds: only the lowest is warned of.
    assert [(warning["threshold_ms"], warning["remaining_ms"]) for warning in warnings] == [
        (300_000, 150_000),
        (60_000, 60_000),
    ]
    await cluster.grant(20 * CREDIT)
    cleared = browser.last("limit_cleared")
    assert cleared["remaining_ms"] == 1_201_000
    assert [
        message["seq"]
        for message in browser.messages
        if "seq" in message and message["type"] != "session"
    ] == [1, 2, 3, 4]
    await cluster.advance(5_000)
    assert browser.all("limit_reached") == []


async def test_a_recording_of_61_seconds_is_two_minutes(
    cluster: Cluster, node: Node, records: Records
) -> None:
    await records.put_organization("org:acme", "acme", monthly_hours_limit=10)
    await records.put_member("org:acme", "ann", monthly_hours_limit=5)
    browser = node.browser()
    await browser.start("rec-1", RECORDING, org_id="acme")
    await cluster.advance(61_000)
    stopped = await browser.request("rec-1", Event.STOP)
    assert stopped["receipt"]["minutes"] == 2
    assert stopped["receipt"]["elapsed_ms"] == 61_000
    await cluster.flush()
    month = datetime.date(2026, 5, 1)
    details = await records.usage_details("ann", "acme", month, datetime.date(2026, 6, 1))
    assert [(day.minutes, day.seconds) for day in details] == [(2, 61)]
    found = await records.load_member("org:acme", "ann", [month])
    assert found.months[0].member_minutes == 2


async def test_tighter_month_limit_stops_and_is_named(
    cluster: Cluster, node: Node, records: Records
) -> None:
    for name, member_hours, org_hours, limit in (
        ("a", 0.05, 10, "member_minutes"),
        ("b", 10, 0.1, "org_minutes"),
    ):
        await records.put_organization(f"org:{name}", name, monthly_hours_limit=org_hours)
        await records.put_member(f"org:{name}", "ann", monthly_hours_limit=member_hours)
        browser = node.browser()
        started = await browser.start(f"rec-{name}", RECORDING, org_id=name)
        assert started["limit"] == limit
        await cluster.advance(400_000)
        (reached,) = browser.all("limit_reached")
        assert reached["limit"] == limit
        minutes = min(member_hours, org_hours) * 60
        assert browser.last("stopped")["receipt"]["elapsed_ms"] == round(minutes * 60_000)


async def test_ten_chats_and_two_with_one_advisor_share_a_balance(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(20 * CREDIT)
    other = await cluster.node()
    browsers = []
    for number in range(12):
        browser = (node, other)[number % 2].browser(f"browser-{number}")
        advisor = f"advisor-{number % 10 if number < 10 else 0}"
        await browser.start(f"chat-{number}", CHAT, counterpart_id=advisor)
        browsers.append(browser)
        await cluster.advance(1_000)
    await cluster.advance(300_000)
    receipts = [browser.last("stopped")["receipt"] for browser in browsers]
    charged = sum(round(float(receipt["credits"]) * 1e6) for receipt in receipts)
    assert charged <= 20 * CREDIT
    # Together they can leave at most an amount smaller than any single increment.
    assert 20 * CREDIT - charged < 12 * CREDIT // 60
    assert all(browser.last("stopped")["reason"] == "limit" for browser in browsers)
    stops = [browser.last("limit_reached")["stopped_at"] for browser in browsers]
    assert max(stops) - min(stops) <= 2_000
    account = await cluster.account()
    assert account["held"] == 0
    assert account["balance"] == 20 * CREDIT - charged
    assert len({receipt["session_id"] for receipt in receipts}) == 12


async def test_top_up_in_stop_grace_continues_session(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT // 2)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    assert browser.last("limit_reached")["limit"] == "credits"
    refused = await browser.request("chat-1", Event.RESUME)
    assert (refused["type"], refused["code"]) == ("error", "limit_reached")
    await cluster.grant(CREDIT)
    resumed = await browser.request("chat-1", Event.RESUME)
    assert resumed["state"] == "active"
    assert resumed["elapsed_ms"] == 30_000
    await cluster.advance(10_000)
    stopped = await browser.request("chat-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 40_000
    assert len(stopped["receipt"]["segments"]) == 1
    assert stopped["reason"] == "client"


async def test_cut_connection_is_billed_to_last_pong(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(75_000)
    browser.cut()
    await cluster.advance(15_000)
    await browser.close()
    back = node.browser()
    await cluster.advance(10_000)
    session = await back.start("chat-1", CHAT)
    assert session["state"] == "active"
    # The last pong came at 70 s; the server found out at 90 s; the client is back at 100 s.
    assert session["elapsed_ms"] == 70_000
    stopped = await back.request("chat-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 70_000
    (gap,) = stopped["receipt"]["gaps"]
    assert gap["to_at"] - gap["from_at"] == 30_000
    assert gap["billed"] is False


async def test_session_ends_when_no_client_returns(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    observer = node.browser("observer")
    await cluster.advance(62_000)
    browser.cut()
    await cluster.advance(20_000)
    await browser.close()
    await cluster.advance(CHAT.reconnect_grace_ms)
    del observer
    await cluster.flush()
    row = await cluster.records.session("user:ann", "chat-1")
    assert row is not None
    assert (row.state, row.reason, row.elapsed_ms) == ("ended", "disconnected", 60_020)
    assert row.charged_micros == 1_016_666


async def test_recording_bills_its_gap(cluster: Cluster, node: Node) -> None:
    browser = node.browser()
    await browser.start("rec-1", RECORDING)
    await cluster.advance(70_000)
    await browser.close()
    await cluster.advance(20_000)
    back = node.browser()
    session = await back.start("rec-1", RECORDING)
    assert session["elapsed_ms"] == 90_000
    await cluster.advance(40_000)
    stopped = await back.request("rec-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 130_000
    assert stopped["receipt"]["minutes"] == 3
    assert stopped["receipt"]["gaps"][0]["billed"] is True
    assert len(stopped["receipt"]["segments"]) == 1


async def test_pauses_cost_nothing_and_round_once(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    terms = chat(free_ms=0, first_increment_ms=30_000, next_increment_ms=6_000)
    browser = node.browser()
    await browser.start("chat-1", terms)
    for _ in range(5):
        await cluster.advance(7_000)
        paused = await browser.request("chat-1", Event.PAUSE)
        assert paused["state"] == "paused"
        await cluster.advance(100_000)
        assert (await browser.request("chat-1", Event.RESUME))["state"] == "active"
    stopped = await browser.request("chat-1", Event.STOP)
    receipt = stopped["receipt"]
    assert receipt["elapsed_ms"] == 35_000
    assert receipt["billed_ms"] == 36_000
    assert receipt["credits"] == "0.6"
    assert len(receipt["segments"]) == 5


async def test_two_processes_agree_on_notices_and_numbers(cluster: Cluster, node: Node) -> None:
    await cluster.grant(2 * CREDIT)
    other = await cluster.node()
    first, second = node.browser("first"), other.browser("second")
    await first.start("chat-1", CHAT)
    await cluster.advance(10_000)
    joined = await second.start("chat-1", CHAT)
    assert joined["elapsed_ms"] == 10_000
    await cluster.advance(190_000)
    for kind in ("free_time", "limit_warning", "limit_reached", "stopped"):
        assert [m["seq"] for m in first.all(kind) if m["seq"] > 1] == [
            m["seq"] for m in second.all(kind)
        ], kind
    assert first.last("stopped")["receipt"] == second.last("stopped")["receipt"]
    await cluster.flush()
    row = await cluster.records.session("user:ann", "chat-1")
    assert row is not None
    assert (row.elapsed_ms, row.minutes, row.charged_micros) == (180_000, 3, 2_000_000)


def test_promises_use_default_rate_card() -> None:
    assert CHAT.free_ms == 60_000
    assert parse_rate_card({"kinds": {}, "operations": {}}).kinds == {}


async def test_returning_client_gets_missed_stop(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT)
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(5_000)
    browser.cut()
    await cluster.advance(15_000)
    await browser.close()
    await cluster.advance(CHAT.reconnect_grace_ms)
    back = await node.browser().start("chat-1", CHAT, last_seq=1)
    assert back["state"] == "ended"
    (stopped,) = back["missed"]
    assert stopped["reason"] == "disconnected"
    with pytest.raises(RefusedError, match="ended"):
        await node.browser().start("chat-1", CHAT)


async def test_session_stops_at_its_cap(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(session_cap_ms=90_000))
    await cluster.advance(90_000)
    (reached,) = browser.all("limit_reached")
    assert reached["limit"] == "session_cap"
    # Credits do not lift a cap. The grace is for saving, and runs once.
    await cluster.grant(10 * CREDIT)
    for _ in range(3):
        refused = await browser.request("chat-1", Event.RESUME)
        assert (refused["type"], refused.get("limit")) == ("error", "session_cap")
        await cluster.advance(4_000)
    await cluster.advance(3_000)
    (stopped,) = browser.all("stopped")
    assert (stopped["reason"], stopped["limit"]) == ("limit", "session_cap")
    assert stopped["receipt"]["elapsed_ms"] == 90_000
    assert stopped["received_at"] == reached["received_at"] + CHAT.stop_grace_ms
