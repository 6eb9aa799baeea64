"""Found in simulated worlds (see ``traces``): what processes take the time for."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_a_beat_that_comes_late_says_how_late_it_is(lab: Laboratory) -> None:
    """It was sent half a minute before (seed 61320)."""
    run(
        lab,
        mishaps(NODE, "redis", ["late", 30_000], ["lost", 1_600]),
        wait(1),
        wait(40),
        act("serve", node="node.b"),
        wait(10),
    )


def test_what_is_kept_a_day_ends_by_the_clock_before_it_was_stepped_back(lab: Laboratory) -> None:
    """Three hours, in three steps; the auditor allowed for two (faults 41025)."""
    back = act("step_clock", where="redis", ms=-3_600_000)
    run(lab, pay("cat9", 100_000), start("s1"), wait(60), back, back, back)


def test_a_session_may_begin_by_the_clock_of_a_process_that_is_ahead(lab: Laboratory) -> None:
    """It began while answers took seconds and the clock of Redis was stepped, and its session
    was there before its time (faults 41123)."""
    run(
        lab,
        act("step_clock", where="redis", ms=300),
        act("slow_redis", delays=[5_000], ms=20_000),
        act("serve", node="node.4"),
        act("transfer", node="node.4", kind="pay", user="ann9", entry="p8", micros=1_000_000),
        act(
            "start", client="c-s1", node="node.4", user="ann9", kind="six", session="s1"
        ),
    )  # fmt: skip


def test_a_beat_that_comes_after_its_sender_gave_it_up_says_how_late_it_is(
    lab: Laboratory,
) -> None:
    """Each was on its way for 2.5 s, and answers were waited for 1.5 s (seed 61421)."""
    run(
        lab,
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(1),
        act("serve", node="node.b"),
        wait(10),
    )


def test_the_time_of_the_last_beat_counts_where_none_comes(lab: Laboratory) -> None:
    """The lines of those who live were slow, and the clock of Redis had been stepped back: the
    time was that of the last proof of life (seed 61406)."""
    run(
        lab,
        act("slow_redis", delays=[700, 1_200, 900], ms=3_000),
        wait(5),
        act("slow_redis", delays=[5_000], ms=3_000),
        act("step_clock", where="redis", ms=-3_600_000),
        wait(5),
        act("slow_redis", delays=[1_400], ms=3_000),
        wait(30),
        act("slow_redis", delays=[600, 1_600, 5_000], ms=90_000),
        act("drop_lines"),
        act("serve", node="node.b"),
        wait(10),
    )
