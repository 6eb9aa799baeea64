"""Every socket of a member is shown the member's month."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from protocol.metering.quota import month_after
from server import limits as server_limits
from server.counters.calendars import calendar
from server.counters.member_months import MemberMonths
from server.gateway.connection import Connection
from storage.redis.figures import MonthFigures
from storage.redis.live import LiveError
from tests.fixtures.server import SocketClient, StartServer, TestServer
from tests.server.api import advance, ask, settled
from tests.server.minutes import (
    MINUTE_MS,
    keep_off_month_ends,
    limit_member,
    limit_org,
    recording,
    track,
)
from tests.server.peers import until
from tests.simulation.cluster import Cluster, Node

CHAT_ONLY = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]
"""


async def used(client: SocketClient, member_minutes: int) -> dict[str, Any]:
    """The first message from which on the member has used so much."""
    return await client.until(
        "usage", where=lambda one: one["member_used_ms"] >= member_minutes * MINUTE_MS
    )


def shown_in(frame: bytes) -> dict[str, Any]:
    """The message in a frame."""
    found: dict[str, Any] = orjson.loads(frame[frame.index(b'{"type') :])
    return found


async def minute_passes(server: TestServer, client: SocketClient) -> None:
    advance(server, 61_000)
    await client.ask("ping")
    await settled(server)


# --- Through the real server -----------------------------------------------------------


async def test_month_comes_after_auth(server: TestServer) -> None:
    await limit_org(server, 600, timezone="Pacific/Auckland")
    await limit_member(server, 90)
    client = await server.login("ann", org="acme")
    assert await client.until("usage") == {
        "type": "usage",
        "month": calendar("Pacific/Auckland").month(server.process.clock.now()),
        "member_used_ms": 0,
        "member_limit_ms": 90 * MINUTE_MS,
        "org_used_ms": 0,
        "org_limit_ms": 600 * MINUTE_MS,
    }
    # Without an organisation there is none to have a limit, and months are counted all the same.
    alone = await (await server.login("ann")).until("usage")
    assert (alone["member_used_ms"], alone["member_limit_ms"]) == (0, None)
    assert (alone["org_used_ms"], alone["org_limit_ms"]) == (None, None)


async def test_month_that_nothing_counts_is_not_shown(
    start_server: StartServer, tmp_path: Path
) -> None:
    rates = tmp_path / "chat.toml"
    rates.write_text(CHAT_ONLY)
    server = await start_server(rates=rates)
    await server.login()
    assert len(server.process.member_months) == 0


@pytest.mark.parametrize("org", ["acme", None])
async def test_counted_minute_reaches_every_socket_of_the_member(
    start_server: StartServer, org: str | None
) -> None:
    here, there = await start_server(), await start_server()
    claims = {"org": org} if org else {}
    keep_off_month_ends(here)
    there.process.clock._offset_ms = here.process.clock._offset_ms
    client = await here.login("ann", **claims)
    others = [await server.login("ann", **claims) for server in (here, there, there)]
    bystander = await there.login("ben", **claims)
    await bystander.until("usage")
    await client.ask("start", kind="recording", session_id="r1")
    for minutes in (1, 2):
        advance(there, 61_000)
        await minute_passes(here, client)
        for one in (client, *others):
            shown = await used(one, minutes)
            assert shown["org_used_ms"] == (shown["member_used_ms"] if org else None)
    await bystander.send("ping")
    while (message := await bystander.receive())["type"] != "pong":
        assert message["type"] != "usage", "another member's minute"


async def test_end_of_a_session_counts_its_last_minute(server: TestServer) -> None:
    client = await recording(server)
    await client.ask("stop", session_id="r1")
    assert (await used(client, 1))["member_used_ms"] == MINUTE_MS


async def test_reported_and_corrected_minutes_are_shown(server: TestServer) -> None:
    keep_off_month_ends(server)
    client = await server.login("ann", org="acme")
    assert (await client.until("usage"))["member_used_ms"] == 0
    assert (await track(server, 3)).status_code == 200
    await used(client, 1)
    await server.flush()
    operator = server.token("olga", org="acme", scope="ops")
    corrected = await ask(
        server, "POST", "/v1/orgs/acme/members/ann/adjustments", operator,
        headers={"Idempotency-Key": "a1"}, json={"minutes": 5, "reason": "a lost recording"},
    )  # fmt: skip
    assert corrected.status_code == 201, corrected.text
    assert (await used(client, 6))["org_used_ms"] == 6 * MINUTE_MS


