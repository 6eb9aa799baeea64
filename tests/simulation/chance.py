"""A seeded random generator that chooses a world's next actions.

Every choice depends on the seed and on what the generator sees. The same seed makes the same
actions.
"""

import random
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.simulation import digits
from tests.simulation.actions import Action, Performer
from tests.simulation.clients import SimulatedClient
from tests.simulation.mixes import stir
from tests.simulation.people import ALLOTMENTS, CREDIT, KINDS, Person
from tests.simulation.state import MINUTE_MS
from tests.simulation.virtual import START_AT

ZONES = ("UTC", "UTC", "Asia/Kolkata", "America/New_York", "Pacific/Kiritimati")
WAITS_MS = {
    1: 4, 999: 4, 1_000: 4, 5_000: 6, 12_345: 6, 29_999: 4, 30_000: 4, 60_000: 8, 61_001: 4,
    180_000: 6, 600_000: 5, 1_800_000: 3,
}  # fmt: skip
CROWD_STARTS = 40
"""Sessions of a crowd that start together."""
OFTEN = (None, 4, None, 2, 12)
"""Monthly limits of operations."""
LOST = ("start", "join", "pause", "resume", "stop", "pay", "spend", "hold", "post", "void")
"""Actions that may be among the last writes that a replica lacks."""
LOSS_AFTER_MS = 4_000
"""The most that a replica lags behind."""


