"""Intents wait in order in a bounded queue.

Each event that no client asked for waits there once.
"""

import pytest

from protocol import limits
from protocol.metering.intents import Intent, Intents
from protocol.metering.states import Event


def waiting(*intents: Intent) -> Intents:
    queue = Intents()
    for intent in intents:
        queue.add(intent)
    return queue


def test_turns_come_in_order_and_an_urgent_one_first() -> None:
    queue = waiting(Intent(Event.PAUSE, 1, "a"), Intent(Event.STOP, 2, "b"))
    queue.add_first(Intent(Event.LOST, 3))
    assert queue.first is not None
    assert queue.first.event is Event.LOST
    assert [queue.take().event for _ in range(3)] == [Event.LOST, Event.PAUSE, Event.STOP]
    assert not queue
    assert queue.first is None


def test_an_event_that_nobody_asked_for_waits_once() -> None:
    queue = waiting(Intent(Event.LIMIT, 1), Intent(Event.LIMIT, 2), Intent(Event.LIMIT, 3, "a"))
    assert [intent.at for intent in queue] == [1, 3]
    queue.drop(Event.LIMIT)
    assert not queue


def test_who_asks_for_what_waits_is_answered_with_it() -> None:
    queue = waiting(Intent(Event.RETURNED, 1))
    assert queue.entitle(Event.RETURNED, "a")
    assert not queue.entitle(Event.RETURNED, "b")
    assert not queue.entitle(Event.STOP, "b")
    assert queue.abandon() == ["a"]
    assert queue.abandon() == []
    assert queue.entitle(Event.RETURNED, "b")


def test_the_intent_under_way_also_awaits_an_answer() -> None:
    queue = waiting(Intent(Event.PAUSE, 2, "b"))
    queue.current = Intent(Event.RESUME, 1, "a")
    assert [intent.at for intent in queue] == [1, 2]
    assert queue.abandon() == ["a", "b"]


def test_requests_are_bounded() -> None:
    queue = Intents()
    for number in range(limits.REQUESTS_WAITING_PER_SESSION_MAX):
        assert not queue.full
        queue.add(Intent(Event.PAUSE, number, number))
    assert queue.full


@pytest.mark.parametrize(
    ("event", "reason", "waits_for_proof", "ends_at_request"),
    [
        (Event.STOP, "client", False, True),
        (Event.STOP, "backend", True, False),
        (Event.PAUSE, "client", False, True),
        (Event.RESUME, "client", False, False),
        (Event.LIMIT, "client", False, False),
    ],
)
def test_which_stops_wait_for_a_proof(
    event: Event, reason: str, waits_for_proof: bool, ends_at_request: bool
) -> None:
    intent = Intent(event, 1, reason=reason)
    assert (intent.waits_for_proof, intent.ends_at_request) == (waits_for_proof, ends_at_request)
