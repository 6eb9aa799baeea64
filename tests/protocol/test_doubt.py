"""Doubt: whether the sockets from before a join are still alive."""

import pytest

from protocol import limits
from protocol.metering.effects import RemoteStep
from protocol.metering.session import Grant
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from tests.protocol.bench import Bench, final, said
from tests.protocol.examples import CREDIT, NOW, session_of, terms_of

PROVEN_AT = NOW + 3_000
CAME_AT = PROVEN_AT + 8_000


def cut(**bench: object) -> Bench:
    """A client with 3 s proven, then cut for 8 s unnoticed."""
    made = Bench(**bench)  # type: ignore[arg-type]
    made.run(PROVEN_AT - NOW)
    if made.meter.sockets:
        made.alive()
    made.run(CAME_AT - PROVEN_AT)
    return made


def come(bench: Bench, *, has_others: bool = False) -> bool:
    """Another socket joins; answers whether the earlier sockets are to be probed."""
    asks = bench.meter.attach(bench.now, has_others=has_others)
    bench.drain()
    return asks


def test_what_nobody_proved_before_a_join_is_a_gap() -> None:
    bench = cut()
    assert come(bench)
    bench.run(limits.DOUBT_WAIT_MS - 1)
    assert bench.meter.asked is None
    bench.run(1)
    step = bench.step
    assert step.charge_micros == 3 * CREDIT // 60
    standing = step.standing
    assert (standing.phase, standing.elapsed_ms, standing.settled_ms) == (
        Phase.ACTIVE,
        3_000,
        3_000,
    )
    assert standing.segments == ((NOW, PROVEN_AT),)
    assert standing.gaps == ((PROVEN_AT, CAME_AT, False),)
    assert (standing.at, standing.run_at, standing.minute_at) == (CAME_AT, CAME_AT, NOW)
    bench.accept()
    assert not bench.meter.is_in_doubt
    assert bench.meter.elapsed_at(bench.now) == 3_000 + limits.DOUBT_WAIT_MS
    assert bench.meter.alive_at == CAME_AT


def test_an_unproven_first_minute_begins_with_the_join() -> None:
    bench = Bench()
    bench.run(8_000)
    assert come(bench)
    bench.run(limits.DOUBT_WAIT_MS)
    standing = bench.step.standing
    assert (standing.elapsed_ms, standing.segments) == (0, ())
    assert (standing.run_at, standing.minute_at) == (NOW + 8_000, NOW + 8_000)
    assert bench.step.charge_micros == 0


def test_an_answer_of_who_was_there_ends_the_doubt() -> None:
    bench = cut()
    assert come(bench)
    bench.run(40)
    bench.meter.confirm(PROVEN_AT, bench.now)
    answers = [bench.meter.is_in_doubt]  # it answers that its last proof of life is old
    bench.meter.confirm(bench.now, bench.now)
    assert [*answers, bench.meter.is_in_doubt] == [True, False]
    bench.run(2 * limits.DOUBT_WAIT_MS)
    assert bench.meter.asked is None
    assert bench.meter.elapsed_at(bench.now) == bench.now - NOW


def test_a_late_answer_to_a_step_ends_nothing_twice() -> None:
    bench = cut()
    assert come(bench)
    bench.run(limits.DOUBT_WAIT_MS)
    bench.meter.confirm(bench.now, bench.now)
    bench.accept()
    bench.run(limits.DOUBT_WAIT_MS)
    assert bench.meter.asked is None
    assert bench.meter.session.standing.gaps == ((PROVEN_AT, CAME_AT, False),)


@pytest.mark.parametrize("age_ms", [limits.DOUBT_MS, limits.DOUBT_MS + 1])
def test_a_fresh_proof_leaves_no_doubt(age_ms: int) -> None:
    bench = cut()
    bench.alive()
    bench.run(age_ms)
    assert come(bench) == (age_ms > limits.DOUBT_MS)


def test_a_promise_of_a_heartbeat_leaves_no_doubt() -> None:
    bench = cut()
    bench.meter.promise(bench.now + 1, bench.now)
    bench.run(limits.DOUBT_MS)
    assert not come(bench)


def test_where_gaps_are_billed_there_is_no_doubt() -> None:
    assert not come(cut(session=session_of(terms_of(gap="bill"))))


def test_who_is_alone_is_not_asked() -> None:
    assert not come(cut(sockets=0))


def test_the_first_to_join_here_asks_other_processes() -> None:
    bench = cut(sockets=0)
    assert come(bench, has_others=True)
    bench.meter.confirm(PROVEN_AT + 500, bench.now)
    bench.run(limits.DOUBT_WAIT_MS)
    assert bench.step.standing.gaps == ((PROVEN_AT + 500, CAME_AT, False),)


