"""Found in simulated worlds (see ``traces``): what Redis loses or forgets."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_an_ended_session_that_redis_forgot_is_not_started_again(lab: Laboratory) -> None:
    """Redis keeps the end of a session for an hour, and no flusher lived for two (seed 49)."""
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


def test_an_end_that_redis_forgot_by_its_own_clock_is_not_charged_again(lab: Laboratory) -> None:
    """A step of its clock let it forget an ended session before anybody had written it down;
    then a replica took over, which was told of the end too (seed 437)."""
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


def test_an_end_that_redis_forgot_while_it_was_away_is_not_charged_again(
    lab: Laboratory,
) -> None:
    """Its clock is stepped while it is away, and it is asked for the time before it is told
    what it may have lost (seed 385)."""
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


def test_what_redis_forgot_for_a_step_of_its_clock_is_not_charged_again(
    lab: Laboratory,
) -> None:
    """It keeps the end of a session for an hour by its own clock, and a process keeps it until
    a flusher has written it down; then Redis seems to have lost it (seed 353)."""
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


def test_what_redis_forgot_is_not_charged_again_after_the_loss_of_something_else(
    lab: Laboratory,
) -> None:
    """Putting back what was lost begins a new epoch, for which all that is kept is looked at
    again; but what was told to Redis long ago is there, or forgotten."""
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


def test_money_that_redis_lost_is_put_back_where_nobody_serves_a_session(
    lab: Laboratory,
) -> None:
    """A replica takes over that lacks a grant, and knows the epoch (seed 332)."""
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


def test_a_lost_session_is_charged_in_redis_what_postgres_was_told_of_it(
    lab: Laboratory,
) -> None:
    """Its end was known to a process that died, and some of its minutes to another, which wrote
    them down after the account had been loaded (seed 351)."""
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


def test_an_end_that_redis_forgot_right_after_the_flush_is_not_charged_again(
    lab: Laboratory,
) -> None:
    """Redis was to keep it for an hour more, and its clock is stepped while it is away; the
    process that ended it had not heard yet that it was flushed (seed 535)."""
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


def test_nobody_goes_on_with_a_session_that_ended_before_a_loss(lab: Laboratory) -> None:
    """Redis comes back as it was before the end, and somebody joins before the process that
    ended it has told that (seed 464)."""
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


def test_a_process_that_starts_takes_no_time_that_was_long_on_its_way(lab: Laboratory) -> None:
    """Its clock stayed as far behind the others' as their answer was late (seed 3200)."""
    run(
        lab,
        mishaps(NODE, "redis", ["late", 400]),
        act("serve", node="node.b"),
        wait(60),
    )


def test_minutes_of_a_dead_process_are_not_lost_with_redis(lab: Laboratory) -> None:
    """Whoever made the minute died before it was flushed, and then Redis lost it; but another
    process had joined the session, and ended it with that minute on its receipt (seed 3062)."""
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


def test_a_flusher_that_finds_its_groups_lost_flushes_all_the_same(lab: Laboratory) -> None:
    """It reads nothing before it has made them again, and the last flush left it at that (seed
    3149)."""
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


def test_a_session_whose_end_only_the_outbox_knows_is_not_lost(lab: Laboratory) -> None:
    """Redis had forgotten it by its own clock, and for Postgres it ran on. It was ended once
    more, as one that no process runs, and was charged again."""
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
