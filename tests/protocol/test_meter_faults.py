"""The meter when things go wrong: lost sockets, an absent Redis, races."""

from typing import Any

import pytest

from protocol.metering.effects import LeaveSession, Probe, Refuse, RemoteStep, Show
from protocol.metering.session import Grant, SessionState, Standing
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from tests.protocol.bench import Bench, final, only, said
from tests.protocol.examples import (
    CREDIT,
    NOW,
    session_of,
    standing_of,
    terms_of,
)

# --- Leaving and coming back ------------------------------------------------------------


def lost(**changes: Any) -> Standing:
    """A session that was lost at half a minute."""
    given: dict[str, Any] = {
        "elapsed_ms": 30_000,
        "settled_ms": 30_000,
        "charged_micros": CREDIT // 2,
        "at": NOW - 10_000,
        "lost_at": NOW - 10_000,
        "grace_until": NOW + 20_000,
        "segments": ((NOW - 40_000, NOW - 10_000),),
    }
    return standing_of(Phase.SUSPENDED, **{**given, **changes})


def test_the_last_leave_ends_time_at_its_last_proof() -> None:
    bench = Bench()
    bench.run(25_000)
    bench.alive()
    bench.run(12_000)
    bench.meter.detach(NOW + 25_000, bench.now)
    bench.drain()
    step = bench.step
    assert step.leaving
    assert (step.standing.phase, step.standing.elapsed_ms) == (Phase.SUSPENDED, 25_000)
    assert step.standing.segments == ((NOW, NOW + 25_000),)
    assert step.standing.grace_until == NOW + 37_000 + 30_000


def test_an_older_proof_keeps_remotely_settled_time() -> None:
    bench = Bench()
    bench.run(50_000)
    bench.alive()
    bench.now = NOW + 60_020
    further = bench.moved_to(
        Grant(granted_ms=125_000),
        elapsed_ms=60_020,
        at=NOW + 60_020,
        settled_ms=60_000,
        minutes_kept=1,
        minute_at=NOW + 60_000,
    )
    bench.meter.apply_remote(RemoteStep(further), bench.now)
    bench.now = NOW + 80_000
    bench.meter.detach(NOW + 50_000, bench.now)
    bench.drain()
    assert bench.step.standing.elapsed_ms == 60_000
    assert bench.step.standing.segments == ((NOW, NOW + 60_000),)
    assert bench.step.standing.lost_at == NOW + 60_000


def test_leaving_others_settles_the_own_proven_time() -> None:
    bench = Bench()
    bench.run(25_000)
    bench.meter.detach(bench.now, bench.now)
    bench.drain()
    effects = bench.answer(session=None, left=True)
    assert not only(effects, LeaveSession)
    assert bench.step.standing.settled_ms == 25_000
    assert not bench.step.present
    assert only(bench.accept(), LeaveSession)


def test_leaving_others_with_nothing_to_prove_makes_no_step() -> None:
    bench = Bench(session_of(standing=standing_of(Phase.PAUSED), grant=Grant()))
    bench.meter.detach(NOW, NOW)
    bench.drain()
    assert only(bench.answer(session=None, left=True), LeaveSession)


@pytest.mark.parametrize("left", [True, False])
def test_a_socket_that_joins_while_its_process_leaves_brings_it_back(left: bool) -> None:
    bench = Bench()
    bench.run(5_000)
    bench.meter.detach(bench.now, bench.now)
    bench.meter.attach(bench.now)
    bench.drain()
    effects = bench.answer(session=None, left=True) if left else bench.accept()
    assert not only(effects, LeaveSession)
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.present


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_socket_that_joins_during_the_last_claim_is_noted(is_answered: bool) -> None:
    """A socket that joins during the last claim is noted.

    Redis may have noted the join before the leave that removed the process.
    """
    bench = Bench()
    bench.run(25_000)
    bench.meter.detach(bench.now, bench.now)
    bench.drain()
    if is_answered:
        bench.answer(session=None, left=True)  # the last claim follows
    leaving = bench.step
    assert not leaving.present
    bench.meter.attach(bench.now)
    bench.drain()
    if is_answered:
        bench.accept()
    else:
        bench.meter.unanswered(bench.now)
        bench.drain()
    assert bench.step.present
    bench.accept()
    assert bench.meter.asked is None


def test_a_process_that_redis_does_not_list_is_noted_again() -> None:
    bench = Bench()
    bench.meter.note_again(bench.now)
    bench.drain()
    assert bench.step.present
    bench.accept()
    assert bench.meter.asked is None


def test_a_socket_that_is_replaced_in_time_is_not_missed() -> None:
    bench = Bench()
    bench.ask(Event.PAUSE)
    bench.meter.detach(NOW, NOW)
    bench.meter.attach(NOW)
    bench.accept()
    assert bench.meter.asked is None
    assert bench.meter.session.standing.lost_at is None


