"""The end of a month inside a session, in virtual time.

A minute belongs to the month in which it starts, in the time zone of its organisation. The limits
of a month end with the month, and those of the next month begin anew.
"""

import datetime
import zoneinfo
from typing import Any

import pytest

from protocol.metering.states import Event
from server.counters.calendars import calendar
from server.counters.plans import apply_member, apply_organization
from server.runtime.rate_card_file import load_rate_card
from storage.audit import audit_live, audit_record
from tests.fixtures.database import Connection
from tests.simulation.cluster import Browser, Cluster

RECORDING = load_rate_card().terms("recording")
TENANT = "org:acme"
MINUTE_MS = 60_000

MONTH_ENDS = [
    # Fourteen hours before the month ends in Greenwich, and ten hours after.
    ("Pacific/Kiritimati", "2026-12-01", "2026-11-30T10:00:00Z"),
    ("Pacific/Honolulu", "2026-12-01", "2026-12-01T10:00:00Z"),
    ("Asia/Kathmandu", "2027-01-01", "2026-12-31T18:15:00Z"),
    # On this night summer time began as the month did: it has no midnight, and begins at 1.
    ("America/Asuncion", "2023-10-01", "2023-10-01T04:00:00Z"),
    # One hour after this month began it was midnight again, and November still.
    ("America/Havana", "2026-11-01", "2026-11-01T04:00:00Z"),
]


def instant(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)


async def organization(cluster: Cluster, **changes: Any) -> None:
    """Sets a plan, as ``PUT /v1/orgs/{id}`` does."""
    await cluster.records.put_organization(TENANT, "acme", **changes)
    if cluster.nodes:
        await apply_organization(cluster.nodes[0].live, cluster.records, TENANT)
        await cluster.settle()


async def member(cluster: Cluster, minutes: int | None) -> None:
    """Sets a member's limit, as ``PUT /v1/orgs/{id}/members/{user}`` does."""
    hours = None if minutes is None else minutes / 60
    await cluster.records.put_member(TENANT, "ann", monthly_hours_limit=hours)
    if cluster.nodes:
        await apply_member(cluster.nodes[0].live, cluster.records, TENANT, "ann")
        await cluster.settle()


async def adjust(cluster: Cluster, minutes: int, month: str | None = None) -> None:
    """Corrects a month, as an operator does."""
    ledger = cluster.nodes[-1].ledger
    entry_id = f"adjust:{cluster.clock.now()}:{minutes}"
    await ledger.adjust_minutes(
        TENANT, "ann", entry_id=entry_id, minutes=minutes, reason="story", month=month
    )
    await cluster.settle()


async def start_before(cluster: Cluster, ends_at: int, seconds: int) -> Browser:
    """Starts a recording this long before the month ends."""
    cluster.clock.now_ms = ends_at - seconds * 1000
    browser = (await cluster.node()).browser()
    started = await browser.start("rec-1", RECORDING, org_id="acme")
    assert started["type"] == "session", started
    return browser


async def months(cluster: Cluster, connection: Connection) -> dict[str, tuple[int, int]]:
    """Recorded minutes and overage of ann's months, after a passed audit."""
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    assert (await audit_live(cluster.nodes[0].live, cluster.records)).findings == ()
    rows = await connection.fetch(
        "SELECT month::text, total_minutes, overage_minutes FROM monthly_usage_cache"
        " WHERE user_id = 'ann' ORDER BY month"
    )
    found = {row["month"]: (row["total_minutes"], row["overage_minutes"]) for row in rows}
    # Redis has counted the same, for the member and for the organisation.
    keys = cluster.nodes[0].live.keys
    for key in (keys.member(TENANT, "ann"), keys.organization(TENANT)):
        counter: dict[bytes, bytes] = await cluster.redis.hgetall(key)  # type: ignore[assignment]
        used = {
            name.decode().removeprefix("used:"): int(value)
            for name, value in counter.items()
            if name.startswith(b"used:") and int(value)
        }
        held = sum(int(value) for name, value in counter.items() if name.startswith(b"held:"))
        assert (used, held) == ({month: minutes for month, (minutes, _) in found.items()}, 0)
    return found


# --- Where a minute belongs ------------------------------------------------------------


