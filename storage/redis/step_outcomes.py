"""What becomes of a step: the answer of its script, as the meter and its shell take it."""

from typing import Any

import msgspec
import structlog

from protocol.metering.effects import Reply
from protocol.metering.steps import Step
from storage.redis.encoding import reply_of

log = structlog.get_logger()


class AccountChange(msgspec.Struct, frozen=True):
    """The account's figures after a change: what a projection takes."""

    version: int
    gross_micros: int
    reserved_micros: int


class StepOutcome(msgspec.Struct, frozen=True):
    """What became of a step: an answer for the meter, or what is missing."""

    reply: Reply | None
    change: AccountChange | None = None
    """The account's figures, when the step changed its projection."""
    cold: tuple[str, ...] = ()
    """What must be loaded before the step is asked again."""
    gone: bool = False
    """Redis has lost the session, or the newest of its steps."""
    outdated: bool = False
    """What a start was decided from is otherwise now; see ``protocol.metering.steps.Basis``."""
    full: bool = False
    """So much waits for Postgres that no session is started."""
    crowded: bool = False
    """The user has as many live sessions of the kind as it allows: no session is started."""
    entry_id: str = ""
    """The outbox entry in which the step's records are; empty: there are none."""
    held: bool = False
    """Only what other sessions hold was in the way: they were told to give some back."""
    failed: str = ""
    """Redis refused to run the script, and says why: nothing was done. Or this step could not
    be written down for it."""
    unread: bool = False
    """It was made, or was not: its answer could not be read, for the reason in ``failed``."""


def outcome_of(step: Step, answer: Any) -> StepOutcome:
    """The outcome of a step, from the answer of its script. It never raises."""
    try:
        return _read_outcome(step, answer)
    except Exception as error:
        log.exception("answer_not_read", session=step.before.key)
        return StepOutcome(reply=None, failed=repr(error), unread=True)


def _read_outcome(step: Step, answer: Any) -> StepOutcome:
    if isinstance(answer, Exception):
        # Out of memory, read only, still loading: one batch, but each for itself.
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
