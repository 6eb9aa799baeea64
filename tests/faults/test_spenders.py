"""Clients spend over HTTP while sessions of the same account burn.

The clients are many, and spend at two real processes. The credits granted are exactly what all of
them need together, and one credit more. So every refusal after the last grant is wrong, and the
final balance is known.
"""

import asyncio
import random
import time
from typing import Any

import httpx
import msgspec

from protocol.wire.money import parse_credits
from tests.faults.processes import WAIT_S, Installation, open_installation
from tests.fixtures.server import API_KEY, SocketClient

RATES = """
[kinds.chat]
credits_per_minute = "6"
max_session_seconds = 10
stop_grace_seconds = 1
tick_seconds = 1
"""
SPENDERS = 200
SPENDS = 2
SESSIONS = 20
CREDIT = 1_000_000
SPEND = "0.5"
WELCOME_MICROS = 2_500_000
"""Credits that the demonstration gives to a new visitor."""
FIRST = "100"
TOP_UPS = [*["12.5"] * 9, "6"]
NEEDED_MICROS = SPENDERS * SPENDS * CREDIT // 2 + SESSIONS * CREDIT


class HttpSpendTally(msgspec.Struct):
    """The results of all spends."""

    spent: int = 0
    refused: int = 0
    refused_falsely: list[str] = msgspec.field(default_factory=list)
    lowest: int = 10**15
    """The lowest balance in any answer, in micro-credits."""
    all_in: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    all_in_at: float = 0.0
    """When the last grant was made, in epoch milliseconds."""

    def see(self, answer: httpx.Response) -> None:
        """Keeps the balance of an answer if it is the lowest."""
        self.lowest = min(self.lowest, parse_credits(answer.json()["credits"], signed=True))


def client_of(installation: Installation) -> httpx.AsyncClient:
    """A backend's connections to one process."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{installation.port}",
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=WAIT_S,
        limits=httpx.Limits(max_connections=50),
    )


async def post(client: httpx.AsyncClient, call: str, key: str, body: Any) -> httpx.Response:
    """Makes one of ann's calls that move money, under a key."""
    path = f"/v1/accounts/visitor-ann/{call}?user=visitor-ann"
    return await client.post(path, headers={"Idempotency-Key": key}, json=body)


async def spend(number: int, clients: list[httpx.AsyncClient], tally: HttpSpendTally) -> None:
    """One spender: sometimes it uses both processes at once, with one key."""
    chance = random.Random(number)
    for turn in range(SPENDS):
        attempt = 0
        while True:
            all_in = tally.all_in.is_set()
            asked = clients if chance.random() < 0.2 else [chance.choice(clients)]
            key = f"spend-{number}.{turn}.{attempt}"
            answers = await asyncio.gather(
                *(post(client, "spend", key, {"amount": SPEND}) for client in asked)
            )
            # With 409, the same key is in progress at the other process.
            settled = [answer for answer in answers if answer.status_code != 409]
            assert settled, [answer.text for answer in answers]
            statuses = {answer.status_code for answer in settled}
            assert len(statuses) == 1, [answer.text for answer in answers]
            if statuses == {201}:
                assert len({answer.json()["entry_id"] for answer in settled}) == 1
                tally.spent += 1
                tally.see(settled[0])
                break
            assert statuses == {402}, settled[0].text
            assert settled[0].json()["code"] == "insufficient_credits"
            tally.refused += 1
            if all_in:
                tally.refused_falsely.append(settled[0].text)
                return
            attempt += 1
            await tally.all_in.wait()


async def top_up(installations: list[Installation], tally: HttpSpendTally) -> None:
    """Grants the rest of the needed credits, while the spenders spend."""
    clients = [client_of(installation) for installation in installations]  # own connections
    for number, amount in enumerate(TOP_UPS):
        body = {"amount": amount, "reason": "top-up"}
        answer = await post(clients[number % 2], "grants", f"top-up-{number}", body)
        assert answer.status_code == 201, answer.text
        tally.see(answer)
    for client in clients:
        await client.aclose()
    tally.all_in_at = time.time() * 1000
    tally.all_in.set()


async def ends(client: SocketClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a session's counting stopped, and how the session ended."""
    async with asyncio.timeout(WAIT_S):
        reached = await client.until("limit_reached")
        return reached, await client.until("stopped")


async def audited(installation: Installation) -> str:
    """The output of ``python -m server audit``."""
    audit = await installation.run("audit")
    assert audit.child.returncode == 0, audit.output
    return audit.output


async def test_many_spenders_at_two_processes_while_sessions_burn() -> None:
    async with open_installation(RATES) as first:
        first.environment["TAXIMETER_API_KEYS"] = API_KEY
        second = Installation(first.data_dir, RATES)
        second.environment["TAXIMETER_API_KEYS"] = API_KEY
        await first.serve("all")
        await second.serve("web")
        try:
            await run_together([first, second])
        finally:
            await second.close_processes()


async def run_together(installations: list[Installation]) -> None:
    """Runs all spenders and sessions at once, and checks the final balance."""
    tally, clients = HttpSpendTally(), [client_of(installation) for installation in installations]
    token = await installations[0].visitor("visitor-ann", FIRST)
    sockets = []
    for number in range(SESSIONS):
        socket, _ = await installations[number % 2].connect(token)
        started = await socket.ask("start", kind="chat", session_id=f"chat-{number}")
        assert started["state"] == "active", started
        sockets.append(socket)
    burning = asyncio.gather(*(ends(socket) for socket in sockets))
    await asyncio.gather(
        top_up(installations, tally), *(spend(number, clients, tally) for number in range(SPENDERS))
    )
    assert tally.refused_falsely == []
    assert tally.spent == SPENDERS * SPENDS
    assert tally.lowest >= 0

    burnt = 0
    for reached, stopped in await burning:
        # No session stopped for lack of credits after the last grant.
        assert reached["limit"] == "session_cap" or reached["stopped_at"] < tally.all_in_at, reached
        burnt += parse_credits(stopped["receipt"]["credits"])
    left = WELCOME_MICROS + parse_credits(FIRST) + sum(map(parse_credits, TOP_UPS))
    left -= tally.spent * parse_credits(SPEND) + burnt
    assert left >= CREDIT
    for client in clients:
        account = (await client.get("/v1/accounts/visitor-ann?user=visitor-ann")).json()
        assert parse_credits(account["credits"]) == left
        assert (account["held"], account["reserved"], account["sessions"]) == ("0", "0", 0)
        await client.aclose()
    for socket in sockets:
        await socket.close()
    assert "everything adds up" in await audited(installations[0])


def test_grants_exceed_the_need_by_one_credit() -> None:
    came_in = WELCOME_MICROS + parse_credits(FIRST) + sum(map(parse_credits, TOP_UPS))
    assert came_in == NEEDED_MICROS + CREDIT
