"""Outcomes: the results of requests to ``CreditLedger``.

``credits_micros`` is the account's balance at this instant, after the burn of all its sessions so
far. ``available_micros`` is the part of it that is not held.
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
    """The account would exceed the highest balance. Nothing was written."""

    def __init__(self) -> None:
        most = format_credits(limits.BALANCE_MICROS_MAX)
        super().__init__(f"amount: no account may have more than {most} credits")


class AccountBalance(NamedTuple):
    """An account's balance at an instant."""

    credits_micros: int
    available_micros: int


class Spent(msgspec.Struct, frozen=True):
    """The credits were taken, and the ledger has the entry."""

    entry_id: str
    amount_micros: int
    """The amount that was taken: for a repetition, by the first request."""
    operation: str | None
    """The operation that was charged: for a repetition, by the first request."""
    credits_micros: int
    available_micros: int
    repeated: bool


class Short(msgspec.Struct, frozen=True):
    """The account lacks credits. Nothing was taken."""

    missing_micros: int
    credits_micros: int


class Limited(msgspec.Struct, frozen=True):
    """The tier's month allows no further operation. Nothing was taken."""

    limit: int
    used: int


class Held(msgspec.Struct, frozen=True):
    """The credits are held for an operation."""

    hold_id: str
    state: HoldState
    """``open``; for a repetition, the state that the hold has now."""
    amount_micros: int
    expires_at: int
    credits_micros: int
    available_micros: int
    repeated: bool


class Posted(msgspec.Struct, frozen=True):
    """The operation was charged, and the hold's rest is given back."""

    hold_id: str
    entry_id: str
    amount_micros: int
    """The amount that was held."""
    posted_micros: int
    """The part that was charged: for a repetition, by the first request."""
    credits_micros: int
    available_micros: int
    repeated: bool


class Voided(msgspec.Struct, frozen=True):
    """The held credits are given back."""

    hold_id: str
    amount_micros: int
    credits_micros: int
    available_micros: int
    repeated: bool


class HoldGone(msgspec.Struct, frozen=True):
    """There is no such open hold.

    ``state`` is the one in which the hold has ended; None: there never was such a hold.
    """

    state: HoldState | None


class Exceeds(msgspec.Struct, frozen=True):
    """The charge exceeds the hold.

    Nothing was charged, and the hold is unchanged.
    """

    amount_micros: int


class CanPerform(NamedTuple):
    """Whether an operation could be done now, and if not, why not.

    The reason is ``insufficient_credits`` or ``operation_limit``.
    """

    can_perform: bool
    reason: Literal["insufficient_credits", "operation_limit"] | None
    cost_micros: int
    credits_micros: int


def credits_micros(figures: AccountFigures, now_ms: int) -> int:
    """An account's balance at an instant; negative only for a real debt."""
    projection = AccountProjection("", "")
    projection.replace(
        figures.version, figures.gross_micros, figures.reserved_micros, figures.lines
    )
    micros = projection.credits_micros(now_ms)
    return max(0, micros) if figures.gross_micros >= 0 else micros
