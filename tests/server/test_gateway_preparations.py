"""A preparation and a start race on two processes in every order.

Both are of one session. Each asks Redis and Postgres several times. The tests try every order of
these questions: once a preparation is confirmed, the session runs as prepared or not at all; where
the start was faster, the preparation is refused.
"""

import asyncio
import itertools
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec
import pytest

from protocol.wire import messages
from protocol.wire.errors import ProtocolError, ServiceError
from protocol.wire.money import format_credits
from server.access.principals import Principal
from server.gateway.heartbeats import Heartbeats
from server.gateway.preparations import SessionExistsError, prepare
from server.usage.months import Months
from server.usage.reported_minutes import MinuteReport, ReportedMinutes
from storage.postgres.database import Database
from storage.postgres.usage import Usage
from storage.redis.live import Live
from storage.redis.scripts import Script
from storage.rows.sessions import SessionPrepared
from tests.fixtures.server import StartServer, TestServer
from tests.server.minutes import minute_at

ACTOR: ContextVar[str] = ContextVar("actor", default="")
"""The actor of the current task; only questions of named actors are held up."""
PRICE = 7_000_000
CARD_PRICE = "1"


class OrderedTurns:
    """Lets actors ask one question at a time, in the test's order."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[asyncio.Future[None]]] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.asked: dict[str, int] = {}
        self._changed = asyncio.Event()

    def begin(self, actor: str, work: Coroutine[Any, Any, Any]) -> None:
        """Has an actor begin its work."""
        token = ACTOR.set(actor)
        self.waiting[actor], self.asked[actor] = [], 0
        self.tasks[actor] = asyncio.create_task(work)
        self.tasks[actor].add_done_callback(lambda _: self._changed.set())
        ACTOR.reset(token)

    async def question(self) -> None:
        """Waits for the turn of the current actor."""
        actor = ACTOR.get()
        if actor in self.waiting and not self.tasks[actor].done():
            self.asked[actor] += 1
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting[actor].append(turn)
            self._changed.set()
            await turn

    async def ready(self, actor: str) -> bool:
        """Waits until an actor asks a question; False: the actor is done."""
        while not self.waiting[actor]:
            if self.tasks[actor].done():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def step(self, actor: str) -> None:
        """Lets an actor's next question be answered, up to the following one."""
        if await self.ready(actor):
            self.waiting[actor].pop(0).set_result(None)
            await self.ready(actor)

    async def finish(self, actor: str) -> Any:
        """Answers all questions of an actor; returns the outcome or the error."""
        while await self.ready(actor):
            await self.step(actor)
        return (await asyncio.gather(self.tasks[actor], return_exceptions=True))[0]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> OrderedTurns:
    """Holds up every question to Redis and to Postgres."""
    turns, inside = OrderedTurns(), ContextVar("inside", default=False)

    def held(function: Any) -> Any:
        async def ask(*args: Any, **options: Any) -> Any:
            if inside.get():
                return await function(*args, **options)
            await turns.question()
            token = inside.set(True)
            try:
                return await function(*args, **options)
            finally:
                inside.reset(token)

        return ask

    for owner, name in ((Script, "__call__"), (Live, "commit"), (Live, "ask"), (Database, "_run")):
        monkeypatch.setattr(owner, name, held(getattr(owner, name)))
    return turns


class PreparingRace(NamedTuple):
    """One process prepares a session that the user starts on another."""

    here: TestServer
    there: TestServer
    turns: OrderedTurns

    def wanted(self, name: str, kind: str = "chat", **changes: Any) -> SessionPrepared:
        process = self.here.process
        terms = process.rates.terms(kind)
        terms = msgspec.structs.replace(terms, price_micros=PRICE if terms.price_micros else 0)
        prepared = SessionPrepared(
            tenant=f"user:{name}",
            session_id=name,
            user_id=name,
            org_id=None,
            account_id=name,
            counterpart_id=None,
            kind=kind,
            terms=msgspec.structs.replace(terms, session_cap_ms=3_600_000),
            expires_at=process.clock.now() + 60_000,
        )
        return msgspec.structs.replace(prepared, **changes)

    def preparing(self, wanted: SessionPrepared) -> Coroutine[Any, Any, Any]:
        return prepare(self.here.process, wanted, False)

    def starting(self, name: str) -> Coroutine[Any, Any, messages.Session]:
        principal = Principal("user", name, None, name, f"user:{name}")
        start = messages.Start(session_id=name, kind="chat")
        return Heartbeats(self.there.process).beat(principal, name, start)

    def reporting(self, name: str) -> Coroutine[Any, Any, Any]:
        process = self.there.process
        usage = Usage.over(process.records)
        reported = MinuteReport(
            user_id=name,
            org_id=None,
            account_id=name,
            session_id=name,
            kind="recording",
            minute_at=minute_at(self.there),
            seconds=60,
            needs_preparation=False,
        )
        return ReportedMinutes(process, usage, Months(process)).take(reported)

    async def identity(self, name: str) -> Any:
        found = await self.there.process.live.attach(f"user:{name}", name, read_only=True)
        return None if found is None else found.session.identity


@pytest.fixture
async def scene(start_server: StartServer, turns: OrderedTurns) -> PreparingRace:
    return PreparingRace(await start_server(), await start_server(), turns)


