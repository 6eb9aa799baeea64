"""Rows are published while they are wanted, and only then."""

from typing import Any

import msgspec
import pytest

from server.ops import limits as ops_limits
from server.ops.live_rows import LiveRow
from server.ops.row_publisher import RowPublisher
from storage.redis.scripts import LiveError
from tests.fixtures.server import TestServer


@pytest.fixture
async def published(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The messages that the process publishes."""
    feed, found = server.app.state.feed, list[dict[str, Any]]()
    await feed.sampler.stop()

    async def publish(message: dict[str, Any]) -> None:
        found.append(msgspec.json.decode(msgspec.json.encode(message)))

    monkeypatch.setattr(feed.store, "publish", publish)
    monkeypatch.setattr(feed.publisher, "_run", lambda: None)  # the test publishes
    return found


def publisher_of(server: TestServer) -> RowPublisher:
    publisher: RowPublisher = server.app.state.feed.publisher
    return publisher


def keys_of(message: dict[str, Any]) -> list[str]:
    return [row.key for row in msgspec.convert(message["rows"], list[LiveRow])]


async def test_nothing_is_kept_or_published_while_it_is_not_wanted(
    server: TestServer, published: list[dict[str, Any]]
) -> None:
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    await client.ask("pause", session_id="s1")
    publisher = publisher_of(server)
    await publisher.publish()
    assert published == []
    assert publisher.published == 0


async def test_all_rows_come_first_then_those_that_changed(
    server: TestServer, published: list[dict[str, Any]]
) -> None:
    publisher = publisher_of(server)
    for user_id, name in (("ann", "s1"), ("ben", "s2")):
        client = await server.login(user_id)
        await client.ask("start", kind="chat", session_id=name)
    publisher.watched()
    await publisher.publish()
    publisher.watched()
    await client.ask("pause", session_id="s2")
    await publisher.publish()
    await publisher.publish()
    assert [keys_of(message) for message in published] == [
        ["user:ann/s1", "user:ben/s2"],
        ["user:ben/s2"],
    ]


async def test_a_question_is_answered_with_the_last_of_all_rows(
    server: TestServer, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_limits, "ROWS_PER_MESSAGE", 2)
    client, publisher = await server.login(), publisher_of(server)
    for number in range(5):
        await client.ask("start", kind="chat", session_id=f"s{number}")
    publisher.asked({"all": "q1"})
    publisher.asked({"all": "q2"})
    publisher.asked({"all": 7})
    await publisher.publish()
    assert [len(message["rows"]) for message in published] == [2, 2, 1]
    assert [message.get("all") for message in published] == [None, None, ["q1", "q2"]]


async def test_a_process_without_sessions_answers_too(
    server: TestServer, published: list[dict[str, Any]]
) -> None:
    publisher_of(server).asked({"all": "q1"})
    await publisher_of(server).publish()
    assert published == [{"node": server.process.node, "rows": [], "gone": [], "all": ["q1"]}]


async def test_a_cleared_session_is_gone_and_an_ended_one_has_ended(
    server: TestServer, published: list[dict[str, Any]]
) -> None:
    client, publisher = await server.login(), publisher_of(server)
    for name in ("s1", "s2"):
        await client.ask("start", kind="chat", session_id=name)
    publisher.watched()
    await publisher.publish()
    await client.ask("stop", session_id="s1")
    await publisher.publish()
    assert published[-1]["gone"] == [["user:ann/s1", True]]
    local = server.process.registry.local_sessions["user:ann/s2"]
    del server.process.registry.local_sessions["user:ann/s2"]
    publisher.touched(local)
    await publisher.publish()
    assert published[-1]["gone"] == [["user:ann/s2", False]]


async def test_what_redis_did_not_take_is_published_again(
    server: TestServer, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, publisher = await server.login(), publisher_of(server)
    await client.ask("start", kind="chat", session_id="s1")
    publisher.asked({"all": "q1"})
    publish = server.app.state.feed.store.publish

    async def away(_: object) -> None:
        raise LiveError("away")

    monkeypatch.setattr(server.app.state.feed.store, "publish", away)
    with pytest.raises(LiveError):
        await publisher.publish()
    monkeypatch.setattr(server.app.state.feed.store, "publish", publish)
    await publisher.publish()
    (message,) = published
    assert (keys_of(message), message["all"]) == (["user:ann/s1"], ["q1"])


async def test_questions_have_a_bound(server: TestServer, published: list[dict[str, Any]]) -> None:
    publisher = publisher_of(server)
    for number in range(ops_limits.QUESTIONS_MAX + 1):
        publisher.asked({"all": f"q{number}"})
    await publisher.publish()
    assert len(published[0]["all"]) == ops_limits.QUESTIONS_MAX
