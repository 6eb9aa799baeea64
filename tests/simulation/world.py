"""A small world on a virtual cluster: people, clients, faults, and a diary of what happened.

What it does to the cluster is decided elsewhere (``test_properties``), by Hypothesis or by
a seed. The diary says what the auditor cannot see in Redis: when a client asked for what,
and when it was last heard of.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import ProtocolError, ServiceError
from protocol.session import Identity
from protocol.states import Event
from protocol.steps import Step
from protocol.terms import Terms
from server.auth import Principal
from server.presence import Presence
from server.seats import Seat, Ticket
from storage.live import LiveError, Outcome
from tests.simulation.cluster import PING_MS, Browser, Cluster, Node

CREDIT = 1_000_000
STEPS_PER_INSTANT_MAX = 200
"""Steps of one session in one virtual millisecond: more of them never end."""
DEAD_AFTER_MS = 5_000
FOUND_OUT_MS = 2 * PING_MS


def terms(kind: str, **changes: Any) -> Terms:
    """The terms of a kind, the rest as they are by default."""
    given: dict[str, Any] = {
        "kind": kind,
        "price_micros": CREDIT,
        "free_ms": 0,
        "free_scope": "session",
        "first_increment_ms": 1_000,
        "next_increment_ms": 1_000,
        "counts_minutes": False,
        "warn_at_ms": (600_000, 300_000, 60_000),
        "stop_grace_ms": 15_000,
        "reconnect_grace_ms": 30_000,
        "gap": "skip",
        "session_cap_ms": 0,
        "tick_ms": 60_000,
    }
    return Terms(**{**given, **changes})


KINDS = {
    "second": terms("second"),
    "chat": terms("chat", free_ms=60_000, price_micros=777_777),
    "six": terms("six", first_increment_ms=30_000, next_increment_ms=6_000),
    "minute": terms("minute", first_increment_ms=60_000, next_increment_ms=60_000),
    "pair": terms("pair", free_ms=45_000, free_scope="pair"),
    "day": terms(
        "day", free_ms=90_000, free_scope="day", first_increment_ms=6_000, next_increment_ms=6_000
    ),
    "recording": terms(
        "recording",
        price_micros=0,
        counts_minutes=True,
        gap="bill",
        first_increment_ms=60_000,
        next_increment_ms=60_000,
    ),
    "lesson": terms(
        "lesson", counts_minutes=True, first_increment_ms=7_000, next_increment_ms=7_000
    ),
    "capped": terms("capped", session_cap_ms=100_500, gap="bill"),
}


@dataclass
class Person:
    """A user, with the account that pays."""

    user_id: str
    org_id: str | None
    account_id: str

    @property
    def tenant(self) -> str:
        """The tenant that the user belongs to."""
        return f"org:{self.org_id}" if self.org_id else f"user:{self.user_id}"


@dataclass
class Diary:
    """What happened to one session, as the world outside saw it."""

    person: Person
    terms: Terms
    session_id: str
    free_key: str | None
    requests: list[tuple[int, str]] = field(default_factory=list)
    """Instants at which its clients asked for something, or joined: start, pause …"""
    proofs: list[tuple[int, int]] = field(default_factory=list)
    """When a socket was found to be gone, and the last proof of life known then."""
    disturbed: bool = False
    """An answer of Redis was lost, or late: then instants are not exact."""


class Client(Browser):
    """A browser whose requests are numbered, so that every one is seen to be answered."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(node, name)
        self.requests = 0
        self.sessions: dict[str, Diary] = {}
        """Those that it takes part in, as far as the client knows."""
        self.watched: dict[str, Seat] = {}
        self.joined_at: dict[str, int] = {}
        """How many messages it had when it joined each session, at last."""

    def left(self, seat: Seat) -> None:
        """A session has ended, or is served no more."""
        super().left(seat)
        self.watched.pop(seat.meter.session.identity.session_id, None)

    def present(self) -> list[Diary]:
        """The sessions that it takes part in."""
        return [diary for name, diary in self.sessions.items() if name in self.seats]

    def answers(self, request_id: int) -> list[dict[str, Any]]:
        """What a request was answered with."""
        return [message for message in self.messages if message.get("id") == request_id]


