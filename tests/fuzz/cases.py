"""The attack's cases: each follows from its number and the seed.

Tokens expire and are therefore not part of a case: a case names the owner of its token, and the
attack inserts one. Attackers have users, an organisation and sessions of their own, and share an
organisation with some of the honest users. They know the ids of the honest sessions and try them;
only API keys and operators, which may do everything, leave those sessions alone.
"""

import random
import struct
from dataclasses import dataclass, field
from typing import Literal

from websockets.frames import Frame, Opcode

from tests.fuzz.claims import odd_claims
from tests.fuzz.mutate import Pairs, Raw, mutate_bytes, mutate_pairs, odd, pieces, write

Bearer = Literal["user", "member", "observer", "key", "ops", "expired", "forged", "none"]
"""The owner of the token: an attacker, one in the organisation of honest users, one with listed
sessions, a backend, an operator; or no valid token."""

ATTACKERS = 24
HONEST_ORG = "acme"
HONEST_IDS = [f"honest-{number}" for number in range(16)]
"""Sessions of the honest users, which attackers try to end, pause or join."""
USERS = ("user-0", "user-1", "mallory-1", "auth0|5f7c", "ann+x@example.com", "a=b~c", None)
INSIDE_PATH = "/fuzz/inside"
"""The path at which the attacked server shows its internal counts; see ``served``."""
KINDS = ("chat", "talk", "lesson")
KEYED = ("/grants", "/spend", "/holds", "/post", "/void", "/adjustments")
"""Ends of the paths that take an idempotency key."""
FIELDS = (
    *("type", "id", "token", "kind", "session_id", "counterpart_id", "tick_ms", "metadata"),
    *("last_seq", "amount", "reason", "user_id", "account_id", "expires_at", "priority"),
    *("seconds_recorded", "minute_timestamp", "timezone", "monthly_hours_limit", "tier"),
)


@dataclass
class MessageCase:
    """One message to a socket, which has authenticated or not."""

    number: int
    data: bytes
    is_text: bool


@dataclass
class FrameCase:
    """A connection that begins as a WebSocket and continues with arbitrary frames."""

    number: int
    bearer: Bearer
    handshake: list[bytes]
    """In pieces; ``{token}`` marks the place of the token."""
    frames: list[bytes]
    ending: Literal["wait", "shut", "reset"]
    claims: str = ""
    """Claims of the case's own token, as JSON; empty: the token is the bearer's."""


@dataclass
class RequestCase:
    """Requests over HTTP as bytes, well-formed or not."""

    number: int
    bearer: Bearer
    parts: list[bytes]
    ending: Literal["wait", "shut", "reset"]
    is_raw: bool = field(default=False)
    """The bytes were changed, so the parser decides whether there is an answer."""
    claims: str = ""
    """Claims of the case's own token, as JSON; empty: the token is the bearer's."""
    refused: bool | None = None
    """True: the answer must be a refusal. False: it must not refuse the token. None: either is
    right."""


Case = MessageCase | FrameCase | RequestCase


def case_of(seed: int, number: int) -> Case:
    """The case with this number."""
    rng = random.Random(f"{seed}/{number}")
    share = rng.random()
    if share < 0.55:
        return _message_case(rng, number)
    if share < 0.70:
        return _frame_case(rng, number)
    if share < 0.76:
        return _token_case(rng, number)
    if share < 0.80:
        return _empty_case(rng, number)
    return _request_case(rng, number)


def _session_id(rng: random.Random, *, honest: bool = True) -> str:
    if honest and rng.random() < 0.3:
        return rng.choice(HONEST_IDS)
    return f"theirs-{rng.randrange(200)}"


# --- Messages --------------------------------------------------------------------------


