"""Found in simulated worlds (see ``traces``): what Redis loses or forgets."""

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_forgotten_ended_session_is_not_restarted(lab: Laboratory) -> None:
    """A forgotten ended session is not started again (seed 49).

    Redis keeps the end of a session for an hour, and no flusher lived for two.
    """
    run(
        lab,
        start("s1", kind="recording"),
        wait(60),
        act("kill", name=FLUSHER),
        act("leave", client="c-s1", session="s1"),
        wait(2 * 3_600),
        act("join", client="c-again", node=NODE, session="s1", last_seq=2),
        act("flusher", name="flusher1", pace_ms=1_000),
    )


def test_end_forgotten_by_clock_step_is_charged_once(lab: Laboratory) -> None:
    """A clock step made Redis forget an end before its record.

    Then a replica took over, to which the end was asserted too (seed 437).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        wait(60),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(300),
        act("step_clock", where="redis", ms=3_600_000),
        start("s2"),
        wait(10),
        act("lag"),
        wait(1),
        act("failover"),
        wait(30),
    )


def test_end_forgotten_while_away_is_charged_once(
    lab: Laboratory,
) -> None:
    """The clock of Redis is stepped while Redis is away.

    Redis is asked for the time before processes assert what Redis may have lost (seed 385).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        wait(60),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(400),
        act("redis_away", ms=800),
        act("step_clock", where="redis", ms=3_600_000),
        wait(30),
    )


def test_session_forgotten_by_clock_step_is_charged_once(
    lab: Laboratory,
) -> None:
    """Redis keeps a session's end for an hour by its clock.

    A process keeps the end until a flusher has recorded it. Then Redis seems to have lost it (seed
    353).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        wait(60),
        act("leave", client="c-s1", session="s1"),
        wait(600),
        act("step_clock", where="redis", ms=3_600_000),
        act("lag"),
        wait(2),
        act("failover"),
        wait(180),
        act("flusher", name="flusher1", pace_ms=1_000),
    )


def test_forgotten_end_is_charged_once_after_other_loss(
    lab: Laboratory,
) -> None:
    """Recovery begins a new epoch, which rechecks all that processes keep.

    An end that Redis took long ago is there, or forgotten.
    """
    run(
        lab,
        pay("cat9", 200_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        start("s2"),
        wait(60),
        act("leave", client="c-s1", session="s1"),
        wait(2 * 3_600),
        act("lag"),
        act("ask", client="c-s2", session="s2", event="pause"),
        wait(2),
        act("failover"),
        wait(180),
        act("flusher", name="flusher1", pace_ms=1_000),
    )


def test_lost_grant_is_restored_without_sessions(
    lab: Laboratory,
) -> None:
    """A replica takes over with the epoch, without a grant (seed 332)."""
    run(
        lab,
        pay("cat9", 1_000_000, "before"),
        start("s1"),
        wait(5),
        act("leave", client="c-s1", session="s1"),
        wait(1_800),
        act("lag"),
        pay("cat9", 1_000_000, "lost"),
        wait(0.01),
        act("failover"),
        wait(600),
    )


def test_lost_session_is_charged_as_recorded(
    lab: Laboratory,
) -> None:
    """A dead process had a session's end, another its minutes.

    The other process had some of the minutes, and recorded them after the account had been loaded
    (seed 351).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        act("serve", node="node.b"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=None),
        wait(130),
        act("leave", client="c-s1", session="s1"),
        start("s2"),
        wait(60),
        act("leave", client="c-b", session="s1"),
        wait(90),
        act("kill", name="node.b"),
        wait(30),
        act("empty"),
        wait(300),
    )


def test_end_forgotten_after_flush_is_charged_once(
    lab: Laboratory,
) -> None:
    """Redis's clock is stepped while Redis is away, after a flush.

    Redis was to keep the end for an hour more. The process that ended the session did not know of
    the flush yet (seed 535).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        start("s1"),
        wait(60),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(300),
        act("flusher", name="flusher1", pace_ms=1_000),
        wait(1),
        act("redis_away", ms=800),
        act("step_clock", where="redis", ms=3_600_000),
        wait(30),
    )


def test_session_ended_before_loss_does_not_continue(lab: Laboratory) -> None:
    """Redis comes back as it was before the end.

    A client joins before the process that ended the session has asserted the end (seed 464).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        start("s2"),
        wait(61),
        act("lag"),
        wait(0.9),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(3),
        act("failover"),
        act("join", client="c-again", node=NODE, session="s1", last_seq=None),
        act("ask", client="c-again", session="s1", event="pause"),
        wait(180),
    )


def test_starting_process_ignores_old_time(lab: Laboratory) -> None:
    """A starting process ignores the old time of a late answer.

    The process's clock stayed behind the others' by the delay of their answer (seed 3200).
    """
    run(
        lab,
        mishaps(NODE, "redis", ["late", 400]),
        act("serve", node="node.b"),
        wait(60),
    )


