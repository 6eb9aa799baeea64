"""The meter when things go wrong: sockets that go, a Redis that is away, races."""

from typing import Any

import msgspec
import pytest

from protocol.metering.effects import Leave, Move, Probe, Push, Refuse, Show
from protocol.metering.notices import Minutes, sequence_number
from protocol.metering.projection import line_of
from protocol.metering.session import Grant, Session, Standing
from protocol.metering.snapshots import snapshot
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from protocol.wire.codec import encode
from tests.protocol.bench import Bench, final, numbers, only, said
from tests.protocol.examples import (
    CREDIT,
    NOW,
    TERMS,
    account_of,
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


def test_the_last_socket_takes_the_time_with_it_to_its_last_proof() -> None:
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


def test_what_another_process_settled_is_not_lost_with_an_older_proof() -> None:
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
    bench.meter.moved(Move(further), bench.now)
    bench.now = NOW + 80_000
    bench.meter.detach(NOW + 50_000, bench.now)
    bench.drain()
    assert bench.step.standing.elapsed_ms == 60_000
    assert bench.step.standing.segments == ((NOW, NOW + 60_000),)
    assert bench.step.standing.lost_at == NOW + 60_000


def test_who_leaves_others_behind_settles_what_it_alone_can_prove() -> None:
    bench = Bench()
    bench.run(25_000)
    bench.meter.detach(bench.now, bench.now)
    bench.drain()
    effects = bench.answer(session=None, left=True)
    assert not only(effects, Leave)
    assert bench.step.standing.settled_ms == 25_000
    assert not bench.step.present
    assert only(bench.accept(), Leave)


def test_who_leaves_others_behind_with_nothing_to_prove_just_leaves() -> None:
    bench = Bench(session_of(standing=standing_of(Phase.PAUSED), grant=Grant()))
    bench.meter.detach(NOW, NOW)
    bench.drain()
    assert only(bench.answer(session=None, left=True), Leave)


@pytest.mark.parametrize("left", [True, False])
def test_a_socket_that_joins_while_its_process_leaves_brings_it_back(left: bool) -> None:
    bench = Bench()
    bench.run(5_000)
    bench.meter.detach(bench.now, bench.now)
    bench.meter.attach(bench.now)
    bench.drain()
    effects = bench.answer(session=None, left=True) if left else bench.accept()
    assert not only(effects, Leave)
    assert bench.step.standing.phase is Phase.ACTIVE
    assert bench.step.present


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


def test_who_comes_back_to_nothing_is_answered_with_the_stop() -> None:
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
    # The grace to save begins when the client hears of it.
    assert bench.step.standing.grace_until == NOW + 15_000


def test_who_was_taken_for_dead_brings_its_session_back() -> None:
    bench = Bench()
    bench.run(7_000)
    swept = bench.moved_to(
        Grant(), phase=Phase.SUSPENDED, elapsed_ms=1_000, at=NOW + 1_000, lost_at=NOW + 1_000
    )
    bench.meter.moved(Move(swept), bench.now)
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


def test_a_stop_by_others_is_not_due_while_a_step_is_on_its_way() -> None:
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
    """Ten seconds beyond a grant, of which nothing is proven; more has been granted since."""
    bench = Bench()
    bench.run(62_000)
    bench.now = NOW + 75_000
    bench.meter.unanswered(bench.now)
    assert (bench.step.standing.settled_ms, bench.step.standing.uncovered_ms) == (0, 0)
    bench.accept()
    assert bench.meter.session.grant.granted_ms > 75_000
    return bench


def test_time_used_without_a_grant_is_uncovered_however_late_it_is_proven() -> None:
    bench = unproven()
    bench.meter.alive(NOW + 70_000, bench.now)
    assert bench.step.standing.uncovered_ms == 5_000
    bench.accept()
    bench.run(3_000)
    bench.ask(Event.PAUSE)
    assert (bench.step.standing.elapsed_ms, bench.step.standing.uncovered_ms) == (78_000, 10_000)
    assert not bench.step.standing.ungranted


def test_time_without_a_grant_that_is_never_proven_is_not_uncovered() -> None:
    bench = unproven()
    bench.meter.detach(NOW + 1_000, bench.now)
    standing = bench.step.standing
    assert (standing.elapsed_ms, standing.uncovered_ms, standing.ungranted) == (1_000, 0, ())


def stopped_elsewhere(bench: Bench, told_at: int = NOW + 30_000) -> None:
    """Another process was faster with a stop at half a minute, and knew of no proof."""
    stopped_at, bench.now = NOW + 30_000, told_at
    stopping = bench.moved_to(
        phase=Phase.STOPPING,
        elapsed_ms=30_000,
        at=stopped_at,
        limit="credits",
        grace_until=stopped_at + 15_000,
        segments=((NOW, stopped_at),),
    )
    bench.meter.moved(Move(stopping), bench.now)
    bench.drain()


def test_who_hears_no_client_says_no_stop_and_stands_still_until_it_is_told() -> None:
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


def test_a_part_of_what_was_stopped_elsewhere_is_settled_as_soon_as_it_is_proven() -> None:
    bench = Bench(session_of(grant=final()))
    bench.meter.alive(NOW + 20_000, NOW + 20_000)
    stopped_elsewhere(bench)
    assert (bench.step.standing.phase, bench.step.standing.settled_ms) == (Phase.STOPPING, 20_000)
    bench.accept()
    assert bench.meter.asked is None


def test_who_hears_no_client_waits_after_an_outage_too_for_those_who_do() -> None:
    bench = Bench(session_of(grant=final()), sockets=0)
    bench.run(60_000)
    stopped_elsewhere(bench, told_at=bench.now)  # Redis heard of it when the grace was over
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
    # It was made: the answer is what it left, and there is nothing more to do.
    done = Session(asked.before.identity, asked.standing, Grant())
    bench.answer(session=done)
    assert bench.meter.phase is Phase.PAUSED
    assert bench.meter.asked is None


def test_a_pause_that_had_to_wait_stops_the_time_where_it_is_proven() -> None:
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


def test_a_request_to_go_on_that_is_older_than_the_stop_does_not_lift_it() -> None:
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


# --- Notices ----------------------------------------------------------------------------


def notice(seq: int, kind: str = "limit_warning", **fields: Any) -> bytes:
    """A notice as another process recorded it."""
    given: dict[str, Any] = {
        "type": kind,
        "session_id": "chat-1",
        "seq": seq,
        "limit": "credits",
        "remaining_ms": 59_000,
    }
    if kind == "limit_warning":
        given["threshold_ms"] = 60_000
    return msgspec.json.encode({**given, **fields})


def warned_bench() -> Bench:
    """A session that has said, and not recorded yet, that a minute is left."""
    account = account_of(CREDIT)
    account.lines["chat-1"] = line_of(TERMS, 0, NOW, 0, running=True)
    grant = Grant(granted_ms=60_000, held_micros=CREDIT, final="credits")
    standing = standing_of(free_over=True, warned={"credits": 300_000}, seq=1)
    terms = terms_of(warn_at_ms=(300_000, 60_000, 10_000))
    bench = Bench(session_of(terms, standing, grant), account)
    bench.run(0)
    assert numbers(bench.effects) == [2]
    return bench


def test_what_was_said_is_recorded_by_the_next_step() -> None:
    bench = warned_bench()
    assert len(bench.step.notices) == 1
    assert bench.step.standing.seq == 2
    assert bench.step.standing.warned == {"credits": 60_000}


def test_a_reading_that_shows_the_step_on_its_way_takes_no_later_notice() -> None:
    bench = warned_bench()
    made = Session(bench.step.before.identity, bench.step.standing, bench.meter.session.grant)
    bench.meter.read(made, bench.step.notices, bench.now)
    assert numbers(bench.run(50_000)) == [3]
    bench.accept()
    # The answer records what its own step said, and nothing that was said since.
    assert [sequence_number(one) for one in bench.meter.notices.unrecorded] == [3]


def test_the_same_notice_of_another_process_is_not_said_twice() -> None:
    bench = warned_bench()
    other = bench.moved_to(seq=2, warned={"credits": 60_000})
    effects = bench.answer(session=other, notices=(notice(2),))
    assert said(effects) == []
    assert bench.meter.notices.unrecorded == []


def test_what_another_process_said_is_said_here_too() -> None:
    bench = Bench()
    other = bench.moved_to(seq=1)
    bench.meter.moved(Move(other, (notice(1),)), NOW)
    assert numbers(bench.drain()) == [1]


def test_different_notices_under_one_number_are_told_apart_from_there() -> None:
    bench = warned_bench()
    reached = notice(2, "limit_reached", stopped_at=NOW, grace_ms=15_000)
    stopping = bench.moved_to(
        Grant(), seq=2, phase=Phase.STOPPING, limit="credits", grace_until=NOW + 15_000
    )
    effects = bench.answer(session=stopping, notices=(reached,))
    # Clients here heard a warning as number 2; the stop has a number that is new to them.
    (told,) = said(effects)
    assert isinstance(told, messages.LimitReached)
    assert told.seq == 3


def test_a_step_that_ends_the_session_has_the_next_number_to_itself() -> None:
    account = account_of(CREDIT)
    account.lines["chat-1"] = line_of(TERMS, 0, NOW, 0, running=True)
    bench = Bench(session_of(terms_of(warn_at_ms=(300_000, 60_000))), account)
    bench.run(0)
    bench.accept()
    seen = len(bench.effects)
    bench.ask(Event.STOP)
    stopped = bench.step.notices[-1]
    bench.account.apply(2, CREDIT // 60, 0, None, None)
    bench.meter.changed(NOW)  # a warning is due, and is not said any more
    bench.run(5_000)
    assert said(bench.effects[seen:]) == []
    assert stopped in [push.message for push in only(bench.accept(), Push)]


def test_what_was_said_before_a_pause_is_recorded() -> None:
    bench = warned_bench()
    # The warning's own claim was overtaken by a pause that another process made.
    paused = bench.moved_to(Grant(), phase=Phase.PAUSED)
    bench.answer(session=paused)
    assert bench.meter.phase is Phase.PAUSED
    assert bench.step.standing.phase is Phase.PAUSED
    assert len(bench.step.notices) == 1


def test_who_missed_a_message_asks_for_what_it_missed() -> None:
    bench = Bench()
    version = bench.meter.session.standing.version
    later = bench.moved_to(seq=2)
    later = msgspec.structs.replace(
        later, standing=msgspec.structs.replace(later.standing, version=version + 2)
    )
    bench.meter.moved(Move(later, (notice(2),)), NOW)
    effects = bench.drain()
    assert said(effects) == []
    assert bench.step.before.standing.version == version
    news = bench.answer(session=later, notices=(notice(1, threshold_ms=300_000), notice(2)))
    assert numbers(news) == [1, 2]


@pytest.mark.parametrize("answered", [True, False])
def test_a_step_of_others_that_is_told_before_the_answer_to_ones_own_is_not_missed(
    answered: bool,
) -> None:
    bench = Bench()
    bench.ask(Event.PAUSE)
    paused = bench.step.standing
    later = bench.moved_to(Grant(), seq=1)
    standing = msgspec.structs.replace(paused, version=paused.version + 1, seq=1)
    later = msgspec.structs.replace(later, standing=standing)
    minute = messages.Minute(session_id="chat-1", minute=0, seconds=60, credits="1")
    bench.meter.moved(Move(later, (notice(1),), minutes=(encode(minute),)), NOW)
    assert said(bench.drain()) == []
    if answered:
        assert said(bench.accept())[-2:] == [said([Push(notice(1))])[0], minute]
        assert bench.meter.session == later
        assert bench.meter.asked is None
    else:
        # It is not known what came first: what is asked next is answered with all that was.
        bench.meter.unanswered(bench.now)
        assert said(bench.drain()) == [minute]  # no later answer carries it
        assert numbers(bench.answer(session=later, notices=(notice(1),))) == [1]


def minute_message(minute: int) -> messages.Minute:
    return messages.Minute(session_id="chat-1", minute=minute, seconds=60, credits="1")


@pytest.mark.parametrize("answered_first", [True, False])
def test_minutes_of_another_process_are_sent_once_in_either_order(answered_first: bool) -> None:
    bench = Bench()
    bench.ask(Event.PAUSE)
    theirs = bench.moved_to(Grant(), seq=0)
    told = Move(theirs, minutes=(encode(minute_message(0)),))
    if answered_first:
        sent = said(bench.answer(session=theirs))
        bench.meter.moved(told, bench.now)
    else:
        bench.meter.moved(told, bench.now)
        sent = said(bench.drain()) + said(bench.answer(session=theirs))
    bench.meter.moved(told, bench.now)
    sent += said(bench.drain())
    assert [it for it in sent if isinstance(it, messages.Minute)] == [minute_message(0)]


def test_each_minute_is_sent_once_whatever_came_between() -> None:
    minutes = Minutes(minutes_kept=2)
    late = [encode(minute_message(number)) for number in range(300)]
    assert minutes.take(tuple(late[:2])) == []  # they were complete before
    assert minutes.take((late[3],)) == [late[3]]
    assert minutes.take((late[2], late[3])) == [late[2]]
    assert minutes.take(tuple(late[4:260])) == late[4:260]
    assert minutes.take(tuple(late[:260])) == []
    assert minutes.take((late[261],)) == [late[261]]
    assert minutes.take((late[260], late[261])) == [late[260]]


def test_free_time_ends_once() -> None:
    terms = terms_of(free_ms=20_000)
    bench = Bench(session_of(terms))
    effects = bench.run(30_000)
    (told,) = [message for message in said(effects) if isinstance(message, messages.FreeTime)]
    assert (told.free_remaining_ms, told.paid) == (0, True)
    assert bench.meter.paid(20_000)
    assert not bench.meter.paid(19_999)


# --- What no tick shows -----------------------------------------------------------------


def stops_elsewhere(bench: Bench, elapsed_ms: int = 30_000) -> Move:
    """Another process's record of the stop at the end of a final grant, with what it said."""
    at = NOW + elapsed_ms
    stopped = bench.moved_to(
        Grant(), phase=Phase.STOPPING, elapsed_ms=elapsed_ms, settled_ms=elapsed_ms, at=at,
        seq=1, limit="credits", grace_until=at + 15_000,
    )  # fmt: skip
    reached = messages.LimitReached(
        session_id="chat-1", seq=1, limit="credits", stopped_at=at, elapsed_ms=elapsed_ms,
        grace_ms=15_000,
    )  # fmt: skip
    return Move(stopped, (encode(reached),))


def shown_to_all(effects: list[Any]) -> list[Show]:
    """The snapshots that every socket gets."""
    return [show for show in only(effects, Show) if not show.only]


def test_the_stop_is_shown_with_what_was_counted_as_soon_as_it_is_said() -> None:
    bench = Bench(session_of(grant=final()))
    effects = bench.run(30_000)
    (reached,) = said(effects)
    assert isinstance(reached, messages.LimitReached)
    assert reached.elapsed_ms == 30_000
    assert len(shown_to_all(effects)) == 1
    assert snapshot(bench.meter, bench.now).state == "stopping"
    assert not shown_to_all(bench.accept(None))  # nothing that is seen has changed since


@pytest.mark.parametrize("heard", ["told", "answered"])
@pytest.mark.parametrize("is_said_here", [True, False])
def test_a_stop_that_others_record_is_shown_here(heard: str, is_said_here: bool) -> None:
    bench = Bench(session_of(grant=final()))
    if is_said_here:
        bench.run(30_000)
    else:
        bench.run(29_999)
        bench.ask(Event.RESUME, "join")
        bench.meter.refresh(bench.now)
        bench.drain()
    seen = len(bench.effects)
    move = stops_elsewhere(bench)
    bench.now = NOW + 30_001
    if heard == "told":
        bench.meter.moved(move, bench.now)
        bench.drain()
    else:
        bench.answer(session=move.session, notices=move.notices)
    assert snapshot(bench.meter, bench.now).state == "stopping"
    shown = shown_to_all(bench.effects if is_said_here else bench.effects[seen:])
    assert len(shown) == 1


def test_time_that_stands_elsewhere_than_it_was_shown_is_shown_again() -> None:
    paused = standing_of(Phase.PAUSED, elapsed_ms=5_000, settled_ms=5_000)
    bench = Bench(session_of(standing=paused, grant=Grant()))
    again = bench.moved_to(elapsed_ms=9_000, settled_ms=9_000)
    bench.meter.read(again, (), NOW)
    assert shown_to_all(bench.drain())


def test_a_stop_that_an_earlier_version_kept_is_shown_with_what_the_session_counted() -> None:
    bench = Bench(session_of(standing=standing_of(Phase.STOPPING, elapsed_ms=7_000)))
    kept = b'{"type":"limit_reached","session_id":"chat-1","seq":1,"limit":"credits",'
    kept += b'"stopped_at":1,"grace_ms":5}'
    (missed,) = snapshot(bench.meter, NOW, (kept,)).missed
    assert isinstance(missed, messages.LimitReached)
    assert missed.elapsed_ms == 7_000
