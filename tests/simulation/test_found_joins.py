"""Found in simulated worlds (see ``traces``): sockets that start, join and leave."""

from typing import Any

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_a_join_proves_no_more_than_that_somebody_asked_for_it(lab: Laboratory) -> None:
    """It waits while the members are polled, and its socket may be gone by then (seed 208)."""
    run(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.1"),
        wait(60),
        start("s1"),
        wait(5),
        act("cut", client="c-s1"),
        wait(1),
        act("join", client="c-again", node="node.1", session="s1", last_seq=0),
        act("cut", client="c-again"),
        wait(180),
    )


def test_a_join_that_fails_leaves_no_session_behind_that_nobody_serves(lab: Laboratory) -> None:
    """The last socket elsewhere goes while a process that has joined already waits for Postgres,
    in vain (seed 869)."""
    run(
        lab,
        pay("ann9", 9_000_000),
        start("s1", user="ann9"),
        act("serve", node="node.b"),
        wait(10),
        mishaps("node.b", "postgres", ["late", 1_499]),
        act("join", client="c-b", node="node.b", session="s1", last_seq=None),
        act("leave", client="c-s1", session="s1"),
        wait(180),
    )


def test_a_join_that_fails_with_redis_leaves_no_process_noted_that_serves_nobody(
    lab: Laboratory,
) -> None:
    """Redis goes away while the members are polled: it cannot be told that the join was in vain,
    and is when it is back (seed 5332)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        start("s1"),
        act("serve", node="node.b"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        act("redis_away", ms=2000),
        wait(12),
    )


def test_a_join_whose_answer_is_lost_leaves_no_process_noted_that_serves_nobody(
    lab: Laboratory,
) -> None:
    """It was done all the same, and nobody heard of that (found by looking for more like seed
    5332)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        start("s1"),
        act("serve", node="node.b"),
        wait(60),
        mishaps("node.b", "redis", ["unanswered"]),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(12),
    )


def test_a_request_proves_no_more_than_was_when_it_was_made(lab: Laboratory) -> None:
    """A pause and its end wait for a Redis that is away, and so does the line (seed 690)."""
    run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        wait(5),
        act("redis_away", ms=30_000),
        act("ask", client="c-s1", session="s1", event="pause"),
        act("ask", client="c-s1", session="s1", event="resume"),
        act("cut", client="c-s1"),
        wait(180),
    )


def test_a_start_is_not_cleared_away_by_what_its_account_is_told(lab: Laboratory) -> None:
    """Shared free time is being asked for, and credits come in: the session ran on where this
    process looked for it no more, and was suspended as one without a socket (seed 3356)."""
    clients = run(
        lab,
        pay("ann9", 20_000_000),
        start("s0", user="ann9"),
        mishaps(NODE, "redis", ["slow", 0], ["slow", 0], ["slow", 700]),
        start("s1", user="ann9", kind="pair"),
        wait(0.3),
        pay("ann9", 1_000_000, "more"),
        wait(100),
    )
    shown = [one["state"] for one in clients[-1].messages if one["type"] == "session"]
    assert shown == ["active"]


def test_a_join_is_not_cleared_away_by_what_its_account_is_told(lab: Laboratory) -> None:
    """The session is being read again when it is paused: the process that joined it was noted
    for it, and did not serve it (found by looking for more like seed 3356)."""
    clients = run(
        lab,
        pay("ann9", 9_000_000),
        act("serve", node="node.b"),
        wait(30),
        start("s1", user="ann9"),
        wait(20),
        mishaps("node.b", "redis", *[["slow", 0]] * 6, ["slow", 700]),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(0.3),
        act("ask", client="c-s1", session="s1", event="pause"),
        wait(5),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(100),
    )
    shown = [one["state"] for one in clients[-1].messages if one["type"] == "session"]
    assert shown == ["paused", "active"]


@pytest.mark.parametrize(
    ("is_paused", "mishap"), [(True, ["late", 4_000]), (False, ["lost"])], ids=["late", "lost"]
)
def test_a_socket_that_left_untold_was_there_as_long_as_its_process(
    lab: Laboratory, *, is_paused: bool, mishap: list[Any]
) -> None:
    """It left while a step was on its way, or could not be told, and its process died after one
    more proof of life. Nobody else knows of its leaving: the session is suspended as of that
    proof, as DESIGN section 2 has it, and the auditor took that for too much (seed 10248)."""
    run(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.1"),
        start("s1"),
        wait(20.5),
        *([act("ask", client="c-s1", session="s1", event="pause")] if is_paused else []),
        mishaps(NODE, "redis", mishap, ["died_after"]),
        *([act("ask", client="c-s1", session="s1", event="resume")] if is_paused else []),
        act("close", client="c-s1"),
        wait(60),
    )


@pytest.mark.parametrize("ahead_ms", [1, 400, 900])
def test_who_has_just_proven_its_life_elsewhere_leaves_no_gap(
    lab: Laboratory, ahead_ms: int
) -> None:
    """A client came to another process a moment after its line was cut: what it had proven was
    asked for, and called a gap of a millisecond (seeds 61202 and 61286)."""
    clients = run(
        lab,
        pay("cat9", 1_000_000),
        act("serve", node="node.b"),
        start("s1", kind="six"),
        wait(31),
        act("ask", client="c-s1", session="s1", event="resume"),
        act("cut", client="c-s1"),
        wait(ahead_ms / 1_000),
        act("join", client="c-again", node="node.b", session="s1", last_seq=0),
        wait(5),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert stopped["receipt"]["gaps"] == []


def test_a_socket_that_asks_for_another_pace_is_no_newcomer(lab: Laboratory) -> None:
    """It was there before the one that had just joined, and its request did not count as the
    answer to whether it still was (seed 61021)."""
    clients = run(
        lab,
        pay("cat9", 1_000_000),
        start("s1"),
        wait(29.999),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        act("mute", client="c-s1"),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(5),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert stopped["receipt"]["gaps"] == []


def test_a_join_in_vain_that_redis_hears_of_late_is_of_a_session_that_is_over(
    lab: Laboratory,
) -> None:
    """The process had given it up, and is noted for the session though that has ended, until it
    looks after all that it is noted for (seed 61210)."""
    run(
        lab,
        act("serve", node="node.b"),
        pay("bob9", 1_283_333),
        act(
            "start", client="c1", node="node.b", user="bob9", kind="second", session="s1",
            backend="node.b", turns=8,
        ),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(30),
        wait(12.345),
        act("join", client="c-late", node=NODE, session="s1", last_seq=None),
        act("slow_redis", delays=[300], ms=3_000),
        wait(12.345),
        wait(250),
    )  # fmt: skip


def test_time_goes_on_after_a_pause_once_it_is_known_who_was_there(lab: Laboratory) -> None:
    """A socket joins, pauses and resumes at once, and the socket that was there before is asked
    meanwhile: both wait for that (months 953)."""
    clients = run(
        lab,
        pay("ann9", 1_000_000),
        start("s1", user="ann9", kind="lesson"),
        wait(5),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        act("ask", client="c-again", session="s1", event="pause"),
        act("ask", client="c-again", session="s1", event="resume"),
        wait(5),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert stopped["receipt"]["elapsed_ms"] < 10_000
