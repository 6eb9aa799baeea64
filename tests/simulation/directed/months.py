"""Directed worlds of months: their limits, and reported minutes."""

from tests.simulation.directed.steps import (
    EMPTY,
    FLUSH,
    FORGET,
    NO_FLUSHER,
    OTHER,
    RECORDING,
    SERVE,
    Directed,
    adjust,
    ask,
    elsewhere,
    join,
    limit,
    minute_at,
    report,
    told,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait

MONTHS = {
    "a limit is raised in the last minute": Directed((
        limit(3), start("s1", **RECORDING), wait(150), limit(10), wait(120), ask("s1", "stop"),
        told("c-s1", "stopped", reason="client"), wait(5),
    )),
    "a limit of the organisation is raised in the last minute": Directed((
        limit(None), limit(3, of_org=True), start("s1", **RECORDING), wait(150),
        limit(10, of_org=True), wait(120), ask("s1", "stop"),
        told("c-s1", "stopped", reason="client"), wait(5),
    )),
    "a limit is taken away where nobody is": Directed((
        limit(3), start("s1", **RECORDING), wait(90), ask("s1", "stop"), wait(5), FLUSH, FORGET,
        limit(1), start("s2", **RECORDING), told("c-s2", "error", code="limit_reached"),
        limit(None), start("s3", **RECORDING), told("c-s3", "session", state="active"), wait(70),
    )),
    "minutes are given back in the last minute": Directed((
        limit(3), start("s1", **RECORDING), wait(150), FLUSH, adjust("m1", -2), wait(100),
        ask("s1", "stop"), told("c-s1", "stopped", reason="client"), wait(5),
    )),
    "a month is corrected once": Directed((
        start("s1", **RECORDING), wait(70),
        mishaps(NODE, "redis", ["none"], ["unanswered"]), adjust("m1", 2), adjust("m1", 2),
        wait(30), adjust("m1", 2), wait(700), adjust("m2", -1), wait(30),
    )),
    "a month is corrected where nobody is": Directed((
        start("s1", **RECORDING), wait(130), ask("s1", "stop"), wait(5), FLUSH, FORGET,
        adjust("m1", 1), wait(5), start("s2", **RECORDING), wait(70),
    )),
    "two share a month and one gives back": Directed((
        limit(None), limit(2, of_org=True), SERVE, start("s1", **RECORDING), wait(10),
        elsewhere("s2", "bob9", "recording"), wait(1),
        told("c-s2", "session", state="active"), wait(90),
    )),
    "minutes are recalled from another account here": Directed((
        limit(None), limit(2, of_org=True), start("s1", **RECORDING), wait(10),
        start("s2", "bob9", "recording"), wait(1), told("c-s2", "session", state="active"),
        wait(90),
    )),
    "a member's minutes are recalled from that member": Directed((
        limit(2), limit(None, of_org=True), SERVE, start("s1", **RECORDING), wait(10),
        elsewhere("s2", "ann9", "recording"), wait(1),
        told("c-s2", "session", state="active"), wait(90),
    )),
    "one waits for minutes and gets those of who stops": Directed((
        limit(None), limit(2, of_org=True), SERVE, start("s1", **RECORDING), wait(70),
        elsewhere("s2", "bob9", "recording"), wait(1),
        told("c-s2", "error", code="limit_reached"), wait(5),
    )),
    "who stops gives minutes to who is about to": Directed((
        limit(None), limit(3, of_org=True), SERVE, start("s1", **RECORDING), wait(1),
        elsewhere("s2", "bob9", "recording"), wait(30), ask("s1", "stop"), wait(60),
        told("c-s2", "limit_reached", times=0), wait(60),
    )),
    "minutes that a silent process holds stop no session": Directed((
        limit(None), limit(5, of_org=True), SERVE, start("s1", **RECORDING), wait(70),
        elsewhere("s2", "bob9", "recording"), wait(46),
        mishaps(OTHER, "redis", *[["lost"]] * 6), report("t1", minute_at(1)),
        act("taken", session="t1", minutes=1), wait(6), told("c-s1", "limit_reached", times=0),
        wait(90),
    )),
    "overage is allowed beyond a limit": Directed((
        limit(None), act("limit", user="ann9", minutes=1, of_org=True, overage=True),
        start("s1", **RECORDING), wait(150), ask("s1", "stop"),
        told("c-s1", "stopped", reason="client"), wait(5),
    )),
    "a limit is lowered below what is used": Directed((
        start("s1", **RECORDING), wait(130), limit(1), wait(90),
        told("c-s1", "stopped", reason="limit"), start("s2", **RECORDING),
        told("c-s2", "error", code="limit_reached"), wait(5),
    )),
    "a lesson has credits and minutes": Directed((
        limit(3), pay("ann9", 20 * CREDIT), start("s1", "ann9", "lesson"), wait(100),
        start("s2", "ann9", "lesson"), wait(200),
    )),
    "a month ends while minutes are counted": Directed((
        limit(400), act("limit", user="ann9", minutes=600, of_org=True),
        start("s1", **RECORDING), wait(5 * 3600 + 30 * 60), wait(30 * 60), ask("s1", "stop"),
        told("c-s1", "stopped", reason="client"), wait(5),
    )),
}  # fmt: skip

# --- Reported minutes --------------------------------------------------------------------

REPORTED = {
    "minutes are reported once": Directed((
        report("t1", minute_at(1)), report("t1", minute_at(2)), report("t1", minute_at(1)),
        SERVE, report("t1", minute_at(2), node=OTHER), report("t1", minute_at(3), node=OTHER),
        wait(5),
    )),
    "minutes are reported up to the limit": Directed((
        limit(2), report("t1", minute_at(1)), report("t1", minute_at(2)),
        report("t1", minute_at(3)), act("taken", session="t1", minutes=2),
        limit(None), report("t1", minute_at(4)), act("taken", session="t1", minutes=3),
        limit(3, of_org=True), report("t1", minute_at(5)), act("taken", session="t1", minutes=3),
        act("limit", user="ann9", minutes=3, of_org=True, overage=True),
        report("t1", minute_at(5)), act("taken", session="t1", minutes=4), wait(5),
    )),
    "reported minutes leave what is held": Directed((
        limit(3), limit(None, of_org=True), start("s1", **RECORDING), wait(90),
        report("t1", minute_at(1)), report("t1", minute_at(2)), wait(90),
    )),
    "a reported session is metered from then on": Directed((
        report("t1", minute_at(1)), join("c1", "t1", NODE), ask("t1", "resume", "c1"), wait(70),
        report("t1", minute_at(2)), act("taken", session="t1", minutes=1), wait(5),
        ask("t1", "pause", "c1"), report("t1", minute_at(3)),
        act("taken", session="t1", minutes=1), wait(5),
        act("close", client="c1"), report("t1", minute_at(4)),
        act("taken", session="t1", minutes=1), wait(40),
    )),
    "a reported session is metered for whole minutes": Directed((
        report("t1", minute_at(1)), join("c1", "t1", NODE), ask("t1", "resume", "c1"), wait(60),
        ask("t1", "pause", "c1"), wait(200), report("t1", minute_at(22)),
        act("taken", session="t1", minutes=1), wait(5),
        act("close", client="c1"), report("t1", minute_at(22)),
        act("taken", session="t1", minutes=2), report("t1", minute_at(23)),
        act("taken", session="t1", minutes=3), wait(40),
    )),
    "a reported session has ended": Directed((
        report("t1", minute_at(1)), join("c1", "t1", NODE), ask("t1", "stop", "c1"), wait(5),
        report("t1", minute_at(2)), act("taken", session="t1", minutes=1), wait(5),
    )),
    "a metered session is not reported": Directed((
        start("s1", **RECORDING), wait(70), act("report_of", session="s1", minute_at=minute_at(1)),
        ask("s1", "pause"), wait(5), act("report_of", session="s1", minute_at=minute_at(2)),
        wait(5),
    )),
    "a minute's answer is lost": Directed((
        mishaps(NODE, "redis", ["none"], ["none"], ["none"], ["unanswered"]),
        report("t1", minute_at(1)), report("t1", minute_at(1)), report("t1", minute_at(2)),
        mishaps(NODE, "redis", ["none"], ["unanswered"]), report("t1", minute_at(3)),
        report("t1", minute_at(3)), wait(5),
    )),
    "minutes are reported to a full outbox": Directed((
        NO_FLUSHER,
        *(report(f"t{number}", minute_at(1)) for number in range(30)),
        act("flusher", name="late", pace_ms=1_000), wait(10),
    ), "full"),
    "a reported session on an empty Redis": Directed((
        report("t1", minute_at(1)), report("t1", minute_at(2)), FLUSH, wait(10), EMPTY,
        report("t1", minute_at(3)), wait(100), report("t1", minute_at(3)),
        report("t1", minute_at(1)), report("t1", minute_at(4)), wait(100),
    )),
    "two processes take the same minute": Directed((
        SERVE, mishaps(NODE, "redis", ["late", 400]), report("t1", minute_at(1)),
        report("t1", minute_at(1), node=OTHER), wait(5), report("t1", minute_at(2)),
        mishaps(OTHER, "redis", ["none"], ["late", 100]), report("t1", minute_at(3), node=OTHER),
        report("t1", minute_at(3)), wait(5),
    )),
}  # fmt: skip
