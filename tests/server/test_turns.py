"""One customer's work never makes a turn of the loop long.

The tests count work, not time.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.metering.states import Phase
from server import limits as server_limits
from server.runtime.timers import Timers
from server.runtime.turns import Turns
from tests.fixtures.server import StartServer, TestServer
from tests.server.billed_session import CREDIT, eventually
from tests.server.test_timers import SteppedClock

SESSIONS = 60
"""A number of sessions of one account on one socket: several turns' worth of work."""


class Counted:
    """Counts the work between two turns of the loop.

    Each count covers two turns at most.
    """

    def __init__(self) -> None:
        self.turns: list[int] = []
        self._is_due = False

    def note(self) -> None:
        if not self._is_due:
            self._is_due = True
            self.turns.append(0)
            asyncio.get_running_loop().call_soon(self._next)
        self.turns[-1] += 1

    def _next(self) -> None:
        self._is_due = False


# --- Turns -----------------------------------------------------------------------------


async def test_small_work_is_done_at_once_and_large_work_in_parts() -> None:
    turns, counted, done = Turns(4), Counted(), list[str]()

    def work(name: str, units: int) -> Iterator[None]:
        for _ in range(units):
            counted.note()
            done.append(name)
            yield

    turns.run("ann", work("ann", 2))
    assert done == ["ann", "ann"]
    turns.run("big", work("big", 40))
    assert len(done) <= 4
    turns.run("bob", work("bob", 1))
    await turns.idle()
    assert len(done) == 43
    assert max(counted.turns) <= 2 * 4
    assert done.index("bob") <= 8, "it is not behind all that the other has"


async def test_a_unit_that_fails_ends_its_work_and_no_other() -> None:
    turns, done = Turns(1), list[str]()

    def broken() -> Iterator[None]:
        done.append("broken")
        yield
        raise RuntimeError("a bug of ours")

    turns.run("ann", broken())

    def sound() -> Iterator[None]:
        for _ in range(3):
            done.append("next")
            yield

    turns.run("ann", sound())
    await turns.idle()
    assert done == ["broken", "next", "next", "next"]


async def test_tasks_and_work_share_the_turns() -> None:
    turns, done = Turns(4), Counter[str]()

    def forever() -> Iterator[None]:
        while done["task"] < 20:
            done["work"] += 1
            yield

    async def task() -> None:
        await turns.take("task")
        done["task"] += 1

    turns.run("big", forever())
    await asyncio.gather(*(task() for _ in range(20)))
    await turns.idle()
    assert done["task"] == 20
    assert 20 <= done["work"] <= 60


async def test_tasks_of_many_customers_take_turns() -> None:
    """A neighbour's task otherwise waits behind all of a customer's tasks."""
    turns, counted, done = Turns(4), Counted(), list[str]()

    async def task(owner: str) -> None:
        await turns.take(owner)
        counted.note()
        done.append(owner)

    tasks = [asyncio.ensure_future(task("big")) for _ in range(256)]
    await asyncio.sleep(0)
    tasks += [asyncio.ensure_future(task(one)) for one in ("ann", "bob")]
    await asyncio.gather(*tasks)
    assert len(done) == 258
    assert max(counted.turns) <= 2 * 4
    assert max(done.index("ann"), done.index("bob")) <= 3 * 4


async def test_a_task_that_gave_up_takes_nobodys_place() -> None:
    turns = Turns(1)

    async def wait() -> None:
        await turns.take("task")

    await wait()
    waiting = [asyncio.ensure_future(wait()) for _ in range(3)]
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await turns.idle()
    assert [one.cancelled() for one in waiting] == [True, False, False]


# --- Timers ----------------------------------------------------------------------------


def test_deadlines_of_one_owner_delay_no_other_owners() -> None:
    timers, fired = Timers(SteppedClock()), list[str]()
    for _ in range(1_000):
        timers.deadline(5, lambda _: fired.append("big"), "big")
    timers.deadline(5, lambda _: fired.append("ann"), "ann")
    timers.tick(5, lambda _: fired.append("tick"))
    timers.run_due(5)
    assert len(fired) <= server_limits.TICKS_PER_TURN_MAX // server_limits.DEADLINE_TICKS
    assert fired[:2] == ["big", "ann"]
    assert timers.next_at == 5, "the rest is due now"
    for _ in range(200):
        timers.run_due(5)
    assert Counter(fired) == {"big": 1_000, "ann": 1, "tick": 1}
    assert fired[-1] == "tick"


# --- Sessions of one account, over a real socket -----------------------------------------


async def crowded(start_server: StartServer) -> tuple[TestServer, Any]:
    server = await start_server()
    await server.grant(1_000 * CREDIT)
    client = await server.login()
    for number in range(SESSIONS):
        answer = await client.ask("start", kind="chat", session_id=f"chat-{number}")
        assert answer["type"] == "session", answer
    return server, client


async def test_sessions_of_one_account_are_handled_in_parts(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of one account are handled in parts.

    Otherwise each message of the account concerns all its sessions: thousands of projections.
    """
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10_000)
    server, client = await crowded(start_server)
    registry, changes, parts = server.process.registry, Counted(), Counted()
    part = registry.unsubscribe
    for local in registry:
        changed = local.meter.changed

        def noted(now_ms: int, changed: Any = changed) -> None:
            changes.note()
            changed(now_ms)

        monkeypatch.setattr(local.meter, "changed", noted)

    def parted(*arguments: Any, **how: Any) -> None:
        parts.note()
        part(*arguments, **how)

    monkeypatch.setattr(registry, "unsubscribe", parted)
    await client.close()

    async def are_suspended() -> bool:
        return all(local.meter.session.standing.phase is Phase.SUSPENDED for local in registry)

    await eventually(are_suspended)
    await registry.idle()
    assert sum(parts.turns) == SESSIONS
    assert max(parts.turns) <= 2 * server_limits.UNITS_PER_TURN
    assert max(changes.turns) <= 2 * server_limits.UNITS_PER_TURN
    assert sum(changes.turns) <= SESSIONS * SESSIONS / 4


async def test_messages_to_a_tenants_sessions_are_delivered_in_parts(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10_000)
    server, _ = await crowded(start_server)
    registry, refreshed = server.process.registry, Counted()
    monkeypatch.setattr(registry.channel_events, "_refresh", lambda *_: refreshed.note())
    for _ in range(10):
        registry.channel_events.limits_changed("user:ann", "adjusted")
    registry.channel_events.limits_changed("user:bob", "adjusted")
    await registry.idle()
    assert max(refreshed.turns) <= 2 * server_limits.UNITS_PER_TURN
    # Once for listeners called before it began, once for those called after.
    assert SESSIONS <= sum(refreshed.turns) <= 2 * SESSIONS


async def test_a_credit_is_told_to_many_sockets_in_parts(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    await server.grant(CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    (local,) = server.process.registry
    told = Counted()
    for _ in range(200):
        local.account.listeners[lambda *_: told.note()] = None
    await server.grant(CREDIT, entry_id="g2")
    await client.until("credit")

    async def are_told() -> bool:
        return sum(told.turns) >= 200  # the account has other messages, too

    await eventually(are_told)
    assert max(told.turns) <= 2 * server_limits.UNITS_PER_TURN