class World:
    """People and clients on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.people: list[Person] = []
        self.clients: list[Client] = []
        self.diaries: dict[str, Diary] = {}
        self.money: defaultdict[tuple[str, str], int] = defaultdict(int)
        """What was put into each account, by tenant and id."""
        self.taken: set[tuple[str, str]] = set()
        """Accounts from which an adjustment took something that may have been held."""
        self.accepted: list[tuple[Step, dict[str, int]]] = []
        """Steps that were made, and the account's balance and what it holds, since."""
        self.stops: list[tuple[int, Step, Any]] = []
        """Steps that stopped a session at a limit, when, and everything in Redis then."""
        self.refusals: list[tuple[int, str, Step, Any]] = []
        """Steps for which a limit left nothing, and everything in Redis then."""
        self.look: Callable[[], Awaitable[Any]] | None = None
        """Reads everything in Redis, for those two."""
        self.faults: dict[str, list[str]] = {}
        """What is going to happen to a node's next steps."""
        self.outage_until = 0
        self.was_away = False
        """Redis did not answer for a while: time may be used that nobody granted."""
        self.lowered: set[str] = set()
        """Counters of the month whose limit was changed while it was in use."""
        self.livelocks: list[str] = []
        self.waiting: list[tuple[Client, str, int]] = []
        """Requests that were not answered yet."""
        self.deaths: dict[str, int] = {}
        """Nodes that died and were not swept, by their last proof of life."""
        self._lost: list[tuple[int, Client]] = []
        self._late: list[tuple[Node, list[Step], str | None]] = []
        self._turn = asyncio.Lock()
        self._steps_at: tuple[int, defaultdict[str, int]] = (0, defaultdict(int))

    @property
    def now(self) -> int:
        """The instant."""
        return self.cluster.clock.now()

    @property
    def nodes(self) -> list[Node]:
        """The living processes."""
        return [node for node in self.cluster.nodes if node.is_alive]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing goes wrong now, and nobody waits for Redis."""
        return (
            self.now >= self.outage_until
            and not any(self.faults.values())
            and not any(
                seat.meter.asked or seat.meter._intents for node in self.nodes for seat in node.hub
            )
        )

    def away(self, ms: int) -> None:
        """Redis does not answer for so long."""
        self.outage_until = self.now + ms
        self.was_away = True

    async def node(self) -> Node:
        """One more process, between which and Redis things may happen."""
        node = await self.cluster.node()
        self._stand_between(node)
        self._suspect()
        return node

    # --- Faults --------------------------------------------------------------------

    def _stand_between(self, node: Node) -> None:
        commit, attach = node.live.commit, node.live.attach

        async def faulty_commit(steps: list[Step], name: str | None = None) -> list[Outcome]:
            plans = self.faults.get(node.name, [])
            plan = plans.pop(0) if plans else ""
            if self.now < self.outage_until:
                plan = "before"
            if self._is_livelock(steps):
                plan = "before"
            if plan in ("before", "after", "late"):
                self._disturb(steps)
            if plan == "late":
                self._late.append((node, steps, name))
            if plan in ("before", "late"):
                raise LiveError(f"{plan}: no answer")
            async with self._turn:
                outcomes = await commit(steps, name)
                await self._note(steps, outcomes)
                if plan == "twice":
                    await self._note(steps, await commit(steps, name))
            if plan == "after":
                raise LiveError("the answer was lost")
            return outcomes

        async def faulty_attach(tenant: str, session_id: str, **options: Any) -> Any:
            if self.now < self.outage_until:
                raise LiveError("no answer")
            return await attach(tenant, session_id, **options)

        node.live.commit = faulty_commit  # type: ignore[method-assign, assignment]
        node.live.attach = faulty_attach  # type: ignore[method-assign]
        node.live.__dict__["really_commit"] = commit

    def _disturb(self, steps: list[Step]) -> None:
        for step in steps:
            self.diaries[step.before.identity.session_id].disturbed = True

    def _is_livelock(self, steps: list[Step]) -> bool:
        at, counts = self._steps_at
        if at != self.now:
            counts = defaultdict(int)
            self._steps_at = self.now, counts
        found = False
        for step in steps:
            session_id = step.before.identity.session_id
            counts[session_id] += 1
            if counts[session_id] > STEPS_PER_INSTANT_MAX:
                self.livelocks.append(session_id)
                found = True
        return found

    async def _note(self, steps: list[Step], outcomes: list[Outcome]) -> None:
        """Writes down what was made, with the account as it was left."""
        for step, outcome in zip(steps, outcomes, strict=True):
            if outcome.reply is not None and outcome.reply.refused_by and self.look is not None:
                limit = outcome.reply.refused_by
                self.refusals.append((self.now, limit, step, await self.look()))
            if outcome.reply is None or not outcome.reply.accepted:
                continue
            assert outcome.reply.session is not None
            identity = step.before.identity
            key = self.nodes[0].live.keys.account(identity.tenant, identity.account_id)
            balance, held = await self.cluster.redis.hmget(key, ["balance", "held"])
            figures = {
                "balance": int(balance or 0),
                "held": int(held or 0),
                "alone": int(len(steps) == 1),
                "granted": outcome.reply.session.grant.granted_ms,
                "held_by_it": outcome.reply.session.grant.held_micros,
            }
            self.accepted.append((step, figures))
            if step.standing.phase == "stopping" and step.before.standing.phase != "stopping":
                assert self.look is not None
                self.stops.append((self.now, step, await self.look()))

    async def deliver_late(self) -> None:
        """What was delayed on its way to Redis arrives now."""
        late, self._late = self._late, []
        for node, steps, name in late:
            if node.is_alive:
                async with self._turn:
                    outcomes = await node.live.__dict__["really_commit"](steps, name)
                    await self._note(steps, outcomes)
                await node.orphans.reconcile()
        await self.cluster.settle()

    # --- Processes -----------------------------------------------------------------

    async def kill(self, node: Node, silent_ms: int) -> None:
        """A process dies; its last beat was so long ago."""
        alive_at = self.now - silent_ms
        node.is_alive = False
        await node.stop()
        self.deaths[node.name] = alive_at
        for client in self.clients:
            if client.node is node:
                client.is_cut = True
                for diary in client.present():
                    diary.disturbed = True
                    diary.proofs.append((self.now, max(alive_at, self._joined(diary))))
                client.sessions.clear()
        self._lost = [(at, client) for at, client in self._lost if client.node is not node]
        if not self.nodes:
            await self.node()
        self._suspect()

    def _joined(self, diary: Diary) -> int:
        """A process that joined after its last beat was alive then."""
        return max((at for at, _ in diary.requests), default=0)

    def _suspect(self) -> None:
        for node in self.nodes:
            node.orphans.suspects = {
                name: alive_at
                for name, alive_at in self.deaths.items()
                if self.now - alive_at > 1_500
            }

    async def sweep(self) -> None:
        """The first living process looks after what dead ones left."""
        for name, alive_at in list(self.deaths.items()):
            if self.now - alive_at > DEAD_AFTER_MS and self.now >= self.outage_until:
                node = self.nodes[0]
                faults, self.faults = self.faults, {}
                presence = Presence(node.live, node.orphans, self.cluster.clock)  # type: ignore[arg-type]
                await presence.sweep(name, alive_at)
                await self.cluster.settle()
                await presence.adopt_graces()
                await self.cluster.settle()
                self.faults = faults
                del self.deaths[name]
        self._suspect()

    # --- Time ----------------------------------------------------------------------

    async def advance(self, ms: int) -> None:
        """Lets time pass, second by second, with what is found out meanwhile."""
        until = self.now + ms
        while self.now < until:
            stops = [until, *(at for at, _ in self._lost)]
            stops += [at + DEAD_AFTER_MS + 1 for at in self.deaths.values()]
            stop = min(at for at in stops if at > self.now or at == until)
            await self.cluster.advance(max(0, min(stop, until) - self.now))
            for at, client in list(self._lost):
                if at <= self.now:
                    self._lost.remove((at, client))
                    await self.close(client)
            self._suspect()
            await self.sweep()
            if self.livelocks:
                return

    # --- Clients -------------------------------------------------------------------

    async def start(
        self, node: Node, person: Person, kind: str, session_id: str, last_seq: int | None = None
    ) -> Client:
        """A client on a process starts a session, or joins it."""
        client = Client(node, f"client-{len(self.clients)}")
        self.clients.append(client)
        await self.join(client, person, kind, session_id, last_seq)
        return client

    async def join(
        self,
        client: Client,
        person: Person,
        kind: str,
        session_id: str,
        last_seq: int | None = None,
    ) -> dict[str, Any]:
        """A client starts or joins a session; the answer."""
        diary = self.diaries.get(session_id)
        if diary is None:
            free_key = None
            if KINDS[kind].free_scope != "session":
                free_key = f"{kind}:{person.user_id}"
            diary = Diary(person, KINDS[kind], session_id, free_key)
            self.diaries[session_id] = diary
        client.requests += 1
        request_id = client.requests
        client.alive_at = self.now
        client.joined_at[session_id] = len(client.messages)
        try:
            await self._start(client, diary, Ticket(client, request_id), last_seq)
        except (ProtocolError, LiveError) as error:
            client.messages.append({"type": "error", "id": request_id, "message": str(error)})
        if session_id in client.seats:
            client.sessions[session_id] = diary
            diary.requests.append((self.now, "join"))
        return await self._answer(client, session_id, request_id)

    async def _answer(self, client: Client, session_id: str, request_id: int) -> dict[str, Any]:
        """The answer to a request; an empty one while it waits for Redis."""
        self.waiting.append((client, session_id, request_id))
        await self.cluster.settle()
        self.check_answers()
        return next(iter(client.answers(request_id)), {"type": "none"})

    def check_answers(self) -> None:
        """Every request is answered once; while Redis does not answer, later."""
        for client, session_id, request_id in list(self.waiting):
            answers = client.answers(request_id)
            assert len(answers) <= 1, (client.name, answers)
            seat = client.seats.get(session_id)
            if answers or client.is_cut or seat is None:
                self.waiting.remove((client, session_id, request_id))
                # Who has left is not told any more; anybody else is.
                assert answers or client.is_cut or session_id not in client.sessions
            else:
                assert seat.meter.asked, (client.name, session_id, request_id)

    async def _start(
        self, client: Client, diary: Diary, ticket: Ticket, last_seq: int | None
    ) -> None:
        hub, person = client.node.hub, diary.person
        found = await hub.join(
            client,
            person.tenant,
            diary.session_id,
            person.user_id,
            ticket,
            tick_ms=60_000,
            last_seq=last_seq,
        )
        seat: Seat
        if found is None:
            identity = Identity(
                tenant=person.tenant,
                session_id=diary.session_id,
                user_id=person.user_id,
                org_id=person.org_id,
                account_id=person.account_id,
                counterpart_id="advisor",
                kind=diary.terms.kind,
                started_at=self.now,
                terms=diary.terms,
                free_key=diary.free_key,
            )
            begun = await hub.start(client, identity, ticket, 60_000)
            if begun is None:
                raise ServiceError("it is being started")
            seat = begun
        else:
            seat = found
        if client in seat.members:
            client.seats[diary.session_id] = seat

    async def request(self, client: Client, session_id: str, event: Event) -> dict[str, Any]:
        """A client asks for something; the answer, an empty one when it is no part of it."""
        seat = client.seats.get(session_id)
        if seat is None or client.is_cut:
            return {"type": "none"}
        client.requests += 1
        request_id = client.requests
        client._pong(self.now)
        client.sessions[session_id].requests.append((self.now, event.value))
        client.node.hub.request(seat, event, Ticket(client, request_id))
        return await self._answer(client, session_id, request_id)

    async def watch(self, node: Node, session_id: str) -> Client:
        """Somebody watches a session without keeping it alive."""
        client = Client(node, f"watcher-{len(self.clients)}")
        diary = self.diaries[session_id]
        self.clients.append(client)
        client.requests += 1
        person = diary.person
        principal = Principal(
            "user", person.user_id, person.org_id, person.account_id, person.tenant
        )
        client.joined_at[session_id] = len(client.messages)
        try:
            seat = await node.hub.watch(client, principal, session_id, Ticket(client, 1))
            assert seat is not None
            client.watched[session_id] = seat
        except (ProtocolError, LiveError) as error:
            client.messages.append({"type": "error", "id": 1, "message": str(error)})
        await self.cluster.settle()
        assert len(client.answers(1)) == 1, client.messages
        return client

    async def look_away(self, client: Client) -> None:
        """A watcher has seen enough."""
        client.is_cut = True
        for seat in list(client.watched.values()):
            client.node.hub.part(seat, client, self.now)
        client.watched.clear()
        await self.cluster.settle()

    async def stop_from_outside(self, client: Client, session_id: str) -> None:
        """An operator stops a session."""
        seat = client.seats.get(session_id)
        if seat is not None:
            client.node.hub.request(seat, Event.STOP, Ticket(None, None), "operator")
            client.sessions[session_id].requests.append((self.now, "operator"))
            await self.cluster.settle()

    async def leave(self, client: Client, session_id: str) -> None:
        """A client leaves a session and keeps its socket."""
        seat = client.seats.pop(session_id, None)
        diary = client.sessions.pop(session_id, None)
        if seat is not None and diary is not None and not client.is_cut:
            client.alive_at = self.now
            diary.proofs.append((self.now, self.now))
            client.node.hub.part(seat, client, self.now)
            await self.cluster.settle()

    async def close(self, client: Client) -> None:
        """A client's socket is closed, or found out to have been cut."""
        if not client.is_cut:
            client.alive_at = self.now
        for diary in client.present():
            diary.proofs.append((self.now, client.alive_at))
        client.sessions.clear()
        await Browser.close(client)

    def cut(self, client: Client) -> None:
        """A client's line goes dead; that is found out twenty seconds later."""
        if not client.is_cut:
            client.cut()
            self._lost.append((self.now + FOUND_OUT_MS, client))

    # --- Money and limits ------------------------------------------------------------

    async def pay(self, person: Person, micros: int) -> None:
        """Money in, or out of it by an adjustment."""
        if self.now < self.outage_until:
            return
        self.money[person.tenant, person.account_id] += micros
        if micros < 0:
            self.taken.add((person.tenant, person.account_id))
        await self.cluster.grant(
            micros, person.account_id, person.org_id, "grant" if micros > 0 else "adjust"
        )

    async def limit(self, person: Person, minutes: int | None, *, of_org: bool) -> None:
        """A limit of the month is changed."""
        if person.org_id is None or self.now < self.outage_until:
            return
        hours = None if minutes is None else math.ceil(minutes * 1_000_000 / 60) / 1_000_000
        records, tenant = self.cluster.records, person.tenant
        if of_org:
            await records.put_organization(tenant, person.org_id, monthly_hours_limit=hours)
        else:
            await records.put_member(tenant, person.user_id, monthly_hours_limit=hours)
        user_id = None if of_org else person.user_id
        self.lowered.add(f"org:{tenant}" if of_org else f"member:{tenant}/{person.user_id}")
        await self.nodes[0].live.change_limit(tenant, user_id, minutes, overage=False)
        await self.cluster.settle()