def orders(first: int, second: int) -> list[tuple[int, ...]]:
    """All orders in which two actors can ask these numbers of questions.

    An order says before which of the second actor's questions each of the first actor's is asked.
    The first actor's first question is asked at once or with its second.
    """
    found = itertools.combinations_with_replacement(range(second + 1), first)
    return [order for order in found if order[0] in (0, order[1])]


async def both(
    scene: PreparingRace, order: tuple[int, ...], prepares: Any, starts: Any
) -> tuple[Any, Any]:
    """Runs both in an order; returns their outcomes."""
    turns = scene.turns
    turns.begin("prepare", prepares)
    turns.begin("start", starts)
    done = 0
    for position in order:
        while done < position:
            await turns.step("start")
            done += 1
        await turns.step("prepare")
    started = await turns.finish("start")
    return await turns.finish("prepare"), started


async def test_every_order_of_preparation_and_start(scene: PreparingRace) -> None:
    turns, seen = scene.turns, set()
    turns.begin("prepare", scene.preparing(scene.wanted("p")))
    turns.begin("start", scene.starting("s"))
    await turns.finish("prepare")
    await turns.finish("start")
    asked = (turns.asked["prepare"], turns.asked["start"])
    assert asked >= (3, 4)
    for number, order in enumerate(orders(*asked)):
        name = f"u{number}"
        wanted = scene.wanted(name)
        prepared, started = await both(scene, order, scene.preparing(wanted), scene.starting(name))
        is_bound = not isinstance(prepared, BaseException)
        assert is_bound or isinstance(prepared, SessionExistsError), (order, prepared)
        if isinstance(started, BaseException):
            assert isinstance(started, ServiceError), (order, started)
            assert started.retryable
            started = await scene.starting(name)
            seen.add("refused")
        price = format_credits(PRICE) if is_bound else CARD_PRICE
        assert started.credits_per_minute == price, (order, prepared, started)
        identity = await scene.identity(name)
        assert (identity.terms == wanted.terms) == is_bound, (order, identity)
        seen.add("bound" if is_bound else "late")
        if is_bound:
            with pytest.raises(SessionExistsError):  # it already runs unprepared
                await scene.preparing(msgspec.structs.replace(wanted, kind="recording"))
        else:
            assert await scene.here.process.records.session(f"user:{name}", name) is None
    assert seen == {"bound", "late", "refused"}


async def test_every_order_of_preparation_and_reported_minute(scene: PreparingRace) -> None:
    turns, seen = scene.turns, set()
    minute_at(scene.there)  # which may move the clock
    scene.here.process.clock._offset_ms = scene.there.process.clock._offset_ms
    turns.begin("prepare", scene.preparing(scene.wanted("p", "recording")))
    turns.begin("start", scene.reporting("s"))
    await turns.finish("prepare")
    await turns.finish("start")
    asked = (turns.asked["prepare"], turns.asked["start"])
    # Where both of the preparation's last questions are asked close together, or the last one at
    # the end: the others are tried with a metered start above, and are very many here.
    tried = [one for one in orders(*asked) if one[2] - one[1] < 2 or one[2] == asked[1]]
    for number, order in enumerate([one for one in tried if one[0] == one[1]]):
        name = f"u{number}"
        wanted = scene.wanted(name, "recording")
        prepared, reported = await both(
            scene, order, scene.preparing(wanted), scene.reporting(name)
        )
        assert not isinstance(reported, BaseException), (order, reported)
        is_bound = not isinstance(prepared, BaseException)
        assert is_bound or isinstance(prepared, SessionExistsError), (order, prepared)
        identity = await scene.identity(name)
        assert (identity.terms == wanted.terms) == is_bound, (order, identity)
        seen.add(is_bound)
    assert seen == {True, False}


@pytest.mark.parametrize("step", range(12))
async def test_start_from_before_loss_is_refused(scene: PreparingRace, step: int) -> None:
    turns, name = scene.turns, "ann"
    turns.begin("start", scene.starting(name))
    for _ in range(step):
        await turns.step("start")
    wanted = scene.wanted(name)
    outcomes: Any = await asyncio.gather(scene.preparing(wanted), return_exceptions=True)
    live = scene.here.process.live
    # Redis has lost the preparation; the loss was found, and is over.
    await live.redis.delete(live.keys.prepared(f"user:{name}", name))
    await live.redis.set(live.keys.epoch(live.keys.partition(f"user:{name}")), "another")
    started = await turns.finish("start")
    if isinstance(started, ProtocolError):
        started = await scene.starting(name)
    is_late = isinstance(outcomes[0], SessionExistsError)
    assert started.credits_per_minute == (CARD_PRICE if is_late else format_credits(PRICE))


@pytest.mark.parametrize("flag", ["epoch", "recovering", "unsettled"])
async def test_nothing_is_prepared_while_sessions_are_put_back(
    scene: PreparingRace, flag: str
) -> None:
    live, wanted = scene.here.process.live, scene.wanted("ann")
    key = getattr(live.keys, flag)(live.keys.partition(wanted.tenant))
    await (live.redis.delete(key) if flag == "epoch" else live.redis.set(key, "1"))
    with pytest.raises(ServiceError, match="recovers from a loss"):
        await scene.preparing(wanted)
    # It was noted where nothing is lost: the same again is answered as soon as that is over.
    partition = live.keys.partition(wanted.tenant)
    keys = [live.keys.recovering(partition), live.keys.unsettled(partition)]
    await live.redis.delete(*keys)
    assert await scene.preparing(wanted) == (wanted, False)
    assert (await scene.starting("ann")).credits_per_minute == format_credits(PRICE)
