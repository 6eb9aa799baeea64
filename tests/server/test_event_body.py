"""Bodies of providers' events: packed, huge, broken, in any pieces."""

import gzip
import itertools
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable

import pytest
from getstream.webhook import gunzip_payload
from hypothesis import given
from hypothesis import strategies as st

from server.calls import limits as call_limits
from server.calls.event_body import EventBody, receive_body
from server.calls.facts import RefusedEventError

BOUND = call_limits.CALL_EVENT_BYTES_MAX


def taken(chunks: Iterable[bytes], **headers: str) -> bytes:
    body = EventBody({name.replace("_", "-"): value for name, value in headers.items()})
    for chunk in chunks:
        body.add(chunk)
    return body.finish()


def refusal(chunks: Iterable[bytes], **headers: str) -> str:
    with pytest.raises(RefusedEventError) as refused:
        taken(chunks, **headers)
    return refused.value.code.value


@given(
    st.one_of(st.just(b""), st.binary(max_size=200), st.binary(max_size=9).map(b'{"a":'.__add__)),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_pieces_make_no_difference_and_stream_s_sdk_agrees(
    body: bytes, is_packed: bool, is_said: bool, cuts: list[int]
) -> None:
    if body.startswith(b"\x1f\x8b"):
        return  # no JSON
    sent = gzip.compress(body) if is_packed else body
    places = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    chunks = [sent[start:end] for start, end in itertools.pairwise(places)]
    headers = {"content_encoding": "gzip"} if is_packed and is_said else {}
    assert taken(chunks, **headers) == body == gunzip_payload(sent)


@pytest.mark.parametrize("headers", [{}, {"content_encoding": "gzip"}], ids=["unsaid", "said"])
def test_a_bomb_costs_a_mebibyte(headers: dict[str, str]) -> None:
    bomb = gzip.compress(bytes(100 * 1024 * 1024))
    assert len(bomb) < BOUND
    chunks = [bomb[start : start + 65_536] for start in range(0, len(bomb), 65_536)]
    tracemalloc.start()
    try:
        assert refusal(chunks, **headers) == "event_bomb"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024 * 1024


def test_a_hundred_mebibytes_of_packed_noise_are_read_no_further_than_the_bound() -> None:
    read = 0

    def noise() -> Iterable[bytes]:
        nonlocal read
        chunk = b"\x1f\x8b" + bytes(65_534)
        for _ in range(1_600):
            read += len(chunk)
            yield chunk

    assert refusal(noise()) in ("event_oversized", "event_malformed")
    assert read <= BOUND + 65_536


def test_the_length_that_the_head_says_is_enough_to_refuse() -> None:
    assert refusal([], content_length=str(BOUND + 1)) == "event_oversized"
    assert refusal([], content_length="9" * 5_000) == "event_oversized"
    assert taken([b"{}"], content_length="2") == b"{}"
    assert taken([b"{}"], content_length="nonsense") == b"{}"


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_body_may_be_exactly_as_long_as_the_bound(is_packed: bool) -> None:
    body = b"x" * BOUND
    over = b"x" * (BOUND + 1)
    if not is_packed:
        assert taken([body]) == body
        assert refusal([over]) == "event_oversized"
    else:
        assert taken([gzip.compress(body)]) == body
        assert refusal([gzip.compress(over)]) == "event_bomb"


PACKED = gzip.compress(b'{"type":"call.ended"}', mtime=0)


@pytest.mark.parametrize(
    ("sent", "headers", "code"),
    [
        (b"{}", {"content_encoding": "br"}, "event_encoding"),
        (b"{}", {"content_encoding": "deflate"}, "event_encoding"),
        (PACKED, {"content_encoding": "gzip, gzip"}, "event_encoding"),
        (b"{}", {"content_encoding": "gzip"}, "event_malformed"),
        (b"", {"content_encoding": "gzip"}, "event_malformed"),
        (PACKED[:1], {"content_encoding": "gzip"}, "event_malformed"),
        (PACKED[:-1], {}, "event_malformed"),
        (PACKED[:-8] + b"\0" * 8, {}, "event_malformed"),
        # One member alone: empty ones cost time, and add nothing to the body.
        (PACKED + gzip.compress(b"", mtime=0), {}, "event_malformed"),
        (PACKED + b"more", {}, "event_malformed"),
        (zlib.compress(b"{}"), {"content_encoding": "gzip"}, "event_malformed"),
    ],
)
def test_broken_bodies_are_refused(sent: bytes, headers: dict[str, str], code: str) -> None:
    assert refusal([sent], **headers) == code
    assert refusal([sent[:5], sent[5:]], **headers) == code
    assert refusal([sent[at : at + 1] for at in range(len(sent))], **headers) == code


async def test_a_request_is_read_until_it_is_refused() -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1_000):
            read += 4_096
            yield b"x" * 4_096

    with pytest.raises(RefusedEventError) as refused:
        await receive_body({}, chunks())
    assert refused.value.code == "event_oversized"
    assert read <= BOUND + 4_096
