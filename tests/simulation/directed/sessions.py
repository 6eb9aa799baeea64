"""Directed worlds of sessions: serving, observing, preparing, and sharing between sessions."""

from tests.simulation.actions import Action
from tests.simulation.directed.forks import counted
from tests.simulation.directed.steps import (
    EMPTY,
    FAILOVER,
    FLUSH,
    FORGET,
    HIDDEN,
    LAG,
    NO_FLUSHER,
    OTHER,
    RICH,
    SERVE,
    Directed,
    ask,
    elsewhere,
    hold,
    join,
    minute_at,
    report,
    sketch,
    told,
    void,
    watch,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, mishaps, pay, start, wait

FEW = {"user": "cat9", "kind": "few"}


def _heartbeat(session: str = "s1", user: str = "cat9", node: str = OTHER) -> Action:
    """A heartbeat over HTTP proves a life in advance."""
    return act("heartbeat", node=node, user=user, session=session)


SESSIONS = {
    "a user has as many sessions as the kind allows": Directed((
        RICH, start("s1", **FEW), start("s2", **FEW), start("s3", **FEW),
        told("c-s3", "error", code="rate_limited"), start("s4"),
        told("c-s4", "session", state="active"), ask("s1", "stop"), wait(1), start("s5", **FEW),
        told("c-s5", "session", state="active"), act("close", client="c-s2"), wait(40),
        start("s6", **FEW), told("c-s6", "session", state="active"), start("s7", **FEW),
        told("c-s7", "error", code="rate_limited"), wait(5),
    )),
    "a user's sessions of a kind on an empty Redis": Directed((
        RICH, start("s1", **FEW), start("s2", **FEW), wait(70), FLUSH, EMPTY, wait(60),
        start("s3", **FEW), told("c-s3", "error", code="rate_limited"), ask("s1", "stop"), wait(1),
        start("s4", **FEW), told("c-s4", "session", state="active"), wait(60),
    )),
    "a user's sessions of a kind that ended on a replica": Directed((
        RICH, start("s1", **FEW), start("s2", **FEW), wait(70), FLUSH, LAG, ask("s1", "stop"),
        FAILOVER, wait(60), start("s4", **FEW), told("c-s4", "session", state="active"),
        start("s5", **FEW), told("c-s5", "error", code="rate_limited"), wait(60),
    )),
    "a user's sessions of a kind that began on a replica": Directed((
        RICH, start("s1", **FEW), wait(1), LAG, start("s2", **FEW), FAILOVER, wait(60),
        start("s3", **FEW), told("c-s3", "error", code="rate_limited"), wait(60),
    )),
    "a user's sessions that are not there": Directed((
        RICH, start("s1", **FEW), act("stray", user="cat9", kind="few"),
        act("stray", user="cat9", kind="few"), start("s2", **FEW),
        told("c-s2", "session", state="active"), start("s3", **FEW),
        told("c-s3", "error", code="rate_limited"), wait(5),
    )),
    "what runs goes on where too much waits": Directed((
        RICH, start("s1"), start("s2", "ann9", "recording"), wait(5), NO_FLUSHER,
        *(sketch("cat9", f"e{number}", 1000) for number in range(26)), wait(70),
        ask("s1", "pause"), told("c-s1", "session", state="paused"), ask("s1", "resume"),
        told("c-s1", "session", state="active"), wait(30), ask("s1", "stop"),
        told("c-s1", "stopped", reason="client"), ask("s2", "pause"),
        told("c-s2", "session", state="paused"),
        act("flusher", name="late", pace_ms=1_000), wait(5),
    ), "full"),
    "a balance is shown where no session runs": Directed((
        SERVE, RICH, act("show", node=NODE, user="cat9"), act("show", node=OTHER, user="cat9"),
        sketch("cat9", "e1"), wait(5), FLUSH, FORGET, pay("cat9", CREDIT, "g2"), wait(5),
        start("s1"), wait(20), ask("s1", "stop"), wait(5), sketch("cat9", "e2"), wait(5),
    )),
    "two processes go on with one session": Directed((
        SERVE, RICH, start("s1"), wait(10), join("c2", "s1"), wait(10), ask("s1", "pause"),
        wait(5), ask("s1", "resume", "c2"), wait(70), ask("s1", "pause", "c2"), wait(2),
        ask("s1", "resume"), wait(10), act("close", client="c-s1"), wait(70),
        ask("s1", "stop", "c2"), wait(5),
    )),
    "two processes are told the same notices": Directed((
        SERVE, pay("cat9", CREDIT * 11 // 2), start("s1"), join("c2", "s1"), watch("w", "s1"),
        watch("w0", "s1", NODE), wait(400), pay("cat9", CREDIT, "g2"), wait(10), wait(80),
    )),
    "two processes do the same at once": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1"), wait(5),
        mishaps(NODE, "redis", ["late", 30]), ask("s1", "pause"), ask("s1", "pause", "c2"),
        wait(5), mishaps(OTHER, "redis", ["late", 30]), ask("s1", "resume", "c2"),
        ask("s1", "resume"), wait(70), mishaps(NODE, "redis", ["slow", 900]),
        ask("s1", "stop"), ask("s1", "stop", "c2"), wait(5),
    )),
    "somebody watches from elsewhere": Directed((
        SERVE, pay("cat9", CREDIT * 3), start("s1"), wait(10), watch("w", "s1"), wait(5),
        ask("s1", "pause"), wait(1), told("w", "session", state="paused"), ask("s1", "resume"),
        wait(1), wait(200),
    )),
    "somebody watched from elsewhere before a loss": Directed((
        SERVE, pay("cat9", CREDIT * 3), start("s1"), wait(10), watch("w", "s1"), wait(5), EMPTY,
        wait(60), ask("s1", "pause"), wait(1), told("w", "session", state="paused"),
        ask("s1", "resume"), wait(200),
    )),
    "who leaves says so to the other process": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1"), wait(10),
        act("leave", client="c-s1", session="s1"), wait(30),
        act("leave", client="c2", session="s1"), wait(60),
    )),
    "who leaves ends the proof of a heartbeat elsewhere": Directed((
        SERVE, RICH, start("s1"), wait(10), _heartbeat(), wait(5),
        act("leave", client="c-s1", session="s1"), wait(30), counted(15, 15.1), wait(30),
    )),
    "who leaves beside a socket ends the proof of a heartbeat elsewhere": Directed((
        SERVE, RICH, start("s1"), join("c2", "s1", NODE), wait(10), _heartbeat(), wait(5),
        act("leave", client="c-s1", session="s1"), wait(5), act("cut", client="c2"), wait(45),
        counted(15, 21), wait(30),
    )),
    "many notices are kept, and no more": Directed((
        pay("cat9", CREDIT // 2), start("s1"),
        *(step for number in range(18) for step in (
            pay("cat9", 20 * CREDIT, f"g{number}"), wait(2),
            pay("cat9", -20 * CREDIT, f"t{number}"), wait(1))), wait(5),
    )),
    "a session on another process begins anew where it was": Directed((
        SERVE, RICH, start("s1"), wait(20), act("kill", name=NODE), wait(2),
        join("c2", "s1", last_seq=0), wait(70), ask("s1", "pause", "c2"), wait(20),
        ask("s1", "stop", "c2"), wait(5),
    )),
    "a process dies and nobody comes back": Directed((
        SERVE, RICH, start("s1"), start("s2", kind="capped"), elsewhere("s3"), wait(20),
        act("kill", name=NODE), wait(60), start("s4"), wait(5),
    )),
    "who joins where nobody can serve": Directed((
        SERVE, RICH, start("s1"), wait(5),
        mishaps(OTHER, "redis", ["none"], ["lost"], ["none"]), join("c2", "s1"), wait(20),
        mishaps(OTHER, "redis", ["none"], ["none"], ["lost"]), join("c3", "s1"), wait(20),
        act("close", client="c-s1"), wait(5),
        mishaps(OTHER, "redis", ["none"], ["lost"]), join("c4", "s1"), wait(10),
        mishaps(OTHER, "redis", ["none"], ["none"], ["lost"]), join("c5", "s1"), wait(60),
    )),
    "somebody else wants to take part": Directed((
        SERVE, RICH, start("s1", "ann9", "recording"), wait(5),
        act("intrude", client="x1", node=OTHER, user="bob9", session="s1"),
        act("intrude", client="x2", node=NODE, user="bob9", session="s1"), wait(5),
        ask("s1", "stop"), wait(1), join("c2", "s1"), wait(5),
        act("intrude", client="x3", node=OTHER, user="bob9", session="s1"), wait(5),
    )),
    "free time of a day is shared": Directed((
        RICH, start("s1", kind="day"), wait(20), start("s2", kind="day"), wait(50),
        ask("s1", "stop"), wait(30), start("s3", kind="day"), wait(70), ask("s2", "pause"),
        wait(1), FLUSH, FORGET, ask("s2", "resume"), wait(30),
    )),
    "free time of a pair is taken at once": Directed((
        SERVE, RICH, start("s1", kind="pair"), elsewhere("s2", kind="pair"), wait(30),
        ask("s1", "pause"), ask("s2", "pause"), wait(5), ask("s1", "resume"), ask("s2", "resume"),
        wait(20), ask("s1", "stop"), ask("s2", "stop"), wait(5), FLUSH, FORGET,
        start("s3", kind="pair"), wait(40), ask("s3", "stop"), wait(5),
    )),
    "the rest of an account is one session's": Directed((
        pay("cat9", CREDIT * 3 // 2), start("s1"), wait(30), start("s2"), wait(20), wait(60),
    )),
    "three share the rest of an account": Directed((
        SERVE, pay("cat9", CREDIT * 4), start("s1", kind="six"), elsewhere("s2", kind="six"),
        start("s3"), wait(40), ask("s3", "pause"), wait(10), ask("s3", "resume"), wait(100),
    )),
    "a session waits for what another holds": Directed((
        SERVE, pay("cat9", CREDIT), start("s1"), wait(5), elsewhere("s2"), wait(1),
        told("c-s2", "session", state="active"), wait(5), start("s3", kind="dear"), wait(1),
        wait(60),
    )),
    "a session gets what a hold gave back": Directed((
        pay("cat9", CREDIT), hold("cat9", "h1", CREDIT * 3 // 4), start("s1"), wait(5),
        void("cat9", "h1"), wait(20), told("c-s1", "limit_reached", times=0), wait(60),
    )),
    "a session gets what another gave back": Directed((
        SERVE, pay("cat9", CREDIT), start("s1"), elsewhere("s2"), wait(10), ask("s2", "stop"),
        wait(20), told("c-s1", "limit_reached", times=0), wait(60),
    )),
    "a gap is billed in part": Directed((
        pay("cat9", CREDIT), start("s1", kind="capped"), wait(10), start("s2"), wait(1),
        act("cut", client="c-s1"), wait(35), join("c2", "s1", NODE), wait(60),
    )),
    "what others hold is not in the way of a billed gap": Directed((
        pay("cat9", 750_000), start("s1", kind="capped"), act("cut", client="c-s1"), wait(39),
        start("s2"), wait(1), join("c2", "s1", NODE), wait(0.1), ask("s1", "stop", "c2"), wait(1),
        told("c2", "stopped", reason="client"),
    )),
    "a session ends at its cap and at the credits": Directed((
        pay("cat9", CREDIT * 5 // 3), start("s1", kind="capped"), wait(130),
    )),
    "a session is started twice": Directed((
        SERVE, RICH, mishaps(NODE, "redis", *HIDDEN, ["unanswered"]), start("s1"),
        elsewhere("s1", client="c2"), join("c3", "s1"), wait(70), ask("s1", "stop", "c3"), wait(5),
    )),
    "sessions start where too much waits": Directed((
        NO_FLUSHER, RICH, *(sketch("cat9", f"e{number}", 1000) for number in range(25)),
        start("s1"), told("c-s1", "error", code="unavailable"), wait(5),
        act("flusher", name="late", pace_ms=1_000), wait(5), start("s2"), wait(5),
        told("c-s2", "session", state="active"),
    ), "full"),
    "everything is cold": Directed((
        pay("ann9", 50 * CREDIT), start("s1", "ann9", "lesson"), start("s2", "ann9", "day"),
        wait(90), ask("s1", "stop"), ask("s2", "stop"), wait(5), FLUSH, FORGET,
        start("s3", "ann9", "lesson"), wait(5), ask("s3", "stop"), wait(5), FLUSH, FORGET,
        start("s4", "ann9", "day"), wait(40), ask("s4", "stop"), wait(5), FLUSH, FORGET,
        start("s5", "bob9", "lesson"), wait(70), report("t1", minute_at(1)), wait(5),
    )),
    "an ended session is forgotten": Directed((
        RICH, start("s1"), wait(70), ask("s1", "stop"), wait(5), FLUSH, wait(3 * 3600),
        join("c2", "s1", NODE), start("s2"), wait(5), ask("s2", "pause"), wait(70), wait(1800),
    )),
    "a session is prepared before it starts": Directed((
        SERVE, RICH, act("prepare", node=OTHER, user="cat9", kind="second", session="s1"),
        act("prepare", node=NODE, user="cat9", kind="second", session="s1"),
        start("s1"), told("c-s1", "session", state="active"), wait(5),
        act("prepare", node=OTHER, user="cat9", kind="second", session="s1", confirmed=False),
        act("prepare", node=OTHER, user="cat9", kind="six", session="s1", confirmed=False),
        act("prepare", node=OTHER, user="cat9", kind="six", session="s2"),
        start("s2", kind="six"), told("c-s2", "session", state="active"), wait(70),
    )),
    "a session is prepared after it started": Directed((
        RICH, start("s1"), wait(5),
        act("prepare", node=NODE, user="cat9", kind="second", session="s1", confirmed=False),
        wait(5), ask("s1", "stop"), wait(5),
        act("prepare", node=NODE, user="cat9", kind="second", session="s1", confirmed=False),
    )),
    "a session is prepared while it starts": Directed((
        RICH, *(act("start", client=f"c{turns}", node=NODE, user="cat9", kind="second",
                    session=f"s{turns}", backend=NODE, turns=turns)
                for turns in (*range(-24, 25, 2), 40, -40)), wait(20),
    )),
    "a session is prepared while it starts elsewhere": Directed((
        SERVE, RICH, *(act("start", client=f"c{turns}", node=NODE, user="cat9", kind="second",
                           session=f"s{turns}", backend=OTHER, turns=turns)
                       for turns in (*range(-25, 25, 2), 40, -40)), wait(20),
    )),
    "a session is prepared after a loss": Directed((
        RICH, start("s0"), wait(5), FLUSH, EMPTY, wait(0.2),
        act("prepare", node=NODE, user="cat9", kind="second", session="s1", confirmed=False),
        wait(10),
        act("prepare", node=NODE, user="cat9", kind="second", session="s1", confirmed=False),
        wait(80), act("prepare", node=NODE, user="cat9", kind="second", session="s1"),
        start("s1"), wait(60),
    )),
}  # fmt: skip
