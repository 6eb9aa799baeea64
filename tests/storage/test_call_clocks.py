"""The record of two clocks: one row for each session."""

from datetime import date

import msgspec
import pytest

from storage.postgres.call_clocks import CallClocks
from storage.postgres.calls import CallRecords
from storage.postgres.records import Records
from storage.rows.call_clocks import Correction, ProviderDuration
from storage.rows.calls import FactToKeep
from tests.storage.examples import at

BEGAN_AT = at("UTC", 2026, 11, 30, 12)
KNOWN = ProviderDuration(
    tenant="org:acme",
    session_id="call:fake:run:ann",
    provider="fake",
    call_id="default:lesson",
    call_session="run",
    user_id="ann",
    account_id="school",
    started_at=BEGAN_AT,
    ended_at=BEGAN_AT + 90_000,
    elapsed_ms=80_000,
    facts_ms=90_000,
    provider_ms=89_000,
    asked_ms=None,
    reason="longer",
    uncollected_ms=1_000,
    uncollected_micros=2,
    uncollected_minutes=-1,
    stretches=((BEGAN_AT, BEGAN_AT + 90_000),),
)
MADE = Correction("clock:s:0", BEGAN_AT, "2026-11-01", 5, 1, "because", is_done=True)


@pytest.fixture
def clocks(records: Records) -> CallClocks:
    return CallClocks.over(records)


async def mapped(clocks: CallClocks, participant: str, user: str = "ann") -> None:
    calls = CallRecords.over(clocks)
    await calls.map_participant(
        ("fake", "run", participant),
        call_id="default:lesson",
        tenant="org:acme",
        session_id=f"call:fake:run:{user}",
        user_id=user,
        org_id="acme",
        mapping='{"user_id":"ann"}',
    )


async def kept(clocks: CallClocks, key: str, participant: str | None, fact: str) -> None:
    await CallRecords.over(clocks).receive(
        [FactToKeep("fake", key, "default:lesson", "run", participant, fact, BEGAN_AT)],
        received_at=BEGAN_AT,
        due_at=BEGAN_AT,
        sweep_at=None,
        soon_at=None,
    )


async def test_a_row_is_written_after_the_one_before(clocks: CallClocks) -> None:
    first = await clocks.put_duration(KNOWN)
    assert first == msgspec.structs.replace(KNOWN, version=1)
    assert await clocks.duration("org:acme", KNOWN.session_id) == first
    assert await clocks.put_duration(KNOWN) is None  # another process was faster
    assert first is not None
    second = await clocks.put_duration(
        msgspec.structs.replace(first, corrections=(MADE,), provider_ms=None, reason="a\0b")
    )
    found = await clocks.durations("org:acme", [KNOWN.session_id, "other"])
    assert second is not None
    assert found == {KNOWN.session_id: msgspec.structs.replace(second, reason="a\ufffdb")}
    assert await clocks.duration("org:other", KNOWN.session_id) is None
    assert (KNOWN.difference_ms, second.difference_ms) == (9_000, None)


async def test_facts_of_a_session_are_those_of_its_user_and_of_the_run(
    clocks: CallClocks,
) -> None:
    assert await clocks.call_of("org:acme", "call:fake:run:ann") is None
    await kept(clocks, "k1", "p1", '{"kind":"joined","at_ms":5,"device":"d1"}')
    await kept(clocks, "k2", "p2", '{"kind":"left","at_ms":6,"device":null}')
    await kept(clocks, "k3", "p3", '{"kind":"joined","at_ms":7,"device":"d1"}')
    await kept(
        clocks, "k4", None, '{"kind":"ended","at_ms":8,"device":null,"provider_duration_ms":4}'
    )
    await mapped(clocks, "p1")
    await mapped(clocks, "p2")
    await mapped(clocks, "p3", "ben")
    call = await clocks.call_of("org:acme", "call:fake:run:ann")
    assert call is not None
    assert (call.provider, call.call_session, call.call_id) == ("fake", "run", "default:lesson")
    assert call.participants == ("p1", "p2")
    facts = sorted((one.device, one.kind, one.at_ms, one.provider_ms) for one in call.facts)
    assert facts == [
        ("", "ended", 8, 4), ("p1/d1", "joined", 5, None), ("p2", "left", 6, None),
    ]  # fmt: skip
    await clocks.put_duration(KNOWN)
    (found,) = await clocks.durations_of_run("fake", "run")
    assert found.session_id == KNOWN.session_id
    assert await clocks.durations_of_run("fake", "other") == ()


async def test_report_has_the_calls_of_its_days(clocks: CallClocks, records: Records) -> None:
    await records.put_organization("org:acme", "acme", timezone="Pacific/Auckland")
    undone = msgspec.structs.replace(MADE, is_done=False)
    await clocks.put_duration(msgspec.structs.replace(KNOWN, corrections=(MADE, undone)))
    other = msgspec.structs.replace(KNOWN, tenant="user:ben", user_id="ben", provider_ms=None)
    await clocks.put_duration(other)

    async def lines(tenant: str | None, day: date) -> list[tuple[object, ...]]:
        async with clocks.report(tenant, day, day) as batches:
            return [
                (one.org_id, one.user_id, one.day, one.provider_ms, one.corrected_micros)
                async for batch in batches
                for one in batch
            ]

    ann = ("acme", "ann", "2026-12-01", 89_000, 5)
    ben = (None, "ben", "2026-11-30", None, 0)
    assert await lines(None, date(2026, 11, 30)) == [ben]
    assert await lines(None, date(2026, 12, 1)) == [ann]
    assert await lines("user:ben", date(2026, 12, 1)) == []
