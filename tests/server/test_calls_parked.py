"""The commands about calls: parked, map, and retry."""

import asyncio
import os
import sys

import pytest

from server.calls import limits as call_limits
from server.calls.parked import parked_participants
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.call_facts import CALL, RUN, InboxScene, fact

STRANGER = fact(participant="a stranger")


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    return InboxScene(server.process)


async def calls(*words: str, redis_url: str, database: str) -> tuple[int, str]:
    """Runs ``python -m server calls``: exit code and output."""
    environment = {
        **os.environ,
        "TAXIMETER_ENV": "development",
        "TAXIMETER_REDIS_URL": redis_url,
        "TAXIMETER_DATABASE_URL": database,
        "TAXIMETER_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "calls", *words, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_parked_participants_of_all_runs(scene: InboxScene) -> None:
    await scene.receive(STRANGER, fact(), fact(participant="no id", call_session="run-2"))
    found = [one.participant async for one in parked_participants(scene.records)]
    assert sorted(found) == ["a stranger", "no id"]


async def test_an_operator_lists_and_maps(scene: InboxScene, redis_url: str, database: str) -> None:
    await scene.receive(STRANGER)
    engines = {"redis_url": redis_url, "database": database}
    assert await calls("parked", **engines) == (
        0, f"stream {CALL} run {RUN}: 'a stranger' is parked, bad_user_id\n",
    )  # fmt: skip
    code, said = await calls(
        "map", CALL, "--provider", "stream", "--participant", "a stranger=eve", **engines
    )
    assert (code, said) == (0, f"stream {CALL} has a plan, version 1\n")
    await scene.take()
    while await scene.records.facts_waiting(0, scene.process.clock.now() + 1):
        await scene.applier.idle()
    assert await calls("parked", **engines) == (0, "")
    code, said = await calls("map", CALL, "--provider", "stream", "--payer", "no id", **engines)
    assert code == 1
    assert "payer" in said
    code, said = await calls("replay", "--from", "yesterday", "--to", "now", **engines)
    assert code == 1
    assert "yesterday" in said


async def test_an_operator_lists_facts_that_fail_and_has_them_applied_again(
    scene: InboxScene, server: TestServer, redis_url: str, database: str
) -> None:
    joined = fact()
    scene.meter.poison = {joined.key}
    await scene.receive(joined)
    for _ in range(call_limits.CALL_FACT_ATTEMPTS_MAX):
        advance(server, 64 * call_limits.CALL_FACT_LEASE_MS)
        await scene.take()
    engines = {"redis_url": redis_url, "database": database}
    assert await calls("parked", **engines) == (
        0,
        f"stream {CALL} run {RUN}: 'joined' of 'ann' is parked after "
        f"{call_limits.CALL_FACT_ATTEMPTS_MAX} attempts, ValueError: a bug of ours in joined\n",
    )
    scene.meter.poison.clear()
    assert await calls("retry", CALL, "--provider", "stream", **engines) == (
        0, f"1 facts of stream {CALL} are applied again\n",
    )  # fmt: skip
    assert await scene.take() == 1
    assert scene.meter.applied == [(joined.key, "ann")]
    assert await calls("parked", **engines) == (0, "")
