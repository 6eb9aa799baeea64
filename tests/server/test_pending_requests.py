"""A pending request is answered over its socket or by its callback."""

import json
from typing import Any, cast

import pytest

from protocol.wire.errors import ErrorCode, ProtocolError, RefusedError, ServiceError
from server.sessions.pending_requests import PendingRequest, Subscriber, fail, refusal


class FrameList:
    """A socket that keeps what is sent to it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)


def test_error_has_the_id_of_its_request() -> None:
    socket = FrameList()
    fail(PendingRequest(cast(Subscriber, socket), 7), ServiceError("away"))
    (frame,) = socket.frames
    message: dict[str, Any] = json.loads(frame[frame.index(b"{") :])
    assert (message["type"], message["id"], message["code"]) == ("error", 7, "unavailable")
    assert message["retryable"]


def test_callback_takes_the_error_in_place_of_the_socket() -> None:
    socket, errors = FrameList(), list[ProtocolError]()

    def failed(error: ProtocolError) -> None:
        errors.append(error)

    error = ServiceError("away")
    fail(PendingRequest(cast(Subscriber, socket), None, failed=failed), error)
    assert (errors, socket.frames) == ([error], [])


def test_request_without_anybody_who_waits_fails_quietly() -> None:
    fail(None, ServiceError("away"))
    fail(PendingRequest(None, None), ServiceError("away"))


@pytest.mark.parametrize(
    ("limit", "code"), [(None, ErrorCode.SESSION_ENDED), ("credits", ErrorCode.LIMIT_REACHED)]
)
def test_refusal_names_the_limit(limit: str | None, code: ErrorCode) -> None:
    error = refusal(limit)
    assert isinstance(error, RefusedError)
    assert (error.code, error.limit) == (code, limit)
