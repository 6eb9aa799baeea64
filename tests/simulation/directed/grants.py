"""Directed worlds of grants where little is left.

The worlds are about the sizes of grants, and about what is given back.
"""

from tests.simulation.directed.steps import (
    RECORDING,
    SERVE,
    Directed,
    adjust,
    ask,
    join,
    limit,
    sketch,
    told,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, pay, start, wait

MONTH_ENDS = 5 * 3600 + 42 * 60 + 36
"""Seconds from the first action until the month of ann9 and bob9 ends."""
JUNE = "2026-06-01"

GRANTS = {
    "the next month is used up once it was granted": Directed((
        wait(MONTH_ENDS - 40), start("s1", **RECORDING), wait(10), adjust("m1", 12, month=JUNE),
        wait(100), wait(20),
    )),
    "the rest of an account where the next month is shared": Directed((
        pay("ann9", CREDIT * 4 // 5), wait(MONTH_ENDS - 60), adjust("m1", 28, "bob9", JUNE),
        start("s2", "bob9", "recording"), wait(20), start("s1", "ann9", "lesson"), wait(60),
    )),
    "the rest of a month where others burn credits too": Directed((
        limit(3), pay("ann9", 50 * CREDIT), start("s1", "ann9", "lesson"), start("s2", "ann9"),
        wait(200),
    )),
    "the last of a member's month is recalled from that member": Directed((
        limit(4), limit(None, of_org=True), start("s1", **RECORDING), wait(1),
        start("s2", **RECORDING), wait(150),
    )),
    "minutes are recalled from another where the account owes": Directed((
        limit(None), limit(2, of_org=True), pay("ann9", 1), pay("ann9", -CREDIT, "taken"),
        start("s1", **RECORDING), wait(10), start("s2", "bob9", "recording"), wait(1),
        told("c-s2", "session", state="active"), wait(90),
    )),
    "minutes are recalled for who has credits": Directed((
        limit(None), limit(2, of_org=True), pay("ann9", 50 * CREDIT),
        start("s1", **RECORDING), wait(10), start("s2", "bob9", "lesson"), wait(1),
        told("c-s2", "session", state="active"), wait(90),
    )),
    "credits are recalled for who has minutes": Directed((
        pay("ann9", CREDIT), start("s1", "ann9"), wait(5), start("s2", "ann9", "lesson"), wait(1),
        told("c-s2", "session", state="active"), wait(60),
    )),
    "a begun minute goes on where the limit was lowered": Directed((
        SERVE, limit(None), pay("ann9", 5 * CREDIT), start("s1", "ann9", "lesson"), wait(70),
        ask("s1", "pause"), limit(1), start("s2", "ann9"), wait(1),
        sketch("ann9", "e1", 2_700_000), ask("s1", "resume"), wait(1),
        told("c-s1", "session", state="active"), wait(70),
    )),
    "a gap is billed in full once others give back": Directed((
        pay("cat9", 10 * CREDIT), start("s1", kind="capped"), wait(5), act("cut", client="c-s1"),
        wait(25), start("s2"), wait(1), sketch("cat9", "e1", 8_300_000), wait(10),
        join("c2", "s1", NODE), wait(60),
    )),
    "a gap is billed in part where nobody else holds": Directed((
        pay("cat9", CREDIT * 3 // 5), start("s1", kind="capped"), wait(5),
        act("cut", client="c-s1"), wait(45), join("c2", "s1", NODE), wait(60),
    )),
    "a gap is billed as far as the month goes": Directed((
        limit(2), pay("ann9", 50 * CREDIT), start("s2", "ann9"), start("s1", **RECORDING),
        wait(75), act("cut", client="c-s1"), wait(49), join("c2", "s1", NODE), wait(60),
    )),
}  # fmt: skip
