"""A session's states, and the events that move it between them.

A session counts time in one state only, ``active``. Everything that can happen to a session is an
:class:`Event`. The literal table :data:`TRANSITIONS` lists the events that each state knows, and
where they lead. An event that a state does not know changes nothing: the event is late (a second
``stop``), or the shell refuses it first.

``stopping`` is the unbilled grace after ``limit_reached``: the client saves its work, and after a
top-up ``resume`` continues. ``suspended`` is the grace for a lost connection; a client that returns
when nothing is left gets ``stopping``. A paused session without sockets stays paused while its
grace runs, so a return does not start its time. No event leaves ``ended``.

Every change of a session's state must be a row of this table. ``scripts/diagram`` draws the diagram
in ``docs/how-it-works.md`` from it.
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
    """The client asked to continue."""
    LIMIT = "limit"
    """The end of a final grant was reached, or nothing was left to continue with."""
    LOST = "lost"
    """No process has a socket of the session any more."""
    RETURNED = "returned"
    """A socket joined."""
    UNPROVEN = "unproven"
    """A socket joined, and none of the earlier sockets answered."""
    EXPIRED = "expired"
    """The grace of the state ran out."""
    STOP = "stop"
    """The client, a backend, an operator or the call itself ended the session."""


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
    """Returns the phase that ``event`` leads to from ``phase``; None: no change."""
    return TRANSITIONS[phase].get(event)
