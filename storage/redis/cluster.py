"""Redis Cluster, for code that is written for a single Redis.

Every key has a hash tag, so each command belongs to one node: the master of its slot.
:class:`ClusterRedis` knows the masters, and has an ordinary client for each, with the ordinary rule
that no command is run twice. A command that was answered with MOVED or ASK did not run, and goes to
the node in the answer. When a master does not answer, only commands for its keys wait. Meanwhile
the map is read again, from any node that answers, until a replica has taken over.

redis-py has a cluster client of its own. That client closes every connection when one master is
down, and sets no bound on the wait for a connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self, cast
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LineError
from redis.exceptions import TimeoutError as LateError

from protocol import limits
from storage import limits as storage_limits
from storage.tasks import end

log = structlog.get_logger()

SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""The URL schemes of clusters, with those of their nodes."""
UNANSWERED = (LineError, LateError, OSError)
"""Errors after which it is unknown whether a command was run."""
ELSEWHERE = (ClusterDownError, TryAgainError, ReadOnlyError, MovedError, AskError)
"""Errors after which a command was not run: it belongs to another node, or to none yet."""
EVERYWHERE = {"FLUSHALL", "PING", "SCRIPT LOAD", "SCRIPT FLUSH", "CONFIG SET", "KEYS"}
"""Commands without a key, which go to every master."""


class Address(NamedTuple):
    """The address at which a node listens."""

    host: str
    port: int


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster."""
    return urlsplit(url).scheme in SCHEMES


def nodes_of(url: str) -> tuple[Address, ...]:
    """Returns the nodes in a URL: ``redis+cluster://[user:password@]host:port,host:port``.

    Raises ``ValueError`` for a URL without a node, or with a port that is no number.
    """
    named = urlsplit(url).netloc.rpartition("@")[2]
    found = []
    for part in named.split(","):
        host, colon, port = part.rpartition(":")
        found.append(Address(host.strip("[]"), int(port)) if colon else Address(part, 6379))
    if not all(node.host for node in found):
        raise ValueError("names no node")
    return tuple(found)


def url_of_node(url: str, node: Address) -> str:
    """Returns a node's URL, with all else from its cluster's URL."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    host = f"[{node.host}]" if ":" in node.host else node.host
    netloc = f"{user}@{host}:{node.port}" if user else f"{host}:{node.port}"
    return parts._replace(scheme=SCHEMES[parts.scheme], netloc=netloc).geturl()


