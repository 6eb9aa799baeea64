"""Directed worlds of what the record restores to Redis: counters, holds, operations."""

from tests.simulation.actions import Action
from tests.simulation.directed.steps import (
    EMPTY,
    FLUSH,
    FORGET,
    LAG,
    NO_FLUSHER,
    OTHER,
    RICH,
    SERVE,
    UNNOTICED,
    Directed,
    answered,
    ask,
    elsewhere,
    hold,
    join,
    post,
    sketch,
    void,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait

PUT_BACK = wait(40)
"""By then everything is in its place again after a loss, and was audited."""
LOSE_OTHER_PARTITION = act("empty", partition=1)
LATE_FLUSHER = act("flusher", name="late", pace_ms=1_000)
AGAIN = act("again", node=NODE, entry="e2")
LONG_AGO = wait(600)
"""Recovery reads no record older than this."""


def _spend_elsewhere(user: str, entry: str, micros: int = CREDIT // 4) -> Action:
    return act("transfer", node=OTHER, kind="spend", user=user, entry=entry, micros=micros)


def _blind(end: Action) -> tuple[Action, ...]:
    """A hold's end in Redis that is recorded once Postgres is back."""
    slow = mishaps(NODE, "redis", ["none"], ["slow", 150])
    return act("postgres_away", ms=100), slow, end


RESTORED = {
    "a partition is lost that nobody looks at": Directed((
        pay("eve9", 9 * CREDIT), sketch("eve9", "e1"), wait(5), FLUSH, LOSE_OTHER_PARTITION,
        sketch("eve9", "e2"), answered("e2", "unknown"), wait(5), AGAIN, answered("e2", "done"),
        act("prepare", node=NODE, user="eve9", kind="second", session="s1", confirmed=False),
        wait(80), act("prepare", node=NODE, user="eve9", kind="second", session="s1"),
        start("s1", "eve9"), wait(70),
    )),
    "an account is loaded twice, the second time late": Directed((
        SERVE, RICH, sketch("cat9", "e0"), _spend_elsewhere("cat9", "e1"), wait(5), FLUSH, FORGET,
        mishaps(OTHER, "redis", *[["none"]] * 4, ["late", 10_000]),
        _spend_elsewhere("cat9", "e2"), sketch("cat9", "e3"), start("s1"), wait(20),
    )),
    "a grant comes late to an account that has it": Directed((
        SERVE, RICH, sketch("cat9", "e0"), _spend_elsewhere("cat9", "e1"), wait(5), FLUSH, FORGET,
        mishaps(NODE, "redis", ["late", 10_000]), pay("cat9", CREDIT, "g2"),
        _spend_elsewhere("cat9", "e2"), start("s1"), wait(20),
    )),
    "a hold expires before its month is loaded": Directed((
        RICH, hold("cat9", "h1", CREDIT, 20_000), wait(5), FLUSH, FORGET, NO_FLUSHER, wait(120),
        hold("cat9", "h2", CREDIT, often=1), answered("hold:h2", "done"), LATE_FLUSHER, wait(5),
    )),
    "a hold is voided before its month is loaded": Directed((
        RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, FORGET, NO_FLUSHER,
        act("postgres_away", ms=2_000), void("cat9", "h1"), answered("v-h1", "unknown"), wait(3),
        hold("cat9", "h2", CREDIT, often=1), answered("hold:h2", "done"), LATE_FLUSHER, wait(5),
    )),
    "a hold expires before a replica takes over": Directed((
        RICH, hold("cat9", "h1", CREDIT, 20_000), wait(5), FLUSH, NO_FLUSHER, wait(120), LAG,
        sketch("cat9", "e1"), UNNOTICED, PUT_BACK, hold("cat9", "h2", CREDIT, often=1),
        answered("hold:h2", "done"), LATE_FLUSHER, PUT_BACK,
    )),
    "operations are on a replica that Postgres lacks": Directed((
        RICH, sketch("cat9", "e0"), wait(5), FLUSH, NO_FLUSHER,
        mishaps(NODE, "postgres", ["none"], ["lost"]), sketch("cat9", "e1"),
        answered("e1", "unknown"), LAG, UNNOTICED, PUT_BACK, sketch("cat9", "e2", often=2),
        answered("e2", "refused"), LATE_FLUSHER, PUT_BACK,
    )),
    "the first money of an account is lost": Directed((
        start("s1", "ann9", "recording"), wait(5), FLUSH, LAG, pay("ann9", CREDIT), UNNOTICED,
        PUT_BACK, sketch("ann9", "e1"), answered("e1", "done"), PUT_BACK,
    )),
    "sessions end while nothing can be written down, and Redis is emptied": Directed((
        SERVE, RICH, start("s1"), start("s2", "ann9", "recording"), elsewhere("s3"), wait(5), FLUSH,
        act("postgres_away", ms=120_000), wait(65), ask("s1", "stop"), ask("s2", "stop"), wait(1),
        EMPTY, wait(150), PUT_BACK,
    )),
    "sessions end while nothing can be written down, and a replica takes over": Directed((
        RICH, start("s1"), start("s2", kind="six"), start("s3"), wait(5), FLUSH,
        act("postgres_away", ms=120_000), LAG, wait(65), ask("s1", "stop"), ask("s2", "stop"),
        wait(1), UNNOTICED, wait(150), PUT_BACK,
    )),
    "a young hold of an old account on an empty Redis": Directed((
        RICH, LONG_AGO, hold("cat9", "h1", CREDIT), wait(5), FLUSH, EMPTY, PUT_BACK,
        sketch("cat9", "e1"), answered("e1", "done"), PUT_BACK,
    )),
    "an old hold is voided, and a replica takes over": Directed((
        RICH, hold("cat9", "h1", CREDIT), LONG_AGO, FLUSH, EMPTY, PUT_BACK, sketch("cat9", "e1"),
        wait(5), FLUSH, LAG, void("cat9", "h1"), UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "an old hold is posted, and a replica takes over": Directed((
        RICH, hold("cat9", "h1", CREDIT), LONG_AGO, FLUSH, EMPTY, PUT_BACK, start("s1"),
        wait(5), FLUSH, LAG, post("cat9", "h1", CREDIT // 2), UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "a hold ends, and a replica has it without its account": Directed((
        RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, EMPTY, PUT_BACK, LAG, void("cat9", "h1"),
        UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "a hold ends in the record while an empty Redis learns of it": Directed((
        SERVE, RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, NO_FLUSHER,
        mishaps(OTHER, "postgres", ["none"], ["lost"]),
        post("cat9", "h1", CREDIT // 2, node=OTHER), LATE_FLUSHER,
        mishaps("late", "postgres", ["slow", 15_000]), wait(2), EMPTY, wait(30), start("s1"),
        PUT_BACK, post("cat9", "h1", CREDIT // 2, "p-again"), answered("p-again", "done"),
        PUT_BACK,
    )),
    "a posted hold counts while a replica learns of it": Directed((
        RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, LAG, post("cat9", "h1", 1), UNNOTICED,
        mishaps(NODE, "postgres", ["none"], ["none"], ["slow", 8_000]), wait(3),
        hold("cat9", "h2", CREDIT, often=1), answered("hold:h2", "refused"), PUT_BACK,
    )),
    "holds end once more on a replica": Directed((
        RICH, hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT), hold("cat9", "h3", CREDIT),
        hold("cat9", "h4", CREDIT), wait(5), FLUSH, LAG, void("cat9", "h1"),
        post("cat9", "h2", CREDIT // 2), post("cat9", "h3", CREDIT // 4), post("cat9", "h4", 0),
        UNNOTICED, act("postgres_away", ms=2_000), post("cat9", "h1", CREDIT // 2),
        void("cat9", "h2"),
        post("cat9", "h3", CREDIT, "p-other"), post("cat9", "h4", CREDIT, "p-more"), PUT_BACK,
        hold("cat9", "last", 1, often=4), answered("hold:last", "done"),
        hold("cat9", "more", 1, often=4), answered("hold:more", "refused"), PUT_BACK,
    )),
    "holds end once more on a replica, and nobody shows their account": Directed((
        RICH, act("show", node=NODE, user="cat9"), hold("cat9", "h1", CREDIT), wait(600), FLUSH,
        LAG, void("cat9", "h1"), UNNOTICED, act("postgres_away", ms=2_000),
        post("cat9", "h1", CREDIT // 2), wait(1), PUT_BACK,
        hold("cat9", "last", 1, often=1), answered("hold:last", "done"), PUT_BACK,
    )),
    "posted holds end once more before a replica is noticed": Directed((
        RICH, hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT), hold("cat9", "h3", CREDIT),
        wait(5), FLUSH, LAG, post("cat9", "h1", CREDIT // 2), post("cat9", "h2", 0),
        post("cat9", "h3", CREDIT // 4), UNNOTICED, *_blind(void("cat9", "h1")),
        *_blind(void("cat9", "h2")), *_blind(post("cat9", "h3", CREDIT, "p-more")),
        hold("cat9", "more", 1, often=3), answered("hold:more", "refused"), PUT_BACK,
    )),
    "a voided hold is posted with nothing before a replica is noticed": Directed((
        RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, LAG, void("cat9", "h1"), UNNOTICED,
        *_blind(post("cat9", "h1", 0)), PUT_BACK,
        hold("cat9", "last", 1, often=1), answered("hold:last", "done"), PUT_BACK,
    )),
    "a voided hold is over on a replica": Directed((
        RICH, hold("cat9", "h1", CREDIT, 20_000), wait(5), FLUSH, NO_FLUSHER,
        mishaps(NODE, "postgres", ["none"], ["none"], ["lost"]), hold("cat9", "h2", CREDIT),
        answered("hold:h2", "unknown"), LAG, void("cat9", "h1"), UNNOTICED,
        act("postgres_away", ms=30_000), wait(20), void("cat9", "h1", "v-more"), PUT_BACK,
        hold("cat9", "more", 1, often=1), answered("hold:more", "refused"),
        hold("cat9", "last", 1, often=2), answered("hold:last", "done"), LATE_FLUSHER, PUT_BACK,
    )),
    "a correction comes after a second replica": Directed((
        RICH, hold("cat9", "h1", CREDIT), wait(5), FLUSH, LAG, post("cat9", "h1", CREDIT // 2),
        UNNOTICED, LAG, act("postgres_away", ms=100),
        mishaps(NODE, "redis", ["none"], ["slow", 150], *[["none"]] * 2, ["late", 10_000]),
        void("cat9", "h1"), answered("v-h1", "unknown"), wait(8.4), UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "a name is left of a hold": Directed((
        RICH, hold("cat9", "h1", CREDIT), void("cat9", "h1"), wait(5), FLUSH, wait(3_700),
        act("stray_hold", user="cat9", hold="h1"), act("stray_hold", user="cat9", hold="never"),
    )),
    "the last client leaves while another one joins in vain": Directed((
        SERVE, start("s1", "ann9", "recording"), wait(5), mishaps(OTHER, "postgres", ["lost"]),
        join("c2", "s1"), wait(2), act("close", client="c-s1"), wait(60),
    )),
    "a client joins in vain": Directed((
        SERVE, start("s1", "ann9", "recording"), wait(5), mishaps(OTHER, "postgres", ["lost"]),
        join("c2", "s1"), wait(18), wait(20), act("close", client="c-s1"), wait(60),
    )),
    "a client leaves as another one has joined in vain": Directed((
        SERVE, start("s1", "ann9", "recording"), wait(25), mishaps(OTHER, "postgres", ["lost"]),
        join("c2", "s1"), wait(10.2), act("close", client="c-s1"),
        act("phase", user="ann9", session="s1", phase="suspended"), wait(60),
    )),
    "a client joins at the limit, and who was there has died": Directed((
        SERVE, pay("cat9", CREDIT), elsewhere("s1"), wait(61),
        act("phase", user="cat9", session="s1", phase="stopping"), act("kill", name=OTHER),
        wait(0.5), join("c2", "s1", NODE), wait(8), wait(60),
    )),
    "a client joins in vain while a grace runs": Directed((
        SERVE, start("s1", "ann9", "recording"), wait(5), act("close", client="c-s1"),
        mishaps(OTHER, "postgres", ["lost"]), join("c2", "s1"), wait(60),
    )),
}  # fmt: skip
