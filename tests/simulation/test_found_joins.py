"""Found in simulated worlds (see ``traces``): sockets that start, join and leave."""

from typing import Any

import pytest

from tests.simulation.actions import Performer
from tests.simulation.driver import Laboratory
from tests.simulation.mixes import world_of
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_join_proves_only_the_time_of_its_request(lab: Laboratory) -> None:
    """A join proves only the time of its request (seed 208).

    The join waits while members are polled, and its socket may be gone by then.
    """
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


def test_failed_join_leaves_no_unserved_session(lab: Laboratory) -> None:
    """A failed join leaves no session without a process (seed 869).

    The last socket elsewhere goes while a process that has joined waits for Postgres, in vain.
    """
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


def test_join_failed_with_redis_leaves_no_process_entry(
    lab: Laboratory,
) -> None:
    """Redis goes away while the members are polled.

    Redis learns that the join failed only when it is back (seed 5332).
    """
    run(
        lab,
        pay("cat9", 5_000_000),
        start("s1"),
        act("serve", node="node.b"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        act("redis_away", ms=2000),
        wait(12),
    )


def test_join_with_lost_answer_leaves_no_process_entry(
    lab: Laboratory,
) -> None:
    """A join with a lost answer leaves no trace of its process.

    The join was done all the same, and no process knew (found near seed 5332).
    """
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


def test_request_proves_only_the_time_it_was_made(lab: Laboratory) -> None:
    """A request proves only the time when it was made.

    A pause and its end wait for a Redis that is away, and so does the connection (seed 690).
    """
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


def test_start_survives_message_about_its_account(lab: Laboratory) -> None:
    """A start waits for shared free time when credits come in.

    The process dropped the local session while the session ran on, and the session was suspended as
    one without a socket (seed 3356).
    """
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


def test_join_survives_message_about_its_account(lab: Laboratory) -> None:
    """The session is being read again when it is paused.

    The set of the process that joined named the session, and the process did not serve it (found
    near seed 3356).
    """
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
def test_unreported_leave_counts_until_process_dies(
    lab: Laboratory, *, is_paused: bool, mishap: list[Any]
) -> None:
    """A socket left during a step or an outage of Redis.

    Its process died after one more proof of life. No other process knows that the socket left: the
    session is suspended as of that proof, as DESIGN section 2 says. The auditor took that for too
    much (seed 10248).
    """
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
def test_recent_proof_elsewhere_leaves_no_gap(lab: Laboratory, ahead_ms: int) -> None:
    """A client reached another process a moment after its connection's cut.

    Its proof of life was asked for, and a gap of a millisecond was counted (seeds 61202 and 61286).
    """
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


def test_change_of_tick_interval_is_no_join(lab: Laboratory) -> None:
    """The socket was there before the one that had just joined.

    Its request did not count as a proof that it was still there (seed 61021).
    """
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


def test_late_failed_join_names_ended_session_for_a_while(
    lab: Laboratory,
) -> None:
    """The process had given up the join.

    Its set names the session, although the session has ended, until the process reconciles the set
    (seed 61210).
    """
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


def test_resume_waits_until_earlier_members_are_polled(lab: Laboratory) -> None:
    """A socket joins, pauses and resumes while the earlier socket is polled.

    The three requests follow at once. Both requests wait for the poll (months 953).
    """
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


def test_limit_waits_for_end_of_doubt(lab: Laboratory) -> None:
    """A socket joins half a second before the limit.

    The last proof of life was 11.5 s before. Those seconds turned out to be a gap. The stop had
    been announced and recorded, so the gap was billed. With a slower Redis, the stop was taken back
    (faults 41163).
    """
    clients = run(
        lab,
        pay("cat9", 200_000),
        start("s1"),
        act("cut", client="c-s1"),
        wait(11.5),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        wait(40),
    )
    told = [one for one in clients[-1].messages if one["type"] in ("limit_reached", "stopped")]
    assert [one["type"] for one in told] == ["limit_reached", "stopped"]
    reached, stopped = told[0], told[1]["receipt"]
    assert reached["stopped_at"] == reached["received_at"] == stopped["segments"][-1]["to_at"]
    assert (reached["elapsed_ms"], stopped["elapsed_ms"]) == (12_000, 12_000)
    assert [gap["to_at"] - gap["from_at"] for gap in stopped["gaps"]] == [11_500]


@pytest.mark.parametrize(
    ("node", "visits_ms", "billed_ms"),
    [
        ("node.58", [0], 0),
        ("node.58", [1_000], 0),
        ("node.58", [1_041], 1_041),
        ("node.58", [2_000], 2_000),
        ("node.58", [900, 900], 0),
        ("node.0", [900], 900),
    ],
)
def test_visit_in_doubt_proves_no_time_before_it(
    lab: Laboratory, node: str, visits_ms: list[int], billed_ms: int
) -> None:
    """A client was cut, and another joins for a moment (seed 92386).

    The kind bills no gaps. A visit that ends before it is known that the first client is gone adds
    nothing to the session. A longer one adds its own time, as does each on the first one's process.
    """
    performers: list[Performer] = []
    outcome = lab.run(
        92386,
        0,
        actions=[
            act("serve", node="node.13"),
            act("serve", node="node.58"),
            wait(12.345),
            act(
                "start", client="c74", node="node.13", user="cat92386", kind="day", session="s75"
            ),
            act("join", client="c78", node="node.0", session="s75", last_seq=2),
            act("close", client="c74"),
            wait(29.999),
            act("cut", client="c78"),
            *(
                one
                for number, visit_ms in enumerate(visits_ms)
                for one in (
                    act("join", client=f"v{number}", node=node, session="s75", last_seq=0),
                    *([wait(visit_ms / 1000)] if visit_ms else []),
                    act("close", client=f"v{number}"),
                    wait(2),
                )
            ),
            wait(60),
            act("join", client="c90", node="node.58", session="s75", last_seq=0),
        ],
        mix=world_of(92386, 0)[1],
        started=performers.append,
    )  # fmt: skip
    assert outcome.failure is None
    messages = performers[0].world.clients[-1].messages
    told = [notice for one in messages for notice in one.get("missed", ())]
    (receipt,) = [notice["receipt"] for notice in told if notice["type"] == "stopped"]
    assert receipt["elapsed_ms"] == 20_040 + billed_ms


@pytest.mark.parametrize("stop", ["client", "operator"])
def test_newcomer_proves_time_before_next_join(lab: Laboratory, stop: str) -> None:
    """A client that is back after a cut opens another tab.

    The tab joins 3 s later. The client answered when it was asked, but still counted as a newcomer:
    the 3 s became a gap, and shown time went back from 1,000 ms to 0 (money 53007, full 53005).
    """
    world = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        act("cut", client="c-s1"),
        wait(3),
        act("join", client="again", node=NODE, session="s1", last_seq=0),
        wait(3),
        act("join", client="tab", node=NODE, session="s1", last_seq=None),
        act("operator", client="tab", session="s1")
        if stop == "operator"
        else act("ask", client="tab", session="s1", event="stop"),
        wait(5),
    )
    again = next(client for client in world if client.name == "again")
    shown = [one["elapsed_ms"] for one in again.messages if "elapsed_ms" in one]
    assert shown == sorted(shown)
    receipt = again.messages[-1]["receipt"]
    assert receipt["elapsed_ms"] // 100 == 30
    assert [gap["to_at"] - gap["from_at"] for gap in receipt["gaps"]] == [3_000]


