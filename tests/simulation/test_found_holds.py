"""Found in simulated worlds (see ``traces``): holds."""

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def hold(ttl_s: int) -> Action:
    """Cat holds what an operation is going to cost."""
    return act(
        "transfer", node=NODE, kind="hold", user="cat9", entry="hold:h1", micros=1_000_000,
        hold="h1", ttl_ms=ttl_s * 1_000,
    )  # fmt: skip


def test_a_hold_that_is_over_while_redis_is_away_ends_after_its_return(lab: Laboratory) -> None:
    """Nobody can end it before; here processes look for it once a minute (seed 10234)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        hold(ttl_s=60),
        wait(55),
        act("redis_away", ms=180_000),
        wait(190),
        wait(180),
    )


def test_a_hold_that_only_postgres_has_open_is_given_back_at_the_end(lab: Laboratory) -> None:
    """Older than what is brought to an emptied Redis, it is reserved there by its account
    alone, until somebody asks for it or its time is over (seed 10211)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        hold(ttl_s=1_800),
        wait(600),
        act("empty"),
        wait(60),
        start("s1"),
    )


@pytest.mark.parametrize("end", ["expire", "post", "void"])
def test_an_account_that_was_loaded_behind_a_hold_forgets_it_with_its_end(
    lab: Laboratory, end: str
) -> None:
    """Put back after a loss before its account was, the hold was named there as one that only the
    account reserves, long after Redis had forgotten it (seed 43008)."""
    done = []
    if end != "expire":
        micros = 400_000 if end == "post" else 1_000_000
        done = [
            act("transfer", node=NODE, kind=end, user="cat9", entry="e1", micros=micros, hold="h1")
        ]
    run(
        lab,
        pay("cat9", 5_000_000),
        hold(ttl_s=120),
        act("empty"),
        wait(60),
        *done,
        wait(7_200),
    )


def test_a_hold_is_known_though_a_session_ends_that_was_paused_for_long(lab: Laboratory) -> None:
    """What waits to be written down is young, and tells of the pause's begin: that was taken
    for an outbox that is too far behind (seed 43017)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        hold(ttl_s=2),
        wait(3_700),
        start("s1", kind="capped"),
        wait(12),
        act("ask", client="c-s1", session="s1", event="pause"),
        wait(2_400),
        act("kill", name=FLUSHER),
        act("cut", client="c-s1"),
        wait(150),
        act("transfer", node=NODE, kind="post", user="cat9", entry="p1", micros=0, hold="h1"),
    )


def test_what_others_do_before_a_lost_answer_comes_was_no_more_than_it_may(
    lab: Laboratory,
) -> None:
    """A spend was the second of two that its tier may do, and was answered when another user's,
    who may do it more often, had been done too (faults 41098)."""

    def sketch(entry: str, **often: int) -> Action:
        return act(
            "transfer", node=NODE, kind="spend", user="ann9", entry=entry, micros=250_000, **often
        )

    run(
        lab,
        pay("ann9", 5_000_000),
        sketch("e1"),
        act("postgres_away", ms=60_000),
        sketch("e2", often=2),
        sketch("e3"),
    )


def test_a_hold_is_not_looked_up_while_records_look_old_to_redis(lab: Laboratory) -> None:
    """Its clock was stepped, and has forgotten the hold. Once what waits has been flushed, it is
    looked up (seed 61392)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        act("kill", name=FLUSHER),
        hold(ttl_s=60),
        wait(120),
        act("step_clock", where="redis", ms=3_600_000),
        wait(120),
        act("transfer", node=NODE, kind="post", user="cat9", entry="p1", micros=0, hold="h1"),
        act("flusher", name="late", pace_ms=1_000),
        wait(30),
        act("again", node=NODE, entry="p1"),
    )


def test_an_end_that_only_the_outbox_knows_is_not_undone_after_a_loss(lab: Laboratory) -> None:
    """Redis had forgotten the hold by its own clock, and Postgres had it open. It was put back,
    and ended twice (faults 41052)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        act("kill", name=FLUSHER),
        hold(ttl_s=60),
        wait(180),
        act("step_clock", where="redis", ms=3_600_000),
        act("drop_lines"),
        wait(60),
        act("flusher", name="late", pace_ms=1_000),
        wait(60),
    )


def test_an_operation_whose_end_only_the_outbox_knows_is_not_counted_after_a_loss(
    lab: Laboratory,
) -> None:
    """What was held for counts in its month until its end: Redis had forgotten that end, and
    Postgres had the hold open."""
    film = act(
        "transfer", node=NODE, kind="hold", user="cat9", entry="hold:h1", micros=1_000_000,
        hold="h1",
        ttl_ms=60_000, often=1,
    )  # fmt: skip
    again = act(
        "transfer", node=NODE, kind="hold", user="cat9", entry="hold:h2", micros=1_000_000,
        hold="h2",
        ttl_ms=60_000, often=1,
    )  # fmt: skip
    run(
        lab,
        pay("cat9", 5_000_000),
        act("kill", name=FLUSHER),
        film,
        wait(180),
        act("step_clock", where="redis", ms=3_600_000),
        act("drop_lines"),
        wait(60),
        again,
        act("answered", entry="hold:h2", state="done"),
        act("flusher", name="late", pace_ms=1_000),
        wait(60),
    )


def test_a_hold_that_is_over_while_answers_come_too_late_ends_a_while_after(
    lab: Laboratory,
) -> None:
    """Here processes look for it once a minute. The first look was answered too late, and with
    the second one the question for the hold (faults 41512)."""
    run(
        lab,
        pay("cat9", 5_000_000),
        wait(45),
        hold(ttl_s=2),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(123),
        wait(180),
    )
