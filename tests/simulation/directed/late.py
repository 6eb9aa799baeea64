"""Directed worlds of commands that reach Redis late.

Their process has given them up, and others were answered already.
"""

from tests.simulation.actions import Action
from tests.simulation.directed.reported import LEARNT, refused, taken
from tests.simulation.directed.steps import (
    OTHER,
    RECORDING,
    SERVE,
    Directed,
    answered,
    ask,
    hold,
    join,
    limit,
    minute_at,
    post,
    report,
    sketch,
    void,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait

KNOWN = (
    pay("cat9", CREDIT), sketch("cat9", "e0"), hold("cat9", "h0", 1), post("cat9", "h0", 1),
    hold("cat9", "h9", 1), void("cat9", "h9"),
)  # fmt: skip
"""Redis knows the scripts of money; 0.749999 credits are left."""


def late(ms: int = 1_600, before: int = 0) -> Action:
    """A command is that late, after some that are not."""
    return mishaps(NODE, "redis", *[["none"]] * before, ["late", ms])


def again(entry: str, node: str = NODE) -> Action:
    """What was not answered is asked for again."""
    return act("again", node=node, entry=entry)


LATE = {
    "a refused spend comes late": Directed((
        *KNOWN, late(), sketch("cat9", "e1", CREDIT), again("e1"), answered("e1", "refused"),
        pay("cat9", 2 * CREDIT, "more"), wait(5), sketch("cat9", "e2", 2 * CREDIT),
        answered("e2", "done"), wait(5),
    )),
    "a spend that was refused elsewhere comes late": Directed((
        SERVE, *KNOWN, late(4_000), sketch("cat9", "e1", CREDIT), again("e1", OTHER),
        answered("e1", "refused"), pay("cat9", 2 * CREDIT, "more"), wait(5),
    )),
    "a refused spend comes late over a slow line": Directed((
        *KNOWN, act("slow_redis", delays=[1_200, 1_200, 1_200, 3_400, 200], ms=60_000), wait(3),
        sketch("cat9", "e1", CREDIT), again("e1"), sketch("cat9", "e3", CREDIT), again("e3"),
        again("e1"), again("e3"), pay("cat9", 2 * CREDIT, "more"), wait(90),
    )),
    "a spend that was done as often as it may comes late": Directed((
        *KNOWN, pay("cat9", 9 * CREDIT, "more"), hold("cat9", "h1", 1, often=2),
        late(before=1), hold("cat9", "h2", 1, often=2), again("hold:h2"),
        answered("hold:h2", "refused"), void("cat9", "h1"), wait(5),
        hold("cat9", "h3", 1, often=2), answered("hold:h3", "done"),
    )),
    "a refused hold comes late": Directed((
        *KNOWN, late(before=1), hold("cat9", "h1", CREDIT), again("hold:h1"),
        answered("hold:h1", "refused"), pay("cat9", 2 * CREDIT, "more"), wait(5),
        sketch("cat9", "e2", 2 * CREDIT), answered("e2", "done"), wait(5),
    )),
    "a refused minute comes late": Directed((
        *LEARNT, report("t1", minute_at(1)), limit(3), late(before=1), report("t1", minute_at(2)),
        report("t1", minute_at(2)), refused(2, "limit_reached"), limit(4), wait(5), taken(1),
        report("t1", minute_at(3)), taken(2), wait(5),
    )),
    "a limit comes late after another one": Directed((
        limit(30), start("s1", **RECORDING), wait(5), late(), limit(2), limit(40), wait(200),
        limit(30, of_org=True), late(), limit(2, of_org=True), limit(40, of_org=True), wait(200),
    )),
    "a refused start comes late": Directed((
        SERVE, pay("cat9", CREDIT), start("s0"), ask("s0", "stop"), wait(5),
        act("transfer", node=NODE, kind="spend", user="cat9", entry="all", micros=900_000, form=1),
        late(3_000, before=3), start("s1", kind="dear"), wait(1.6),
        join("d", "s1"), wait(0.5), pay("cat9", 90 * CREDIT, "more"), wait(200),
    )),
    "clocks of Redis are stepped and spends go on": Directed((
        *KNOWN, *(step for number, ms in enumerate((90_000, -90_000, 2_000, -2_000)) for step in (
            act("step_clock", where="redis", ms=ms), pay("cat9", CREDIT, f"g{number}"),
            sketch("cat9", f"s{number}", CREDIT), answered(f"s{number}", "done"), wait(5),
            late(9_000), sketch("cat9", f"l{number}", CREDIT), again(f"l{number}"),
            answered(f"l{number}", "refused"), pay("cat9", CREDIT, f"m{number}"), wait(15),
            sketch("cat9", f"n{number}", CREDIT), answered(f"n{number}", "done"),
        )), wait(5),
    )),
}  # fmt: skip
