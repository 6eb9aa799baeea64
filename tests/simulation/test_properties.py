"""The promises hold whatever happens: worlds that Hypothesis makes up, or a seed.

``TAXIMETER_PROPERTIES`` multiplies how much of it is run.
"""

import os
import random
from typing import Any

from redis.asyncio import Redis

from protocol.states import Event
from storage.records import Records
from tests.simulation import evidence
from tests.simulation.auditor import Auditor
from tests.simulation.cluster import Cluster
from tests.simulation.world import CREDIT, KINDS, Client, Person, World

EFFORT = float(os.environ.get("TAXIMETER_PROPERTIES", "1"))
MONTH_END_AT = 1_780_286_400_000
"""The end of May 2026, in UTC."""
ZONE = "UTC"

_worlds = 0


async def make_world(redis: Redis, redis_url: str, records: Records) -> World:
    """A world of its own in an empty Redis, three minutes before a month ends."""
    global _worlds  # noqa: PLW0603
    _worlds += 1
    await redis.flushall()
    world = World(Cluster(redis, redis_url, records))
    world.cluster.clock.now_ms = MONTH_END_AT - 200_000
    org = f"org{_worlds}"
    world.people = [
        Person(f"ann{_worlds}", org, "team"),
        Person(f"bob{_worlds}", org, "team"),
        Person(f"cat{_worlds}", None, f"cat{_worlds}"),
    ]
    await records.put_organization(f"org:{org}", org, monthly_hours_limit=0.25)
    await records.put_member(f"org:{org}", world.people[0].user_id, monthly_hours_limit=0.1)
    await world.node()
    return world


