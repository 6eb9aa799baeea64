"""Directed worlds in which a session goes on twice.

The session's last steps are lost. Other steps are made on an older copy before the process that
made the lost ones has put them back.
"""

from tests.simulation.actions import Action
from tests.simulation.directed.steps import (
    EMPTY,
    FLUSH,
    LAG,
    OTHER,
    RICH,
    SERVE,
    UNNOTICED,
    Directed,
    ask,
    elsewhere,
    join,
    told,
    watch,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, pay, start, wait

PUT_BACK = wait(40)
UNSAID = act("failover", unnoticed=True, unsaid=True)
SPEND = act("transfer", node=OTHER, kind="spend", user="cat9", entry="e1", micros=2 * CREDIT)
"""The session's grant is in the way of this spend: its process settles, and holds less."""


def counted(least_s: float, most_s: float, user: str = "cat9", session: str = "s1") -> Action:
    """The counted time of a session, between two bounds."""
    least_ms, most_ms = int(1000 * least_s), int(1000 * most_s)
    return act("counted", user=user, session=session, least_ms=least_ms, most_ms=most_ms)


def phase(name: str, user: str = "cat9", session: str = "s1") -> Action:
    """The phase of a session."""
    return act("phase", user=user, session=session, phase=name)


def _fork(
    lost: tuple[Action, ...], made: tuple[Action, ...], *expected: Action, at: float, apart: float
) -> Directed:
    """One process does ``lost`` and loses it; another does ``made``.

    ``made`` is done on the older copy. ``made`` follows ``apart`` seconds later on another process,
    before the first one finds the loss.
    """
    return Directed((
        SERVE, pay("cat9", 3 * CREDIT), start("s1"), wait(at), LAG, *lost, wait(apart),
        UNNOTICED, join("c2", "s1"), wait(0.1), *made, PUT_BACK, *expected, ask("s1", "stop"),
        ask("s1", "stop", "c2"), wait(5),
    ))  # fmt: skip


def _ended_before(
    lost: tuple[Action, ...],
    *expected: Action,
    before: tuple[Action, ...] = (),
    paid: float = 50,
    made: tuple[Action, ...] = (),
) -> Directed:
    """At least two steps, ``lost``, go with a Redis that fails.

    Another process ends the older copy, and dies, before the process that made the lost steps puts
    them back.
    """
    return Directed((
        SERVE, pay("cat9", int(paid * CREDIT)), start("s1"), *before, wait(30), LAG, *lost,
        UNNOTICED, join("c2", "s1"), wait(0.1), *made, ask("s1", "stop", "c2"),
        act("kill", name=OTHER), PUT_BACK, phase("ended"),
        told("c-s1", "stopped", reason="client", times=1), *expected, wait(60),
    ))  # fmt: skip


PAUSE, PAUSE_2, RESUME = ask("s1", "pause"), ask("s1", "pause", "c2"), ask("s1", "resume")
FORKS = {
    "two pauses, and the later one counts": _fork(
        (PAUSE,), (PAUSE_2,), phase("paused"), counted(22.9, 23.5), at=20, apart=3),
    "a pause counts, and not that time went on": _fork(
        (PAUSE,), (SPEND,), phase("paused"), counted(20, 20), at=20, apart=3),
    "a minute that is over counts, and not a pause before it": _fork(
        (PAUSE,), (wait(0.6),), phase("active"), at=56.5, apart=3),
    "an end is made of an older copy": _fork(
        (PAUSE, ask("s1", "resume"), wait(1), PAUSE), (ask("s1", "stop", "c2"),),
        phase("ended"), at=20, apart=2),
    "an end is made of an older copy of what runs": _fork(
        (PAUSE, ask("s1", "resume"), wait(1)), (ask("s1", "stop", "c2"),),
        phase("ended"), at=20, apart=2),
    "an end of an older copy is final": _ended_before(
        (PAUSE, RESUME, wait(0.5), PAUSE, wait(0.2), RESUME, wait(0.2)), made=(PAUSE_2,)),
    "an end of an older copy of a paused session is final": _ended_before(
        (PAUSE, RESUME, wait(0.5), PAUSE, wait(0.2))),
    "who watches learns of an end of an older copy": _ended_before(
        (PAUSE, RESUME, wait(0.5), PAUSE, ask("s2", "pause"), wait(0.2)),
        told("w", "stopped", reason="client"),
        before=(act("serve", node="node.2"), watch("w", "s1", "node.2"),
                act("start", client="c-s2", node="node.2", user="cat9", kind="second",
                    session="s2")),
        made=(act("cut_off", name=NODE, ms=2_200),)),
    "an end has the number of a notice that was lost": _ended_before(
        (wait(2), pay("cat9", 5 * CREDIT, "more"), wait(0.2), PAUSE, RESUME, wait(0.2), PAUSE,
         wait(0.2)), paid=1.52),
    "a session that the record has ended goes on": Directed((
        SERVE, RICH, start("s0", "ann9", "recording"), elsewhere("s1"), wait(20), PAUSE, FLUSH,
        wait(5), act("cut_off", name=OTHER, ms=120_000), EMPTY, wait(140), phase("paused"),
    )),
    "a resumption was not heard of": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1"), wait(20), PAUSE, wait(5),
        act("cut_off", name=NODE, ms=1_500), ask("s1", "resume", "c2"), wait(3), phase("active"),
        told("c-s1", "session", state="active"), wait(20), phase("active"), counted(40, 45),
    )),
    "who watches an older copy is told": Directed((
        SERVE, RICH, start("s1"), wait(20), LAG, PAUSE, wait(3), UNNOTICED, join("c2", "s1"),
        wait(0.1), told("c2", "session", state="active"), wait(3),
        told("c2", "session", state="paused"), PUT_BACK, phase("paused"),
    )),
}  # fmt: skip
