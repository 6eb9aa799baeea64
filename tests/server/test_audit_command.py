"""``python -m server audit``: what an operator sees of it."""

import asyncio
import os
import sys

from tests.server.tills import ANN, CREDIT, spent
from tests.simulation.cluster import PARTITIONS, Cluster, Node


async def audit(redis_url: str, database_url: str) -> tuple[int, str]:
    """Runs the command; its exit code, and what it printed."""
    environment = {
        **os.environ,
        "TAXIMETER_ENV": "development",
        "TAXIMETER_REDIS_URL": redis_url,
        "TAXIMETER_DATABASE_URL": database_url,
        "TAXIMETER_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        "audit",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_database_that_adds_up_and_one_that_does_not(
    cluster: Cluster, node: Node, redis_url: str, database: str
) -> None:
    await cluster.grant(10 * CREDIT)
    await spent(node.money, "s1", CREDIT)
    code, output = await audit(redis_url, database)
    assert "everything adds up" in output
    assert code == 0

    await cluster.redis.hincrby(node.live.keys.account(*ANN), "balance", 7)
    code, output = await audit(redis_url, database)
    assert "redis balance: user:ann ann: 9000007 in Redis is not 9000000" in output
    assert "1 findings" in output
    assert code == 1


async def test_without_redis_the_record_is_audited(
    cluster: Cluster, node: Node, database: str
) -> None:
    await cluster.grant(10 * CREDIT)
    await spent(node.money, "s1", CREDIT)
    code, output = await audit("redis://127.0.0.1:1", database)
    assert "redis_not_audited" in output
    assert "everything adds up" in output
    assert code == 0