class Chance:
    """Chooses what a world contains and what happens in it."""

    def __init__(self, seed: int, mix: str = "") -> None:
        self.random = chance = random.Random(seed)
        # Worlds differ in what there is, how much of it, and what goes wrong.
        self.zone = chance.choice(ZONES)
        self.begin_at = self._begin()
        org = f"org{seed}"
        everybody = [
            Person(f"ann{seed}", org, "team", self.zone),
            Person(f"bob{seed}", org, "team", self.zone),
            Person(f"cat{seed}", None, f"cat{seed}"),
        ]
        self.everybody = everybody
        self.member = Person(f"dan{seed}", f"club{seed}", "wallet")
        """A user whose account is only given what changing tiers give."""
        self.loner = Person(f"eve{seed}", None, f"eve{seed}")
        """A user of the other partition, with whom nothing happens by chance."""
        self.kinds = chance.sample(sorted({*KINDS} - {"dear", "few"}), chance.randint(1, 5))
        # A generator of its own, so that this kind changes nothing else in the world of a seed.
        if random.Random(f"{seed} dear").random() < 0.3:
            self.kinds.append("dear")
        self.people = chance.sample(everybody, chance.randint(1, 3))
        self.sessions_max = chance.randint(1, 6)
        self.nodes_max = chance.randint(1, 3)
        self.amounts = chance.choice(
            [
                [CREDIT // 60, CREDIT // 7],
                [CREDIT // 7, CREDIT // 2, CREDIT],
                [CREDIT, 3 * CREDIT],
                [CREDIT, 20 * CREDIT],
            ]
        )
        self.flush_ms = chance.choice([30_000, 240_000, 1_200_000])
        faulty = chance.choice([0, 0.3, 0.6, 1])
        lossy = chance.choice([0, 0, 1]) * faulty
        self.weights: dict[str, float] = {
            "start": 12, "join": 6, "pause": 4, "resume": 8, "stop": 2, "operator": 1,
            "leave": 3, "close": 2, "cut": 4, "watch": 2, "look_away": 1,
            "pay": 6, "take": 1, "spend": 4, "hold": 3, "post": 3, "void": 1, "again": 4,
            "adjust": 0.5, "limit": 2, "wait": 40, "serve": 1.5,
            "mishap": 3 * faulty, "redis_away": 0.4 * faulty, "postgres_away": 0.6 * faulty,
            "drop_lines": 0.3 * faulty, "kill": 0.8 * faulty, "kill_flusher": 0.5 * faulty,
            "step_clock": 0.5 * faulty, "empty": 0.4 * lossy, "failover": 0.4 * lossy,
            "crowd": 0, "stampede": 0,
            "slow_redis": 1.5 * faulty, "short": 2 * faulty,
        }  # fmt: skip
        self.waits_ms = WAITS_MS
        # A generator of its own for pings, so that seeds that found something still do.
        self.silence = random.Random(f"{seed}/silence")
        self.silent = self.silence.choice([0, 0, 0.02, 0.1])
        self.mix = mix
        self.often = OFTEN[seed % len(OFTEN)] if mix else None
        self._count = 0
        stir(self, mix)

    def _begin(self) -> int:
        """An instant some hours before a month ends."""
        after = datetime.fromtimestamp(START_AT / 1000, ZoneInfo(self.zone)) + timedelta(days=9)
        end = after.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return int(end.timestamp() * 1000) - self.random.randint(1, 6 * 3_600_000)

    def next(self, performer: Performer) -> list[Action]:
        """The next actions; none where the chosen one is impossible now."""
        name = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        found = getattr(self, f"_{name}")(performer)
        if found is None:
            found = []
        actions = found if isinstance(found, list) else [found]
        return [*actions, *self._mute(performer)]

    def _mute(self, performer: Performer) -> list[Action]:
        """Sometimes makes a client stop answering pings, at once or later."""
        there = [
            client
            for client in performer.world.clients
            if client.local_sessions and not client.is_cut
        ]
        if not there or self.silence.random() >= self.silent:
            return []
        return [Action("mute", {"client": self.silence.choice(there).name})]

    # --- Picking ----------------------------------------------------------------------------

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _node(self, performer: Performer) -> str:
        return self.random.choice(performer.world.nodes).name

    def _joined(self, performer: Performer) -> tuple[SimulatedClient, str] | None:
        found = [
            (client, session_id)
            for client in performer.world.clients
            if not client.is_cut
            for session_id in client.local_sessions
            if session_id in client.sessions
        ]
        return self.random.choice(found) if found else None

    # --- Sessions ---------------------------------------------------------------------------

    def _start(self, performer: Performer, user: str = "", kind: str = "") -> Action | None:
        if (
            sum(1 for client in performer.world.clients if client.local_sessions)
            >= self.sessions_max
        ):
            return None
        parameters: dict[str, Any] = {
            "client": self._name("c"),
            "node": self._node(performer),
            "user": user or self.random.choice(self.people).user_id,
            "kind": kind or self.random.choice(self.kinds),
            "session": self._name("s"),
        }
        if self.random.random() < 0.15:
            # A backend prepares the session at the same instant.
            parameters |= {"backend": self._node(performer), "turns": self.random.randint(-20, 20)}
        return Action("start", parameters)

    def _crowd(self, performer: Performer) -> list[Action] | None:
        """Many sessions of one account start together."""
        there = sum(1 for client in performer.world.clients if client.local_sessions)
        kind, node = self.random.choice(self.kinds), self._node(performer)
        user = self.people[0].user_id
        names = range(min(CROWD_STARTS, self.sessions_max - there))
        return [
            Action(
                "start",
                {
                    "client": self._name("c"),
                    "node": node,
                    "user": user,
                    "kind": kind,
                    "session": self._name("s"),
                },
            )
            for _ in names
        ] or None

    def _stampede(self, performer: Performer) -> list[Action] | None:
        """Many connections close or break at one instant; some clients return."""
        gone = [one for one in performer.world.clients if one.local_sessions and not one.is_cut]
        name = self.random.choice(["close", "cut"])
        actions = [Action(name, {"client": client.name}) for client in gone]
        for client in gone[:: self.random.choice([2, 5])]:
            parameters = {"client": self._name("c"), "node": self._node(performer), "last_seq": 0}
            actions.append(
                Action("join", {**parameters, "session": next(iter(client.local_sessions))})
            )
        return actions or None

    def _join(self, performer: Performer) -> Action | None:
        if not performer.world.session_logs:
            return None
        session = self.random.choice(list(performer.world.session_logs)[-6:])
        last_seq = self.random.choice([None, 0, 2])
        client = self._name("c")
        there = self._joined(performer)
        if there is not None and self.random.random() < 0.3:
            client = there[0].name
        parameters = {"client": client, "node": self._node(performer)}
        return Action("join", {**parameters, "session": session, "last_seq": last_seq})

    def _ask(self, performer: Performer, event: str) -> Action | None:
        found = self._joined(performer)
        if found is None:
            return None
        return Action("ask", {"client": found[0].name, "session": found[1], "event": event})

    def _pause(self, performer: Performer) -> Action | None:
        return self._ask(performer, "pause")

    def _resume(self, performer: Performer) -> Action | None:
        return self._ask(performer, "resume")

    def _stop(self, performer: Performer) -> Action | None:
        return self._ask(performer, "stop")

    def _of_both(self, name: str, performer: Performer) -> Action | None:
        found = self._joined(performer)
        return found and Action(name, {"client": found[0].name, "session": found[1]})

    def _operator(self, performer: Performer) -> Action | None:
        return self._of_both("operator", performer)

    def _leave(self, performer: Performer) -> Action | None:
        return self._of_both("leave", performer)

    def _close(self, performer: Performer) -> Action | None:
        found = self._joined(performer)
        return found and Action("close", {"client": found[0].name})

    def _cut(self, performer: Performer) -> list[Action] | None:
        """A connection goes dead; mostly its client returns, often to another process."""
        found = self._joined(performer)
        if found is None:
            return None
        actions = [Action("cut", {"client": found[0].name})]
        if self.random.random() < 0.6:
            actions.append(Action("wait", {"ms": self.random.choice([200, 3_000, 19_000, 35_000])}))
            parameters = {"client": self._name("c"), "node": self._node(performer)}
            actions.append(Action("join", {**parameters, "session": found[1], "last_seq": 0}))
        return actions

    def _watch(self, performer: Performer) -> Action | None:
        found = self._joined(performer)
        parameters = {"client": self._name("w"), "node": self._node(performer)}
        return found and Action("watch", {**parameters, "session": found[1]})

    def _look_away(self, performer: Performer) -> Action | None:
        observers = [client for client in performer.world.clients if client.watched]
        return Action("look_away", {"client": observers[0].name}) if observers else None

    # --- Money and limits -------------------------------------------------------------------

    def _transfer(
        self, performer: Performer, kind: str, user: str, micros: int, **more: Any
    ) -> Action:
        entry = more.pop("entry", None) or self._name(kind[0])
        parameters = {"node": self._node(performer), "kind": kind, "user": user, "entry": entry}
        if kind in ("pay", "spend", "hold") and micros > 0:
            more["form"] = self._form()
        if kind in ("spend", "hold") and self.often is not None and self._count % 3 == 0:
            more["often"] = self.often
        return Action("transfer", {**parameters, "micros": micros, **more})

    def _form(self) -> int:
        """The number of an amount's written form; 0 where none is written."""
        return self._count % (digits.FORMS + 1)

    def _pay(self, performer: Performer) -> Action:
        user = self.random.choice(self.people).user_id
        return self._transfer(performer, "pay", user, self.random.choice(self.amounts))

    def _take(self, performer: Performer) -> Action | None:
        person = self.random.choice(self.people)
        if performer.money_client.moved(person.account)[0] <= 0:
            return None
        return self._transfer(performer, "pay", person.user_id, -self.random.randint(1, CREDIT))

    def _spend(self, performer: Performer) -> Action:
        micros = self.random.choice([*self.amounts, CREDIT // 4])
        return self._transfer(performer, "spend", self.random.choice(self.people).user_id, micros)

    def _hold(self, performer: Performer) -> Action:
        user, hold = self.random.choice(self.people).user_id, self._name("h")
        micros = self.random.choice(self.amounts)
        ttl_ms = self.random.choice([2_000, 60_000, 1_800_000])
        return self._transfer(
            performer, "hold", user, micros, entry=f"hold:{hold}", hold=hold, ttl_ms=ttl_ms
        )

    def _end_hold(self, performer: Performer, kind: str) -> Action | None:
        holds = [
            transfer
            for transfer in performer.money_client.transfers.values()
            if transfer.kind == "hold"
        ][-4:]
        if not holds:
            return None
        held = self.random.choice(holds)
        micros = self.random.choice([held.micros, held.micros // 2, 0, held.micros + 1])
        return self._transfer(performer, kind, held.person.user_id, micros, hold=held.hold_id)

    def _post(self, performer: Performer) -> Action | None:
        return self._end_hold(performer, "post")

    def _void(self, performer: Performer) -> Action | None:
        return self._end_hold(performer, "void")

    def _again(self, performer: Performer) -> Action | None:
        unknown = [
            transfer
            for transfer in performer.money_client.transfers.values()
            if transfer.state == "unknown"
        ]
        if not unknown:
            return self._repeat(performer)
        return Action("again", {"node": self._node(performer), "entry": unknown[0].entry_id})

    def _repeat(self, performer: Performer) -> Action | None:
        done = [
            transfer
            for transfer in performer.money_client.transfers.values()
            if transfer.state == "done" and transfer.form
        ]
        if not done:
            return None
        entry, form = done[-1 - self._count % len(done)].entry_id, 1 + self._count % digits.FORMS
        return Action("repeat", {"node": self._node(performer), "entry": entry, "form": form})

    def _adjust(self, performer: Performer) -> Action:
        person = self.random.choice(self.everybody)
        day = datetime.fromtimestamp(performer.world.now / 1000, ZoneInfo(person.zone)).date()
        parameters = {
            "node": self._node(performer),
            "user": person.user_id,
            "entry": self._name("m"),
        }
        minutes = self.random.choice([-2, -1, 1, 3])
        month = day.replace(day=1).isoformat()
        return Action("adjust", {**parameters, "minutes": minutes, "month": month})

    def _limit(self, performer: Performer) -> list[Action]:
        user = self.random.choice(self.everybody[:2]).user_id
        minutes = self.random.choice([None, 3, 8, 20, 100])
        parameters = {"user": user, "minutes": minutes, "of_org": self._toss()}
        if self.mix:
            parameters["overage"] = self.random.random() < 0.2
        return [Action("limit", parameters), self._allot(performer)]

    def _report(self, performer: Performer) -> Action | None:
        """A client reports its next minute, or repeats a late one."""
        taken = performer.reports.taken
        known = [
            name
            for name in list(taken)[-3:]
            if performer.world.session_logs[name].person in self.people
        ]
        session = self.random.choice([*known, ""]) or self._name("t")
        person = self.random.choice(self.people)
        if session in taken:
            person = performer.world.session_logs[session].person
        minute_at = performer.reports.next_minute(session)
        if minute_at > performer.world.now - MINUTE_MS:
            return None  # the client has not counted that minute yet
        if taken.get(session) and self.random.random() < 0.2:
            minute_at = self.random.choice(list(taken[session]))
        parameters = {"node": self._node(performer), "user": person.user_id, "session": session}
        return Action("report", {**parameters, "minute_at": minute_at})

    def _intrude(self, performer: Performer) -> Action | None:
        if not performer.world.session_logs:
            return None
        session = self.random.choice(list(performer.world.session_logs)[-6:])
        user = self.random.choice(self.everybody[:2]).user_id
        parameters = {"client": self._name("x"), "node": self._node(performer)}
        return Action("intrude", {**parameters, "user": user, "session": session})

    def _forget(self, _: Performer) -> Action:
        return Action("forget")

    def _poison(self, _: Performer) -> Action:
        return Action("poison", {"partition": self.random.randint(0, 1)})

    def _allot(self, performer: Performer) -> Action:
        """A process allots what it believes the tier gives; tiers change."""
        entry, node = (
            self._name("a"),
            performer.world.nodes[self._count % len(performer.world.nodes)],
        )
        tier = sorted(ALLOTMENTS)[self._count * self._count // 3 % len(ALLOTMENTS)]
        parameters = {"node": node.name, "user": self.member.user_id, "entry": entry}
        return Action("allot", {**parameters, "tier": tier})

    def _toss(self) -> bool:
        return self.random.random() < 0.5

    # --- Time and processes -----------------------------------------------------------------

    def _wait(self, _: Performer) -> Action:
        (ms,) = self.random.choices(list(self.waits_ms), list(self.waits_ms.values()))
        return Action("wait", {"ms": ms})

    def _serve(self, performer: Performer) -> Action | None:
        if len(performer.world.nodes) >= self.nodes_max:
            return None
        return Action("serve", {"node": self._name("node.")})

    def _kill(self, performer: Performer) -> list[Action] | None:
        """A process dies; some of its clients come back to another process."""
        if len(performer.world.nodes) < 2 or performer.cluster.redis_is_away:
            return None
        node = self.random.choice(performer.world.nodes)
        actions = [Action("kill", {"name": node.name})]
        others = [other.name for other in performer.world.nodes if other is not node]
        for client in performer.world.clients:
            for session in client.present():
                if client.node is node and self.random.random() < 0.6:
                    ms = self.random.choice([1, 1_500, 4_000, 8_000])
                    actions.append(Action("wait", {"ms": ms}))
                    back = {"client": self._name("c"), "node": self.random.choice(others)}
                    back |= {"session": session.session_id, "last_seq": 0}  # type: ignore[dict-item]
                    actions.append(Action("join", back))
        return actions

    def _kill_flusher(self, performer: Performer) -> list[Action] | None:
        living = [host for host in performer.cluster.flushers if host.is_alive]
        if not living:
            return None
        name, ms = self._name("flusher"), self.random.choice([0, 20_000, 600_000])
        actions = [Action("flusher", {"name": name, "pace_ms": self.flush_ms})]
        if self._toss():
            kind = self.random.choice(["died", "died_after"])
            where = self.random.choice(["redis", "postgres"])
            kinds = [["none"]] * self.random.randint(0, 2) + [[kind]]
            parameters = {"name": living[0].name, "where": where, "kinds": kinds}
            return [Action("mishaps", parameters), Action("wait", {"ms": ms}), *actions]
        return [Action("kill", {"name": living[0].name}), Action("wait", {"ms": ms}), *actions]

    # --- Faults -------------------------------------------------------------------------------

    def _mishap(self, performer: Performer) -> Action:
        host = self.random.choice(performer.cluster.hosts)
        where = self.random.choice(["redis", "redis", "postgres"])
        kinds: list[list[Any]] = []
        for _ in range(self.random.choice([1, 1, 2])):
            kind = self.random.choice(["lost", "unanswered", "late", "slow", "twice", "none"])
            ms = self.random.choice([10, 400, 1_499, 1_600, 4_000, 30_000])
            kinds.append([kind, ms])
        if self.random.random() < 0.1 and len(performer.world.nodes) > 1:
            kinds.append([self.random.choice(["died", "died_after"])])
        return Action("mishaps", {"name": host.name, "where": where, "kinds": kinds})

    def _redis_away(self, _: Performer) -> Action:
        return Action(
            "redis_away", {"ms": self.random.choice([800, 2_000, 8_000, 30_000, 70_000, 150_000])}
        )

    def _slow_redis(self, _: Performer) -> Action:
        delays = self.random.choice(
            [[300], [700, 1_200, 900], [600, 1_600, 5_000], [1_400], [5_000], [20, 20, 20, 2_500]]
        )
        ms = self.random.choice([3_000, 20_000, 90_000])
        return Action("slow_redis", {"delays": delays, "ms": ms})

    def _short(self, performer: Performer) -> list[Action]:
        """A session starts with little credit; then Redis is slow or away."""
        user, kind = self.random.choice(self.people).user_id, self.random.choice(self.kinds)
        micros = max(1, KINDS[kind].price_micros) * self.random.randint(4, 130) // 60
        actions = [
            self._transfer(performer, "pay", user, micros),
            *([self._start(performer, user, kind)] if self._toss() else []),
            self._start(performer, user, kind),
            Action("wait", {"ms": self.random.choice([10, 900, 4_000])}),
            self._slow_redis(performer) if self._toss() else self._redis_away(performer),
            Action("wait", {"ms": self.random.choice([5_000, 30_000, 61_001])}),
        ]
        return [action for action in actions if action is not None]

    def _postgres_away(self, _: Performer) -> Action:
        return Action("postgres_away", {"ms": self.random.choice([2_000, 60_000, 900_000])})

    def _drop_lines(self, _: Performer) -> Action:
        return Action("drop_lines")

    def _step_clock(self, _: Performer) -> Action:
        ms = self.random.choice([-3_600_000, -4_000, -300, 300, 4_000, 3_600_000])
        return Action("step_clock", {"where": self.random.choice(["redis", "wall"]), "ms": ms})

    def _empty(self, _: Performer) -> Action:
        return Action("empty")

    def _failover(self, performer: Performer) -> list[Action]:
        """A replica stops following, and takes over a few actions later."""
        actions = [Action("lag")]
        left_ms = LOSS_AFTER_MS
        for _ in range(self.random.randint(0, 3)):
            name = self.random.choice(LOST if self.mix else LOST[:7])
            found = getattr(self, f"_{name}")(performer)
            actions += [found] if found is not None else []
            ms = min(left_ms, self.random.choice([0, 10, 900, 2_500]))
            left_ms -= ms
            actions.append(Action("wait", {"ms": ms}))
        return [*actions, Action("failover", {"unnoticed": self.random.random() < 0.5})]
