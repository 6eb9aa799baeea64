"""The auditor: whether the promises hold, judged from outside.

Written from DESIGN section 1 and not from the code. It reads what is in Redis as it lies
there, the records on their way to Postgres, and the messages that clients received
(``evidence``), computes every figure again in its own, slow way, and says what does not
add up. Of the world it knows what was paid in and what was asked for.
"""

import json
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from protocol.steps import Step
from tests.simulation.world import World

MINUTE_MS = 60_000


def billed_ms(paid_ms: int, first_ms: int, next_ms: int) -> int:
    """The billed time of so much paid time: one increment after the other."""
    billed = 0
    while billed < paid_ms:
        billed += next_ms if billed else first_ms
    return billed


def cost_micros(terms: dict[str, Any], elapsed_ms: int, free_ms: int) -> int:
    """What a session costs up to ``elapsed_ms``; a fraction is dropped."""
    paid_ms = max(0, elapsed_ms - free_ms)
    billed = billed_ms(paid_ms, terms["first_increment_ms"], terms["next_increment_ms"])
    return int(terms["price_micros"]) * billed // MINUTE_MS


def month(at_ms: int, zone: str) -> str:
    """The first day of the month of an instant, by the calendar of a zone."""
    day = datetime.fromtimestamp(at_ms / 1000, zoneinfo.ZoneInfo(zone)).date()
    return day.replace(day=1).isoformat()


@dataclass
class State:
    """Everything in Redis, read as it is."""

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By tenant and id: version, identity, standing, grant, final."""
    hashes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Accounts, members, organisations, free time: by the kind of the key and its name."""
    sets: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    graces: dict[str, int] = field(default_factory=dict)
    notices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Oldest first."""
    outbox: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Records by the id of their entry."""

    @property
    def live(self) -> dict[str, dict[str, Any]]:
        """The sessions that have not ended."""
        return {
            name: session
            for name, session in self.sessions.items()
            if session["standing"]["phase"] != "ended"
        }


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(name): _text(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_text(part) for part in value]
    return value


async def look(redis: Redis) -> State:
    """Reads everything."""
    state = State(
        hashes={kind: {} for kind in ("account", "member", "org", "free")},
        sets={kind: {} for kind in ("sockets", "live", "node")},
    )
    for key in sorted(_text(await redis.keys("{p*"))):
        _, kind, *rest = key.split(":", 2)
        name = rest[0] if rest else ""
        if kind == "session":
            found = _text(await redis.hgetall(key))
            for part in ("identity", "standing", "grant"):
                found[part] = json.loads(found[part])
            state.sessions[name] = found
        elif kind in state.hashes and not name.endswith(":applied"):
            state.hashes[kind][name] = _text(await redis.hgetall(key))
        elif kind in state.sets:
            place = name if kind == "sockets" else key
            state.sets[kind][place] = set(_text(await redis.smembers(key)))
        elif kind == "graces":
            scores: list[Any] = await redis.zrange(key, 0, -1, withscores=True)
            state.graces.update({_text(member): int(score) for member, score in scores})
        elif kind == "notices":
            kept = _text(await redis.lrange(key, 0, -1))
            state.notices[name] = [json.loads(notice) for notice in reversed(kept)]
        elif kind == "outbox":
            for entry_id, fields in _text(await redis.xrange(key) or []):
                state.outbox[f"{key}/{entry_id}"] = json.loads(fields["r"])
    return state


def counted_ms(session: dict[str, Any], now_ms: int) -> int:
    """The counted time of a session now: while it runs, since it was written down."""
    standing = session["standing"]
    elapsed_ms = int(standing["elapsed_ms"])
    if standing["phase"] == "active":
        speed = session["identity"]["terms"]["speed"]
        elapsed_ms += (now_ms - int(standing["at"])) * speed
        if session["final"]:
            elapsed_ms = min(elapsed_ms, int(session["grant"]["granted_ms"]))
    return elapsed_ms