def test_a_silent_process_leaves_the_time_unchanged() -> None:
    bench = cut(sockets=0)
    assert come(bench, has_others=True)
    bench.run(limits.DOUBT_WAIT_MS)
    assert not bench.meter.is_in_doubt
    assert bench.meter.asked is None
    assert bench.meter.elapsed_at(bench.now) == bench.now - NOW


def test_in_doubt_no_more_is_shown_than_what_is_proven() -> None:
    bench = cut()
    assert come(bench)
    bench.run(500)
    assert bench.meter.fresh_until(bench.now) < bench.now
    assert bench.meter.shown_at(bench.now) == 3_000


def test_a_request_waits_until_it_is_known_what_was_proven() -> None:
    bench = cut()
    assert come(bench)
    bench.run(500)
    bench.ask(Event.PAUSE)
    assert bench.meter.asked is None
    bench.run(500)
    assert bench.step.standing.phase is Phase.ACTIVE
    bench.accept()
    standing = bench.step.standing
    assert (standing.phase, standing.elapsed_ms) == (Phase.PAUSED, 3_500)
    assert standing.segments == ((NOW, PROVEN_AT), (CAME_AT, CAME_AT + 500))


def test_the_same_gap_of_another_process_ends_the_doubt() -> None:
    bench = cut()
    assert come(bench)
    gaps = ((PROVEN_AT, CAME_AT, False),)
    moved = bench.moved_to(
        at=CAME_AT, run_at=CAME_AT, elapsed_ms=3_000, settled_ms=3_000, gaps=gaps
    )
    bench.meter.apply_remote(RemoteStep(moved), bench.now)
    bench.drain()
    assert not bench.meter.is_in_doubt
    bench.run(limits.DOUBT_WAIT_MS)
    assert bench.meter.session.standing.gaps == gaps


def test_shrunken_offer_to_dropped_time_leaves_the_session_covered() -> None:
    terms = terms_of(first_increment_ms=1_000, next_increment_ms=1_000)
    bench = cut(session=session_of(terms))
    assert come(bench)
    bench.run(limits.DOUBT_WAIT_MS - 1)
    bench.meter.recall(bench.now)
    bench.accept()
    bench.run(1)
    assert bench.step.standing.gaps
    assert bench.step.offers[0].grant.granted_ms == 3_000 + limits.DOUBT_WAIT_MS + 1_000
    assert bench.meter.counted_time.granted_ms > bench.meter.elapsed_at(bench.now)


# --- A limit during a doubt -------------------------------------------------------------

GRANT = final(11_500)
ENDS_AT = CAME_AT + 11_500 - 3_000
"""When the grant ends, if the 8 s before the join are a gap."""


def near_limit() -> Bench:
    """A socket joins half a second before the limit.

    The last proof is 8 s old.
    """
    bench = cut(session=session_of(grant=GRANT))
    assert come(bench)
    return bench


def keep(bench: Bench) -> None:
    """Redis makes the step, and leaves the final grant as it is."""
    bench.accept(None, granted_ms=GRANT.granted_ms, final="credits")


def stops(bench: Bench) -> list[tuple[int, int]]:
    """Instant and counted time of each stop that was announced."""
    return [
        (one.stopped_at, one.elapsed_ms)
        for one in said(bench.effects)
        if isinstance(one, messages.LimitReached)
    ]


def test_limit_waits_for_end_of_doubt() -> None:
    bench = near_limit()
    bench.run(limits.DOUBT_WAIT_MS)
    keep(bench)
    assert not stops(bench)
    bench.run(ENDS_AT - bench.now - 1)
    assert not stops(bench)
    bench.run(1)
    assert stops(bench) == [(ENDS_AT, 11_500)]


def test_answer_of_earlier_socket_announces_reached_limit() -> None:
    bench = near_limit()
    bench.run(600)
    bench.meter.confirm(bench.now, bench.now)
    bench.run(0)
    assert stops(bench) == [(NOW + 11_500, 11_500)]


def test_silent_process_delays_limit_until_deadline_of_doubt() -> None:
    bench = cut(session=session_of(grant=GRANT), sockets=0)
    assert come(bench, has_others=True)
    bench.run(limits.DOUBT_WAIT_MS - 1)
    assert not stops(bench)
    bench.run(1)
    assert stops(bench) == [(NOW + 11_500, 11_500)]


