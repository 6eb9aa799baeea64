"""A process that holds the rest of an account stands still, and another one's session needs it."""

from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.metering.states import Event, Phase
from storage.redis.spending import AccountName
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("second")
Sockets = tuple[Browser, Browser, list[int], list[Any]]
FREE = msgspec.structs.replace(CHAT, kind="free", free_ms=20_000)


@pytest.fixture
async def sockets(cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch) -> Sockets:
    """One of a process that holds 65 s, and stands still; and one of another process whose free
    time is about to end, with all else spent; how many steps that one asks for;
    and those that the first one would have."""
    second = await cluster.node()
    await cluster.grant(2 * CREDIT)
    holder = node.browser("holder")
    await holder.start("s1", CHAT)
    other = second.browser("other")
    await other.start("s2", FREE)
    await cluster.advance(14_000)
    account = await cluster.account()
    rest = account["balance"] - account["held"]
    name = AccountName("user:ann", "ann")
    await second.money.spend(name, entry_id="e1", micros=rest, operation="x")
    await cluster.advance(500)
    withheld: list[Any] = []
    monkeypatch.setattr(node.hub.claims, "ask", lambda *one: withheld.append(one))
    asked, ask = [0], second.hub.claims.ask

    def counted(*arguments: Any) -> None:
        asked[0] += 1
        ask(*arguments)

    monkeypatch.setattr(second.hub.claims, "ask", counted)
    return holder, other, asked, withheld


async def test_what_a_silent_process_holds_stops_no_session(
    cluster: Cluster, sockets: Sockets
) -> None:
    _, other, asked, _ = sockets
    await cluster.advance(8_000)
    assert not other.all("limit_reached")
    assert other.seats["s2"].meter.phase is Phase.ACTIVE
    assert asked[0] <= 8_000 // limits.RECALL_WAIT_MS + 4


async def test_a_session_runs_on_no_longer_than_the_account_covers_both(
    cluster: Cluster, sockets: Sockets
) -> None:
    """The holder burns too, as far as is known: all that there is pays for 65 s of both."""
    _, other, _, _ = sockets
    await cluster.advance(60_000)
    (reached,) = other.all("limit_reached")
    assert reached["limit"] == "credits"
    both_ms = (reached["stopped_at"] - other.messages[0]["received_at"]) + (
        reached["elapsed_ms"] - FREE.free_ms
    )
    assert 60_000 < both_ms <= 65_000


async def test_once_the_holder_answers_its_rest_is_shared(
    cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, other, _, withheld = sockets
    await cluster.advance(7_000)
    monkeypatch.undo()
    for one in withheld:
        holder.node.hub.claims.ask(*one)
    await cluster.advance(500)
    await holder.request("s1", Event.STOP)
    await cluster.advance(5_000)
    assert not other.all("limit_reached")
    meter = other.seats["s2"].meter
    assert meter.session.grant.held_micros > 0
    assert not meter.is_kept_open
    answer = await other.request("s2", Event.STOP)
    assert answer["receipt"]["elapsed_ms"] > 25_000
    account = await cluster.account()
    assert account["held"] == 0
    assert account["balance"] >= 0
