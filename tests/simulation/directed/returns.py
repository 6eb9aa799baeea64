"""Directed worlds in which processes restore Redis's losses piece by piece."""

from tests.simulation.actions import Action
from tests.simulation.directed.forks import PAUSE, PUT_BACK, UNSAID, phase
from tests.simulation.directed.steps import (
    EMPTY,
    FLUSH,
    LAG,
    OTHER,
    RICH,
    SERVE,
    UNNOTICED,
    Directed,
    answered,
    ask,
    elsewhere,
    join,
    limit,
    minute_at,
    report,
    sketch,
    told,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait


def graced(user: str, session: str, is_graced: bool) -> Action:
    """Whether a session is in grace, after which it ends."""
    return act("graced", user=user, session=session, is_graced=is_graced)


RETURNS = {
    "who goes on with an older copy is told by who puts back": Directed((
        SERVE, RICH, pay("ann9", 50 * CREDIT, "for ann"), start("s1"),
        elsewhere("s2", "ann9", "lesson"), wait(20), LAG, PAUSE, ask("s2", "pause"), wait(3),
        UNNOTICED, join("c2", "s1"), wait(0.5), act("cut_off", name=NODE, ms=1_800), wait(4),
        told("c2", "session", state="paused"), PUT_BACK,
    )),
    "one process finds a loss and all hear of it": Directed((
        SERVE, RICH, start("s1"), elsewhere("s2", "ann9", "recording"), wait(20), LAG, PAUSE,
        ask("s2", "pause"), wait(3), UNSAID, ask("s1", "resume"), wait(4),
        phase("paused", "ann9", "s2"), PUT_BACK,
    )),
    "nothing is prepared where a loss is not settled": Directed((
        SERVE, RICH, start("s1"), wait(20), LAG, PAUSE, wait(2), UNNOTICED, wait(6),
        act("prepare", node=OTHER, user="cat9", kind="second", session="s9", confirmed=False),
        PUT_BACK, PUT_BACK,
        act("prepare", node=OTHER, user="cat9", kind="second", session="s9"),
    )),
    "who comes late does not make others wait": Directed((
        SERVE, RICH, start("s1"), elsewhere("s2"), wait(5), FLUSH, EMPTY,
        act("cut_off", name=OTHER, ms=3_000), wait(4.5), sketch("cat9", "e1"),
        answered("e1", "done"), PUT_BACK,
    )),
    "a minute that is written down is made again": Directed((
        limit(300), start("s1", "ann9", "recording"), wait(59.9),
        mishaps(NODE, "redis", ["unanswered"]), wait(0.3), FLUSH, EMPTY, PUT_BACK,
        ask("s1", "stop"), wait(5),
    )),
    "free time of a day is taken once": Directed((
        RICH, start("s1", kind="day"), wait(50), EMPTY, PUT_BACK, ask("s1", "stop"), wait(5),
        start("s2", kind="day"), wait(100), ask("s2", "stop"), wait(5),
    )),
    "a client hears what it missed before a loss": Directed((
        SERVE, pay("cat9", 3 * CREDIT), start("s1"), wait(5), EMPTY, PUT_BACK,
        join("c2", "s1", last_seq=0), wait(1),
        act("missed", client="c2", session="s1", kinds=["limit_warning"]), wait(5),
    )),
    "a grace is over on a replica that lacks that": Directed((
        report("t1", minute_at(1)), wait(5), LAG, join("c1", "t1", NODE),
        ask("t1", "resume", "c1"), wait(3), UNNOTICED, PUT_BACK, graced("ann9", "t1", False),
    )),
    "nobody is noted for what has ended": Directed((
        RICH, start("s1"), wait(20), LAG, ask("s1", "stop"), wait(1), UNNOTICED, wait(2),
        act("noted", name=NODE, user="cat9", session="s1", is_noted=False), PUT_BACK,
    )),
    "a lost session comes back while it is ended": Directed((
        SERVE, RICH, start("s0", "ann9", "recording"), elsewhere("s1"), wait(20),
        ask("s1", "pause"), FLUSH, wait(5), act("cut_off", name=OTHER, ms=73_000), EMPTY, wait(70),
        mishaps(NODE, "postgres", ["none"], ["slow", 5_000]), wait(10), phase("paused"),
        act("recorded", user="cat9", session="s1", state="live"), ask("s1", "resume"), wait(5),
        phase("active"), ask("s1", "stop"), wait(5), PUT_BACK,
    )),
    "an assertion comes late": Directed((
        RICH, start("s1"), wait(20), act("drop_lines"),
        mishaps(NODE, "redis", ["none"], ["none"], ["late", 4_000]), wait(3),
        act("close", client="c-s1"), wait(2), wait(10),
    )),
}  # fmt: skip
