"""A holder of a counter's rest stalls; a session elsewhere needs it.

The holder is a process.
"""

from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.metering.states import Event, Phase
from protocol.metering.terms import MINUTE_MS
from server.counters.plans import apply_member, apply_organization
from storage.redis.spending import AccountName
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT, RATES, terms

CHAT = terms("second")
Sockets = tuple[Browser, Browser, list[int], list[Any]]
FREE = msgspec.structs.replace(CHAT, kind="free", free_ms=20_000)


@pytest.fixture
async def sockets(cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch) -> Sockets:
    """Sockets of a holder and another, with counted and withheld steps.

    The result has the holder's socket, the other socket, the count of the other's steps, and the
    holder's steps. The holder's process holds 65 s and stalls: its steps are withheld. The other
    process has a session whose free time is about to end, with all other credits spent; its steps
    are counted.
    """
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
    await second.ledger.spend(name, entry_id="e1", micros=rest, operation="x")
    await cluster.advance(500)
    withheld: list[Any] = []
    monkeypatch.setattr(node.registry.pipeline, "ask", lambda *one: withheld.append(one))
    asked, ask = [0], second.registry.pipeline.ask

    def counted(*arguments: Any) -> None:
        asked[0] += 1
        ask(*arguments)

    monkeypatch.setattr(second.registry.pipeline, "ask", counted)
    return holder, other, asked, withheld


async def test_credits_of_silent_holder_stop_no_session(cluster: Cluster, sockets: Sockets) -> None:
    _, other, asked, _ = sockets
    await cluster.advance(8_000)
    assert not other.all("limit_reached")
    assert other.local_sessions["s2"].meter.phase is Phase.ACTIVE
    assert asked[0] <= 8_000 // limits.RECALL_WAIT_MS + 4


async def test_session_runs_while_account_covers_both(cluster: Cluster, sockets: Sockets) -> None:
    """A session runs while the account covers the holder too.

    As far as is known the holder burns too: all credits pay for 65 s of both sessions.
    """
    _, other, _, _ = sockets
    await cluster.advance(60_000)
    (reached,) = other.all("limit_reached")
    assert reached["limit"] == "credits"
    both_ms = (reached["stopped_at"] - other.messages[0]["received_at"]) + (
        reached["elapsed_ms"] - FREE.free_ms
    )
    assert 60_000 < both_ms <= 65_000


async def test_rest_is_shared_once_holder_answers(
    cluster: Cluster, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, other, _, withheld = sockets
    await cluster.advance(7_000)
    monkeypatch.undo()
    for one in withheld:
        holder.node.registry.pipeline.ask(*one)
    await cluster.advance(500)
    await holder.request("s1", Event.STOP)
    await cluster.advance(5_000)
    assert not other.all("limit_reached")
    meter = other.local_sessions["s2"].meter
    assert meter.session.grant.held_micros > 0
    assert meter.kept_open is None
    answer = await other.request("s2", Event.STOP)
    assert answer["receipt"]["elapsed_ms"] > 25_000
    account = await cluster.account()
    assert account["held"] == 0
    assert account["balance"] >= 0


# --- Minutes of a month ---------------------------------------------------------------

RECORDING = RATES.kinds["recording"]
TENANT = "org:acme"
Withheld = list[tuple[Node, tuple[Any, ...]]]


async def allow(cluster: Cluster, limit: str, minutes: int) -> None:
    """Changes the month's limit of the organisation, or of its member ann."""
    is_org = limit == "org_minutes"
    hours = minutes / 60
    live = cluster.nodes[0].live
    if is_org:
        await cluster.records.put_organization(TENANT, "acme", monthly_hours_limit=hours)
        await apply_organization(live, cluster.records, TENANT)
    else:
        await cluster.records.put_member(TENANT, "ann", monthly_hours_limit=hours)
        await apply_member(live, cluster.records, TENANT, "ann")
    await cluster.settle()


async def month(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, limit: str, *, is_deaf: bool = False
) -> tuple[Browser, Browser, Withheld]:
    """A session used two of four minutes; another process holds two.

    The holder is in the first of its minutes. Its process stalls or, with ``is_deaf``, has missed
    the new limit.
    """
    first, second = await cluster.node(), await cluster.node()
    await allow(cluster, limit, 100)
    other, holder = first.browser("other"), second.browser("holder")
    user_id = "bob" if limit == "org_minutes" else "ann"
    await other.start("s2", RECORDING, org_id="acme")
    await cluster.advance(70_000)
    await holder.start("s1", RECORDING, user_id=user_id, org_id="acme")
    withheld: Withheld = []
    if is_deaf:
        with monkeypatch.context() as patched:
            patched.setattr(second.registry.tenants, "listeners", [])
            await cluster.advance(2_000)
            await allow(cluster, limit, 4)
        return holder, other, withheld
    monkeypatch.setattr(
        second.registry.pipeline, "ask", lambda *one: withheld.append((second, one))
    )
    await cluster.advance(2_000)
    await allow(cluster, limit, 4)
    return holder, other, withheld


@pytest.mark.parametrize("limit", ["org_minutes", "member_minutes"])
async def test_minutes_of_silent_holder_stop_no_session(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    _, other, _ = await month(cluster, monkeypatch, limit)
    meter = other.local_sessions["s2"].meter
    await cluster.advance(46_500)
    assert meter.session.grant.granted_ms == 2 * MINUTE_MS
    await cluster.advance(9_000)
    assert not other.all("limit_reached")
    assert meter.phase is Phase.ACTIVE


@pytest.mark.parametrize("limit", ["org_minutes", "member_minutes"])
async def test_session_runs_while_month_covers_both(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A session runs while the month covers the holder too.

    As far as is known the holder is in a minute of its own: one is left for the other.
    """
    _, other, _ = await month(cluster, monkeypatch, limit)
    await cluster.advance(120_000)
    (reached,) = other.all("limit_reached")
    assert (reached["limit"], reached["elapsed_ms"]) == (limit, 3 * MINUTE_MS)


@pytest.mark.parametrize("limit", ["org_minutes", "member_minutes"])
async def test_answering_holder_gives_back_minutes_not_begun(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    holder, other, withheld = await month(cluster, monkeypatch, limit)
    await cluster.advance(52_000)
    assert not other.all("limit_reached")
    monkeypatch.undo()
    for node, one in withheld:
        node.registry.pipeline.ask(*one)
    await cluster.advance(1_500)
    assert other.local_sessions["s2"].meter.session.grant.granted_ms == 3 * MINUTE_MS
    await cluster.advance(60_000)
    assert [one["elapsed_ms"] for one in holder.all("limit_reached")] == [MINUTE_MS]
    assert [one["elapsed_ms"] for one in other.all("limit_reached")] == [3 * MINUTE_MS]


@pytest.mark.parametrize("limit", ["org_minutes", "member_minutes"])
async def test_holder_is_recalled_for_minutes_not_begun(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A deaf holder is recalled for minutes that it has not begun.

    The holder has missed that the limit was lowered, because its connection was broken.
    """
    holder, other, _ = await month(cluster, monkeypatch, limit, is_deaf=True)
    await cluster.advance(120_000)
    assert [one["elapsed_ms"] for one in holder.all("limit_reached")] == [MINUTE_MS]
    assert [one["elapsed_ms"] for one in other.all("limit_reached")] == [3 * MINUTE_MS]
