"""Ids in all their characters pass every surface and the record."""

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from tests.fixtures.server import TestServer
from tests.server.api import ask, grant

USERS = ["auth0|5f7c", "ann+x@example.com", "a=b~c", "~", "=", "+", "|", "-", "a" * 128]


def at(path: str, *ids: str) -> str:
    """A path with ids, percent-encoded."""
    return path.format(*(quote(one, safe="") for one in ids))


@pytest.mark.parametrize("user_id", USERS)
async def test_ids_are_kept_through_sockets_paths_and_the_record(
    server: TestServer, user_id: str
) -> None:
    session_id = f"s|+=~{len(user_id)}"
    account = at("/v1/accounts/{}", user_id)
    granted = await grant(server, "5", "k1", f"{account}/grants")
    assert granted.status_code in (200, 201), granted.text
    client = await server.login(user_id)
    started = await client.ask("start", kind="chat", session_id=session_id)
    assert (started["type"], started["session_id"]) == ("session", session_id)
    token = server.token(user_id)
    seen = await ask(server, "GET", at("/v1/sessions/{}", session_id), token)
    assert seen.json()["session_id"] == session_id
    assert (await ask(server, "GET", account, token)).json()["account_id"] == user_id
    by_key = await ask(server, "GET", at("/v1/sessions/{}", session_id), params={"user": user_id})
    assert by_key.status_code == 200
    spent = await ask(
        server, "POST", f"{account}/spend", token, headers={"Idempotency-Key": "k|2"},
        json={"operation": "script_generation"},
    )  # fmt: skip
    assert spent.status_code == 201, spent.text
    stopped = await client.ask("stop", session_id=session_id)
    assert stopped["receipt"]["user_id"] == user_id
    await server.flush()
    row = await server.process.records.session(f"user:{user_id}", session_id)
    assert row is not None
    assert (row.user_id, row.session_id, row.state) == (user_id, session_id, "ended")
    entries = (await ask(server, "GET", f"{account}/ledger", token)).json()["entries"]
    assert len(entries) >= 2


def counted_before_the_next_month_ms(limit_ms: int) -> int:
    """What a session may use of this month before the next begins."""
    now = datetime.now(UTC)
    first = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0)
    left_ms = int((first - now).total_seconds() * 1000) + 60_000
    return left_ms if left_ms < limit_ms else 0


async def test_organisations_and_members_have_such_ids_too(server: TestServer) -> None:
    org, member = "org|1+=~", "auth0|5f7c"
    put = await ask(
        server, "PUT", at("/v1/orgs/{}", org), json={"monthly_hours_limit": 5, "tier": "free"}
    )
    assert put.status_code == 200, put.text
    put = await ask(
        server, "PUT", at("/v1/orgs/{}/members/{}", org, member), json={"monthly_hours_limit": 1}
    )
    assert put.status_code == 200, put.text
    client = await server.login(member, org=org)
    started = await client.ask("start", kind="recording", session_id="rec~1", counterpart_id="x|y")
    limits = {one["limit"]: one["remaining_ms"] for one in started["limits"]}
    assert limits["member_minutes"] <= 3_600_000 + counted_before_the_next_month_ms(3_600_000)
    assert (await client.ask("stop", session_id="rec~1"))["type"] == "stopped"


@pytest.mark.parametrize("bad", ["a b", "a/b", "a{b", "a}b", "a,b", "a*b", "a\\b", "é", "a" * 129])
async def test_what_is_no_id_is_refused_in_a_path(server: TestServer, bad: str) -> None:
    response = await ask(server, "GET", at("/v1/accounts/{}", bad))
    assert response.status_code in (400, 404), response.text
