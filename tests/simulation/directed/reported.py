"""Directed worlds of reported minutes.

Other processes are faster, Redis lacks something, or metered sessions hold the rest of a month.
"""

from tests.simulation.actions import Action
from tests.simulation.directed.forks import PUT_BACK
from tests.simulation.directed.steps import (
    FLUSH,
    LAG,
    NO_FLUSHER,
    OTHER,
    RECORDING,
    SERVE,
    UNNOTICED,
    Directed,
    ask,
    elsewhere,
    join,
    limit,
    minute_at,
    report,
    sketch,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait

LEARNT = (SERVE, report("t0", minute_at(1)), report("t0", minute_at(2), node=OTHER), wait(5))
"""Both processes have loaded the scripts, and the months are in Redis."""


def report_soon(session: str, minute: int) -> Action:
    """A client reports a minute, and does not read the answer."""
    return act("report_soon", node=NODE, user="ann9", session=session, minute_at=minute)


def taken(minutes: int, session: str = "t1") -> Action:
    """The number of minutes that were accepted."""
    return act("taken", session=session, minutes=minutes)


def refused(number: int, code: str, session: str = "t1", most_ms: int = 0) -> Action:
    """A minute was refused, at once or within ``most_ms``."""
    return act("refused", session=session, minute_at=minute_at(number), code=code, most_ms=most_ms)


def holds(minutes: int, user: str, session: str) -> Action:
    """The number of minutes that a session holds."""
    return act("holds", user=user, session=session, minutes=minutes)


REPORTED_MORE = {
    "a minute comes late and another was faster": Directed((
        *LEARNT, report("t1", minute_at(1)), mishaps(NODE, "redis", ["none"], ["held", 1_200]),
        report_soon("t1", minute_at(4)), report("t1", minute_at(3), node=OTHER), wait(5), taken(2),
        report("t1", minute_at(4)), taken(3), report("t1", minute_at(5)), taken(4), wait(5),
    )),
    "a first minute comes late, after a loss": Directed((
        limit(300), *LEARNT, start("s1", **RECORDING), wait(5),
        mishaps(NODE, "postgres", ["slow", 25_000]), report_soon("t1", minute_at(2)),
        LAG, mishaps(OTHER, "postgres", ["none"], ["none"], ["lost"]),
        report("t1", minute_at(1), node=OTHER), ask("s1", "pause"),
        act("postgres_away", ms=20_000), UNNOTICED, wait(5),
        report("t0", minute_at(3), node=OTHER), wait(25), taken(1), FLUSH, PUT_BACK,
        report("t1", minute_at(1)), report("t1", minute_at(2)), taken(2), PUT_BACK,
    )),
    "a prepared session is reported": Directed((
        *LEARNT, act("prepare", node=NODE, user="ann9", kind="recording", session="t1"),
        report("t1", minute_at(1)), taken(1), report("t1", minute_at(2)), taken(2), wait(5),
    )),
    "a session is prepared while its first minute is reported": Directed((
        *LEARNT, mishaps(OTHER, "redis", ["none"], ["held", 1_000]),
        act("prepare", node=OTHER, user="ann9", kind="recording", session="t1", waits=False),
        report("t1", minute_at(1)), taken(1), wait(3),
        act("confirmed", user="ann9", session="t1"), wait(5),
    )),
    "a session that is metered is left by its sockets": Directed((
        *LEARNT, start("s1", **RECORDING), wait(60), ask("s1", "pause"), wait(5),
        act("close", client="c-s1"), wait(1),
        act("report_of", session="s1", minute_at=minute_at(2)), wait(5),
    )),
    "a reported session is metered, and its sockets are gone": Directed((
        report("t1", minute_at(1)), join("c1", "t1", NODE), ask("t1", "resume", "c1"), wait(60),
        act("close", client="c1"), wait(1), report("t1", minute_at(22)), taken(1), wait(40),
    )),
    "a reported session is over": Directed((
        report("t1", minute_at(1)), join("c1", "t1", NODE), ask("t1", "stop", "c1"), wait(5),
        report("t1", minute_at(2)), refused(2, "session_ended"), wait(5),
    )),
    "a minute is reported where too much waits": Directed((
        pay("ann9", 50 * CREDIT), report("t1", minute_at(1)), wait(5), NO_FLUSHER,
        *(sketch("ann9", f"e{number}", 1000) for number in range(26)),
        report("t1", minute_at(2)), taken(1), act("flusher", name="late", pace_ms=1_000), wait(9),
    ), "full"),
    "no minute is taken while a replica recovers": Directed((
        *LEARNT, start("s1", **RECORDING), wait(20), FLUSH, LAG, ask("s1", "pause"), wait(2),
        UNNOTICED, wait(1.5), report("t0", minute_at(3)), taken(2, "t0"), PUT_BACK,
        report("t0", minute_at(3)), taken(3, "t0"), wait(5),
    )),
    "a minute is left in the month of who held it": Directed((
        limit(3), limit(None, of_org=True), start("s1", **RECORDING), wait(10),
        report("t1", minute_at(1)), report("t1", minute_at(2)), taken(2),
        report("t1", minute_at(3)), refused(3, "limit_reached", most_ms=250), wait(90),
    )),
    "only whose month it is gives a minute back": Directed((
        SERVE, limit(3), limit(None, of_org=True), start("s1", **RECORDING),
        elsewhere("s2", "bob9", "recording"), wait(10), holds(2, "ann9", "s1"),
        report("t1", minute_at(1)), report("t1", minute_at(2)), taken(2), holds(0, "ann9", "s1"),
        holds(2, "bob9", "s2"), wait(90),
    )),
    "a minute is left in the month of another who held it": Directed((
        SERVE, limit(None), limit(3, of_org=True), elsewhere("s1", "bob9", "recording"), wait(10),
        report("t1", minute_at(1)), report("t1", minute_at(2)), taken(2), wait(90),
    )),
    "a month is used up, and nobody is asked": Directed((
        limit(2), limit(None, of_org=True), start("s1", **RECORDING), wait(10),
        report("t1", minute_at(1)), report("t1", minute_at(2)),
        report("t1", minute_at(3)), refused(3, "limit_reached"), wait(90),
    )),
}  # fmt: skip
