"""Honest users, whose sessions last and whose bills must be exact.

The sessions run through the attack. A bill is checked in three ways, without trust in the server.
The charge must follow from the counted time by the rate card's own rules. The counted time must lie
between two measurements of the client, from inside and from outside. The rest of the account must
be the grant less the charges in the receipts.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from websockets.asyncio.client import connect

from server import limits as server_limits
from tests.fixtures.server import SocketClient

SPEED = 20
GRANTED = Decimal(10_000)
RATES = f"""
[kinds.chat]
free_seconds = 30
credits_per_minute = "1"
increment_seconds = [1, 1]
warn_at_seconds = [60]
stop_grace_seconds = 1
reconnect_grace_seconds = 1
speed = {SPEED}

[kinds.talk]
credits_per_minute = "6"
increment_seconds = [60, 60]
reconnect_grace_seconds = 1
speed = {SPEED}

[kinds.lesson]
credits_per_minute = "0"
increment_seconds = [60, 60]
counts_minutes = true
reconnect_grace_seconds = 1
gap = "bill"

[kinds.recording]
credits_per_minute = "0"
increment_seconds = [60, 60]
counts_minutes = true
gap = "bill"

[operations]
script_generation = "1"
"""
FREE_MS = {"chat": 30_000, "talk": 0, "lesson": 0}
PRICE = {"chat": Decimal(1), "talk": Decimal(6), "lesson": Decimal(0)}
INCREMENT_MS = {"chat": 1_000, "talk": 60_000, "lesson": 60_000}


def charge(kind: str, elapsed_ms: int) -> Decimal:
    """A session's cost by the rate card's rules, from its counted time."""
    paid_ms = max(0, elapsed_ms - FREE_MS[kind])
    begun = -(-paid_ms // INCREMENT_MS[kind])
    exact = PRICE[kind] * begun * INCREMENT_MS[kind] / 60_000
    return exact.quantize(Decimal("0.000001"), rounding="ROUND_DOWN")


@dataclass
class Honest:
    """One user with one session on one socket."""

    number: int
    kind: str
    paused: bool
    """The session is paused at once: from then on its bill must not change at all."""
    client: SocketClient
    began: tuple[float, float] = (0.0, 0.0)
    """Monotonic times before `start` was sent, and after the answer."""
    ended: tuple[float, float] = (0.0, 0.0)
    bill: tuple[Any, Any] | None = None
    """A paused session's counted time and credits at the pause."""
    ticks: int = 0
    longest_gap_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def session_id(self) -> str:
        """The session's id, which attackers know."""
        return f"honest-{self.number}"

    async def begin(self) -> None:
        """Starts the session."""
        before = time.monotonic()
        answer = await self.client.ask(
            "start", kind=self.kind, session_id=self.session_id, tick_ms=250
        )
        assert answer["type"] == "session", answer
        self.began = (before, time.monotonic())
        if self.paused:
            answer = await self.client.ask("pause", session_id=self.session_id)
            assert answer["state"] == "paused", answer
            self.bill = (answer["elapsed_ms"], answer["credits"])
            self.ended = (self.ended[0], time.monotonic())

    async def live(self) -> None:
        """Reads messages until cancelled; stops or pauses are problems."""
        last = time.monotonic()
        while True:
            message = json.loads(await self.client.connection.recv())
            now = time.monotonic()
            if message["type"] == "tick":
                self.ticks += 1
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
            elif message["type"] not in ("minute", "free_time", "limit_warning", "usage"):
                self.problems.append(f"{self.session_id} was told {message}")

    async def end(self) -> dict[str, Any]:
        """Stops the session; returns its receipt."""
        before = time.monotonic()
        await self.client.send("stop", session_id=self.session_id)
        stopped = await self.client.until("stopped")
        self.ended = (before, self.ended[1] if self.paused else time.monotonic())
        receipt: dict[str, Any] = stopped["receipt"]
        return receipt

    def judge(self, receipt: dict[str, Any], left: Decimal) -> None:
        """Compares the receipt and the rest of the account with the observations."""
        elapsed_ms = receipt["elapsed_ms"]
        inner_s = 0.0 if self.paused else self.ended[0] - self.began[1]
        outer_s = self.ended[1] - self.began[0]
        speed = 1 if self.kind == "lesson" else SPEED
        # The clocks may round a millisecond each at the start and at the end, and each second's
        # heartbeat may nudge cluster time.
        slack_ms = 2 + outer_s * server_limits.CLOCK_NUDGE_MS_MAX
        if not (
            (inner_s * 1000 - slack_ms) * speed <= elapsed_ms <= (outer_s * 1000 + slack_ms) * speed
        ):
            self.problems.append(
                f"{self.session_id} counted {elapsed_ms} ms, of {inner_s:.3f} to {outer_s:.3f} s "
                f"at speed {speed}"
            )
        charged = Decimal(receipt["credits"])
        if charged != charge(self.kind, elapsed_ms):
            self.problems.append(f"{self.session_id} was charged {charged} for {elapsed_ms} ms")
        if left != GRANTED - charged:
            self.problems.append(f"{self.session_id} has {left} left after {charged}")
        if receipt["gaps"] or receipt["reason"] != "client":
            self.problems.append(f"{self.session_id} was interrupted: {receipt}")
        if self.bill is not None and self.bill != (elapsed_ms, str(left)):
            self.problems.append(f"{self.session_id} was paused at {self.bill}: {receipt}, {left}")


class Backend:
    """The backend of the honest users: it grants credits, and reads accounts."""

    def __init__(self, url: str, api_key: str) -> None:
        self.client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}", "X-Forwarded-For": "192.0.2.1"},
            timeout=30,
            trust_env=False,
        )

    async def grant(self, user_id: str, tenant: dict[str, str]) -> None:
        """Grants the first credits."""
        response = await self.client.post(
            f"/v1/accounts/{user_id}/grants",
            params=tenant,
            json={"amount": str(GRANTED), "reason": "bought"},
            headers={"Idempotency-Key": f"first-{user_id}"},
        )
        response.raise_for_status()

    async def left(self, user_id: str, tenant: dict[str, str]) -> Decimal:
        """The balance of an account."""
        response = await self.client.get(f"/v1/accounts/{user_id}", params=tenant)
        return Decimal(response.raise_for_status().json()["credits"])


def address_of(number: int) -> str:
    """The address of an honest user."""
    return f"192.0.2.{number + 10}"


async def connect_honest(port: int, number: int, token: str) -> SocketClient:
    """A socket of an honest user, from the user's own address."""
    connection = await connect(
        f"ws://127.0.0.1:{port}/v1/ws",
        compression=None,
        proxy=None,
        max_queue=None,
        ping_interval=None,
        additional_headers={"X-Forwarded-For": address_of(number)},
    )
    client = SocketClient(connection)
    welcome = await client.ask("auth", token=token)
    assert welcome["type"] == "welcome", welcome
    return client


async def cancelled(tasks: list["asyncio.Task[None]"]) -> list[str]:
    """Ends the readers; an error of a reader is a problem."""
    problems = []
    for task in tasks:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        except Exception as error:
            problems.append(f"an honest socket broke: {error!r}")
    return problems
