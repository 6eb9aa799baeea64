"""What simulated worlds have found, each as the shortest run of a world that shows it.

A seed may come to mean another world when a simulation learns to do more; a list of
actions means the same for ever.
"""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_an_ended_session_that_redis_forgot_is_not_started_again(place: Laboratory) -> None:
    """Redis keeps the end of a session for an hour, and no flusher lived for two (seed 49)."""
    run(
        place,
        start("s1", kind="recording"),
        wait(60),
        act("kill", name=FLUSHER),
        act("leave", client="c-s1", session="s1"),
        wait(2 * 3_600),
        act("join", client="c-again", node=NODE, session="s1", last_seq=2),
        act("flusher", name="flusher1", pace_ms=1_000),
    )


def test_what_others_hold_is_not_in_the_way_of_a_start(place: Laboratory) -> None:
    """Grants reach a minute ahead; who starts needs less, and others give it back (seed 97)."""
    clients = run(
        place,
        pay("cat9", 2_900_000),
        start("s1", kind="minute"),
        start("s2", kind="minute"),
        wait(1),
    )
    told = [message["type"] for client in clients for message in client.messages]
    assert "error" not in told


def test_sessions_of_an_account_that_owes_recall_each_other_once(place: Laboratory) -> None:
    """An adjustment took what two sessions hold: each gives back what it can (seed 285)."""
    run(
        place,
        pay("cat9", 800_000),
        start("s1"),
        start("s2"),
        pay("cat9", -700_000, entry="correction"),
        wait(60),
    )


def test_a_session_does_not_recall_what_is_reserved_for_an_operation(place: Laboratory) -> None:
    """What a hold reserves no session can give back, least of all the one that asks (seed 285)."""
    run(
        place,
        pay("cat9", 800_000),
        act(
            "deed", node=NODE, kind="hold", user="cat9", entry="hold:h1", micros=100_000,
            hold="h1", ttl_ms=1_800_000,
        ),
        start("s1"),
        pay("cat9", -700_000, entry="correction"),
        wait(60),
    )  # fmt: skip


def test_a_lowered_limit_stops_no_session_in_the_middle_of_a_minute(place: Laboratory) -> None:
    """A begun minute counts in full, and is used to its end (seeds 78 and 311)."""
    clients = run(
        place,
        start("s1", user="ann9", kind="recording"),
        wait(120),
        act("limit", user="ann9", minutes=2, of_org=True),
        wait(180),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert stopped["limit"] == "org_minutes"
    assert stopped["receipt"]["elapsed_ms"] == 180_000
