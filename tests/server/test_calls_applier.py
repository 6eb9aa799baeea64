"""Facts are applied once, parked, taken over and replayed."""

import asyncio

import msgspec
import pytest

from protocol.wire.errors import ServiceError
from server.calls import limits as call_limits
from server.calls.facts import CallRun, CallTruth, FactKind, ProviderError
from server.calls.mapping import CallPlan, PlannedParticipant
from server.calls.parked import failed_facts, parked_participants
from storage.rows.calls import CallFilter
from tests.fixtures.database import Connection
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.call_facts import CALL, RUN, InboxScene, fact, states, truth

JOINED = fact()
LEFT = fact(FactKind.LEFT, at_ms=61_000)
ENDED = fact(FactKind.ENDED, at_ms=62_000)


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    return InboxScene(server.process)


async def test_a_fact_is_kept_and_applied_once(scene: InboxScene, connection: Connection) -> None:
    assert await scene.receive(JOINED)
    assert not await scene.receive(JOINED)
    assert scene.meter.applied == [(JOINED.key, "ann")]
    assert await states(connection) == {JOINED.key: "applied"}
    (billing,) = scene.meter.mappings[0].participants.values()
    assert (billing.user_id, billing.org_id, billing.account_id, billing.kind) == (
        "ann", None, "ann", "call",
    )  # fmt: skip


async def test_what_fails_is_applied_later_by_any_process(
    scene: InboxScene, server: TestServer, connection: Connection
) -> None:
    scene.meter.failing = ServiceError("Redis is away")
    await scene.receive(JOINED)
    await scene.receive(LEFT)
    assert set((await states(connection)).values()) == {"waiting"}
    other = InboxScene(server.process)
    assert await other.take() == 0, "the first process has its time"
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await other.take() == 2
    assert other.meter.applied == [(JOINED.key, "ann"), (LEFT.key, "ann")]
    assert set((await states(connection)).values()) == {"applied"}
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await other.take() == 0


async def test_a_fact_that_always_fails_is_tried_less_and_less_often(
    scene: InboxScene, server: TestServer
) -> None:
    scene.meter.failing = ValueError("a bug of ours")
    await scene.receive(JOINED)
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await scene.take() == 1
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await scene.take() == 1
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await scene.take() == 0
    # Others do not wait for it.
    scene.meter.failing = None
    other = fact(participant="ben", call_session="run-2")
    await scene.receive(other)
    assert scene.meter.applied == [(other.key, "ben")]


async def let_fail(scene: InboxScene, server: TestServer, hours: int) -> None:
    """Has the processes try what waits for some hours."""
    until = server.process.clock.now() + hours * 3_600_000
    while server.process.clock.now() < until:
        advance(server, call_limits.CALL_FACT_LEASE_MS)
        await scene.take()


async def test_a_fact_that_fails_each_time_is_parked_with_its_error_and_keeps_back_no_other(
    scene: InboxScene, server: TestServer, connection: Connection
) -> None:
    ended = fact(FactKind.ENDED, call_session="run-2")
    scene.meter.poison = {JOINED.key, ended.key}
    ben, eve = fact(participant="ben", at_ms=2_000), fact(participant="eve", call_session="run-2")
    await scene.receive(JOINED, ben)
    await scene.receive(eve)
    await scene.receive(ended)
    assert scene.meter.applied == [(ben.key, "ben"), (eve.key, "eve")]
    assert await parked(scene) == []
    await let_fail(scene, server, 2)
    assert await states(connection) == {
        JOINED.key: "parked", ben.key: "applied", eve.key: "applied", ended.key: "parked",
    }  # fmt: skip
    assert await scene.take() == 0
    assert await parked(scene) == ["run-2", RUN]
    found = sorted([one async for one in failed_facts(scene.records)], key=lambda one: one.kind)
    assert [(one.kind, one.participant, one.attempts, one.error) for one in found] == [
        ("ended", None, call_limits.CALL_FACT_ATTEMPTS_MAX, "ValueError: a bug of ours in ended"),
        (
            "joined",
            "ann",
            call_limits.CALL_FACT_ATTEMPTS_MAX,
            "ValueError: a bug of ours in joined",
        ),
    ]
    assert [one async for one in parked_participants(scene.records)] == []
    # It may fail again, and is mended at last.
    assert await scene.records.retry_facts("stream", CALL, server.process.clock.now()) == 2
    assert await parked(scene) == []
    await let_fail(scene, server, 2)
    assert await parked(scene) == ["run-2", RUN]
    scene.meter.poison.clear()
    await put(scene, CallPlan())
    assert await scene.take() == 2
    assert set((await states(connection)).values()) == {"applied"}
    assert await parked(scene) == []
    assert [one async for one in failed_facts(scene.records)] == []


