"""The outbox as the flusher sees it: its keys, its entries, and their acknowledgement."""

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.redis.cluster import ClusterRedis, is_cluster
from storage.redis.encoding import decode_records
from storage.redis.keys import outbox_key, rejected_key, watermark_key

GROUP = "flush"


class OutboxEntry(msgspec.Struct):
    """One entry of an outbox, on its way."""

    partition: int
    entry_id: str
    records: list[Record]
    refusal: str = ""
    """Why it cannot be written; empty when it can."""
    fault: str = ""
    """The error of our own for which it stays in the outbox; empty: it leaves it."""
    faulty: frozenset[type[Record]] = frozenset()
    """The types of its records that met an error of our own."""


class Backlog(msgspec.Struct, frozen=True):
    """What waits for Postgres, and what it refused."""

    entries: int
    oldest_ms: int
    """The age of the oldest entry, by the clock of Redis; 0 when none waits."""
    rejected: int


def connect(redis_url: str, connections_max: int = storage_limits.FLUSH_CONNECTIONS_MAX) -> Redis:
    """A client for blocking reads, which the ordinary time-out would end (PITFALLS).

    It repeats no command by itself: a read whose answer was lost has made its entries
    pending, and the flusher knows where to find them.
    """
    timeout_s = storage_limits.FLUSH_SOCKET_TIMEOUT_MS / 1000

    def make(url: str) -> Redis:
        return Redis.from_url(
            url,
            max_connections=connections_max,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            legacy_responses=False,
        )

    return ClusterRedis(redis_url, make) if is_cluster(redis_url) else make(redis_url)


def share(count: int, keys: Sequence[str]) -> int:
    """XREADGROUP counts for each stream; together they are bounded by ``count``."""
    return max(1, count // len(keys))


def text(value: bytes | str) -> str:
    """What Redis says, whether its client decodes or not."""
    return value.decode() if isinstance(value, bytes) else value


def streams(answer: Any) -> list[tuple[bytes | str, list[Any]]]:
    """The streams of an answer, in whichever of its shapes redis-py gives them."""
    found = list(answer.items()) if isinstance(answer, dict) else list(answer or [])
    return [
        # In one of them every stream's entries are a list within a list.
        (key, entries[0] if entries and isinstance(entries[0], list) else entries)
        for key, entries in found
    ]


def entry_of(partition: int, entry_id: bytes | str, fields: Any) -> OutboxEntry:
    """The entry, decoded, or marked with why it cannot be.

    One without fields is pending but has been deleted: there is nothing to write, and
    acknowledging it ends the matter.
    """
    entry = OutboxEntry(partition, text(entry_id), [])
    try:
        if fields:
            entry.records = decode_records({text(name): fields[name] for name in fields}["r"])
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        entry.refusal = f"cannot be decoded: {error!r}"
    return entry


def acknowledgement(partition: int, entries: Sequence[OutboxEntry]) -> tuple[list[str], list[Any]]:
    """The keys and arguments of ``acknowledge.lua``."""
    keys = [outbox_key(partition), watermark_key(partition), rejected_key(partition)]
    arguments: list[Any] = [GROUP, storage_limits.REJECTED_ENTRIES_MAX]
    for entry in entries:
        arguments += [entry.entry_id, entry.refusal, len(entry.records)]
    return keys, arguments