def _message(rng: random.Random) -> Pairs:
    session_id = ("session_id", _session_id(rng))
    kind = ("kind", rng.choice(KINDS))
    start: Pairs = [("type", "start"), kind, session_id]
    if rng.random() < 0.5:
        start += [("tick_ms", rng.choice((250, 1_000))), ("last_seq", rng.randrange(5))]
    if rng.random() < 0.3:
        start += [("counterpart_id", "them"), ("metadata", [("title", "é"), ("n", [1, None])])]
    others: list[Pairs] = [
        [("type", name), session_id] for name in ("pause", "resume", "stop", "leave", "watch")
    ]
    plain: list[Pairs] = [
        [("type", "ping")],
        [("type", "auth"), ("token", "{token}")],
        [("type", "refresh"), ("token", "{token}")],
        [("type", "refresh"), ("token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.")],
    ]
    whose = [("org", rng.choice((HONEST_ORG, "evil", None))), ("user", rng.choice(USERS))]
    plain.append([("type", "watch"), session_id, *rng.sample(whose, rng.randint(1, 2))])
    chosen = rng.choice((start, start, rng.choice(others), rng.choice(others), rng.choice(plain)))
    return [*chosen, ("id", rng.randrange(1, 10**6))]


def _message_case(rng: random.Random, number: int) -> MessageCase:
    pairs = _message(rng)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        pairs = mutate_pairs(rng, pairs, FIELDS)
    text = write(pairs or odd(rng))
    # Invalid UTF-8 ends a socket, so it is tried less often than the rest.
    data = text.encode("utf-8", "surrogatepass")
    is_text = rng.random() < 0.97
    if rng.random() < 0.2:
        changed = mutate_bytes(rng, data)
        try:
            changed.decode()
        except UnicodeDecodeError:
            is_text = is_text and rng.random() < 0.1
        data = changed
    return MessageCase(number, data, is_text)


# --- Frames ------------------------------------------------------------------------------

HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: taximeter.v1\r\nX-Forwarded-For: {address}\r\n"
)


def _frames(rng: random.Random) -> list[bytes]:
    opcodes = (Opcode.TEXT, Opcode.TEXT, Opcode.CONT, Opcode.BINARY, Opcode.PING, Opcode.PONG)
    frames = []
    for _ in range(rng.randint(1, 12)):
        payload = write(_message(rng)).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            payload = rng.randbytes(rng.choice((0, 1, 125, 126, 127, 16_384, 16_385)))
        opcode = rng.choice(opcodes)
        if opcode in (Opcode.PING, Opcode.PONG) and rng.random() < 0.9:
            payload = payload[:125]
        fin = rng.random() < 0.7
        frame = Frame(
            opcode,
            payload,
            fin or opcode in (Opcode.PING, Opcode.PONG),
            *(rng.random() < 0.03 for _ in range(3)),
        )
        frames.append(frame_bytes(rng, frame))
    if rng.random() < 0.15:
        empty = frame_bytes(rng, Frame(Opcode.CONT, b"", fin=False))
        begun = frame_bytes(rng, Frame(Opcode.TEXT, b"", fin=False))
        frames.append(begun + empty * rng.choice((15, 2_000)))
    if rng.random() < 0.3:
        code = rng.choice((1000, 1001, 1005, 1006, 1015, 999, 2000, 3000, 4500, 5000, 65_535))
        reason = rng.choice((b"", b"bye", b"\xff", b"x" * 123))
        frames.append(frame_bytes(rng, Frame(Opcode.CLOSE, struct.pack("!H", code) + reason)))
    return frames


def frame_bytes(rng: random.Random, frame: Frame) -> bytes:
    """The frame as a client writes it; the seed decides the mask."""
    header = bytearray([(frame.fin << 7) | (frame.rsv1 << 6) | (frame.rsv2 << 5)])
    header[0] |= (frame.rsv3 << 4) | frame.opcode
    length = len(frame.data)
    if length < 126:
        header.append(0x80 | length)
    elif length < 65_536:
        header += struct.pack("!BH", 0x80 | 126, length)
    else:
        header += struct.pack("!BQ", 0x80 | 127, length)
    mask = rng.randbytes(4)
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(bytes(frame.data)))
    return bytes(header) + mask + body


