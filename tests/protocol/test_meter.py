"""The meter counts time, asks for steps, and stops at limits."""

import msgspec
import pytest

from protocol import limits
from protocol.metering.effects import Ask, LeaveSession, Probe, Refuse, Show
from protocol.metering.projection import burn_line_of
from protocol.metering.session import Grant
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from tests.protocol.bench import Bench, final, only, said, starting
from tests.protocol.examples import (
    CREDIT,
    NOW,
    TERMS,
    account_of,
    session_of,
    standing_of,
    terms_of,
)

# --- Starting ---------------------------------------------------------------------------


def test_a_start_runs_from_its_grant() -> None:
    bench = starting()
    assert bench.step.before.standing.version == 0
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.present
    assert [type(record).__name__ for record in bench.step.records] == ["SessionStarted"]
    (show,) = only(bench.accept(), Show)
    assert show.token == "start"
    assert bench.meter.counting
    assert bench.meter.elapsed_at(NOW + 12_345) == 12_345


def test_a_start_that_is_refused_leaves_nothing() -> None:
    bench = starting()
    effects = bench.answer(session=bench.meter.session, refused_by="credits")
    assert only(effects, Refuse) == [Refuse("start", "credits")]
    assert only(effects, LeaveSession)
    assert bench.meter.asked is None


def test_a_refused_start_without_a_socket_leaves_nothing() -> None:
    bench = starting()
    bench.meter.detach(NOW, NOW)
    effects = bench.answer(session=bench.meter.session, refused_by="credits")
    assert bench.meter.asked is None
    assert only(effects, LeaveSession)


def test_a_second_start_is_a_join_and_notes_its_process() -> None:
    bench = starting()
    other = session_of()
    effects = bench.answer(session=other)
    (show,) = only(effects, Show)
    assert show.token == "start"
    assert bench.meter.session is other
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.present


def test_losing_a_race_for_free_time_is_still_a_start() -> None:
    terms = terms_of(free_ms=60_000, free_scope="day")
    bench = starting(terms, free_key="day:ann")
    bench.meter.free_left_ms = 60_000
    effects = bench.answer(session=bench.meter.session, free_left_ms=20_000)
    assert not only(effects, Show)
    assert bench.step.before.standing.version == 0
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.free_taken_ms == 20_000
    assert bench.step.records


def test_free_time_is_not_taken_once_time_has_cost() -> None:
    terms = terms_of(free_ms=60_000, free_scope="day")
    standing = standing_of(Phase.PAUSED, elapsed_ms=30_000, settled_ms=30_000, free_ms=10_000)
    bench = Bench(session_of(terms, standing, Grant(), free_key="day:ann"))
    bench.meter.free_left_ms = 50_000
    bench.ask(Event.RESUME)
    assert (bench.step.free_taken_ms, bench.step.standing.free_ms) == (0, 10_000)


# --- Running ----------------------------------------------------------------------------


def test_a_minute_is_claimed_when_it_is_proven() -> None:
    bench = Bench()
    assert only(bench.run(60_000), Probe) == [Probe()]
    assert bench.meter.asked is None
    bench.run(20)
    bench.alive()
    (minute,) = bench.step.minutes
    assert (minute.minute, minute.seconds, minute.credits_micros) == (0, 60, CREDIT)
    assert bench.step.standing.settled_ms == 60_020
    (told,) = said(bench.accept())
    assert isinstance(told, messages.Minute)
    assert (told.minute, told.credits) == (0, "1")


def test_without_proof_the_grant_is_extended_and_nothing_is_settled() -> None:
    bench = Bench()
    bench.run(61_000)
    assert bench.step.minutes == ()
    assert bench.step.standing.settled_ms == 0
    assert bench.step.offers[0].grant.granted_ms == 125_000
    assert bench.step.charge_micros == 0


def test_early_wake_ups_are_taken_as_on_time() -> None:
    bench = Bench(session_of(grant=final()))
    bench.run(0)
    assert bench.meter.timer() == NOW + 30_000
    bench.meter.handle_timer(NOW + 29_998)
    (reached,) = said(bench.drain())
    assert isinstance(reached, messages.LimitReached)
    assert reached.stopped_at == NOW + 30_000


def test_who_has_no_socket_claims_nothing() -> None:
    bench = Bench(sockets=0)
    effects = bench.run(200_000)
    assert not only(effects, Ask)
    assert bench.meter.elapsed_at(bench.now) == 125_000


def test_no_claim_asks_for_less_than_was_granted() -> None:
    """No claim asks for less than was granted.

    The grant is used while the answer is under way, and the answer may be late, or lost.
    """
    bench = Bench(session_of(grant=Grant(granted_ms=18_000, held_micros=300_000)))
    bench.run(14_000)
    bench.alive()
    step = bench.step
    assert step.keep is not None
    assert step.keep.grant.granted_ms == 18_000
    assert min(offer.grant.granted_ms for offer in step.offers) > 18_000


