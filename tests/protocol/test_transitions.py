"""Each event's step reaches the table's phase, and bills only proven time."""

import itertools
from typing import Any

import msgspec
import pytest

from protocol.metering.intents import Intent
from protocol.metering.moment import Moment
from protocol.metering.session import Grant, Standing, unstarted
from protocol.metering.states import TRANSITIONS, Event, Phase
from protocol.metering.transitions import claim, frees, note, step_for
from protocol.wire import messages
from tests.protocol.bench import Bench
from tests.protocol.examples import NOW, session_of, standing_of

ELAPSED_MS = 90_000


def stood(phase: Phase, **changes: Any) -> Standing:
    """A session after 90 s, of which one minute is settled."""
    given: dict[str, Any] = {
        "elapsed_ms": ELAPSED_MS, "settled_ms": 60_000, "charged_micros": 1_000_000,
        "minutes_kept": 1, "minute_at": NOW - 30_000, "at": NOW, "run_at": NOW - ELAPSED_MS,
        "segments": () if phase is Phase.ACTIVE else ((NOW - ELAPSED_MS, NOW),),
        "limit": "credits" if phase is Phase.STOPPING else None,
        "grace_until": None if phase is Phase.ACTIVE else NOW + 1_000,
        "lost_at": NOW if phase is Phase.SUSPENDED else None,
    }  # fmt: skip
    return standing_of(phase, **{**given, **changes})


def moment_of(standing: Standing, **changes: Any) -> Moment:
    """The session as seen five seconds later, all of them proven."""
    grant = Grant(granted_ms=125_000, held_micros=1_083_333)
    bench = Bench(session_of(standing=standing, grant=grant))
    bench.now = NOW + 5_000
    bench.alive()
    moment = bench.meter._moment(bench.now)
    return msgspec.structs.replace(moment, **changes)


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_an_event_leads_where_the_table_says(phase: Phase, event: Event) -> None:
    standing = stood(phase)
    if phase is Phase.ENDED:
        standing = msgspec.structs.replace(standing, ended_at=NOW, reason="client")
    step = step_for(Intent(event, NOW + 5_000, "request"), moment_of(standing))
    expected = TRANSITIONS[phase].get(event)
    if step is None:
        assert expected is None or event is Event.UNPROVEN
        return
    assert step.standing.phase is expected
    assert step.standing.version == standing.version + 1
    assert step.standing.settled_ms <= step.standing.elapsed_ms
    assert step.charge_micros >= 0


def test_a_session_begins_with_its_start_only() -> None:
    moment = moment_of(unstarted(Phase.PAUSED, NOW, 0))
    assert step_for(Intent(Event.RESUME, NOW), moment) is None
    begun = step_for(Intent(Event.RESUME, NOW, starts=True), moment)
    assert begun is not None
    assert (begun.standing.phase, begun.standing.version) == (Phase.ACTIVE, 1)


def test_no_top_up_lifts_a_cap() -> None:
    moment = moment_of(stood(Phase.STOPPING, limit="session_cap"))
    assert step_for(Intent(Event.RESUME, NOW), moment) is None


def test_an_end_settles_proven_time_and_returns_the_rest() -> None:
    moment = moment_of(stood(Phase.ACTIVE), proven_ms=92_000)
    step = step_for(Intent(Event.STOP, NOW + 5_000, "request"), moment)
    assert step is not None
    assert (step.standing.elapsed_ms, step.standing.settled_ms) == (92_000, 92_000)
    assert (step.offers, step.keep) == ((), None)
    assert [one.minute for one in step.minutes] == [1]
    stopped = msgspec.json.decode(step.notices[-1], type=messages.Stopped)
    assert (stopped.reason, stopped.limit) == ("client", None)
    assert stopped.receipt.elapsed_ms == 92_000
    assert stopped.seq == step.standing.seq


@pytest.mark.parametrize(
    ("phase", "event", "reason", "said"),
    [
        (Phase.STOPPING, Event.STOP, "client", "limit"),
        (Phase.STOPPING, Event.STOP, "backend", "backend"),
        (Phase.STOPPING, Event.EXPIRED, "client", "limit"),
        (Phase.SUSPENDED, Event.EXPIRED, "client", "disconnected"),
        (Phase.PAUSED, Event.EXPIRED, "client", "disconnected"),
    ],
)
def test_the_reason_of_an_end(phase: Phase, event: Event, reason: str, said: str) -> None:
    step = step_for(Intent(event, NOW, reason=reason), moment_of(stood(phase)))
    assert step is not None
    assert step.standing.reason == said
    assert step.standing.limit == ("credits" if said == "limit" else None)


def test_a_claim_extends_the_grant_and_a_note_only_settles() -> None:
    moment = moment_of(stood(Phase.ACTIVE), proven_ms=93_000)
    for step in (claim(moment), note(moment)):
        assert step.standing.settled_ms == 93_000
        assert step.standing.elapsed_ms == ELAPSED_MS + 5_000
        assert step.charge_micros == 550_000
    assert all(offer.grant.granted_ms > 125_000 for offer in claim(moment).offers)
    kept = note(moment).keep
    assert kept is not None
    assert (note(moment).offers, kept.grant.granted_ms) == ((), 125_000)


def test_who_is_recalled_frees_what_it_merely_holds() -> None:
    moment = moment_of(stood(Phase.ACTIVE))
    assert not frees(claim(moment), minutes=False)
    yielding = msgspec.structs.replace(moment, yields=True)
    assert frees(claim(yielding), minutes=False)
    assert not frees(claim(yielding), minutes=True)