class Chance:
    """A world in which a random generator decides what happens."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.auditor = Auditor(world, ZONE)
        self.log: list[str] = []
        chance = self.random
        # Every world is a little different: what there is, how much of it, what goes wrong.
        self.kinds = chance.sample(sorted(KINDS), chance.randint(1, 5))
        self.people = chance.sample(world.people, chance.randint(1, 3))
        self.sessions_max = chance.randint(1, 8)
        self.nodes_max = chance.randint(1, 3)
        self.amounts = chance.choice(
            [[CREDIT // 60, CREDIT // 7], [CREDIT // 7, CREDIT // 2, CREDIT], [CREDIT, 3 * CREDIT]]
        )
        faulty = chance.choice([0, 0, 0.3, 1])
        self.weights = {
            "start": 10, "join": 6, "pause": 4, "resume": 8, "stop": 2, "operator": 1,
            "leave": 3, "close": 2, "cut": 4, "watch": 2, "look_away": 1, "pay": 6, "take": 1,
            "limit": 2, "wait": 30, "node": 1, "flush": 1, "late": 2,
            "fault": 4 * faulty, "away": 0.5 * faulty, "kill": 0.7 * faulty,
        }  # fmt: skip

    def _seated(self) -> tuple[Client, str] | None:
        found = [
            (client, session_id)
            for client in self.world.clients
            if not client.is_cut
            for session_id in client.seats
            if session_id in client.sessions
        ]
        return self.random.choice(found) if found else None

    async def act(self) -> None:
        """One thing happens."""
        name = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        await getattr(self, f"do_{name}")()

    def note(self, *words: Any) -> None:
        """Remembers what is being done, for who reads a failure."""
        self.log.append(" ".join(map(str, (self.world.now - MONTH_END_AT, *words))))

    async def do_start(self) -> None:
        world, chance = self.world, self.random
        if sum(1 for client in world.clients if client.seats) >= self.sessions_max:
            return
        person = chance.choice(self.people)
        kind = chance.choice(self.kinds)
        node = chance.choice(world.nodes)
        session_id = f"s{len(world.diaries)}"
        self.note("start", session_id, kind, person.user_id, node.name)
        await world.start(node, person, kind, session_id)

    async def do_join(self) -> None:
        world, chance = self.world, self.random
        if not world.diaries:
            return
        diary = world.diaries[chance.choice(list(world.diaries)[-8:])]
        node = chance.choice(world.nodes)
        self.note("join", diary.session_id, node.name)
        await world.start(node, diary.person, diary.terms.kind, diary.session_id)

    async def _request(self, event: Event) -> None:
        found = self._seated()
        if found:
            self.note(event.value, found[0].name, found[1])
            await self.world.request(*found, event)

    async def do_pause(self) -> None:
        await self._request(Event.PAUSE)

    async def do_resume(self) -> None:
        await self._request(Event.RESUME)

    async def do_stop(self) -> None:
        await self._request(Event.STOP)

    async def do_operator(self) -> None:
        found = self._seated()
        if found:
            self.note("operator", found[1])
            await self.world.stop_from_outside(*found)

    async def do_look_away(self) -> None:
        watchers = [client for client in self.world.clients if client.watched]
        if watchers:
            client = self.random.choice(watchers)
            self.note("look away", client.name)
            await self.world.look_away(client)

    async def do_leave(self) -> None:
        found = self._seated()
        if found:
            self.note("leave", found[0].name, found[1])
            await self.world.leave(*found)

    async def do_close(self) -> None:
        found = self._seated()
        if found:
            self.note("close", found[0].name)
            await self.world.close(found[0])

    async def do_cut(self) -> None:
        found = self._seated()
        if found:
            self.note("cut", found[0].name)
            self.world.cut(found[0])

    async def do_watch(self) -> None:
        found = self._seated()
        if found:
            node = self.random.choice(self.world.nodes)
            self.note("watch", found[1], node.name)
            await self.world.watch(node, found[1])

    async def do_pay(self) -> None:
        person = self.random.choice(self.people)
        micros = self.random.choice(self.amounts)
        self.note("pay", person.user_id, micros)
        await self.world.pay(person, micros)

    async def do_take(self) -> None:
        person = self.random.choice(self.world.people)
        key = person.tenant, person.account_id
        if self.world.money[key] > 0:
            micros = self.random.randint(1, CREDIT)
            self.note("take", person.user_id, micros)
            await self.world.pay(person, -micros)

    async def do_limit(self) -> None:
        person = self.random.choice(self.world.people)
        minutes = self.random.choice([None, 3, 8, 20])
        of_org = self.random.random() < 0.5
        self.note("limit", person.user_id, minutes, of_org)
        await self.world.limit(person, minutes, of_org=of_org)

    async def do_wait(self) -> None:
        ms = self.random.choice(
            [1, 999, 1_000, 5_000, 12_345, 29_999, 30_000, 60_000, 61_001, 180_000]
        )
        self.note("wait", ms)
        await self.world.advance(ms)

    async def do_fault(self) -> None:
        node = self.random.choice(self.world.nodes)
        plan = self.random.choice(["before", "after", "late", "twice"])
        self.note("fault", node.name, plan)
        self.world.faults[node.name] = [plan] * self.random.choice([1, 1, 2])

    async def do_away(self) -> None:
        ms = self.random.choice([2_000, 30_000, 90_000, 400_000])
        self.note("away", ms)
        self.world.away(ms)

    async def do_kill(self) -> None:
        if len(self.world.nodes) > 1 and self.world.now >= self.world.outage_until:
            node = self.random.choice(self.world.nodes)
            self.note("kill", node.name)
            await self.world.kill(node, self.random.randint(0, 1_000))

    async def do_node(self) -> None:
        if len(self.world.nodes) < self.nodes_max:
            node = await self.world.node()
            self.note("node", node.name)

    async def do_flush(self) -> None:
        await self.auditor.audit()
        await self.world.cluster.flush()

    async def do_late(self) -> None:
        if self.world.now >= self.world.outage_until:
            await self.world.deliver_late()

    async def audit(self) -> None:
        """Has the auditor look."""
        evidence.check(self.auditor, await self.auditor.audit())


async def run_seed(
    redis: Redis, redis_url: str, records: Records, seed: int, minutes: int
) -> Chance:
    """Lets chance rule for so many virtual minutes; everything is audited after each step."""
    world = await make_world(redis, redis_url, records)
    chance = Chance(world, seed)
    until = world.now + minutes * 60_000
    try:
        while world.now < until:
            await chance.act()
            await chance.audit()
    except BaseException as error:
        error.add_note("\n".join([f"seed {seed}", *chance.log]))
        raise
    finally:
        await world.cluster.stop()
    return chance


async def test_chance(redis: Redis, redis_url: str, records: Records) -> None:
    first, _, last = os.environ.get("TAXIMETER_SEEDS", f"1-{round(6 * EFFORT)}").partition("-")
    audits = 0
    for seed in range(int(first), int(last or first) + 1):
        chance = await run_seed(redis, redis_url, records, seed, 20)
        audits += chance.auditor.audits
    assert audits > 10