@pytest.mark.parametrize("late_ms", [0, 5_000, ENDS_AT - CAME_AT])
def test_limit_waits_for_gap_whose_answer_is_late(late_ms: int) -> None:
    """The limit waits for a gap whose answer is late.

    The step of the gap is on its way when the time before it seems to be at the limit.
    """
    bench = near_limit()
    bench.run(limits.DOUBT_WAIT_MS)
    bench.meter.confirm(bench.now, bench.now)  # too late: the step is on its way
    bench.run(late_ms)
    if bench.now < ENDS_AT:
        assert not stops(bench)
        keep(bench)
        bench.run(ENDS_AT - bench.now)
    assert stops(bench) == [(ENDS_AT, 11_500)]
    assert bench.step.standing.phase is (Phase.STOPPING if late_ms < 8_000 else Phase.ACTIVE)


def test_gap_is_recorded_before_limit() -> None:
    """A gap is recorded before the limit.

    A claim is on its way from before the end of the doubt until after the limit.
    """
    bench = near_limit()
    bench.meter.refresh(bench.now)
    bench.drain()
    bench.run(ENDS_AT - bench.now)
    assert stops(bench) == [(ENDS_AT, 11_500)]
    keep(bench)
    assert bench.step.standing.gaps == ((PROVEN_AT, CAME_AT, False),)
    keep(bench)
    standing = bench.step.standing
    assert (standing.phase, standing.elapsed_ms) == (Phase.STOPPING, 11_500)
    assert standing.segments == ((NOW, PROVEN_AT), (CAME_AT, ENDS_AT))
    assert stops(bench) == [(ENDS_AT, 11_500)]


def test_time_without_grant_ends_after_gap() -> None:
    bench = cut(session=session_of(grant=Grant(granted_ms=10_000)), uncovered_ms=1_500)
    assert come(bench)
    bench.run(ENDS_AT - bench.now - 1)
    assert not any(intent.event is Event.STOP for intent in bench.meter._intents)
    bench.run(1)
    assert any(intent.event is Event.STOP for intent in bench.meter._intents)


def test_lost_session_is_shown_as_far_as_proven() -> None:
    """A lost session is shown up to its last proof.

    An observer joins while an earlier step delays the step of the loss.
    """
    bench = cut()
    bench.meter.refresh(bench.now)
    bench.drain()
    bench.meter.detach(PROVEN_AT, bench.now)
    shown = [bench.meter.shown_at(bench.now)]
    bench.run(700)
    shown.append(bench.meter.shown_at(bench.now))
    bench.accept()
    assert bench.step.standing.phase is Phase.SUSPENDED
    shown.append(bench.meter.shown_at(bench.now))
    bench.accept()
    assert [*shown, bench.meter.shown_at(bench.now)] == [3_000] * 4


def test_join_before_loss_is_recorded_begins_a_gap() -> None:
    """Sockets join and go before a lost loss is repeated."""
    bench = Bench()
    bench.run(3_000)
    bench.meter.detach(bench.now, bench.now)
    assert bench.step.leaving
    bench.run(500)
    bench.meter.attach(bench.now)
    bench.run(100)
    bench.meter.detach(bench.now, bench.now)
    bench.run(400)
    assert not come(bench)
    assert bench.meter.alive_at == PROVEN_AT
    bench.meter.unanswered(bench.now)
    step = bench.step
    assert (step.standing.phase, step.standing.elapsed_ms) == (Phase.ACTIVE, 3_000)
    assert step.standing.gaps == ((PROVEN_AT, PROVEN_AT + 1_000, False),)
    bench.accept()
    assert bench.meter.asked is None
    assert not bench.meter.is_in_doubt
    assert bench.meter.alive_at == bench.now


def test_loss_that_is_recorded_after_a_join_is_the_gap() -> None:
    bench = Bench()
    bench.run(3_000)
    bench.meter.detach(bench.now, bench.now)
    bench.run(500)
    come(bench)
    bench.accept()
    assert not bench.meter.is_in_doubt
    assert bench.step.standing.gaps == ((PROVEN_AT, PROVEN_AT + 500, False),)


@pytest.mark.parametrize("ago_ms", [500, limits.DOUBT_MS, 3_000])
def test_last_socket_of_another_process_that_has_gone_is_no_proof(ago_ms: int) -> None:
    """Its process knows when the socket went, however short ago."""
    bench = cut()
    assert come(bench, has_others=True)
    came_at, gone_at = bench.now, bench.now - ago_ms
    bench.run(20)
    bench.meter.confirm(gone_at, bench.now, is_gone=True)
    assert bench.meter.is_in_doubt
    bench.run(limits.DOUBT_WAIT_MS)
    assert bench.step.standing.gaps == ((max(gone_at, PROVEN_AT), came_at, False),)


def test_living_socket_beside_one_that_has_gone_ends_the_doubt() -> None:
    bench = cut()
    assert come(bench, has_others=True)
    bench.meter.confirm(bench.now - 500, bench.now, is_gone=True)
    bench.meter.confirm(bench.now - 100, bench.now)
    assert not bench.meter.is_in_doubt
