"""Requests read strictly, messages written exactly, ticks formatted, errors that say why."""

import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.wire import codec, fields, messages
from protocol.wire.errors import (
    BadMessageError,
    ErrorCode,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from protocol.wire.money import format_credits
from tests.protocol.wire_examples import ID, ID_CHARACTERS, SESSION, STOPPED

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
REQUESTS: list[tuple[dict[str, Any], messages.Request]] = [
    ({"type": "auth", "token": "a.b.c"}, messages.Auth(token="a.b.c")),
    ({"type": "refresh", "token": "a.b.c", "id": 1}, messages.Refresh(id=1, token="a.b.c")),
    (
        {"type": "start", "kind": "chat", "session_id": ID},
        messages.Start(kind="chat", session_id=ID),
    ),
    (
        {
            "type": "start",
            "id": -3,
            "kind": "chat",
            "session_id": ID,
            "counterpart_id": "advisor-7",
            "tick_ms": 250,
            "metadata": {"topic": ["a", {"b": None}]},
            "last_seq": 4,
        },
        messages.Start(
            id=-3,
            kind="chat",
            session_id=ID,
            counterpart_id="advisor-7",
            tick_ms=250,
            metadata={"topic": ["a", {"b": None}]},
            last_seq=4,
        ),
    ),
    ({"type": "pause", "session_id": ID}, messages.Pause(session_id=ID)),
    ({"type": "resume", "session_id": ID}, messages.Resume(session_id=ID)),
    ({"type": "stop", "session_id": ID}, messages.Stop(session_id=ID)),
    ({"type": "leave", "session_id": ID}, messages.Leave(session_id=ID)),
    ({"type": "watch", "session_id": ID}, messages.Watch(session_id=ID)),
    ({"type": "ping", "id": 2**53 - 1}, messages.Ping(id=2**53 - 1)),
]


def refused(data: str | bytes) -> BadMessageError:
    with pytest.raises(BadMessageError) as caught:
        codec.decode(data)
    assert caught.value.code == ErrorCode.BAD_MESSAGE
    assert not caught.value.retryable
    return caught.value


def start(**changes: object) -> bytes:
    message = {"type": "start", "id": 7, "kind": "chat", "session_id": ID, **changes}
    return json.dumps(message).encode()


@pytest.mark.parametrize(("value", "request_"), REQUESTS)
def test_every_request_is_read(value: dict[str, Any], request_: messages.Request) -> None:
    assert codec.decode(json.dumps(value)) == request_
    assert codec.decode(json.dumps(value).encode()) == request_


def test_there_is_an_example_of_every_request() -> None:
    assert {type(request) for _, request in REQUESTS} == set(messages.CLIENT_MESSAGES)
    assert set(messages.CLIENT_MESSAGES) == set(messages.Request.__args__)


def test_unknown_fields_are_ignored() -> None:
    request = codec.decode(start(colour="green", nested={"tick_ms": 1}))
    assert request == messages.Start(id=7, kind="chat", session_id=ID)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tick_ms": 249}, "tick_ms: expected `int` >= 250"),
        ({"tick_ms": 60_001}, "tick_ms: expected `int` <= 60000"),
        ({"tick_ms": 1000.0}, "tick_ms: expected `int | null`, got `float`"),
        ({"tick_ms": True}, "tick_ms: expected `int | null`, got `bool`"),
        ({"session_id": 5}, "session_id: expected `str`, got `int`"),
        ({"session_id": ""}, "session_id: expected `str` of length >= 1"),
        ({"session_id": "a" * 129}, "session_id: expected `str` of length <= 128"),
        ({"session_id": "a b"}, "session_id: expected 1-128 characters of A-Z"),
        ({"session_id": "a\n"}, "session_id: expected 1-128 characters of A-Z"),
        ({"session_id": "a/b"}, "session_id: expected 1-128 characters of A-Z"),
        ({"kind": "ché"}, "kind: expected 1-128 characters of A-Z"),
        ({"counterpart_id": "%d"}, "counterpart_id: expected 1-128 characters of A-Z"),
        ({"last_seq": -1}, "last_seq: expected `int` >= 0"),
        ({"metadata": []}, "metadata: expected `object | null`, got `array`"),
        ({"metadata": {"a": "x" * 2_048}}, "metadata: longer than 2048 bytes"),
        ({"metadata": {"a": ["b\0"]}}, "metadata: contains the character NUL"),
        ({"metadata": {"a\0": 1}}, "metadata: contains the character NUL"),
        ({"type": "strat"}, "type: unknown type 'strat'"),
        ({"type": "session"}, "type: unknown type 'session'"),
        ({"type": 5}, "type: unknown type 'int'"),
        ({"type": None}, "type: unknown type 'NoneType'"),
        ({"type": ["ping"]}, "type: unknown type 'list'"),
    ],
)
def test_a_bad_field_is_named_and_the_id_is_echoed(changes: dict[str, Any], message: str) -> None:
    error = refused(start(**changes))
    assert error.message.startswith(message)
    assert error.id == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"type":"stop","id":7}', "session_id: missing"),
        ('{"type":"auth","id":7}', "token: missing"),
        ('{"id":7}', "type: missing"),
    ],
)
def test_a_missing_field_is_named(data: str, message: str) -> None:
    error = refused(data)
    assert (error.message, error.id) == (message, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b'{"type":"ping"', "not JSON"),
        (b'{"type":"ping"} {}', "not JSON"),
        (b'{"type":"ping","a":NaN}', "not JSON"),
        (b'{"type":"ping","a":-Infinity}', "not JSON"),
        (b'{"type":"ping","a":1e999}', "not JSON"),
        (b'{"type":"ping","a":"\\ud800"}', "not JSON"),
        (b'{"type":"ping","a":"\xff"}', "not JSON"),
        (b'\xef\xbb\xbf{"type":"ping"}', "not JSON"),
        (b"[" * 16_000, "not JSON"),
        ('{"type":"ping","a":"\ud800"}', "not UTF-8"),
        (b"[]", "a message is a JSON object"),
        (b"null", "a message is a JSON object"),
        (b'"ping"', "a message is a JSON object"),
        (b'{"type":"ping","a":"' + b"x" * 16_384 + b'"}', "longer than 16384 bytes"),
    ],
)
def test_what_is_no_message(data: str | bytes, message: str) -> None:
    error = refused(data)
    assert error.message.startswith(message)
    assert error.id is None


