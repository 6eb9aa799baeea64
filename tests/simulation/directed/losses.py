"""Directed worlds in which Redis loses everything, or its last writes."""

from typing import Any

from tests.simulation.actions import Action
from tests.simulation.directed.steps import (
    EMPTY,
    FAILOVER,
    FLUSH,
    LAG,
    OTHER,
    RICH,
    SERVE,
    UNNOTICED,
    Directed,
    adjust,
    answered,
    ask,
    elsewhere,
    hold,
    join,
    limit,
    minute_at,
    post,
    report,
    sketch,
    told,
    void,
    watch,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import FLUSHER, NODE, act, pay, start, wait

PUT_BACK = wait(40)
"""By then everything is in its place again after a loss, and was audited."""
ALL_KINDS = (
    RICH, pay("ann9", 50 * CREDIT, "for ann"), limit(300), limit(500, of_org=True),
    start("s1"), start("s2", "ann9", "lesson"), start("s3", "ann9", "recording"),
    start("s4", "bob9", "day"), start("s5", "bob9", "pair"), start("s6", kind="few"),
    start("s7", "bob9", "lesson"),
)  # fmt: skip
LATER = (
    PUT_BACK, wait(90), ask("s1", "stop"), ask("s3", "stop"), wait(30), start("s8", "ann9", "day"),
    start("s9", "bob9", "recording"), wait(70),
)  # fmt: skip


def _loss(*loss: Action, flushed: bool, before: float = 95) -> Directed:
    """Sessions of all kinds, in all states, and then a loss."""
    return Directed((
        SERVE, *ALL_KINDS, join("c2", "s1"), join("c3", "s3"), watch("w", "s2"), wait(before),
        ask("s4", "pause"), ask("s7", "stop"), act("close", client="c-s5"), wait(3),
        *([FLUSH] if flushed else []), *loss, *LATER,
    ))  # fmt: skip


def _step_back(*lost: Action, then: tuple[Action, ...] = (), flushed: bool = True) -> Directed:
    """A replica takes over that lacks the last writes."""
    return Directed((
        SERVE, *ALL_KINDS, join("c2", "s1"), wait(45), *([FLUSH] if flushed else []), LAG, *lost,
        UNNOTICED, *then, *LATER,
    ))  # fmt: skip


def _holds_back(*lost: Action, often: int, before: tuple[Action, ...] = ()) -> Directed:
    """The same losses for an account's holds, with and without a session."""
    return Directed((
        RICH, act("show", node=NODE, user="cat9"), *before, wait(600), hold("cat9", "h1", CREDIT),
        hold("cat9", "h2", 0), wait(5), FLUSH, LAG, *lost, UNNOTICED, PUT_BACK,
        hold("cat9", "last", 1, often=often), answered("hold:last", "done"),
        hold("cat9", "more", 1, often=often), answered("hold:more", "refused"), PUT_BACK,
    ))  # fmt: skip


def _fork(lost: tuple[Action, ...], made: tuple[Action, ...], phase: str, at: float) -> Directed:
    """A session goes on twice under one version.

    A step is lost, and another process makes a step on the older copy.
    """
    return Directed((
        SERVE, RICH, start("s1"), wait(at), LAG, *lost, UNNOTICED, join("c2", "s1"),
        wait(0.1), *made, PUT_BACK, wait(90), act("phase", user="cat9", session="s1", phase=phase),
        ask("s1", "stop", "c2"), wait(5),
    ))  # fmt: skip


def _ends_again(first: Action, second: Action, **more: Any) -> Directed:
    """A hold ends, then ends again on a replica with it open."""
    return Directed((
        RICH, act("show", node=NODE, user="cat9"), hold("cat9", "h1", CREDIT, **more), wait(5),
        FLUSH, LAG, first, wait(0.2), UNNOTICED, second, PUT_BACK, wait(70), FLUSH, PUT_BACK,
    ))  # fmt: skip


PAUSE, STOP = (ask("s1", "pause"),), (ask("s1", "pause", "c2"), ask("s1", "stop", "c2"))
LOSSES = {
    "an empty Redis, all flushed": _loss(EMPTY, flushed=True),
    "an empty Redis, nothing flushed": _loss(EMPTY, flushed=False),
    "an empty Redis, early": _loss(EMPTY, flushed=True, before=20),
    "an empty Redis, twice": _loss(EMPTY, wait(1), EMPTY, flushed=True),
    "an empty Redis and no Postgres": _loss(act("postgres_away", ms=20_000), EMPTY, flushed=False),
    "an empty Redis, and a process dies": _loss(EMPTY, act("kill", name=OTHER), flushed=True),
    "an empty Redis, and the other process dies": _loss(
        EMPTY, wait(1), act("kill", name=NODE), flushed=True),
    "a replica takes over": _loss(LAG, wait(2), FAILOVER, flushed=True),
    "a replica takes over, nothing flushed": _loss(LAG, wait(2), FAILOVER, flushed=False),
    "a replica takes over unnoticed": _loss(LAG, wait(2), UNNOTICED, flushed=True),
    "a replica lacks ends and pauses": _step_back(
        ask("s1", "stop"), ask("s2", "pause"), ask("s3", "stop"), ask("s4", "stop"),
        ask("s5", "pause"), ask("s6", "stop"), wait(1)),
    "a replica lacks ends that were not flushed": _step_back(
        ask("s1", "stop"), ask("s2", "stop"), ask("s3", "stop"), ask("s4", "stop"),
        ask("s5", "stop"), ask("s6", "stop"), wait(1), flushed=False),
    "a replica lacks ends that were flushed since": _step_back(
        ask("s1", "stop"), ask("s2", "stop"), ask("s3", "stop"), ask("s4", "stop"), FLUSH),
    "a replica lacks starts": _step_back(
        start("n1"), start("n2", "ann9", "lesson"), start("n3", "ann9", "recording"),
        start("n4", "bob9", "day"), start("n6", kind="few"), wait(1)),
    "a replica lacks minutes": Directed((
        SERVE, *ALL_KINDS, wait(58), FLUSH, LAG, wait(3), UNNOTICED, *LATER,
    )),
    "a replica lacks minutes that were flushed": Directed((
        SERVE, *ALL_KINDS, wait(58), FLUSH, LAG, wait(3), FLUSH, FAILOVER, *LATER,
    )),
    "a first reported minute on a replica": Directed((
        SERVE, report("t1", minute_at(1), "bob9"), wait(5), FLUSH, LAG,
        report("t2", minute_at(2), "bob9"), wait(1), UNNOTICED, PUT_BACK,
        report("t2", minute_at(3), "bob9"), wait(5), report("t2", minute_at(4), "bob9"),
        act("taken", session="t2", minutes=3), PUT_BACK,
    )),
    "a later reported minute on a replica": Directed((
        SERVE, report("t1", minute_at(1), "bob9"), wait(5), FLUSH, LAG,
        report("t1", minute_at(2), "bob9"), report("t1", minute_at(3), "bob9"), wait(1),
        UNNOTICED, PUT_BACK, report("t1", minute_at(4), "bob9"),
        report("t1", minute_at(2), "bob9"), act("taken", session="t1", minutes=4), PUT_BACK,
    )),
    "reported minutes that a replica lacks, and no more of them": Directed((
        SERVE, limit(None, "bob9"), limit(4, of_org=True), report("t1", minute_at(1), "bob9"),
        report("t0", minute_at(1), "bob9"), wait(5), FLUSH, LAG,
        report("t1", minute_at(2), "bob9"), report("t2", minute_at(2), "bob9"), wait(1), UNNOTICED,
        PUT_BACK, report("t3", minute_at(3), "bob9"), act("taken", session="t3", minutes=0),
        report("t1", minute_at(2), "bob9"), report("t2", minute_at(2), "bob9"),
        act("taken", session="t2", minutes=1), act("limit", user="bob9", minutes=9, of_org=True),
        report("t2", minute_at(4), "bob9"), act("taken", session="t2", minutes=2), PUT_BACK,
    )),
    "an empty Redis lacks minutes": Directed((
        SERVE, *ALL_KINDS, wait(58), FLUSH, wait(3), EMPTY, *LATER,
    )),
    "a replica lacks that somebody went on": _step_back(
        ask("s1", "pause"), wait(1), ask("s1", "resume"), ask("s2", "pause"), wait(1),
        ask("s2", "resume")),
    "a replica has paused what went on": Directed((
        RICH, pay("ann9", 50 * CREDIT, "for ann"), start("s1"), start("s2", "ann9", "lesson"),
        start("s3", "ann9", "recording"), wait(20), ask("s1", "pause"), ask("s2", "pause"),
        ask("s3", "pause"), wait(5), LAG, ask("s1", "resume"), ask("s2", "resume"),
        ask("s3", "resume"), wait(3), UNNOTICED, PUT_BACK, wait(60),
    )),
    "a replica has suspended what came back": Directed((
        RICH, start("s1"), start("s2"), wait(20), act("close", client="c-s1"), wait(5), LAG,
        join("c2", "s1", NODE), wait(2), act("close", client="c-s2"), UNNOTICED, PUT_BACK, wait(60),
    )),
    "an end is put back over a session that went on": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1"), wait(20), LAG, ask("s1", "stop"), wait(1),
        UNNOTICED, ask("s1", "pause", "c2"), wait(1), PUT_BACK,
    )),
    "somebody joins where Redis has an older copy": Directed((
        SERVE, RICH, start("s1"), wait(20), LAG, ask("s1", "stop"), wait(1), UNNOTICED,
        join("c2", "s1"), ask("s1", "resume", "c2"), wait(1), PUT_BACK, wait(30),
    )),
    "a session that nobody serves is lost": Directed((
        SERVE, RICH, elsewhere("s1"), elsewhere("s2", "ann9", "recording"), wait(130), FLUSH,
        act("kill", name=OTHER), EMPTY, wait(90), PUT_BACK, wait(60),
    )),
    "a session that nobody serves is on a replica": Directed((
        SERVE, RICH, elsewhere("s1"), elsewhere("s2", "ann9", "recording"), wait(50), LAG,
        wait(3), act("kill", name=OTHER), UNNOTICED, wait(90), PUT_BACK, wait(60),
    )),
    "a pause is lost, and another made": _fork(PAUSE, (ask("s1", "pause", "c2"),), "paused", 30),
    "a pause is lost, and time goes on": _fork(PAUSE, (), "paused", 30),
    "a pause is lost, and a minute is over": _fork(PAUSE, (wait(1.2),), "paused", 59),
    "a pause is lost, and an end made": _fork(PAUSE, STOP, "ended", 30),
    "an end is lost, and a pause made": _fork(
        (ask("s1", "stop"),), (ask("s1", "pause", "c2"),), "ended", 30),
    "a pause and more are lost, and a pause made": _fork(
        (*PAUSE, ask("s1", "resume"), wait(0.5), *PAUSE),
        (ask("s1", "pause", "c2"),), "paused", 30),
    "a pause and more are lost, and a resumption made": _fork(
        (*PAUSE, ask("s1", "resume")),
        (ask("s1", "pause", "c2"), wait(0.3), ask("s1", "resume", "c2")), "active", 30),
    "a resumption is lost, and another made": _fork(
        (*PAUSE, ask("s1", "resume"), wait(0.2)), (ask("s1", "pause", "c2"),
        ask("s1", "resume", "c2")), "active", 20),
    "holds that a replica lacks": _holds_back(
        hold("cat9", "h3", CREDIT, 86_000_000), hold("cat9", "h4", 0, 86_000_000, form=1),
        hold("cat9", "h5", CREDIT), often=5),
    "holds that a replica lacks, with a session": _holds_back(
        hold("cat9", "h3", CREDIT, 86_000_000), hold("cat9", "h4", 0), often=5,
        before=(start("s1"),)),
    "holds that a replica has as open": _holds_back(
        post("cat9", "h1", CREDIT // 2), void("cat9", "h2"), often=2),
    "holds that a replica has as open, otherwise": _holds_back(
        void("cat9", "h1"), post("cat9", "h2", 0), often=2, before=(start("s1"),)),
    "a voided hold that a replica has as open": _holds_back(void("cat9", "h1"), often=2),
    "a posted hold that a replica has as open": _holds_back(post("cat9", "h1", 1), often=3),
    "a hold that was posted with nothing is posted with more": _ends_again(
        post("cat9", "h1", 0), post("cat9", "h1", CREDIT // 2, "again"), form=1),
    "an operation that was posted with nothing is posted with more": _ends_again(
        post("cat9", "h1", 0), post("cat9", "h1", CREDIT // 2, "again")),
    "a hold that was posted is posted with less": _ends_again(
        post("cat9", "h1", CREDIT // 2), post("cat9", "h1", CREDIT // 4, "again")),
    "a hold that was voided is posted": _ends_again(
        void("cat9", "h1"), post("cat9", "h1", CREDIT // 2)),
    "a hold that was posted is voided": _ends_again(
        post("cat9", "h1", CREDIT // 2), void("cat9", "h1")),
    "a hold that was posted is over": _ends_again(
        post("cat9", "h1", CREDIT // 2), wait(20), ttl_ms=5_500),
    "the first hold of an account that a replica lacks": Directed((
        RICH, act("show", node=NODE, user="cat9"), wait(600), FLUSH, LAG,
        hold("cat9", "h1", CREDIT, 86_000_000), UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "holds for no operation that a replica has as open": Directed((
        RICH, act("show", node=NODE, user="cat9"), start("s1"),
        hold("cat9", "h1", CREDIT, form=1), hold("cat9", "h2", CREDIT, form=1),
        wait(5), FLUSH, LAG, void("cat9", "h1"), post("cat9", "h2", CREDIT // 2), UNNOTICED,
        PUT_BACK, wait(20),
    )),
    "holds on an empty Redis": Directed((
        RICH, start("s1"), hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT),
        hold("cat9", "h3", CREDIT, 50_000), hold("cat9", "h0", 0), wait(5), FLUSH, EMPTY, PUT_BACK,
        post("cat9", "h1", CREDIT // 2), void("cat9", "h2"), wait(60), void("cat9", "h0"), wait(60),
    )),
    "holds on an empty Redis that nobody uses": Directed((
        RICH, hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT, 50_000),
        hold("cat9", "h3", CREDIT), wait(5), FLUSH, EMPTY, wait(10), sketch("cat9", "e1"),
        wait(100), post("cat9", "h1", 1), wait(60), void("cat9", "h3"), wait(60),
    )),
    "a hold ends on an empty Redis where its account is cold": Directed((
        RICH, hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT), wait(5), FLUSH, EMPTY,
        PUT_BACK, post("cat9", "h1", CREDIT // 2), answered("p-h1", "done"), wait(5), FLUSH, EMPTY,
        PUT_BACK, void("cat9", "h2"), PUT_BACK,
    )),
    "holds that ended while Postgres was away": Directed((
        SERVE, RICH, start("s1"), hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT),
        hold("cat9", "h3", 0), wait(5), FLUSH, act("postgres_away", ms=12_000),
        post("cat9", "h1", CREDIT // 2), void("cat9", "h2"), void("cat9", "h3"), EMPTY, PUT_BACK,
        wait(20), act("again", node=NODE, entry="p-h1"), act("again", node=NODE, entry="v-h2"),
        wait(60),
    )),
    "a hold that ended before a replica took over": Directed((
        RICH, start("s1"), hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT, 20_000),
        wait(5), FLUSH, act("postgres_away", ms=30_000), void("cat9", "h1"), LAG,
        sketch("cat9", "e1"), UNNOTICED, PUT_BACK, wait(60), sketch("cat9", "e2", often=2), wait(5),
        FLUSH, PUT_BACK,
    )),
    "money that a replica lacks": Directed((
        RICH, start("s1"), sketch("cat9", "e0"), wait(5), FLUSH, LAG,
        pay("cat9", CREDIT, "g1"), sketch("cat9", "e1"), sketch("cat9", "e2"),
        pay("cat9", -CREDIT, "t1"), wait(0.5), UNNOTICED, PUT_BACK, sketch("cat9", "e3", often=4),
        sketch("cat9", "e4", often=4), sketch("cat9", "e5", often=4), PUT_BACK, wait(30),
    )),
    "money that a replica lacks, of an account without sessions": Directed((
        RICH, act("show", node=NODE, user="cat9"), sketch("cat9", "e0"), wait(700), FLUSH, LAG,
        pay("cat9", CREDIT, "g1"),
        sketch("cat9", "e1"), UNNOTICED, PUT_BACK, PUT_BACK,
    )),
    "money on an empty Redis": Directed((
        RICH, start("s1"), sketch("cat9", "e1"), pay("cat9", CREDIT, "g1"),
        hold("cat9", "h1", CREDIT), post("cat9", "h1", 1000), wait(5), FLUSH, EMPTY, PUT_BACK,
        pay("cat9", CREDIT, "g2"), sketch("cat9", "e2", often=2), answered("e2", "done"),
        sketch("cat9", "e3", often=2), answered("e3", "refused"), wait(20), PUT_BACK,
    )),
    "months that a replica lacks": Directed((
        start("s1", "ann9", "recording"), wait(70), FLUSH, LAG, adjust("m1", 2), limit(30),
        wait(0.5), UNNOTICED, PUT_BACK, wait(60), adjust("m2", -1), PUT_BACK,
    )),
    "nothing is drawn on while Redis recovers": Directed((
        pay("cat9", 10 * CREDIT), hold("cat9", "h0", CREDIT), start("s1", kind="dear"), wait(5),
        act("kill", name=FLUSHER), EMPTY, sketch("cat9", "e1", 4 * CREDIT),
        answered("e1", "unknown"), hold("cat9", "h1", 4 * CREDIT), answered("hold:h1", "unknown"),
        start("s2"), told("c-s2", "session", times=0), wait(1),
        act("flusher", name="late", pace_ms=5_000), PUT_BACK, wait(20),
    )),
    "nothing is drawn on while a replica recovers": Directed((
        pay("cat9", 10 * CREDIT), start("s1", kind="dear"), wait(3), FLUSH, LAG,
        sketch("cat9", "e0", 5 * CREDIT), UNNOTICED, wait(1.2), sketch("cat9", "e1", 4 * CREDIT),
        answered("e1", "unknown"), hold("cat9", "h1", 4 * CREDIT), answered("hold:h1", "unknown"),
        start("s2"), told("c-s2", "session", times=0),
        report("t1", minute_at(1)), wait(1), PUT_BACK, wait(20),
    )),
    "a reported minute on a replica": Directed((
        report("t1", minute_at(1)), start("s1", "ann9", "recording"), wait(70), FLUSH, LAG,
        report("t1", minute_at(2)), wait(0.5), UNNOTICED,
        wait(1.2), report("t3", minute_at(1)), PUT_BACK, report("t1", minute_at(2)),
        report("t1", minute_at(3)), wait(70), PUT_BACK,
    )),
    "a flusher finds an empty Redis": Directed((
        RICH, start("s1"), act("postgres_away", ms=30_000), wait(65), EMPTY, wait(10),
        ask("s1", "pause"), wait(30), FLUSH, PUT_BACK,
    )),
    "a flusher finds an empty Redis, twice": Directed((
        SERVE, RICH, start("s1"), start("s2", "ann9", "recording"), join("c2", "s1"),
        act("postgres_away", ms=90_000), wait(65), EMPTY, wait(20), act("drop_lines"), wait(20),
        EMPTY, wait(60), PUT_BACK,
    )),
    "a Redis without lines": Directed((
        SERVE, RICH, start("s1"), act("postgres_away", ms=90_000), wait(65), act("drop_lines"),
        wait(20), ask("s1", "stop"), act("drop_lines"), wait(60),
    )),
}  # fmt: skip
