"""Minutes missing in the record are recreated from their session's state."""

from typing import Any

import pytest

from protocol.metering.session import SessionState
from server.recovery.missing_minutes import MissingMinutes
from storage.postgres.records import UnavailableError
from storage.postgres.usage import Usage
from storage.rows.sessions import SessionMinute
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")


async def running(cluster: Cluster, node: Node) -> SessionState:
    """A session of two whole minutes, of which nothing is written down."""
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", CHAT)
    await cluster.advance(150_000)
    (local,) = node.registry
    assert local.meter.session.standing.minutes_kept == 2
    return local.meter.session


async def recorded(cluster: Cluster) -> tuple[SessionMinute, ...]:
    return await Usage.over(cluster.records).session("user:ann", "s1")


async def test_minutes_are_made_again_once(cluster: Cluster, node: Node) -> None:
    session = await running(cluster, node)
    missing = MissingMinutes(cluster.records, node.registry.tenants)
    assert await missing.complete([session])
    made = await recorded(cluster)
    assert [(one.minute, one.seconds, one.charged_micros) for one in made] == [
        (0, 60, CREDIT), (1, 60, CREDIT),
    ]  # fmt: skip
    # Begun anew, and with the records that come after all, nothing changes.
    assert await missing.complete([session])
    await cluster.flush()
    assert await recorded(cluster) == made


async def test_minutes_wait_while_postgres_is_away(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await running(cluster, node)
    asked: list[Any] = []

    async def away(*completed: Any) -> None:
        asked.append(completed)
        raise UnavailableError("away")

    monkeypatch.setattr(cluster.records, "minutes_missing", away)
    missing = MissingMinutes(cluster.records, node.registry.tenants)
    assert not await missing.complete([session])
    assert asked == [([("user:ann", "s1", 2)],)]


async def test_session_without_a_whole_minute_is_not_asked_for(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(*_: Any) -> None:
        raise AssertionError("nothing can be missing")

    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", CHAT)
    (local,) = node.registry
    monkeypatch.setattr(cluster.records, "minutes_missing", asked)
    assert await MissingMinutes(cluster.records, node.registry.tenants).complete(
        [local.meter.session]
    )
