"""Actions: what happens in a world, as data to save and perform.

An action names everything that it concerns. A list of actions therefore means the same after some
of them were left out: an action that concerns a missing client, process or session does nothing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocol.metering.states import Event
from tests.simulation.clients import SimulatedClient
from tests.simulation.expectations import Expectations
from tests.simulation.money_client import MoneyClient, Transfer
from tests.simulation.people import ALLOTMENTS, KINDS
from tests.simulation.processes import Host, ServerHost
from tests.simulation.redis_links import Mishap
from tests.simulation.reports import Reports
from tests.simulation.state import look
from tests.simulation.world import World


@dataclass(frozen=True)
class Action:
    """One thing that happens in a world."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.parameters.items())])

    def encoded(self) -> str:
        """The action as a line of JSON."""
        return json.dumps([self.name, self.parameters])

    @classmethod
    def decoded(cls, line: str) -> "Action":
        """The action in a line of JSON."""
        name, parameters = json.loads(line)
        return cls(name, parameters)


class Performer(Expectations):
    """Performs actions on a world."""

    def __init__(self, world: World, money_client: MoneyClient) -> None:
        self.world = world
        self.cluster = world.cluster
        self.money_client = money_client
        self.reports = Reports(world)
        self.snapshot: list[tuple[bytes, bytes]] | None = None
        """The data of a replica that has stopped following."""

    async def perform(self, action: Action) -> None:
        """Performs an action."""
        await getattr(self, f"do_{action.name}")(**action.parameters)

    # --- Lookups -------------------------------------------------------------------------

    def node(self, name: str) -> ServerHost | None:
        """The process of that name, if it is alive."""
        return next((node for node in self.world.nodes if node.name == name), None)

    def host(self, name: str) -> Host | None:
        """The server or flusher of that name, if it is alive."""
        return next((host for host in self.cluster.hosts if host.name == name), None)

    def _client(self, name: str, node: str) -> SimulatedClient | None:
        """The client of that name; a missing client is created."""
        client = self.world.client(name)
        server = self.node(node)
        if client is None and server is not None:
            client = SimulatedClient(server, name)
            self.world.clients.append(client)
        return client if client is not None and not client.is_cut else None

    async def _with(self, name: str, work: Callable[[SimulatedClient], Any]) -> None:
        client = self.world.client(name)
        if client is not None and not client.is_cut:
            await work(client)

    # --- Sessions -------------------------------------------------------------------------

    async def do_start(
        self,
        client: str,
        node: str,
        user: str,
        kind: str,
        session: str,
        backend: str = "",
        turns: int = 0,
    ) -> None:
        found, person = self._client(client, node), self.world.people[user]
        if found is not None and session not in self.world.session_logs:
            prepares = self.node(backend)
            await self.world.join(found, person, kind, session, backend=prepares, turns=turns)

    async def do_prepare(
        self,
        node: str,
        user: str,
        kind: str,
        session: str,
        confirmed: bool = True,
        waits: bool = True,
    ) -> None:
        """A backend prepares a session.

        ``confirmed``: whether the preparation must be confirmed. That is checked only with
        ``waits``, which waits for the answer.
        """
        found, person = self.node(node), self.world.people[user]
        if found is not None and not waits:
            self.world.prepare_soon(person, KINDS[kind], session, found)
            await self.cluster.settle()
        elif found is not None:
            made = await self.world.prepare(person, KINDS[kind], session, found)
            assert made == confirmed, (session, kind, made)

    async def do_join(self, client: str, node: str, session: str, last_seq: int | None) -> None:
        found, session_log = self._client(client, node), self.world.session_logs.get(session)
        if found is not None and session_log is not None:
            await self.world.join(
                found, session_log.person, session_log.terms.kind, session, last_seq
            )

    async def do_ask(self, client: str, session: str, event: str) -> None:
        await self._with(client, lambda one: self.world.request(one, session, Event(event)))

    async def do_operator(self, client: str, session: str) -> None:
        await self._with(client, lambda one: self.world.stop_from_outside(one, session))

    async def do_leave(self, client: str, session: str) -> None:
        await self._with(client, lambda one: self.world.leave(one, session))

    async def do_close(self, client: str) -> None:
        await self._with(client, self.world.close)

    async def do_cut(self, client: str) -> None:
        found = self.world.client(client)
        if found is not None:
            self.world.cut(found)

    async def do_mute(self, client: str) -> None:
        found = self.world.client(client)
        if found is not None:
            self.world.mute(found)

    async def do_watch(self, client: str, node: str, session: str) -> None:
        found = self._client(client, node)
        if found is not None and session in self.world.session_logs:
            await self.world.watch(found, session)

    async def do_look_away(self, client: str) -> None:
        await self._with(client, self.world.look_away)

    # --- Money and limits -----------------------------------------------------------------

    async def do_transfer(
        self,
        node: str,
        kind: str,
        user: str,
        entry: str,
        micros: int,
        hold: str = "",
        ttl_ms: int = 0,
        form: int = 0,
        often: int | None = None,
    ) -> None:
        found = self.node(node)
        if found is None or (
            kind in ("post", "void") and f"hold:{hold}" not in self.money_client.transfers
        ):
            return
        transfer = Transfer(kind, self.world.people[user], entry, micros, hold, ttl_ms, form, often)
        await self.money_client.do(found, transfer)

    async def do_again(self, node: str, entry: str) -> None:
        found, transfer = self.node(node), self.money_client.transfers.get(entry)
        if found is not None and transfer is not None:
            await self.money_client.do(found, transfer)

    async def do_allot(self, node: str, user: str, entry: str, tier: str) -> None:
        found = self.node(node)
        if found is not None:
            transfer = Transfer(
                "allot", self.world.people[user], entry, ALLOTMENTS[tier], tier=tier
            )
            await self.money_client.do(found, transfer)

    async def do_repeat(self, node: str, entry: str, form: int) -> None:
        found, transfer = self.node(node), self.money_client.transfers.get(entry)
        if found is not None and transfer is not None:
            await self.money_client.repeat(found, transfer, form)

    async def do_adjust(self, node: str, user: str, entry: str, minutes: int, month: str) -> None:
        found = self.node(node)
        if found is not None:
            await self.money_client.adjust(found, self.world.people[user], entry, minutes, month)

    async def do_limit(
        self, user: str, minutes: int | None, of_org: bool, overage: bool = False
    ) -> None:
        cluster = self.cluster
        if not (cluster.redis_is_away or cluster.postgres_is_away or cluster.has_mishaps):
            await self.world.limit(self.world.people[user], minutes, of_org=of_org, overage=overage)

    async def do_report(self, node: str, user: str, session: str, minute_at: int) -> None:
        found = self.node(node)
        if found is not None and (
            session not in self.world.session_logs or session in self.reports.taken
        ):
            await self.reports.report(found, self.world.people[user], session, minute_at)

    async def do_report_soon(self, node: str, user: str, session: str, minute_at: int) -> None:
        found = self.node(node)
        if found is not None:
            self.reports.report_soon(found, self.world.people[user], session, minute_at)
            await self.cluster.settle()

    async def do_heartbeat(self, node: str, user: str, session: str) -> None:
        """A client proves its life to any process by an HTTP heartbeat."""
        found = self.node(node)
        if found is not None and session in self.world.session_logs:
            beat = self.world.phones.beat(found, self.world.people[user], session)
            await self.cluster.finished(found.act(beat))

    async def do_intrude(self, client: str, node: str, user: str, session: str) -> None:
        found, person = self._client(client, node), self.world.people[user]
        session_log = self.world.session_logs.get(session)
        if found is None or session_log is None or session_log.person == person:
            return
        if session_log.person.tenant == person.tenant:
            await self.world.intrude(found, person, session)

    async def do_forget(self) -> None:
        """A day without activity passes, and Redis forgets unused data.

        Redis keeps the data that live sessions draw on.
        """
        cluster = self.cluster
        if cluster.redis_is_away or cluster.postgres_is_away or cluster.has_mishaps:
            return
        for host in cluster.flushers:
            if host.is_alive:
                await cluster.finished(host.act(host.flush()))
        if not look(cluster.redis).outbox:
            self.world.forgot_at = self.world.now
            cluster.redis.forget(("account", "member", "org", "free", "operations"))

    async def do_flush(self) -> None:
        """Every flusher flushes the outboxes to Postgres."""
        for host in self.cluster.flushers:
            if host.is_alive:
                await self.cluster.finished(host.act(host.flush()))

    async def do_expect(self, client: str, type: str, **fields: Any) -> None:  # noqa: A002
        """Checks fields of the last message of a type for a client.

        ``times``: the number of messages of that type.
        """
        found = self.world.client(client)
        assert found is not None, client
        messages = [message for message in found.messages if message["type"] == type]
        times = fields.pop("times", None)
        assert times is None or len(messages) == times, (client, type, messages)
        if times != 0:
            assert messages, (client, type, found.messages)
            told = {name: messages[-1].get(name) for name in fields}
            assert told == fields, (client, type, messages[-1])

    async def do_answered(self, entry: str, state: str) -> None:
        """Checks the outcome of a transfer."""
        assert self.money_client.transfers[entry].state == state, (
            entry,
            self.money_client.transfers[entry],
        )

    async def do_report_of(self, session: str, minute_at: int) -> None:
        """A client reports a minute of a metered session, and is refused."""
        answer = await self.reports.offer(self.world.nodes[0], session, minute_at)
        assert answer.metered, (session, answer)

    async def do_show(self, node: str, user: str) -> None:
        """A process opens an account without a session, and shows its balance."""
        found, person = self.node(node), self.world.people[user]
        if found is not None:
            await self.cluster.finished(found.act(found.registry.accounts.open(*person.account)))

    async def do_stray(self, user: str, kind: str) -> None:
        """Adds a missing session's id to a user's set of live sessions."""
        person, keys = self.world.people[user], self.world.nodes[0].process.live.keys
        name = f"{person.tenant}/stray{len(self.world.strays)}"
        self.world.strays.add(name)
        self.cluster.redis.ask("SADD", keys.running(person.tenant, person.user_id, kind), name)

    async def do_stray_hold(self, user: str, hold: str) -> None:
        """Adds a missing, already expired hold's id to the open holds."""
        person, keys = self.world.people[user], self.world.nodes[0].process.live.keys
        holds = keys.holds(keys.partition(person.tenant))
        self.cluster.redis.ask("ZADD", holds, 0, f"{person.tenant}/{hold}")
        await self.cluster.advance(2 * 60_000)  # until the next search for expired holds

    async def do_poison(self, partition: int) -> None:
        if not self.cluster.redis_is_away:
            self.world.poison(partition)

    # --- Processes ------------------------------------------------------------------------

    async def do_serve(self, node: str) -> None:
        cluster = self.cluster
        known = any(one.name == node for one in cluster.servers)
        if not (known or cluster.redis_is_away or cluster.postgres_is_away):
            await cluster.serve(node)

    async def do_flusher(self, name: str, pace_ms: int) -> None:
        if all(one.name != name for one in self.cluster.flushers):
            self.cluster.flush(name, pace_ms)

    async def do_kill(self, name: str) -> None:
        found = self.host(name)
        if found is not None:
            found.kill()
            await self.cluster.settle()

    # --- Faults -----------------------------------------------------------------------------

    async def do_redis_away(self, ms: int) -> None:
        cluster = self.cluster
        if not cluster.redis_is_away:
            self.world.disturb()
            self.world.was_away = True
            cluster.lose_redis()
            cluster.loop.call_later(ms / 1000, cluster.find_redis)
            await cluster.settle()

    async def do_cut_off(self, name: str, ms: int) -> None:
        """One process cannot reach Redis for a while, and receives nothing."""
        found, cluster = self.host(name), self.cluster
        if found is not None and not cluster.redis_is_away:
            self.world.disturb(found)
            self.world.was_away = True
            cluster.cut_off(found, ms)
            await cluster.settle()

    async def do_slow_redis(self, delays: list[int], ms: int) -> None:
        """Answers of Redis take these delays, in ms, for ``ms``."""
        cluster = self.cluster
        self.world.disturb()
        self.world.was_away = True
        cluster.slow_redis(delays)
        cluster.loop.call_later(ms / 1000, cluster.slow_redis, [])

    async def do_postgres_away(self, ms: int) -> None:
        cluster = self.cluster
        if not cluster.postgres_is_away:
            self.world.disturb()
            cluster.lose_postgres()
            cluster.loop.call_later(ms / 1000, cluster.find_postgres)

    async def do_mishaps(self, name: str, where: str, kinds: list[list[Any]]) -> None:
        found = self.host(name)
        if found is not None:
            self.world.was_away = True
            self.world.disturb(found if where == "redis" else None)
            self.cluster.mishap(found, where, [Mishap(*kind) for kind in kinds])

    async def do_drop_lines(self) -> None:
        self.world.disturb()
        self.cluster.stir()
        self.cluster.drop_lines()
        await self.cluster.settle()

    async def do_empty(self, partition: int | None = None) -> None:
        """Redis loses everything, or only a ``partition``, as in a Redis cluster."""
        self._lose()
        if partition is None:
            self.cluster.redis.empty()
        else:
            self.cluster.redis.empty_partition(partition)
        self.world.forgotten.lost(self.world.clients)

    async def do_lag(self) -> None:
        self.snapshot = self.cluster.redis.snapshot()

    async def do_failover(self, unnoticed: bool = False, unsaid: bool = False) -> None:
        """The replica takes over.

        ``unnoticed``: no connection breaks, as behind a proxy. ``unsaid``: the replication history
        of Redis shows no change either, as where Redis forbids the question for it.
        """
        if self.snapshot is not None:
            self._lose()
            if not unnoticed:
                self.cluster.drop_lines()
            self.cluster.redis.restore(self.snapshot, is_said=not unsaid)
            self.snapshot = None
            self.world.forgotten.lost(self.world.clients)

    def _lose(self) -> None:
        self.world.was_away = True
        self.world.disturb()
        self.world.losses.append(self.world.now)
        self.cluster.stir()

    async def do_step_clock(self, where: str, ms: int) -> None:
        self.cluster.stir()
        if where == "redis":
            self.cluster.clock.redis_ahead_ms += ms
        else:
            self.cluster.clock.wall_ahead_ms += ms
