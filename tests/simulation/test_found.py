"""What simulated worlds have found, each as the shortest run of a world that shows it.

A seed may come to mean another world when a simulation learns to do more; a list of
actions means the same for ever.
"""

from typing import Any

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, mishaps, pay, run, start, wait

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


def test_an_end_that_redis_forgot_by_its_own_clock_is_not_charged_again(place: Laboratory) -> None:
    """A step of its clock let it forget an ended session before anybody had written it down;
    then a replica took over, which was told of the end too (seed 437)."""
    run(
        place,
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


def test_an_end_that_redis_forgot_while_it_was_away_is_not_charged_again(
    place: Laboratory,
) -> None:
    """Its clock is stepped while it is away, and it is asked for the time before it is told
    what it may have lost (seed 385)."""
    run(
        place,
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


def test_what_redis_forgot_for_a_step_of_its_clock_is_not_charged_again(
    place: Laboratory,
) -> None:
    """It keeps the end of a session for an hour by its own clock, and a process keeps it until
    a flusher has written it down; then Redis seems to have lost it (seed 353)."""
    run(
        place,
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


def test_what_redis_forgot_is_not_charged_again_after_the_loss_of_something_else(
    place: Laboratory,
) -> None:
    """Putting back what was lost begins a new epoch, for which all that is kept is looked at
    again; but what was told to Redis long ago is there, or forgotten."""
    run(
        place,
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


def test_money_that_redis_lost_is_put_back_where_nobody_serves_a_session(
    place: Laboratory,
) -> None:
    """A replica takes over that lacks a grant, and knows the epoch (seed 332)."""
    run(
        place,
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


def test_a_join_proves_no_more_than_that_somebody_asked_for_it(place: Laboratory) -> None:
    """It waits while the roll is called, and its socket may be gone by then (seed 208)."""
    run(
        place,
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


def test_a_lost_session_is_charged_in_redis_what_postgres_was_told_of_it(
    place: Laboratory,
) -> None:
    """Its end was known to a process that died, and some of its minutes to another, which wrote
    them down after the account had been loaded (seed 351)."""
    run(
        place,
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


def test_a_join_that_fails_leaves_no_session_behind_that_nobody_serves(place: Laboratory) -> None:
    """The last socket elsewhere goes while a process that has joined already waits for Postgres,
    in vain (seed 869)."""
    run(
        place,
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
    place: Laboratory,
) -> None:
    """Redis goes away while the roll is called: it cannot be told that the join was in vain, and
    is when it is back (seed 5332)."""
    run(
        place,
        pay("cat9", 5_000_000),
        start("s1"),
        act("serve", node="node.b"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        act("redis_away", ms=2000),
        wait(12),
    )


def test_a_join_whose_answer_is_lost_leaves_no_process_noted_that_serves_nobody(
    place: Laboratory,
) -> None:
    """It was done all the same, and nobody heard of that (found by looking for more like seed
    5332)."""
    run(
        place,
        pay("cat9", 5_000_000),
        start("s1"),
        act("serve", node="node.b"),
        wait(60),
        mishaps("node.b", "redis", ["unanswered"]),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(12),
    )


def test_what_others_hold_is_not_in_the_way_of_a_gap_that_is_billed(place: Laboratory) -> None:
    """Who comes back pays for the time between; another session holds ahead what is lacking for
    that (seed 975)."""
    clients = run(
        place,
        pay("cat9", 750_000),
        start("s1", kind="capped"),
        act("cut", client="c-s1"),
        wait(39),
        start("s2"),
        wait(1),
        act("join", client="c-again", node=NODE, session="s1", last_seq=None),
        wait(0.1),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert stopped["reason"] == "client"
    assert stopped["receipt"]["elapsed_ms"] == 40_100


def test_what_is_said_when_somebody_joins_is_missed_or_heard_but_not_both(
    place: Laboratory,
) -> None:
    """The process that is joined knows of another session of the month, and warns (seed 794)."""
    clients = run(
        place,
        start("s1", user="ann9", kind="recording"),
        act("serve", node="node.b"),
        act("start", client="c-s2", node="node.b", user="ann9", kind="recording", session="s2"),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        wait(1),
    )
    told = [one for one in clients[-1].messages if one.get("session_id") == "s1"]
    missed = [notice["seq"] for one in told for notice in one.get("missed", ())]
    assert missed == [1]
    assert [one["seq"] for one in told if one["type"] == "limit_warning"] == [2]  # of the other


def test_a_process_that_is_joined_says_nothing_of_figures_that_do_not_belong_together(
    place: Laboratory,
) -> None:
    """A limit is lowered between reading the session and its months; the process that serves
    the session has shortened the grant, and warned, when it is read again (seed 5183)."""
    clients = run(
        place,
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


def test_a_request_proves_no_more_than_was_when_it_was_made(place: Laboratory) -> None:
    """A pause and its end wait for a Redis that is away, and so does the line (seed 690)."""
    run(
        place,
        pay("cat9", 9_000_000),
        start("s1"),
        wait(5),
        act("redis_away", ms=30_000),
        act("ask", client="c-s1", session="s1", event="pause"),
        act("ask", client="c-s1", session="s1", event="resume"),
        act("cut", client="c-s1"),
        wait(180),
    )


def test_an_end_that_redis_forgot_right_after_the_flush_is_not_charged_again(
    place: Laboratory,
) -> None:
    """Redis was to keep it for an hour more, and its clock is stepped while it is away; the
    process that ended it had not heard yet that it was flushed (seed 535)."""
    run(
        place,
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


def test_a_watcher_hears_what_was_told_while_the_line_was_down(place: Laboratory) -> None:
    """Its process has no step to make that would be answered with that (seed 667)."""
    clients = run(
        place,
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


def test_a_watcher_hears_of_an_end_that_was_told_while_the_line_was_down(
    place: Laboratory,
) -> None:
    """Nothing follows by which its process would find out that it has missed something."""
    clients = run(
        place,
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


def test_what_is_said_while_a_join_waits_is_among_what_was_missed(place: Laboratory) -> None:
    """The session is read once more when the roll has been called (seed 647)."""
    run(
        place,
        pay("ann9", 4_500_000),
        act("serve", node="node.b"),
        start("s1", user="ann9"),
        wait(30),
        act("join", client="c-b", node="node.b", session="s1", last_seq=0),
        pay("ann9", 20_000_000, "more"),
        wait(1),
    )


def test_nobody_goes_on_with_a_session_that_ended_before_a_loss(place: Laboratory) -> None:
    """Redis comes back as it was before the end, and somebody joins before the process that
    ended it has told that (seed 464)."""
    run(
        place,
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


def test_a_stop_has_a_number_of_its_own_after_a_process_died_that_had_said_more(
    place: Laboratory,
) -> None:
    """What it said last nobody recorded; who heard that comes back and is shown the stop (seed
    514)."""
    clients = run(
        place,
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


def test_a_watcher_is_shown_what_was_done_before_its_process_listened(place: Laboratory) -> None:
    """The account is being opened when the last socket goes elsewhere (seed 1338)."""
    clients = run(
        place,
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


def test_a_cap_ends_a_session_though_redis_is_away(place: Laboratory) -> None:
    """No grant says where it is, and uncovered time went on beyond it (seed 1384)."""
    clients = run(
        place,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("redis_away", ms=150_000),
        wait(180),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("session_cap", 100_000)


def test_a_stop_at_a_cap_is_said_before_redis_can_hear_of_it(place: Laboratory) -> None:
    """What lay in Redis was counted on beyond the cap while it was away, though the client had
    been told of the stop on time (seed 20019)."""
    clients = run(
        place,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("redis_away", ms=150_000),
        wait(110),
        wait(70),
    )
    told = {one["type"]: one for one in clients[0].messages}
    stopped_ms = told["limit_reached"]["stopped_at"] - told["session"]["started_at"]
    assert stopped_ms == told["stopped"]["receipt"]["elapsed_ms"] == 100_000


def test_what_the_dead_have_left_runs_beyond_no_cap(place: Laboratory) -> None:
    """Nobody lived to end it while Postgres was away, and what lay in Redis was counted on
    beyond the cap (found by looking at 20019)."""
    clients = run(
        place,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("postgres_away", ms=150_000),
        wait(10),
        act("kill", name=NODE),
        act("join", client="c-late", node="node.x1", session="s1", last_seq=None),
        wait(60),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("session_cap", 100_000)


def test_uncovered_time_that_is_proven_later_is_recorded_as_such(place: Laboratory) -> None:
    """The first answer of Redis came before the first proof of life, and what it granted hid
    that nothing had been when the time was used: debt, and nothing said why (seed 5338)."""
    clients = run(
        place,
        pay("cat9", 50_000),
        start("s1"),
        act("redis_away", ms=8_000),
        wait(61),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("credits", 9_600)


def test_a_process_that_starts_takes_no_time_that_was_long_on_its_way(place: Laboratory) -> None:
    """Its clock stayed as far behind the others' as their answer was late (seed 3200)."""
    run(
        place,
        mishaps(NODE, "redis", ["late", 400]),
        act("serve", node="node.b"),
        wait(60),
    )


def test_a_start_is_not_cleared_away_by_what_its_account_is_told(place: Laboratory) -> None:
    """Shared free time is being asked for, and credits come in: the session ran on where this
    process looked for it no more, and was suspended as one without a socket (seed 3356)."""
    clients = run(
        place,
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


def test_a_watcher_is_not_cleared_away_before_it_sits(place: Laboratory) -> None:
    """The session is being read again when it is paused: its end was not heard (seed 3356)."""
    clients = run(
        place,
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


def test_a_join_is_not_cleared_away_by_what_its_account_is_told(place: Laboratory) -> None:
    """The session is being read again when it is paused: the process that joined it was noted
    for it, and did not serve it (found by looking for more like seed 3356)."""
    clients = run(
        place,
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


def test_minutes_of_a_dead_process_are_not_lost_with_redis(place: Laboratory) -> None:
    """Whoever made the minute died before it was flushed, and then Redis lost it; but another
    process had joined the session, and ended it with that minute on its receipt (seed 3062)."""
    run(
        place,
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


def test_a_flusher_that_finds_its_groups_lost_flushes_all_the_same(place: Laboratory) -> None:
    """It reads nothing before it has made them again, and the last flush left it at that (seed
    3149)."""
    run(
        place,
        act("kill", name=FLUSHER),
        act("flusher", name="flusher1", pace_ms=1_000_000),
        wait(1_010),
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        act("empty"),
        wait(150),
    )


@pytest.mark.parametrize(
    ("is_paused", "mishap"), [(True, ["late", 4_000]), (False, ["lost"])], ids=["late", "lost"]
)
def test_a_socket_that_left_untold_was_there_as_long_as_its_process(
    place: Laboratory, *, is_paused: bool, mishap: list[Any]
) -> None:
    """It left while a step was on its way, or could not be told, and its process died after one
    more proof of life. Nobody else knows of its leaving: the session is suspended as of that
    proof, as DESIGN section 2 has it, and the auditor took that for too much (seed 10248)."""
    run(
        place,
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
