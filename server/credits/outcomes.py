"""What asking for credits comes to: the answers of ``CreditLedger``.

``credits_micros`` is the account's balance at this instant, after the burn of all its
sessions so far; ``available_micros`` what of it nobody holds.
"""

from typing import Literal, NamedTuple

import msgspec

from protocol import limits
from protocol.metering.projection import AccountProjection
from protocol.metering.records import HoldState
from protocol.wire.errors import BadMessageError
from protocol.wire.money import format_credits
from storage.redis.figures import AccountFigures


class BalanceTooHighError(BadMessageError):
    """The account would have more than any may. Nothing was written."""

    def __init__(self) -> None:
        most = format_credits(limits.BALANCE_MICROS_MAX)
        super().__init__(f"amount: no account may have more than {most} credits")


class AccountBalance(NamedTuple):
    """How an account stands at an instant."""

    credits_micros: int
    available_micros: int


class Spent(msgspec.Struct, frozen=True):
    """The credits were taken, and the ledger has it."""

    entry_id: str
    amount_micros: int
    """What was taken: at a repetition, what was taken then."""
    operation: str | None
    """The operation that was charged: at a repetition, the one that was charged then."""
    credits_micros: int
    available_micros: int
    repeated: bool


class Short(msgspec.Struct, frozen=True):
    """There is not enough. Nothing was taken."""

    missing_micros: int
    credits_micros: int


class Limited(msgspec.Struct, frozen=True):
    """The operation was done as often as the tier's month allows. Nothing was taken."""

    limit: int
    used: int


class Held(msgspec.Struct, frozen=True):
    """The credits are held for an operation."""

    hold_id: str
    state: HoldState
    """``open``, unless it is a repetition: then what became of it since."""
    amount_micros: int
    expires_at: int
    credits_micros: int
    available_micros: int
    repeated: bool


class Posted(msgspec.Struct, frozen=True):
    """The operation was charged, and the rest of what was held is given back."""

    hold_id: str
    entry_id: str
    amount_micros: int
    """What was held."""
    posted_micros: int
    """What was charged of it: at a repetition, what was charged then."""
    credits_micros: int
    available_micros: int
    repeated: bool


class Voided(msgspec.Struct, frozen=True):
    """What was held is given back."""

    hold_id: str
    amount_micros: int
    credits_micros: int
    available_micros: int
    repeated: bool


class HoldGone(msgspec.Struct, frozen=True):
    """There is no such open hold. ``state`` is what became of it; None: there never was."""

    state: HoldState | None


class Exceeds(msgspec.Struct, frozen=True):
    """More is to be charged than is held. Nothing was charged, the hold is as it was."""

    amount_micros: int


class CanPerform(NamedTuple):
    """Whether an operation could be done now, and if not, why: ``insufficient_credits`` or
    ``operation_limit``."""

    can_perform: bool
    reason: Literal["insufficient_credits", "operation_limit"] | None
    cost_micros: int
    credits_micros: int


def credits_micros(figures: AccountFigures, now_ms: int) -> int:
    """An account's balance at an instant; below 0 only for a real debt."""
    projection = AccountProjection("", "")
    projection.replace(
        figures.version, figures.gross_micros, figures.reserved_micros, figures.lines
    )
    micros = projection.credits_micros(now_ms)
    return max(0, micros) if figures.gross_micros >= 0 else micros
