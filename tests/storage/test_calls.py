"""The record of calls: pages, plans, participants, and bounds."""

import pytest

from storage.postgres.calls import CallRecords
from storage.postgres.records import Records
from storage.rows.calls import CallFilter, CallRunRow, FactToKeep
from tests.storage.examples import START, TENANT, minute

DUE = 15_000


@pytest.fixture
def calls(records: Records) -> CallRecords:
    return CallRecords.over(records)


def to_keep(number: int, run: str, participant: str | None = "p1", **fields: object) -> FactToKeep:
    values: dict[str, object] = {"happened_at": number, "call_id": "call", **fields}
    key = f"{run}-{participant}-{number}"
    return FactToKeep("stream", key, call_session=run, participant=participant, fact="{}", **values)  # type: ignore[arg-type]


async def receive(calls: CallRecords, at: int, *facts: FactToKeep) -> int:
    kept = await calls.receive(facts, received_at=at, due_at=at + DUE, sweep_at=None, soon_at=None)
    return len(kept)


async def map_to(calls: CallRecords, run: str, user: str, org: str | None = None) -> None:
    await calls.map_participant(
        ("stream", run, f"p-{user}"), call_id="call", tenant=f"user:{user}",
        session_id=f"call:stream:{run}:{user}", user_id=user, org_id=org, mapping="{}",
    )  # fmt: skip


async def names(calls: CallRecords, wanted: CallFilter, rows: int = 2) -> list[str]:
    """All runs of a filter, read in pages."""
    found: list[str] = []
    before = None
    while page := await calls.page(wanted, before, rows):
        found += [run.call_session for run in page]
        before = (page[-1].seen_at, page[-1].provider, page[-1].call_session)
    return found


async def test_pages_are_newest_first_and_of_one_state(calls: CallRecords) -> None:
    for number in range(5):
        run = f"run-{number}"
        assert await receive(calls, 1_000 * (number // 2), to_keep(number, run)) == 1
        await map_to(calls, run, "ann" if number % 2 else "ben", "acme" if number == 3 else None)
    await receive(calls, 9_000, to_keep(9, "run-1", None, edge="ended"))
    (waiting,) = await calls.take_facts(DUE, 2 * DUE, 1)
    assert await calls.park_fact(waiting, "p1", "bad_user_id", 0)
    assert await names(calls, CallFilter()) == ["run-4", "run-3", "run-2", "run-1", "run-0"]
    assert await names(calls, CallFilter("parked")) == ["run-0"]
    assert await names(calls, CallFilter("active")) == ["run-4", "run-3", "run-2"]
    assert await names(calls, CallFilter("ended")) == ["run-1"]
    assert await names(calls, CallFilter(user_id="ann")) == ["run-3", "run-1"]
    assert await names(calls, CallFilter("ended", user_id="ann")) == ["run-1"]
    assert await names(calls, CallFilter(user_id="ann", org_id="acme")) == ["run-3"]
    assert await names(calls, CallFilter(provider="livekit")) == []
    assert [run.state for run in await calls.runs_of("call", None, 10)] == [
        "active", "active", "active", "ended", "parked",
    ]  # fmt: skip
    assert [run.call_session for run in await calls.runs_of("call", "stream", 1)] == ["run-4"]


async def test_a_known_fact_changes_nothing(calls: CallRecords) -> None:
    one = to_keep(1, "run-1", edge="started")
    assert await receive(calls, 1_000, one, one) == 1
    assert await receive(calls, 2_000, one, to_keep(2, "run-1")) == 1
    assert await calls.runs_of("call", None, 10) == (
        CallRunRow("stream", "run-1", "call", "", "active", 1_000, 1, None, None),
    )


async def test_plans_have_versions(calls: CallRecords) -> None:
    assert await calls.put_plan("stream", "call", '{"kind":"a"}', 1_000) == 1
    assert await calls.put_plan("stream", "call", '{"kind":"b"}', 2_000) == 2
    assert await calls.put_plan("livekit", "call", "{}", 2_000) == 1
    (plan,) = await calls.plans("call", "stream")
    assert (plan.version, plan.changed_at) == (2, 2_000)
    assert len(await calls.plans("call", None)) == 2


async def test_deletion_is_bounded(calls: CallRecords) -> None:
    await receive(calls, 1_000, *(to_keep(n, "run-1") for n in range(5)))
    for fact in await calls.take_facts(1_000 + DUE, 3 * DUE, 4):
        await calls.fact_applied("stream", fact.fact_key, 2_000)
    assert [await calls.prune_facts(1_001, 3) for _ in range(3)] == [3, 1, 0]
    assert len(await calls.facts_of("stream", "run-1")) == 1


async def test_the_seconds_of_a_day_are_of_one_kind(calls: CallRecords, records: Records) -> None:
    await records.write([minute(0), minute(1, seconds=30), minute(0, session_id="c", kind="chat")])
    day = (START, START + 86_400_000)
    assert await calls.seconds_of_day(TENANT, "ann", minute(0).kind, day) == 90
    assert await calls.seconds_of_day(TENANT, "ann", minute(0).kind, (0, START)) == 0
