"""Mistakes of peers: each gets its error code, and none costs credits.

The codes are those of PROTOCOL section 1. Wherever the socket survives, it answers a ping
afterwards; and beside it there is always a session with a bill, which no mistake may change.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.metering.states import Phase
from server import limits as server_limits
from storage import limits as storage_limits
from storage.redis.live import LiveError
from storage.rows.sessions import SessionPrepared
from tests.fixtures.server import BOTH_CARRIERS, StartServer
from tests.fixtures.stream_client import StreamClient
from tests.server.api import assert_problem
from tests.server.billed_session import (
    CREDIT,
    BilledSession,
    closed,
    found,
    reaches,
    write_rates,
)


def message(type_: str | None = None, **fields: Any) -> str:
    return json.dumps(({"type": type_} if type_ else {}) | {"id": 7} | fields)


def start(**fields: Any) -> str:
    return message("start", **({"kind": "chat", "session_id": "new"} | fields))


# --- Messages ------------------------------------------------------------------------

# The message, and whether its id can be read.
BAD_MESSAGES: dict[str, tuple[str, bool]] = {
    "nothing": ("", False),
    "no JSON": ("hello", False),
    "half of it": ('{"type":"ping","id":7', False),
    "two at once": ('{"type":"ping","id":7}{"type":"ping"}', False),
    "an array": ('[{"type":"ping","id":7}]', False),
    "a number": ("7", False),
    "a string": ('"ping"', False),
    "null": ("null", False),
    "NaN": ('{"type":"ping","id":NaN}', False),
    "infinity": ('{"type":"ping","id":7,"x":-Infinity}', False),
    "a number without end": ('{"type":"ping","id":1e999}', False),
    "half a character": ('{"type":"ping","id":7,"x":"\\ud800"}', False),
    "depth": ('{"type":"ping","id":7,"x":' + "[" * 16 + "]" * 16 + "}", False),
    "great depth": ("[" * 8000 + "]" * 8000, False),
    "a name twice": ('{"type":"ping","id":7,"type":"stop"}', False),
    "a name twice inside": (
        '{"type":"start","id":7,"session_id":"new","kind":"chat","metadata":{"a":1,"a":2}}',
        False,
    ),
    "no type": (message(), True),
    "type null": ('{"type":null,"id":7}', True),
    "type as a number": ('{"type":7,"id":7}', True),
    "type as a list": ('{"type":["ping"],"id":7}', True),
    "unknown type": (message("fly"), True),
    "a type of the server": (message("tick", session_id="bill-1"), True),
    "a type in capitals": (message("PING"), True),
    "a long type": (message("x" * 5000), True),
    "id as text": (message("ping", id="7"), False),
    "id as a fraction": (message("ping", id=7.5), False),
    "id as true": (message("ping", id=True), False),
    "id too large": (message("ping", id=2**53), False),
    "no session_id": (message("stop"), True),
    "no token": (message("auth"), True),
    "no token for a refresh": (message("refresh"), True),
    "an empty token": (message("refresh", token=""), True),
    "a long token": (message("refresh", token="x" * 8193), True),
    "no kind": (message("start", session_id="new"), True),
    "kind as a number": (start(kind=1), True),
    "kind with a space": (start(kind="a b"), True),
    "counterpart_id with a slash": (start(counterpart_id="a/b"), True),
    "tick_ms below 250": (start(tick_ms=249), True),
    "tick_ms above 60000": (start(tick_ms=60_001), True),
    "tick_ms below zero": (start(tick_ms=-1000), True),
    "tick_ms as text": (start(tick_ms="x"), True),
    "tick_ms as a fraction": (start(tick_ms=1000.5), True),
    "tick_ms as true": (start(tick_ms=True), True),
    "last_seq below zero": (start(last_seq=-1), True),
    "last_seq as text": (start(last_seq="1"), True),
    "last_seq too large": (start(last_seq=2**53), True),
    "metadata as a list": (start(metadata=[1]), True),
    "metadata as text": (start(metadata="x"), True),
    "metadata over 2 KiB": (start(metadata={"x": "y" * 2048}), True),
    "metadata with NUL": (start(metadata={"x": "a\0b"}), True),
}

BAD_IDS = ["", " ", "a b", "a/b", "a\n", "\n", "é", "a\0", "a'b", "{p0}", "x" * 129, 1, None, True]


@BOTH_CARRIERS
async def test_a_bad_message_is_answered_and_the_socket_goes_on(scene: BilledSession) -> None:
    for name, (sent, has_id) in BAD_MESSAGES.items():
        if isinstance(scene.client, StreamClient) and not sent.lstrip().startswith("{"):
            # A request carries an object or a list of objects; all else is no message.
            if not sent.startswith("[{"):
                assert_problem(await scene.client.post(sent), 400, "bad_message")
            continue
        await scene.client.write(sent)
        answer = await scene.client.until("error")
        assert (name, answer["code"]) == (name, "bad_message")
        assert (name, answer.get("id")) == (name, 7 if has_id else None)
        assert (name, answer["retryable"]) == (name, False)
        assert answer["message"]
        await scene.unharmed()
    assert len(list(scene.server.process.registry)) == 1


@BOTH_CARRIERS
@pytest.mark.parametrize("type_", ["start", "pause", "resume", "stop", "leave", "watch"])
async def test_an_id_out_of_the_alphabet_is_refused(scene: BilledSession, type_: str) -> None:
    for session_id in BAD_IDS:
        answer = await scene.client.ask(type_, session_id=session_id, kind="chat")
        assert (session_id, answer["code"]) == (session_id, "bad_message")
        assert "session_id" in answer["message"]
    longest = "x" * 128
    answer = await scene.client.ask(type_, session_id=longest, kind="chat")
    if type_ == "start":
        assert answer["session_id"] == longest
        await scene.client.ask("stop", session_id=longest)
    else:
        assert answer["code"] == "unknown_session"
    assert len(list(scene.server.process.registry)) == 1


@BOTH_CARRIERS
async def test_unknown_fields_are_ignored(scene: BilledSession) -> None:
    answer = await scene.client.ask("ping", surprise={"a": [1]}, token=5, session_id="a/b")
    assert answer["type"] == "pong"


async def test_a_binary_frame_is_answered(scene: BilledSession) -> None:
    await scene.client.connection.send(b'{"type":"ping","id":7}')
    answer = await scene.client.until("error")
    assert (answer["type"], answer["code"]) == ("error", "bad_message")


async def test_16_kib_are_read_and_more_is_1009(scene: BilledSession) -> None:
    client = await scene.server.login()
    frame = message("ping", x="")
    whole = message("ping", x="y" * (16 * 1024 - len(frame)))
    assert len(whole) == 16 * 1024
    await client.connection.send(whole)
    await client.until("pong")
    await client.connection.send(whole + " ")
    assert await closed(client) == (1009, [])


async def test_invalid_utf_8_is_1007(scene: BilledSession) -> None:
    client = await scene.server.login()
    await client.connection.send(b'{"type":"ping","x":"\xff"}', text=True)
    assert await closed(client) == (1007, [])


# --- Sessions ------------------------------------------------------------------------


@BOTH_CARRIERS
async def test_a_session_that_the_socket_does_not_have(scene: BilledSession) -> None:
    other = await scene.server.login()
    stranger = await scene.server.login("eve")
    for client in (other, stranger):
        for type_ in ("pause", "resume", "stop", "leave"):
            for session_id in ("bill-1", "never-was"):
                answer = await client.ask(type_, session_id=session_id)
                assert (type_, answer["code"]) == (type_, "unknown_session")
        assert (await client.ask("watch", session_id="never-was"))["code"] == "unknown_session"
    # A user without an organisation is a tenant: others see nothing of their sessions.
    assert (await stranger.ask("watch", session_id="bill-1"))["code"] == "unknown_session"


@BOTH_CARRIERS
async def test_a_session_that_has_ended(scene: BilledSession) -> None:
    server, client = scene.server, scene.client
    await client.ask("start", kind="chat", session_id="old-1")
    await client.ask("stop", session_id="old-1")
    for type_ in ("pause", "resume", "stop", "leave"):
        assert (await client.ask(type_, session_id="old-1"))["code"] == "unknown_session"
    for type_ in ("start", "watch"):
        answer = await client.ask(type_, session_id="old-1", kind="chat")
        assert (answer["code"], answer["retryable"]) == ("session_ended", False)
    # The request does not register presence: no later event would remove it.
    assert (await found(server, "old-1")).nodes == frozenset()

    await server.flush()
    # The process has seen the acknowledgement of the flush, and Redis forgets the session much
    # later.
    keys = server.process.live.keys
    server.process.registry.unflushed.forget({keys.partition("user:ann"): b"9999999999999-0"})
    await server.process.redis.delete(keys.session("user:ann", "old-1"))
    assert (await client.ask("start", kind="chat", session_id="old-1"))["code"] == "session_ended"
    assert (await client.ask("watch", session_id="old-1"))["code"] == "unknown_session"


@BOTH_CARRIERS
async def test_an_unknown_kind(scene: BilledSession) -> None:
    for kind in ("opera", "Chat", "operations"):
        answer = await scene.client.ask("start", kind=kind, session_id="new")
        assert (answer["code"], answer["retryable"]) == ("unknown_kind", False)
    assert len(list(scene.server.process.registry)) == 1


@BOTH_CARRIERS
async def test_another_users_session(scene: BilledSession) -> None:
    server = scene.server
    await server.grant(100 * CREDIT, org_id="acme")
    owner = await server.login(org="acme")
    await owner.ask("start", kind="chat", session_id="chat-1")
    stranger = await server.login("eve", org="acme")
    for type_ in ("start", "watch"):
        answer = await stranger.ask(type_, kind="chat", session_id="chat-1")
        assert (type_, answer["code"]) == (type_, "forbidden")
    assert (await stranger.ask("stop", session_id="chat-1"))["code"] == "unknown_session"
    listed = await server.login("eve", org="acme", sessions=["chat-1"])
    assert (await listed.ask("start", kind="chat", session_id="chat-1"))["code"] == "forbidden"

    # A refused user does not count as present: when the owner is lost, the grace begins.
    await owner.close()
    await reaches(server, "chat-1", Phase.SUSPENDED, "org:acme")


@BOTH_CARRIERS
async def test_the_process_of_a_stranger_does_not_keep_a_session(
    start_server: StartServer,
) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT, org_id="acme")
    owner = await one.login(org="acme")
    await owner.ask("start", kind="chat", session_id="chat-1")
    stranger = await two.login("eve", org="acme")
    assert (await stranger.ask("start", kind="chat", session_id="chat-1"))["code"] == "forbidden"
    assert (await found(one, "chat-1", "org:acme")).nodes == {one.process.node}
    assert list(two.process.registry) == []


@BOTH_CARRIERS
async def test_a_token_for_certain_sessions_only(scene: BilledSession) -> None:
    client = await scene.server.login(sessions=["mine-1"])
    for session_id in ("mine-2", "bill-1"):
        answer = await client.ask("start", kind="chat", session_id=session_id)
        assert answer["code"] == "forbidden"
    assert (await client.ask("start", kind="chat", session_id="mine-1"))["type"] == "session"
    await client.ask("stop", session_id="mine-1")


@BOTH_CARRIERS
async def test_a_observer_asks_for_nothing(scene: BilledSession) -> None:
    observer = await scene.server.login()
    await observer.ask("watch", session_id="bill-1")
    for type_ in ("pause", "resume", "stop"):
        answer = await observer.ask(type_, session_id="bill-1")
        assert (type_, answer["code"]) == (type_, "forbidden")
    await observer.send("leave", session_id="bill-1")
    assert (await observer.ask("stop", session_id="bill-1"))["code"] == "unknown_session"


@BOTH_CARRIERS
async def test_a_start_that_the_balance_forbids(scene: BilledSession) -> None:
    server = scene.server
    poor = await server.login("bob")
    for _ in range(2):
        answer = await poor.ask("start", kind="talk", session_id="call-1")
        assert (answer["code"], answer["limit"]) == ("limit_reached", "credits")
        assert answer["retryable"] is False
    # Nothing is left of it: it starts when there is something to start with.
    assert len(list(server.process.registry)) == 1
    assert await server.process.live.attach("user:bob", "call-1", read_only=True) is None
    await server.grant(10 * CREDIT, "bob")
    started = await poor.ask("start", kind="talk", session_id="call-1")
    assert (started["type"], started["state"]) == ("session", "active")


@BOTH_CARRIERS
@pytest.mark.parametrize(
    ("member_hours", "org_hours", "limit"), [(0, 1, "member_minutes"), (1, 0, "org_minutes")]
)
async def test_a_start_that_the_month_forbids(
    scene: BilledSession, member_hours: float, org_hours: float, limit: str
) -> None:
    records = scene.server.process.records
    await records.put_organization("org:acme", "acme", monthly_hours_limit=org_hours)
    await records.put_member("org:acme", "ann", monthly_hours_limit=member_hours)
    client = await scene.server.login(org="acme")
    answer = await client.ask("start", kind="lesson", session_id="lesson-1")
    assert (answer["code"], answer["limit"]) == ("limit_reached", limit)
    assert len(list(scene.server.process.registry)) == 1


@BOTH_CARRIERS
async def test_a_start_without_a_record_leaves_no_local_session(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scene.server
    terms = server.process.rates.terms("chat")
    shared = SessionPrepared(
        tenant="user:ann",
        session_id="shared-1",
        user_id="ann",
        org_id=None,
        account_id="ann",
        counterpart_id="advisor-7",
        kind="chat",
        terms=msgspec.structs.replace(terms, free_scope="pair"),
        expires_at=limits.SAFE_INTEGER_MAX,
    )
    await server.process.records.prepare_session(shared, 0)
    with monkeypatch.context() as patch:
        # The outbox is too far behind to load the rest of the free time.
        patch.setattr(storage_limits, "ACCOUNT_IDLE_MS", -2 * 10**12)
        live = server.process.live
        await live.redis.xadd(live.keys.outbox(live.keys.partition("user:ann")), {"r": "[]"})
        answer = await scene.client.ask("start", kind="chat", session_id="shared-1")
        assert (answer["code"], answer["retryable"]) == ("unavailable", True)
    assert len(list(server.process.registry)) == 1
    started = await scene.client.ask("start", kind="chat", session_id="shared-1")
    assert (started["type"], started["free_remaining_ms"] > 59_000) == ("session", True)
    await scene.client.ask("stop", session_id="shared-1")


async def test_requests_that_redis_does_not_answer(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = scene.server.process.live

    async def nobody(*_: object, **__: object) -> None:
        raise LiveError("nobody answers")

    for name in ("attach", "commit"):
        with monkeypatch.context() as patch:
            patch.setattr(live, name, nobody)
            answer = await scene.client.ask("start", kind="chat", session_id=f"new-{name}")
            assert (answer["code"], answer["retryable"]) == ("unavailable", True)
        # The client tries again, as the error advises.
        while answer["type"] == "error":
            assert answer["code"] == "unavailable"
            answer = await scene.client.ask("start", kind="chat", session_id=f"new-{name}")
        assert answer["state"] == "active"
        assert (await found(scene.server, f"new-{name}")).nodes == {scene.server.process.node}
        await scene.client.ask("stop", session_id=f"new-{name}")
    with monkeypatch.context() as patch:
        patch.setattr(live, "account", nobody)
        client = await scene.server.connect()
        answer = await client.ask("auth", token=scene.server.token("bob"))
        assert (answer["code"], answer["retryable"]) == ("unavailable", True)
    assert (await client.ask("auth", token=scene.server.token("bob")))["type"] == "welcome"


@BOTH_CARRIERS
async def test_only_prepared_sessions_where_it_is_so_set(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(start="prepared", rates=write_rates(tmp_path))
    await server.grant(5 * CREDIT)
    client = await server.login()
    answer = await client.ask("start", kind="chat", session_id="chat-1")
    assert answer["code"] == "forbidden"


@BOTH_CARRIERS
async def test_too_many_sessions_on_a_socket(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SESSIONS_PER_SOCKET_MAX", 1)
    for type_ in ("start", "watch"):
        answer = await scene.client.ask(type_, kind="chat", session_id="one-more")
        assert (answer["code"], answer["retryable"]) == ("rate_limited", True)
    # What it has already is no more.
    assert (await scene.client.ask("start", kind="talk", session_id="bill-1"))["type"] == "session"
    assert (await scene.client.ask("watch", session_id="bill-1"))["type"] == "session"


@BOTH_CARRIERS
async def test_too_many_sockets_of_a_session(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_SESSION_MAX", 1)
    monkeypatch.setattr(server_limits, "OBSERVERS_PER_SESSION_MAX", 0)
    other = await scene.server.login()
    for type_ in ("start", "watch"):
        answer = await other.ask(type_, kind="talk", session_id="bill-1")
        assert (answer["code"], answer["retryable"]) == ("rate_limited", True)
