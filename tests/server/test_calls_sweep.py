"""The sweep: what a provider's answer makes of a run."""

import itertools

import msgspec
import pytest

from protocol import limits
from server.calls import limits as call_limits
from server.calls.facts import FactKind, Presence, ProviderError
from server.calls.inbox import to_keep
from server.calls.sweep import facts_of_truth
from server.calls.timeline import timeline
from storage import limits as storage_limits
from storage.rows.call_clocks import KeptFact
from storage.rows.calls import SweepDue
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.call_facts import CALL, RUN, InboxScene, fact, truth

JOINED = fact()


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    return InboxScene(server.process)


def presence(from_at: int = 1_000, to_at: int | None = None, name: str = "ann") -> Presence:
    return Presence(participant=name, device=f"{name}-1", from_at_ms=from_at, to_at_ms=to_at)


def due(swept_at: int | None = None, ended_at: int | None = None) -> SweepDue:
    return SweepDue("stream", RUN, CALL, "", ended_at, swept_at, 0, 1_000)


async def test_lost_events_come_back_as_facts(scene: InboxScene, server: TestServer) -> None:
    await scene.receive(JOINED)
    assert await scene.sweep.sweep_due() == 0
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    scene.adapter.truth = truth(
        presence(to_at=61_000), presence(2_000, None, "ben"), ended=True, ended_at_ms=62_000
    )
    scene.meter.applied.clear()
    assert await scene.sweep.sweep_due() == 1
    kinds = [
        (row.kind, row.participant, row.at_ms)
        for row in [
            msgspec.json.decode(one.fact, type=type(JOINED))
            for one in await scene.records.facts_of("stream", RUN)
        ]
    ]
    assert kinds[1:] == [
        ("started", None, 500), ("joined", "ann", 1_000), ("left", "ann", 61_000),
        ("joined", "ben", 2_000), ("left", "ben", 62_000), ("ended", None, 62_000),
    ]  # fmt: skip
    assert {name for _, name in scene.meter.applied} == {"ann", "ben"}
    assert scene.meter.confirmed == [scene.adapter.truth]
    advance(server, 100 * call_limits.CALL_SWEEP_INTERVAL_MS)
    assert await scene.sweep.sweep_due() == 0, "a run that is over is settled"