def test_who_comes_back_is_answered_when_time_runs_again() -> None:
    bench = Bench(session_of(standing=lost(), grant=Grant()), sockets=0)
    bench.meter.attach(NOW)
    assert bench.meter.entitle("join")
    bench.drain()
    assert bench.step.standing.elapsed_ms == 30_000
    assert bench.step.standing.gaps == ((NOW - 10_000, NOW, False),)
    (show,) = only(bench.accept(), Show)
    assert show.token == "join"


def test_returning_without_credits_is_answered_with_the_stop() -> None:
    bench = Bench(session_of(standing=lost(), grant=Grant()), sockets=0)
    bench.meter.attach(NOW)
    assert bench.meter.entitle("join")
    bench.drain()
    effects = bench.answer(session=bench.meter.session, refused_by="credits")
    (reached,) = said(effects)
    assert isinstance(reached, messages.LimitReached)
    assert bench.step.standing.phase is Phase.STOPPING
    (show,) = only(bench.accept(), Show)
    assert show.token == "join"


def test_a_billed_gap_that_was_not_granted_is_not_used() -> None:
    terms = terms_of(gap="bill")
    bench = Bench(session_of(terms, lost(), Grant()), sockets=0)
    bench.meter.attach(NOW)
    bench.drain()
    longest = bench.step.offers[0].grant.granted_ms
    assert longest >= 40_000
    part = [offer.grant.granted_ms for offer in bench.step.offers].index(33_000)
    bench.accept(part, final="credits")
    assert bench.meter.elapsed_at(NOW) == 33_000
    (reached,) = said(bench.run(0))
    assert isinstance(reached, messages.LimitReached)
    assert reached.stopped_at == NOW - 7_000
    # The grace to save begins when the client receives the stop.
    assert bench.step.standing.grace_until == NOW + 15_000


def test_who_was_taken_for_dead_brings_its_session_back() -> None:
    bench = Bench()
    bench.run(7_000)
    swept = bench.moved_to(
        Grant(), phase=Phase.SUSPENDED, elapsed_ms=1_000, at=NOW + 1_000, lost_at=NOW + 1_000
    )
    bench.meter.apply_remote(RemoteStep(swept), bench.now)
    bench.drain()
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.present


# --- Redis is away ----------------------------------------------------------------------


def test_without_redis_time_runs_on_for_a_while_and_then_stops() -> None:
    bench = Bench()
    bench.run(62_000)
    assert bench.meter.asked is not None
    for _ in range(150):
        bench.run(2_000)
        bench.alive()
        bench.meter.unanswered(bench.now)
        bench.drain()
    # 65 s were granted, 60 s more are allowed; then counting stands still.
    assert bench.meter.elapsed_at(bench.now) == 125_000
    step = bench.step
    assert (step.standing.phase, step.standing.reason) == (Phase.ENDED, "unavailable")
    assert step.standing.elapsed_ms == 125_000
    assert step.standing.segments == ((NOW, NOW + 125_000),)
    assert step.standing.uncovered_ms == 60_000
    assert len(step.minutes) == 3


def test_nothing_is_due_where_counting_has_stopped_without_redis() -> None:
    terms = terms_of(free_ms=600_000)
    grant = Grant(granted_ms=65_000)
    bench = Bench(session_of(terms, standing_of(free_ms=600_000), grant))
    bench.run(700_000)  # the end of free time lies beyond what can be reached
    assert bench.meter.elapsed_at(bench.now) == 125_000


def test_a_remote_stop_waits_for_the_step_under_way() -> None:
    bench = Bench()
    bench.run(61_000)
    assert bench.meter.asked is not None
    bench.ask(Event.STOP, reason="operator")
    bench.run(30_000)
    assert bench.meter.asked.standing.phase is Phase.ACTIVE


def test_what_is_charged_beyond_the_hold_is_not_held_again() -> None:
    bench = Bench()
    bench.run(62_000)
    bench.now = NOW + 100_000
    bench.alive()
    bench.meter.unanswered(bench.now)
    bench.drain()
    step = bench.step
    assert step.standing.settled_ms == 100_000
    assert step.standing.uncovered_ms == 35_000
    assert step.keep is not None
    assert step.keep.grant.held_micros == 0
    assert step.keep.grant.granted_ms == 100_000


def unproven() -> Bench:
    """Ten seconds beyond a grant, of which nothing is proven.

    More has been granted since.
    """
    bench = Bench()
    bench.run(62_000)
    bench.now = NOW + 75_000
    bench.meter.unanswered(bench.now)
    assert (bench.step.standing.settled_ms, bench.step.standing.uncovered_ms) == (0, 0)
    bench.accept()
    assert bench.meter.session.grant.granted_ms > 75_000
    return bench


def test_late_proven_time_without_a_grant_is_uncovered() -> None:
    bench = unproven()
    bench.meter.alive(NOW + 70_000, bench.now)
    assert bench.step.standing.uncovered_ms == 5_000
    bench.accept()
    bench.run(3_000)
    bench.ask(Event.PAUSE)
    assert (bench.step.standing.elapsed_ms, bench.step.standing.uncovered_ms) == (78_000, 10_000)
    assert not bench.step.standing.ungranted


