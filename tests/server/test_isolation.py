"""One exception stops no other work: each loop over many goes on.

The tests also check that the failed item is looked after. Faults are injected where a bug of ours
would be: in one timer, one answer, one listener, one socket, one session, one record.
"""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.runtime import isolation
from server.runtime.isolation import alone, for_each, isolated
from server.runtime.metrics import Metrics
from server.runtime.timers import Timers
from server.transport.open_sockets import Sockets
from storage.postgres.database import UnavailableError
from storage.redis.live import StepOutcome
from tests.fixtures.server import StartServer
from tests.server.billed_session import CREDIT, connection_of, reaches
from tests.server.test_keepalive import started
from tests.server.test_step_pipeline import STEP, FakeSource, SlowRedis, pipeline_over, turns
from tests.server.test_timers import SteppedClock


def broken(*_: object) -> None:
    raise RuntimeError("a bug of ours")


@pytest.fixture(autouse=True)
def _fresh_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_budget", isolation._Budget())


# --- The mechanism ---------------------------------------------------------------------


def test_a_failure_is_logged_with_its_name_and_its_traceback() -> None:
    with capture_logs() as logs:
        assert not isolated("timer", broken, 1, session="ann/chat-1")
        assert isolated("timer", len, [])
    (entry,) = logs
    assert (entry["event"], entry["what"], entry["session"]) == (
        "failed_alone",
        "timer",
        "ann/chat-1",
    )
    assert isinstance(entry["exc_info"], RuntimeError)


def test_a_cancellation_is_no_failure() -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        isolated("timer", cancelled)


def test_a_bug_in_every_tick_does_not_flood_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = SimpleNamespace(monotonic=lambda: 7.0)
    monkeypatch.setattr(isolation, "time", seconds)
    with capture_logs() as logs:
        for _ in range(1_000):
            isolated("tick", broken)
        assert len(logs) == server_limits.FAILURES_LOGGED_PER_SECOND_MAX
        seconds.monotonic = lambda: 8.0
        isolated("tick", broken)
    assert logs[-1]["unlogged_before"] == 1_000 - server_limits.FAILURES_LOGGED_PER_SECOND_MAX


async def test_each_has_its_turn_before_a_failure_is_raised() -> None:
    done = list[int]()

    async def act(item: int) -> None:
        if item == 1:
            raise RuntimeError("a bug of ours")
        if item == 2:
            raise ServiceError("not now")
        done.append(item)

    with pytest.raises(RuntimeError):
        await for_each("item", range(5), act)
    assert done == [0, 3, 4]


async def test_when_a_store_is_away_the_others_are_not_tried() -> None:
    tried = list[int]()

    async def act(item: int) -> None:
        tried.append(item)
        raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await for_each("item", range(5), act)
    assert tried == [0]


def test_what_fails_alone_ends_its_block_only() -> None:
    with alone("sweep"):
        broken()
    with alone("sweep"):
        raise UnavailableError("away")


# --- Timers, pings, drains -------------------------------------------------------------


def test_timers_of_the_same_millisecond_fire_whatever_one_does() -> None:
    timers, fired = Timers(SteppedClock()), list[str]()
    timers.deadline(5, lambda _: fired.append("first"))
    timers.deadline(5, broken)
    timers.deadline(5, lambda _: fired.append("third"))
    timers.tick(5, broken)
    timers.tick(5, lambda _: fired.append("tick"))
    timers.run_due(5)
    assert fired == ["first", "third", "tick"]
    assert timers.next_at is None


def test_a_socket_that_cannot_be_pinged_keeps_no_ping_from_others() -> None:
    loop, _, sockets = started(10, 10, sockets=3)
    cast(Any, sockets[0]).send_keepalive_ping = broken
    cast(Any, sockets[1]).keepalive_timeout = broken
    loop.pass_to(1010)
    assert [bool(socket.pings) for socket in sockets] == [False, True, True]
    loop.pass_to(1020)
    assert sockets[2].timed_out == [1020]


async def test_a_broken_socket_stops_no_drain_and_no_probe() -> None:
    sockets, heard = Sockets(Metrics(with_process=False)), list[str]()

    class FakeSocket:
        carrier = "websocket"

        def probe(self) -> None:
            heard.append("probe")

        def send(self, _: bytes) -> None:
            heard.append("reconnect")

    class BrokenSocket(FakeSocket):
        def probe(self) -> None:
            broken()

        def send(self, _: bytes) -> None:
            broken()

    for socket in (FakeSocket(), BrokenSocket(), FakeSocket()):
        sockets.add(cast(Any, socket))
    for _ in sockets.probe():
        pass
    await sockets._each(lambda one: one.send(b""))
    assert sorted(heard) == ["probe", "probe", "reconnect", "reconnect"]


# --- Claims ----------------------------------------------------------------------------


class BrokenSource(FakeSource):
    def answered(self, _: Any, outcome: StepOutcome) -> None:
        raise RuntimeError("a bug of ours")


async def test_the_rest_of_a_batch_is_answered_when_one_answer_fails() -> None:
    redis = SlowRedis()
    redis.answering.set()
    pipeline = pipeline_over(redis)
    local_sessions = [FakeSource(), BrokenSource(), FakeSource()]
    for local in local_sessions:
        pipeline.ask(local, STEP)
    await pipeline.idle()
    assert [len(local.heard) for local in local_sessions] == [1, 1, 1]
    assert local_sessions[1].heard == [None], "the outcome of its step is asked anew"


async def test_a_failing_failure_handler_does_not_stop_the_others() -> None:
    redis = SlowRedis()
    pipeline, local_sessions = pipeline_over(redis), [FakeSource(), FakeSource(), FakeSource()]
    cast(Any, local_sessions[0]).unanswered = broken
    for local in local_sessions:
        pipeline.ask(local, STEP)
    redis.failing = True
    redis.answering.set()
    await turns()
    await pipeline.idle()
    assert [local.heard for local in local_sessions] == [[], [None], [None]]


