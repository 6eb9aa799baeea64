"""Found in simulated worlds (see ``traces``): notices and their numbers."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_notice_at_join_is_delivered_once(
    lab: Laboratory,
) -> None:
    """A notice at a join is delivered once (seed 794).

    The joined process knows of another session of the month, and warns.
    """
    clients = run(
        lab,
        start("s1", user="ann9", kind="recording"),
        act("serve", node="node.b"),
        act("start", client="c-s2", node="node.b", user="ann9", kind="recording", session="s2"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(1),
    )
    told = [one for one in clients[-1].messages if one.get("session_id") == "s1"]
    missed = [notice["seq"] for one in told for notice in one.get("missed", ())]
    assert missed == [1]
    assert [one["seq"] for one in told if one["type"] == "limit_warning"] == [
        2
    ]  # of the other session


def test_joined_process_sends_no_mixed_figures(
    lab: Laboratory,
) -> None:
    """A limit is lowered between the reads of session and months.

    When the session is read again, the serving process has shortened the grant, and warned (seed
    5183).
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=None, of_org=False),
        start("s1", user="ann9", kind="recording"),
        act("serve", node="node.b"),
        wait(243),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        act("limit", user="ann9", minutes=1, of_org=True),
        wait(1),
    )
    for client in clients:
        told = [one for one in client.messages if one.get("session_id") == "s1"]
        numbered = [*told, *(notice for one in told for notice in one.get("missed", ()))]
        warned = [one for one in numbered if one["type"] == "limit_warning"]
        assert [(one["seq"], one["threshold_ms"]) for one in warned] == [(1, 60_000)]


def test_notice_during_join_is_among_missed(lab: Laboratory) -> None:
    """A notice during a join is among the missed (seed 647).

    The session is read once more after the members have been polled.
    """
    run(
        lab,
        pay("ann9", 4_500_000),
        act("serve", node="node.b"),
        start("s1", user="ann9"),
        wait(30),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        pay("ann9", 20_000_000, "more"),
        wait(1),
    )


def test_stop_after_unrecorded_notices_has_new_number(
    lab: Laboratory,
) -> None:
    """The last notice of the dead process was not recorded.

    A client that received that notice comes back and is shown the stop (seed 514).
    """
    clients = run(
        lab,
        pay("ann9", 4_500_000),
        act("serve", node="node.b"),
        act("start", client="c-s1", node="node.b", user="ann9", kind="second", session="s1"),
        wait(1),
        mishaps("node.b", "redis", ["died"]),
        pay("ann9", 20_000_000, "more"),
        wait(120),
        act("join", client="c-again", node=NODE, session="s1", last_seq=2),
        wait(1),
    )
    before, again = clients
    assert [one["seq"] for one in before.messages if one["type"] == "limit_cleared"] == [2]
    (answer,) = again.messages
    assert [notice["type"] for notice in answer["missed"]] == ["stopped"]


def test_stop_is_shown_to_clients_of_all_processes(lab: Laboratory) -> None:
    """Two processes make the same stop at the same instant.

    The second process showed its clients nothing more: credits of the last tick stood beside the
    stop.
    """
    clients = run(
        lab,
        pay("cat9", 500_000),
        act("serve", node="node.1"),
        start("s1"),
        act("join", client="c-2", node="node.1", session="s1", last_seq=None),
        act("watch", client="w", node="node.1", session="s1"),
        wait(31),
    )
    for client in clients:
        told = [one for one in client.messages if one.get("session_id") == "s1"]
        (reached,) = (one for one in told if one["type"] == "limit_reached")
        shown = [one for one in told if one["type"] == "session" and one["state"] == "stopping"]
        assert reached["elapsed_ms"] == 30_000
        assert [(one["elapsed_ms"], one["credits"]) for one in shown] == [(30_000, "0")]


def test_second_stop_under_one_number_is_shown_to_all(lab: Laboratory) -> None:
    """A process is cut off, and stops too early (seed 97236).

    The other knows of more credits, stops later, and records that under the same number.
    """
    clients = run(
        lab,
        pay("cat9", 500_000),
        act("serve", node="node.b"),
        act("start", client="c-b", node="node.b", user="cat9", kind="second", session="s1"),
        act("join", client="c-2", node=NODE, session="s1", last_seq=None),
        wait(27),
        act("cut_off", name="node.b", ms=9_000),
        pay("cat9", 50_000, "more"),
        wait(120),
    )
    for client in clients:
        told = [one for one in client.messages if one["type"] in ("limit_reached", "stopped")]
        assert [(one["seq"], one.get("elapsed_ms")) for one in told] == [
            (2, 30_000 if client.name == "c-b" else 33_000),
            (3, 33_000),
            (4, None),
        ]


