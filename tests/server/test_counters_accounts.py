"""A process keeps the accounts that it serves up to date.

It hears of each change of them.
"""

from typing import Any

import pytest

from server.counters.accounts import Account
from storage.redis.live import AccountChange, LiveError
from tests.server.ledgers import ANN, CREDIT
from tests.simulation.cluster import Cluster, Node


async def test_account_is_served_until_its_last_user_has_gone(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    accounts = node.registry.accounts
    before = len(accounts.channels)
    first, second = await accounts.open(*ANN), await accounts.open(*ANN)
    assert first is second is accounts.get(*ANN)
    assert list(accounts) == [first]
    assert first.projection.gross_micros == 3 * CREDIT
    assert len(accounts.channels) == before + 1
    await accounts.close(first)
    assert accounts.get(*ANN) is first
    await accounts.close(first)
    assert accounts.get(*ANN) is None
    assert len(accounts.channels) == before


async def test_change_of_another_process_is_heard_once(cluster: Cluster, node: Node) -> None:
    other, heard = await cluster.node(), list[dict[str, Any]]()
    account = await other.registry.accounts.open(*ANN)

    def listener(told: Account, message: dict[str, Any]) -> None:
        assert told is account
        heard.append(message)

    other.registry.accounts.listener = listener
    await cluster.grant(CREDIT)
    assert account.projection.gross_micros == CREDIT
    (message,) = heard
    assert message["credit"]["reason"] == "grant"
    await other.registry.accounts.close(account)


async def test_account_is_read_anew_when_a_change_was_missed(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT)
    accounts = node.registry.accounts
    account = await accounts.open(*ANN)
    version = account.projection.version
    accounts.changed(account, AccountChange(version + 2, 7, 0), None, None)
    assert accounts.busy
    await accounts.idle()
    assert (account.projection.version, account.projection.gross_micros) == (version, CREDIT)
    await accounts.close(account)


async def test_account_that_cannot_be_read_is_not_served(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = node.registry.accounts

    async def away(*_: object) -> None:
        raise LiveError("away")

    monkeypatch.setattr(accounts.live, "account", away)
    before = len(accounts.channels)
    with pytest.raises(LiveError):
        await accounts.open(*ANN)
    assert accounts.get(*ANN) is None
    assert len(accounts.channels) == before