def test_client_that_answers_after_the_wait_leaves_the_gap(lab: Laboratory) -> None:
    """A mute client asks for a stop once its answer is late.

    Its latest proof is then the stop (seed 700243).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        start("s1", kind="six"),
        wait(29.999),
        act("mute", client="c-s1"),
        act("join", client="second", node=NODE, session="s1", last_seq=None),
        wait(1),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(30),
    )


@pytest.mark.parametrize("others", [1, 2, 3])
def test_sockets_on_many_processes_prove_their_time_to_a_newcomer(
    lab: Laboratory, others: int
) -> None:
    """Each process answers a newcomer's question for its own sockets (seed 700981).

    The answer of one made the next believe that the question was answered: it reported its last
    proof, not the one that its sockets were about to give, and living sockets got a gap.
    """
    clients = run(
        lab,
        pay("cat9", 20_000_000),
        *(act("serve", node=f"node.{number}") for number in range(1, others + 1)),
        wait(30),
        act("start", client="first", node="node.1", user="cat9", kind="pair", session="s1"),
        *(
            act("join", client=f"c{number}", node=f"node.{number}", session="s1", last_seq=0)
            for number in range(2, others + 1)
        ),
        wait(185),
        act("join", client="newcomer", node=NODE, session="s1", last_seq=0),
        wait(5),
        act("ask", client="newcomer", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = [message for message in clients[0].messages if message["type"] == "stopped"]
    assert stopped["receipt"]["gaps"] == []