async def test_a_run_stays_parked_while_either_reason_is_left(
    scene: InboxScene, server: TestServer
) -> None:
    scene.meter.poison = {JOINED.key}
    await scene.receive(JOINED, STRANGER)
    await let_fail(scene, server, 2)
    plan = CallPlan(
        participants={
            "a stranger": PlannedParticipant(user_id="eve"),
            "ann": PlannedParticipant(user_id="ann"),
        }
    )
    await put(scene, plan)
    await let_fail(scene, server, 2)
    assert await parked(scene) == [RUN]  # the stranger is mapped, ann's fact still fails
    assert [one async for one in parked_participants(scene.records)] == []


async def test_a_fact_is_not_parked_while_an_engine_is_away_for_hours(
    scene: InboxScene, server: TestServer, connection: Connection
) -> None:
    scene.meter.failing = ServiceError("Redis is away")
    await scene.receive(JOINED)
    await let_fail(scene, server, 12)
    assert await states(connection) == {JOINED.key: "waiting"}
    scene.meter.failing = None
    await let_fail(scene, server, 1)
    assert await states(connection) == {JOINED.key: "applied"}
    scene.meter.failing = ServiceError("it has not ended yet")
    await scene.receive(LEFT)
    await let_fail(scene, server, 40)
    assert (await states(connection))[LEFT.key] == "parked"


async def test_two_processes_do_not_take_the_same_fact(
    scene: InboxScene, server: TestServer
) -> None:
    scene.meter.failing = ServiceError("Redis is away")
    facts = [fact(call_session=f"run-{n}") for n in range(40)]
    await scene.receive(*facts)
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    others = [InboxScene(server.process) for _ in range(4)]
    taken = await asyncio.gather(*(other.take() for other in others))
    assert sum(taken) == 40
    applied = [name for other in others for name in other.meter.applied]
    assert sorted(applied) == sorted((one.key, "ann") for one in facts)


async def test_one_run_in_order_and_runs_side_by_side(scene: InboxScene) -> None:
    scene.meter.gate = asyncio.Event()
    facts = [fact(call_session=f"run-{n}", at_ms=at) for at in (1, 2, 3) for n in range(20)]
    await scene.inbox.receive("stream", {}, msgspec.json.encode(facts))
    while scene.meter.at_work < call_limits.CALL_RUNS_APPLIED_AT_ONCE_MAX:  # noqa: ASYNC110
        await asyncio.sleep(0)
    scene.meter.gate.set()
    await scene.applier.idle()
    assert scene.meter.at_work_max == call_limits.CALL_RUNS_APPLIED_AT_ONCE_MAX
    for n in range(20):
        own = [key for key, _ in scene.meter.applied if key.startswith(f"run-{n}:")]
        assert own == [one.key for one in facts if one.call_session == f"run-{n}"]
    assert scene.applier.waiting == 0


async def test_facts_beyond_the_bound_wait_in_postgres(
    scene: InboxScene, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "CALL_FACTS_WAITING_MAX", 3)
    facts = [fact(call_session=f"run-{n}") for n in range(5)]
    await scene.receive(*facts)
    assert len(scene.meter.applied) == 3
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    assert await scene.take() == 2
    assert len(scene.meter.applied) == 5


async def test_an_end_reaches_everybody_whenever_they_become_known(scene: InboxScene) -> None:
    await scene.receive(ENDED)
    assert scene.meter.applied == []
    await scene.receive(JOINED)
    assert scene.meter.applied == [(JOINED.key, "ann"), (ENDED.key, "ann")]
    ben = fact(participant="ben")
    await scene.receive(ben)
    assert scene.meter.applied[2:] == [(ben.key, "ben"), (ENDED.key, "ben")]


