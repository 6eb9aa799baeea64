"""What a meter asks of its shell, and what the shell brings back.

A meter never does anything. It is fed, and what it wants done is drained from it as a
list of these values, in order.
"""

from typing import Any

import msgspec

from protocol.metering.projection import MonthProjection
from protocol.metering.session import SessionState
from protocol.metering.steps import Step
from protocol.wire.messages import ServerMessage

Token = Any
"""Whoever made a request, as the shell knows them; a meter only hands it back."""


class Ask(msgspec.Struct, frozen=True):
    """Make this step in Redis and bring the answer to ``granted``."""

    step: Step


class Push(msgspec.Struct, frozen=True):
    """Send a message to the session's sockets on this process.

    It is encoded already where it was kept as a notice. For the socket behind ``token``
    it is the answer to its request.
    """

    message: ServerMessage | bytes
    token: Token = None


class Show(msgspec.Struct, frozen=True):
    """Send the snapshot to the session's sockets: something changed that no tick shows.

    For the socket behind ``token`` it is the answer; ``only`` keeps it from the others.
    ``seq`` is the number of the last notice that was said before it.
    """

    seq: int
    token: Token = None
    only: bool = False


class Refuse(msgspec.Struct, frozen=True):
    """Answer a request with an error: ``limit_reached`` by ``limit``, or ``session_ended``."""

    token: Token
    limit: str | None


class Probe(msgspec.Struct, frozen=True):
    """Ask the session's sockets for a proof of life: a minute is complete but not proven."""


class LeaveSession(msgspec.Struct, frozen=True):
    """This process has nothing more to do for the session."""


Effect = Ask | Push | Show | Refuse | Probe | LeaveSession


class Reply(msgspec.Struct, frozen=True):
    """What Redis said to a step.

    ``accepted``: the step was made and ``session`` is what it left. Otherwise nothing
    was changed: ``session`` is what somebody faster left (stale), or the limit that
    refused is named, or this process was not the session's last and has just ``left``.
    """

    accepted: bool
    session: SessionState | None
    member: MonthProjection = MonthProjection()
    org: MonthProjection = MonthProjection()
    refused_by: str | None = None
    left: bool = False
    free_left_ms: int | None = None
    """What is left of the shared allowance that the session's free time is drawn from."""
    notices: tuple[bytes, ...] = ()
    """The kept notices, oldest first, when the session was moved by somebody else."""


class RemoteStep(msgspec.Struct, frozen=True):
    """A step that another process made of a session, as it is told to the others."""

    session: SessionState
    notices: tuple[bytes, ...] = ()
    """What was said with it, oldest first."""
    complete: bool = False
    """The session was read, with all the notices that are kept; not told step by step."""
    minutes: tuple[bytes, ...] = ()
    """The messages of the minutes that it completed."""
    member: MonthProjection | None = None
    """The month's counters after it; None where they were not told."""
    org: MonthProjection | None = None
