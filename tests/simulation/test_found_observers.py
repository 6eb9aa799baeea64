"""Found in simulated worlds: processes where clients only observe a session.

Such a process knows as well as any when the session reaches its limit, and less of whether its
client lives.
"""

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")

SERVE = act("serve", node="node.1")
WATCH = act("watch", client="w", node="node.1", session="s1")


def _billed_ms(lab: Laboratory, *actions: Action) -> int:
    """The counted time on the receipt that the observer received."""
    observer = next(client for client in run(lab, *actions) if client.name == "w")
    (stopped,) = (one for one in observer.messages if one["type"] == "stopped")
    return int(stopped["receipt"]["elapsed_ms"])


def test_joining_observer_proves_no_counted_time(lab: Laboratory) -> None:
    """The client's last pong came 2 s before the last claim.

    The pong came at 90 s, and the claim, for a little more, at 92 s. The claim's instant was taken
    for a proof when an observer's process stopped the session (seed 10222).
    """
    billed_ms = _billed_ms(
        lab,
        pay("cat9", 1_750_000),
        SERVE,
        start("s1", kind="capped"),
        wait(92.5),
        WATCH,
        wait(5.5),
        act("cut", client="c-s1"),
        wait(60),
    )
    assert billed_ms == 90_000


def test_observer_leaves_end_to_serving_process(lab: Laboratory) -> None:
    """The serving process, with proofs to 97 s, is a little late.

    It is late with stop and end. The observer's process knew of a minute only, and ended the
    session there (found by looking at 10222).
    """
    late = mishaps(NODE, "redis", ["lost", 10], ["lost", 10])
    billed_ms = _billed_ms(
        lab,
        pay("cat9", 9_000_000),
        SERVE,
        start("s1", kind="capped"),
        WATCH,
        wait(97),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(2.9),
        act("cut", client="c-s1"),
        late,
        wait(15),
        late,
        wait(60),
    )
    assert billed_ms == 97_000


def test_stopped_session_ends_after_serving_process_died(lab: Laboratory) -> None:
    """The observer's process ends a stopped session after the serving process died.

    First, the dead process is swept as of its last proof of life.
    """
    billed_ms = _billed_ms(
        lab,
        pay("cat9", 9_000_000),
        SERVE,
        start("s1", kind="capped"),
        WATCH,
        wait(97),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(2.9),
        act("kill", name=NODE),
        wait(60),
    )
    assert 98_900 <= billed_ms <= 99_900


def test_observer_leaves_warnings_to_serving_process(lab: Laboratory) -> None:
    """A member's second session started after the month had been read.

    The serving process had read the month. The observer's process knew of that session, and warned
    of ten minutes. A minute later the serving process warned of five under the same number (seed
    12014).
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=12, of_org=False),
        SERVE,
        start("s1", user="ann9", kind="recording"),
        start("s2", user="ann9", kind="recording"),
        WATCH,
        wait(65),
    )
    for name in ("c-s1", "w"):
        client = next(one for one in clients if one.name == name)
        told = [one for one in client.messages if one.get("session_id") == "s1"]
        warned = [(one["seq"], one["threshold_ms"]) for one in told if "threshold_ms" in one]
        assert warned == [(1, 300_000)]


def test_observer_shows_stop_of_serving_process(
    lab: Laboratory,
) -> None:
    """The observer's process knew of another session of the same member.

    Where credits end, it warned of the minutes too: its stop had another number, and one client
    received two stops.
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=12, of_org=False),
        pay("ann9", 1_600_000),
        SERVE,
        start("s1", user="ann9", kind="lesson"),
        wait(84),
        start("s2", user="ann9", kind="recording"),
        WATCH,
        wait(20),
    )
    for name in ("c-s1", "w"):
        client = next(one for one in clients if one.name == name)
        told = [one for one in client.messages if one.get("session_id") == "s1"]
        stops = [one["seq"] for one in told if one["type"] == "limit_reached"]
        assert stops == [3]


