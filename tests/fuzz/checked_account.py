"""Checked accounts: a model here computes each credit too, beside the attack.

Amounts come in unusual and in absurd forms. Bodies come under offers of other protocols, with a
length or chunked, cut at any point, or not at all. Accounts have ids with every allowed character,
encoded in the path in different ways. A model of a few lines computes the right answer to each
request; any other answer, and any wrong balance, is a problem.
"""

import asyncio
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from tests.fuzz.mutate import Raw, write

CHECKED_ACCOUNTS: Final = 6
CREDIT: Final = 1_000_000
WAIT_S: Final = 60.0
OFFERS: Final = (
    *(
        "",
        "",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    ),
    "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1\r\n",
    "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
    "connection: upgrade\r\nupgrade: foo/1\r\n",
    "Upgrade: h2c\r\n",
    "Connection: Upgrade\r\n",
)
"""Protocols that a client offers in addition; the server takes none of them."""
NONSENSE: Final[tuple[Any, ...]] = (
    *("", " 1", "1 ", "+1", "01.5", "1.", ".5", "1e0", "1E2", "1,5", "1_0", "0x1", "-1", "-0.5"),
    *("1.0000000", "1000000000.000001", "9" * 400, "٣", "∞", "NaN", "null", "1.5\n", "\0001"),
    *(1, 1.5, -1, True, None, [], ["1"], {"credits": "1"}, 2**63, Raw("1e999"), Raw("NaN")),
)
"""Invalid amounts."""
_CREDITS = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?")


def forms(rng: random.Random, micros: int) -> str:
    """A random valid form of an amount."""
    whole, fraction = divmod(micros, CREDIT)
    digits = f"{fraction:06d}".rstrip("0")
    digits += "0" * rng.randint(0, 6 - len(digits))
    return f"{whole}.{digits}" if digits else str(whole)


def shortest(micros: int) -> str:
    """The form of an amount in the server's answers."""
    whole, fraction = divmod(micros, CREDIT)
    return f"{whole}.{fraction:06d}".rstrip("0").rstrip(".") if fraction else str(whole)


def encoded(rng: random.Random, name: str) -> str:
    """The name in a path, with random characters percent-encoded."""
    style = rng.randrange(4)
    if style == 0:
        return quote(name, safe="")
    if style == 1:
        return quote(name, safe=":@+=~")
    if style == 2:
        return "".join(f"%{ord(letter):02x}" for letter in name)
    return "".join(
        letter if letter != "|" and rng.random() < 0.7 else f"%{ord(letter):02X}" for letter in name
    )


def request_bytes(rng: random.Random, head: str, content: bytes) -> bytes:
    """A request with its body, by length or in chunks.

    It may offer another protocol.
    """
    if not content and head.startswith("GET"):
        return f"{head}\r\n".encode()
    head += rng.choice(OFFERS)
    if rng.random() < 0.5:
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(4)))
    chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + coded + b"0\r\n\r\n"


