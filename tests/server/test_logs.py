"""The log contains what happened and no secret."""

import asyncio
import json
import logging
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
import websockets

from server.runtime import logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJl-_"
SECRETS = [JWT, "hunter2"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [
        logging.getLogger(),
        *map(logging.getLogger, ("uvicorn", "uvicorn.access", "uvicorn.error")),
    ]
    before = [(one, one.handlers[:], one.level, one.propagate, one.disabled) for one in loggers]
    configuration = structlog.get_config()
    yield
    logging.captureWarnings(False)
    structlog.configure(**configuration)
    structlog.contextvars.clear_contextvars()
    for logger, handlers, level, propagate, disabled in before:
        logger.handlers[:] = handlers
        logger.level, logger.propagate, logger.disabled = level, propagate, disabled


Capture = pytest.CaptureFixture[str]


def lines(capsys: Capture) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


# --- Redaction


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("nothing to hide", "nothing to hide"),
        (f"got {JWT} from it", "got [redacted] from it"),
        (JWT[:30] + "...", "[redacted]..."),
        ("Authorization: Bearer hunter2", "Authorization: [redacted]"),
        ("'authorization': 'Bearer hunter2'", "'authorization': '[redacted]'"),
        ("bearer hunter2, then", "bearer [redacted], then"),
        ("Basic aHVudGVyMg==", "Basic [redacted]"),
        ("redis://:hunter2@host:6379/0", "redis://:[redacted]@host:6379/0"),
        ("postgresql://user:hunter2@host/db", "postgresql://user:[redacted]@host/db"),
        ("/v1/ws?token=hunter2&a=1", "/v1/ws?token=[redacted]&a=1"),
        ('{"token": "hunter2", "a": 1}', '{"token": "[redacted]", "a": 1}'),
        ("api_key=hunter2", "api_key=[redacted]"),
        ("x-api-key: hunter2", "x-api-key: [redacted]"),
        ("password='hunter2'", "password='[redacted]'"),
        ("JWT_SECRET=hunter2", "JWT_SECRET=[redacted]"),
        ("the token has expired", "the token has expired"),
        ("account:o1/a1 at 12:30", "account:o1/a1 at 12:30"),
    ],
)
def test_texts(text: str, redacted: str) -> None:
    assert logs.redact_text(text) == redacted


def test_redacting_twice_changes_nothing_more() -> None:
    once = logs.redact_text(f"Bearer {JWT} token=hunter2 redis://:hunter2@host")
    assert logs.redact_text(once) == once


def test_fields_that_are_secret_by_name() -> None:
    event = {
        "event": "hello",
        "token": "hunter2",
        "Authorization": "hunter2",
        "api_key": "hunter2",
        "apiKeys": ["hunter2"],
        "jwt_secret": {"a": "hunter2"},
        "set-cookie": b"hunter2",
        "tokens_refused": 3,
        "secret": None,
        "session_id": "s1",
    }
    redacted = logs.redact(None, "info", event)
    assert "hunter2" not in str(redacted)
    assert redacted["tokens_refused"] == 3
    assert redacted["secret"] is None
    assert (redacted["event"], redacted["session_id"]) == ("hello", "s1")


def test_secrets_at_any_depth_and_in_any_type() -> None:
    class Thing:
        def __str__(self) -> str:
            return f"Thing({JWT})"

    deep: Any = "hunter2"
    for _ in range(12):
        deep = {"a": [deep]}
    event = {
        "event": f"Bearer {JWT}",
        "list": [{"nested": (JWT, {"token": "hunter2"})}],
        "error": ValueError(JWT),
        "bytes": JWT.encode(),
        "thing": Thing(),
        "headers": [("x", f"Bearer {JWT}")],
        "deep": deep,
        "set": {JWT},
    }
    text = str(logs.redact(None, "info", event))
    assert not any(secret in text for secret in SECRETS)
    assert "ValueError" not in text
    assert "Thing([redacted])" in text


# --- The pipeline


def test_json_lines(capsys: Capture) -> None:
    logs.configure("json")
    structlog.contextvars.bind_contextvars(node="n1")
    structlog.get_logger("taximeter.test").info("started", session_id="s1", token="hunter2")
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "started",
        "level": "info",
        "logger": "taximeter.test",
        "node": "n1",
        "session_id": "s1",
        "token": "[redacted]",
    }


