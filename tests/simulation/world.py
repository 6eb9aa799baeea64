"""People and clients on a virtual cluster, with evidence about both.

The modules ``actions`` and ``chance`` decide what happens. The world writes down what the auditor
needs as evidence: each request and who made it, each answer, each fault.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec

from protocol import limits
from protocol.metering.projection import MonthProjection
from protocol.metering.session import Identity
from protocol.metering.states import Event
from protocol.metering.steps import Step
from protocol.metering.terms import Terms
from protocol.wire import messages
from protocol.wire.errors import ProtocolError, ServiceError
from server import limits as server_limits
from server.gateway.preparations import SessionExistsError, prepare
from server.gateway.session_start import join_or_start
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from storage import limits as storage_limits
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError, StepOutcome
from storage.rows.sessions import SessionPrepared
from tests.simulation.clients import FOUND_OUT_MS, NEVER, SessionLog, SimulatedClient
from tests.simulation.forgotten import Forgotten
from tests.simulation.grants import Deal, deal_of
from tests.simulation.people import KINDS, Person
from tests.simulation.phones import Phones
from tests.simulation.processes import Host, ServerHost
from tests.simulation.state import State, look
from tests.simulation.virtual_cluster import VirtualCluster

POISON = "poison"
"""A record kind that does not exist, so that Postgres rejects the entry."""
SWEPT_MS = 10_000
"""By then peers have swept the sessions of a dead process."""

MUTE_TICK_MS = 1_000
"""The tick interval that a client requests which answers no ping."""


class World:
    """People and clients on a cluster."""

    def __init__(self, cluster: VirtualCluster, people: list[Person]) -> None:
        self.cluster = cluster
        self.people = {person.user_id: person for person in people}
        self.clients: list[SimulatedClient] = []
        self.session_logs: dict[str, SessionLog] = {}
        self.accepted: list[tuple[Step, dict[str, int]]] = []
        """Accepted steps, each with the account's figures after the step, where the account owes.
        """
        self.phones = Phones()
        self.deals: list[Deal] = []
        """Steps that were answered since the last audit, each with what there was to grant."""
        self.stops: list[tuple[int, Step, State]] = []
        """Steps that stopped a session at a limit: instant, step, all of Redis at that instant."""
        self.given_back: Counter[tuple[int, str, str]] = Counter()
        """Micro-credits that sessions gave back since the last audit, by instant and account."""
        self.refusals: list[tuple[int, str, Step, State]] = []
        """Steps for which a limit left nothing, each with all of Redis at that instant."""
        self.held: dict[str, tuple[int, str, Step, State]] = {}
        """Refusals that are not final, because only the grants of other sessions were in the way.

        Those sessions were recalled. The meter tries the step again while it waits for them.
        """
        self.was_away = False
        """Redis did not answer for a while. Sessions may have used time without a grant."""
        self.lowered: set[str] = set()
        """Month counters whose limit was changed while the counter was in use."""
        self.limits: dict[tuple[str, str], tuple[int | None, bool] | None] = {}
        """The newest limits of months and whether overage is allowed, by kind and place of the
        counter.

        None: the outcome of the newest change is unknown.
        """
        self.months_told: list[tuple[Identity, MonthProjection, MonthProjection]] = []
        """The months that steps since the last audit were answered with."""
        self.forgot_at = 0
        """The last instant at which Redis forgot all data that no live session draws on."""
        self.watched: set[str] = set()
        """Sessions that an observer has watched."""
        self.strays: set[str] = set()
        """Ids in a user's set of live sessions for which Redis has no session."""
        self.taken: set[tuple[str, str]] = set()
        """Accounts from which an adjustment took credits that may have been held."""
        self.losses: list[int] = []
        """Instants at which Redis lost everything, or its last writes."""
        self.poisons = 0
        """Number of outbox entries that Postgres does not accept."""
        self.forgotten = Forgotten(cluster)
        self.deaths: dict[str, int] = {}
        """Processes that died, and when."""
        self.prepared: dict[str, tuple[int, SessionPrepared]] = {}
        """Confirmed preparations, and when each was confirmed."""
        self.in_vain: list[tuple[ServerHost, SessionLog, int]] = []
        """Failed joins and starts: the process that tried, the session, when it gave up."""
        self.waiting: list[tuple[SimulatedClient, str, int]] = []
        """Requests that were not answered yet: client, session, the request's id."""
        self._preparing: set[str] = set()
        """Sessions that a backend prepares during their start. The preparation may prevent the
        start."""
        self._smooth: dict[tuple[SimulatedClient, int], int] = {}
        """When each request was made, of the requests that were made while nothing was wrong."""
        self._pending: list[asyncio.Task[Any]] = []
        cluster.died = self._died
        cluster.stepped = self._stepped

    @property
    def now(self) -> int:
        """The current instant."""
        return self.cluster.now

    @property
    def nodes(self) -> list[ServerHost]:
        """The living processes."""
        return self.cluster.nodes

    @property
    def is_smooth(self) -> bool:
        """Whether nothing goes wrong now, so that every message arrives."""
        cluster = self.cluster
        return self.now >= cluster.unsettled_until and not (
            cluster.redis_is_away or cluster.postgres_is_away or cluster.has_mishaps
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing goes wrong now, and no request waits for Redis."""
        return (
            self.is_smooth
            and all(task.done() for task in self._pending)
            and not any(
                local.meter.asked or local.meter._intents or local.failures
                for node in self.nodes
                for local in node.registry
            )
        )

    def unserved(self, asked_at: int, error: Exception) -> None:
        """Checks that a request which was refused as unavailable met a fault.

        ``asked_at`` is when the request was made. If nothing was wrong from then until now, the
        promise to serve is broken, and ``AssertionError`` is raised.
        """
        if self.cluster.script_errors:
            raise self.cluster.script_errors[0]
        if asked_at < self.cluster.unsettled_until or not self.is_smooth:
            return
        if not self.nodes or self.losses:
            return
        state = look(self.cluster.redis)
        waits = Counter(entry[:1] for entry in state.outbox)
        is_full = max(waits.values(), default=0) >= storage_limits.OUTBOX_ENTRIES_MAX
        oldest = min((int(entry[2:].partition("-")[0]) for entry in state.outbox), default=self.now)
        # Both clocks count: Redis may have forgotten, by its own clock, what it kept for long.
        redis_now = self.now + self.cluster.clock.redis_ahead_ms
        behind_ms = max(abs(now - oldest) for now in (self.now, redis_now))
        is_behind = behind_ms > storage_limits.HOLD_KEPT_MS // 4
        assert state.recovering or state.unsettled or is_full or is_behind, error

    async def intrude(self, client: SimulatedClient, person: Person, session_id: str) -> None:
        """A user tries to join a session of a colleague."""
        process, pending = client.node.process, PendingRequest(client, None)

        async def work() -> bool:
            try:
                await join_or_start(process, person.principal, client, session_id, None, pending)
            except (ProtocolError, LiveError):
                return False
            return True

        assert not await self.cluster.finished(client.node.act(work())), (person, session_id)

    def client(self, name: str) -> SimulatedClient | None:
        """The client with this name, if it exists."""
        return next((client for client in self.clients if client.name == name), None)

    # --- What the cluster tells -----------------------------------------------------------

    def _stepped(
        self, host: Host, step: Step, node: str, outcome: StepOutcome, alone: bool
    ) -> None:
        reply, key = outcome.reply, step.before.key
        self.held.pop(key, None)
        if reply is None:
            return
        if alone and not self.losses and (reply.accepted or reply.refused_by):
            assert isinstance(host, ServerHost)
            self.deals.append(deal_of(host.process.live, self.cluster, step, node, outcome))
        if reply.refused_by:
            refusal = (self.now, reply.refused_by, step, look(self.cluster.redis))
            if not outcome.held:
                self.refusals.append(refusal)
            elif self.is_smooth:
                self.held[key] = refusal
        if not reply.accepted:
            return
        assert reply.session is not None
        if reply.member is not None and reply.org is not None and not self.losses:
            self.months_told.append((step.before.identity, reply.member, reply.org))
        self._swept(host, step, node)
        self.forgotten.made(host, step.records)
        identity = step.before.identity
        figures = {"alone": int(alone), "held": 0, "balance": 0}
        if (identity.tenant, identity.account_id) in self.taken:
            key = self.nodes[0].process.live.keys.account(identity.tenant, identity.account_id)
            balance, held = self.cluster.redis.wire.ask("HMGET", key, "balance", "held")
            figures |= {"balance": int(balance or 0), "held": int(held or 0)}
        figures["held_by_it"] = reply.session.grant.held_micros
        self.accepted.append((step, figures))
        if step.standing.phase == "stopping" and step.before.standing.phase != "stopping":
            self.stops.append((self.now, step, look(self.cluster.redis)))
        elif step.before.grant.held_micros:
            freed = step.before.grant.held_micros - reply.session.grant.held_micros
            account = identity.tenant, identity.account_id
            self.given_back[self.now, *account] += max(0, freed - step.charge_micros)

    def _swept(self, host: Host, step: Step, node: str) -> None:
        """A peer detaches a living process's sockets, because that process was silent.

        It counts them as alive up to the process's last proof of life. A client may have been cut
        before, unnoticed.
        """
        assert isinstance(host, ServerHost)
        lost_at, session_id = step.standing.lost_at, step.before.identity.session_id
        if not step.leaving or lost_at is None or node == host.process.node:
            return
        lost_at -= host.clock.now() - self.now
        lost_at = min(lost_at, self.now - limits.NODE_SILENT_MS)
        for client in self.clients:
            begin, _, found = client.last_served.get(session_id, (NEVER, NEVER, NEVER))
            is_served = client.node.process.node == node and client.node.is_alive
            if is_served and begin <= lost_at <= found:
                self.session_logs[session_id].served.append([begin, lost_at, self.now])

    def _died(self, host: Host) -> None:
        if not isinstance(host, ServerHost):
            return
        self.deaths[host.process.node] = self.now
        alive_at = host.proof_at(self.now)
        versions = {}
        if self.losses:
            found = look(self.cluster.redis).sessions
            versions = {name: int(session["version"]) for name, session in found.items()}
        for session_id, at in host.untold(versions):
            # The peer that sweeps the dead process counts its sockets as alive up to their last
            # proof.
            self.session_logs[session_id].served.append([at, self.now, self.now + SWEPT_MS])
        for client in self.clients:
            if client.node is host:
                client.is_cut = True
                # Also joins in progress: the client may be attached already.
                for session_log in map(self.session_logs.__getitem__, client.awaited()):
                    session_log.deaths.append(self.now)
                    session_log.proofs.append((self.now, max(alive_at, _last_request(session_log))))
                client.go_all(self.now, self.now + SWEPT_MS)
        self.forgotten.died(self.clients)

    def refused(self) -> list[tuple[int, str, Step, State]]:
        """Steps that were refused for good since the last call."""
        waiting = {local.key for node in self.nodes for local in node.registry if local.meter.asked}
        over = [key for key in self.held if key not in waiting]
        found = self.refusals + [self.held.pop(key) for key in over]
        self.refusals = []
        return found

    def disturb(self, host: Host | None = None) -> None:
        """A process's sessions, or all, have inexact instants from now on."""
        for client in self.clients:
            if host is None or client.node is host:
                for session_log in client.present():
                    session_log.disturbed = True

    def _is_troubled(self, host: Host) -> bool:
        return bool(
            host.line.mishaps
            or host.line.delays
            or host.postgres.mishaps
            or host.line.is_away
            or host.postgres.is_away
            or self.now < self.cluster.unsettled_until
            # Over a slow connection a process may know the time less exactly than to the
            # millisecond.
            or (isinstance(host, ServerHost) and host.clock.now() != self.now)
        )

    # --- Clients ----------------------------------------------------------------------------

    async def join(
        self,
        client: SimulatedClient,
        person: Person,
        kind: str,
        session_id: str,
        last_seq: int | None = None,
        *,
        backend: ServerHost | None = None,
        turns: int = 0,
    ) -> None:
        """A client starts or joins a session.

        With ``backend``, a backend prepares the session at the same instant: ``turns`` turns of the
        loop before the client asks, or after it where ``turns`` is negative.
        """
        session_log = self.session_logs.get(session_id)
        if session_log is None:
            session_log = self.session_logs[session_id] = SessionLog(
                person, KINDS[kind], session_id
            )
        session_log.disturbed = session_log.disturbed or self._is_troubled(client.node)
        client.requests += 1
        # Every message is a proof of life for each session that the client takes part in.
        client.node.do(client.pong)
        request_id = client.requests
        client.begin(session_id, request_id, last_seq)
        pending = PendingRequest(client, request_id)
        start = messages.Start(
            session_id=session_id,
            kind=kind,
            counterpart_id="advisor",
            tick_ms=60_000,
            last_seq=last_seq,
        )
        client.come(session_log, self.now)
        smooth, asked_at = self.is_smooth, self.now

        if backend is not None:
            self._preparing.add(session_id)
            preparing = self._prepare(person, KINDS[kind], session_id, backend, -turns)
            self._pending.append(backend.act(preparing))

        async def work() -> None:
            await _turn(turns)
            try:
                local = await join_or_start(
                    client.node.process, person.principal, client, session_id, start, pending
                )
            except (ProtocolError, LiveError) as error:
                if smooth and isinstance(error, ServiceError | LiveError):
                    self.unserved(asked_at, error)
                self._failed(client, request_id, error)
                client.turned_away(session_id, self.now)
                self.cluster.stir()  # the next heartbeat undoes what was begun for the client
                self.in_vain.append((client.node, session_log, self.now))
                return
            if client.is_gone:
                # The client left during its join, and is removed again.
                alive_at = client.node.clock.now() - (self.now - client.alive_at)
                session_log.proofs.append((self.now, client.alive_at))
                client.node.do(client.node.registry.unsubscribe, local, client, alive_at)
            elif client in local.subscribers:
                client.come(session_log, self.now)  # it may have left during a second join
                client.local_sessions[session_id] = local
                client.sessions[session_id] = session_log
                client.node.do(client._ping)
                session_log.requests.append((self.now, "join"))

        await self._ask(client, session_id, request_id, work())

    async def prepare(
        self, person: Person, terms: Terms, session_id: str, backend: ServerHost
    ) -> bool:
        """Prepares a session at a backend's price; returns whether that is confirmed."""
        before = self.prepared.pop(f"{person.tenant}/{session_id}", None)
        await self.cluster.finished(
            backend.act(self._prepare(person, terms, session_id, backend, 0))
        )
        is_confirmed = f"{person.tenant}/{session_id}" in self.prepared
        if before is not None:
            self.prepared[f"{person.tenant}/{session_id}"] = before
        return is_confirmed

    def prepare_soon(
        self, person: Person, terms: Terms, session_id: str, backend: ServerHost
    ) -> None:
        """Like ``prepare``, but other things happen meanwhile."""
        self._preparing.add(session_id)
        preparing = self._prepare(person, terms, session_id, backend, 0)
        self._pending.append(backend.act(preparing))

    async def _prepare(
        self, person: Person, terms: Terms, session_id: str, backend: ServerHost, turns: int
    ) -> None:
        """A backend prepares a session at its own price; notes the outcome."""
        await _turn(turns)
        wanted = SessionPrepared(
            tenant=person.tenant,
            session_id=session_id,
            user_id=person.user_id,
            org_id=person.org_id,
            account_id=person.account_id,
            counterpart_id="advisor",
            kind=terms.kind,
            terms=msgspec.structs.replace(terms, price_micros=2 * terms.price_micros),
            expires_at=self.now + server_limits.PREPARED_SESSION_KEPT_MS,
        )
        with contextlib.suppress(SessionExistsError, ProtocolError, LiveError, UnavailableError):
            found, _ = await prepare(backend.process, wanted, True)
            self.prepared[f"{person.tenant}/{session_id}"] = (self.now, found)

    def _failed(self, client: SimulatedClient, request_id: int, error: Exception) -> None:
        code = getattr(error, "code", "unavailable")
        client.refused.add(request_id)
        client.messages.append(
            {"type": "error", "id": request_id, "message": str(error), "code": code}
        )

    async def _ask(
        self,
        client: SimulatedClient,
        session_id: str,
        request_id: int,
        work: Coroutine[Any, Any, None],
    ) -> None:
        task = client.node.act(work)
        self.waiting.append((client, session_id, request_id))
        if self.is_smooth and not self.losses and session_id not in self._preparing:
            self._smooth[client, request_id] = self.now
        await self.cluster.settle()
        if not task.done():
            self._pending.append(task)
        elif not task.cancelled():
            task.result()
        self.check_answers()

    def check_answers(self) -> None:
        """Checks that every request is answered once, or waits for Redis."""
        self._pending = [task for task in self._pending if not task.done()]
        for client, session_id, request_id in list(self.waiting):
            answers = client.answers(request_id)
            assert len(answers) <= 1, (client.name, answers)
            local = client.local_sessions.get(session_id)
            if answers or client.is_cut or (local is None and not self._pending):
                self.waiting.remove((client, session_id, request_id))
                # Only a client that has left may get no answer.
                assert answers or client.is_cut or session_id not in client.sessions
                if answers and answers[0]["type"] == "error" and local is None:
                    client.refuse(session_id, self.now)  # its start
                    if client.node.line.troubled:
                        # Redis may carry out an earlier message of the start later.
                        at = answers[0].get("received_at", self.now)
                        self.in_vain.append((client.node, self.session_logs[session_id], at))
                is_unavailable = bool(answers) and answers[0].get("code") == "unavailable"
                asked_at = self._smooth.pop((client, request_id), -1)
                if is_unavailable:
                    self.unserved(asked_at, AssertionError((client.name, answers[0])))
            else:
                waits = bool(self._pending) or (local is not None and _is_asked(local))
                assert waits, (client.name, session_id, request_id)

    async def request(self, client: SimulatedClient, session_id: str, event: Event) -> None:
        """A client asks for something, if it takes part in the session."""
        local = client.local_sessions.get(session_id)
        if local is None or client.is_cut or session_id not in client.sessions:
            return
        client.requests += 1
        client.node.do(client.pong)
        if client.local_sessions.get(session_id) is not local:
            return
        session_log = client.sessions[session_id]
        session_log.disturbed = session_log.disturbed or self._is_troubled(client.node)
        session_log.requests.append((self.now, event.value))
        request_id = client.requests

        async def work() -> None:
            try:
                client.node.registry.request(local, event, PendingRequest(client, request_id))
            except ProtocolError as error:
                self._failed(client, request_id, error)

        await self._ask(client, session_id, request_id, work())

    async def watch(self, client: SimulatedClient, session_id: str) -> None:
        """An observer watches a session without keeping it alive."""
        person = self.session_logs[session_id].person
        client.requests += 1
        request_id = client.requests
        client.begin(session_id, request_id, None)
        self.watched.add(session_id)

        async def work() -> None:
            pending = PendingRequest(client, request_id)
            try:
                local = await client.node.registry.watch(
                    client, person.principal, session_id, pending
                )
            except (ProtocolError, LiveError) as error:
                self._failed(client, request_id, error)
                return
            if local is None:
                client.refused.add(request_id)
                client.messages.append({"type": "error", "id": request_id, "message": "none"})
            elif client in local.subscribers:
                client.watched[session_id] = local

        await self._ask(client, session_id, request_id, work())

    async def look_away(self, client: SimulatedClient) -> None:
        """An observer stops watching."""
        client.is_cut = True
        for local in list(client.watched.values()):
            client.node.do(client.node.registry.unsubscribe, local, client, client.node.clock.now())
        client.watched.clear()
        await self.cluster.settle()

    async def stop_from_outside(self, client: SimulatedClient, session_id: str) -> None:
        """An operator stops a session."""
        local = client.local_sessions.get(session_id)
        if local is None or session_id not in client.sessions:
            return

        async def work() -> None:
            client.node.registry.request(local, Event.STOP, PendingRequest(None, None), "operator")

        client.sessions[session_id].requests.append((self.now, "operator"))
        await self.cluster.finished(client.node.act(work()))

    async def leave(self, client: SimulatedClient, session_id: str) -> None:
        """A client leaves a session and keeps its socket."""
        client.node.do(client.pong)
        local = client.local_sessions.pop(session_id, None)
        session_log = client.sessions.get(session_id)
        if local is None and session_log is None:
            return  # the join is still under way: the server knows nothing to leave yet
        client.go(session_id, self.now, self.now)
        if local is not None and session_log is not None and not client.is_cut:
            session_log.disturbed = session_log.disturbed or self._is_troubled(client.node)
            session_log.proofs.append((self.now, self.now))
            now_ms = client.node.clock.now()
            client.node.do(
                partial(client.node.registry.unsubscribe, farewell=True), local, client, now_ms
            )
            await self.cluster.settle()

    async def close(self, client: SimulatedClient) -> None:
        """A client closes its socket, or the server finds a cut one."""
        node, is_farewell = client.node, not client.is_cut
        if is_farewell:
            client.alive_at = self.now
            client.hear()
        for session_log in client.present():
            session_log.proofs.append((self.now, client.alive_at))
            session_log.disturbed = session_log.disturbed or self._is_troubled(node)
        client.go_all(client.alive_at, self.now)
        client.is_cut = client.is_gone = True
        if node.is_alive:
            alive_at = node.clock.now() - (self.now - client.alive_at)
            for local in list(client.local_sessions.values()):
                node.do(
                    partial(node.registry.unsubscribe, farewell=is_farewell),
                    local,
                    client,
                    alive_at,
                )
        client.local_sessions.clear()
        await self.cluster.settle()

    def cut(self, client: SimulatedClient) -> None:
        """A client's connection goes dead. The server finds out twenty seconds later."""
        if client.is_cut:
            return
        client.is_cut = True
        self.cluster.loop.call_later(FOUND_OUT_MS / 1000, self._found_out, client)

    def _found_out(self, client: SimulatedClient) -> None:
        """The server closes a socket that has been silent for too long."""
        client.is_cut = client.is_gone = True
        if client.node.is_alive:
            for session_log in client.present():
                session_log.proofs.append((self.now, client.alive_at))
                session_log.disturbed = session_log.disturbed or self._is_troubled(client.node)
            client.go_all(client.alive_at, self.now)
            alive_at = client.node.clock.now() - (self.now - client.alive_at)
            for local in list(client.local_sessions.values()):
                client.node.do(client.node.registry.unsubscribe, local, client, alive_at)
            client.local_sessions.clear()

    def mute(self, client: SimulatedClient) -> None:
        """A client stops answering pings, but reads and requests frequent ticks."""
        if client.is_cut or client.is_mute:
            return
        client.is_mute = True
        for local in client.local_sessions.values():
            if client in local.subscribers and client not in local.service.passive:
                client.node.do(partial(local.service.add, passive=False), client, MUTE_TICK_MS)
        self._look_at(client)

    def _look_at(self, client: SimulatedClient) -> None:
        if client.is_cut:
            return
        left_ms = client.alive_at + FOUND_OUT_MS - self.now
        if left_ms > 0:
            self.cluster.loop.call_later(left_ms / 1000, self._look_at, client)
        else:
            self._found_out(client)

    def poison(self, partition: int) -> None:
        """Adds an outbox entry that Postgres refuses.

        A bug or another version could write such an entry.
        """
        self.cluster.redis.append(f"{{p{partition}}}:outbox", f'[{{"t": "{POISON}"}}]')
        self.poisons += 1

    # --- Limits -----------------------------------------------------------------------------

    async def limit(
        self, person: Person, minutes: int | None, *, of_org: bool, overage: bool = False
    ) -> None:
        """Changes a limit of the month, as the API does.

        Beyond the limit of an organisation with ``overage``, minutes are counted and nothing stops.
        """
        assert person.org_id is not None
        hours = None if minutes is None else -(-minutes * 1_000_000 // 60) / 1_000_000
        tenant, node = person.tenant, self.nodes[0]
        name = ("org", tenant) if of_org else ("member", f"{tenant}/{person.user_id}")
        self.lowered.add(":".join(name))
        self.limits[name] = None

        async def work() -> None:
            records, live = node.process.records, node.process.live
            if of_org:
                await records.put_organization(
                    tenant, person.org_id or "", monthly_hours_limit=hours, allow_overage=overage
                )
            else:
                await records.put_member(tenant, person.user_id, monthly_hours_limit=hours)
            user_id = None if of_org else person.user_id
            await live.change_limit(tenant, user_id, minutes, overage=overage and of_org)
            self.limits[name] = minutes, overage and of_org

        with contextlib.suppress(UnavailableError, LiveError):  # the caller may try again
            await self.cluster.finished(node.act(work()))


def _last_request(session_log: SessionLog) -> int:
    """The instant of the last request, when the serving process was alive."""
    return max((at for at, _ in session_log.requests), default=0)


def _is_asked(local: LocalSession) -> bool:
    waits = local.meter.asked is not None or local.meter.is_in_doubt
    return waits or local.failures > 0


async def _turn(turns: int) -> None:
    """Lets the loop turn this many times; none where ``turns`` is negative."""
    for _ in range(turns):
        await asyncio.sleep(0)
