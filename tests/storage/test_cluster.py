"""One client of a whole cluster: commands reach the right node, once."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError, NoScriptError, ResponseError

from protocol import limits
from storage.flush.partitions import run_flusher
from storage.postgres.records import Records
from storage.redis.cluster import Address, ClusterRedis, is_cluster, nodes_of, url_of_node
from storage.redis.keys import Keys
from storage.redis.live import Live, LiveError, connect
from storage.redis.recovery import Restoring
from storage.redis.scripts import Script
from tests.fixtures.redis_cluster import RedisCluster
from tests.storage.examples import minute
from tests.storage.outboxes import append, until

KEYS = Keys(16)
PLAIN = {"ssubscribe": "subscribe", "sunsubscribe": "unsubscribe", "smessage": "message"}
"""What sharded channels call by other names."""
TAGS = [KEYS.live(partition) for partition in range(KEYS.partitions)]


@pytest.fixture
def redis_url(redis_cluster: RedisCluster) -> str:
    """These tests are about a cluster, whatever the others run on."""
    return redis_cluster.url


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[ClusterRedis]:
    connected = connect(redis_url)
    assert isinstance(connected, ClusterRedis)
    async with connected:
        await connected.flushall()
        yield connected


# --- URLs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "nodes", "first"),
    [
        ("redis+cluster://a:1,b:2", [("a", 1), ("b", 2)], "redis://a:1"),
        ("redis+cluster://a", [("a", 6379)], "redis://a:6379"),
        ("rediss+cluster://u:p@a:1,b:2", [("a", 1), ("b", 2)], "rediss://u:p@a:1"),
        ("redis+cluster://[::1]:7,b:2?db=0", [("::1", 7), ("b", 2)], "redis://[::1]:7?db=0"),
    ],
)
def test_a_url_names_nodes(url: str, nodes: list[tuple[str, int]], first: str) -> None:
    assert is_cluster(url)
    assert list(nodes_of(url)) == nodes
    assert url_of_node(url, Address(*nodes[0])) == first


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a:b", "redis+cluster://a:1,"])
def test_a_url_without_nodes_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        nodes_of(url)


# --- Commands --------------------------------------------------------------------------


async def test_commands_go_to_whoever_has_their_key(cluster: ClusterRedis) -> None:
    assert len({cluster.master_of(tag) for tag in TAGS}) == 3
    for number, tag in enumerate(TAGS):
        await cluster.sadd(tag, str(number))
    async with cluster.pipeline(transaction=False) as pipeline:
        for tag in reversed(TAGS):
            pipeline.smembers(tag)
        answers = await pipeline.execute()
    assert answers == [{str(number).encode()} for number in reversed(range(len(TAGS)))]
    assert sorted(await cluster.keys("*")) == sorted(tag.encode() for tag in TAGS)
    async with cluster.pipeline(transaction=False) as pipeline:
        pipeline.incr(TAGS[0])
        pipeline.scard(TAGS[1])
        wrong, one = await pipeline.execute(raise_on_error=False)
    assert isinstance(wrong, ResponseError)
    assert one == 1


async def test_what_is_about_several_slots_or_none_is_refused(cluster: ClusterRedis) -> None:
    with pytest.raises(ValueError, match="several slots"):
        await cluster.delete(TAGS[0], TAGS[1])
    with pytest.raises(ValueError, match="no key"):
        await cluster.time()
    async with cluster.pipeline(transaction=True) as pipeline:
        for tag in TAGS:
            pipeline.scard(tag)
        with pytest.raises(ValueError, match="one slot"):
            await pipeline.execute()


async def test_who_has_an_old_map_is_sent_on(cluster: ClusterRedis) -> None:
    await cluster.initialize()
    right = cluster.master_of(TAGS[0])
    wrong = next(node for node in cluster.masters if node != right)
    slot = key_slot(TAGS[0].encode())
    cluster._masters[slot] = wrong
    assert await cluster.incr(TAGS[0]) == 1
    assert cluster.master_of(TAGS[0]) == right
    cluster._masters[slot] = wrong
    async with cluster.pipeline(transaction=False) as pipeline:
        pipeline.incr(TAGS[0])
        pipeline.scard(TAGS[1])
        assert await pipeline.execute() == [2, 0]
    # A transaction is not split over nodes: all or nothing.
    cluster._masters[slot] = wrong
    async with cluster.pipeline(transaction=True) as pipeline:
        pipeline.incr(TAGS[0])
        with pytest.raises(ResponseError):
            await pipeline.execute()
    assert await cluster.get(TAGS[0]) == b"2"


async def test_one_node_that_lost_a_script_receives_its_text(
    cluster: ClusterRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow node answers once before the deadline, and not twice."""
    script = Script(cluster, "", "return ARGV[1]")
    tags = list({cluster.master_of(tag): tag for tag in TAGS}.values())
    for tag in tags:
        assert await script([tag], ["a"]) == b"a"
    await (await cluster.client_of(tags[0])).script_flush()
    send, sent = cluster.execute_command, list[tuple[str, str]]()

    async def send_once(*command: Any, **options: Any) -> Any:
        sent.append((command[0], command[3]))
        if len(sent) == 2:
            raise TimeoutError
        return await send(*command, **options)

    monkeypatch.setattr(cluster, "execute_command", send_once)
    with pytest.raises(LiveError):
        await script([tags[0]], ["b"])
    for tag in (*reversed(tags), tags[0]):
        assert await script([tag], ["c"]) == b"c"
    assert sent == [
        ("EVALSHA", tags[0]),
        ("EVAL", tags[0]),
        ("EVALSHA", tags[2]),
        ("EVALSHA", tags[1]),
        ("EVAL", tags[0]),
        ("EVALSHA", tags[0]),
    ]


