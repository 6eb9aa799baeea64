"""Ends that wait in an outbox again are put back."""

from typing import Any

import pytest

from protocol.metering.records import SessionEnded
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import ended_record
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.recovery.replayed_ends import ReplayedEnds
from storage import limits as storage_limits
from storage.redis.recovery import Restoring
from tests.protocol.examples import NOW, identity_of, standing_of
from tests.simulation.cluster import Node


def ended(session_id: str, **changed: Any) -> SessionEnded:
    """The record of a session's end."""
    identity = identity_of(session_id=session_id, **changed)
    return ended_record(identity, standing_of(Phase.ENDED, ended_at=NOW, reason="client"))


class Heap:
    """What was put back, but for ends of ``own`` sessions."""

    def __init__(self, node: Node) -> None:
        self.restoring = Restoring(node.live)
        self.found: list[str] = []
        self.failures = 0
        self.own: dict[str, object] = {}
        self.ends = ReplayedEnds(self.restoring, self.put_back, self.own.get)

    async def put_back(self, session: SessionState, _: tuple[bytes, ...]) -> bool:
        if self.failures:
            self.failures -= 1
            raise ServiceError("Postgres is away")
        self.found.append(session.identity.session_id)
        return False

    async def replay(self, *ends: SessionEnded) -> int:
        """Appends ends again; returns their partition."""
        partition = self.restoring.keys.partition(ends[0].tenant)
        entries = [(f"7-{number}", [end]) for number, end in enumerate(ends)]
        await self.restoring.replay(partition, entries)
        return partition


@pytest.fixture
def heap(node: Node) -> Heap:
    return Heap(node)


async def test_each_end_is_put_back_once(heap: Heap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_limits, "PAGE_ROWS_MAX", 2)
    partition = await heap.replay(*(ended(f"s{number}") for number in range(5)))
    for _ in range(2):
        await heap.ends.find([partition])
        assert await heap.ends.put_back() == set()
    assert heap.found == [f"s{number}" for number in range(5)]
    await heap.replay(ended("late"))
    await heap.ends.find([partition])
    await heap.ends.put_back()
    assert heap.found[5:] == ["late"]


async def test_what_fails_is_put_back_later(heap: Heap) -> None:
    partition = await heap.replay(ended("s1"), ended("s2"))
    await heap.ends.find([partition])
    heap.failures = 1
    assert await heap.ends.put_back() == {partition}
    assert await heap.ends.put_back() == set()
    assert heap.found == ["s1", "s2"]


async def test_own_and_reported_ends_are_left_to_others(heap: Heap) -> None:
    heap.own["user:ann/own"] = True
    partition = await heap.replay(ended("own"), ended("told", is_reported=True), ended("s1"))
    await heap.ends.find([partition])
    assert await heap.ends.put_back() == set()
    assert heap.found == ["s1"]


async def test_ends_have_a_bound(heap: Heap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "REPLAYED_ENDS_MAX", 1)
    partition = await heap.replay(ended("s1"), ended("s2"))
    await heap.ends.find([partition])
    await heap.ends.put_back()
    assert heap.found == ["s1"]
