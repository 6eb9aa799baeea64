"""The moment of a transition: when time begins."""

import msgspec
import pytest

from protocol import limits
from protocol.metering.moment import Moment
from protocol.metering.session import Grant, Identity, SessionState, unstarted
from protocol.metering.states import Phase
from protocol.metering.terms import Terms
from protocol.metering.transitions import come_back, resume

NOW = 1_780_000_000_000
CALL = Terms(
    kind="call",
    price_micros=60_000_000,
    free_ms=0,
    free_scope="session",
    first_increment_ms=1_000,
    next_increment_ms=1_000,
    counts_minutes=False,
    warn_at_ms=(),
    stop_grace_ms=0,
    reconnect_grace_ms=0,
    gap="skip",
    session_cap_ms=0,
    tick_ms=1_000,
    clock="provider",
)


def moment(terms: Terms = CALL, since: int | None = None, lost_at: int | None = None) -> Moment:
    identity = Identity("user:ann", "s", "ann", None, "ann", None, "call", NOW, terms)
    standing = unstarted(Phase.PAUSED, NOW, 0)
    if lost_at is not None:
        standing = msgspec.structs.replace(
            standing, version=1, phase=Phase.SUSPENDED, at=lost_at, lost_at=lost_at
        )
    return Moment(
        session=SessionState(identity, standing, Grant()),
        month_of=lambda _: "2026-05-01",
        now_ms=NOW,
        elapsed_ms=0,
        proven_ms=0,
        seq=0,
        free_over=False,
        warned={},
        notices=(),
        free_left_ms=0,
        alive_at=NOW,
        available_micros=(0, 10**9),
        present=True,
        farewell_at=None,
        since=since,
    )


@pytest.mark.parametrize(
    ("since", "lost_at", "begins_at"),
    [
        (None, None, NOW),
        (NOW - 90_000, None, NOW - 90_000),
        (NOW + 5_000, None, NOW),
        (0, None, NOW - limits.PROVIDED_SINCE_MS_MAX),
        (None, NOW - 90_000, NOW),
        (NOW - 50_000, NOW - 90_000, NOW - 50_000),
        (NOW - 95_000, NOW - 90_000, NOW - 90_000),  # what was counted already is not counted again
    ],
)
def test_time_begins_when_the_outside_clock_says(
    since: int | None, lost_at: int | None, begins_at: int
) -> None:
    assert moment(since=since, lost_at=lost_at).begins_at == begins_at
    # Another kind's time begins with its client.
    other = msgspec.structs.replace(CALL, clock="server")
    assert moment(other, since, lost_at).begins_at == NOW


def test_offers_cover_the_time_since() -> None:
    step = resume(moment(since=NOW - 90_000))
    assert (step.standing.at, step.standing.run_at) == (NOW - 90_000, NOW - 90_000)
    assert max(offer.grant.granted_ms for offer in step.offers) > 90_000
    assert any(offer.grant.granted_ms < 90_000 for offer in step.offers)  # as far as it goes


def test_only_absence_is_a_gap() -> None:
    back = come_back(moment(since=NOW - 50_000, lost_at=NOW - 90_000))
    assert back.standing.gaps == ((NOW - 90_000, NOW - 50_000, False),)
    assert come_back(moment(since=0, lost_at=NOW - 90_000)).standing.gaps == ()
