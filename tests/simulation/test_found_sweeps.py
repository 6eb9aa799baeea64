"""Found in simulated worlds: what is swept, and clients that are gone.

See ``traces``.
"""

import pytest

from tests.simulation.actions import Action, Performer
from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, SEED, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")

FAULTS_SEED = 41372


def test_a_session_ends_that_is_left_while_another_process_is_swept(lab: Laboratory) -> None:
    """A session ends that is left during a sweep (faults 41372).

    The answer to the step of the leave cleared the session, and the sweep was lost with it: the
    dead process stayed noted, and the session never ended.
    """
    ann = "ann41372"
    outcome = lab.run(
        FAULTS_SEED,
        0,
        actions=[
            wait(5),
            wait(5),
            wait(1),
            mishaps(NODE, "redis", ["twice", 1499], ["late", 4000]),
            act("transfer", node=NODE, kind="pay", user=ann, entry="p17", micros=1000000, form=1),
            mishaps(NODE, "redis", ["unanswered", 1499], ["none", 1499]),
            act("again", node=NODE, entry="p17"),
            wait(12.345),
            wait(5),
            wait(60),
            wait(5),
            wait(30),
            wait(1),
            wait(60),
            wait(0.999),
            act("transfer", node=NODE, kind="pay", user=ann, entry="p53", micros=1000000, form=1),
            act("slow_redis", delays=[20, 20, 20, 2500], ms=3000),
            act(
                "transfer",
                node=NODE,
                kind="hold",
                user=ann,
                entry="hold:h61",
                micros=500000,
                hold="h61",
                ttl_ms=2000,
                form=1,
            ),
            act("serve", node="node.62"),
            wait(12.345),
            wait(20),
            act("start", client="c69", node=NODE, user=ann, kind="chat", session="s70"),
            act("cut", client="c69"),
            wait(3),
            act("join", client="c71", node="node.62", session="s70", last_seq=0),
            act("slow_redis", delays=[700, 1200, 900], ms=90000),
            wait(5),
            act("kill", name="node.62"),
            wait(4),
            act("join", client="c77", node=NODE, session="s70", last_seq=0),
            act("report", node=NODE, user=ann, session="t78", minute_at=1780260995058),
            act("leave", client="c77", session="s70"),
            wait(30),
        ],
        mix="faults",
    )
    if outcome.failure is not None:
        raise outcome.failure


def test_a_process_may_be_noted_late_for_a_session_that_goes_on(lab: Laboratory) -> None:
    """A process may be noted late for a session that goes on.

    Redis carried out the join after the process had given it up: the process finds that when it
    reconciles its set. The auditor allowed it of ended sessions only (faults 41233).
    """
    run(
        lab,
        act("report", node=NODE, user="ann9", session="t1", minute_at=1_780_265_833_911 - 60_000),
        mishaps(NODE, "redis", ["late", 4_000]),
        act("join", client="c1", node=NODE, session="t1", last_seq=2),
        wait(12.345),
    )


def test_a_start_may_be_carried_out_late_after_a_limit_refused_it(lab: Laboratory) -> None:
    """A start may be carried out late, after a limit refused it.

    The first message of the start arrived half a minute later, and began a session without a
    client. The auditor allowed it of joins only (seed 92399).
    """
    run(
        lab,
        pay("ann9", 1_250_000),
        start("s1", "ann9", "six"),
        wait(42.345),
        act("cut", client="c-s1"),
        start("s2", "ann9", "six"),
        mishaps(NODE, "redis", ["lost", 4_000], ["late", 30_000]),
        start("s3", "ann9", "recording"),
        wait(1),
    )


@pytest.mark.parametrize("seconds", [0, 0.3, 2])
def test_a_process_is_noted_again_that_a_late_leave_has_removed(
    lab: Laboratory, seconds: float
) -> None:
    """A process is noted again after a late leave has removed it.

    Redis carried out the leave after another client had joined on the same process. Another process
    made each step first, so no step noted this process again.
    """
    run(
        lab,
        act("serve", node="node.1"),
        act("start", client="c1", node="node.1", user="cat9", kind="recording", session="s1"),
        act("join", client="c0", node="node.0", session="s1", last_seq=0),
        wait(20),
        mishaps("node.1", "redis", ["late", 4_000]),
        act("leave", client="c1", session="s1"),
        wait(seconds),
        act("join", client="c2", node="node.1", session="s1", last_seq=None),
        wait(12),
        wait(600),
    )


