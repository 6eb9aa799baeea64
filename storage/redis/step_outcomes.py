"""The outcome of a step, for the meter and its shell."""

from typing import Any

import msgspec
import structlog

from protocol.metering.effects import Reply
from protocol.metering.steps import Step
from storage.redis.encoding import reply_of

log = structlog.get_logger()


class AccountChange(msgspec.Struct, frozen=True):
    """The account's figures after a change, for its projection."""

    version: int
    gross_micros: int
    reserved_micros: int


class StepOutcome(msgspec.Struct, frozen=True):
    """A step's outcome: the meter's answer, or what is missing."""

    reply: Reply | None
    change: AccountChange | None = None
    """The account's figures, if the step changed its projection."""
    cold: tuple[str, ...] = ()
    """What must be loaded before the step is sent again."""
    gone: bool = False
    """Redis has lost the session, or the newest of its steps."""
    outdated: bool = False
    """The basis of a start has changed; see ``protocol.metering.steps.StartBasis``."""
    full: bool = False
    """Too much waits for Postgres: no session is started."""
    crowded: bool = False
    """The user has the most live sessions that the kind allows: no session is started."""
    entry_id: str = ""
    """The outbox entry with the step's records; empty: there are none."""
    held: bool = False
    """Only what other sessions hold prevented the step; they were asked to give some back."""
    failed: str = ""
    """Why nothing was done: Redis refused to run the script, or the step could not be encoded."""
    unread: bool = False
    """It is unknown whether the step was made: its answer could not be decoded, as ``failed``
    explains."""


def outcome_of(step: Step, answer: Any) -> StepOutcome:
    """Returns the outcome of a step from its script's answer. Never raises."""
    try:
        return _read_outcome(step, answer)
    except Exception as error:
        log.exception("answer_not_read", session=step.before.key)
        return StepOutcome(reply=None, failed=repr(error), unread=True)


def _read_outcome(step: Step, answer: Any) -> StepOutcome:
    if isinstance(answer, Exception):
        # Out of memory, read only, still loading: each step of the batch fails alone.
        return StepOutcome(reply=None, failed=str(answer) or type(answer).__name__)
    status, detail, _, counters, bumped, _ = answer
    if status == b"cold":
        return StepOutcome(reply=None, cold=tuple(detail.decode().split(",")))
    if status in {b"gone", b"full", b"outdated", b"crowded"}:
        return StepOutcome(
            reply=None,
            gone=status == b"gone",
            full=status == b"full",
            outdated=status == b"outdated",
            crowded=status == b"crowded",
        )
    change = None
    if bumped:
        gross, reserved, version = counters[2]
        change = AccountChange(int(version), int(gross), int(reserved))
    entry_id = detail.decode() if status == b"ok" else ""
    reply, held = reply_of(step, answer), status == b"held"
    return StepOutcome(reply=reply, change=change, entry_id=entry_id, held=held)
