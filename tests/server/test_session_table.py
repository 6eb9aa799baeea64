"""A process's local sessions are set up once, listed, and cleared.

They are cleared when they are not needed.
"""

from typing import Any

import pytest
from structlog.testing import capture_logs

from protocol import limits
from protocol.wire.errors import ErrorCode, PeerError
from tests.protocol.examples import session_of
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")


async def test_local_session_is_made_once_and_cleared_with_what_it_needs(
    cluster: Cluster, node: Node
) -> None:
    table, before = node.registry, len(node.registry.accounts.channels)
    session = session_of(tenant="org:acme", org_id="acme")
    local = await table.local_session_of(session)
    assert await table.local_session_of(session) is local
    assert list(table) == table.local_sessions_of("org:acme") == [local]
    assert list(local.account.local_sessions.values()) == [local]
    table.release(local)
    await table.idle()
    assert list(table) == table.local_sessions_of("org:acme") == []
    assert list(table.accounts) == []
    assert len(table.accounts.channels) == before


async def test_session_is_kept_while_a_socket_or_its_grace_needs_it(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(5 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    (local,) = node.registry
    node.registry.release(local)
    assert list(node.registry) == [local]
    browser.cut()
    await browser.close()
    node.registry.release(local)
    assert list(node.registry) == [local], "its grace is looked after here"
    await cluster.advance(CHAT.reconnect_grace_ms)
    assert list(node.registry) == []


async def test_live_sessions_of_an_account_are_bounded(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(5 * CREDIT)
    await node.browser().start("s1", CHAT)
    (local,) = node.registry
    monkeypatch.setattr(limits, "LIVE_SESSIONS_PER_ACCOUNT_MAX", 2)
    node.registry.check_room(local)
    monkeypatch.setattr(limits, "LIVE_SESSIONS_PER_ACCOUNT_MAX", 1)
    with pytest.raises(PeerError) as refused:
        node.registry.check_room(local)
    assert refused.value.code is ErrorCode.RATE_LIMITED


async def test_zone_of_an_organisation_moves_its_sessions(cluster: Cluster, node: Node) -> None:
    await node.browser().start("s1", terms("lesson", price_micros=0), org_id="acme")
    (local,) = node.registry
    assert local.calendar.zone.key == "UTC"
    await cluster.records.put_organization("org:acme", "acme", timezone="Asia/Tokyo")
    await node.live.change_limit("org:acme", None, None, overage=False)
    await cluster.settle()
    assert local.calendar.zone.key == "Asia/Tokyo"


async def test_failure_of_work_beside_the_caller_is_logged(node: Node) -> None:
    async def broken() -> Any:
        raise RuntimeError("a bug of ours")

    with capture_logs() as logs:
        node.registry.run(broken())
        assert node.registry.busy
        await node.registry.idle()
    assert [entry["event"] for entry in logs] == ["registry_task_failed"]