async def test_changed_limit_is_shown(start_server: StartServer) -> None:
    here, there = await start_server(), await start_server()
    client = await there.login("ann", org="acme")
    await client.until("usage")
    await limit_member(here, 7)
    await client.until("usage", where=lambda one: one["member_limit_ms"] == 7 * MINUTE_MS)
    await limit_org(here, 8, allow_overage=True)
    await client.until("usage", where=lambda one: one["org_limit_ms"] == 8 * MINUTE_MS)


async def test_slow_socket_gets_the_newest_once_it_reads_again(server: TestServer) -> None:
    client = await recording(server)
    (connection,) = server.process.sockets.connections
    assert isinstance(connection, Connection)

    class FullSocket:
        """The socket, whose write buffer is full."""

        def __init__(self, socket: Any) -> None:
            self.socket = socket
            self.is_full = True

        def push_tick(self, frame: bytes) -> bool:
            return not self.is_full and self.socket.push_tick(frame)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.socket, name)

    slow: Any = FullSocket(connection.socket)
    connection.socket = slow
    for minutes in (1, 2, 3):
        await minute_passes(server, client)
        async with asyncio.timeout(10):
            await until(
                lambda least=minutes * MINUTE_MS: (  # type: ignore[misc]
                    connection.unsent_usage
                    and shown_in(connection.unsent_usage)["member_used_ms"] >= least
                )
            )
    slow.is_full = False
    await client.send("ping")
    # One message, the newest, and it comes with the proof of life.
    assert (await client.until("usage"))["member_used_ms"] >= 3 * MINUTE_MS
    assert not connection.unsent_usage


async def test_months_end_begins_a_new_one(server: TestServer) -> None:
    keep_off_month_ends(server)
    client = await server.login("ann", org="acme", ttl_seconds=10**8)
    await track(server, 1)
    month = (await used(client, 1))["month"]
    days = calendar("UTC")
    left_ms = days.start_at(month_after(month)) - server.process.clock.now()
    advance(server, left_ms + server_limits.USAGE_MONTH_SPREAD_MS)
    shown = await client.until("usage", where=lambda one: one["month"] != month)
    assert (shown["month"], shown["member_used_ms"]) == (month_after(month), 0)