class Auditor:
    """Looks at a world after every step, and remembers what it saw."""

    def __init__(self, world: World, zone: str = "UTC") -> None:
        self.world = world
        self.zone = zone
        """Where the organisations' months begin."""
        self.records: dict[str, list[dict[str, Any]]] = {}
        """Everything that was ever in an outbox, by the id of its entry."""
        self.audits = 0
        world.look = lambda: look(world.cluster.redis)
        self._judged = 0

    async def audit(self) -> State:
        """Looks, and raises ``AssertionError`` for whatever does not add up."""
        world = self.world
        assert not world.livelocks, f"endless steps of {set(world.livelocks)} at {world.now}"
        world.check_answers()
        state = await look(world.cluster.redis)
        self.records.update(state.outbox)
        self.audits += 1
        for session in state.sessions.values():
            self._check_session(session)
        for name, account in state.hashes["account"].items():
            self._check_account(state, name, account)
        self._check_months(state)
        self._check_free_time(state)
        self._check_sets(state)
        for step, figures in world.accepted[self._judged :]:
            self._check_step(step, figures)
        self._judged = len(world.accepted)
        return state

    # --- One session ----------------------------------------------------------------

    def _check_session(self, session: dict[str, Any]) -> None:
        standing, grant = session["standing"], session["grant"]
        terms = session["identity"]["terms"]
        name = session["identity"]["session_id"], standing
        assert int(session["version"]) == standing["version"], name
        settled_ms, free_ms = standing["settled_ms"], standing["free_ms"]
        assert 0 <= settled_ms <= counted_ms(session, self.world.now), name
        # Every charge is explained by the counted time that is settled.
        assert standing["charged_micros"] == cost_micros(terms, settled_ms, free_ms), name
        kept = standing["minutes_kept"]
        if standing["phase"] == "ended":
            assert settled_ms == standing["elapsed_ms"], name
            assert kept == -(-settled_ms // MINUTE_MS), name
        else:
            assert kept == settled_ms // MINUTE_MS, name
        boundary_ms = min(settled_ms, kept * MINUTE_MS)
        assert standing["minute_charged_micros"] == cost_micros(terms, boundary_ms, free_ms), name
        if standing["phase"] in ("paused", "suspended", "ended"):
            assert grant["held_micros"] == 0, (name, grant)
            assert not grant["held_minutes"], (name, grant)
        assert grant["held_micros"] >= 0, (name, grant)
        if terms["session_cap_ms"]:
            assert counted_ms(session, self.world.now) <= terms["session_cap_ms"], name

    # --- Accounts ---------------------------------------------------------------------

    def _check_account(self, state: State, name: str, account: dict[str, str]) -> None:
        tenant, _, account_id = name.partition("/")
        sessions = [
            session
            for session in state.sessions.values()
            if (session["identity"]["tenant"], session["identity"]["account_id"])
            == (tenant, account_id)
        ]
        live = [session for session in sessions if session["standing"]["phase"] != "ended"]
        active = [session for session in live if session["standing"]["phase"] == "active"]
        figure = {
            part: int(account.get(part, 0))
            for part in ("balance", "held", "reserved", "charged_live", "burn", "live")
        }
        where = (name, figure, self.world.now)
        burnt = sum(session["standing"]["charged_micros"] for session in sessions)
        assert figure["balance"] == self.world.money[tenant, account_id] - burnt, (where, burnt)
        held = sum(session["grant"]["held_micros"] for session in live)
        assert figure["held"] == held + figure["reserved"], (where, held)
        charged = sum(session["standing"]["charged_micros"] for session in live)
        assert figure["charged_live"] == charged, (where, charged)
        burn = sum(
            session["identity"]["terms"]["price_micros"] * session["identity"]["terms"]["speed"]
            for session in active
        )
        assert figure["burn"] == burn, (where, burn)
        assert figure["live"] == len(live), (where, sessions)
        if not self._may_owe(tenant, account_id, sessions):
            # No session may use what was not there when it was granted.
            assert 0 <= figure["held"] <= figure["balance"], where
        self._check_lines(account, live, where)

    def _may_owe(self, tenant: str, account_id: str, sessions: list[dict[str, Any]]) -> bool:
        """Money was taken out that was held, or time was used while Redis was away."""
        return (tenant, account_id) in self.world.taken or any(
            session["standing"]["uncovered_ms"] for session in sessions
        )

    def _check_lines(self, account: dict[str, str], live: list[dict[str, Any]], where: Any) -> None:
        lines = {name[2:]: json.loads(line) for name, line in account.items() if name[:2] == "s:"}
        assert set(lines) == {session["identity"]["session_id"] for session in live}, (
            where,
            lines,
            live,
        )
        for session in live:
            standing, terms = session["standing"], session["identity"]["terms"]
            elapsed_ms, at, free_ms, price, first_ms, next_ms, speed, running = lines[
                session["identity"]["session_id"]
            ]
            assert (price, first_ms, next_ms, speed) == (
                terms["price_micros"],
                terms["first_increment_ms"],
                terms["next_increment_ms"],
                terms["speed"],
            ), where
            assert running == (standing["phase"] == "active"), (where, session)
            assert free_ms == standing["free_ms"], (where, session)
            if running:
                elapsed_ms += (standing["at"] - at) * speed
            assert elapsed_ms == standing["elapsed_ms"], (where, session, lines)

    # --- Months and free time ---------------------------------------------------------

    def _check_months(self, state: State) -> None:
        used: defaultdict[str, Counter[str]] = defaultdict(Counter)
        held: defaultdict[str, Counter[str]] = defaultdict(Counter)
        active: Counter[str] = Counter()
        live: Counter[str] = Counter()
        for record in self.all_records("minute"):
            if record["counts"]:
                for name in _counters(record):
                    used[name][record["month"]] += 1
        for session in state.live.values():
            identity, standing = session["identity"], session["standing"]
            if not identity["terms"]["counts_minutes"]:
                continue
            for name in _counters(identity):
                live[name] += 1
                active[name] += standing["phase"] == "active"
                held[name].update(session["grant"]["held_minutes"])
                if standing["settled_ms"] > standing["minutes_kept"] * MINUTE_MS:
                    used[name][month(standing["minute_at"], self.zone)] += 1
        for kind in ("member", "org"):
            for place, counter in state.hashes[kind].items():
                name = f"{kind}:{place}"
                where = (name, counter, self.world.now)
                assert int(counter.get("active", 0)) == active[name], (where, active)
                assert int(counter.get("live", 0)) == live[name], (where, live)
                for part in ("used", "held"):
                    expected = (used if part == "used" else held)[name]
                    there = {
                        key.partition(":")[2]: int(value)
                        for key, value in counter.items()
                        if key.startswith(f"{part}:") and int(value)
                    }
                    assert there == dict(+expected), (where, part, expected)
                self._check_month_limit(name, counter)

    def _check_month_limit(self, name: str, counter: dict[str, str]) -> None:
        if not counter.get("limit") or name in self.world.lowered or self.world.was_away:
            return
        for key, value in counter.items():
            part, _, first_day = key.partition(":")
            if part == "used":
                total = int(value) + int(counter.get(f"held:{first_day}", 0))
                assert total <= int(counter["limit"]), (name, counter)

    def _check_free_time(self, state: State) -> None:
        taken: Counter[str] = Counter()
        for session in state.sessions.values():
            identity = session["identity"]
            if identity["free_key"]:
                taken[f"{identity['tenant']}/{identity['free_key']}"] += session["standing"][
                    "free_ms"
                ]
                assert session["standing"]["free_ms"] <= identity["terms"]["free_ms"], session
            elif session["standing"]["phase"] != "ended":
                assert session["standing"]["free_ms"] == identity["terms"]["free_ms"], session
        limits = {
            f"{session['identity']['tenant']}/{session['identity']['free_key']}": session[
                "identity"
            ]["terms"]["free_ms"]
            for session in state.sessions.values()
        }
        for name, allowance in state.hashes["free"].items():
            assert int(allowance["used"]) == taken[name], (name, allowance, taken)
            assert taken[name] <= limits.get(name, 0), (name, allowance)

    # --- Who is where -------------------------------------------------------------------

    def _check_sets(self, state: State) -> None:
        live = set().union(*state.sets["live"].values())
        assert live == set(state.live), (live, set(state.live))
        graces = {
            name: session["standing"]["grace_until"]
            for name, session in state.live.items()
            if session["standing"]["grace_until"] is not None
        }
        assert state.graces == graces, (state.graces, graces)
        for name, processes in state.sets["sockets"].items():
            assert name in state.live or not processes, (name, processes)
        if not self.world.is_quiet:
            return
        seated: defaultdict[str, set[str]] = defaultdict(set)
        for client in self.world.clients:
            if client.node.is_alive:
                for seat in client.seats.values():
                    seated[seat.key].add(client.node.name)
        dead = set(self.world.deaths)
        for name, session in state.live.items():
            processes = state.sets["sockets"].get(name, set())
            assert processes - dead == seated[name], (name, processes, dict(seated), session)
            if not processes:
                assert session["standing"]["grace_until"] is not None, session
        by_node: defaultdict[str, set[str]] = defaultdict(set)
        for key, names in state.sets["node"].items():
            by_node[key.rpartition(":")[2]] |= names
        for node in self.world.nodes:
            expected = {name for name, processes in seated.items() if node.name in processes}
            assert by_node[node.name] == expected, (node.name, by_node, expected)

    # --- Steps ---------------------------------------------------------------------------

    def _check_step(self, step: Step, figures: dict[str, int]) -> None:
        """No time is settled that was not granted before it, and nothing is granted that
        was not there, whatever was owed already."""
        before, after = step.before, step.standing
        uncovered_ms = after.uncovered_ms - before.standing.uncovered_ms
        ground_ms = max(before.standing.settled_ms, before.grant.granted_ms) + uncovered_ms
        assert after.settled_ms <= ground_ms, (step, figures)
        if figures["alone"] and figures["held"] > figures["balance"] and figures["held_by_it"]:
            used = figures["held_by_it"] + step.charge_micros
            assert used <= before.grant.held_micros, (step, figures)

    def all_records(self, kind: str) -> Iterable[dict[str, Any]]:
        """Every record of a kind, in the order in which they were made."""
        for records in self.records.values():
            yield from (record for record in records if record["t"] == kind)


def _counters(identity: dict[str, Any]) -> tuple[str, str]:
    """The counters of the month that a session or a minute counts on."""
    return f"member:{identity['tenant']}/{identity['user_id']}", f"org:{identity['tenant']}"