class ClusterRedis(Redis):
    """A client of a cluster: commands go to their key's master."""

    def __init__(self, url: str, make: Callable[[str], Redis]) -> None:
        """Makes a client without connections; ``make`` makes a node's client."""
        # Only the commands of Redis are needed, and all of them call execute_command.
        self._url = url
        self._make = make
        self._seeds = nodes_of(url)
        self._clients: dict[Address, Redis] = {}
        self._masters: dict[int, Address] = {}
        """Masters by slot; empty until a node has sent the map."""
        self._nodes: tuple[Address, ...] = self._seeds
        """All nodes that may be asked for the map."""
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self.shards_channels = False
        """Sharded channels are used, which the servers support; see ``storage.redis.channels``."""

    async def initialize(self) -> Self:
        """Reads the map if it is not known."""
        if not self._masters:
            await self.refresh()
        return self

    async def __aenter__(self) -> Self:
        return await self.initialize()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes the connections to all nodes."""
        await end([self._refreshing])
        clients, self._clients, self._masters = self._clients, {}, {}
        for client in clients.values():
            await client.aclose(close_connection_pool)

    # --- The map -------------------------------------------------------------------

    @property
    def masters(self) -> tuple[Address, ...]:
        """The masters, as far as is known."""
        return tuple(sorted(set(self._masters.values())))

    def master_of(self, key: str | bytes) -> Address | None:
        """The master of a key, as far as is known."""
        return self._masters.get(_slot(key))

    def client_at(self, node: Address) -> Redis:
        """Returns the client of one node."""
        found = self._clients.get(node)
        if found is None:
            found = self._clients[node] = self._make(url_of_node(self._url, node))
        return found

    async def client_of(self, key: str | bytes) -> Redis:
        """Returns the client of the master of a key."""
        return self.client_at(await self._owner(_slot(key)))

    async def _owner(self, slot: int) -> Address:
        await self.initialize()
        owner = self._masters.get(slot)
        if owner is None:
            self._suspect()
            raise LineError(f"no known node has slot {slot}")
        return owner

    async def refresh(self) -> None:
        """Reads the map from the first node that answers. Raises ``LineError``."""
        nodes = dict.fromkeys((*self._nodes, *self._seeds))
        asked = [asyncio.create_task(self._map_from(node)) for node in nodes]
        problem: BaseException | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    self._masters, self._nodes = await answer
                except (RedisError, *UNANSWERED) as error:
                    problem = error
                else:
                    return
        finally:
            await end(asked)
        raise LineError(f"no node of the cluster answers: {problem}")

    async def _map_from(self, node: Address) -> tuple[dict[int, Address], tuple[Address, ...]]:
        async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
            # The command has two words, so that redis-py does not convert the answer.
            answer = await self.client_at(node).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        masters, nodes = _map_of(answer, node)
        if not masters:
            raise LineError("the node has no slots")
        return masters, nodes

    def _suspect(self) -> None:
        """Reads a possibly outdated map again, but not continuously."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_later())

    async def _refresh_later(self) -> None:
        clock = asyncio.get_running_loop()
        pause_s = self._refreshed_at + storage_limits.CLUSTER_REFRESH_MS / 1000 - clock.time()
        await asyncio.sleep(max(0.0, pause_s))
        before = self.masters
        try:
            await self.refresh()
        except LineError as error:
            log.warning("cluster_unknown", error=str(error))
        self._refreshed_at = clock.time()
        if self.masters != before:
            log.info("cluster_masters", masters=[f"{host}:{port}" for host, port in self.masters])

    # --- Commands ------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends a command to its key's master, or to all masters."""
        slot = _slot_of(args)
        if slot is None:
            return await self._ask_all(args, options)
        for attempt in range(storage_limits.CLUSTER_REDIRECTIONS_MAX):
            client = self.client_at(await self._owner(slot))
            try:
                return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except MovedError as error:
                self._moved(error)
                if attempt == storage_limits.CLUSTER_REDIRECTIONS_MAX - 1:
                    raise
            except AskError as error:
                return await self._asking(error, args, options)
            except (*ELSEWHERE, *UNANSWERED):
                self._suspect()
                raise
        raise AssertionError

    async def _ask_all(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        name = str(args[0]).upper()
        if name not in EVERYWHERE:
            raise ValueError(f"{name} has no key: ask the client of one node")
        await self.initialize()
        answers = await asyncio.gather(
            *(self.client_at(node).execute_command(*args, **options) for node in self.masters)  # type: ignore[no-untyped-call]
        )
        return [key for keys in answers for key in keys] if name == "KEYS" else answers[0]

    async def _asking(self, error: AskError, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Sends a command to the node that will get the slot.

        ASKING must come first on the same connection.
        """
        client = self.client_at(Address(error.host, error.port))
        async with client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("ASKING")
            pipeline.execute_command(*args, **options)
            _, answer = await pipeline.execute()
        return answer

    def _moved(self, error: MovedError) -> None:
        self._masters[error.slot_id] = Address(error.host, error.port)
        self._suspect()

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Returns a pipeline for all masters concerned; a transaction concerns only one."""
        return cast(Pipeline, RoutedPipeline(self, transaction))

    async def send(
        self, commands: Sequence[tuple[Sequence[Any], dict[str, Any]]], *, transaction: bool
    ) -> list[Any]:
        """Returns the answers to commands, or exceptions.

        No command is sent twice, except one that was not run.
        """
        by_owner: dict[Address, list[int]] = {}
        for index, (args, _) in enumerate(commands):
            slot = _slot_of(args)
            if slot is None:
                raise ValueError(f"{args[0]} has no key")
            by_owner.setdefault(await self._owner(slot), []).append(index)
        if transaction and len(by_owner) > 1:
            raise ValueError("a transaction must have one slot")
        answers: list[Any] = [None] * len(commands)

        async def ask(owner: Address, indices: list[int]) -> None:
            async with self.client_at(owner).pipeline(transaction=transaction) as pipeline:
                for index in indices:
                    args, options = commands[index]
                    pipeline.execute_command(*args, **options)
                try:
                    own = await pipeline.execute(raise_on_error=False)
                except (RedisError, *UNANSWERED) as error:
                    own = [error] * len(indices)
            for index, answer in zip(indices, own, strict=True):
                answers[index] = answer

        await asyncio.gather(*(ask(*part) for part in by_owner.items()))
        if any(isinstance(answer, (*ELSEWHERE, *UNANSWERED)) for answer in answers):
            self._suspect()
        for index, answer in enumerate(answers):
            if isinstance(answer, AskError) and not transaction:  # MovedError is one too
                args, options = commands[index]
                try:
                    answers[index] = await self.execute_command(*args, **options)
                except (RedisError, *UNANSWERED) as error:
                    answers[index] = error
        return answers


class RoutedPipeline(Pipeline):
    """Commands that are kept until ``execute`` sends each to its master."""

    def __init__(self, cluster: ClusterRedis, transaction: bool) -> None:
        self._cluster = cluster
        self._transaction = transaction
        self._kept: list[tuple[Sequence[Any], dict[str, Any]]] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Keeps a command."""
        self._kept.append((args, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Returns the answers, in the order of the commands."""
        kept, self._kept = self._kept, []
        answers = await self._cluster.send(kept, transaction=self._transaction)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    async def reset(self) -> None:  # type: ignore[override]
        """Drops the commands that were not sent."""
        self._kept = []

    def __len__(self) -> int:
        return len(self._kept)


async def client_of(redis: Redis, key: str) -> Redis:
    """Returns the client of a key's master, for commands beyond one key."""
    return await redis.client_of(key) if isinstance(redis, ClusterRedis) else redis


async def ask_all(redis: Redis, ask: Callable[[Redis], Awaitable[Any]]) -> list[Any]:
    """Returns the answers of all masters."""
    if not isinstance(redis, ClusterRedis):
        return [await ask(redis)]
    await redis.initialize()
    return await asyncio.gather(*(ask(redis.client_at(node)) for node in redis.masters))


def _slot(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


def _slot_of(args: Sequence[Any]) -> int | None:
    """Returns a command's slot; None: no key. Raises ``ValueError`` for two slots."""
    name = str(args[0]).upper()
    keys: Iterable[Any]
    if name in EVERYWHERE or len(args) < 2:
        return None
    if name in {"EVALSHA", "EVAL"}:
        keys = args[3 : 3 + int(args[2])]
    elif name in {"XREADGROUP", "XREAD"}:
        words = [word.encode() if isinstance(word, str) else word for word in args]
        streams = args[words.index(b"STREAMS") + 1 :]
        keys = streams[: len(streams) // 2]
    elif name in {"DEL", "EXISTS", "UNLINK"}:
        keys = args[1:]
    else:
        keys = args[1:2]
    slots = {_slot(key) for key in keys}
    if len(slots) > 1:
        raise ValueError(f"the keys of {name} are in several slots")
    return slots.pop() if slots else None


def _map_of(answer: list[Any], asked: Address) -> tuple[dict[int, Address], tuple[Address, ...]]:
    """Returns masters by slot and all nodes, from CLUSTER SLOTS."""
    masters: dict[int, Address] = {}
    nodes: dict[Address, None] = {}
    for first, last, *found in answer:
        # A node that does not know its own address sends an empty one.
        addresses = [
            Address(_text(node[0]) or asked.host, int(node[1])) for node in found if node[1]
        ]
        if addresses:
            masters |= dict.fromkeys(range(int(first), int(last) + 1), addresses[0])
            nodes |= dict.fromkeys(addresses)
    return masters, tuple(nodes)


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