async def test_an_end_in_time_reaches_all(scene: InboxScene) -> None:
    await scene.receive(JOINED, fact(participant="ben"))
    scene.meter.applied.clear()
    await scene.receive(ENDED)
    assert scene.meter.applied == [(ENDED.key, "ann"), (ENDED.key, "ben")]


# --- Whose call it is ------------------------------------------------------------------

STRANGER = fact(participant="a stranger")
"""No user id of ours."""


async def put(scene: InboxScene, plan: CallPlan) -> None:
    now_ms = scene.process.clock.now()
    await scene.records.put_plan("stream", CALL, msgspec.json.encode(plan).decode(), now_ms)


async def parked(scene: InboxScene) -> list[str]:
    page = await scene.records.page(CallFilter("parked"), None, 10)
    return [run.call_session for run in page]


async def test_what_cannot_be_mapped_is_parked_and_billed_from_its_first_fact(
    scene: InboxScene, connection: Connection
) -> None:
    await scene.receive(STRANGER, JOINED)
    left = fact(FactKind.LEFT, "a stranger", at_ms=9_000)
    await scene.receive(left)
    assert scene.meter.applied == [(JOINED.key, "ann")]
    assert await states(connection) == {
        STRANGER.key: "parked", JOINED.key: "applied", left.key: "parked",
    }  # fmt: skip
    assert await parked(scene) == [RUN]
    await put(scene, CallPlan(participants={"a stranger": PlannedParticipant(user_id="eve")}))
    assert await scene.take() == 2
    assert scene.meter.applied[1:] == [(STRANGER.key, "a stranger"), (left.key, "a stranger")]
    assert await parked(scene) == []
    (page,) = (await scene.records.page(CallFilter(user_id="eve"), None, 10),)
    assert [run.call_session for run in page] == [RUN]


async def test_a_parked_fact_is_never_deleted(scene: InboxScene, server: TestServer) -> None:
    await scene.receive(STRANGER, JOINED)
    advance(server, call_limits.CALL_FACTS_KEPT_MS + 1)
    assert await scene.applier.prune() == 1
    assert await scene.applier.prune() == 0
    await put(scene, CallPlan(participants={"a stranger": PlannedParticipant(user_id="eve")}))
    assert await scene.take() == 1
    assert scene.meter.applied[1:] == [(STRANGER.key, "a stranger")]