async def test_a_failing_pipeline_answers_every_waiter() -> None:
    class BrokenRedis(SlowRedis):
        async def commit(self, steps: Sequence[Any], _: str | None = None) -> list[StepOutcome]:
            raise TypeError("a bug of ours")

    pipeline, local_sessions = pipeline_over(BrokenRedis()), [FakeSource(), FakeSource()]
    for local in local_sessions:
        pipeline.ask(local, STEP)
    await pipeline.idle()
    assert [local.heard for local in local_sessions] == [[None], [None]]


async def test_an_unreadable_answer_is_an_unknown_outcome() -> None:
    class Unread(SlowRedis):
        async def commit(self, steps: Sequence[Any], _: str | None = None) -> list[StepOutcome]:
            good = await super().commit(steps)
            return [StepOutcome(reply=None, failed="what is this?", unread=True), *good[1:]]

    redis = Unread()
    redis.answering.set()
    pipeline, local_sessions = pipeline_over(redis), [FakeSource(), FakeSource()]
    for local in local_sessions:
        pipeline.ask(local, STEP)
    await pipeline.idle()
    assert local_sessions[0].heard == [None]
    assert isinstance(local_sessions[1].heard[0], StepOutcome)


# --- Sessions of one account, through a real socket --------------------------------------


async def started_sessions(start_server: StartServer) -> tuple[Any, Any]:
    server = await start_server()
    await server.grant(50 * CREDIT)
    client = await server.login()
    for number in range(3):
        await client.ask("start", kind="chat", session_id=f"chat-{number}")
    return server, client


async def test_other_sessions_of_the_account_hear_when_one_fails(start_server: StartServer) -> None:
    server, _ = await started_sessions(start_server)
    registry = server.process.registry
    changed = list[str]()
    for local in registry:
        name = local.meter.session.identity.session_id

        def note(_: int, name: str = name) -> None:
            changed.append(name)
            if name == "chat-0":
                raise RuntimeError("a bug of ours")

        local.meter.changed = note
    account = next(iter(registry)).account
    heard = list[str]()
    mine = [broken, lambda *_: heard.append("listener")]
    account.listeners |= dict.fromkeys(mine)
    registry.channel_events.received(account, {})
    await registry.turns.idle()
    assert sorted(changed) == ["chat-0", "chat-1", "chat-2"]
    assert heard == ["listener"]
    (failing,) = [one for one in registry if one.meter.session.identity.session_id == "chat-0"]
    assert failing._retry is not None, "it is looked at again"
    for one in mine:
        del account.listeners[one]


async def test_a_socket_that_fails_keeps_nothing_from_the_others(start_server: StartServer) -> None:
    server, client = await started_sessions(start_server)
    observer = await server.login()
    await observer.ask("watch", session_id="chat-1")
    (local,) = [
        one for one in server.process.registry if one.meter.session.identity.session_id == "chat-1"
    ]
    (one, two) = local.subscribers
    real = one.send, one.send_tick
    fake = SimpleNamespace(send=broken, send_tick=broken, probe=broken, left=one.left)
    group = local.service.groups[0]
    group.subscribers.insert(0, cast(Any, fake))
    await client.ask("pause", session_id="chat-1")
    assert (await observer.until("session"))["state"] == "paused"
    await client.ask("resume", session_id="chat-1")
    await observer.until("tick")
    await observer.until("tick")
    group.subscribers.remove(cast(Any, fake))
    assert real == (one.send, one.send_tick)
    assert two in local.subscribers


async def test_a_socket_that_goes_leaves_all_its_sessions_though_one_fails(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = await started_sessions(start_server)
    registry, part = server.process.registry, server.process.registry.unsubscribe

    def failing(local: Any, *arguments: Any, **how: Any) -> None:
        if local.meter.session.identity.session_id == "chat-0":
            raise RuntimeError("a bug of ours")
        part(local, *arguments, **how)

    monkeypatch.setattr(registry, "unsubscribe", failing)
    connection = connection_of(server)
    await client.close()
    for name in ("chat-1", "chat-2"):
        await reaches(server, name, Phase.SUSPENDED)
    assert connection not in server.process.sockets.connections


async def test_a_session_whose_timer_fails_is_looked_at_again(start_server: StartServer) -> None:
    server, client = await started_sessions(start_server)
    local = next(iter(server.process.registry))
    handle, failures = local.meter.handle_timer, list[int]()

    def failing(now_ms: int) -> None:
        failures.append(now_ms)
        if len(failures) == 1:
            raise RuntimeError("a bug of ours")
        handle(now_ms)

    local.meter.handle_timer = failing
    local._fire(server.process.clock.now())
    assert local._retry is not None
    local._retry.cancel()
    local._ask_again(server.process.clock.now())
    assert local._timer is not None, "its deadline is armed"
    assert (await client.ask("ping"))["type"] == "pong"


async def test_a_step_that_cannot_be_sent_is_asked_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = await started_sessions(start_server)
    live = server.process.live
    call, failed = live._commit_call, list[str]()

    def failing(step: Any, node: str) -> Any:
        if step.before.identity.session_id == "chat-1" and not failed:
            failed.append(step.before.key)
            raise TypeError("a bug of ours")
        return call(step, node)

    monkeypatch.setattr(live, "_commit_call", failing)
    refused = await client.ask("pause", session_id="chat-1")
    assert (refused["type"], refused["code"], refused["retryable"]) == (
        "error",
        "unavailable",
        True,
    )
    assert failed
    await reaches(server, "chat-1", Phase.PAUSED)
