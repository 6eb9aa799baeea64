"""Directed worlds of answers that come second, late, or after losses.

The answers are to steps.
"""

from tests.simulation.actions import Action
from tests.simulation.directed.steps import (
    EMPTY,
    FLUSH,
    FORGET,
    LAG,
    OTHER,
    RICH,
    SERVE,
    UNNOTICED,
    Directed,
    ask,
    elsewhere,
    join,
    sketch,
    told,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait


def prepare(session: str, node: str = OTHER, kind: str = "second") -> Action:
    """A backend prepares a session of cat9."""
    return act("prepare", node=node, user="cat9", kind=kind, session=session)


ANSWERS = {
    "an end is heard of whose answer was lost": Directed((
        RICH, start("s1"), wait(20), mishaps(NODE, "redis", ["unanswered"]), ask("s1", "stop"),
        wait(20), told("c-s1", "stopped", reason="client"), wait(5),
    )),
    "another process hears of a pause": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1"), wait(20), ask("s1", "pause"), wait(1),
        told("c2", "session", state="paused"), wait(5), ask("s1", "resume", "c2"), wait(1),
        told("c-s1", "session", state="active"), wait(5),
    )),
    "who leaves takes back what a heartbeat has promised elsewhere": Directed((
        SERVE, RICH, start("s1"), wait(5), act("heartbeat", node=OTHER, user="cat9", session="s1"),
        wait(5), act("leave", client="c-s1", session="s1"), wait(60), wait(60),
    )),
    "a pause on a Redis that was emptied twice": Directed((
        RICH, start("s1"), wait(20), EMPTY, wait(8.3), EMPTY, ask("s1", "pause"), wait(30),
        told("c-s1", "session", state="paused"), wait(30),
    )),
    "a step of a lost copy comes behind another one": Directed((
        SERVE, pay("cat9", 500 * CREDIT), start("s1", kind="dear"), wait(30), FLUSH, LAG,
        ask("s1", "pause"), UNNOTICED, join("c2", "s1"), wait(0.6),
        mishaps(NODE, "redis", ["late", 40]), ask("s1", "resume"), ask("s1", "pause", "c2"),
        wait(40), wait(90),
    )),
    "a start of before a loss comes late": Directed((
        SERVE, RICH, start("s0"), mishaps(NODE, "redis", ["none"], ["none"], ["late", 90_000]),
        start("s1"), act("kill", name=NODE), wait(1), elsewhere("s2"), prepare("s1"), wait(11),
        FLUSH, EMPTY, wait(160),
    )),
    "a session starts where nobody has its account": Directed((
        SERVE, RICH, act("show", node=NODE, user="cat9"), sketch("cat9", "e1"), wait(5), FLUSH,
        FORGET, start("s1"), told("c-s1", "session", state="active"), wait(20),
    )),
    "free time of a pair is taken twice": Directed((
        SERVE, RICH, elsewhere("s2", kind="pair"), ask("s2", "pause"), wait(1),
        start("s1", kind="pair"), wait(5), ask("s2", "resume"), wait(60),
    )),
    "a preparation is repeated while its session starts": Directed((
        SERVE, RICH, start("s0"), prepare("s1"), wait(1),
        act("slow_redis", delays=[600], ms=8_000), start("s1"), wait(1), prepare("s1"), wait(30),
    )),
    "an end is made of a copy that lacks more": Directed((
        SERVE, RICH, start("s1"), wait(30), LAG, ask("s1", "pause"), ask("s1", "resume"),
        wait(0.5), ask("s1", "pause"), UNNOTICED, join("c2", "s1"), wait(0.1),
        ask("s1", "pause", "c2"), ask("s1", "stop", "c2"), wait(40), wait(90),
    )),
    "nothing is resumed while a replica recovers": Directed((
        pay("cat9", 10 * CREDIT), start("s1"), start("s2"), wait(5), ask("s2", "pause"), wait(5),
        FLUSH, LAG, sketch("cat9", "e0", 5 * CREDIT), UNNOTICED, wait(1.2), ask("s2", "resume"),
        told("c-s2", "session", state="paused"), wait(40), wait(60),
    )),
}  # fmt: skip
