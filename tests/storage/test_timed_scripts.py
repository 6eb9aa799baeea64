"""Commands that arrive after their process's time-out do nothing."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol import limits
from storage import limits as storage_limits
from storage.redis import live as live_state
from storage.redis.keys import Keys
from storage.redis.live import Live, LiveError
from storage.redis.spending import Spending
from storage.redis.timed_scripts import RedisTimes, work_until
from tests.storage.spending_steps import (
    ACCOUNT,
    ANN,
    CREDIT,
    NOW,
    TENANT,
    a_hold,
    a_post,
    a_spend,
    account,
    have,
    opened,
    outbox,
)

SHORT_MS = 4 * storage_limits.GIVEN_UP_MARGIN_MS
Ask = Callable[[], Awaitable[Any]]


@pytest.fixture
def spending(live: Live) -> Spending:
    return Spending(live)


class Withheld:
    """A connection that keeps the next script until the test delivers it."""

    def __init__(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        self.send: Callable[..., Awaitable[Any]] = live.redis.execute_command
        self.commands: list[tuple[Any, ...]] = []
        self.is_open = True
        self.withheld = asyncio.Event()
        self.sent = 0
        monkeypatch.setattr(live.redis, "execute_command", self.execute_command)

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        self.sent += 1
        if self.is_open or command[0] not in ("EVALSHA", "EVAL"):
            return await self.send(*command, **options)
        self.commands.append(command)
        self.withheld.set()
        return await asyncio.Event().wait()

    async def give_up(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        """The script is under way until its process times out."""
        self.is_open = False
        with monkeypatch.context() as patch:
            patch.setattr(limits, "REDIS_TIMEOUT_MS", SHORT_MS)
            with pytest.raises(LiveError):
                await ask()
        self.is_open = True

    async def deliver(self) -> None:
        """Redis receives the script now."""
        for command in self.commands:
            await self.send(*command)


@pytest.fixture
async def line(live: Live, monkeypatch: pytest.MonkeyPatch) -> Withheld:
    await live.beat(NOW, 0)
    return Withheld(live, monkeypatch)


async def test_a_late_spend_that_was_refused_meanwhile_takes_nothing(
    live: Live, spending: Spending, line: Withheld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await have(live, 0)
    await line.send("SCRIPT", "LOAD", spending._spend.text)
    await line.give_up(lambda: spending.spend(a_spend()), monkeypatch)
    assert (await spending.spend(a_spend())).status == "short"
    await live.credit(TENANT, ANN, "g1", CREDIT, "grant", NOW)
    await line.deliver()
    assert (await account(live.redis))["balance"] == CREDIT
    assert await outbox(live.redis) == []


async def test_a_late_hold_that_was_refused_meanwhile_holds_nothing(
    live: Live, spending: Spending, line: Withheld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await have(live, 0)
    await line.send("SCRIPT", "LOAD", spending._hold.text)
    await line.give_up(lambda: spending.hold(a_hold()), monkeypatch)
    assert (await spending.hold(a_hold())).status == "short"
    await live.credit(TENANT, ANN, "g1", 9 * CREDIT, "grant", NOW)
    await line.deliver()
    assert (await account(live.redis)).get("held", 0) == 0


@pytest.mark.parametrize("how", ["post", "void"])
async def test_a_late_end_of_a_hold_does_nothing(
    how: str, live: Live, spending: Spending, line: Withheld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await have(live, 9 * CREDIT)
    made = await opened(spending)
    ask: dict[str, Ask] = {
        "post": lambda: spending.post(made, a_post(CREDIT)),
        "void": lambda: spending.void(made, NOW + 1),
    }
    await line.send("SCRIPT", "LOAD", getattr(spending, f"_{how}").text)
    await line.give_up(ask[how], monkeypatch)
    await line.deliver()
    assert (await account(live.redis))["held"] == 5 * CREDIT
    assert (await account(live.redis))["balance"] == 9 * CREDIT


async def test_a_late_limit_does_not_replace_a_newer_one(
    live: Live, line: Withheld, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = live.keys.member(TENANT, "ann")
    await live.load_month(TENANT, key, {"limit": "", "overage": 0})
    await line.send("SCRIPT", "LOAD", live._limit.text)
    await line.give_up(lambda: live.change_limit(TENANT, "ann", 10, overage=False), monkeypatch)
    await live.change_limit(TENANT, "ann", 20, overage=False)
    await line.deliver()
    assert await live.redis.hget(key, "limit") == b"20"


async def test_a_step_of_the_clock_of_redis_refuses_nothing(
    live: Live, spending: Spending, line: Withheld
) -> None:
    await have(live, 9 * CREDIT)
    for number, ahead_ms in enumerate((-3_600_000, 3_600_000)):
        live.times._known.clear()
        now_s = live.times.reading()
        redis_s, _ = await live.redis.time()
        live.times.observe(ACCOUNT, redis_s * 1000 + ahead_ms, now_s)
        assert (await spending.spend(a_spend(f"s{number}"))).status == "ok"


async def test_an_unknown_redis_clock_is_asked_for_once(
    live: Live, spending: Spending, line: Withheld
) -> None:
    await have(live, 9 * CREDIT)
    await line.send("SCRIPT", "LOAD", spending._spend.text)
    live.times._known.clear()
    line.sent = 0
    assert (await spending.spend(a_spend("s1"))).status == "ok"
    assert line.sent == 2
    assert (await spending.spend(a_spend("s2"))).status == "ok"
    assert line.sent == 3


async def test_a_cancelled_command_is_given_up_once_it_is_harmless(
    live: Live, spending: Spending, line: Withheld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await have(live, CREDIT)
    await line.send("SCRIPT", "LOAD", spending._spend.text)
    line.is_open = False
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", SHORT_MS)
    task = asyncio.ensure_future(spending.spend(a_spend()))
    await line.withheld.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await line.deliver()
    assert (await account(live.redis))["balance"] == CREDIT


async def test_work_that_was_given_up_asks_for_nothing(
    live: Live, spending: Spending, line: Withheld
) -> None:
    await have(live, CREDIT)
    line.sent = 0
    with work_until(live.times.reading()), pytest.raises(LiveError):
        await spending.spend(a_spend())
    assert line.sent == 0
    assert (await spending.spend(a_spend())).status == "ok"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The instants until which an unanswered command was waited for."""
    waited: list[float] = []

    async def wait_until(_: RedisTimes, at: float) -> None:
        waited.append(at)

    monkeypatch.setattr(RedisTimes, "wait_until", wait_until)
    return waited


