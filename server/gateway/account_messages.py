"""Messages about a socket's account: the welcome, and changes of credits."""

from typing import Any

from protocol.wire import messages
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.principals import Principal
from server.counters.accounts import Account


def welcome(
    principal: Principal, account: Account, node: str, now_ms: int, request_id: int | None
) -> messages.Welcome:
    """The answer to a token, with the balance at ``now_ms``."""
    assert principal.user_id is not None
    assert principal.account_id is not None
    return messages.Welcome(
        id=request_id,
        user_id=principal.user_id,
        org_id=principal.org_id,
        account_id=principal.account_id,
        credits=format_credits(account.projection.credits_micros(now_ms)),
        node=node,
        server_time_at=now_ms,
        ping_ms=server_limits.PING_INTERVAL_MS,
        expires_at=principal.expires_at,
    )


def credit(account: Account, change: dict[str, Any], now_ms: int) -> messages.Credit:
    """A change of the credits other than the time of sessions.

    ``change`` is as the account's channel brings it.
    """
    return messages.Credit(
        account_id=account.projection.account_id,
        credits=format_credits(account.projection.credits_micros(now_ms)),
        delta=format_credits(int(change["delta"])),
        reason=change["reason"],
        operation=change.get("operation"),
        entry_id=change["entry_id"],
    )
