"""Mutations of values, JSON objects and bytes, drawn from one generator.

An object is a list of pairs here, so that a name can occur twice, and a value may be text that is
not JSON at all (``Raw``).
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Pairs = list[tuple[str, Any]]


class Raw(str):
    """Text that is written into the JSON unchanged."""

    __slots__ = ()


def _deep(rng: random.Random) -> Raw:
    depth = rng.choice((3, 15, 16, 17, 200, 2_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(opening * depth + "1" + closing * depth)


# Replacements for a value. The texts have caused errors elsewhere in readers of ids, numbers,
# paths, headers, SQL, Lua and templates.
_ODD: Sequence[Callable[[random.Random], Any]] = (
    lambda _: None,
    lambda rng: rng.choice((True, False)),
    lambda rng: rng.choice((0, -1, 1, 249, 250, 60_000, 60_001, 2**31, 2**53 - 1, 2**53)),
    lambda rng: rng.choice((2**63 - 1, 2**63, 2**64, -(2**63), -(2**53), 10**15 + 1)),
    lambda rng: rng.choice((0.5, -0.0, 1e-9, 1e308, 1.0, 1000.0)),
    lambda rng: Raw(rng.choice(("NaN", "-Infinity", "1e999", "01", "+1", ".5", "0x1", "1" * 400))),
    lambda rng: rng.choice(("", " ", "\0", "a\0b", "\n", "é", "\u2028", "\U0001f600", "ﬁ")),
    lambda rng: Raw(rng.choice(('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x"', '"\n"'))),
    lambda rng: rng.choice(("1", "-1", "0.0000001", "1e3", "1,5", "999999999999.999999", "٣", "∞")),
    lambda rng: rng.choice(("a b", "a/b", "../..", "%2e%2e", "{p0}", "{p0}:outbox", "%s", "{0}")),
    lambda rng: rng.choice(("' OR 1=1--", "$1", "*", "\r\nX: y", "<script>", "${x}", "__proto__")),
    lambda rng: "x" * rng.choice((127, 128, 129, 255, 256, 2_048, 8_193, 20_000)),
    lambda _: [],
    lambda _: {},
    lambda rng: [0] * rng.choice((1, 65, 3_000)),
    lambda rng: {f"k{n}": n for n in range(rng.choice((1, 20, 500)))},
    lambda rng: {"a": {"b": [{"c": "\0"}]}, "": rng.random()},
    _deep,
)


def odd(rng: random.Random) -> Any:
    """A value that is wrong almost everywhere."""
    return rng.choice(_ODD)(rng)


def write(value: Any) -> str:
    """The JSON of a value.

    Pairs become an object, and ``Raw`` text stays as it is.
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, tuple) for part in value):
        return "{" + ",".join(f"{json.dumps(name)}:{write(part)}" for name, part in value) + "}"
    return json.dumps(value)


def mutate_pairs(rng: random.Random, pairs: Pairs, names: Sequence[str]) -> Pairs:
    """The pairs with a random change; ``names`` are the meaningful names."""
    changed = list(pairs)
    at = rng.randrange(len(changed)) if changed else 0
    match rng.randrange(8):
        case 0 if changed:
            del changed[at]
        case 1:
            changed.insert(at, (rng.choice(names), odd(rng)))
        case 2 if changed:
            changed.insert(at, changed[rng.randrange(len(changed))])
        case 3 if changed:
            name, value = changed[at]
            changed[at] = (rng.choice((name.upper(), name + "_", "", name[:-1])), value)
        case 4 if changed:
            name, value = changed[at]
            changed[at] = (name, rng.choice(([value], [(name, value)], str(value))))
        case 5 if len(changed) > 1:
            other = rng.randrange(len(changed))
            (one, first), (two, second) = changed[at], changed[other]
            changed[at], changed[other] = (one, second), (two, first)
        case _ if changed:
            changed[at] = (changed[at][0], odd(rng))
    return changed


# Byte sequences that parsers of frames and of HTTP look for.
_PIECES = (
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Authorization: Bearer x\r\n",
    b"X: " + b"y" * 40_000,
    b"\x88\x00",
    b"\x89\x80\0\0\0\0",
    b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, moved, lost or added."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end] * rng.choice((1, 3, 50))
            case 4:
                changed[at:at] = rng.choice(_PIECES)
            case _:
                if rng.random() < 0.3:
                    del changed[at:]
    return bytes(changed)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes as they may arrive: whole, or in parts."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 0, 1, 3))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
