"""Redis's raw data, and DESIGN's arithmetic in an independent, slow way."""

import json
import zlib
import zoneinfo
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from storage.redis.keys import CLOCK, NODES
from tests.simulation.virtual_redis import VirtualRedisServer

MINUTE_MS = 60_000


def billed_ms(paid_ms: int, first_ms: int, next_ms: int) -> int:
    """The billed time of paid time, one increment after the other."""
    if paid_ms <= 0:
        return 0
    billed = first_ms
    # Whole blocks of increments where they surely fit, and the last ones one by one.
    billed += max(0, (paid_ms - billed) // next_ms - 2) * next_ms
    while billed < paid_ms:
        billed += next_ms
    return billed


def cost_micros(terms: dict[str, Any], elapsed_ms: int, free_ms: int) -> int:
    """The cost of a session up to ``elapsed_ms``.

    A fraction of a micro-credit is dropped.
    """
    paid_ms = max(0, elapsed_ms - free_ms)
    billed = billed_ms(paid_ms, terms["first_increment_ms"], terms["next_increment_ms"])
    return int(terms["price_micros"]) * billed // MINUTE_MS


@lru_cache(10_000)
def month(at_ms: int, zone: str) -> str:
    """The first day of an instant's month in a time zone."""
    day = datetime.fromtimestamp(at_ms / 1000, zoneinfo.ZoneInfo(zone)).date()
    return day.replace(day=1).isoformat()


@dataclass
class State:
    """Everything in Redis, as it is stored."""

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By tenant and id: version, identity, standing, grant, final."""
    hashes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Hashes of accounts, members, organisations, free time and holds, by kind and name of the key.
    """
    sets: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    graces: dict[str, int] = field(default_factory=dict)
    notices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By session, the oldest notice first."""
    outbox: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Records, by partition and id of their entry."""
    replayed: set[str] = field(default_factory=set)
    """Outbox entries that were appended again."""
    recovering: bool = False
    """Processes are putting back what Redis has lost."""
    unsettled: bool = False
    """A session may still be put back."""
    watermarks: dict[str, str] = field(default_factory=dict)
    """By partition: the id up to which every entry has left the outbox."""
    hold_ends: dict[str, int] = field(default_factory=dict)
    """The ends of open holds, in the set that expiry reads."""
    remembered: dict[str, dict[str, int]] = field(default_factory=dict)
    """By key: the spends or applied entries that an account remembers, and since when."""
    tracked: dict[str, dict[int, int]] = field(default_factory=dict)
    """By key: the numbers of reported minutes, by the minutes' beginnings."""
    expiry: dict[str, int] = field(default_factory=dict)
    """By key: when the key expires. A key that is absent here stays."""
    passing: set[str] = field(default_factory=set)
    """Keys of any subject that exist only for a while."""
    proofs: dict[str, int] = field(default_factory=dict)
    """Last proofs of life of processes, in cluster time."""
    clock: dict[str, float] = field(default_factory=dict)
    """The times that the last heartbeat of any process wrote; see ``beat.lua``."""

    @property
    def live(self) -> dict[str, dict[str, Any]]:
        """The sessions that have not ended."""
        return {
            name: session
            for name, session in self.sessions.items()
            if session["standing"]["phase"] != "ended"
        }

    def key_of(self, kind: str, name: str) -> str:
        """The key of some kind that belongs to an account."""
        tenant = name.partition("/")[0]
        return f"{{p{zlib.crc32(tenant.encode()) % PARTITIONS}}}:{kind}:{name}"

    def expiry_of(self, kind: str, name: str) -> int | None:
        """When a key expires; None: the key stays, or does not exist."""
        return self.expiry.get(self.key_of(kind, name))

    @property
    def holds(self) -> list[dict[str, str]]:
        """The open holds."""
        return [hold for hold in self.hashes["hold"].values() if hold["state"] == "open"]


READS: dict[str, tuple[Any, ...]] = {
    "session": ("HGETALL",),
    "account": ("HGETALL",),
    "member": ("HGETALL",),
    "org": ("HGETALL",),
    "free": ("HGETALL",),
    "hold": ("HGETALL",),
    "operations": ("HGETALL",),
    "sockets": ("SMEMBERS",),
    "live": ("SMEMBERS",),
    "node": ("SMEMBERS",),
    "running": ("SMEMBERS",),
    "graces": ("ZRANGE", 0, -1, "WITHSCORES"),
    "notices": ("LRANGE", 0, -1),
    "outbox": ("XRANGE", "-", "+"),
    "watermark": ("GET",),
    "holds": ("ZRANGE", 0, -1, "WITHSCORES"),
    "tracked": ("HGETALL",),
    "applied": ("ZRANGE", 0, -1, "WITHSCORES"),
    "spends": ("ZRANGE", 0, -1, "WITHSCORES"),
}
PARTITIONS = 2
"""Number of partitions of the virtual cluster."""
PASSING = ("contained", "prepared", "recovering", "replayed", "unsettled")


HASHES = ("account", "member", "org", "free", "hold", "operations")


def look(redis: VirtualRedisServer) -> State:
    """Reads everything."""
    state = State(
        hashes={kind: {} for kind in HASHES},
        sets={kind: {} for kind in ("sockets", "live", "node", "running")},
    )
    redis.carry([])  # due keys have expired
    found = []
    for raw in sorted(redis.wire.ask("KEYS", "{p*")):
        key = raw.decode()
        _, kind, *rest = key.split(":", 2)
        if key.endswith(":tracked"):
            kind = "tracked"
        if kind in READS:
            found.append((kind, rest[0] if rest else "", key))
        if kind in PASSING:
            state.passing.add(key)
        state.recovering = state.recovering or kind == "recovering"
        state.unsettled = state.unsettled or kind == "unsettled"
    ends = redis.wire.ask("ZRANGE", "simulator:expiry", 0, -1, "WITHSCORES")
    state.expiry = {key.decode(): int(at) for key, at in ends}
    proofs, clock, *answers = redis.wire.ask_all(
        [
            ("ZRANGE", NODES, 0, -1, "WITHSCORES"),
            ("HGETALL", CLOCK),
            *((READS[kind][0], key, *READS[kind][1:]) for kind, _, key in found),
        ]
    )
    state.proofs = {node.decode(): int(at) for node, at in proofs}
    state.clock = {name.decode(): float(figure) for name, figure in clock.items()}
    for (kind, name, key), answer in zip(found, answers, strict=True):
        _take(state, kind, name, key, answer)
    return state


def _take(state: State, kind: str, name: str, key: str, answer: Any) -> None:
    match kind:
        case "session":
            fields = {field.decode(): value.decode() for field, value in answer.items()}
            for part in ("identity", "standing", "grant"):
                fields[part] = json.loads(fields[part])
            state.sessions[name] = fields
        case "sockets" | "live" | "node" | "running":
            place = name if kind in ("sockets", "running") else key
            state.sets[kind][place] = {member.decode() for member in answer}
        case "graces":
            state.graces.update({member.decode(): int(score) for member, score in answer})
        case "notices":
            state.notices[name] = [json.loads(notice) for notice in reversed(answer)]
        case "outbox":
            for entry_id, fields in answer:
                entry = f"{key[2:3]}/{entry_id.decode()}"
                state.outbox[entry] = json.loads(fields[1])
                if is_replay(fields):
                    state.replayed.add(entry)
        case "watermark":
            state.watermarks[key[2:3]] = answer.decode()
        case "holds":
            state.hold_ends.update({member.decode(): int(score) for member, score in answer})
        case "applied" | "spends":
            state.remembered[key] = {entry.decode(): int(at) for entry, at in answer}
        case "tracked":
            state.tracked[key] = {int(at): int(number) for at, number in answer.items()}
        case _:
            state.hashes[kind][name] = {
                field.decode(): value.decode() for field, value in answer.items()
            }


def place_of(entry: str) -> tuple[int, int]:
    """The place of an outbox entry (``<partition>/<ms>-<serial>``) in its stream."""
    ms, _, serial = entry.partition("/")[2].partition("-")
    return int(ms), int(serial or 0)


def is_replay(fields: Any) -> bool:
    """Whether an outbox entry is appended again.

    Only the entry of a step has its time.
    """
    return b"t" not in fields


def counted_ms(session: dict[str, Any], now_ms: int) -> int:
    """A session's counted time now.

    A running session counts on since its last step.
    """
    standing = session["standing"]
    elapsed_ms = int(standing["elapsed_ms"])
    if standing["phase"] == "active":
        speed = session["identity"]["terms"]["speed"]
        elapsed_ms += (now_ms - int(standing["at"])) * speed
        if session["final"]:
            elapsed_ms = min(elapsed_ms, int(session["grant"]["granted_ms"]))
    return elapsed_ms


def minutes_counters(identity: dict[str, Any]) -> tuple[str, str]:
    """The month counters on which a session or a minute counts."""
    return f"member:{identity['tenant']}/{identity['user_id']}", f"org:{identity['tenant']}"