def test_a_repeated_claim_gives_back_after_a_lowered_limit() -> None:
    terms = msgspec.structs.replace(TERMS, price_micros=0, counts_minutes=True)
    held = Grant(granted_ms=120_000, held_minutes={"2026-05-01": 2})
    bench = Bench(session_of(terms=terms, grant=held))
    bench.run(10_500)
    bench.alive()
    bench.meter.refresh(bench.now)
    bench.drain()
    assert 60_000 in [offer.grant.granted_ms for offer in bench.step.offers]
    bench.meter.unanswered(bench.now)
    bench.drain()
    assert 60_000 in [offer.grant.granted_ms for offer in bench.step.offers]


def test_recall_gives_back_only_what_frees_something() -> None:
    bench = Bench()
    bench.run(10_500)
    bench.alive()
    assert bench.meter.recall(bench.now)
    bench.drain()
    assert [offer.grant.granted_ms for offer in bench.step.offers] == [12_000]
    bench.accept()
    assert not bench.meter.recall(bench.now)
    assert not only(bench.drain(), Ask)


def test_a_recall_returns_minutes_that_have_not_begun() -> None:
    terms = msgspec.structs.replace(TERMS, price_micros=0, counts_minutes=True)
    held = Grant(granted_ms=120_000, held_minutes={"2026-05-01": 2}, final="member_minutes")
    bench = Bench(session_of(terms=terms, grant=held))
    bench.run(10_500)
    bench.alive()
    assert not bench.meter.recall(bench.now)  # of credits there is nothing to give
    assert bench.meter.recall(bench.now, minutes=True)
    bench.drain()
    assert [offer.grant.granted_ms for offer in bench.step.offers] == [60_000]
    bench.accept()
    assert not bench.meter.recall(bench.now, minutes=True)


def test_a_recall_during_a_claim_waits_for_its_answer() -> None:
    bench = Bench()
    bench.run(61_000)
    bench.alive()
    bench.drain()
    assert bench.meter.asked is not None
    assert not bench.meter.recall(bench.now)
    bench.accept()
    assert [offer.grant.granted_ms for offer in bench.step.offers] == [62_000]
    bench.accept()
    assert bench.meter.asked is None


@pytest.mark.parametrize("ahead_ms", [1, 2, 400, 999])
def test_a_recalled_session_takes_nothing_while_a_spend_waits(
    ahead_ms: int,
) -> None:
    """A recalled session takes nothing while a spend waits.

    Otherwise the session would hold again what the recall freed, before the spend is tried again.
    """
    bench = Bench()
    bench.run(60_000 - ahead_ms)
    bench.alive()
    assert bench.meter.recall(bench.now)
    bench.drain()
    bench.accept()
    bench.run(ahead_ms)
    bench.alive()
    assert [offer.grant.granted_ms for offer in bench.step.offers] == [61_000]
    while bench.now < NOW + 60_000 - ahead_ms + limits.REST_YIELD_MS:
        if bench.meter.asked is not None:
            bench.accept()
        bench.run(100)
    while bench.meter.asked is None or bench.step.offers[-1].grant.granted_ms == 61_000:
        if bench.meter.asked is not None:
            bench.accept()
        bench.run(100)
    assert bench.step.offers[0].grant.granted_ms == 125_000


def test_a_recall_during_a_resume_waits_for_its_answer() -> None:
    """A recall during a resume waits for the resume's answer.

    The recall may have been made before the resume, which has held a whole minute since.
    """
    bench = Bench(session_of(standing=standing_of(Phase.PAUSED), grant=Grant()))
    bench.ask(Event.RESUME)
    assert not bench.meter.recall(bench.now)
    bench.accept()
    assert max(offer.grant.granted_ms for offer in bench.step.offers) <= 1_000


# --- Limits -----------------------------------------------------------------------------


def test_the_stop_is_said_at_once_and_recorded_then() -> None:
    bench = Bench(session_of(grant=final()))
    effects = bench.run(30_000)
    (reached,) = said(effects)
    assert isinstance(reached, messages.LimitReached)
    assert (reached.limit, reached.stopped_at) == ("credits", NOW + 30_000)
    assert not bench.meter.counting
    assert bench.meter.phase is Phase.STOPPING
    assert bench.step.standing.phase is Phase.STOPPING
    assert bench.step.standing.grace_until == NOW + 45_000
    bench.accept(None)
    assert bench.meter.timer() == NOW + 45_000


def test_a_late_timer_stops_where_the_grant_ended() -> None:
    bench = Bench(session_of(grant=final()))
    bench.meter.handle_timer(NOW + 30_007)
    (reached,) = said(bench.drain())
    assert isinstance(reached, messages.LimitReached)
    assert reached.stopped_at == NOW + 30_000
    assert bench.step.standing.elapsed_ms == 30_000
    assert bench.step.standing.segments == ((NOW, NOW + 30_000),)


