import random

import pytest
from websockets.frames import Frame, Opcode

from server.transport.frames import EMPTY_PING, text_frame

LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536, 200_000)


@pytest.mark.parametrize("length", LENGTHS)
def test_text_frame_is_what_websockets_makes(length: int) -> None:
    payload = random.Random(length).randbytes(length)
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_every_length_around_the_ready_headers() -> None:
    for length in range(600):
        payload = bytes(length)
        assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_empty_ping() -> None:
    assert Frame(Opcode.PING, b"").serialize(mask=False) == EMPTY_PING
