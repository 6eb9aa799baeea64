"""The feed in Redis: sums, interest in rows, stored sessions."""

import orjson
import pytest

from protocol import limits
from storage import limits as storage_limits
from storage.redis.keys import FIGURES, ROWS_CHANNEL, SAMPLES, WATCH_CHANNEL, WATCHED
from storage.redis.live import Live
from storage.redis.live_feed import LiveFeed
from tests.protocol.examples import NOW

SECOND_AT = NOW - NOW % 1000


@pytest.fixture
def feed(live: Live) -> LiveFeed:
    return LiveFeed(live)


@pytest.fixture
def other(live: Live) -> LiveFeed:
    return LiveFeed(Live(live.redis, live.keys, "other"))


async def sums(feed: LiveFeed, count: int = 9) -> list[dict[str, object]]:
    found: list[dict[str, object]] = orjson.loads(await feed.samples(count))
    return found


async def test_the_first_process_of_a_second_adds_up_all(feed: LiveFeed, other: LiveFeed) -> None:
    mine = {"sockets": 2, "lag_ms": 7, "sessions": {"chat": {"active": 1}}, "closed": {}}
    others = {"sockets": 3, "lag_ms": 4, "sessions": {"chat": {"active": 2, "paused": 1}}}
    await feed.sample(mine, SECOND_AT)
    await other.sample({**others, "closed": {"1001": 1}}, SECOND_AT + 500)
    await feed.sample(mine, SECOND_AT + 1_000)
    first, second = await sums(feed)
    assert first["nodes"] == 1, "the other had no figures yet"
    assert second == {
        "at": SECOND_AT + 1_000,
        "nodes": 2,
        "sockets": 5,
        "lag_ms": 7,
        "sessions": {"chat": {"active": 3, "paused": 1}},
        "closed": {"1001": 1},
    }


async def test_one_second_has_one_sample(feed: LiveFeed, other: LiveFeed) -> None:
    for ms in (0, 400, 999):
        await feed.sample({"sockets": 1}, SECOND_AT + ms)
        await other.sample({"sockets": 1}, SECOND_AT + ms)
    assert [one["at"] for one in await sums(feed)] == [SECOND_AT]


async def test_large_figures_stay_exact(feed: LiveFeed) -> None:
    await feed.sample({"burn_micros": 99_999_999_999_999}, SECOND_AT)
    assert (await sums(feed))[0]["burn_micros"] == 99_999_999_999_999


async def test_a_process_that_is_dead_counts_no_longer(feed: LiveFeed, other: LiveFeed) -> None:
    await other.sample({"sockets": 3}, SECOND_AT)
    await feed.sample({"sockets": 1}, SECOND_AT + limits.NODE_SILENT_MS)
    await feed.sample({"sockets": 1}, SECOND_AT + limits.NODE_SILENT_MS + 1_000)
    assert [one.get("sockets") for one in await sums(feed)] == [3, 4, 1]
    assert set(await feed.figures()) == {"node"}


async def test_an_hour_of_samples_is_kept(feed: LiveFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_limits, "SAMPLES_KEPT", 3)
    for second in range(5):
        await feed.sample({"sockets": second}, SECOND_AT + 1_000 * second)
    assert [one["sockets"] for one in await sums(feed)] == [2, 3, 4]
    assert [one["sockets"] for one in await sums(feed, 1)] == [4]
    assert await feed.live.redis.llen(SAMPLES) == 3


async def test_figures_learn_whether_rows_are_wanted(feed: LiveFeed, other: LiveFeed) -> None:
    assert not await feed.sample({}, SECOND_AT)
    await other.watch()
    assert await feed.sample({}, SECOND_AT)
    assert 0 < await feed.live.redis.pttl(WATCHED) <= storage_limits.WATCHED_MS
    assert await feed.live.redis.hget(FIGURES, "node") == orjson.dumps({"at": SECOND_AT})


async def test_questions_and_rows_go_to_all_who_listen(feed: LiveFeed) -> None:
    pubsub = feed.live.redis.pubsub()
    await pubsub.subscribe(WATCH_CHANNEL, ROWS_CHANNEL)
    await feed.ask_for_all("q1")
    await feed.publish({"node": "node", "rows": []})
    found: list[tuple[str, object]] = []
    while len(found) < 2:
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        if message is not None:
            found.append((message["channel"].decode(), orjson.loads(message["data"])))
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    assert found == [
        (WATCH_CHANNEL, {"all": "q1"}),
        (ROWS_CHANNEL, {"node": "node", "rows": []}),
    ]


async def test_keys_of_a_partition_come_in_parts(
    feed: LiveFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "PAGE_ROWS_MAX", 10)
    names = {f"user:ann/s{number}" for number in range(600)}
    await feed.live.redis.sadd(feed.live.keys.live(0), *names)
    parts = [part async for part in feed.keys_in(0)]
    assert {key for part in parts for key in part} == names
    assert len(parts) > 1


async def test_a_session_that_redis_lacks_is_not_stored(feed: LiveFeed) -> None:
    assert await feed.stored(["user:ann/gone"]) == []
