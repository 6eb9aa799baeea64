"""Counters in Redis are cold until loaded; each entry changes them once."""

from storage.redis.live import Live
from storage.rows.accounts import AccountRecord
from tests.protocol.examples import CREDIT, NOW, identity_of

TENANT, ANN = "user:ann", "ann"
ORG = "org:acme"
NOVEMBER = "2026-11-01"


async def test_an_account_is_cold_until_it_is_loaded(live: Live) -> None:
    key = live.keys.account(TENANT, ANN)
    assert await live.account(TENANT, ANN) is None
    assert not await live.is_warm(key)
    record = AccountRecord(9 * CREDIT, False, (), holds=("h/1/2000000", "h2/1000000"))
    assert await live.load_account(TENANT, ANN, record, now_ms=NOW)
    assert await live.is_warm(key)
    found = await live.account(TENANT, ANN)
    assert found is not None
    assert (found.balance_micros, found.available_micros) == (9 * CREDIT, 6 * CREDIT)
    assert (found.reserved_micros, found.version) == (3 * CREDIT, NOW)


async def test_loading_again_changes_nothing(live: Live) -> None:
    await live.load_account(TENANT, ANN, AccountRecord(9 * CREDIT, False, ()))
    await live.load_account(TENANT, ANN, AccountRecord(5 * CREDIT, False, ()))
    found = await live.account(TENANT, ANN)
    assert found is not None
    assert found.balance_micros == 9 * CREDIT


async def test_an_entry_is_credited_once(live: Live) -> None:
    assert not await live.credit(TENANT, ANN, "g1", CREDIT, "grant", NOW)
    await live.load_account(TENANT, ANN, AccountRecord(CREDIT, False, ("before",)))
    for entry_id, is_new in (("before", False), ("g1", True), ("g1", False), ("g2", True)):
        assert await live.credit(TENANT, ANN, entry_id, CREDIT, "grant", NOW) is is_new
    found = await live.account(TENANT, ANN)
    assert found is not None
    assert found.balance_micros == 3 * CREDIT


async def test_months_of_a_member_and_of_the_organisation(live: Live) -> None:
    empty = await live.month(ORG, ANN, NOVEMBER)
    assert [(one.limit_minutes, one.used_minutes) for one in empty] == [(None, 0), (None, 0)]
    await live.load_month(ORG, live.keys.member(ORG, ANN), {"limit": 60, f"used:{NOVEMBER}": 7})
    await live.load_month(ORG, live.keys.organization(ORG), {"limit": 600, "overage": 1})
    member, organization = await live.month(ORG, ANN, NOVEMBER)
    assert (member.month, member.limit_minutes, member.used_minutes) == (NOVEMBER, 60, 7)
    # Where overage is allowed there is no limit to stop at.
    assert organization.limit_minutes is None


async def test_a_limit_changes_where_its_counter_is_here(live: Live) -> None:
    await live.change_limit(ORG, ANN, 5, overage=False)
    assert (await live.month(ORG, ANN, NOVEMBER))[0].limit_minutes is None
    await live.load_month(ORG, live.keys.member(ORG, ANN), {"limit": 60})
    await live.change_limit(ORG, ANN, 5, overage=False)
    assert (await live.month(ORG, ANN, NOVEMBER))[0].limit_minutes == 5
    await live.load_month(ORG, live.keys.organization(ORG), {"limit": ""})
    await live.change_limit(ORG, None, 600, overage=False)
    assert (await live.month(ORG, ANN, NOVEMBER))[1].limit_minutes == 600


async def test_free_time_is_cold_until_it_is_loaded(live: Live) -> None:
    identity = identity_of(free_key="day:2026-11-10")
    assert await live.free_used(identity) is None
    key = live.keys.free(TENANT, "day:2026-11-10")
    await live.load_month(TENANT, key, {"used": 1_500})
    assert await live.free_used(identity) == 1_500


async def test_only_assertions_load_while_a_partition_recovers(live: Live) -> None:
    await live.redis.set(live.keys.recovering(live.keys.partition(TENANT)), "1")
    assert await live.is_recovering(TENANT)
    record = AccountRecord(CREDIT, False, ())
    assert not await live.load_account(TENANT, ANN, record)
    assert await live.account(TENANT, ANN) is None
    assert await live.load_account(TENANT, ANN, record, asserting=True)
    assert await live.account(TENANT, ANN) is not None


async def test_month_shows_limits_that_overage_may_exceed(live: Live) -> None:
    keys = live.keys
    assert await live.usage(ORG, ANN, NOVEMBER) is None
    member: dict[str, str | int] = {"limit": 30, "overage": 0, f"used:{NOVEMBER}": 7}
    await live.load_month(ORG, keys.member(ORG, ANN), member)
    assert await live.usage(ORG, ANN, NOVEMBER) is None, "the organisation's is cold"
    await live.load_month(ORG, keys.organization(ORG), {"limit": 5, "overage": 1})
    found = await live.usage(ORG, ANN, NOVEMBER)
    assert found is not None
    assert (found.month, found.member_minutes, found.member_limit_minutes) == (NOVEMBER, 7, 30)
    assert (found.org_minutes, found.org_limit_minutes) == (0, 5)
    later = await live.usage(ORG, ANN, "2026-12-01")
    assert later is not None
    assert later.member_minutes == 0
    assert later.as_of_us > found.as_of_us