async def spend_at(url: str) -> None:
    """A spend that fails, at another Redis."""
    elsewhere = Live(live_state.connect(url), Keys(2), "node")
    try:
        with pytest.raises(LiveError):
            await Spending(elsewhere).spend(a_spend())
    finally:
        await elsewhere.redis.aclose()


async def test_where_nothing_listens_nothing_is_waited_for(waits: list[float]) -> None:
    await spend_at("unix:///nowhere/redis.sock")
    assert waits == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EHOSTUNREACH, "no route"), socket.gaierror(-2, "unknown"), TimeoutError()],
    ids=["no route", "no name", "no answer"],
)
async def test_without_connection_nothing_is_waited_for(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def open_connection(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    await spend_at("redis://redis.test:6379")
    assert waits == []


@pytest.mark.parametrize(
    ("answer", "waited"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", 0),
        (b"-NOAUTH Authentication required.\r\n", 0),
        (b"", 1),
    ],
    ids=["loading", "no password", "closed"],
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_command_is_waited_for_unless_redis_refused_it(
    waits: list[float], answer: bytes, waited: int, greeted: bool
) -> None:
    """A connection that breaks during a command may have delivered the command."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await read_command(reader):
            is_script = words[0].startswith(b"EVAL")
            writer.write(answer if is_script or not greeted else b"+OK\r\n")
            if (is_script or not greeted) and not answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        await spend_at(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2")
    assert len(waits) == (waited if greeted else 0)


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """The words of a client's next command; empty at the end."""
    head = await reader.readline()
    words = []
    for _ in range(int(head[1:] or 0)):
        size = int((await reader.readline())[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


def test_a_fast_answer_counts_until_the_clock_goes_back(live: Live) -> None:
    times, now_s = RedisTimes(live.redis), [100.0]
    times.reading = lambda: now_s[0]
    margin_ms = storage_limits.GIVEN_UP_MARGIN_MS
    assert times.latest(ACCOUNT, 101) == 0
    times.observe(ACCOUNT, 1_000_000, 100)
    assert times.latest(ACCOUNT, 101) == 1_001_000 - margin_ms
    # An answer that took a second says it was at least so late, which is known better.
    now_s[0] = 102
    times.observe(ACCOUNT, 1_001_500, 101)
    assert times.latest(ACCOUNT, 103) == 1_003_000 - margin_ms
    # The clock went back by a minute: nothing else explains such an answer.
    times.observe(ACCOUNT, 942_000, 102)
    assert times.latest(ACCOUNT, 103) == 943_000 - margin_ms
    now_s[0] += storage_limits.REDIS_TIME_KNOWN_S
    assert times.latest(ACCOUNT, now_s[0] + 1) == 0