def masked_text(rng: random.Random, payload: bytes) -> bytes:
    """A whole message of text, as a client writes it."""
    return frame_bytes(rng, Frame(Opcode.TEXT, payload))


def _frame_case(rng: random.Random, number: int) -> FrameCase:
    bearer: Bearer = rng.choice(("user", "user", "member", "none", "expired", "forged", "key"))
    handshake = HANDSHAKE
    if bearer != "none":
        handshake += b"Authorization: Bearer {token}\r\n"
    if rng.random() < 0.1:
        handshake += rng.choice(
            (
                b"Origin: https://evil.example\r\n",
                b"Origin: null\r\n",
                b"Sec-WebSocket-Protocol: other, \r\n",
                b"Sec-WebSocket-Extensions: permessage-deflate; x=\x80\r\n",
            )
        )
    if rng.random() < 0.25:
        handshake = _reached_otherwise(rng, handshake)
    handshake += b"\r\n"
    if rng.random() < 0.15:
        handshake = mutate_bytes(rng, handshake)
    frames = _frames(rng)
    if rng.random() < 0.4:
        frames = [mutate_bytes(rng, b"".join(frames))]
    return FrameCase(number, bearer, pieces(rng, handshake), frames, _ending(rng))


ORIGINS = (
    *("http://localhost", "https://localhost:443", "HTTP://LOCALHOST:80", "http://localhost."),
    *("null", "", "*", "https://xn--bcher-kva.example", "https://b\u00fccher.example", "file://"),
    *("http://[::1]:8000", "http://[::1", "http://[fe80::1%25eth0]", "http://[::ffff:7f00:1]"),
    *("http://127.1", "http://0x7f.1", "http://localhost:99999", "http://localhost:", "http://:80"),
    *("http://user@localhost", "http://localhost/path", "chrome-extension://abc", "x" * 5_000),
    *("http://a..b", "http://" + "a" * 64, "http://localhost\thttp://evil", "http://%6cocalhost"),
)
HOSTS = ("localhost", "LOCALHOST:80", "localhost.", "[::1]:8000", "[::1", ":", "xn--a", "a b", "*")


def _reached_otherwise(rng: random.Random, handshake: bytes) -> bytes:
    """A page's handshake with an arbitrary origin, host name and proxy."""
    host = rng.choice(HOSTS).encode()
    lines = handshake.replace(b"Host: localhost", b"Host: " + host)
    for name, values in (
        ("Origin", ORIGINS),
        ("Origin", ORIGINS),
        ("X-Forwarded-Host", (*HOSTS, "localhost, evil.example", "")),
        ("X-Forwarded-Proto", ("https", "HTTP", "wss,https", "gopher", "")),
        ("X-Forwarded-Port", ("443", "0", "99999999999", "-1", "\u0664\u0664\u0663", "443, 80")),
        ("Forwarded", ('for="[2001:db8::1]:4711";proto=https', "for=unknown, for=_x")),
        ("X-Forwarded-For", ("10.9.9.9, 10.8.8.8", "[2001:db8::1]:4711", "::ffff:10.1.1.1", "?")),
    ):
        if rng.random() < 0.4:
            lines += f"{name}: {rng.choice(values)}\r\n".encode("utf-8", "surrogatepass")
    return lines


def _ending(rng: random.Random) -> Literal["wait", "shut", "reset"]:
    share = rng.random()
    return "wait" if share < 0.6 else "shut" if share < 0.85 else "reset"


# --- Requests ----------------------------------------------------------------------------


Template = tuple[str, str, Pairs, Pairs | None]
"""A method, a path, a query and a body of the wire (PROTOCOL section 2)."""


