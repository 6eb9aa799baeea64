"""The transitions' table is the specification; so are these statements."""

import itertools

import pytest

from protocol.metering.states import TRANSITIONS, Event, Phase, after


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_after_reads_the_table(phase: Phase, event: Event) -> None:
    assert after(phase, event) is TRANSITIONS[phase].get(event)


def test_nothing_leaves_ended() -> None:
    assert all(after(Phase.ENDED, event) is None for event in Event)


def test_everything_that_lives_can_be_stopped() -> None:
    assert all(after(phase, Event.STOP) is Phase.ENDED for phase in Phase if phase != "ended")


def test_whatever_waits_ends_when_its_grace_runs_out() -> None:
    waiting = {Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPING}
    assert {phase for phase in Phase if after(phase, Event.EXPIRED) is Phase.ENDED} == waiting


def test_only_a_request_or_a_return_starts_time() -> None:
    into_active = {
        (phase, event)
        for phase, event in itertools.product(Phase, Event)
        if after(phase, event) is Phase.ACTIVE and phase is not Phase.ACTIVE
    }
    assert into_active == {
        (Phase.PAUSED, Event.RESUME),
        (Phase.STOPPING, Event.RESUME),
        (Phase.SUSPENDED, Event.RETURNED),
    }


def test_coming_back_does_not_resume_what_was_paused() -> None:
    assert after(Phase.PAUSED, Event.LOST) is Phase.PAUSED
    assert after(Phase.PAUSED, Event.RETURNED) is Phase.PAUSED


def test_every_state_can_be_reached_and_left() -> None:
    reached = {Phase.PAUSED}  # where a session stands before it starts
    for _ in Phase:
        reached |= {target for phase in reached for target in TRANSITIONS[phase].values()}
    assert reached == set(Phase)
