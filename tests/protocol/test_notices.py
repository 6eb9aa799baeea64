"""Notices are numbered, recorded, and sent once; so are minutes."""

from typing import Any

import msgspec
import pytest

from protocol.metering.effects import Push, RemoteStep
from protocol.metering.notices import Minutes, sequence_number
from protocol.metering.projection import burn_line_of
from protocol.metering.session import Grant, SessionState
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from protocol.wire.codec import encode
from tests.protocol.bench import Bench, numbers, only, said
from tests.protocol.examples import (
    CREDIT,
    NOW,
    TERMS,
    account_of,
    session_of,
    standing_of,
    terms_of,
)
from tests.protocol.wire_examples import RECEIPT


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
    """A session that has sent, but not recorded, its one-minute warning.

    The warning says that a minute is left.
    """
    account = account_of(CREDIT)
    account.lines["chat-1"] = burn_line_of(TERMS, 0, NOW, 0, running=True)
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


def test_a_reading_with_the_own_step_takes_no_later_notice() -> None:
    bench = warned_bench()
    made = SessionState(bench.step.before.identity, bench.step.standing, bench.meter.session.grant)
    bench.meter.read(made, bench.step.notices, bench.now)
    assert numbers(bench.run(50_000)) == [3]
    bench.accept()
    # The answer records the notices of its own step, and none that were sent since.
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
    bench.meter.apply_remote(RemoteStep(other, (notice(1),)), NOW)
    assert numbers(bench.drain()) == [1]


def test_different_notices_under_one_number_are_told_apart_from_there() -> None:
    bench = warned_bench()
    reached = notice(2, "limit_reached", stopped_at=NOW, grace_ms=15_000)
    stopping = bench.moved_to(
        Grant(), seq=2, phase=Phase.STOPPING, limit="credits", grace_until=NOW + 15_000
    )
    effects = bench.answer(session=stopping, notices=(reached,))
    # Clients here received a warning as number 2; the stop gets a number that is new to them.
    (told,) = said(effects)
    assert isinstance(told, messages.LimitReached)
    assert told.seq == 3


def test_the_notice_after_an_end_with_a_new_number_is_sent() -> None:
    bench = warned_bench()
    reached = notice(2, "limit_reached", stopped_at=NOW, grace_ms=15_000)
    stopping = bench.moved_to(
        Grant(), seq=2, phase=Phase.STOPPING, limit="credits", grace_until=NOW + 15_000
    )
    bench.answer(session=stopping, notices=(reached,))
    # The end is recorded under the number that clients here know.
    assert [sequence_number(one) for one in bench.step.notices] == [3]
    ended = bench.moved_to(Grant(), seq=3, phase=Phase.ENDED, limit="credits", reason="limit")
    stopped = encode(messages.Stopped(session_id="chat-1", seq=3, reason="limit", receipt=RECEIPT))
    bench.answer(session=ended, notices=(reached, stopped))
    (told,) = [one for one in said(bench.effects) if isinstance(one, messages.Stopped)]
    assert told.seq == 4


def limited_bench() -> tuple[Bench, messages.LimitReached]:
    """A session whose announced stop is not recorded, and the announcement."""
    account = account_of(CREDIT)
    account.lines["chat-1"] = burn_line_of(TERMS, 0, NOW, 0, running=True)
    grant = Grant(granted_ms=60_000, held_micros=CREDIT, final="credits")
    bench = Bench(session_of(terms_of(warn_at_ms=()), standing_of(free_over=True), grant), account)
    (reached,) = said(bench.run(60_000))
    assert isinstance(reached, messages.LimitReached)
    assert reached.seq == 1
    return bench, reached


