"""An operator corrects minutes over HTTP; live sessions follow at once."""

from datetime import date
from typing import Any

import pytest

from server.http.idempotency import claim_under_way
from storage.audit import audit_record
from storage.postgres.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import ask, assert_problem
from tests.server.charging import post

PATH = "/v1/orgs/acme/members/mia/adjustments"


async def adjust(server: TestServer, key: str, path: str = PATH, **body: Any) -> Any:
    """Corrects mia's month as an operator does."""
    body = {"reason": "a recording that failed", **body}
    return await post(server, path, key, body, server.token("olga", scope="ops"))


async def used(server: TestServer) -> int:
    """The minutes that mia has used this month."""
    response = await ask(server, "GET", "/v1/orgs/acme/members/mia")
    minutes: int = response.json()["minutes_used"]
    return minutes


async def test_a_month_is_corrected_by_entries(server: TestServer, connection: Connection) -> None:
    first = await adjust(server, "a1", minutes=90, reason="brought over")
    assert first.status_code == 201
    made = first.json()
    assert made == {
        "entry_id": made["entry_id"],
        "org_id": "acme",
        "user_id": "mia",
        "month": made["month"],
        "minutes": 90,
        "reason": "brought over",
        "minutes_used": 90,
    }
    again = await adjust(server, "a1", minutes=90, reason="brought over")
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    assert (await adjust(server, "a2", minutes=-30)).json()["minutes_used"] == 60
    assert await used(server) == 60
    rows = await connection.fetch("SELECT minutes FROM minute_adjustments ORDER BY created_at")
    assert [row["minutes"] for row in rows] == [90, -30]
    assert await audit_record(server.process.records) == ()


async def test_refused_adjustment_is_not_made_late(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first statement comes after the second request's refusal."""
    late: list[Any] = []
    records = server.process.records

    async def lost(*arguments: Any) -> bool:
        late.append(arguments)
        raise UnavailableError("no answer")

    await adjust(server, "a1", minutes=10)
    with monkeypatch.context() as patched:
        patched.setattr(records, "adjust_minutes", lost)
        assert_problem(await adjust(server, "a2", minutes=-11), 503, "unavailable")
    assert_problem(await adjust(server, "a2", minutes=-11), 422, "minutes_exceeded")
    await adjust(server, "a3", minutes=10)
    (arguments,) = late
    assert not await records.adjust_minutes(*arguments)
    assert await used(server) == 20
    assert_problem(await adjust(server, "a2", minutes=-11), 422, "minutes_exceeded")


async def test_adjustment_whose_key_was_taken_over_is_under_way(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt that holds the key now decides."""
    records = server.process.records
    real = records.adjust_minutes

    async def late(*arguments: Any) -> bool:
        claim = claim_under_way()
        assert claim is not None
        digest = "SELECT fingerprint FROM idempotency_keys WHERE key = $1"
        fingerprint = await records._run(lambda one: one.fetchval(digest, claim.key))
        await records.begin_idempotent(
            "org:acme", claim.scope, claim.key, fingerprint, takeover_ms=0
        )
        return await real(*arguments)

    monkeypatch.setattr(records, "adjust_minutes", late)
    assert_problem(await adjust(server, "a1", minutes=5), 409, "idempotency_under_way")
    monkeypatch.undo()
    assert await connection.fetchval("SELECT count(*) FROM minute_adjustments") == 0


async def test_no_more_is_taken_away_than_there_is(server: TestServer) -> None:
    await adjust(server, "a1", minutes=10)
    refused = await adjust(server, "a2", minutes=-11)
    assert_problem(refused, 422, "minutes_exceeded")
    assert await used(server) == 10
    await adjust(server, "a3", minutes=10)
    assert (await adjust(server, "a2", minutes=-11)).content == refused.content


async def test_a_month_before_is_corrected_and_none_to_come(server: TestServer) -> None:
    this = date.fromisoformat((await adjust(server, "a1", minutes=5)).json()["month"])
    earlier = this.replace(year=this.year - 1).isoformat()
    made = (await adjust(server, "a2", minutes=7, month=earlier)).json()
    assert (made["month"], made["minutes_used"]) == (earlier, 7)
    assert await used(server) == 5
    later = this.replace(year=this.year + 1).isoformat()
    assert_problem(await adjust(server, "a3", minutes=1, month=later), 400, "bad_message")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"minutes": 0}, "minutes"),
        ({"minutes": 1.5}, "minutes"),
        ({"minutes": "5"}, "minutes"),
        ({"minutes": 10**9}, "minutes"),
        ({}, "minutes"),
        ({"minutes": 5, "reason": ""}, "reason"),
        ({"minutes": 5, "month": "2026-11"}, "month"),
        ({"minutes": 5, "month": "2026-13-01"}, "month"),
        ({"minutes": 5, "month": "2026-11-02"}, "month"),
    ],
)
async def test_the_refusal_of_a_bad_correction_names_the_field(
    server: TestServer, body: dict[str, Any], named: str
) -> None:
    refused = await adjust(server, "a1", **body)
    assert named in assert_problem(refused, 400, "bad_message")["detail"]


async def test_corrections_are_an_operators_alone(server: TestServer) -> None:
    body = {"minutes": -5, "reason": "please"}
    for bearer in (API_KEY, server.token("mia", org="acme")):
        assert_problem(await post(server, PATH, "a1", body, bearer), 403, "forbidden")
    assert_problem(await post(server, PATH, "a1", body, None), 401, "unauthenticated")


async def test_a_correction_reaches_a_live_session_both_ways(server: TestServer) -> None:
    await ask(server, "PUT", "/v1/orgs/acme/members/mia", json={"monthly_hours_limit": 2})
    client = await server.login("mia", org="acme")
    started = await client.ask("start", kind="recording", session_id="r1", tick_ms=60_000)
    assert (started["limit"], started["remaining_ms"] > 6_000_000) == ("member_minutes", True)
    await adjust(server, "a1", minutes=116)
    warning = await client.until("limit_warning")
    assert (warning["limit"], warning["remaining_ms"] <= 300_000) == ("member_minutes", True)
    await adjust(server, "a2", minutes=-100)
    cleared = await client.until("limit_cleared")
    assert (cleared["limit"], cleared["remaining_ms"] > 6_000_000) == ("member_minutes", True)