@pytest.mark.parametrize(("zone", "first", "begins"), MONTH_ENDS)
async def test_minute_belongs_to_month_of_its_start(
    cluster: Cluster, connection: Connection, zone: str, first: str, begins: str
) -> None:
    ends_at = instant(begins)
    assert calendar(zone).start_at(first) == ends_at
    await organization(cluster, timezone=zone)
    browser = await start_before(cluster, ends_at, 90)
    await cluster.advance(4 * MINUTE_MS)
    stopped = await browser.request("rec-1", Event.STOP)
    assert stopped["receipt"]["minutes"] == 4
    before = (datetime.date.fromisoformat(first) - datetime.timedelta(days=1)).replace(day=1)
    # The second minute began 30 s before the month's end and ended 30 s after it.
    assert await months(cluster, connection) == {before.isoformat(): (2, 0), first: (2, 0)}
    rows = await connection.fetch(
        "SELECT started_at, month::text FROM usage_tracking ORDER BY minute"
    )
    local = [row["started_at"].astimezone(zoneinfo.ZoneInfo(zone)) for row in rows]
    assert [row["month"] for row in rows] == [at.strftime("%Y-%m-01") for at in local]


async def test_repeated_hour_belongs_to_one_month(cluster: Cluster, connection: Connection) -> None:
    ends_at = instant("2026-11-01T04:00:00Z")
    await organization(cluster, timezone="America/Havana", monthly_hours_limit=2)
    browser = await start_before(cluster, ends_at, 60)
    # November has two hours left; clocks show its first hour twice.
    await cluster.advance(60_000 + 60 * MINUTE_MS)
    assert browser.all("limit_reached") == []
    await cluster.advance(60 * MINUTE_MS)
    (reached,) = browser.all("limit_reached")
    assert (reached["limit"], reached["stopped_at"]) == ("org_minutes", ends_at + 120 * MINUTE_MS)
    await cluster.advance(RECORDING.stop_grace_ms)
    assert await months(cluster, connection) == {"2026-10-01": (1, 0), "2026-11-01": (120, 0)}


# --- Limits of two months ---------------------------------------------------------------


@pytest.mark.parametrize(("zone", "first", "begins"), MONTH_ENDS)
async def test_new_month_limit_stops_session(
    cluster: Cluster, connection: Connection, zone: str, first: str, begins: str
) -> None:
    ends_at = instant(begins)
    await organization(cluster, timezone=zone)
    await member(cluster, 3)
    browser = await start_before(cluster, ends_at, 90)
    # Two minutes begin in the old month, and all three of the new one.
    assert browser.last("session")["limit"] == "member_minutes"
    assert browser.last("session")["remaining_ms"] == 5 * MINUTE_MS
    await cluster.advance(5 * MINUTE_MS)
    (reached,) = browser.all("limit_reached")
    assert reached["limit"] == "member_minutes"
    assert reached["stopped_at"] == ends_at - 90_000 + 5 * MINUTE_MS
    await cluster.advance(RECORDING.stop_grace_ms)
    found = await months(cluster, connection)
    assert list(found.values()) == [(2, 0), (3, 0)]
    assert list(found)[1] == first


async def test_old_month_limit_binds_until_month_ends(
    cluster: Cluster, connection: Connection
) -> None:
    ends_at = instant("2026-11-30T10:00:00Z")
    await organization(cluster, timezone="Pacific/Kiritimati")
    await member(cluster, 10)
    cluster.clock.now_ms = ends_at - 2 * MINUTE_MS
    node = await cluster.node()
    await adjust(cluster, 9)
    cluster.clock.now_ms = ends_at - 70_000
    browser = node.browser()
    started = await browser.start("rec-1", RECORDING, org_id="acme")
    assert (started["limit"], started["remaining_ms"]) == ("member_minutes", MINUTE_MS)
    await cluster.advance(60_000)
    (reached,) = browser.all("limit_reached")
    assert (reached["limit"], reached["stopped_at"]) == ("member_minutes", ends_at - 10_000)
    await cluster.advance(9_999)
    refused = await browser.request("rec-1", Event.RESUME)
    assert (refused["code"], refused["limit"]) == ("limit_reached", "member_minutes")
    other = await node.browser("other").start("rec-2", RECORDING, org_id="acme")
    assert (other["code"], other["limit"]) == ("limit_reached", "member_minutes")
    # One millisecond later it is December, with ten minutes.
    await cluster.advance(1)
    resumed = await browser.request("rec-1", Event.RESUME)
    assert (resumed["state"], resumed["remaining_ms"]) == ("active", 10 * MINUTE_MS)
    await cluster.advance(61_000)
    await browser.request("rec-1", Event.STOP)
    assert await months(cluster, connection) == {"2026-11-01": (10, 0), "2026-12-01": (2, 0)}


