"""Membership: who lives, who is missing, and who leaves the list."""

from typing import Any

from protocol import limits
from server.recovery.membership import MEMBER_POLL_MS
from storage.redis.keys import NODES
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, settled
from tests.server.billed_session import CREDIT, found


async def nodes(server: TestServer) -> set[str]:
    """The processes in the list."""
    names: Any = await server.process.redis.zrange(NODES, 0, -1)
    return {name.decode() for name in names}


async def test_an_immediate_reconnect_after_a_process_death_costs_nothing(
    start_server: StartServer,
) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    # The process dies just after a heartbeat: its silence is too short to prove anything.
    membership = one.process.membership
    assert membership._beating is not None
    membership._beating.cancel()
    await one.process.registry.accounts.stop()
    await membership.beat()
    proven_at = membership.nodes[one.process.node]

    back = await two.login()
    joined = await back.ask("start", kind="chat", session_id="chat-1")
    assert joined["state"] == "active"
    standing = (await found(two, "chat-1")).session.standing
    ((from_at, to_at, billed),) = standing.gaps
    assert (from_at, billed) == (proven_at, False)
    assert to_at == standing.run_at >= proven_at + MEMBER_POLL_MS
    assert (await found(two, "chat-1")).nodes == {two.process.node}


async def test_who_could_not_beat_himself_buries_nobody(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    membership = two.process.membership
    assert membership._beating is not None
    membership._beating.cancel()
    beating = one.process.membership._beating
    assert beating is not None
    beating.cancel()
    await membership.beat()
    proven_at = membership.nodes[one.process.node]
    # Redis was away for both processes, and the other one reaches it first again.
    for server in (one, two):
        advance(server, 2 * limits.NODE_SILENT_MS)
    await membership.beat()
    assert membership._silent(limits.NODE_SILENT_MS) == {}
    advance(two, limits.NODE_SILENT_MS // 2)
    await membership.beat()
    assert membership._silent(limits.NODE_SILENT_MS) == {}
    for _ in range(2):
        advance(two, limits.NODE_SILENT_MS // 3)
        await membership.beat()
    assert membership._silent(limits.NODE_SILENT_MS) == {one.process.node: proven_at}


async def test_proof_that_arrives_after_a_look_counts(start_server: StartServer) -> None:
    """Silence is judged by the instant at which Redis was asked."""
    one, two = await start_server(), await start_server()
    membership, beating = two.process.membership, one.process.membership._beating
    assert membership._beating is not None
    assert beating is not None
    for task in (membership._beating, beating):
        task.cancel()
    await membership.beat()
    proven_at = membership.nodes[one.process.node]
    for _ in range(3):
        advance(two, limits.NODE_SILENT_MS // 4)
        await membership.beat()
    advance(two, limits.NODE_SILENT_MS // 2)
    assert membership._silent(limits.NODE_SILENT_MS) == {}
    await membership.beat()
    assert membership._silent(limits.NODE_SILENT_MS) == {one.process.node: proven_at}


async def test_a_socket_at_a_second_process_prevents_a_gap(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    membership = one.process.membership
    assert membership._beating is not None
    membership._beating.cancel()  # it beats when it is asked, and not a moment before
    before = membership.nodes[one.process.node]

    other = await two.login()
    assert (await other.ask("start", kind="chat", session_id="chat-1"))["state"] == "active"
    session = await found(two, "chat-1")
    assert session.session.standing.gaps == ()
    assert session.nodes == {one.process.node, two.process.node}
    assert membership.nodes[one.process.node] > before


async def test_a_process_that_leaves_nothing_leaves_the_list(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await client.ask("stop", session_id="chat-1")
    await settled(one)
    await one.process.membership.stop()
    assert await nodes(two) == {two.process.node}