def test_a_request_after_the_grant_ends_the_segment_there() -> None:
    bench = Bench(session_of(grant=final()))
    bench.now = NOW + 30_007  # the timer is late, and the client is faster
    bench.ask(Event.PAUSE)
    assert bench.step.standing.elapsed_ms == 30_000
    assert bench.step.standing.segments == ((NOW, NOW + 30_000),)


def test_unproven_time_before_the_stop_waits_for_proof() -> None:
    bench = Bench(session_of(grant=final()))
    bench.run(30_000)
    bench.accept(None)
    assert bench.meter.session.standing.settled_ms == 0
    assert bench.meter.session.grant.held_micros == 500_000
    bench.run(20)
    bench.alive()
    assert bench.step.standing.settled_ms == 30_000
    assert bench.step.charge_micros == 500_000
    assert bench.step.keep is None


def test_a_longer_grant_overtakes_a_stop() -> None:
    bench = Bench(session_of(grant=final()))
    bench.run(30_000)
    longer = bench.moved_to(Grant(granted_ms=65_000, held_micros=CREDIT))
    effects = bench.answer(session=longer)
    assert bench.meter.counting
    assert only(effects, Show)  # the clients had received a stop
    assert bench.meter.asked is not None  # which is recorded as sent
    assert bench.step.standing.phase is Phase.ACTIVE


def test_a_top_up_extends_a_final_grant() -> None:
    bench = Bench(session_of(grant=final()), account_of(CREDIT // 2))
    bench.run(10_000)
    bench.account.apply(2, 2 * CREDIT, 0, None, None)
    bench.meter.changed(bench.now)
    bench.drain()
    assert [offer.grant.granted_ms for offer in bench.step.offers[:2]] == [120_000, 65_000]
    assert bench.step.offers[0].rest


def test_one_increment_more_is_worth_asking_for() -> None:
    account = account_of(CREDIT // 2)
    account.lines["chat-1"] = burn_line_of(TERMS, 0, NOW, 0, running=True)
    # Another session burns so fast that the two together have half a second left.
    account.lines["chat-2"] = burn_line_of(
        terms_of(price_micros=100 * CREDIT, first_increment_ms=60_000), 0, NOW, 0, running=True
    )
    account.apply(2, 100 * CREDIT + CREDIT // 2, 0, None, None)
    bench = Bench(session_of(grant=final()), account)
    bench.run(29_500)
    bench.account.apply(3, 100 * CREDIT + CREDIT // 2 + 20_000, 0, None, None)
    bench.meter.changed(bench.now)
    bench.drain()
    assert bench.meter.asked is not None


def test_a_resume_without_credits_is_refused() -> None:
    bench = Bench(session_of(standing=standing_of(Phase.PAUSED), grant=Grant()))
    bench.ask(Event.RESUME, "again")
    effects = bench.answer(session=bench.meter.session, refused_by="credits")
    assert only(effects, Refuse) == [Refuse("again", "credits")]
    assert bench.meter.phase is Phase.PAUSED


# --- Requests ---------------------------------------------------------------------------


def test_a_stop_by_others_waits_for_the_clients_last_proof() -> None:
    bench = Bench()
    bench.run(10_000)
    assert only(bench.ask(Event.STOP, reason="operator"), Probe)
    assert bench.meter.asked is None
    bench.run(20)
    bench.alive()
    assert bench.step.standing.elapsed_ms == 10_020


def test_a_stop_by_others_does_not_wait_for_ever() -> None:
    bench = Bench()
    bench.run(4_000)
    bench.alive()
    bench.run(6_000)
    bench.ask(Event.STOP, reason="operator")
    bench.run(limits.STOP_PROOF_WAIT_MS)
    assert bench.step.standing.elapsed_ms == 4_000
    assert bench.step.standing.segments == ((NOW, NOW + 4_000),)


def test_what_changes_nothing_is_answered_at_once() -> None:
    bench = Bench()
    (show,) = only(bench.ask(Event.RESUME, "again"), Show)
    assert (show.token, show.only) == ("again", True)
    assert bench.meter.asked is None


def test_no_more_requests_wait_than_there_is_room_for() -> None:
    bench = Bench()
    bench.ask(Event.PAUSE)
    for number in range(limits.REQUESTS_WAITING_PER_SESSION_MAX):
        assert bench.meter.request(Event.PAUSE, NOW, number)
    assert not bench.meter.request(Event.PAUSE, NOW, "one too many")


def test_a_session_that_ended_elsewhere_refuses_what_waits() -> None:
    bench = Bench()
    bench.ask(Event.PAUSE, "pause")
    ended = bench.moved_to(Grant(), phase=Phase.ENDED, ended_at=NOW, reason="client")
    effects = bench.answer(session=ended)
    assert only(effects, Refuse) == [Refuse("pause", None)]
    assert only(effects, LeaveSession)
