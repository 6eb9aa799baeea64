"""Directed worlds in which a session ends on an older copy.

The session's last steps are lost with a Redis that fails. They completed minutes, which Postgres
has or gets, or made an end of their own. Another process ends the older copy before the process
that made the lost steps finds the loss. At the end the receipt, the minutes, the months, the ledger
and Redis must agree (``verdict``).
"""

from tests.simulation.actions import Action
from tests.simulation.directed.forks import PUT_BACK, counted, phase
from tests.simulation.directed.steps import (
    FLUSH,
    LAG,
    OTHER,
    SERVE,
    UNNOTICED,
    Directed,
    ask,
    join,
    minute_at,
    report,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import NODE, act, pay, start, wait

PAUSE, RESUME, STOP = ask("s1", "pause"), ask("s1", "resume"), ask("s1", "stop")
RESUME_2, STOP_2 = ask("s1", "resume", "c2"), ask("s1", "stop", "c2")
DEATH, ITS_DEATH = act("kill", name=OTHER), act("kill", name=NODE)
MINUTE = (RESUME, wait(1.3), PAUSE, wait(0.2))
"""A second more completes the minute, where the session was paused after 59 s."""
FLUSHED = (RESUME, wait(1.3), FLUSH, PAUSE, wait(0.2))
MINUTES = (RESUME, wait(185), PAUSE, FLUSH, wait(0.2))


def _end(
    lost: tuple[Action, ...],
    end: tuple[Action, ...] = (STOP_2,),
    then: tuple[Action, ...] = (DEATH,),
    *expected: Action,
    at: float = 59,
    user: str = "cat9",
    kind: str = "second",
) -> Directed:
    """A process ends the older copy of a session after ``lost``.

    The session is paused after ``at`` seconds. ``lost`` is done on one process, and ``end`` on
    another. ``then`` happens before the first process finds the loss.
    """
    return Directed((
        SERVE, pay(user, 50 * CREDIT), start("s1", user, kind), wait(at), PAUSE, wait(1), LAG,
        *lost, UNNOTICED, join("c2", "s1"), wait(0.1), *end, *then, PUT_BACK,
        phase("ended", user), *expected, wait(60),
    ))  # fmt: skip


def _reported(*lost: Action) -> Directed:
    """The same, where the client reports the minutes."""
    return Directed((
        SERVE, report("s1", minute_at(0)), wait(1), FLUSH, LAG, report("s1", minute_at(1)), *lost,
        UNNOTICED, join("c2", "s1"), wait(0.1), STOP_2, PUT_BACK, phase("ended", "ann9"), wait(60),
    ))  # fmt: skip


AT_59 = counted(59, 59)
ENDS = {
    "an end before a minute that is written later": _end(MINUTE, (STOP_2,), (DEATH,), AT_59),
    "an end before a minute that is recorded": _end(FLUSHED, (STOP_2,), (DEATH,), AT_59),
    "an end before several minutes": _end(MINUTES, (STOP_2,), (DEATH,), counted(20, 20), at=20),
    "an end before a minute, and all live": _end(MINUTE, then=()),
    "an end before a recorded minute, and all live": _end(FLUSHED, then=()),
    "an end before several minutes, and all live": _end(MINUTES, then=(), at=20),
    "an end before minutes whose process dies": _end(FLUSHED, then=(ITS_DEATH,)),
    "an end before minutes, and both processes die": _end(
        FLUSHED, then=(ITS_DEATH, DEATH, act("serve", node="node.2"))),
    "an operator ends an older copy": _end(
        FLUSHED, (act("operator", client="c2", session="s1"),)),
    "an older copy ends as its client is gone": _end(
        FLUSHED, (RESUME_2, act("leave", client="c2", session="s1")),
        (act("cut_off", name=NODE, ms=45_000),)),
    "an end of an older copy while Postgres is away": _end(
        MINUTE, (STOP_2,), (act("postgres_away", ms=100_000), DEATH), wait(120)),
    "an end before minutes that count in months": _end(
        MINUTES, then=(), at=20, user="ann9", kind="lesson"),
    "an end before a part of a minute that counts in months": _end(
        MINUTE, user="ann9", kind="recording"),
    "an end before free minutes": _end(MINUTES, then=(), at=20, kind="day"),
    "an end before free minutes of a pair": _end(FLUSHED, at=20, kind="pair"),
    "an end before reported minutes": _reported(),
    "an end before recorded reported minutes": _reported(FLUSH),
    "two ends, and the lost one is longer": _end(
        (RESUME, wait(1.3), STOP, wait(0.2)), (STOP_2,), (), counted(60.3, 60.3)),
    "two ends, and the lost one is recorded": _end(
        (RESUME, wait(1.3), STOP, FLUSH, wait(0.2)), (STOP_2,), (), counted(60.3, 60.3)),
    "two ends, and the lost one is shorter": _end(
        (STOP, wait(0.2)), (RESUME_2, wait(0.1), STOP_2), (), counted(59.1, 59.1)),
    "two ends without a charge, and the lost one is longer": _end(
        (RESUME, wait(1.3), STOP, wait(0.2)), (STOP_2,), (), counted(21.3, 21.3), at=20,
        kind="day"),
    "two ends without a charge, and the lost one is shorter": _end(
        (STOP, wait(0.2)), (RESUME_2, wait(0.1), STOP_2), (), counted(20.1, 20.1), at=20,
        kind="day"),
    "two ends, and the shorter one is recorded": _end(
        (STOP, FLUSH, wait(0.2)), (RESUME_2, wait(3), STOP_2), (DEATH,)),
}  # fmt: skip