async def test_no_warning_of_limit_that_ends_first(cluster: Cluster) -> None:
    ends_at = instant("2026-12-01T10:00:00Z")
    await organization(cluster, timezone="Pacific/Honolulu")
    await member(cluster, 30)
    cluster.clock.now_ms = ends_at - 5 * MINUTE_MS
    await cluster.node()
    await adjust(cluster, 28)
    # Two minutes are left, and two begin before the month ends.
    browser = await start_before(cluster, ends_at, 90)
    assert browser.last("session")["remaining_ms"] == 32 * MINUTE_MS
    await cluster.advance(2 * MINUTE_MS + 30_000)
    assert browser.all("limit_warning") == []
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    assert session["remaining_ms"] == 30 * MINUTE_MS - 30_000
    # Warnings of the new month's limits come as usual.
    await cluster.advance(21 * MINUTE_MS)
    (warning,) = browser.all("limit_warning")
    assert (warning["limit"], warning["threshold_ms"]) == ("member_minutes", 600_000)
    assert warning["received_at"] == ends_at + 30_000 + 20 * MINUTE_MS
    await browser.request("rec-1", Event.STOP)


async def test_members_sharing_month_get_new_one(cluster: Cluster) -> None:
    ends_at = instant("2026-11-30T10:00:00Z")
    await organization(cluster, timezone="Pacific/Kiritimati", monthly_hours_limit=4 / 60)
    ann = await start_before(cluster, ends_at, 60)
    await cluster.flush()
    ben = (await cluster.node()).browser("ben")
    await ben.start("rec-2", RECORDING, org_id="acme", user_id="ben")
    await cluster.advance(60_000)
    assert ann.all("limit_reached") == ben.all("limit_reached") == []
    await cluster.advance(2 * MINUTE_MS)
    for browser in (ann, ben):
        (reached,) = browser.all("limit_reached")
        assert (reached["limit"], reached["stopped_at"]) == (
            "org_minutes",
            ends_at + 2 * MINUTE_MS,
        )


# --- What is changed while a session lives ------------------------------------------------


async def test_new_limit_reaches_live_session(cluster: Cluster, connection: Connection) -> None:
    ends_at = instant("2026-12-01T10:00:00Z")
    await organization(cluster, timezone="Pacific/Honolulu", monthly_hours_limit=100)
    browser = await start_before(cluster, ends_at, 150)
    await member(cluster, 3)
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    # Three minutes begin in the old month, and three in the new one.
    assert (session["limit"], session["remaining_ms"]) == ("member_minutes", 6 * MINUTE_MS)
    await organization(cluster, monthly_hours_limit=1 / 60)
    await cluster.advance(60_000)
    (reached,) = browser.all("limit_reached")
    assert (reached["limit"], reached["stopped_at"]) == ("org_minutes", ends_at - 90_000)
    await organization(cluster, monthly_hours_limit=None)
    resumed = await browser.request("rec-1", Event.RESUME)
    assert (resumed["state"], resumed["limit"]) == ("active", "member_minutes")
    await member(cluster, None)
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    assert (session["limit"], session["remaining_ms"]) == (None, None)
    await cluster.advance(4 * MINUTE_MS)
    await browser.request("rec-1", Event.STOP)
    assert await months(cluster, connection) == {"2026-11-01": (3, 0), "2026-12-01": (2, 0)}


