"""Found in simulated worlds (see ``traces``): joins that were undone."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_leave_of_a_session_that_is_still_being_joined_leaves_nothing(lab: Laboratory) -> None:
    """The join ends afterwards, and the client takes part (seed 950607)."""
    clients = run(
        lab,
        pay("bob9", 9_000_000),
        act("serve", node="node.b"),
        act("start", client="c1", node=NODE, user="bob9", kind="pair", session="s1"),
        act("join", client="c2", node="node.b", session="s1", last_seq=0),
        act("leave", client="c2", session="s1"),
        wait(1),
    )
    joined = [one["type"] for one in clients[1].messages if one.get("session_id") == "s1"]
    assert joined[0] == "session"


def test_process_that_waits_for_postgres_is_noted_meanwhile(lab: Laboratory) -> None:
    """A join's answer is lost, and undoing it waits for Postgres.

    The process is noted for the session until then (seed 970156).
    """
    run(
        lab,
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="chat"),
        act("cut", client="c-s1"),
        wait(19),
        act("join", client="c2", node="node.b", session="s1", last_seq=0),
        mishaps("node.b", "postgres", ["slow", 30_000]),
        mishaps("node.b", "redis", ["unanswered", 30_000], ["none", 10]),
        wait(30),
        wait(60),
    )