def _request(rng: random.Random, bearer: Bearer, number: int) -> Template:
    """A meaningful request, in most cases one that its sender may make."""
    trusted = bearer in ("key", "ops")
    session = _session_id(rng, honest=not trusted)
    user = f"mallory-{number % ATTACKERS}"
    org = "evil" if trusted else rng.choice(("evil", HONEST_ORG))
    tenant: Pairs = [("org", org)] if rng.random() < 0.5 else [("user", user)]
    grant: Pairs = [("amount", "5"), ("reason", "bought"), ("priority", 3)]
    minute: Pairs = [
        ("session_id", f"tracked-{rng.randrange(50)}"),
        ("seconds_recorded", rng.choice((1, 60))),
        ("minute_timestamp", Raw("{now}")),
    ]
    prepared: Pairs = [
        ("session_id", f"prepared-{rng.randrange(50)}"),
        ("kind", rng.choice(KINDS)),
        ("user_id", user),
        ("credits_per_minute", "2.5"),
        ("free_seconds", 10),
    ]
    if rng.random() < 0.4:
        instants = (0, -1, 1.5, 2**53, 2**63, "1", None, True, Raw("{now}"), Raw("{now}0"))
        prepared.append(("expires_at", rng.choice((*instants, Raw("1e999"), Raw("{later}")))))
    operation: Pairs = [("operation", "script_generation")]
    adjustment: Pairs = [("minutes", rng.choice((-5, 5))), ("reason", "a mistake")]
    hours: Pairs = [("monthly_hours_limit", 10), ("timezone", "Europe/Berlin")]
    days: Pairs = [("from", "2026-11-01"), ("to", "2026-11-30")]
    kind: Pairs = [("kind", rng.choice(KINDS))]
    backend: list[Template] = [
        ("POST", f"/v1/accounts/{user}/grants", tenant, grant),
        ("GET", f"/v1/accounts/{user}/grants", tenant, None),
        ("POST", f"/v1/accounts/{user}/spend", tenant, grant[:1]),
        ("POST", f"/v1/accounts/{user}/holds", tenant, [*grant[:1], ("ttl_ms", 1_000)]),
        ("POST", f"/v1/holds/hold-{rng.randrange(9)}/{rng.choice(('post', 'void'))}", tenant, []),
        ("POST", f"/v1/orgs/{org}/members/{user}/adjustments", [], adjustment),
        ("POST", "/v1/sessions", tenant, prepared),
        ("GET", f"/v1/orgs/{org}", [], None),
        ("PUT", f"/v1/orgs/{org}", [], hours),
        ("GET", f"/v1/orgs/{org}/members/{user}", [], None),
        ("PUT", f"/v1/orgs/{org}/members/{user}", [], hours[:1]),
        ("GET", "/v1/ops/reports/usage.csv", days, None),
    ]
    users: list[Template] = [
        ("GET", f"/v1/accounts/{user}", tenant, None),
        ("GET", f"/v1/accounts/{user}/ledger", [*tenant, ("limit", "3")], None),
        ("POST", f"/v1/accounts/{user}/spend", [], operation),
        ("POST", f"/v1/accounts/{user}/can-perform", [], operation),
        ("GET", f"/v1/sessions/{session}", tenant, None),
        ("POST", f"/v1/sessions/{session}/heartbeat", [], kind),
        ("POST", f"/v1/sessions/{session}/heartbeat", [], [*kind, ("last_seq", 1)]),
        ("POST", f"/v1/sessions/{session}/stop", [], []),
        ("GET", "/api/usage/check-limit", [], None),
        ("GET", "/api/usage/current-month", [("daily", "true")], None),
        ("GET", "/api/usage/stats", [], None),
        ("GET", "/api/users/stats-v2", [], None),
        ("POST", "/api/usage/track-minute", [], minute),
        ("POST", "/api/usage/track-minute", [], minute),
        ("GET", f"/api/time-tracking/{session}", [], None),
        ("POST", f"/api/time-tracking/{session}/heartbeat", [], []),
    ]
    anybody: list[Template] = [
        ("GET", "/openapi.json", [], None),
        ("GET", rng.choice(("/healthz", "/readyz", "/metrics", "/", "/nothing")), [], None),
    ]
    likely = backend if trusted else users
    return rng.choice(rng.choice((likely, likely, likely, backend, users, anybody)))