async def test_a_run_that_lives_is_swept_again_and_keeps_nothing_twice(
    scene: InboxScene, server: TestServer
) -> None:
    await scene.receive(JOINED)
    scene.adapter.truth = truth(presence())
    for sweeps in (1, 2, 3):
        advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
        assert await scene.sweep.sweep_due() == 1
        assert await scene.sweep.sweep_due() == 0
        assert len(await scene.records.facts_of("stream", RUN)) == 3
        assert len(scene.meter.confirmed) == sweeps


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_run_that_nobody_is_in_is_swept_ever_more_rarely_and_no_more_at_last(
    scene: InboxScene, server: TestServer, is_over: bool
) -> None:
    begin = server.process.clock.now()
    await scene.receive(fact(at_ms=begin))
    if is_over:
        await scene.receive(fact(FactKind.ENDED, at_ms=begin))
    # The provider shows no session, and says no end.
    scene.adapter.truth = truth(has_history=False, started_at_ms=None)
    swept_at: list[int] = []
    while server.process.clock.now() < begin + 2 * limits.PROVIDED_SILENCE_MS_MAX:
        if await scene.sweep.sweep_due():
            swept_at.append(server.process.clock.now() - begin)
        step_ms = max(call_limits.CALL_SWEEP_SOON_MS, (server.process.clock.now() - begin) // 40)
        advance(server, step_ms)
    pauses = [later - earlier for earlier, later in itertools.pairwise(swept_at)]
    assert pauses[1] < 2 * call_limits.CALL_SWEEP_INTERVAL_MS
    assert len(swept_at) < (40 if is_over else 250)
    hours = swept_at[-1] // 3_600_000
    assert hours <= 1 if is_over else 6 * 24 < hours <= 8 * 24
    rows = await scene.records.facts_of("stream", RUN)
    ends = [one for one in rows if b'"ended"' in bytes(one.fact)]
    assert len(ends) == is_over


async def test_the_end_is_followed_by_a_sweep_soon(scene: InboxScene, server: TestServer) -> None:
    await scene.receive(JOINED, fact(FactKind.ENDED, at_ms=2_000))
    scene.adapter.truth = truth(presence(to_at=2_000), ended=True, ended_at_ms=2_000)
    advance(server, call_limits.CALL_SWEEP_SOON_MS)
    assert await scene.sweep.sweep_due() == 1


async def test_a_provider_that_fails_is_asked_less_and_less_often(
    scene: InboxScene, server: TestServer
) -> None:
    await scene.receive(JOINED)
    scene.adapter.truth = ProviderError("503")
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    assert await scene.sweep.sweep_due() == 1
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    assert await scene.sweep.sweep_due() == 1
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    assert await scene.sweep.sweep_due() == 0
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    scene.adapter.truth = truth(presence())
    assert await scene.sweep.sweep_due() == 1
    assert len(scene.meter.confirmed) == 1


async def test_one_look_has_a_budget(scene: InboxScene, server: TestServer) -> None:
    facts = [fact(call_session=f"run-{n}") for n in range(call_limits.CALL_SWEEPS_PER_LOOK_MAX + 3)]
    await scene.receive(*facts)
    scene.adapter.asked.clear()
    scene.adapter.truth = ProviderError("503")
    advance(server, call_limits.CALL_SWEEP_INTERVAL_MS)
    assert await scene.sweep.sweep_due() == call_limits.CALL_SWEEPS_PER_LOOK_MAX
    assert await scene.sweep.sweep_due() == 3
    assert len(scene.adapter.asked) == len({run.call_session for run in scene.adapter.asked})


def test_who_is_absent_left_at_the_last_proof() -> None:
    known = [JOINED, fact(participant="ben", at_ms=3_000)]
    answered = truth(presence(name="ben", from_at=3_000), has_history=False)
    made = facts_of_truth(answered, due(swept_at=60_000), known)
    left = [(one.participant, one.at_ms) for one in made if one.kind is FactKind.LEFT]
    assert left == [("ann", 60_000)]
    assert [one.is_guess for one in made if one.kind is FactKind.LEFT] == [True]
    assert not any(
        one.kind is FactKind.LEFT
        for one in facts_of_truth(
            truth(has_history=False, complete=False), due(swept_at=60_000), known
        )
    )


def test_who_joined_after_the_question_is_not_absent() -> None:
    late = fact(at_ms=100_001)
    made = facts_of_truth(truth(has_history=False), due(), [late])
    assert [one.kind for one in made] == [FactKind.STARTED]


def test_an_end_that_the_provider_forgot_is_at_the_last_proof() -> None:
    forgotten = truth(has_history=False, ended=True)
    made = facts_of_truth(forgotten, due(swept_at=60_000), [JOINED])
    assert [(one.kind, one.at_ms) for one in made if one.kind is FactKind.ENDED] == [
        (FactKind.ENDED, 60_000)
    ]
    never_swept = facts_of_truth(forgotten, due(), [JOINED, fact(at_ms=7_000, participant="ben")])
    assert never_swept[-1].at_ms == 7_000


async def test_a_leaving_is_found_however_many_facts_a_run_has(
    scene: InboxScene, server: TestServer
) -> None:
    now_ms = server.process.clock.now()
    many = [
        fact(FactKind.LEFT if number % 2 else FactKind.JOINED, "ben", at_ms=2_000 + number)
        for number in range(storage_limits.CALL_FACTS_READ_MAX)
    ]
    await scene.records.receive(
        [to_keep(one, None) for one in (JOINED, *many)],
        received_at=now_ms, due_at=now_ms + 60_000, sweep_at=None, soon_at=None,
    )  # fmt: skip
    scene.adapter.truth = truth(has_history=False)
    await scene.sweep.sweep(due())
    rows = await scene.records.facts_of("stream", RUN, participant="ann")
    kinds = [b'"left"' in bytes(row.fact) for row in rows]
    assert kinds == [False, True]


def test_a_device_that_one_answer_lacked_was_there_all_the_time() -> None:
    guessed = facts_of_truth(truth(has_history=False), due(swept_at=60_000), [JOINED])
    answered = truth(presence(), has_history=False, asked_at_ms=160_000)
    known = [JOINED, *(one for one in guessed if one.kind is FactKind.LEFT)]
    made = facts_of_truth(answered, due(swept_at=100_000), known)
    facts = {one.key: one for one in (*known, *made)}
    line = timeline(
        [
            KeptFact(one.device or "", one.kind, one.at_ms, is_guess=one.is_guess)
            for one in facts.values()
        ],
        160_000,
    )
    assert (line.is_present, line.stretches) == (True, ((1_000, 160_000),))
    again = facts_of_truth(answered, due(swept_at=160_000), list(facts.values()))
    assert {one.key for one in again} <= set(facts)
