"""Sockets of one account or session on several processes."""

import asyncio
from collections.abc import Sequence
from itertools import count

import pytest

from protocol.metering.states import Event, Phase
from protocol.metering.steps import Step
from server.runtime.rate_card_file import load_rate_card
from storage.redis.live import StepOutcome
from tests.fixtures.server import StartServer
from tests.server.api import settled
from tests.server.billed_session import (
    CREDIT,
    eventually,
    found,
    reaches,
)
from tests.simulation.cluster import Cluster, Node


async def test_credit_reaches_every_socket_of_the_account(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    clients = [await one.login(), await one.login(), await two.login()]
    other = await two.login("bob")
    await two.grant(3 * CREDIT, entry_id="g2")
    for client in clients:
        credit = await client.until("credit")
        assert (credit["account_id"], credit["entry_id"]) == ("ann", "g2")
        assert (credit["credits"], credit["delta"], credit["reason"]) == ("8", "3", "grant")
    await one.grant(CREDIT, "bob", entry_id="g1")
    assert (await other.until("credit"))["account_id"] == "bob"


async def test_a_session_on_two_processes_is_one(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    here, there = await one.login(), await two.login()
    await here.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    joined = await there.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert joined["state"] == "active"
    await there.until("tick")
    for asking, told in ((here, there), (there, here)):
        paused = await asking.ask("pause", session_id="chat-1")
        assert paused["state"] == "paused"
        heard = await told.until("session", lambda message: message["state"] == "paused")
        assert (heard["seq"], heard["elapsed_ms"]) == (paused["seq"], paused["elapsed_ms"])
        resumed = await told.ask("resume", session_id="chat-1")
        assert resumed["state"] == "active"
        await asking.until("session", lambda message: message["state"] == "active")
    stopped = await here.ask("stop", session_id="chat-1")
    told_of = await there.until("stopped")
    assert told_of["receipt"] == stopped["receipt"]
    assert told_of["seq"] == stopped["seq"]
    assert "id" not in told_of


async def test_both_stop_it_and_both_are_answered(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    here, there = await one.login(), await two.login()
    for client in (here, there):
        await client.ask("start", kind="chat", session_id="chat-1")
    answers = await asyncio.gather(
        here.ask("stop", session_id="chat-1"), there.ask("stop", session_id="chat-1")
    )
    # One of them ended the session; the other, if it came later, learns that the session has ended.
    assert "stopped" in [answer["type"] for answer in answers]
    for answer in answers:
        assert answer["type"] == "stopped" or answer["code"] in {
            "session_ended",
            "unknown_session",
        }


async def test_both_start_it_and_both_have_it(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    here, there = await one.login(), await two.login()
    answers = await asyncio.gather(
        here.ask("start", kind="chat", session_id="chat-1"),
        there.ask("start", kind="chat", session_id="chat-1"),
    )
    assert [answer["type"] for answer in answers] == ["session", "session"]
    assert answers[0]["started_at"] == answers[1]["started_at"]

    async def both_there() -> bool:
        return (await found(one, "chat-1")).nodes == {one.process.node, two.process.node}

    await eventually(both_there)
    # Either may go, and the session goes on.
    await here.close()
    assert (await there.ask("pause", session_id="chat-1"))["state"] == "paused"
    await there.ask("resume", session_id="chat-1")
    await settled(one)
    assert (await found(one, "chat-1")).session.standing.phase is Phase.ACTIVE


async def test_a_session_moves_to_another_process(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    here = await one.login()
    await here.ask("start", kind="chat", session_id="chat-1")
    await here.close()
    await reaches(one, "chat-1", Phase.SUSPENDED)
    there = await two.login()
    back = await there.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert back["state"] == "active"
    await there.until("tick")
    assert (await there.ask("stop", session_id="chat-1"))["type"] == "stopped"


async def test_the_process_that_a_session_left_forgets_it(cluster: Cluster, node: Node) -> None:
    await cluster.grant(20 * CREDIT)
    terms = load_rate_card().terms("chat")
    other = await cluster.node()
    here, there = node.browser("here"), other.browser("there")
    await here.start("chat-1", terms)
    await cluster.advance(5_000)
    await here.close()
    assert (await there.start("chat-1", terms))["state"] == "active"
    # It looked after the grace, and finds at its end that there is none any more.
    await cluster.advance(terms.reconnect_grace_ms)
    assert list(node.registry) == []
    await cluster.advance(60_000)
    assert there.local_sessions["chat-1"].meter.elapsed_at(cluster.clock.now()) == 95_000


async def test_the_remote_copy_of_a_step_may_come_before_its_answer(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(20 * CREDIT)
    terms = load_rate_card().terms("chat")
    other = await cluster.node()
    here, there = node.browser("here"), other.browser("there")
    await here.start("chat-1", terms)
    await there.start("chat-1", terms)
    commit = node.live.commit
    numbers = count()

    async def late(steps: Sequence[Step], name: str | None = None) -> list[StepOutcome]:
        outcomes = await commit(steps, name)
        await node.caught_up(cluster.redis, f"late {next(numbers)}")
        return outcomes

    monkeypatch.setattr(node.live, "commit", late)
    await cluster.advance(61_000)
    assert [minute["minute"] for minute in here.all("minute")] == [0]
    assert (await here.request("chat-1", Event.PAUSE))["state"] == "paused"
    assert (await here.request("chat-1", Event.RESUME))["state"] == "active"
    assert there.last("session")["state"] == "active"
    assert (await here.request("chat-1", Event.STOP))["type"] == "stopped"
    assert here.last("stopped")["receipt"] == there.last("stopped")["receipt"]
    assert [minute["minute"] for minute in here.all("minute")] == [0, 1]


async def test_a_observer_elsewhere_hears_what_happens(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    here, there = await one.login(), await two.login()
    await here.ask("start", kind="chat", session_id="chat-1")
    assert (await there.ask("watch", session_id="chat-1"))["state"] == "active"
    await here.ask("pause", session_id="chat-1")
    await there.until("session", lambda message: message["state"] == "paused")
    await here.ask("resume", session_id="chat-1")
    await there.until("session", lambda message: message["state"] == "active")
    stopped = await here.ask("stop", session_id="chat-1")
    assert (await there.until("stopped"))["receipt"] == stopped["receipt"]