def test_length_is_counted_in_bytes() -> None:
    head, tail = '{"type":"ping","a":"', '"}'
    room = limits.MESSAGE_BYTES_MAX - len(head) - len(tail)
    assert codec.decode(head + "x" * room + tail) == messages.Ping()
    assert refused(head + "é" * (room // 2 + 1) + tail).message == "longer than 16384 bytes"


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b'{"type":"ping","a":' + b"[" * levels + b"]" * levels + b"}"

    assert codec.decode(nested(limits.JSON_DEPTH_MAX - 1)) == messages.Ping()
    error = refused(nested(limits.JSON_DEPTH_MAX))
    assert error.message == "nested deeper than 16 levels"
    # Wide is not deep.
    wide = b'{"type":"ping","a":[' + b",".join([b"[]"] * 100) + b"]}"
    assert codec.decode(wide) == messages.Ping()
    assert codec.decode(b'{"type":"ping","a":"' + b"[" * 100 + b'"}') == messages.Ping()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"type":"ping","type":"stop","session_id":"a"}', "type"),
        (b'{"type":"ping","id":1,"id":2}', "id"),
        (b'{"type":"ping","id":1,"\\u0069d":2}', "id"),
        (b'{"type" : "ping", "a" :1,\n"a"\t: 1}', "a"),
        (b'{"type":"start","kind":"a","session_id":"a:b","metadata":{"x":1,"x":2}}', "x"),
        (b'{"type":"ping","list":[{"y":1,"y":2}]}', "y"),
    ],
)
def test_a_name_that_comes_twice(data: bytes, name: str) -> None:
    assert refused(data).message == f"{name}: the name appears twice"


@pytest.mark.parametrize("value", ["1", 1.0, True, None, 2**53, -(2**53), [1], 10**30])
def test_an_id_that_cannot_be_echoed(value: object) -> None:
    error = refused(json.dumps({"type": "nonsense", "id": value}))
    assert error.id is None