async def test_new_time_zone_changes_month_of_live_session(
    cluster: Cluster, connection: Connection
) -> None:
    # In Greenwich it is October for one hour more, in Berlin it is November already.
    await organization(cluster, timezone="UTC")
    await member(cluster, 5)
    browser = await start_before(cluster, instant("2026-11-01T00:00:00Z"), 3_600)
    await cluster.advance(150_000)
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    assert session["remaining_ms"] == 150_000
    await organization(cluster, timezone="Europe/Berlin")
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    # The minute under way stays October's, of which three are used.
    assert session["remaining_ms"] == 30_000 + 5 * MINUTE_MS
    assert browser.last("limit_cleared")["limit"] == "member_minutes"
    await cluster.advance(90_000)
    await organization(cluster, timezone="UTC")
    # One minute is November's, and the one under way is too; of October two are left.
    session = await browser.start("rec-1", RECORDING, org_id="acme")
    assert (session["limit"], session["remaining_ms"]) == ("member_minutes", 2 * MINUTE_MS)
    await cluster.advance(3 * MINUTE_MS)
    (reached,) = browser.all("limit_reached")
    assert reached["limit"] == "member_minutes"
    await cluster.advance(RECORDING.stop_grace_ms)
    assert await months(cluster, connection) == {"2026-10-01": (5, 0), "2026-11-01": (1, 0)}


async def test_adjustments_reach_live_session(cluster: Cluster, connection: Connection) -> None:
    ends_at = instant("2026-11-30T10:00:00Z")
    await organization(cluster, timezone="Pacific/Kiritimati")
    await member(cluster, 60)
    browser = await start_before(cluster, ends_at, 3_600)
    other = await cluster.node()
    assert browser.last("session")["remaining_ms"] == 120 * MINUTE_MS
    await adjust(cluster, 50)
    (warning,) = browser.all("limit_warning")
    assert (warning["limit"], warning["threshold_ms"]) == ("member_minutes", 600_000)
    await adjust(cluster, -50)
    assert browser.last("limit_cleared")["limit"] == "member_minutes"
    await adjust(cluster, 59)
    await cluster.advance(60_000)
    assert browser.last("limit_reached")["limit"] == "member_minutes"
    # A correction of another month does not help; one of this month does.
    await adjust(cluster, -1, month="2026-11-01")
    resumed = await browser.request("rec-1", Event.RESUME)
    assert resumed["state"] == "active"
    await cluster.advance(30_000)
    await browser.request("rec-1", Event.STOP)
    assert await months(cluster, connection) == {"2026-11-01": (60, 0)}
    del other


# --- Beyond the limit ------------------------------------------------------------------


async def test_what_is_beyond_a_limit_that_does_not_stop_is_counted_apart(
    cluster: Cluster, connection: Connection
) -> None:
    ends_at = instant("2023-10-01T04:00:00Z")
    await organization(
        cluster, timezone="America/Asuncion", monthly_hours_limit=2 / 60, allow_overage=True
    )
    browser = await start_before(cluster, ends_at, 270)
    assert browser.last("session")["limit"] is None
    await cluster.advance(8 * MINUTE_MS)
    assert browser.all("limit_warning") == browser.all("limit_reached") == []
    await browser.request("rec-1", Event.STOP)
    # Five minutes began in September and three in October; two of each are in the plan.
    assert await months(cluster, connection) == {"2023-09-01": (5, 3), "2023-10-01": (3, 1)}


async def test_overage_forbidden_stops_and_allowed_continues(
    cluster: Cluster, connection: Connection
) -> None:
    ends_at = instant("2026-11-30T10:00:00Z")
    await organization(
        cluster, timezone="Pacific/Kiritimati", monthly_hours_limit=1 / 60, allow_overage=True
    )
    browser = await start_before(cluster, ends_at, 600)
    await cluster.advance(90_000)
    await organization(cluster, allow_overage=False)
    # What was granted before is kept: the minute under way, and the margin after it.
    await cluster.advance(40_000)
    assert browser.last("limit_reached")["limit"] == "org_minutes"
    await organization(cluster, allow_overage=True)
    assert (await browser.request("rec-1", Event.RESUME))["state"] == "active"
    await cluster.advance(60_000)
    await browser.request("rec-1", Event.STOP)
    ((minutes, beyond),) = (await months(cluster, connection)).values()
    assert beyond == minutes - 1