def test_a_process_is_noted_whose_client_joins_while_another_leaves(lab: Laboratory) -> None:
    """A process whose client joins while another leaves is noted.

    Redis noted the join before it carried out the leave, and the last claim of the process that
    seemed to leave was answered after the join (seed 91115).
    """
    user, node = "cat91115", "node.1"
    outcome = lab.run(
        91115,
        0,
        actions=[
            act("serve", node=node),
            act("start", client="c8", node=node, user="bob91115", kind="capped", session="s9"),
            act("transfer", node=node, kind="hold", user=user, entry="hold:h11", micros=1_000_000,
                hold="h11", ttl_ms=1_800_000, form=3),
            act("slow_redis", delays=[700, 1_200, 900], ms=20_000),
            act("start", client="c111", node=node, user=user, kind="recording", session="s112"),
            wait(29.999),
            act("join", client="c138", node=NODE, session="s135", last_seq=0),
            act("join", client="c140", node=node, session="s135", last_seq=None),
            mishaps(node, "redis", ["lost", 400]),
            act("join", client="c138", node=node, session="s112", last_seq=2),
            wait(0.999),
            act("slow_redis", delays=[1_400], ms=90_000),
            act("join", client="c140", node=NODE, session="s112", last_seq=None),
            act("leave", client="c111", session="s112"),
            wait(180),
        ],
    )  # fmt: skip
    if outcome.failure is not None:
        raise outcome.failure


def test_a_client_whose_start_was_refused_proves_no_time(lab: Laboratory) -> None:
    """A client whose start was refused proves no time (money 3075).

    The auditor took it for present, and missed that another client was gone.
    """
    run(
        lab,
        start("s1", kind="six"),
        pay("cat9", 1_000_000),
        act("join", client="c2", node=NODE, session="s1", last_seq=None),
        act("start", client="c3", node=NODE, user="cat9", kind="six", session="s1"),
        wait(0.001),
        act("watch", client="w", node=NODE, session="s1"),
        act("mute", client="c3"),
        act("mute", client="c2"),
        wait(60),
    )


def test_a_stop_from_outside_takes_back_what_a_silent_client_was_shown(lab: Laboratory) -> None:
    """An outside stop takes back what a silent client was shown.

    The session ends at the client's last proof of life, and a tick shows that while the step is on
    its way (faults 41297).
    """
    run(
        lab,
        start("s1", "ann9", "recording"),
        act("cut", client="c-s1"),
        wait(19),
        act("join", client="c2", node=NODE, session="s1", last_seq=0),
        wait(10.001),
        act("drop_lines"),
        act("mute", client="c2"),
        act("slow_redis", delays=[1_400], ms=20_000),
        act("operator", client="c2", session="s1"),
        wait(5),
    )


def test_peers_count_clients_of_silent_process_to_its_last_proof(lab: Laboratory) -> None:
    """A client was cut, then its process was silent (seed 92113).

    The process had not noticed the cut, so it proved its own life after it. Peers do not know of
    the cut: the session is suspended as of that proof, as DESIGN section 2 says.
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.b"),
        start("s1"),
        act("cut", client="c-s1"),
        wait(2.5),
        mishaps(NODE, "redis", *[["lost"]] * 12),
        wait(60),
    )


def billed(lab: Laboratory, *actions: Action) -> int:
    """The counted time of the only session, in ms."""
    performers: list[Performer] = []
    outcome = lab.run(SEED, 0, actions=actions, started=performers.append)
    if outcome.failure is not None:
        raise outcome.failure
    (row,) = performers[0].world.cluster.postgres.fetch("SELECT elapsed_ms FROM sessions")
    return int(row["elapsed_ms"])


@pytest.mark.parametrize("late_ms", [1_600, 5_000])
@pytest.mark.parametrize("is_back", [False, True])
def test_death_after_failed_join_proves_nothing(
    lab: Laboratory, late_ms: int, is_back: bool
) -> None:
    """A process dies that Redis notes for a failed join.

    The last heartbeat of that process counted as a proof of life of the session, which it never
    served (faults 52015).
    """
    back = [act("serve", node="node.c"), wait(3)]
    back += [act("join", client="back", node="node.c", session="s1", last_seq=0)]
    found_ms = billed(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.b"),
        start("s1"),
        wait(1),
        act("cut", client="c-s1"),
        wait(1),
        act("slow_redis", delays=[late_ms], ms=25_000),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(23),
        act("kill", name="node.b"),
        wait(4),
        *(back if is_back else []),
        act("leave", client="back", session="s1"),
        wait(120),
    )
    assert found_ms <= 2_000


def test_death_after_confirmed_join_counts_last_heartbeat(lab: Laboratory) -> None:
    """A join in running time is confirmed without a step."""
    found_ms = billed(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.b"),
        start("s1"),
        wait(1),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        act("close", client="c-s1"),
        wait(12),
        act("kill", name="node.b"),
        wait(120),
    )
    assert 11_000 < found_ms <= 13_000


def test_sweep_of_slow_redis_is_published_to_the_sweepers_own_session(lab: Laboratory) -> None:
    """The sweeper's own session hears the step (seed 930201).

    The step was made in the name of a dead process.
    """
    run(
        lab,
        act("serve", node="node.9"),
        act("kill", name="node.0"),
        act("serve", node="node.27"),
        act("start", client="first", node="node.9", user="cat9", kind="day", session="s1"),
        act("slow_redis", delays=[600, 1_600, 5_000], ms=90_000),
        wait(5),
        act("kill", name="node.9"),
        act("join", client="second", node="node.27", session="s1", last_seq=None),
        wait(30),
    )
