"""Found in simulated worlds (see ``traces``): holds."""

from typing import Any

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def hold(ttl_s: int) -> Action:
    """Cat holds the cost of an operation."""
    return act(
        "transfer", node=NODE, kind="hold", user="cat9", entry="hold:h1", micros=1_000_000,
        hold="h1", ttl_ms=ttl_s * 1_000,
    )  # fmt: skip


def test_hold_that_expires_without_redis_ends_later(lab: Laboratory) -> None:
    """A hold that expires without Redis ends later (seed 10234).

    No process can end the hold before; here processes search once a minute.
    """
    run(
        lab,
        pay("cat9", 5_000_000),
        hold(ttl_s=60),
        wait(55),
        act("redis_away", ms=180_000),
        wait(190),
        wait(180),
    )


def test_hold_open_only_in_postgres_is_given_back(lab: Laboratory) -> None:
    """The hold is older than an emptied Redis's restored data.

    Only its account reserves it there, until a request asks for the hold or it expires (seed
    10211).
    """
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
def test_account_loaded_after_hold_forgets_ended_hold(lab: Laboratory, end: str) -> None:
    """A hold was put back after a loss, before its account was.

    The account named the hold as one that only the account reserves, long after Redis had forgotten
    the hold (seed 43008).
    """
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


def test_hold_is_known_after_end_of_long_pause(lab: Laboratory) -> None:
    """The waiting record is young and contains the pause's begin.

    The record was taken for an outbox that is too far behind (seed 43017).
    """
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


def test_operations_of_others_before_lost_answer_are_allowed(
    lab: Laboratory,
) -> None:
    """A spend was the second of two in its tier's month.

    Before its answer came, the spend of another user with a higher limit was done too (faults
    41098).
    """

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


def operation(kind: str, entry: str, micros: int = 250_000, **more: Any) -> Action:
    """Ann spends on an operation, holds its cost, or ends a hold."""
    return act("transfer", node=NODE, kind=kind, user="ann9", entry=entry, micros=micros, **more)


def test_refused_spend_is_judged_by_what_was_done_before_it(lab: Laboratory) -> None:
    """At the end, requests without an answer are repeated in turn.

    A refusal for want of credits came before spends that had no monthly limit, and was judged with
    their number (full 53213).
    """
    run(
        lab,
        pay("ann9", 5_000_000),
        act("redis_away", ms=60_000),
        operation("spend", "e1", 8_000_000, often=1),
        operation("spend", "e2"),
        operation("spend", "e3"),
    )


def test_hold_at_limit_is_judged_by_what_was_open_before_it(lab: Laboratory) -> None:
    """At the end a hold is refused, then another one is voided."""
    run(
        lab,
        pay("ann9", 5_000_000),
        operation("hold", "hold:h1", hold="h1", ttl_ms=600_000),
        act("answered", entry="hold:h1", state="done"),
        act("redis_away", ms=60_000),
        operation("hold", "hold:h2", hold="h2", ttl_ms=600_000, often=1),
        operation("void", "v1", hold="h1"),
    )


def test_hold_is_not_looked_up_in_late_record(lab: Laboratory) -> None:
    """Redis, whose clock was stepped, has forgotten the hold.

    The hold is looked up once the waiting records have been flushed (seed 61392).
    """
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


def test_end_of_hold_in_outbox_survives_loss(lab: Laboratory) -> None:
    """Redis's clock made it forget a hold that Postgres had open.

    The hold was put back, and ended twice (faults 41052).
    """
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


def test_operation_ended_in_outbox_is_not_counted_after_loss(
    lab: Laboratory,
) -> None:
    """A held operation counts in its month until an uncharged end.

    Redis had forgotten that end, and Postgres had the hold open.
    """
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


def test_hold_that_expires_during_late_answers_ends_later(
    lab: Laboratory,
) -> None:
    """Here processes search for expired holds once a minute.

    The answer to the first search came too late, and with the second search the answer to the query
    for the hold (faults 41512).
    """
    run(
        lab,
        pay("cat9", 5_000_000),
        wait(45),
        hold(ttl_s=2),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(123),
        wait(180),
    )


def test_spend_that_redis_gets_twice_may_recall_twice(lab: Laboratory) -> None:
    """Both copies find the credits held by a session's grant (seed 940273)."""
    other = {"node": NODE, "user": "ann9", "entry": "s1", "micros": 250_000, "form": 0}
    run(
        lab,
        pay("cat9", 142_857),
        act("start", client="first", node=NODE, user="cat9", kind="capped", session="s1"),
        pay("cat9", 500_000, "p2"),
        act("transfer", kind="spend", **other),
        mishaps(NODE, "redis", ["none", 30_000], ["twice", 10]),
        act("transfer", node=NODE, kind="spend", user="cat9", entry="s2", micros=500_000, form=2),
    )
