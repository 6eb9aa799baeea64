"""The driver: runs a world by chance or by given actions.

Chance follows from a seed. The auditor audits the world after each action. A run that breaks a
promise ends there, and its outcome has the actions that led there.
"""

import contextlib
import hashlib
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from server.sessions.local_session import LocalSession
from tests.simulation import evidence
from tests.simulation.actions import Action, Performer
from tests.simulation.auditor import Auditor
from tests.simulation.chance import Chance
from tests.simulation.mixes import bounds
from tests.simulation.money_client import MoneyClient
from tests.simulation.postgres_links import PostgresServer
from tests.simulation.processes import paced
from tests.simulation.redis_wire import RedisWire
from tests.simulation.verdict import Verdict
from tests.simulation.virtual import VirtualLoop, run
from tests.simulation.virtual_cluster import VirtualCluster
from tests.simulation.virtual_redis import REACHED, ScriptChange, virtual_scripts
from tests.simulation.world import World

MINUTE_MS = 60_000
LOOK_MS = 20 * MINUTE_MS
"""Longest time between two audits. Redis forgets an ended session after an hour."""
HEALED_MS = 90_000
"""Time after the last fault by which everything must be as it should be."""
GONE_MS = 10 * MINUTE_MS
"""Time after the last client has gone by which every session must have ended."""


@dataclass
class RunOutcome:
    """The outcome of a run."""

    seed: int
    actions: list[Action] = field(default_factory=list)
    failure: BaseException | None = None
    audits: int = 0
    virtual_ms: int = 0
    real_s: float = 0.0
    commands: int = 0
    sessions: int = 0
    digest: str = ""
    """Digest of everything that clients received: the same for the same actions."""
    reached: set[int] = field(default_factory=set)
    """Pieces of scripts that were reached, if ``tell_reached`` was set; see ``virtual_scripts``."""
    named: str = ""
    """The value of ``complaint``, for a failure that has lost its traceback."""

    @property
    def complaint(self) -> str:
        """The failure in one line, without figures that every action changes."""
        error = self.failure
        if error is None or self.named:
            return self.named
        while error.__cause__ is not None:
            error = error.__cause__
        frames, trace = [], error.__traceback__
        while trace is not None:
            frames.append((Path(trace.tb_frame.f_code.co_filename).stem, trace.tb_lineno))
            trace = trace.tb_next
        name, line = frames[-1] if frames else ("", 0)
        return f"{type(error).__name__} in {name}:{line}"


class Laboratory:
    """A Redis and a Postgres that run one world after another."""

    def __init__(self, redis_path: str, dsn: str) -> None:
        self._redis_path = redis_path
        self.wire = RedisWire(redis_path)
        self.postgres = PostgresServer(dsn)

    def reconnect(self) -> None:
        """Opens a new connection to Redis after an unread answer."""
        self.wire.close()
        self.wire = RedisWire(self._redis_path)

    def close(self) -> None:
        """Closes both connections."""
        self.wire.close()
        self.postgres.close()

    @contextlib.contextmanager
    def emptied(
        self, mutations: Sequence[ScriptChange] = (), *, tell_reached: bool = False
    ) -> Iterator[None]:
        """Empties both engines, and runs the block in virtual time."""
        self.wire.ask("FLUSHALL")
        self.wire.ask("SCRIPT", "FLUSH")
        self.postgres.empty()
        with (
            TemporaryDirectory(prefix="taximeter-lua-") as lua,
            virtual_scripts(Path(lua), mutations, tell_reached=tell_reached),
            paced(),
            mock.patch.object(
                LocalSession, "__hash__", lambda local: zlib.crc32(local.key.encode())
            ),
        ):
            yield

    def run(
        self,
        seed: int,
        minutes: int,
        *,
        actions: Sequence[Action] | None = None,
        mutations: Sequence[ScriptChange] = (),
        mix: str = "",
        tell_reached: bool = False,
        started: Callable[[Performer], None] = lambda performer: None,
    ) -> RunOutcome:
        """Runs a seed in the world of a mix (``mixes``).

        The run takes ``minutes`` of virtual time. With ``actions``, runs these in the world of the
        seed instead.
        """
        outcome = RunOutcome(seed)
        began_at, commands = time.perf_counter(), self.wire.commands
        with self.emptied(mutations, tell_reached=tell_reached), bounds(mix):

            async def main(loop: VirtualLoop) -> None:
                runner = _Runner(loop, self.wire, self.postgres, outcome, mix)
                published = self.wire.published

                def noted(channel: bytes, message: bytes) -> None:
                    if channel == REACHED:
                        outcome.reached.add(int(message))
                    else:
                        published(channel, message)

                self.wire.published = noted
                await runner.run(minutes, actions, started)

            try:
                run(main)
            except Exception as error:
                outcome.failure = error
        outcome.real_s = time.perf_counter() - began_at
        outcome.commands = self.wire.commands - commands
        return outcome


