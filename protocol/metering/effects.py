"""What a meter asks of its shell, and what comes back.

A meter does nothing itself. The shell feeds it, and drains a list of these values, in order, which
tell the shell what to do.
"""

from typing import Any

import msgspec

from protocol.metering.projection import MonthProjection
from protocol.metering.session import SessionState
from protocol.metering.steps import Step
from protocol.wire.messages import ServerMessage

Token = Any
"""The author of a request, as the shell knows it; a meter only hands it back."""


class Ask(msgspec.Struct, frozen=True):
    """Make this step in Redis and pass the answer to ``granted``."""

    step: Step


class Push(msgspec.Struct, frozen=True):
    """Send a message to the session's sockets on this process.

    A message that was kept as a notice is encoded already. For the socket behind ``token`` the
    message is the answer to its request.
    """

    message: ServerMessage | bytes
    token: Token = None


class Show(msgspec.Struct, frozen=True):
    """Send the snapshot to the sockets, after a change without a tick.

    For the socket behind ``token`` the snapshot is the answer; with ``only``, no other socket gets
    it. ``seq`` is the number of the last notice before it.
    """

    seq: int
    token: Token = None
    only: bool = False


class Refuse(msgspec.Struct, frozen=True):
    """Answer a request with an error: ``limit_reached`` by ``limit``, or ``session_ended``."""

    token: Token
    limit: str | None


class Probe(msgspec.Struct, frozen=True):
    """Probe the session's sockets for a proof of life."""


class LeaveSession(msgspec.Struct, frozen=True):
    """This process has nothing more to do for the session."""


Effect = Ask | Push | Show | Refuse | Probe | LeaveSession


class Reply(msgspec.Struct, frozen=True):
    """The answer of Redis to a step.

    ``accepted``: the step was made, and ``session`` is the result. Otherwise nothing was changed,
    for one of three reasons: the step was stale, and ``session`` is the result of the faster step;
    or ``refused_by`` names the limit that refused; or this process did not have the session's last
    socket and has just ``left``.
    """

    accepted: bool
    session: SessionState | None
    member: MonthProjection = MonthProjection()
    org: MonthProjection = MonthProjection()
    refused_by: str | None = None
    left: bool = False
    free_left_ms: int | None = None
    """What is left of the shared allowance that the session's free time comes from."""
    notices: tuple[bytes, ...] = ()
    """The kept notices, oldest first, if another process moved the session."""


class RemoteStep(msgspec.Struct, frozen=True):
    """A step of another process, as the others receive it."""

    session: SessionState
    notices: tuple[bytes, ...] = ()
    """The notices of the step, oldest first."""
    complete: bool = False
    """This is the whole session, read with all kept notices, in place of a single step."""
    minutes: tuple[bytes, ...] = ()
    """The messages of the minutes that the step completed."""
    member: MonthProjection | None = None
    """The month's counters after the step; None: not contained in the message."""
    org: MonthProjection | None = None
