"""The command ``python -m server audit``: its exit code and its output."""

import asyncio
import os
import sys

import asyncpg
import pytest

from storage.postgres.records import Records
from tests.server.ledgers import ANN, CREDIT, spent
from tests.simulation.cluster import PARTITIONS, Cluster, Node


async def audit(redis_url: str, database_url: str) -> tuple[int, str]:
    """Runs the command; answers its exit code and its output."""
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
    await spent(node.ledger, "s1", CREDIT)
    code, output = await audit(redis_url, database)
    assert "everything adds up" in output
    assert code == 0

    await cluster.redis.hincrby(node.live.keys.account(*ANN), "balance", 7)
    code, output = await audit(redis_url, database)
    assert "redis balance: user:ann ann: 9000007 in Redis is not 9000000" in output
    assert "1 findings" in output
    assert code == 1


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            "UPDATE credit_accounts SET balance_micros = balance_micros - 1",
            "conservation: user:ann ann: granted 10000000 - burnt 0 - spent 1000000 - expired 0 "
            "+ adjusted 0 is not the balance, 8999999",
        ),
        (
            "UPDATE credit_ledger SET amount_micros = -1 WHERE entry_id = 's1'",
            "spent 1 - expired 0 + adjusted 0 is not the balance, 9000000",
        ),
        (
            "UPDATE credit_holds SET state = 'posted' WHERE hold_id = 'h1'; "
            "UPDATE credit_holds SET posted_micros = 5 WHERE hold_id = 'h1'",
            "hold: user:ann h1: is posted with 5 posted, in the ledger",
        ),
    ],
)
async def test_a_row_that_somebody_changed_by_hand_is_found(
    cluster: Cluster, redis_url: str, fresh_database: str, change: str, finding: str
) -> None:
    cluster.records, before = await Records.connect(fresh_database), cluster.records
    try:
        node = await cluster.node()
        await cluster.grant(10 * CREDIT)
        await spent(node.ledger, "s1", CREDIT)
        await node.ledger.hold(ANN, hold_id="h1", micros=CREDIT, ttl_ms=3_600_000)
        connection = await asyncpg.connect(fresh_database)
        # As a replica: behind the back of every trigger.
        await connection.execute(f"SET session_replication_role = replica; {change}")
        await connection.close()
        code, output = await audit(redis_url, fresh_database)
        assert finding in output
        assert code == 1
    finally:
        await cluster.records.close()
        cluster.records = before


async def test_without_redis_the_record_is_audited(
    cluster: Cluster, node: Node, database: str
) -> None:
    await cluster.grant(10 * CREDIT)
    await spent(node.ledger, "s1", CREDIT)
    code, output = await audit("redis://127.0.0.1:1", database)
    assert "redis_not_audited" in output
    # An operator must not take half an audit for a whole one.
    assert "everything adds up" not in output
    assert "the record adds up; what is in Redis was not compared with it" in output
    assert code == 2