class _Runner:
    """One run."""

    def __init__(
        self,
        loop: VirtualLoop,
        wire: RedisWire,
        postgres: PostgresServer,
        outcome: RunOutcome,
        mix: str,
    ) -> None:
        self.outcome = outcome
        self.chance = Chance(outcome.seed, mix)
        loop.clock.now_ms = self.chance.begin_at
        self.cluster = VirtualCluster(loop, wire, postgres)
        self.cluster.stays_brisk = mix == "busy"
        people = [*self.chance.everybody, self.chance.member, self.chance.loner]
        self.world = World(self.cluster, people)
        self.money_client = MoneyClient(self.world)
        self.auditor = Auditor(self.world, self.money_client)
        self.performer = Performer(self.world, self.money_client)

    async def run(
        self,
        minutes: int,
        actions: Sequence[Action] | None,
        started: Callable[[Performer], None],
    ) -> None:
        began_at = self.world.now
        try:
            await self._begin()
            started(self.performer)
            if actions is None:
                await self._by_chance(began_at + minutes * MINUTE_MS)
            else:
                for action in actions:
                    await self.perform(action)
            await self._end()
        finally:
            self.outcome.virtual_ms = self.world.now - began_at
            self.outcome.audits = self.auditor.audits
            self.outcome.sessions = len(self.world.session_logs)
            told = [(client.name, client.messages) for client in self.world.clients]
            self.outcome.digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
            self.cluster.stop()
            await self.cluster.settle()

    async def _begin(self) -> None:
        """The organisation, its limits, one process and one flusher."""
        ann = self.chance.everybody[0]
        records = self.cluster.postgres.records
        ask = self.cluster.postgres.ask
        ask(
            lambda: records.put_organization(
                ann.tenant, ann.org_id or "", monthly_hours_limit=0.5, timezone=ann.zone
            )
        )
        ask(lambda: records.put_member(ann.tenant, ann.user_id, monthly_hours_limit=0.2))
        await self.cluster.serve("node.0")
        self.cluster.flush("flusher0", self.chance.flush_ms)
        await self._advance(10_000)

    async def _by_chance(self, until: int) -> None:
        while self.world.now < until:
            for action in self.chance.next(self.performer):
                await self.perform(action)

    async def perform(self, action: Action) -> None:
        """Performs an action and audits the world.

        If no process lives then, the driver starts one.
        """
        self.outcome.actions.append(action)
        self.cluster.begin_action()
        if action.name == "wait":
            await self._advance(action.parameters["ms"])
        else:
            await self.performer.perform(action)
            self.audit()
        while not self.world.nodes:
            await self._advance(1_000)
            if not (self.cluster.redis_is_away or self.cluster.postgres_is_away):
                # When no living process knows the cluster time, the next one takes the time of
                # Redis. The world has only one time and cannot follow. Therefore the clock of Redis
                # is set right before a cluster starts anew.
                self.cluster.clock.redis_ahead_ms = 0
                await self.cluster.serve(f"node.x{len(self.cluster.servers)}")
                self.audit()

    async def _advance(self, ms: int) -> None:
        while ms > 0:
            part_ms = min(ms, LOOK_MS)
            ms -= part_ms
            await self.cluster.advance(part_ms)
            self.audit()

    def audit(self) -> None:
        """Runs the auditor."""
        evidence.check(self.auditor, self.auditor.audit())

    # --- The end ------------------------------------------------------------------------

    async def _end(self) -> None:
        """Ends all faults, lets all clients go, and gives the verdict."""
        cluster, world = self.cluster, self.world
        for host in cluster.hosts:
            host.line.mishaps.clear()
            host.line.delays = []
            host.postgres.mishaps.clear()
        if cluster.redis_is_away:
            cluster.find_redis()
        if cluster.postgres_is_away:
            cluster.find_postgres()
        if not any(host.is_alive for host in cluster.flushers):
            cluster.flush("flusher-last", 1_000)
        await self._advance(HEALED_MS)
        for client in list(world.clients):
            if client.watched:
                await world.look_away(client)
            if not client.is_cut:
                await world.close(client)
        await self._each(self._again)
        await self.performer.reports.end()
        await self._until_ended()
        await self._each(self._void)
        await self._advance(30_000)
        await self._flush()
        self.audit()
        Verdict(self.auditor, self.auditor.audit()).give()

    async def _flush(self) -> None:
        for host in self.cluster.flushers:
            if host.is_alive:
                await self.cluster.finished(host.act(host.flush()))

    async def _each(self, work: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(20):
            if await work():
                return
            # By the clock of Redis the record may be far behind. Then nothing is loaded from it,
            # and a flusher of the world may rest for longer than this loop waits.
            await self._flush()
            await self._advance(5_000)
        raise AssertionError(f"{work} does not come to an end")

    async def _again(self) -> bool:
        """Repeats every request without an answer until it has one.

        Redis takes the adjustments that it did not take before.
        """
        node = self.world.nodes[0]
        late = await self.cluster.finished(node.act(node.ledger.apply_adjustments()))
        unknown = [
            transfer
            for transfer in self.money_client.transfers.values()
            if transfer.state == "unknown"
        ]
        for transfer in unknown:
            await self.money_client.do(node, transfer)
            # An answer is judged by what was done before it, not by what is repeated after it.
            self.audit()
        return not late and not any(transfer.state == "unknown" for transfer in unknown)

    async def _void(self) -> bool:
        """Voids every hold that is still open, until none is."""
        node, cluster = self.world.nodes[0], self.cluster
        # Redis may have come back without a hold, when the hold is older than what is put back
        # after a loss. Then its account reserves the amount, and only Postgres has the hold until a
        # request asks for it. What has ended in Redis must be recorded first, for nothing is loaded
        # from a late record.
        await self._flush()
        held = {(hold["tenant"], hold["id"]) for hold in self.auditor.audit().holds}
        rows = cluster.postgres.fetch(
            "SELECT tenant, hold_id FROM credit_holds WHERE state = 'open'"
        )
        held |= {(row["tenant"], row["hold_id"]) for row in rows}
        for tenant, hold_id in sorted(held):
            await cluster.finished(node.act(node.ledger.void(tenant, hold_id)))
        return not held

    async def _until_ended(self) -> None:
        until = self.world.now + GONE_MS
        while self.auditor.audit().live:
            assert self.world.now < until, self.auditor.audit().live
            await self._advance(15_000)
