"""The people of a virtual world, and its prices.

Prices are of sessions and of operations.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from protocol.metering.terms import Terms
from protocol.rate_card import RateCard, parse_rate_card
from server.access.principals import Principal

CREDIT = 1_000_000


def _kind(price: str = "1", **changes: Any) -> dict[str, Any]:
    """A kind of the rate card.

    By default, this is a chat without free time.
    """
    given: dict[str, Any] = {
        "credits_per_minute": price,
        "increment_seconds": [1, 1],
        "counts_minutes": False,
        "warn_at_seconds": [600, 300, 60],
        "stop_grace_seconds": 15,
        "reconnect_grace_seconds": 30,
        "gap": "skip",
        "max_session_seconds": 0,
        "tick_seconds": 60,
    }
    return {**given, **changes}


def terms(kind: str, **changes: Any) -> Terms:
    """The terms of a named kind; omitted terms have their defaults."""
    return msgspec.structs.replace(RATES.kinds["second"], kind=kind, **changes)


RATES: RateCard = parse_rate_card(
    {
        "kinds": {
            "second": _kind(),
            "chat": _kind("0.777777", free_seconds=60, free_scope="session"),
            "six": _kind(increment_seconds=[30, 6]),
            "minute": _kind(increment_seconds=[60, 60]),
            "pair": _kind(free_seconds=45, free_scope="pair"),
            "day": _kind(increment_seconds=[6, 6], free_seconds=90, free_scope="day"),
            "recording": _kind("0", increment_seconds=[60, 60], counts_minutes=True, gap="bill"),
            "lesson": _kind(increment_seconds=[7, 7], counts_minutes=True),
            "capped": _kind(max_session_seconds=100, gap="bill"),
            "dear": _kind("60"),
            "few": _kind(max_live_sessions=2),
        },
        "operations": {"sketch": "0.25", "film": "3"},
    }
)

ALLOTMENTS = {"bronze": CREDIT // 3, "silver": CREDIT, "gold": 5 * CREDIT}
"""Monthly allotments of tiers in micro-credits, in ascending order."""

KINDS: dict[str, Terms] = dict(RATES.kinds)


@dataclass(frozen=True)
class Person:
    """A user, with the account that pays."""

    user_id: str
    org_id: str | None
    account_id: str
    zone: str = "UTC"
    """The time zone by which the months begin."""

    @property
    def tenant(self) -> str:
        """The tenant that the user belongs to."""
        return f"org:{self.org_id}" if self.org_id else f"user:{self.user_id}"

    @property
    def account(self) -> tuple[str, str]:
        """The account's name."""
        return self.tenant, self.account_id

    @property
    def principal(self) -> Principal:
        """What the user's token says."""
        return Principal(
            "user",
            self.user_id,
            self.org_id,
            self.account_id,
            self.tenant,
            counterparts=frozenset({"advisor"}),
        )
