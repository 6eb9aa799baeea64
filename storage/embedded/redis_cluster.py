"""A Redis Cluster on this machine, out of the embedded ``redis-server``: to try and to test.

``python -m storage.embedded.redis_cluster DIRECTORY`` runs three masters with a replica
each until it is interrupted, and prints the URL for ``TAXIMETER_REDIS_URL``.
"""

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from storage.embedded.redis_servers import WAIT_S, RedisServer, free_ports

MASTERS = 3
SLOTS = 16_384
NODE_TIMEOUT_MS = 2_000
"""A master that is silent for so long is followed by its replica, a second or two later."""


class RedisCluster:
    """Masters with a replica each: ``async with RedisCluster(directory) as cluster``."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
        program: str | None = None,
    ) -> None:
        ports = free_ports(2 * MASTERS, buses=True)
        self.servers = [
            RedisServer(
                directory / f"node-{port}",
                port,
                *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
                # What one master has is served while another one is being followed.
                *("--cluster-require-full-coverage", "no"),
                # A replica follows however old its data is, for nobody else has any.
                *("--cluster-replica-validity-factor", "0"),
                *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
                *options,
                program=program,
            )
            for port in ports
        ]

    @property
    def url(self) -> str:
        """Its address, for ``TAXIMETER_REDIS_URL``."""
        return "redis+cluster://" + ",".join(
            f"127.0.0.1:{server.port}" for server in self.servers[:MASTERS]
        )

    async def start(self) -> None:
        """Starts all nodes and makes them a cluster; returns when it serves every slot."""
        async with asyncio.TaskGroup() as tasks:
            for server in self.servers:
                tasks.create_task(server.start())
        async with contextlib.AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(server.client()) for server in self.servers]
            await self._introduce(nodes)
            ids = [await _ask(node, "MYID") for node in nodes]
            for master, replica in zip(ids[:MASTERS], nodes[MASTERS:], strict=True):
                await _ask(replica, "REPLICATE", master.decode())
            await _until(nodes, self._serves)

    async def _introduce(self, nodes: list[Redis]) -> None:
        for number, node in enumerate(nodes):
            await _ask(node, "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                slots = range(number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS)
                await _ask(node, "ADDSLOTS", *slots)
        for node in nodes:
            # Everybody everybody: gossip alone takes ten seconds.
            for server in self.servers:
                await _ask(node, "MEET", "127.0.0.1", server.port)

        async def knows_all(node: Redis) -> bool:
            found = [line.split() for line in (await _ask(node, "NODES")).decode().splitlines()]
            return len(found) == len(nodes) and all("handshake" not in line[2] for line in found)

        await _until(nodes, knows_all)

    @staticmethod
    async def _serves(node: Redis) -> bool:
        """Whether a node sees every slot served, and every master with a replica at work."""
        state = (await _ask(node, "INFO")).decode()
        slots = await _ask(node, "SLOTS")
        info: Any = await node.info("replication")
        is_linked = info["role"] == "master" or info["master_link_status"] == "up"
        has_replica = info["role"] == "slave" or info["connected_slaves"] > 0
        covered = sum(int(last) - int(first) + 1 for first, last, *_ in slots)
        is_whole = covered == SLOTS and all(len(found) == 2 for _, _, *found in slots)
        return "cluster_state:ok" in state and is_whole and is_linked and has_replica

    async def server_of(self, key: str) -> RedisServer:
        """The server that is the master of a key now."""
        for server in self.servers:
            if server.process is None or server.process.returncode is not None:
                continue
            async with server.client() as node:
                slot = await _ask(node, "KEYSLOT", key)
                for first, last, master, *_ in await _ask(node, "SLOTS"):
                    if first <= slot <= last:
                        (found,) = [one for one in self.servers if one.port == master[1]]
                        return found
        raise LookupError(f"nobody has {key}")

    async def stop(self) -> None:
        """Ends all nodes at once."""
        for server in self.servers:
            await server.kill()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


async def _ask(node: Redis, *words: Any) -> Any:
    """The answer to a CLUSTER command, as it comes: redis-py knows none of two words."""
    return await node.execute_command("CLUSTER", *words)  # type: ignore[no-untyped-call]


async def _until(nodes: list[Redis], holds: Any) -> None:
    """Waits until something holds for every node."""
    async with asyncio.timeout(WAIT_S):
        for node in nodes:
            while True:
                with contextlib.suppress(RedisError):
                    if await holds(node):
                        break
                await asyncio.sleep(0.02)


async def _run(directory: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with RedisCluster(directory) as cluster:
        print(f"export TAXIMETER_REDIS_URL={cluster.url}", flush=True)
        await stop.wait()


def main() -> None:
    """Runs a cluster until it is interrupted. It keeps nothing: the next one is empty."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="where the nodes keep their logs")
    asyncio.run(_run(parser.parse_args().directory.resolve()))


if __name__ == "__main__":
    main()
