"""A credit account, and a member's month, as Redis has them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from protocol.metering.projection import BurnLine
from storage.redis.encoding import burn_line_from


class AccountFigures(msgspec.Struct, frozen=True):
    """An account as Redis has it."""

    version: int
    balance_micros: int
    """After the settled time of its sessions, and after spends."""
    gross_micros: int
    """The balance plus the charges of live sessions: ``protocol.metering.projection``."""
    held_micros: int
    """The part of the balance that sessions and operations hold."""
    reserved_micros: int
    """The part of the held credits that is for operations."""
    burn_micros: int
    lines: dict[str, BurnLine]

    @property
    def available_micros(self) -> int:
        """Micro-credits that can be spent at once, without a recall."""
        return self.balance_micros - self.held_micros


class MonthFigures(msgspec.Struct, frozen=True):
    """What is used of a month, and its limits.

    Overage may exceed the organisation's.
    """

    month: str
    """By its first day."""
    member_minutes: int
    member_limit_minutes: int | None
    org_minutes: int
    org_limit_minutes: int | None
    as_of_us: int
    """The time of these figures by the clock of Redis, in microseconds since the epoch."""


def month_figures_of(message: Mapping[str, Any]) -> MonthFigures:
    """Returns the figures of a month.

    ``message`` is an answer of ``usage.lua``, or a message on a member's channel.
    """
    member, org = message["member"], message["org"]
    return MonthFigures(
        month=message["month"],
        member_minutes=int(member[1]),
        member_limit_minutes=int(member[0]) if member[0] else None,
        org_minutes=int(org[1]),
        org_limit_minutes=int(org[0]) if org[0] else None,
        as_of_us=int(message["as_of"]),
    )


def figures_of(fields: Mapping[bytes, bytes]) -> AccountFigures | None:
    """Returns the account of its hash's fields; None: the account is cold."""
    if not fields:
        return None
    lines = {
        name[2:].decode(): burn_line_from(line)
        for name, line in fields.items()
        if name.startswith(b"s:")
    }
    balance = int(fields[b"balance"])
    return AccountFigures(
        version=int(fields.get(b"version", 0)),
        balance_micros=balance,
        gross_micros=balance + int(fields.get(b"charged_live", 0)),
        held_micros=int(fields.get(b"held", 0)),
        reserved_micros=int(fields.get(b"reserved", 0)),
        burn_micros=int(fields.get(b"burn", 0)),
        lines=lines,
    )