@dataclass
class CheckedAccount:
    """One account, and a model of its contents."""

    port: int
    api_key: str
    number: int
    seed: int
    left: int = 0
    """The balance in micro-credits, holds included."""
    held: dict[str, int] = field(default_factory=dict)
    """The micro-credits of each open hold."""
    done: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Operations that can be repeated: path, key, amount, and the amount in the answer."""
    problems: list[str] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        """Sets the account's own generator and name."""
        self.rng = random.Random(f"account/{self.seed}/{self.number}")
        self.name = f"auth0|{self.number}+x=~:@{self.seed}"
        self.tenant = "?org=checked" if self.number % 2 else ""

    async def run(self, steps: int) -> None:
        """Takes ``steps`` steps, and compares the account after the last."""
        for step in range(steps):
            self.steps += 1
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._step()
                if step == steps - 1:
                    await self._look()
            except (OSError, TimeoutError, ValueError, KeyError) as error:
                self._problem(f"no answer: {error!r}")
                return

    async def _look(self) -> None:
        """Compares the account with the model."""
        path = f"/v1/accounts/{encoded(self.rng, self.name)}{self.tenant}"
        status, found = await self._ask("GET", path, b"", key=None)
        if status == 404 and not self.done:
            return
        expected = (shortest(self.left), shortest(sum(self.held.values())))
        if (found.get("credits"), found.get("held")) != expected:
            self._problem(f"has {found}, and not {expected}")

    def _problem(self, what: str) -> None:
        if len(self.problems) < 5:
            self.problems.append(f"account {self.number}, step {self.steps}: {what}")

    async def _step(self) -> None:
        rng = self.rng
        account = f"/v1/accounts/{encoded(rng, self.name)}"
        share = rng.random()
        if share < 0.15:
            await self._without_sense(account)
        elif share < 0.3 and self.done:
            await self._again()
        elif share < 0.5 or self.left - sum(self.held.values()) < 5 * CREDIT:
            await self._grant(account)
        elif share < 0.65:
            await self._spend(account)
        elif share < 0.8 or not self.held:
            await self._hold(account)
        else:
            await self._close()

    async def _grant(self, account: str) -> None:
        micros = self.rng.choice((1, CREDIT // 2, 15 * CREDIT // 10, 20 * CREDIT))
        status, found = await self._operation(f"{account}/grants", micros, reason="bought")
        self.left += micros
        self._expect(201, status, found, micros)

    async def _spend(self, account: str) -> None:
        micros = self.rng.choice((1, CREDIT, 15 * CREDIT // 10, 2 * CREDIT))
        status, found = await self._operation(f"{account}/spend", micros)
        self.left -= micros
        self._expect(201, status, found, micros)

    async def _hold(self, account: str) -> None:
        micros = self.rng.choice((1, 15 * CREDIT // 10, 2 * CREDIT))
        status, found = await self._operation(f"{account}/holds", micros, ttl_ms=3_600_000)
        self._expect(201, status, found, micros)
        if "hold_id" in found:
            self.held[found["hold_id"]] = micros

    async def _close(self) -> None:
        """Posts part of a hold or all of it, or voids it."""
        hold_id = self.rng.choice(sorted(self.held))
        path, held = f"/v1/holds/{encoded(self.rng, hold_id)}", self.held[hold_id]
        if self.rng.random() < 0.3:
            empty = self.rng.choice((b"", b"{}"))
            status, found = await self._ask("POST", f"{path}/void{self.tenant}", empty)
            posted = 0
        else:
            posted = self.rng.choice((0, 1, held // 2, held))
            status, found = await self._operation(f"{path}/post", posted)
        del self.held[hold_id]
        self.left -= posted
        self._expect(200, status, found, held)
        if found.get("posted") != shortest(posted):
            self._problem(f"of {held} micros {posted} were posted: {found}")

    async def _again(self) -> None:
        """Repeats an operation, with its amount in another form."""
        path, key, micros, answered = self.rng.choice(self.done)
        body = {"amount": forms(self.rng, micros), **_rest(path)}
        status, found = await self._ask("POST", path, json.dumps(body).encode(), key=key)
        if status not in (200, 201) or found.get("amount") != answered:
            self._problem(f"{path} of {body} again: {status} {found}, and not {answered}")

    async def _without_sense(self, account: str) -> None:
        """Sends an invalid amount or no body, which must have no effect."""
        paths = [f"{account}/{name}" for name in ("grants", "spend", "holds")]
        paths += [f"/v1/holds/{encoded(self.rng, hold_id)}/post" for hold_id in self.held]
        path = self.rng.choice(paths)
        body = write([("amount", self.rng.choice(NONSENSE)), *_rest(path).items()])
        content = self.rng.choice((body.encode(), body.encode(), b"", b"{}", b"[]", b"null"))
        status, found = await self._ask("POST", path + self.tenant, content)
        if status not in (400, 422):
            self._problem(f"{path} of {content[:200]!r}: {status} {found}")

    async def _operation(self, path: str, micros: int, **rest: Any) -> tuple[int, dict[str, Any]]:
        text = forms(self.rng, micros)
        if _CREDITS.fullmatch(text) is None:
            raise ValueError(text)
        path += self.tenant
        key = f"account-{self.number}-{self.steps}"
        body = json.dumps({"amount": text, **rest}).encode()
        status, found = await self._ask("POST", path, body, key=key)
        if status in (200, 201):
            self.done = [*self.done[-30:], (path, key, micros, found.get("amount", ""))]
        return status, found

    def _expect(self, expected: int, status: int, found: dict[str, Any], micros: int) -> None:
        if (status, found.get("amount"), found.get("credits")) != (
            expected,
            shortest(micros),
            shortest(self.left),
        ):
            self._problem(f"{status} {found}: {micros} micros, of which {self.left} stay")

    async def _ask(
        self, method: str, path: str, content: bytes, key: str | None = ""
    ) -> tuple[int, dict[str, Any]]:
        """Sends a request in pieces over its own connection; returns the answer."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
            f"{self.api_key}\r\nX-Forwarded-For: 192.0.2.2\r\n"
        )
        if key is not None:
            head += f"Idempotency-Key: {key or f'account-{self.number}-{self.steps}'}\r\n"
        data = request_bytes(self.rng, head, content)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            cuts = sorted(self.rng.randrange(len(data)) for _ in range(self.rng.choice((0, 1, 4))))
            # Often the head comes first, and the parser takes the body for upgrade data.
            cuts = [data.index(b"\r\n\r\n") + 4] if self.rng.random() < 0.3 else cuts
            for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
                writer.write(data[a:b])
                await writer.drain()
                await asyncio.sleep(0.001)
            answer = await reader.readuntil(b"\r\n\r\n")
            lengths = re.findall(rb"(?i)\r\ncontent-length: (\d+)", answer)
            found: dict[str, Any] = json.loads(await reader.readexactly(int(lengths[0])))
        except (asyncio.IncompleteReadError, IndexError) as error:
            raise ValueError(f"{path} of {content[:200]!r}: {error!r}") from None
        finally:
            writer.close()
        return int(answer.split()[1]), found


def _rest(path: str) -> dict[str, Any]:
    """The fields of a body of the path, besides the amount."""
    end = path.partition("?")[0].rpartition("/")[2]
    rests: dict[str, dict[str, Any]] = {
        "grants": {"reason": "bought"},
        "holds": {"ttl_ms": 3_600_000},
    }
    return rests.get(end, {})
