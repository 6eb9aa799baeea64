"""The socket through a real server: what a well-behaved client gets.

The promises are those of PROTOCOL section 1.
"""

import asyncio
import json
import re
import socket

import pytest
from websockets.asyncio.client import connect

from protocol.metering.states import Phase
from server.runtime.rate_card_file import load_rate_card
from tests.fixtures.server import BOTH_CARRIERS, SocketClient, TestServer
from tests.server.api import settled
from tests.server.billed_session import CREDIT, connection_of, eventually, found, reaches
from tests.simulation.cluster import Cluster, Node

# --- Authentication ----------------------------------------------------------------


@BOTH_CARRIERS
async def test_a_chat_starts_ticks_and_stops_with_a_receipt(server: TestServer) -> None:
    await server.grant(5_000_000)
    client = await server.login()

    started = await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert started["type"] == "session"
    assert started["state"] == "active"
    assert started["credits"] == "5"
    assert 59_000 < started["free_remaining_ms"] <= 60_000
    tick = await client.until("tick")
    assert tick["elapsed_ms"] > 0
    assert tick["paid"] is False

    stopped = await client.ask("stop", session_id="chat-1")
    assert stopped["type"] == "stopped"
    assert stopped["reason"] == "client"
    assert stopped["receipt"]["credits"] == "0"
    assert stopped["receipt"]["minutes"] == 1


async def test_welcome_says_who_and_where(server: TestServer) -> None:
    client = await server.connect()
    token = server.token("ann", org="acme", account="team", ttl_seconds=600)
    welcome = await client.ask("auth", token=token)
    assert welcome["type"] == "welcome"
    assert (welcome["user_id"], welcome["org_id"], welcome["account_id"]) == ("ann", "acme", "team")
    assert welcome["credits"] == "0"
    assert welcome["node"] == server.process.node
    assert welcome["ping_ms"] == 10_000
    assert abs(welcome["expires_at"] - welcome["server_time_at"] - 600_000) <= 5_000


async def test_the_handshake_may_carry_the_token(server: TestServer) -> None:
    bearer = {"Authorization": f"Bearer {server.token()}"}
    client = await server.connect(additional_headers=bearer)
    welcome = await client.receive()
    assert welcome["type"] == "welcome"
    assert "id" not in welcome
    assert (await client.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["taximeter.v1"], "taximeter.v1"), (["other", "taximeter.v1"], "taximeter.v1"), ([], None)],
)
async def test_the_subprotocol_is_chosen_where_it_is_offered(
    server: TestServer, offered: list[str], chosen: str | None
) -> None:
    url = f"ws://127.0.0.1:{server.port}/v1/ws"
    async with connect(url, subprotocols=offered or None, proxy=None) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == chosen
        client = SocketClient(socket)
        assert (await client.ask("auth", token=server.token()))["type"] == "welcome"


@BOTH_CARRIERS
async def test_a_refresh_moves_the_end_of_the_socket(server: TestServer) -> None:
    client = await server.login(ttl_seconds=60)
    connection = connection_of(server)
    before = connection._deadline
    welcome = await client.ask("refresh", token=server.token(ttl_seconds=7200))
    assert welcome["type"] == "welcome"
    assert welcome["expires_at"] - welcome["server_time_at"] > 7_000_000
    after = connection._deadline
    assert before is not None
    assert after is not None
    assert after.at - before.at > 7_000_000
    assert before._callback is None


@BOTH_CARRIERS
async def test_a_token_that_outlives_us_all(server: TestServer) -> None:
    client = await server.login(ttl_seconds=8_000_000_000_000 - 1_800_000_000)
    assert (await client.ask("ping"))["type"] == "pong"


# --- Sessions ------------------------------------------------------------------------