def test_stop_of_cut_off_process_is_withdrawn_after_top_up(lab: Laboratory) -> None:
    """The other process announced the top-up under the stop's number.

    The cut-off process announces the top-up to its clients under the next number.
    """
    clients = run(
        lab,
        pay("cat9", 500_000),
        act("serve", node="node.b"),
        act("start", client="c-b", node="node.b", user="cat9", kind="second", session="s1"),
        act("join", client="c-2", node=NODE, session="s1", last_seq=None),
        wait(29),
        act("cut_off", name="node.b", ms=4_000),
        pay("cat9", 2_000_000, "more"),
        wait(30),
    )
    for client in clients:
        told = [one for one in client.messages if one["type"].startswith("limit_")]
        assert [(one["seq"], one["type"]) for one in told][-3:] == [
            (2, "limit_reached" if client.name == "c-b" else "limit_cleared"),
            (3, "limit_cleared"),
            (4, "limit_warning"),
        ]


@pytest.mark.parametrize("request_of", ["join", "watch"])
@pytest.mark.parametrize("node", [NODE, "node.b"])
def test_refused_join_promises_no_missed_notices(
    lab: Laboratory, node: str, request_of: str
) -> None:
    """A socket joins again, and gets no answer in time (seed 700568).

    The error promises no notices: the client asks again, and gets them then.
    """
    again = act("join", client="c-again", node=node, session="s1", last_seq=1)
    first = act("join", client="c-again", node=node, session="s1", last_seq=None)
    if request_of == "watch":
        first = act("watch", client="c-again", node=node, session="s1")
    clients = run(
        lab,
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="day"),
        wait(30),
        pay("ann9", 20_000_000),
        wait(1),
        first,
        wait(6),
        act("slow_redis", delays=[5000], ms=3000),
        again,
        wait(30),
        again,
        wait(30),
    )
    told = clients[-1].messages
    answers = [one["type"] for one in told if one.get("id") in (1, 2, 3)]
    assert answers == ["session", "error", "session"]
    answer = next(one for one in told if one.get("id") == 3)
    assert [one["seq"] for one in answer["missed"]] == [2, 3]


def test_second_join_counts_where_first_fails_beside_it(lab: Laboratory) -> None:
    """Of two joins at another process, the first one fails."""
    again = act("join", client="c-again", node="node.b", session="s1", last_seq=1)
    clients = run(
        lab,
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="day"),
        wait(30),
        pay("ann9", 20_000_000),
        wait(1),
        again,
        act("slow_redis", delays=[5000], ms=3000),
        again,
        wait(30),
        again,
        wait(30),
    )
    told = clients[-1].messages
    answers = [one for one in told if one.get("id") in (1, 2, 3)]
    assert [one["type"] for one in answers] == ["error", "session", "session"]
    assert [one["seq"] for one in answers[1]["missed"]] == [2, 3]


@pytest.mark.parametrize(("delay_ms", "away_s"), [(700, 2.5), (1_000, 3.5), (1_400, 5.25)])
def test_sessions_hear_of_a_neighbour_whose_message_is_lost(
    lab: Laboratory, delay_ms: int, away_s: float
) -> None:
    """A dear session begins, and Redis goes away before its message.

    The other session of the account ran to the end of their credits without a warning (seed
    950199).
    """
    clients = run(
        lab,
        pay("cat9", 80_000_000),
        start("s0", kind="chat"),
        act("ask", client="c-s0", session="s0", event="stop"),
        act("slow_redis", delays=[delay_ms], ms=90_000),
        start("s1", kind="chat"),
        start("s2", kind="dear"),
        wait(away_s),
        act("redis_away", ms=150_000),
        wait(90),
    )
    heard = [one for one in clients[1].messages if one.get("session_id") == "s1"]
    warned = [one["threshold_ms"] for one in heard if one["type"] == "limit_warning"]
    assert warned == [300_000, 60_000]
    assert [one["limit"] for one in heard if one["type"] == "limit_reached"] == ["credits"]


def test_a_crossing_of_notices_leaves_a_number_unused(lab: Laboratory) -> None:
    """Two processes start one session, and know different neighbours.

    One warns of a minute, the other of five and then of one. The second number is in no record
    (seed 950558).
    """
    clients = run(
        lab,
        pay("ann9", 1_416_668),
        act("serve", node="node.b"),
        act("start", client="c1", node="node.b", user="ann9", kind="six", session="s1"),
        act("start", client="c2", node=NODE, user="ann9", kind="six", session="s2"),
        act("start", client="c3", node=NODE, user="ann9", kind="six", session="s3"),
        act("join", client="c4", node="node.b", session="s3", last_seq=0),
        act("operator", client="c1", session="s1"),
        wait(1),
    )
    assert clients
