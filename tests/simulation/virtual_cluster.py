"""A virtual cluster: its processes, its clock, and all their faults."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from redis.exceptions import NoScriptError

from protocol.metering.steps import Step
from server import limits as server_limits
from server.runtime.settings import Settings
from storage.redis.keys import CLOCK, NODES
from storage.redis.scripts import Call
from storage.redis.step_outcomes import outcome_of
from tests.simulation.people import RATES
from tests.simulation.postgres_links import PostgresServer
from tests.simulation.processes import (
    CALM_BEAT_MS,
    PARTITIONS,
    FlusherHost,
    Host,
    ServerHost,
    make_task,
)
from tests.simulation.redis_links import Command, Mishap
from tests.simulation.redis_wire import RedisWire
from tests.simulation.virtual import VirtualLoop
from tests.simulation.virtual_redis import VirtualRedisServer

TURNS_PER_INSTANT_MAX = 5_000
"""Turns of the loop in one virtual millisecond. More of them count as an endless loop."""
STEPS_PER_INSTANT_MAX = 400
"""Steps of all sessions that follow from one action in one virtual millisecond, at most."""
BRISK_MS = 15_000
"""How long processes send a heartbeat every second after a fault."""
MINUTES_MS = 600_000
"""Longer than any single period in which Redis is slow."""
RECALL, RELOAD = b'{"recall":true}', b'{"reload":true}'
"""Messages on an account's channel: a recall of what sessions merely hold, and a request to read
the account anew."""
UNSETTLED_MS = 6_000
"""How long after a fault every message takes to reach every process."""
RECONNECTED_MS = 1_000
"""How soon after its loss a process has its line to Redis again."""
SETTINGS = Settings(
    env="development",
    redis_url="unix:///nowhere",
    database_url="postgresql:///nowhere",
    jwt_secret=SecretStr("a-secret-of-at-least-thirty-two-bytes"),
    data_dir=Path("/nowhere"),
    partitions=PARTITIONS,
)


class LivelockError(AssertionError):
    """Callbacks run without end within one instant."""


class VirtualCluster:
    """Processes on one Redis and one Postgres, in virtual time."""

    def __init__(self, loop: VirtualLoop, wire: RedisWire, postgres: PostgresServer) -> None:
        loop.set_task_factory(make_task)  # type: ignore[arg-type]
        self.loop = loop
        self.clock = loop.clock
        self.postgres = postgres
        self.redis = VirtualRedisServer(wire, self.clock)
        self.redis.carried = self._carried
        self.servers: list[ServerHost] = []
        self.flushers: list[FlusherHost] = []
        self.died: Callable[[Host], None] = lambda host: None
        self.rates = RATES
        """The rate card of the processes to come."""
        self.prepared: Callable[[ServerHost], None] = lambda host: None
        """Called with every process before its start, for parts beside the process's own."""
        self.stepped: Callable[[Host, Step, str, Any, bool], None] = lambda *told: None
        """Called at once with every answer of Redis to a step.

        The others are the process that made the step, the process in whose name it is made, and
        whether it was made alone."""
        self.flushed: Callable[[int, str, Any], None] = lambda partition, entry_id, records: None
        self.news: dict[tuple[tuple[str, str], str], list[dict[str, Any]]] = {}
        """Published messages about movements of accounts, by account and entry."""
        self.told: list[tuple[bytes, bytes]] = []
        """Channels and messages that Redis has published since its previous answer."""
        self.recalls: Counter[tuple[str, str]] = Counter()
        """How often the sessions of an account were recalled for an operation."""
        self.idle_news: list[Command] = []
        """Commands that changed nothing, and made processes read an account anew."""
        self.script_errors: list[Exception] = []
        """Errors of scripts; each is a bug."""
        self.redis_is_away = False
        self.postgres_is_away = False
        self.was_away = False
        """Redis or Postgres was unreachable for a while."""
        self.tended_since = 0
        """Since when a process can sweep what is due to end in Redis."""
        self.unsettled_until = 0
        self.slow_until = 0
        self.began_slowly = False
        """A process started while Redis was slow.

        Such a process learns the time from the heartbeats of others, late by as long as these took
        to arrive. Other processes learn the time from that process in turn.
        """
        self._dropped_at = -RECONNECTED_MS
        self.stays_brisk = False
        """Processes send a heartbeat every second in any case."""
        self._brisk_until = 0
        self._is_brisk = True
        self._steps: dict[bytes, tuple[Host, Step, str]] = {}
        self._steps_at = (0, 0)
        wire.published = self._published
        self.redis.proofs = self._proofs

    @property
    def now(self) -> int:
        """The instant, in true time."""
        return self.clock.now_ms

    @property
    def nodes(self) -> list[ServerHost]:
        """The living processes."""
        return [node for node in self.servers if node.is_alive]

    @property
    def answered_since(self) -> int:
        """Since when some process got answers to all requests to Redis."""
        since_s = min((node.line.answered_since_s for node in self.nodes), default=self.loop.time())
        return self.now - int((self.loop.time() - since_s) * 1000)

    # --- Time ------------------------------------------------------------------------

    async def advance(self, ms: int) -> None:
        """Lets this much time pass, from one due timer to the next."""
        until = self.now + ms
        turns, last_at = 0, -1
        while True:
            await self.loop.quiet()
            self._calm_down()
            at = self.loop.next_at
            if at is None or at > until:
                break
            self.clock.now_ms = max(at, self.now)
            turns = turns + 1 if self.now == last_at else 0
            last_at = self.now
            if turns > TURNS_PER_INSTANT_MAX:
                raise LivelockError(f"endless turns at {self.now}")
        self.clock.now_ms = until
        await self.loop.quiet()

    async def settle(self) -> None:
        """Runs everything that does not wait for time."""
        await self.loop.quiet()

    async def finished(self, task: "asyncio.Task[Any]") -> Any:
        """A task's result.

        The clock is set forward while the task waits.
        """
        await self.loop.quiet()
        while not task.done():
            at = self.loop.next_at
            assert at is not None, "it waits for nothing"
            await self.advance(max(0, at - self.now))
        return None if task.cancelled() else task.result()

    # --- Heartbeats --------------------------------------------------------------------

    def _proofs(self) -> dict[str, int]:
        """The proofs of life that Redis's next command carries, by process.

        Without a fault, heartbeats are not sent one by one, and these proofs stand for them.
        """
        if self._is_brisk:
            return {}
        return {node.process.node: node.proof_at(self.now) for node in self.nodes}

    def stir(self, ms: int = BRISK_MS) -> None:
        """Notes a fault: processes send heartbeats each second and sweep the dead."""
        self.redis.carry([])
        self.unsettled_until = max(self.unsettled_until, self.now + UNSETTLED_MS)
        self._brisk_until = max(self._brisk_until, self.now + ms)
        if not self._is_brisk:
            self._pace(brisk=True)
            for node in self.nodes:
                node.beat_now()

    def _calm_down(self) -> None:
        if not self._is_brisk or self.stays_brisk or self.now < self._brisk_until:
            return
        known = {name.decode() for name in self.redis.ask("ZRANGE", NODES, 0, -1)}
        living = {node.process.node for node in self.nodes}
        is_slow = any(host.line.delays for host in self.hosts)
        if self.redis_is_away or self.postgres_is_away or is_slow or known != living:
            self._brisk_until = self.now + 5_000
            return
        self._pace(brisk=False)

    def _pace(self, *, brisk: bool) -> None:
        self._is_brisk = brisk
        beat_ms, beats = (1_000, 60) if brisk else (CALM_BEAT_MS, 1)
        setattr(server_limits, "PRESENCE_BEAT_MS", beat_ms)  # noqa: B010
        setattr(server_limits, "RECONCILE_BEATS", beats)  # noqa: B010

    # --- Processes -----------------------------------------------------------------------

    async def serve(self, name: str) -> ServerHost:
        """Starts one more process that serves sockets."""
        host = ServerHost(self.loop, self.redis, self.postgres, name, SETTINGS, self.rates)
        self._place(host)
        live = host.process.live
        call = live._commit_call

        def noted(step: Step, node: str) -> Call:
            keys, arguments = call(step, node)
            self._steps[arguments[-1]] = host, step, node
            if len(self._steps) > 1_000:
                del self._steps[next(iter(self._steps))]
            return keys, arguments

        live._commit_call = noted  # type: ignore[method-assign]
        if not self.nodes:
            self.tended_since = self.now
        self.began_slowly |= self.now < self.slow_until
        host.began_late = any(node.line.is_late for node in self.nodes) or self._is_unheard()
        self.servers.append(host)
        host.do(self.prepared, host)
        self.stir()
        await self.finished(host.act(host.process.start()))
        return host

    def flush(self, name: str, pace_ms: int) -> FlusherHost:
        """Starts one more flusher."""
        host = FlusherHost(self.loop, self.redis, self.postgres, name, pace_ms)
        self._place(host)
        self.flushers.append(host)
        host.begin(host.run())
        return host

    def _place(self, host: Host) -> None:
        host.line.is_away = self.redis_is_away
        host.postgres.is_away = self.postgres_is_away
        host.died = self._died

    def _died(self, host: Host) -> None:
        self.stir()
        self.died(host)

    @property
    def hosts(self) -> list[Host]:
        """Every living process."""
        return [host for host in (*self.servers, *self.flushers) if host.is_alive]

    def stop(self) -> None:
        """Kills all processes."""
        self.died = lambda host: None
        for host in self.hosts:
            host.died = lambda host: None
            host.kill()
        self.redis.wire.published = lambda channel, message: None

    # --- Faults ---------------------------------------------------------------------------

    def lose_redis(self) -> None:
        """Redis becomes unreachable."""
        self.stir()
        self.redis_is_away = self.was_away = True
        for host in self.hosts:
            host.line.cut()

    def find_redis(self) -> None:
        """Redis becomes reachable again."""
        self.redis_is_away = False
        self.tended_since = self.now
        for host in self.hosts:
            host.line.is_away = False
        self.stir()

    def cut_off(self, host: Host, ms: int) -> None:
        """Redis is unreachable from one process for a while."""
        self.stir()
        self.unsettled_until = max(self.unsettled_until, self.now + ms)
        host.line.cut()

        def find() -> None:
            if host.is_alive:
                host.line.is_away = self.redis_is_away
                self.stir()

        self.loop.call_later(ms / 1000, find)

    def slow_redis(self, delays: list[int]) -> None:
        """Answers of Redis take this long, in ms.

        Without a delay they come at once.
        """
        self.stir()
        self.slow_until = self.now + (MINUTES_MS if delays else BRISK_MS)
        for host in self.hosts:
            host.line.delays = delays

    def lose_postgres(self) -> None:
        """Postgres becomes unreachable."""
        self.postgres_is_away = self.was_away = True
        for host in self.hosts:
            host.postgres.is_away = True

    def find_postgres(self) -> None:
        """Postgres becomes reachable again."""
        self.postgres_is_away = False
        for host in self.hosts:
            host.postgres.is_away = False

    def _is_unheard(self) -> bool:
        """Whether no process hears a newcomer, and Redis has forgotten the time."""
        is_away = self.now < self._dropped_at + RECONNECTED_MS
        (is_known,) = self.redis.wire.ask_all([("EXISTS", CLOCK)])
        return is_away and not is_known

    def drop_lines(self) -> None:
        """Every connection to Redis breaks, and can be made anew at once."""
        self._dropped_at = self.now
        for host in self.hosts:
            host.line.cut()
            host.line.is_away = self.redis_is_away

    def mishap(self, host: Host, where: str, mishaps: Sequence[Mishap]) -> None:
        """Sets the faults of the next messages of a process."""
        line = host.line if where == "redis" else host.postgres
        line.mishaps.extend(mishaps)
        self.stir()

    @property
    def has_mishaps(self) -> bool:
        """Whether a message to come has a fault, or Postgres is slow."""
        return any(
            host.line.mishaps
            or host.line.delays
            or host.postgres.mishaps
            or host.postgres.slow_calls
            for host in self.hosts
        )

    # --- Messages -------------------------------------------------------------------------

    def _published(self, channel: bytes, message: bytes) -> None:
        if b'"credit":' in message:
            credit: dict[str, Any] = json.loads(message)["credit"]
            key = _account_of(channel), credit["entry_id"]
            self.news.setdefault(key, []).append(credit)
        self.told.append((channel, message))
        for node in self.servers:
            for listener in node.line.ears:
                listener.publish(channel, message)

    def _carried(self, commands: Sequence[Command], answers: list[Any]) -> None:
        """Inspects commands to Redis and answers before the next command."""
        made, told = [], self.told
        if len(commands) == 1 and commands[0][-1] not in self._steps:
            recalled = [channel for channel, message in told if message == RECALL]
            self.recalls.update(map(_account_of, recalled))
            if answers[0] == 0 and any(message == RELOAD for _, message in told):
                self.idle_news.append(commands[0])
        for command, answer in zip(commands, answers, strict=True):
            if command[0] in ("EVAL", "EVALSHA") and isinstance(answer, Exception):
                if not isinstance(answer, NoScriptError):
                    self.script_errors.append(answer)
            elif command[0] in ("EVAL", "EVALSHA") and isinstance(command[-1], bytes):
                known = self._steps.get(command[-1])
                if known is not None:
                    made.append((known, outcome_of(known[1], answer)))
            elif command[0] == "XREADGROUP" and answer and not isinstance(answer, Exception):
                for key, entries in answer.items():
                    for entry_id, fields in entries:
                        if fields:
                            self.flushed(int(key[2:3]), entry_id.decode(), fields)
        if made:
            self._count(len(made))
        for (host, step, node), outcome in made:
            self.stepped(host, step, node, outcome, len(made) == 1)
        self.told.clear()

    def begin_action(self) -> None:
        """Counts steps anew.

        A crowd that starts within one millisecond makes many of them.
        """
        self._steps_at = (self.now, 0)

    def _count(self, steps: int) -> None:
        at, count = self._steps_at
        self._steps_at = self.now, (count if at == self.now else 0) + steps
        if self._steps_at[1] > STEPS_PER_INSTANT_MAX:
            # Noted also for the auditor: the caller takes the error for a failure that may pass.
            self.script_errors.append(LivelockError(f"endless steps at {self.now}"))
            raise self.script_errors[-1]


def _account_of(channel: bytes) -> tuple[str, str]:
    """The account of a channel: tenant and id."""
    tenant, _, account_id = channel.decode().split(":", 2)[2].partition("/")
    return tenant, account_id