@pytest.mark.parametrize("value", ["1", 1.5, True, 2**53, -(2**53), 10**30])
def test_an_id_is_a_safe_integer(value: object) -> None:
    assert refused(json.dumps({"type": "ping", "id": value})).message.startswith("id: ")


def test_metadata_may_say_nul_without_holding_it() -> None:
    metadata = {"text": "\\u0000"}
    assert codec.check_metadata(metadata) == metadata
    assert codec.check_metadata(None) is None


@pytest.mark.parametrize("metadata", [[], "a", 1, {"a": object()}, {1: 2}])
def test_metadata_that_is_none(metadata: object) -> None:
    with pytest.raises(BadMessageError, match=r" metadata: "):
        codec.check_metadata(metadata)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(max_size=8), child),
    max_leaves=12,
)


@CALM
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    refused(data)


@CALM
@given(
    st.dictionaries(
        st.sampled_from(["type", "id", "token", "kind", "session_id", "metadata", "tick_ms"]),
        JSON | st.sampled_from(["auth", "start", "ping", "stop", "chat"]),
    )
)
def test_no_object_raises_anything_else(value: dict[str, Any]) -> None:
    try:
        request = codec.decode(json.dumps(value))
    except BadMessageError as error:
        text = error.message
    else:
        text = str(request.__struct_config__.tag)
    assert text


@CALM
@given(st.lists(st.tuples(st.sampled_from("abc:"), JSON), max_size=4))
def test_duplicates_are_found_wherever_they_are(pairs: list[tuple[str, Any]]) -> None:
    body = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
    data = f'{{"type":"ping","extra":{{{body}}}}}'
    if len({name for name, _ in pairs}) == len(pairs):
        assert codec.decode(data) == messages.Ping()
    else:
        assert "the name appears twice" in refused(data).message


def test_the_encoder_writes_what_orjson_would() -> None:
    for message in (
        SESSION,
        STOPPED,
        messages.Reconnect(after_ms=5),
        messages.Pong(server_time_at=1),
    ):
        assert codec.encode(message) == orjson.dumps(msgspec.to_builtins(message))


def test_requests_are_written_as_they_are_read() -> None:
    for _, request in REQUESTS:
        assert codec.decode(codec.encode(request)) == request


@CALM
@given(
    session_id=st.text(ID_CHARACTERS, min_size=1, max_size=128),
    elapsed_ms=st.integers(0, 2**53),
    free_remaining_ms=st.integers(0, 2**53),
    paid=st.booleans(),
    credits_micros=st.integers(-(10**15), 10**15),
    remaining_ms=st.none() | st.integers(0, 2**53),
    limit=st.sampled_from([None, "credits", "member_minutes", "org_minutes", "session_cap"]),
)
def test_a_formatted_tick_is_the_encoded_one(
    session_id: str, credits_micros: int, limit: fields.LimitName | None, **figures: Any
) -> None:
    formatted = codec.format_tick(
        codec.tick_template(session_id), credits_micros=credits_micros, limit=limit, **figures
    )
    tick = messages.Tick(
        session_id=session_id, credits=format_credits(credits_micros), limit=limit, **figures
    )
    assert formatted == codec.encode(tick)
    assert msgspec.json.decode(formatted, type=messages.Tick) == tick


@pytest.mark.parametrize("session_id", ["", "a%d", 'a"b', "é", "a" * 129])
def test_a_template_is_made_of_an_id_only(session_id: str) -> None:
    with pytest.raises(AssertionError):
        codec.tick_template(session_id)


def test_the_error_message_carries_what_the_error_knows() -> None:
    error = RefusedError(ErrorCode.LIMIT_REACHED, "no credits", limit="credits", id=4)
    assert json.loads(codec.encode(codec.error_message(error))) == {
        "type": "error",
        "id": 4,
        "code": "limit_reached",
        "message": "no credits",
        "retryable": False,
        "limit": "credits",
    }
    unavailable = json.loads(codec.encode(codec.error_message(ServiceError("no Redis"))))
    assert unavailable["retryable"] is True
    assert "id" not in unavailable
    assert "limit" not in unavailable


def test_codes_of_the_message_are_those_of_the_errors() -> None:
    for code in ErrorCode:
        message = codec.error_message(ProtocolError(code, "text"))
        read = msgspec.json.decode(codec.encode(message), type=messages.Error)
        assert read.code == code