def test_minutes_of_dead_process_survive_loss(lab: Laboratory) -> None:
    """A process died before flushing its minute, which Redis then lost.

    Another process had joined the session, and ended it with that minute on its receipt (seed
    3062).
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        act("serve", node="node.1"),
        act("start", client="c-s1", node="node.1", user="cat9", kind="second", session="s1"),
        wait(90),
        act("kill", name="node.1"),
        wait(8),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        act("empty"),
        wait(10),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(60),
    )


def test_flusher_without_groups_still_flushes(lab: Laboratory) -> None:
    """The flusher reads nothing before it has made its groups again.

    The last flush did no more than that (seed 3149).
    """
    run(
        lab,
        act("kill", name=FLUSHER),
        act("flusher", name="flusher1", pace_ms=1_000_000),
        wait(1_010),
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        act("empty"),
        wait(150),
    )


def test_session_ended_in_outbox_is_not_lost(lab: Laboratory) -> None:
    """Redis's clock made it forget a session that Postgres had running.

    The session was ended once more, as one without a process, and was charged again.
    """
    run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        wait(60),
        act("flush"),
        act("kill", name=FLUSHER),
        act("ask", client="c-s1", session="s1", event="stop"),
        act("serve", node="node.b"),
        act("start", client="c-s2", node="node.b", user="cat9", kind="second", session="s2"),
        act("kill", name=NODE),
        act("step_clock", where="redis", ms=25 * 3_600_000),
        wait(400),
        act("flusher", name="late", pace_ms=1_000),
        wait(60),
    )


def test_a_dead_process_knew_of_a_leave_that_redis_had_lost(lab: Laboratory) -> None:
    """A process died before it put back a leave (seed 92055).

    A replica without the leave had taken over. The process's peers count its sockets as alive up to
    its last proof.
    """
    node, user = "node.71", "bob92055"

    def paid(entry: str, micros: int, form: int) -> Action:
        return act("transfer", node=node, kind="pay", user=user, entry=entry, micros=micros,
                   form=form)  # fmt: skip

    outcome = lab.run(
        92055,
        0,
        actions=[
            act("serve", node=node),
            act("slow_redis", delays=[600, 1_600, 5_000], ms=20_000),
            wait(60),
            paid("p145", 1_100_000, 1),
            act("start", client="c146", node=node, user=user, kind="six", session="s147",
                backend=node, turns=18),
            act("slow_redis", delays=[600, 1_600, 5_000], ms=90_000),
            paid("p151", 3_000_000, 3),
            act("close", client="c146"),
            act("lag"),
            paid("p155", 3_000_000, 3),
            act("start", client="c156", node=node, user=user, kind="six", session="s157"),
            paid("p158", 3_000_000, 2),
            act("failover", unnoticed=False),
            act("transfer", node=node, kind="hold", user=user, entry="hold:h159",
                micros=3_000_000, hold="h159", ttl_ms=2_000, form=3),
            act("kill", name=node),
        ],
    )  # fmt: skip
    if outcome.failure is not None:
        raise outcome.failure


@pytest.mark.parametrize("unnoticed", [False, True])
def test_entry_of_lost_id_keeps_its_records(lab: Laboratory, unnoticed: bool) -> None:
    """A replica without the newest entry gives its id to another one.

    The process that had made both kept the second in place of the first, and the end of a session
    was lost although its client had the receipt (losses 88019).
    """
    clients = run(
        lab,
        pay("ann9", 1_000_000),
        start("s1", user="ann9", kind="recording"),
        wait(5),
        act("lag"),
        act("ask", client="c-s1", session="s1", event="stop"),
        act("failover", unnoticed=unnoticed),
        start("s2", user="ann9", kind="capped"),
        wait(120),
    )
    assert clients[0].messages[-1]["receipt"]["elapsed_ms"] == 5_000


def test_charge_of_a_dead_process_is_in_the_account_that_is_loaded(lab: Laboratory) -> None:
    """Two sessions end while Postgres is away, and Redis loses everything.

    The process of one puts its end into the outbox again, and dies. The other process loaded the
    account before that end was in Postgres, so the credits could be spent a second time (seed
    950899).
    """
    clients = run(
        lab,
        pay("ann9", 842_591),
        act("serve", node="node.b"),
        start("s1", user="ann9", kind="chat"),
        act("start", client="c-b", node="node.b", user="ann9", kind="chat", session="s2"),
        act("postgres_away", ms=900_000),
        wait(180),
        act("empty"),
        wait(1),
        act("kill", name="node.b"),
    )
    assert all(client.messages[-1]["type"] == "stopped" for client in clients)
