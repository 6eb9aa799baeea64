"""The AsyncAPI document has every message and every code of the socket."""

from typing import Any

import orjson
import pytest
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from protocol.wire.codec import encode
from protocol.wire.errors import CloseCode, ErrorCode
from protocol.wire.messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    Credit,
    LimitReached,
    Start,
    Welcome,
)
from server.http.asyncapi import CLOSE_CODES, ERROR_CODES, REPLIES, asyncapi
from tests.fixtures.server import TestServer
from tests.server.api import grant
from tests.server.test_description import check


def test_every_message_goes_its_way() -> None:
    operations = asyncapi()["operations"]
    for action, messages in (("receive", CLIENT_MESSAGES), ("send", SERVER_MESSAGES)):
        for message in messages:
            tag = str(message.__struct_config__.tag)
            operation = operations.pop(f"{action}_{tag}")
            assert operation["action"] == action
            assert operation["messages"] == [{"$ref": f"#/channels/socket/messages/{tag}"}]
            assert operation["summary"]
            assert ("reply" in operation) == (action == "receive")
    for name in (
        "send_stream_open",
        "send_stream_ping",
        "send_stream_close",
        "receive_stream_pong",
    ):
        operation = operations.pop(name)
        assert operation["channel"] == {"$ref": "#/channels/stream"}
        assert operation["summary"]
    assert operations == {}


def test_every_request_has_the_answer_that_its_type_names() -> None:
    assert REPLIES.keys() == {str(m.__struct_config__.tag) for m in CLIENT_MESSAGES}
    for message in CLIENT_MESSAGES:
        reply = REPLIES[str(message.__struct_config__.tag)]
        text = message.__doc__ or ""
        if "Answered by" in text:
            assert f"`{reply}`" in text


def test_every_code_is_explained() -> None:
    assert set(CLOSE_CODES) == set(CloseCode)
    assert set(ERROR_CODES) == set(ErrorCode)
    description = asyncapi()["channels"]["socket"]["description"]
    assert "- `4002` the token has expired: come back" in description
    assert "- `4500` bad token: stay away" in description
    for code in ErrorCode:
        assert f"`{code}`" in description


@pytest.mark.parametrize(
    "message",
    [
        Start(id=1, session_id="s1", kind="chat", metadata={"topic": "stars"}),
        Start(session_id="s1", kind="chat"),
        LimitReached(
            session_id="s1", seq=3, limit="credits", stopped_at=5, elapsed_ms=4, grace_ms=15_000
        ),
        Credit(account_id="a", credits="1", delta="-1", reason="spend", entry_id="e"),
        Welcome(
            id=1,
            user_id="u",
            org_id=None,
            account_id="a",
            credits="0",
            node="n",
            server_time_at=1,
            ping_ms=10_000,
            expires_at=None,
        ),
    ],
)
def test_real_messages_are_what_is_described(message: Any) -> None:
    described_document = asyncapi()
    schemas = described_document["components"]["schemas"]
    for schema in schemas.values():
        Draft7Validator.check_schema(schema)
    payload = described_document["components"]["messages"][message.__struct_config__.tag]
    check(described_document, payload["payload"], orjson.loads(encode(message)))


async def test_a_whole_conversation_is_what_is_described(server: TestServer) -> None:
    described_document = asyncapi()
    messages = described_document["components"]["messages"]
    await grant(server, "0.5", "k1")
    client = await server.connect()
    heard = [await client.ask("auth", token=server.token())]
    heard.append(await client.ask("start", kind="chat", session_id="s1", tick_ms=250))
    heard.append(await client.until("limit_warning"))
    heard.append(await client.until("tick"))
    heard.append(await client.ask("ping"))
    heard.append(await client.ask("nonsense"))
    heard.append(await client.ask("stop", session_id="s1"))
    assert [said["type"] for said in heard] == [
        "welcome",
        "session",
        "limit_warning",
        "tick",
        "pong",
        "error",
        "stopped",
    ]
    for said in heard:
        check(described_document, messages[said["type"]]["payload"], said)
