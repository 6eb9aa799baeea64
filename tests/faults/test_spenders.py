"""Many spend over HTTP at two real processes, while sessions of the account burn at both.

What comes in is what everybody needs together, and one credit more: so whoever is refused
once all of it is there was refused falsely, and what is left at the end is known.
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
"""What the page to try it gives to a visitor."""
FIRST = "100"
TOP_UPS = [*["12.5"] * 9, "6"]
NEEDED_MICROS = SPENDERS * SPENDS * CREDIT // 2 + SESSIONS * CREDIT


class HttpSpendTally(msgspec.Struct):
    """What became of all the asking."""

    spent: int = 0
    refused: int = 0
    refused_falsely: list[str] = msgspec.field(default_factory=list)
    lowest: int = 10**15
    """The lowest balance that any answer showed, in micro-credits."""
    all_in: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    all_in_at: float = 0.0
    """When the last of what comes in was there, in epoch milliseconds."""

    def see(self, answer: httpx.Response) -> None:
        """Keeps the balance that an answer shows."""
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
    """One of ann's calls that move money, under a key."""
    path = f"/v1/accounts/visitor-ann/{call}?user=visitor-ann"
    return await client.post(path, headers={"Idempotency-Key": key}, json=body)


async def spend(number: int, clients: list[httpx.AsyncClient], tally: HttpSpendTally) -> None:
    """One spender: now and then at both processes at once, with one key."""
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
            # The same key is under way at the other process, or has been answered there.
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


async def top_up(houses: list[Installation], tally: HttpSpendTally) -> None:
    """Brings the rest of what everybody needs, while they spend."""
    clients = [client_of(installation) for installation in houses]  # past the queue of the spenders
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
    """How a session's counting stopped, and how it ended."""
    async with asyncio.timeout(WAIT_S):
        reached = await client.until("limit_reached")
        return reached, await client.until("stopped")


async def audited(installation: Installation) -> str:
    """What ``python -m server audit`` says, once the flusher has written everything."""
    audit = await installation.run("audit")
    assert audit.child.returncode == 0, audit.output
    return audit.output


async def test_two_hundred_spend_at_two_processes_while_twenty_burn() -> None:
    async with open_installation(RATES) as first:
        first.environment["TAXIMETER_API_KEYS"] = API_KEY
        second = Installation(first.data_dir, RATES)
        second.environment["TAXIMETER_API_KEYS"] = API_KEY
        await first.serve("all")
        await second.serve("web")
        try:
            await crowd([first, second])
        finally:
            await second.close_processes()


async def crowd(houses: list[Installation]) -> None:
    """All of them at once, and what is left when they have gone."""
    tally, clients = HttpSpendTally(), [client_of(installation) for installation in houses]
    token = await houses[0].visitor("visitor-ann", FIRST)
    sockets = []
    for number in range(SESSIONS):
        socket, _ = await houses[number % 2].connect(token)
        started = await socket.ask("start", kind="chat", session_id=f"chat-{number}")
        assert started["state"] == "active", started
        sockets.append(socket)
    burning = asyncio.gather(*(ends(socket) for socket in sockets))
    await asyncio.gather(
        top_up(houses, tally), *(spend(number, clients, tally) for number in range(SPENDERS))
    )
    assert tally.refused_falsely == []
    assert tally.spent == SPENDERS * SPENDS
    assert tally.lowest >= 0

    burnt = 0
    for reached, stopped in await burning:
        # Nobody stopped for want of credits when all of them were there.
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
    assert "everything adds up" in await audited(houses[0])


def test_what_comes_in_is_what_is_needed_and_one_credit_more() -> None:
    came_in = WELCOME_MICROS + parse_credits(FIRST) + sum(map(parse_credits, TOP_UPS))
    assert came_in == NEEDED_MICROS + CREDIT