def test_unproven_time_without_a_grant_is_not_uncovered() -> None:
    bench = unproven()
    bench.meter.detach(NOW + 1_000, bench.now)
    standing = bench.step.standing
    assert (standing.elapsed_ms, standing.uncovered_ms, standing.ungranted) == (1_000, 0, ())


def stopped_elsewhere(bench: Bench, told_at: int = NOW + 30_000) -> None:
    """Another process was faster with a stop at half a minute.

    That process knew no proof of life.
    """
    stopped_at, bench.now = NOW + 30_000, told_at
    stopping = bench.moved_to(
        phase=Phase.STOPPING,
        elapsed_ms=30_000,
        at=stopped_at,
        limit="credits",
        grace_until=stopped_at + 15_000,
        segments=((NOW, stopped_at),),
    )
    bench.meter.apply_remote(RemoteStep(stopping), bench.now)
    bench.drain()


def test_a_meter_without_sockets_waits_for_a_remote_stop() -> None:
    bench = Bench(session_of(grant=final()), sockets=0)
    assert said(bench.run(40_000)) == []
    assert (bench.meter.asked, bench.meter.notices.seq) == (None, 0)
    assert bench.meter.elapsed_at(bench.now) == 30_000
    stopped_elsewhere(bench, told_at=bench.now)
    assert bench.meter.phase is Phase.STOPPING


def test_who_hears_the_client_proves_what_was_stopped_elsewhere() -> None:
    bench = Bench(session_of(grant=final()))
    stopped_elsewhere(bench)
    assert only(bench.effects, Probe)
    bench.alive()
    assert bench.step.standing.settled_ms == 30_000


def test_after_a_remote_stop_proven_time_is_settled_at_once() -> None:
    bench = Bench(session_of(grant=final()))
    bench.meter.alive(NOW + 20_000, NOW + 20_000)
    stopped_elsewhere(bench)
    assert (bench.step.standing.phase, bench.step.standing.settled_ms) == (Phase.STOPPING, 20_000)
    bench.accept()
    assert bench.meter.asked is None


def test_after_an_outage_a_meter_without_sockets_waits() -> None:
    bench = Bench(session_of(grant=final()), sockets=0)
    bench.run(60_000)
    stopped_elsewhere(bench, told_at=bench.now)  # received too late
    assert bench.meter.timer() == bench.now + 10_000
    bench.run(10_000)
    assert bench.step.standing.phase is Phase.ENDED
    bench.run(20_000)
    bench.meter.unanswered(bench.now)
    assert bench.meter.asked is None
    bench.run(10_000)
    assert bench.step.standing.phase is Phase.ENDED


def test_an_answer_that_was_lost_is_asked_for_anew() -> None:
    bench = Bench()
    bench.ask(Event.PAUSE, "pause")
    asked = bench.step
    assert bench.meter.abandon() == ["pause"]
    bench.meter.unanswered(bench.now)
    bench.drain()
    assert bench.step.before is asked.before
    assert bench.step.standing == asked.standing
    # The step was made: the answer is the resulting session, and no further step is needed.
    done = SessionState(asked.before.identity, asked.standing, Grant())
    bench.answer(session=done)
    assert bench.meter.phase is Phase.PAUSED
    assert bench.meter.asked is None


def test_a_delayed_pause_stops_at_the_proven_time() -> None:
    bench = Bench()
    bench.run(5_000)
    bench.ask(Event.PAUSE)
    bench.ask(Event.RESUME)
    bench.run(20_000)
    bench.meter.unanswered(bench.now)
    bench.drain()
    step = bench.step
    assert (step.standing.phase, step.standing.at) == (Phase.PAUSED, NOW + 5_000)
    assert step.standing.elapsed_ms == step.standing.settled_ms == 5_000
    assert step.standing.segments == ((NOW, NOW + 5_000),)
    # The request to go on came then, too: it proves nothing of what has passed since.
    bench.accept()
    assert bench.step.standing.phase is Phase.ACTIVE
    assert (bench.step.standing.elapsed_ms, bench.step.standing.at) == (5_000, bench.now)


def test_an_older_resume_does_not_lift_the_stop() -> None:
    bench = Bench(session_of(grant=final()))
    bench.run(10_000)
    bench.meter.refresh(bench.now)
    bench.drain()
    bench.ask(Event.RESUME, "resume")
    bench.run(30_000)
    assert bench.meter.phase is Phase.STOPPING
    bench.meter.unanswered(bench.now)
    bench.drain()
    assert bench.step.standing.phase is Phase.STOPPING
    bench.accept()
    assert bench.meter.phase is Phase.STOPPING
    assert only(bench.effects, Refuse) == [Refuse("resume", "credits")]