async def test_a_plan_put_meanwhile_is_looked_at_before_a_fact_is_parked(
    scene: InboxScene, monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    context = scene.records.context
    plans = [CallPlan(participants={"a stranger": PlannedParticipant(user_id="eve")})]

    async def slow(*names: str) -> object:
        found = await context(*names)
        if plans:
            await put(scene, plans.pop())
        return found

    monkeypatch.setattr(scene.records, "context", slow)
    await scene.receive(STRANGER)
    assert scene.meter.applied == [(STRANGER.key, "a stranger")]
    assert await states(connection) == {STRANGER.key: "applied"}


async def test_the_first_mapping_of_a_participant_stays(scene: InboxScene) -> None:
    await scene.receive(JOINED)
    await put(scene, CallPlan(payer="rich", org_id="acme"))
    await scene.receive(LEFT, fact(participant="ben"))
    accounts = [
        (name, billing.org_id, billing.account_id)
        for mapping in scene.meter.mappings
        for name, billing in mapping.participants.items()
    ]
    assert accounts == [("ann", None, "ann"), ("ann", None, "ann"), ("ben", "acme", "rich")]


async def test_the_calls_own_data_maps_it(scene: InboxScene) -> None:
    await scene.receive(fact(custom={"org": "acme", "payer": "rich", "title": "Algebra"}))
    (billing,) = scene.meter.mappings[0].participants.values()
    assert (billing.org_id, billing.user_id, billing.account_id) == ("acme", "ann", "rich")


async def test_a_provider_is_asked_for_the_calls_data_once(scene: InboxScene) -> None:
    """A participant's event does not carry it; a default would stay."""
    scene.adapter.truth = truth(custom={"org": "acme", "title": "Algebra"})
    await scene.receive(fact(), fact(participant="ben"))
    await scene.receive(fact(participant="eve"))
    orgs = {one.org_id for each in scene.meter.mappings for one in each.participants.values()}
    assert (orgs, len(scene.adapter.asked)) == ({"acme"}, 1)


async def test_a_provider_whose_data_count_for_nothing_is_not_asked(scene: InboxScene) -> None:
    scene.adapter.maps_calls = False
    scene.adapter.truth = ProviderError("503")
    await scene.receive(JOINED)
    assert (scene.meter.applied, scene.adapter.asked) == ([(JOINED.key, "ann")], [])


async def test_a_provider_is_asked_for_the_host_where_a_plan_leaves_it_out(
    scene: InboxScene,
) -> None:
    scene.adapter.maps_calls = False
    scene.adapter.truth = truth(custom={"host": "teacher"})
    await put(scene, CallPlan(payer="host", org_id="acme"))
    await scene.receive(fact(), fact(participant="ben"))
    payers = {one.account_id for each in scene.meter.mappings for one in each.participants.values()}
    assert (payers, len(scene.adapter.asked)) == ({"teacher"}, 1)
    await put(scene, CallPlan(payer="host", host="ann", org_id="acme"))
    other = fact(call_session="run-2")
    await scene.receive(other)
    assert (scene.meter.applied[-1], len(scene.adapter.asked)) == ((other.key, "ann"), 1)


async def test_a_provider_without_an_answer_is_asked_again_and_then_the_default_counts(
    scene: InboxScene, server: TestServer
) -> None:
    scene.adapter.truth = ProviderError("503")
    await scene.receive(JOINED)
    assert scene.meter.applied == []
    advance(server, call_limits.CALL_FACT_LEASE_MS)
    scene.adapter.truth = truth(custom={"org": "acme"})
    await scene.take()
    assert scene.meter.applied == [(JOINED.key, "ann")]
    other = fact(call_session="run-2")
    scene.adapter.truth = ProviderError("503")
    await scene.receive(other)
    for _ in range(3):
        advance(server, 4 * call_limits.CALL_FACT_LEASE_MS)
        await scene.take()
    (billing,) = scene.meter.mappings[-1].participants.values()
    assert (scene.meter.applied[1:], billing.org_id) == ([(other.key, "ann")], None)


async def test_a_provider_that_hangs_keeps_no_call_from_its_meter(
    scene: InboxScene, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "CALL_DATA_MS", 1, raising=False)
    monkeypatch.setattr(call_limits, "CALL_FACT_APPLY_MS", 1_000)

    async def hang(run: CallRun) -> CallTruth:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(scene.adapter, "sweep", hang)
    await scene.receive(JOINED)
    assert scene.meter.applied == []
    for _ in range(3):
        advance(server, 4 * call_limits.CALL_FACT_LEASE_MS)
        await scene.take()
    assert scene.meter.applied == [(JOINED.key, "ann")]


# --- Replays ---------------------------------------------------------------------------


async def test_a_replay_applies_the_span_again(scene: InboxScene, server: TestServer) -> None:
    from_at = server.process.clock.now()
    await scene.receive(JOINED, LEFT)
    advance(server, 10_000)
    to_at = server.process.clock.now()
    await scene.receive(ENDED)
    first = list(scene.meter.applied)
    done = await scene.records.replay_facts(from_at, to_at, 0, to_at, 1)
    assert (done.facts, await scene.records.facts_waiting(from_at, to_at)) == (1, 1)
    done = await scene.records.replay_facts(from_at, to_at, done.last, to_at, 10)
    assert done.facts == 1
    assert (await scene.records.replay_facts(from_at, to_at, done.last, to_at, 10)).facts == 0
    scene.meter.applied.clear()
    assert await scene.take() == 2
    known = {*first, (ENDED.key, "ann")}
    assert set(scene.meter.applied) == known
    assert await scene.records.facts_waiting(from_at, to_at) == 0
