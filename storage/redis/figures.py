"""A credit account as Redis has it."""

from collections.abc import Mapping

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