async def test_steps_go_to_nodes_that_lost_their_scripts(cluster: ClusterRedis) -> None:
    """One pipeline for several nodes carries the text once for each."""
    script = Script(cluster, "", "return ARGV[1]")
    tags = sorted(TAGS[:6], key=str)
    calls = [([tag], [tag]) for tag in tags]
    for call in calls:
        assert not script.answered(call, NoScriptError())
    commands = script.commands(calls)
    masters = {cluster.master_of(tag) for tag in tags}
    assert len(masters) > 1
    assert [command[0] for command in commands].count("EVAL") == len(masters)
    async with cluster.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        answers = await pipeline.execute(raise_on_error=False)
    assert answers == [tag.encode() for tag in tags]


async def test_a_slot_that_is_being_moved(cluster: ClusterRedis) -> None:
    await cluster.initialize()
    slot, name = key_slot(TAGS[0].encode()), TAGS[0]
    source = cluster.master_of(name)
    assert source is not None
    target = next(node for node in cluster.masters if node != source)
    old, new = cluster.client_at(source), cluster.client_at(target)
    ids = [await one.execute_command("CLUSTER", "MYID") for one in (old, new)]  # type: ignore[no-untyped-call]
    await new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])  # type: ignore[no-untyped-call]
    await old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])  # type: ignore[no-untyped-call]
    try:
        # It is not with the old one any more, and the new one does not have it for good.
        assert await cluster.incr(name) == 1
        with pytest.raises(MovedError):
            await new.get(name)
        async with cluster.pipeline(transaction=False) as pipeline:
            pipeline.incr(name)
            assert await pipeline.execute() == [2]
        await cluster.delete(name)
    finally:
        for one in (old, new):
            await one.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")  # type: ignore[no-untyped-call]


async def test_a_master_that_is_frozen_holds_up_nobody_else(
    redis_cluster: RedisCluster, cluster: ClusterRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 300)
    frozen = await redis_cluster.server_of(TAGS[0])
    others = [tag for tag in TAGS if await redis_cluster.server_of(tag) is not frozen]
    live = Live(cluster, KEYS, "node")
    frozen.send(signal.SIGSTOP)
    try:
        with pytest.raises(LiveError):
            await live.ask(cluster.scard(TAGS[0]))
        for tag in others:
            assert await live.ask(cluster.scard(tag)) == 0
        with pytest.raises(LiveError):
            await live.ping()
    finally:
        frozen.send(signal.SIGCONT)

    async def back() -> bool:
        try:
            await live.ping()
        except LiveError:
            return False
        return True

    await until(back)


# --- Losses ----------------------------------------------------------------------------


async def test_a_replica_that_takes_over_is_noticed(
    cluster: ClusterRedis, redis_cluster: RedisCluster
) -> None:
    restoring = Restoring(Live(cluster, KEYS, "node"))
    before = (await restoring.look([0, 5])).histories
    assert set(before) == set(cluster.masters)
    assert len(set(before.values()) - {None}) == len(before) == 3
    assert (await restoring.look([])).histories == before
    slots: Any = await (await cluster.client_of(TAGS[0])).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
    followers = [
        Address(found[3][0].decode(), found[3][1])
        for found in slots
        if found[0] <= key_slot(TAGS[0].encode()) <= found[1]
    ]
    replica = cluster.client_at(followers[0])
    await replica.execute_command("CLUSTER", "FAILOVER")  # type: ignore[no-untyped-call]
    new: set[bytes | None] = set()

    async def noticed() -> bool:
        with contextlib.suppress(LiveError):
            new.update((await restoring.look([0])).histories.values())
        return bool(new - {*before.values(), None})

    await until(noticed)
    assert len(new - {*before.values(), None}) == 1

    async def settled() -> bool:
        return await redis_cluster._serves(replica)

    await until(settled)


async def test_a_master_without_our_keys_delays_no_look(
    cluster: ClusterRedis, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 300)
    frozen = await redis_cluster.server_of(TAGS[0])
    away = cluster.master_of(TAGS[0])
    partition = next(one for one, tag in enumerate(TAGS) if cluster.master_of(tag) != away)
    restoring = Restoring(Live(cluster, KEYS, "node"))
    frozen.send(signal.SIGSTOP)
    try:
        seen = await restoring.look([partition])
        with pytest.raises(LiveError):
            await restoring.look([0])
    finally:
        frozen.send(signal.SIGCONT)
    assert seen.partitions == {partition: (None, None)}
    assert [place for place, history in seen.histories.items() if history is None] == [away]

    async def back() -> bool:
        with contextlib.suppress(LiveError):
            return None not in (await restoring.look([0])).histories.values()
        return False

    await until(back)


# --- The flusher -----------------------------------------------------------------------


async def test_a_flusher_reads_all_partitions(cluster: ClusterRedis, records: Records) -> None:
    for partition in range(KEYS.partitions):
        await append(cluster, minute(partition), partition=partition)
    stop = asyncio.Event()
    url = cluster._url
    flushing = asyncio.create_task(run_flusher(url, records, KEYS.partitions, stop))

    async def flushed() -> bool:
        lengths = [await cluster.xlen(KEYS.outbox(one)) for one in range(KEYS.partitions)]
        return sum(lengths) == 0

    await until(flushed)
    # A new entry wakes the waiting flusher.
    await append(cluster, minute(99), partition=3)
    await until(flushed)
    stop.set()
    await asyncio.wait_for(flushing, 20)
