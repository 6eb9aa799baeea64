"""Snapshots show certain time only.

They show at once the changes that no tick shows.
"""

from typing import Any

import msgspec
import pytest

from protocol.metering.effects import RemoteStep, Show
from protocol.metering.session import Grant
from protocol.metering.snapshots import snapshot
from protocol.metering.states import Event, Phase
from protocol.wire import messages
from protocol.wire.codec import encode
from tests.protocol.bench import Bench, alone, final, only, said, stop_of
from tests.protocol.examples import (
    CREDIT,
    NOW,
    account_of,
    line,
    session_of,
    standing_of,
    terms_of,
)


def stops_elsewhere(bench: Bench, elapsed_ms: int = 30_000) -> RemoteStep:
    """Another process's recorded stop at the end of a final grant.

    It has the notices of that process.
    """
    at = NOW + elapsed_ms
    stopped = bench.moved_to(
        Grant(), phase=Phase.STOPPING, elapsed_ms=elapsed_ms, settled_ms=elapsed_ms, at=at,
        seq=1, limit="credits", grace_until=at + 15_000,
    )  # fmt: skip
    reached = messages.LimitReached(
        session_id="chat-1", seq=1, limit="credits", stopped_at=at, elapsed_ms=elapsed_ms,
        grace_ms=15_000,
    )  # fmt: skip
    return RemoteStep(stopped, (encode(reached),))


def shown_to_all(effects: list[Any]) -> list[Show]:
    """The snapshots that every socket gets."""
    return [show for show in only(effects, Show) if not show.only]


def test_a_sent_stop_shows_the_counted_time_at_once() -> None:
    bench = Bench(session_of(grant=final()))
    effects = bench.run(30_000)
    (reached,) = said(effects)
    assert isinstance(reached, messages.LimitReached)
    assert reached.elapsed_ms == 30_000
    assert len(shown_to_all(effects)) == 1
    assert snapshot(bench.meter, bench.now).state == "stopping"
    assert snapshot(bench.meter, bench.now).ends_at is None  # nothing has recorded the stop
    assert not shown_to_all(bench.accept(None))  # no visible figure has changed since


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
    remote = stops_elsewhere(bench)
    bench.now = NOW + 30_001
    if heard == "told":
        bench.meter.apply_remote(remote, bench.now)
        bench.drain()
    else:
        bench.answer(session=remote.session, notices=remote.notices)
    stopping = snapshot(bench.meter, bench.now)
    assert (stopping.state, stopping.ends_at) == ("stopping", NOW + 45_000)
    shown = shown_to_all(bench.effects if is_said_here else bench.effects[seen:])
    assert len(shown) == 1


def test_a_corrected_time_is_shown_again() -> None:
    paused = standing_of(Phase.PAUSED, elapsed_ms=5_000, settled_ms=5_000)
    bench = Bench(session_of(standing=paused, grant=Grant()))
    again = bench.moved_to(elapsed_ms=9_000, settled_ms=9_000)
    bench.meter.read(again, (), NOW)
    assert shown_to_all(bench.drain())


def test_an_earlier_versions_stop_shows_the_sessions_counted_time() -> None:
    bench = Bench(session_of(standing=standing_of(Phase.STOPPING, elapsed_ms=7_000)))
    kept = b'{"type":"limit_reached","session_id":"chat-1","seq":1,"limit":"credits",'
    kept += b'"stopped_at":1,"grace_ms":5}'
    (missed,) = snapshot(bench.meter, NOW, (kept,)).missed
    assert isinstance(missed, messages.LimitReached)
    assert missed.elapsed_ms == 7_000


def shared(micros: int) -> Bench:
    """A session on a shared account, with a grant of ten seconds.

    One other session shares the account.
    """
    account = account_of(micros)
    account.replace(1, micros, 0, {"chat-1": line(terms_of()), "chat-2": line(terms_of())})
    grant = Grant(granted_ms=10_000, held_micros=CREDIT // 6)
    return Bench(session_of(grant=grant), account)


def test_uncertain_time_is_not_shown_before_the_answer() -> None:
    bench = shared(CREDIT // 2)  # for a quarter of a minute of both
    bench.run(9_000)
    bench.alive()
    assert bench.meter.asked is not None
    bench.run(3_000)
    assert bench.meter.elapsed_at(bench.now) == 12_000
    assert snapshot(bench.meter, bench.now).elapsed_ms == 10_000
    shown = snapshot(bench.meter, bench.now)
    effects = bench.accept(None, granted_ms=10_000, final="credits")
    stop = stop_of([*effects, *bench.run(0)])
    assert stop.elapsed_ms == shown.elapsed_ms == 10_000
    assert snapshot(bench.meter, bench.now).credits >= "0"


def test_a_pause_under_way_shows_the_time_of_its_request() -> None:
    bench = Bench()
    bench.run(10_000)
    bench.ask(Event.PAUSE)
    bench.run(900)
    assert snapshot(bench.meter, bench.now).elapsed_ms == 10_000
    bench.accept(None)
    assert snapshot(bench.meter, bench.now).elapsed_ms == 10_000


def test_a_waiting_pause_shows_the_time_of_its_request() -> None:
    bench = Bench()
    bench.run(61_000)
    assert bench.meter.asked is not None
    bench.run(500)
    bench.ask(Event.PAUSE)
    bench.run(700)
    assert snapshot(bench.meter, bench.now).elapsed_ms == 61_500
    bench.accept()
    bench.run(300)
    assert snapshot(bench.meter, bench.now).elapsed_ms == 61_500
    bench.accept(None)
    assert snapshot(bench.meter, bench.now).elapsed_ms == 61_500


def test_an_unrecorded_stop_shows_the_rest_after_it() -> None:
    bench = alone(CREDIT // 2)
    bench.meter._stand_on(
        msgspec.structs.replace(bench.meter.session, grant=final(30_000)), bench.now
    )
    bench.run(31_000)
    shown = snapshot(bench.meter, bench.now)
    assert (shown.state, shown.elapsed_ms, shown.credits) == ("stopping", 30_000, "0")
