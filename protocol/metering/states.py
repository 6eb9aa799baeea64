"""The states of a session, and what moves it from one to another.

How it works
------------
A session counts time in one state only, ``active``. Everything that can happen to it
is an :class:`Event`; the literal table :data:`TRANSITIONS` says which events a state
knows and where they lead. An event that a state does not know changes nothing: it is
late (a second ``stop``), or it is refused by the shell before it gets here.

``stopping`` is the unbilled grace after ``limit_reached``: the client saves its work,
and a top-up followed by ``resume`` goes on. ``suspended`` is the grace for a lost
connection; who comes back when nothing is left lands in ``stopping``. A paused session
whose sockets are gone stays paused while its grace runs, so coming back does not start
its time. Nothing leaves ``ended``.

Everything that changes a session's state must be a row of this table; the diagram in
``docs/how-it-works.md`` is drawn from it by ``scripts/diagram``.
"""

import enum


class Phase(enum.StrEnum):
    """What a session is doing (PROTOCOL section 1, ``state``)."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    ENDED = "ended"


class Event(enum.StrEnum):
    """What can happen to a session that has started."""

    PAUSE = "pause"
    """The client asked to pause."""
    RESUME = "resume"
    """The client asked to go on."""
    LIMIT = "limit"
    """The end of a final grant was reached, or nothing was left to go on with."""
    LOST = "lost"
    """The last socket of any process is gone."""
    RETURNED = "returned"
    """A socket joined."""
    UNPROVEN = "unproven"
    """A socket joined, and none of those that were there before has answered."""
    EXPIRED = "expired"
    """The grace of the state ran out."""
    STOP = "stop"
    """The client, a backend, an operator or the call itself ended it."""


TRANSITIONS: dict[Phase, dict[Event, Phase]] = {
    Phase.ACTIVE: {
        Event.PAUSE: Phase.PAUSED,
        Event.LIMIT: Phase.STOPPING,
        Event.LOST: Phase.SUSPENDED,
        Event.UNPROVEN: Phase.ACTIVE,
        Event.STOP: Phase.ENDED,
    },
    Phase.PAUSED: {
        Event.RESUME: Phase.ACTIVE,
        Event.LOST: Phase.PAUSED,
        Event.RETURNED: Phase.PAUSED,
        Event.EXPIRED: Phase.ENDED,
        Event.STOP: Phase.ENDED,
    },
    Phase.SUSPENDED: {
        Event.RETURNED: Phase.ACTIVE,
        Event.LIMIT: Phase.STOPPING,
        Event.EXPIRED: Phase.ENDED,
        Event.STOP: Phase.ENDED,
    },
    Phase.STOPPING: {
        Event.RESUME: Phase.ACTIVE,
        Event.LOST: Phase.STOPPING,
        Event.EXPIRED: Phase.ENDED,
        Event.STOP: Phase.ENDED,
    },
    Phase.ENDED: {},
}


def after(phase: Phase, event: Event) -> Phase | None:
    """The phase that ``event`` leads to from ``phase``; None when it changes nothing."""
    return TRANSITIONS[phase].get(event)