def test_the_console_is_for_eyes(capsys: Capture) -> None:
    logs.configure("console")
    structlog.get_logger("taximeter.test").warning("hello", url="redis://:hunter2@h", a=1)
    try:
        raise ValueError(JWT)
    except ValueError:
        structlog.get_logger("taximeter.test").exception("it broke")
    _, err = capsys.readouterr()
    assert "hello" in err
    assert "a=1" in err
    assert "Traceback" in err
    assert not any(secret in err for secret in SECRETS)


def test_levels_are_respected_and_may_be_changed(capsys: Capture) -> None:
    logs.configure("json")
    log = structlog.get_logger("taximeter.test")
    log.debug("unheard")
    logs.configure("json", logging.DEBUG)
    log.debug("heard")
    assert [line["event"] for line in lines(capsys)] == ["heard"]


def test_tracebacks_are_redacted(capsys: Capture) -> None:
    logs.configure("json")
    try:
        raise ValueError(f"bad {JWT}")
    except ValueError:
        logging.getLogger("library").exception("failed with %s", f"Bearer {JWT}")
    (line,) = lines(capsys)
    assert line["event"] == "failed with Bearer [redacted]"
    assert "ValueError: bad [redacted]" in line["exception"]


def test_records_of_libraries_take_the_same_way(capsys: Capture) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn").propagate = False
    logs.configure("json")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("library").warning("hello", extra={"api_key": "hunter2", "size": 3})
    first, second = lines(capsys)
    assert first["event"] == "Started server process [7]"
    assert first["logger"] == "uvicorn.error"
    assert (second["level"], second["api_key"], second["size"]) == ("warning", "[redacted]", 3)


def test_paths_are_logged_without_their_query(capsys: Capture) -> None:
    logs.configure("json")
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/v1/accounts/a?cursor=hunter2", "1.1", 200
    )
    logging.getLogger("uvicorn.error").info(
        '%s - "WebSocket %s" [accepted]', "127.0.0.1:5", "/v1/ws?x=hunter2"
    )
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/healthz", "1.1", 200
    )
    access, accepted, plain = (line["event"] for line in lines(capsys))
    assert access == '127.0.0.1:5 - "GET /v1/accounts/a?... HTTP/1.1" 200'
    assert accepted == '127.0.0.1:5 - "WebSocket /v1/ws?..." [accepted]'
    assert plain == '127.0.0.1:5 - "GET /healthz HTTP/1.1" 200'


async def test_uvicorn_itself_logs_no_query(capsys: Capture) -> None:
    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    logs.configure("json")
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(answer, ws="websockets-sansio", lifespan="off", log_config=None)
    )
    serving = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient() as client:
        await client.get(f"http://{address}/path?token=hunter2&x=hunter2")
    async with websockets.connect(f"ws://{address}/v1/ws?x=hunter2"):
        pass
    server.should_exit = True
    await serving
    logged = [line for line in lines(capsys) if line["logger"].startswith("uvicorn")]
    text = str(logged)
    assert "GET /path?..." in text
    assert "WebSocket /v1/ws?..." in text
    assert "hunter2" not in text
    assert not any("color_message" in line for line in logged)


def test_warnings_are_logged(capsys: Capture) -> None:
    logs.configure("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings restores Python's own hook when it exits.
        logging.captureWarnings(True)
        warnings.warn("take care", stacklevel=1)
    (line,) = lines(capsys)
    assert "take care" in line["event"]
    assert line["logger"] == "py.warnings"


def test_what_json_cannot_say_is_written_as_text(capsys: Capture) -> None:
    logs.configure("json")
    log = structlog.get_logger("taximeter.test")
    log.info("odd", value=object, nan=float("nan"), names={5: 6})
    log.info("large", value=object, big=2**70, surrogate="\ud800")
    odd, large = lines(capsys)
    assert (odd["value"], odd["nan"], odd["names"]) == ("<class 'object'>", None, {"5": 6})
    assert (large["big"], large["surrogate"]) == (2**70, "\ud800")
