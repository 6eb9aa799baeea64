"""Each change of an account reaches all its sockets, from any process."""

from pathlib import Path
from typing import Any

from protocol.metering.records import EntryPosted
from protocol.wire.money import parse_credits
from server import limits as server_limits
from tests.fixtures.server import BOTH_CARRIERS, SocketClient, StartServer
from tests.server.api import advance, grant
from tests.server.charging import card, post, spend

HOLDS = "/v1/accounts/ann/holds"


async def told(client: SocketClient) -> tuple[Any, ...]:
    """The next change of the account, as the message shows it."""
    message = await client.until("credit")
    assert message["account_id"] == "ann"
    return tuple(
        message.get(name) for name in ("reason", "operation", "entry_id", "delta", "credits")
    )


@BOTH_CARRIERS
async def test_every_change_is_told_on_every_process(
    start_server: StartServer, tmp_path: Path
) -> None:
    rates = card(tmp_path)
    here, there = await start_server(rates=rates), await start_server(rates=rates)
    clients = [await server.login() for server in (here, there, there)]
    bystander = await there.login("ben")

    async def everybody_is_told(*expected: Any) -> None:
        for client in clients:
            assert await told(client) == expected

    expires_at = there.process.clock.now() + 3_600_000
    made = (await grant(here, "20", "g1", expires_at=expires_at)).json()["entry_id"]
    await everybody_is_told("grant", None, made, "20", "20")
    spent = (await spend(there, "k1", amount="0.25")).json()["entry_id"]
    await everybody_is_told("spend", None, spent, "-0.25", "19.75")
    spent = (await spend(here, "k2", operation="script_generation")).json()["entry_id"]
    await everybody_is_told("spend", "script_generation", spent, "-1", "18.75")

    # Held credits still belong to the account; posted credits do not.
    body = {"operation": "voice_creation", "ttl_ms": 60_000}
    first, second, third = [
        (await post(server, HOLDS, key, body)).json()["hold_id"]
        for server, key in ((here, "h1"), (there, "h2"), (here, "h3"))
    ]
    for hold_id in (first, second, third):
        await everybody_is_told("hold", "voice_creation", hold_id, "0", "18.75")
    await post(there, f"/v1/holds/{first}/post", "p1", {"amount": "2.5"})
    await everybody_is_told("post", "voice_creation", f"post:{first}", "-2.5", "16.25")
    await post(here, f"/v1/holds/{second}/void", "v1")
    await everybody_is_told("void", "voice_creation", second, "0", "16.25")
    advance(there, 60_001)
    await there.process.ledger.expiry.expire_holds()
    await everybody_is_told("expire", "voice_creation", third, "0", "16.25")

    await there.process.ledger.enter(
        EntryPosted(
            tenant="user:ann",
            account_id="ann",
            entry_id="adjust:1",
            entry_kind="adjust",
            amount_micros=parse_credits("-0.5", signed=True),
            at=there.process.clock.now(),
        )
    )
    await everybody_is_told("adjust", None, "adjust:1", "-0.5", "15.75")

    # What is left of a grant when it expires is one more entry. (Tokens expire as well, so
    # it is a process without sockets that lives an hour later.)
    await there.flush()
    later = await start_server(rates=rates)
    advance(later, 3_600_000 + server_limits.GRANT_EXPIRY_LATE_MS)
    assert await later.process.ledger.expiry.expire_grants() == 1
    await everybody_is_told("expire", None, f"expire:{made}:0", "-15.75", "0")

    # The bystander's first message is about its own account.
    await grant(here, "1", "g2", "/v1/accounts/ben/grants")
    assert (await bystander.until("credit"))["account_id"] == "ben"
