"""The interface of call providers, by the least adapter that has it."""

import hashlib
from collections.abc import Mapping

import msgspec
import pytest

from server.calls.facts import (
    Adapter,
    CallInbox,
    CallRun,
    CallTruth,
    EventRefusal,
    Fact,
    FactKind,
    ProviderError,
    RefusedEventError,
)


class BoothAdapter:
    """A call box: each event is one fact, signed by a penny."""

    name = "booth"
    has_duration = False
    maps_calls = True

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        if headers.get("x-coin") != "penny":
            raise RefusedEventError(EventRefusal.FORGED, "no penny")

    def event_key(self, body: bytes) -> str:
        return hashlib.sha256(body).hexdigest()

    def facts(self, body: bytes) -> list[Fact]:
        return [msgspec.json.decode(body, type=Fact)]

    async def sweep(self, run: CallRun) -> CallTruth:
        raise ProviderError("a call box remembers nothing", retryable=False)

    async def end(self, run: CallRun, participant: str | None) -> None:
        raise ProviderError("engaged")


class Basket:
    """Keeps events by their bodies."""

    def __init__(self) -> None:
        self.bodies: set[bytes] = set()

    async def receive(self, provider: str, headers: Mapping[str, str], body: bytes) -> bool:
        is_new = body not in self.bodies
        self.bodies.add(body)
        return is_new


async def test_an_adapter_needs_nothing_but_the_interface() -> None:
    adapter: Adapter = BoothAdapter()
    fact = Fact(
        provider="booth", call="1", call_session="1a", participant="ann", device=None,
        kind=FactKind.JOINED, at_ms=5, key="k",
    )  # fmt: skip
    body = msgspec.json.encode(fact)
    adapter.verify({"x-coin": "penny"}, body, 0)
    assert adapter.facts(body) == [fact]
    assert adapter.event_key(body) == adapter.event_key(bytes(body))
    inbox: CallInbox = Basket()
    assert [await inbox.receive("booth", {}, body) for _ in range(2)] == [True, False]
    assert (adapter.name, adapter.has_duration) == ("booth", False)
    with pytest.raises(RefusedEventError) as refused:
        adapter.verify({}, body, 0)
    assert refused.value.code == "event_forged"
    run = CallRun(call="1", call_session="1a")
    with pytest.raises(ProviderError) as failed:
        await adapter.sweep(run)
    assert not failed.value.retryable
    with pytest.raises(ProviderError) as failed:
        await adapter.end(run, "ann")
    assert failed.value.retryable