@BOTH_CARRIERS
async def test_a_second_socket_joins_the_session(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    first, second = await server.login(), await server.login()
    started = await first.ask("start", kind="chat", session_id="chat-1", tick_ms=60_000)
    # The kind of a join does not matter: the session has its own.
    joined = await second.ask("start", kind="recording", session_id="chat-1", tick_ms=250)
    assert (joined["type"], joined["kind"], joined["state"]) == ("session", "chat", "active")
    assert joined["started_at"] == started["started_at"]
    assert joined["elapsed_ms"] >= started["elapsed_ms"]
    await second.until("tick")

    answer = await first.ask("stop", session_id="chat-1")
    told = await second.until("stopped")
    assert "id" not in told
    answer.pop("id")
    assert answer == told
    for client in (first, second):
        assert (await client.ask("stop", session_id="chat-1"))["code"] == "unknown_session"


@BOTH_CARRIERS
async def test_a_start_again_on_the_same_socket_answers_the_snapshot(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    started = await client.ask("start", kind="chat", session_id="chat-1")
    again = await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert (again["type"], again["started_at"]) == ("session", started["started_at"])
    (local,) = server.process.registry
    assert local.meter.sockets == 1
    assert [group.every_ms for group in local.service.groups] == [250]


async def test_every_socket_has_its_own_pace(cluster: Cluster, node: Node) -> None:
    await cluster.grant(20 * CREDIT)
    terms = load_rate_card().terms("chat")
    fast, slow = node.browser("fast"), node.browser("slow")
    await fast.start("chat-1", terms)
    await slow.start("chat-1", terms)
    local = fast.local_sessions["chat-1"]
    local.service.add(fast, 250, passive=False)
    local.service.add(slow, 2_000, passive=False)
    fast.messages.clear()
    slow.messages.clear()
    await cluster.advance(10_000)
    assert len(fast.all("tick")) == 40
    assert len(slow.all("tick")) == 5
    # The pace changes, and nothing is sent at the old one.
    local.service.add(fast, 5_000, passive=False)
    fast.messages.clear()
    await cluster.advance(10_000)
    assert len(fast.all("tick")) == 2
    gaps = [
        later["received_at"] - earlier["received_at"]
        for earlier, later in zip(fast.all("tick"), fast.all("tick")[1:], strict=False)
    ]
    assert gaps == [5_000]


@BOTH_CARRIERS
async def test_pause_and_resume(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    first, second = await server.login(), await server.login()
    await first.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    await second.ask("start", kind="chat", session_id="chat-1", tick_ms=250)

    paused = await first.ask("pause", session_id="chat-1")
    assert (paused["type"], paused["state"]) == ("session", "paused")
    told = await second.until("session")
    assert (told["state"], told["elapsed_ms"]) == ("paused", paused["elapsed_ms"])
    again = await second.ask("pause", session_id="chat-1")
    assert (again["state"], again["elapsed_ms"]) == ("paused", paused["elapsed_ms"])
    # Nothing is due while it is paused: no tick, and the account holds nothing for it.
    (local,) = server.process.registry
    assert not local.meter.counting
    assert local.meter.session.grant.held_micros == 0

    # Joining does not resume it.
    third = await server.login()
    joined = await third.ask("start", kind="chat", session_id="chat-1")
    assert (joined["state"], joined["elapsed_ms"]) == ("paused", paused["elapsed_ms"])

    resumed = await second.ask("resume", session_id="chat-1")
    assert resumed["state"] == "active"
    assert (await found(server, "chat-1")).session.standing.elapsed_ms == paused["elapsed_ms"]
    assert (await first.until("session"))["state"] == "active"
    assert (await first.until("tick"))["elapsed_ms"] > paused["elapsed_ms"]


@BOTH_CARRIERS
async def test_a_socket_leaves_and_the_session_goes_on_for_the_other(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    first, second = await server.login(), await server.login()
    for client in (first, second):
        await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    await first.send("leave", session_id="chat-1")
    # Requests are answered in order, so the leave is done when the ping is answered.
    assert (await first.ask("ping"))["type"] == "pong"
    assert (await first.ask("pause", session_id="chat-1"))["code"] == "unknown_session"
    await second.until("tick")
    assert (await found(server, "chat-1")).session.standing.phase is Phase.ACTIVE

    await second.send("leave", session_id="chat-1")
    await reaches(server, "chat-1", Phase.SUSPENDED)
    left = await found(server, "chat-1")
    assert left.nodes == frozenset()
    assert left.session.grant.held_micros == 0

    back = await first.ask("start", kind="chat", session_id="chat-1")
    assert back["state"] == "active"
    gone_on = (await found(server, "chat-1")).session.standing
    assert gone_on.elapsed_ms == left.session.standing.elapsed_ms
    stopped = await first.ask("stop", session_id="chat-1")
    (gap,) = stopped["receipt"]["gaps"]
    assert gap["billed"] is False


@BOTH_CARRIERS
async def test_a_closed_socket_suspends_its_sessions(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    for number in range(3):
        await client.ask("start", kind="chat", session_id=f"chat-{number}")
    await client.close()
    for number in range(3):
        await reaches(server, f"chat-{number}", Phase.SUSPENDED)
    assert server.process.sockets.connections == set()


@BOTH_CARRIERS
async def test_a_paused_session_stays_paused_over_a_reconnect(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    paused = await client.ask("pause", session_id="chat-1")
    await client.close()

    async def in_grace() -> bool:
        return (await found(server, "chat-1")).session.standing.grace_until is not None

    await eventually(in_grace)
    back = await server.login()
    joined = await back.ask("start", kind="chat", session_id="chat-1")
    assert (joined["state"], joined["elapsed_ms"]) == ("paused", paused["elapsed_ms"])
    assert (await found(server, "chat-1")).session.standing.grace_until is None


@BOTH_CARRIERS
async def test_two_sessions_on_one_socket(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    for name in ("chat-1", "chat-2"):
        await client.ask("start", kind="chat", session_id=name, tick_ms=250)
    for name in ("chat-2", "chat-1"):
        await client.until("tick", lambda tick, name=name: tick["session_id"] == name)  # type: ignore[misc]
    stopped = await client.ask("stop", session_id="chat-1")
    assert stopped["receipt"]["session_id"] == "chat-1"
    assert (await client.until("tick"))["session_id"] == "chat-2"
    assert (await client.ask("pause", session_id="chat-2"))["state"] == "paused"


@BOTH_CARRIERS
async def test_two_sockets_start_the_same_session_at_once(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    clients = [await server.login() for _ in range(4)]
    answers = await asyncio.gather(
        *(client.ask("start", kind="chat", session_id="chat-1") for client in clients)
    )
    assert [answer["type"] for answer in answers] == ["session"] * 4
    assert len({answer["started_at"] for answer in answers}) == 1
    await settled(server)
    (local,) = server.process.registry
    assert local.meter.sockets == 4


@BOTH_CARRIERS
async def test_missed_notices_come_again_after_last_seq(server: TestServer) -> None:
    await server.grant(2 * CREDIT)
    first = await server.login()
    await first.ask("start", kind="chat", session_id="chat-1")
    warning = await first.until("limit_warning")
    assert (warning["limit"], warning["threshold_ms"]) == ("credits", 300_000)
    await settled(server)

    second = await server.login()
    joined = await second.ask("start", kind="chat", session_id="chat-1", last_seq=0)
    assert joined["missed"] == [warning]
    assert joined["seq"] == warning["seq"]
    again = await second.ask("start", kind="chat", session_id="chat-1", last_seq=warning["seq"])
    assert again["missed"] == []
    assert (await second.ask("start", kind="chat", session_id="chat-1"))["missed"] == []


@BOTH_CARRIERS
async def test_metadata_and_counterpart_are_kept_with_the_session(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    kept = {"topic": "taxes", "tags": ["a", "b"]}
    await client.ask(
        "start", kind="chat", session_id="chat-1", counterpart_id="advisor-7", metadata=kept
    )
    await client.ask("stop", session_id="chat-1")
    await server.flush()
    row = await server.process.records.session("user:ann", "chat-1")
    assert row is not None
    assert (row.counterpart_id, row.metadata, row.state) == ("advisor-7", kept, "ended")


# --- Watching ------------------------------------------------------------------------


async def test_welcome_names_no_host(server: TestServer) -> None:
    client = await server.connect()
    welcome = await client.ask("auth", token=server.token())
    assert re.fullmatch(r"node-[0-9a-f]{12}", welcome["node"])
    assert socket.gethostname() not in json.dumps(welcome)


@BOTH_CARRIERS
async def test_a_socket_that_is_gone_leaves_nothing_behind(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client, observer = await server.login(), await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await observer.ask("watch", session_id="chat-1")
    await client.ask("stop", session_id="chat-1")
    await client.close()
    await observer.close()
    process = server.process

    async def forgotten() -> bool:
        account = process.registry.accounts.get("user:ann", "ann")
        return not process.sockets.connections and account is None

    await eventually(forgotten)
    assert list(process.registry) == []
    assert not process.sockets._by_user
    assert [name async for name in process.live.sessions_of_node(process.node)] == []
