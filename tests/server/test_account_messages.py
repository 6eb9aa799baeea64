"""Messages about an account: the welcome, and changes of the credits."""

from server import limits as server_limits
from server.access.principals import Principal
from server.counters.accounts import Account
from server.gateway.account_messages import credit, welcome


def account() -> Account:
    made = Account("org:acme", "wallet")
    made.projection.replace(1, 12_500_000, 0, {})
    return made


def test_welcome_has_the_token_and_the_balance() -> None:
    principal = Principal("user", "ann", "acme", "wallet", "org:acme", expires_at=9)
    shown = welcome(principal, account(), "node-1", 5, 7)
    assert (shown.id, shown.user_id, shown.org_id, shown.account_id) == (7, "ann", "acme", "wallet")
    assert (shown.credits, shown.node, shown.server_time_at) == ("12.5", "node-1", 5)
    assert (shown.expires_at, shown.ping_ms) == (9, server_limits.PING_INTERVAL_MS)


def test_change_of_credits_has_the_balance_after_it() -> None:
    change = {"delta": "-250000", "reason": "spend", "entry_id": "e1"}
    shown = credit(account(), change, 5)
    assert (shown.account_id, shown.credits, shown.delta) == ("wallet", "12.5", "-0.25")
    assert (shown.reason, shown.operation, shown.entry_id) == ("spend", None, "e1")
    assert credit(account(), {**change, "operation": "print"}, 5).operation == "print"