def test_a_stop_that_another_process_recorded_later_is_announced_again() -> None:
    """Redis did not answer, and the other process knew of more credits."""
    bench, reached = limited_bench()
    later = msgspec.structs.replace(
        reached, stopped_at=reached.stopped_at + 21_000, elapsed_ms=reached.elapsed_ms + 21_000
    )
    stopping = bench.moved_to(
        Grant(), seq=1, phase=Phase.STOPPING, limit="credits", elapsed_ms=later.elapsed_ms
    )
    effects = bench.answer(session=stopping, notices=(encode(later),))
    assert said(effects) == [msgspec.structs.replace(later, seq=2)]
    assert [sequence_number(one) for one in bench.step.notices] == [2]


def test_a_stop_that_holds_keeps_no_number_of_another_notice() -> None:
    """The other process recorded a stop, and went on."""
    bench, reached = limited_bench()
    earlier = msgspec.structs.replace(
        reached, stopped_at=reached.stopped_at - 500, elapsed_ms=reached.elapsed_ms - 500
    )
    effects = bench.answer(session=bench.moved_to(seq=1), notices=(encode(earlier),))
    assert said(effects) == [msgspec.structs.replace(reached, seq=2)]
    assert bench.step.standing.phase is Phase.STOPPING
    assert [sequence_number(one) for one in bench.step.notices] == [2]


def test_a_stop_under_the_number_of_another_notice_is_forgotten_with_a_longer_grant() -> None:
    bench, reached = limited_bench()
    earlier = msgspec.structs.replace(reached, stopped_at=reached.stopped_at - 500)
    longer = Grant(granted_ms=90_000, held_micros=2 * CREDIT, final="credits")
    effects = bench.answer(session=bench.moved_to(longer, seq=1), notices=(encode(earlier),))
    assert said(effects) == []
    assert bench.meter.notices.unrecorded == []
    assert bench.meter.phase is Phase.ACTIVE


def test_an_end_with_the_number_of_a_recorded_notice_is_sent() -> None:
    bench = warned_bench()
    bench.accept()  # Redis fails, and loses the recorded warning
    stopped = notice(2, "limit_reached", stopped_at=NOW, grace_ms=0)
    stopping = bench.moved_to(
        Grant(), seq=2, phase=Phase.STOPPING, limit="credits", grace_until=NOW
    )
    bench.meter.apply_remote(RemoteStep(stopping, (stopped,), complete=True), NOW)
    (told,) = said(bench.drain())
    assert isinstance(told, messages.LimitReached)
    assert told.seq == 3


def test_the_end_has_the_next_number_to_itself() -> None:
    account = account_of(CREDIT)
    account.lines["chat-1"] = burn_line_of(TERMS, 0, NOW, 0, running=True)
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
    bench.meter.apply_remote(RemoteStep(later, (notice(2),)), NOW)
    effects = bench.drain()
    assert said(effects) == []
    assert bench.step.before.standing.version == version
    news = bench.answer(session=later, notices=(notice(1, threshold_ms=300_000), notice(2)))
    assert numbers(news) == [1, 2]


@pytest.mark.parametrize("answered", [True, False])
def test_remote_step_before_own_reply_is_kept(
    answered: bool,
) -> None:
    bench = Bench()
    bench.ask(Event.PAUSE)
    paused = bench.step.standing
    later = bench.moved_to(Grant(), seq=1)
    standing = msgspec.structs.replace(paused, version=paused.version + 1, seq=1)
    later = msgspec.structs.replace(later, standing=standing)
    minute = messages.Minute(session_id="chat-1", minute=0, seconds=60, credits="1")
    bench.meter.apply_remote(RemoteStep(later, (notice(1),), minutes=(encode(minute),)), NOW)
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
    told = RemoteStep(theirs, minutes=(encode(minute_message(0)),))
    if answered_first:
        sent = said(bench.answer(session=theirs))
        bench.meter.apply_remote(told, bench.now)
    else:
        bench.meter.apply_remote(told, bench.now)
        sent = said(bench.drain()) + said(bench.answer(session=theirs))
    bench.meter.apply_remote(told, bench.now)
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