async def test_month_that_cannot_be_read_is_read_later(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket authenticates meanwhile: the month is no condition."""
    read, failures = server.process.live.usage, 0

    async def away(*asked: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise LiveError("away")
        return await read(*asked)

    monkeypatch.setattr(server.process.live, "usage", away)
    client = await server.login("ann", org="acme")
    for _ in range(3):
        advance(server, 1_000)
        await client.ask("ping")
    assert (await client.until("usage"))["member_used_ms"] == 0


# --- One process -----------------------------------------------------------------------


class Shown:
    """A socket that keeps what it is shown."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def show_usage(self, frame: bytes) -> None:
        self.frames.append(frame)

    @property
    def last(self) -> dict[str, Any]:
        return shown_in(self.frames[-1])


FIGURES = MonthFigures("2026-05-01", 1, None, 1, None, 1_000_000_000)
ANN = ("org:acme", "acme", "ann")


def message_of(figures: MonthFigures) -> dict[str, Any]:
    return {
        "month": figures.month,
        "member": ["", str(figures.member_minutes)],
        "org": ["", str(figures.org_minutes)],
        "as_of": str(figures.as_of_us),
    }


@pytest.fixture
async def months(cluster: Cluster, node: Node) -> AsyncIterator[MemberMonths]:
    registry = node.registry
    made = MemberMonths(
        node.live, node.loader, registry.tenants, registry.accounts, node.clock, node.timers,
        registry.turns, counts=True,
    )  # fmt: skip
    registry.tenants.listeners.append(made.limits_changed)
    yield made
    await made.stop()


async def quiet(months: MemberMonths) -> None:
    async with asyncio.timeout(10):
        await until(lambda: not (months.busy or months.turns.busy))


async def test_no_turn_grows_with_the_sockets_of_a_member(
    months: MemberMonths, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = [Shown() for _ in range(500)]
    for socket in sockets:
        member = months.open(*ANN, socket)
    assert member is not None
    await quiet(months)
    assert all(len(socket.frames) == 1 for socket in sockets)

    def shown() -> int:
        return sum(len(socket.frames) for socket in sockets) - len(sockets)

    # A hundred sessions of the member complete a minute together.
    for minute in range(1, 101):
        figures = msgspec.structs.replace(
            FIGURES, member_minutes=minute, as_of_us=FIGURES.as_of_us + minute
        )
        months._told(member, message_of(figures))
    assert shown() <= server_limits.UNITS_PER_TURN
    turns = 0
    while months.turns.busy:
        before = shown()
        await asyncio.sleep(0)
        turns += 1
        assert shown() - before <= 2 * server_limits.UNITS_PER_TURN
    assert all(socket.last["member_used_ms"] == 100 * MINUTE_MS for socket in sockets)
    assert shown() <= 2 * len(sockets)
    assert turns >= len(sockets) // (2 * server_limits.UNITS_PER_TURN)


async def test_other_customers_are_served_in_between(months: MemberMonths) -> None:
    crowd, other = [Shown() for _ in range(200)], Shown()
    for socket in crowd:
        member = months.open(*ANN, socket)
    neighbour = months.open("user:ben", None, "ben", other)
    assert member is not None
    assert neighbour is not None
    await quiet(months)
    for socket in (*crowd, other):
        socket.frames.clear()
    newer = msgspec.structs.replace(FIGURES, member_minutes=9)
    months._told(member, message_of(newer))
    months._told(neighbour, message_of(newer))
    async with asyncio.timeout(10):
        await until(lambda: other.frames)
    assert sum(map(len, (socket.frames for socket in crowd))) < 3 * server_limits.UNITS_PER_TURN


async def test_figures_that_were_overtaken_are_not_shown(months: MemberMonths) -> None:
    first, second = Shown(), Shown()
    member = months.open(*ANN, first)
    assert member is not None
    await quiet(months)
    newest = msgspec.structs.replace(FIGURES, member_minutes=5, as_of_us=9 * 10**15)
    months._told(member, message_of(newest))
    older = msgspec.structs.replace(newest, member_minutes=4, as_of_us=9 * 10**15 - 1)
    months._told(member, message_of(older))
    assert first.last["member_used_ms"] == 5 * MINUTE_MS
    # A new socket is shown what is known, whatever the read for it brings.
    member.due[second] = member.listeners[second] = None
    months._take(member, older)
    assert second.last["member_used_ms"] == 5 * MINUTE_MS
    # A Redis whose clock is far behind is another Redis: then its figures count.
    months._told(member, message_of(FIGURES))
    assert first.last["member_used_ms"] == MINUTE_MS


async def test_last_socket_ends_the_subscription(months: MemberMonths) -> None:
    channels = len(months.channels)
    first, second = Shown(), Shown()
    member = months.open(*ANN, first)
    assert months.open(*ANN, second) is member
    assert member is not None
    await quiet(months)
    assert len(months.channels) > channels
    months.close(member, first)
    months.close(member, first)
    await quiet(months)
    assert len(months) == 1
    months.close(member, second)
    await quiet(months)
    assert (len(months), len(months.channels), len(months._locks)) == (0, channels, 0)
    assert months._by_tenant == {}


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_member_who_comes_back_at_once_is_still_shown_changes(
    months: MemberMonths, node: Node, turns: int
) -> None:
    first, second = Shown(), Shown()
    member = months.open(*ANN, first)
    assert member is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    months.close(member, first)
    again = months.open(*ANN, second)
    assert again is not None
    await quiet(months)
    assert second.last["member_used_ms"] == 0
    channel = node.live.keys.usage_channel("org:acme", "ann")
    newer = message_of(msgspec.structs.replace(FIGURES, member_minutes=3, as_of_us=9 * 10**15))
    await node.live.redis.execute_command(node.live.publish, channel, orjson.dumps(newer))  # type: ignore[no-untyped-call]
    async with asyncio.timeout(10):
        await until(lambda: second.last["member_used_ms"])


async def test_lost_connection_has_the_month_read_again(months: MemberMonths, node: Node) -> None:
    socket = Shown()
    member = months.open(*ANN, socket)
    assert member is not None
    await quiet(months)
    key = node.live.keys.member("org:acme", "ann")
    month = calendar("UTC").month(node.clock.now())
    await node.live.redis.hincrby(key, f"used:{month}", 12)
    months._told(member, {"reload": True})
    await quiet(months)
    assert socket.last["member_used_ms"] == 12 * MINUTE_MS


async def test_reads_of_many_members_are_bounded(
    months: MemberMonths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An organisation whose members reconnect together does not crowd out the sessions."""
    read, under_way, most = months.live.usage, 0, 0

    async def counted(*asked: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await read(*asked)
        finally:
            under_way -= 1

    monkeypatch.setattr(months.live, "usage", counted)
    sockets = [Shown() for _ in range(60)]
    for number, socket in enumerate(sockets):
        months.open("org:acme", "acme", f"user-{number}", socket)
    await quiet(months)
    assert all(socket.frames for socket in sockets)
    assert 1 < most <= server_limits.USAGE_READS_AT_ONCE_MAX