def test_observer_waits_for_warning_before_stop(
    lab: Laboratory,
) -> None:
    """Credits end in the millisecond that leaves five minutes of the month.

    The serving process warns of these minutes first. The observer's process, which warns of
    nothing, sent the stop under the number of that warning (seed 40047).
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=12, of_org=False),
        pay("ann9", 7_000_000),
        SERVE,
        start("s1", user="ann9", kind="lesson"),
        wait(84),
        WATCH,
        wait(350),
    )
    for name in ("c-s1", "w"):
        client = next(one for one in clients if one.name == name)
        told = [one for one in client.messages if one.get("session_id") == "s1"]
        last = [(one["seq"], one["type"], one["limit"]) for one in told if "limit" in one
                and one["type"] in ("limit_warning", "limit_reached")][-2:]  # fmt: skip
        assert [kind for _, kind, _ in last] == ["limit_warning", "limit_reached"], told
        assert last[0][0] + 1 == last[1][0]
        assert (last[0][2], last[1][2]) == ("member_minutes", "credits")


def test_process_with_newest_proof_settles_before_end(
    lab: Laboratory,
) -> None:
    """Two processes' sockets are cut; one gave a proof at 97 s.

    The process whose own socket gave a proof at 90 s made the end.
    """
    billed_ms = _billed_ms(
        lab,
        pay("cat9", 9_000_000),
        SERVE,
        start("s1", kind="capped"),
        act("join", client="b", node="node.1", session="s1", last_seq=0),
        WATCH,
        wait(97),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(2.9),
        act("cut", client="c-s1"),
        act("cut", client="b"),
        wait(60),
    )
    assert billed_ms == 97_000


def test_observer_does_not_join_ended_session(lab: Laboratory) -> None:
    """The end was published while Redis's answer was under way.

    The observer joined where nothing more was published, and received no end.
    """
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        SERVE,
        start("s1"),
        wait(5),
        mishaps("node.1", "redis", ["none"], ["none"], ["slow", 1000]),
        WATCH,
        wait(0.2),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(30),
    )
    observer = next(client for client in clients if client.name == "w")
    assert [one.get("code") for one in observer.messages] == ["session_ended"]


def test_observer_leaves_end_to_others_after_outage(lab: Laboratory) -> None:
    """Redis returns after the stop's grace, to the serving process last.

    The observer's process made stop and end together, and billed the one minute that it knew of.
    """
    billed_ms = _billed_ms(
        lab,
        pay("cat9", 9_000_000),
        SERVE,
        start("s1", kind="capped"),
        WATCH,
        wait(99.5),
        act("redis_away", ms=29_400),
        mishaps(NODE, "redis", *([["lost", 10]] * 5)),
        wait(120),
    )
    assert billed_ms == 100_000


def test_observer_gets_change_missed_during_outage(lab: Laboratory) -> None:
    """An observer gets a change missed during an outage (seed 667).

    The observer's process makes no step whose answer would contain the change.
    """
    clients = run(
        lab,
        pay("ann9", 4_500_000),
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="pair"),
        act("watch", client="w", node="node.b", session="s1"),
        wait(30),
        act("ask", client="c-s1", session="s1", event="pause"),
        pay("ann9", 20_000_000, "more"),
        act("drop_lines"),
        act("ask", client="c-s1", session="s1", event="resume"),
        wait(60),
    )
    told = [one["type"] for one in clients[-1].messages]
    assert "limit_cleared" in told


def test_observer_gets_end_missed_during_outage(
    lab: Laboratory,
) -> None:
    """An observer gets an end that it missed during an outage.

    Nothing follows by which the observer's process would detect what it has missed.
    """
    clients = run(
        lab,
        pay("ann9", 4_500_000),
        act("serve", node="node.b"),
        start("s1", user="ann9"),
        act("watch", client="w", node="node.b", session="s1"),
        wait(1),
        act("drop_lines"),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(60),
    )
    assert clients[-1].messages[-1]["type"] == "stopped"


def test_observer_gets_change_before_subscription(lab: Laboratory) -> None:
    """An observer gets a change made before its subscription (seed 1338).

    The account is being opened when the last socket goes elsewhere.
    """
    clients = run(
        lab,
        pay("ann9", 1_700_000),
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="six"),
        wait(30),
        mishaps("node.b", "postgres", ["slow", 400]),
        act("watch", client="w", node="node.b", session="s1"),
        act("leave", client="c-s1", session="s1"),
        wait(60),
    )
    told = [(one["type"], one.get("state")) for one in clients[-1].messages]
    assert told[0] == ("session", "suspended")


def test_joining_observer_is_not_removed(lab: Laboratory) -> None:
    """A joining observer is not removed (seed 3356).

    The session is being read again when it is paused: its end was not received.
    """
    clients = run(
        lab,
        pay("ann9", 9_000_000),
        act("serve", node="node.b"),
        wait(30),
        start("s1", user="ann9"),
        wait(20),
        mishaps("node.b", "redis", ["slow", 0], ["slow", 0], ["slow", 700]),
        act("watch", client="w", node="node.b", session="s1"),
        act("ask", client="c-s1", session="s1", event="pause"),
        wait(5),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(1),
    )
    assert "stopped" in [one["type"] for one in clients[-1].messages]


def test_observer_is_shown_less_after_client_is_gone(lab: Laboratory) -> None:
    """The limit was shown at 100 s; the client had proven 90.

    Its process found that out later. The auditor took that for a step back (seeds 43006, 45011).
    """
    world = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(90),
        act("watch", client="w", node=NODE, session="s1"),
        act("ask", client="c-s1", session="s1", event="resume"),
        act("mute", client="c-s1"),
        wait(60),
    )
    observer = next(client for client in world if client.name == "w")
    shown = [one["elapsed_ms"] for one in observer.messages if "elapsed_ms" in one]
    assert shown == [90_000, 100_000, 100_000, 90_000]


def test_observer_is_shown_less_after_unanswered_poll(lab: Laboratory) -> None:
    """A client came back over another connection after an unnoticed cut.

    The 5 s before the return are a gap. The auditor took that for a step back, too (seed 19436).
    """
    world = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        wait(5),
        act("watch", client="w", node=NODE, session="s1"),
        act("cut", client="c-s1"),
        act("join", client="again", node=NODE, session="s1", last_seq=0),
        wait(2),
    )
    observer = next(client for client in world if client.name == "w")
    shown = [one["elapsed_ms"] for one in observer.messages if "elapsed_ms" in one]
    assert shown[:2] == [5_000, 1_000]


def test_observer_is_not_shown_time_of_lost_client(lab: Laboratory) -> None:
    """The client is found gone while a claim is on its way.

    It is found gone at 20 s; then the observer joins. Until the step of the loss went out, the
    observer was shown time that had run on (faults 41297).
    """
    world = run(
        lab,
        start("s1", user="bob9", kind="recording"),
        act("cut", client="c-s1"),
        wait(19),
        act("drop_lines"),
        act("slow_redis", delays=[1_400], ms=20_000),
        act("watch", client="w", node=NODE, session="s1"),
        wait(1),
    )
    observer = next(client for client in world if client.name == "w")
    shown = [one["elapsed_ms"] for one in observer.messages if "elapsed_ms" in one]
    assert set(shown) == {0}


def test_late_answer_to_poll_of_operator_is_not_counted(lab: Laboratory) -> None:
    """An operator's end is on its way when the client's pong comes.

    The operator stopped the session. The auditor took what was shown before for proven in time
    (faults 41297).
    """
    run(
        lab,
        start("s1", user="bob9", kind="recording"),
        act("cut", client="c-s1"),
        wait(19),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        wait(0.001),
        act("drop_lines"),
        act("mute", client="c-again"),
        act("slow_redis", delays=[1_400], ms=20_000),
        act("operator", client="c-again", session="s1"),
        wait(2),
        act("ask", client="c-again", session="s1", event="pause"),
    )