def _quoted(text: object) -> str:
    return "".join(
        chr(byte) if chr(byte).isalnum() or chr(byte) in "-._~" else f"%{byte:02X}"
        for byte in str(text).encode("utf-8", "surrogatepass")
    )


def _request_bytes(rng: random.Random, bearer: Bearer, number: int) -> bytes:
    method, path, query, body = _request(rng, bearer, number)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        match rng.randrange(4):
            case 0:
                query = mutate_pairs(rng, query, ("org", "user", "limit", "cursor", "from", "to"))
            case 1:
                method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"))
            case 2:
                parts = path.split("/")
                parts[rng.randrange(1, len(parts))] = _quoted(odd(rng))[:5_000]
                path = "/".join(parts)
            case _ if body is not None:
                body = mutate_pairs(rng, body, FIELDS)
    if query:
        path += "?" + "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in query)
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "X-Forwarded-For: {address}"]
    if bearer != "none":
        lines.append("Authorization: Bearer {token}")
    if path.partition("?")[0].endswith(KEYED) or rng.random() < 0.1:
        lines.append(f"Idempotency-Key: {rng.choice((f'key-{number}', 'key', 'x' * 300))}")
    content = b""
    if body is not None or rng.random() < 0.1:
        text = write(body if body else rng.choice((Raw(""), Raw("{}"), odd(rng))))
        content = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = mutate_bytes(rng, content)
        lines.append("Content-Type: application/json")
    # The attack fills the placeholders later, so it also sets the length.
    lines.append("Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace") + content


NEEDING_BODIES = (
    *("/v1/sessions", "/v1/accounts/{user}/grants", "/v1/accounts/{user}/spend"),
    *("/v1/accounts/{user}/holds", "/v1/holds/hold-1/post", "/v1/accounts/{user}/can-perform"),
    *("/v1/orgs/evil", "/v1/orgs/evil/members/{user}", "/v1/orgs/evil/members/{user}/adjustments"),
    "/api/usage/track-minute",
)
"""Paths at which a request without a body must have no effect."""


def _empty_case(rng: random.Random, number: int) -> RequestCase:
    """A POST or PUT that lost its body.

    It may offer another protocol.
    """
    path = rng.choice(NEEDING_BODIES).replace("{user}", f"auth0%7C{number % ATTACKERS}%2Bx")
    method = "PUT" if path.startswith("/v1/orgs") and not path.endswith("s") else "POST"
    offer = rng.choice(("", "Connection: Upgrade\r\nUpgrade: h2c\r\n"))
    length = rng.choice(("", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"))
    request = (
        f"{method} {path}?org=evil HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {{address}}\r\n"
        f"Authorization: Bearer {{token}}\r\nIdempotency-Key: empty-{number}\r\n{offer}{length}\r\n"
    ).encode()
    if "chunked" in length:
        request += b"0\r\n\r\n"
    bearer: Bearer = rng.choice(("key", "ops", "user"))
    return RequestCase(number, bearer, pieces(rng, request), "wait", refused=True)


def _token_case(rng: random.Random, number: int) -> RequestCase:
    """A request about one's own data, with a token of odd claims."""
    claims, is_good = odd_claims(rng, number)
    path = rng.choice(("/api/usage/check-limit", "/api/usage/stats", "/v1/sessions/theirs-1"))
    request = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {{address}}\r\n"
        "Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    return RequestCase(number, "user", [request], "wait", claims=claims, refused=not is_good)


def _request_case(rng: random.Random, number: int) -> RequestCase:
    bearer: Bearer = rng.choice(
        ("user", "user", "member", "member", "observer", "key", "ops", "expired", "forged", "none")
    )
    requests = [_request_bytes(rng, bearer, number) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    is_raw = rng.random() < 0.35
    if is_raw:
        requests = [mutate_bytes(rng, request) for request in requests]
    return RequestCase(number, bearer, requests, _ending(rng), is_raw)
