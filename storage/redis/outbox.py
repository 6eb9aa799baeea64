"""The outbox for the flusher: keys, entries and acknowledgement."""

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
    """One entry of an outbox on its way to Postgres."""

    partition: int
    entry_id: str
    records: list[Record]
    refusal: str = ""
    """Why the entry cannot be written; empty: it can."""
    fault: str = ""
    """The error of our own that keeps the entry in the outbox; empty: the entry leaves it."""
    faulty: frozenset[type[Record]] = frozenset()
    """The types of the entry's records that met an error of our own."""


class Backlog(msgspec.Struct, frozen=True):
    """The entries that wait for Postgres, and those that it refused."""

    entries: int
    oldest_ms: int
    """The age in ms of the oldest entry, by the clock of Redis; 0: no entry waits."""
    rejected: int


def connect(redis_url: str, connections_max: int = storage_limits.FLUSH_CONNECTIONS_MAX) -> Redis:
    """Returns a client for blocking reads without the ordinary time-out (PITFALLS).

    The client repeats no command: entries of a read whose answer was lost are pending, and the
    flusher finds them there.
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
    """Returns the count per stream for XREADGROUP; ``count`` bounds the total."""
    return max(1, count // len(keys))


def text(value: bytes | str) -> str:
    """Returns text of Redis, whether its client decodes or not."""
    return value.decode() if isinstance(value, bytes) else value


def streams(answer: Any) -> list[tuple[bytes | str, list[Any]]]:
    """Returns an answer's streams, in any shape of redis-py's."""
    found = list(answer.items()) if isinstance(answer, dict) else list(answer or [])
    return [
        # In one shape, a stream's entries are a list within a list.
        (key, entries[0] if entries and isinstance(entries[0], list) else entries)
        for key, entries in found
    ]


def entry_of(partition: int, entry_id: bytes | str, fields: Any) -> OutboxEntry:
    """Returns the decoded entry, or one marked with decoding's error.

    An entry without fields is pending but was deleted: there is nothing to write, and its
    acknowledgement is enough.
    """
    entry = OutboxEntry(partition, text(entry_id), [])
    try:
        if fields:
            entry.records = decode_records({text(name): fields[name] for name in fields}["r"])
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        entry.refusal = f"cannot be decoded: {error!r}"
    return entry


def acknowledgement(partition: int, entries: Sequence[OutboxEntry]) -> tuple[list[str], list[Any]]:
    """Returns the keys and arguments of ``acknowledge.lua``."""
    keys = [outbox_key(partition), watermark_key(partition), rejected_key(partition)]
    arguments: list[Any] = [GROUP, storage_limits.REJECTED_ENTRIES_MAX]
    for entry in entries:
        arguments += [entry.entry_id, entry.refusal, len(entry.records)]
    return keys, arguments
