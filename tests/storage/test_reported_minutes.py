"""A reported minute is taken once, where the month has room."""

from typing import Any

import msgspec
import pytest

from protocol.metering.session import SessionState, Standing, unstarted
from protocol.metering.states import Phase
from protocol.metering.steps import minute_record, started_record
from protocol.metering.terms import MINUTE_MS
from storage import limits as storage_limits
from storage.redis.encoding import decode_records
from storage.redis.live import Live
from storage.redis.reported_minutes import MinuteReporter, ReportedStep
from storage.rows.accounts import AccountRecord
from tests.protocol.examples import NOW, identity_of, terms_of

TENANT, ANN, MONTH = "org:acme", "ann", "2026-05-01"
IDENTITY = identity_of(
    terms_of(price_micros=0, counts_minutes=True), tenant=TENANT, org_id="acme",
    session_id="rec-1", is_reported=True,
)  # fmt: skip


@pytest.fixture
async def reporter(live: Live) -> MinuteReporter:
    """A reporter whose account and month are in Redis.

    The member may use ten minutes, the organisation a thousand.
    """
    await live.load_account(TENANT, ANN, AccountRecord(0, False, ()))
    await live.load_month(TENANT, live.keys.member(TENANT, ANN), {"limit": 10})
    await live.load_month(TENANT, live.keys.organization(TENANT), {"limit": 1_000})
    return MinuteReporter(live)


def reported(number: int = 0, **changes: Any) -> ReportedStep:
    """The minute of this number, after all earlier ones were reported."""
    at = NOW + number * MINUTE_MS
    standing: Standing = msgspec.structs.replace(
        unstarted(Phase.PAUSED, NOW, 0), version=number + 1, elapsed_ms=(number + 1) * MINUTE_MS,
        settled_ms=(number + 1) * MINUTE_MS, minutes_kept=number + 1, at=at + MINUTE_MS,
        grace_until=at + 2 * MINUTE_MS,
    )  # fmt: skip
    record = minute_record(
        IDENTITY, number, seconds=60, started_at=at, month=MONTH, counts=True, credits_micros=0,
        free_ms=0,
    )  # fmt: skip
    step = ReportedStep(
        identity=IDENTITY, standing=standing, is_first=number == 0, is_beyond_cap=False,
        minute_at=at, month=MONTH, minutes={at: number}, earlier=(),
        records=(record,) if number else (started_record(IDENTITY), record), basis=None, at=at,
        kept_ms=3_600_000,
    )  # fmt: skip
    return msgspec.structs.replace(step, **changes)


async def used(live: Live) -> list[int]:
    """Minutes that the member and the organisation have used."""
    return [month.used_minutes for month in await live.month(TENANT, ANN, MONTH)]


async def session(live: Live) -> SessionState:
    (found,) = await live.sessions(TENANT, ["rec-1"])
    return found


async def test_a_minute_is_taken_once_and_appended(live: Live, reporter: MinuteReporter) -> None:
    taken = await reporter.track(reported())
    assert taken.status == "ok"
    partition = live.keys.partition(TENANT)
    entries: Any = await live.redis.xrange(live.keys.outbox(partition))
    ((entry_id, fields),) = entries
    assert entry_id.decode() == taken.detail
    assert decode_records(fields[b"r"]) == list(reported().records)
    assert (await session(live)).standing == reported().standing
    assert [one async for one in live.graces(NOW + 2 * MINUTE_MS)] == [(TENANT, "rec-1")]
    assert await used(live) == [1, 1]
    # The step that follows is computed from what stands now.
    assert await reporter.track(reported()) == ("stale", "")
    again = reported(1, minute_at=NOW)
    assert await reporter.track(again) == ("duplicate", "0")
    assert (await reporter.track(reported(1))).status == "ok"
    assert await used(live) == [2, 2]
    assert await live.redis.xlen(live.keys.outbox(partition)) == 2


@pytest.mark.parametrize("limited", ["member_minutes", "org_minutes"])
async def test_a_month_without_room_refuses_and_says_which(
    live: Live, reporter: MinuteReporter, limited: str
) -> None:
    user_id = ANN if limited == "member_minutes" else None
    await live.change_limit(TENANT, user_id, 0, overage=False)
    assert await reporter.track(reported()) == ("refused", limited)
    assert await live.outbox() == (0, None)
    # Minutes that metered sessions merely hold may be given back.
    key = live.keys.member(TENANT, ANN) if user_id else live.keys.organization(TENANT)
    await live.change_limit(TENANT, user_id, 1, overage=False)
    await live.redis.hset(key, f"held:{MONTH}", "1")
    assert await reporter.track(reported()) == ("held", limited)
    await live.change_limit(TENANT, user_id, 1, overage=True)
    assert (await reporter.track(reported())).status == "ok"


async def test_cold_counters_are_named_but_not_loaded_during_recovery(
    live: Live, reporter: MinuteReporter
) -> None:
    await live.redis.delete(live.keys.member(TENANT, ANN), live.keys.account(TENANT, ANN))
    assert await reporter.track(reported()) == ("cold", "account,member")
    await live.load_account(TENANT, ANN, AccountRecord(0, False, ()))
    await live.load_month(TENANT, live.keys.member(TENANT, ANN), {"limit": 10})
    await live.redis.set(live.keys.recovering(live.keys.partition(TENANT)), "1")
    assert await reporter.track(reported()) == ("cold", "account")


async def test_metered_or_ended_sessions_take_no_report(
    live: Live, reporter: MinuteReporter
) -> None:
    await reporter.track(reported())
    sockets = live.keys.sockets(TENANT, "rec-1")
    await live.redis.sadd(sockets, "node")
    assert await reporter.track(reported(1)) == ("metered", "")
    await live.redis.delete(sockets)
    ended = msgspec.structs.replace(reported().standing, phase=Phase.ENDED)
    encoded = msgspec.json.encode(ended)
    await live.redis.hset(live.keys.session(TENANT, "rec-1"), "standing", encoded)
    assert await reporter.track(reported(1)) == ("ended", "1")


async def test_bounds_refuse_a_minute(
    live: Live, reporter: MinuteReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = reported(is_beyond_cap=True)
    assert await reporter.track(beyond) == ("refused", "session_cap")
    monkeypatch.setattr(storage_limits, "OUTBOX_ENTRIES_MAX", 0)
    assert await reporter.track(reported()) == ("full", "")


async def test_lost_minutes_are_counted_again_unless_loaded(
    live: Live, reporter: MinuteReporter
) -> None:
    """Minutes that Redis lost are counted again unless the month includes them.

    Redis has lost the session with three minutes, of which the member's month includes one.
    """
    partition = live.keys.partition(TENANT)
    contained = live.keys.contained(live.keys.member(TENANT, ANN))
    await live.redis.hset(contained, "rec-1", "1")
    lost = reported(
        3, is_first=True, earlier=(MONTH, MONTH, MONTH),
        minutes={NOW + number * MINUTE_MS: number for number in range(4)},
        standing=msgspec.structs.replace(reported(3).standing, version=1),
    )  # fmt: skip
    assert (await reporter.track(lost)).status == "ok"
    assert await used(live) == [3, 4]
    assert await live.redis.sismember(live.keys.live(partition), f"{TENANT}/rec-1")
    for number in range(4):
        duplicate = reported(1, minute_at=NOW + number * MINUTE_MS)
        assert await reporter.track(duplicate) == ("duplicate", str(number))
