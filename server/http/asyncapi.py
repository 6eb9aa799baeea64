"""The AsyncAPI 3.0 document of WebSocket and event stream, generated from code.

It has the server's view: the server receives requests, and sends answers and notices.
"""

import inspect
from typing import Any

import msgspec

from protocol import limits
from protocol.wire.errors import CloseCode, ErrorCode, may_reconnect
from protocol.wire.messages import CLIENT_MESSAGES, SERVER_MESSAGES
from protocol.wire.stream_events import STREAM_EVENTS, STREAM_TYPES, StreamPong
from server.gateway.connection import SUBPROTOCOL
from server.http.openapi import LICENSE, REFERENCE, TITLE, VERSION

SOCKET = "#/channels/socket"
STREAM = "#/channels/stream"
CLOSE_CODES = {
    CloseCode.NORMAL: "normal close by either side",
    CloseCode.GOING_AWAY: "the peer leaves",
    CloseCode.ABNORMAL: "the connection was lost",
    CloseCode.MESSAGE_TOO_BIG: f"a message over {limits.MESSAGE_BYTES_MAX} bytes",
    CloseCode.INTERNAL_ERROR: "an error of the server",
    CloseCode.SERVICE_RESTART: "the process stops",
    CloseCode.DRAINING: "the process drains",
    CloseCode.SLOW_CONSUMER: "slow consumer",
    CloseCode.TOKEN_EXPIRED: "the token has expired",
    CloseCode.NO_PONG: "no pong",
    CloseCode.BAD_TOKEN: "bad token",
    CloseCode.AUTHENTICATION_TIMEOUT: "no authentication in time",
    CloseCode.PROTOCOL_VIOLATION: "protocol violation",
    CloseCode.TOO_MANY_CONNECTIONS: "too many connections",
}
ERROR_CODES = {
    ErrorCode.BAD_MESSAGE: "the message is malformed; `message` names the field",
    ErrorCode.UNAUTHENTICATED: "no valid token yet",
    ErrorCode.FORBIDDEN: "this token may not do this",
    ErrorCode.UNKNOWN_KIND: "the rate card has no such kind",
    ErrorCode.UNKNOWN_SESSION: "the session does not exist",
    ErrorCode.SESSION_ENDED: "the session has ended",
    ErrorCode.LIMIT_REACHED: "a limit is used up; `limit` names it",
    ErrorCode.RATE_LIMITED: "too many requests",
    ErrorCode.UNAVAILABLE: "a service that the server needs does not answer",
}
STREAM_DESCRIPTION = (
    "The messages of the socket where no WebSocket gets through. The server's messages are the "
    "events of `GET /v1/stream` (`text/event-stream`); their data is one line of JSON. `open`, "
    "`ping` and `close` are events of that name, all others have none. The client's messages are "
    "the bodies of `POST /v1/stream/{stream_id}`, one of them or a list. Every request shows the "
    "token in `Authorization: Bearer`, so there is no `auth`."
)
REPLIES = {
    "auth": "welcome",
    "refresh": "welcome",
    "start": "session",
    "pause": "session",
    "resume": "session",
    "watch": "session",
    "stop": "stopped",
    "leave": None,
    "ping": "pong",
}
"""The answer to each request that causes no ``error``."""


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document of socket and stream, from the server's view.

    The server receives requests.
    """
    types = (*CLIENT_MESSAGES, *SERVER_MESSAGES)
    _, schemas = msgspec.json.schema_components((*types, *STREAM_TYPES), ref_template=REFERENCE)
    messages = {_tag(message): _message(message) for message in types}
    stream_messages = {f"stream_{_tag(message)}": _message(message) for message in STREAM_TYPES}
    operations: dict[str, Any] = {}
    for message in CLIENT_MESSAGES:
        operations[f"receive_{_tag(message)}"] = _receive(_tag(message))
    for said in SERVER_MESSAGES:
        operations[f"send_{_tag(said)}"] = {
            "action": "send",
            "channel": {"$ref": SOCKET},
            "summary": _summary(said),
            "messages": [_on_socket(_tag(said))],
        }
    for event in STREAM_EVENTS:
        operations[f"send_stream_{_tag(event)}"] = _on_stream("send", event)
    operations["receive_stream_pong"] = _on_stream("receive", StreamPong)
    references = {
        name: {"$ref": f"#/components/messages/{name}"} for name in (*messages, *stream_messages)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "license": LICENSE,
            "description": "The socket of the real-time usage meter. One text frame is one JSON "
            "object. The HTTP side is described by `/openapi.json`.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "socket": {
                "address": "/v1/ws",
                "description": _socket_description(),
                "messages": {name: references[name] for name in messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
                "x-subprotocol": SUBPROTOCOL,
                "x-close-codes": {str(int(code)): text for code, text in CLOSE_CODES.items()},
            },
            "stream": {
                "address": "/v1/stream",
                "description": STREAM_DESCRIPTION,
                "messages": references,
            },
        },
        "operations": operations,
        "components": {
            "messages": {**messages, **stream_messages},
            "schemas": {name: _plain(schema) for name, schema in schemas.items()},
        },
    }


def _tag(message: type[msgspec.Struct]) -> str:
    return str(message.__struct_config__.tag)


def _on_stream(action: str, message: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": STREAM},
        "summary": _summary(message),
        "messages": [{"$ref": f"{STREAM}/messages/stream_{_tag(message)}"}],
    }


def _summary(message: type) -> str:
    return (inspect.getdoc(message) or "").partition("\n")[0]


def _on_socket(name: str) -> dict[str, str]:
    return {"$ref": f"{SOCKET}/messages/{name}"}


def _message(message: type[msgspec.Struct]) -> dict[str, Any]:
    described_message: dict[str, Any] = {
        "name": _tag(message),
        "title": message.__name__,
        "summary": _summary(message),
        "payload": {"$ref": REFERENCE.format(name=message.__name__)},
    }
    if "id" in message.__struct_fields__:
        described_message["correlationId"] = {
            "description": "The request's own number, echoed by its answer.",
            "location": "$message.payload#/id",
        }
    return described_message


def _receive(name: str) -> dict[str, Any]:
    reply = REPLIES[name]
    answers = [_on_socket(answered) for answered in (reply, "error") if answered is not None]
    message = next(message for message in CLIENT_MESSAGES if _tag(message) == name)
    return {
        "action": "receive",
        "channel": {"$ref": SOCKET},
        "summary": _summary(message),
        "messages": [_on_socket(name)],
        "reply": {"channel": {"$ref": SOCKET}, "messages": answers},
    }


def _socket_description() -> str:
    codes = "\n".join(
        f"- `{int(code)}` {text}: {'come back' if may_reconnect(code) else 'stay away'}"
        for code, text in CLOSE_CODES.items()
    )
    errors = "\n".join(f"- `{code}`: {text}" for code, text in ERROR_CODES.items())
    return (
        f"Subprotocol `{SUBPROTOCOL}`. The first message is `auth`, or the handshake carries "
        "`Authorization: Bearer`; a token is never in the URL.\n\n"
        f"Close codes, and what a client does after them:\n\n{codes}\n\n"
        f"Codes of `error`:\n\n{errors}"
    )


def _plain(schema: Any) -> Any:
    """A schema in AsyncAPI's dialect.

    There a discriminator is only the property's name.
    """
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: part["propertyName"]
        if name == "discriminator" and isinstance(part, dict)
        else _plain(part)
        for name, part in schema.items()
    }
