"""Amounts are integers: different spellings of an amount are the same request."""

import asyncio
from pathlib import Path

import pytest

from tests.fixtures.database import Connection
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem, balance, ledger
from tests.server.charging import card, post, spend
from tests.server.test_api_adjustments import PATH, adjust, used
from tests.server.test_api_spends import audited

GRANTS, HOLDS, SPEND = (f"/v1/accounts/ann/{call}" for call in ("grants", "holds", "spend"))
FORMS = ("2", "2.0", "2.000000", "1.50", "0.10", "0.000001")


def same(amount: str) -> str:
    """The amount in another spelling."""
    whole, _, fraction = amount.partition(".")
    longer = f"{whole}.{fraction.ljust(6, '0')}"
    return amount.rstrip("0").rstrip(".") if longer == amount else longer


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    """A server with operations on its rate card.

    An account has ten credits.
    """
    server = await start_server(rates=card(tmp_path))
    assert (await post(server, GRANTS, "g0", {"amount": "10", "reason": "x"})).status_code == 201
    return server


async def reserved(server: TestServer) -> str:
    """What of ann's account is held for operations."""
    return str((await ask(server, "GET", "/v1/accounts/ann")).json()["reserved"])


@pytest.mark.parametrize("amount", FORMS)
@pytest.mark.parametrize("call", ["grants", "holds", "spend"])
async def test_an_amount_is_taken_once_however_it_is_written(
    server: TestServer, connection: Connection, call: str, amount: str
) -> None:
    path, more = f"/v1/accounts/ann/{call}", {"reason": "x"} if call == "grants" else {}
    first = await post(server, path, "k1", {"amount": amount, **more})
    assert first.status_code == 201, first.text
    left = await balance(server), await reserved(server), len(await ledger(server))
    again = await post(server, path, "k1", {"amount": same(amount), **more})
    assert (again.status_code, again.content) == (201, first.content)
    # The ledger knows the key longer than the answer is kept.
    for form in (amount, same(amount)):
        await connection.execute("DELETE FROM idempotency_keys")
        again = await post(server, path, "k1", {"amount": form, **more})
        assert (again.status_code, again.json()["amount"]) == (201, first.json()["amount"])
    await connection.execute("DELETE FROM idempotency_keys")
    other = await post(server, path, "k1", {"amount": "3", **more})
    assert_problem(other, 422, "idempotency_mismatch")
    assert (await balance(server), await reserved(server), len(await ledger(server))) == left
    await audited(server)


@pytest.mark.parametrize("amount", FORMS)
async def test_a_hold_is_posted_once_however_its_amount_is_written(
    server: TestServer, connection: Connection, amount: str
) -> None:
    hold = (await post(server, HOLDS, "h1", {"amount": "3.50"})).json()
    path = f"/v1/holds/{hold['hold_id']}/post"
    first = await post(server, path, "p1", {"amount": amount})
    assert first.status_code == 200, first.text
    assert (await post(server, path, "p1", {"amount": same(amount)})).content == first.content
    await connection.execute("DELETE FROM idempotency_keys")
    again = await post(server, path, "p1", {"amount": same(amount)})
    assert (again.status_code, again.json()["posted"]) == (200, first.json()["posted"])
    assert await reserved(server) == "0"
    assert len(await ledger(server)) == 2
    await audited(server)


async def test_holds_in_any_digits_leave_what_nobody_holds(server: TestServer) -> None:
    for number in range(5):
        assert (await post(server, HOLDS, f"h{number}", {"amount": "2.00"})).status_code == 201
    refused = await post(server, HOLDS, "h5", {"amount": "2.00"})
    assert_problem(refused, 402, "insufficient_credits")
    assert await reserved(server) == "10"


async def test_what_cost_nothing_is_another_spend_than_any_other(
    server: TestServer, connection: Connection
) -> None:
    assert (await spend(server, "k1", operation="greeting")).status_code == 201
    for body in ({"operation": "voice_creation"}, {"amount": "1"}, {"operation": "greeting"}):
        await connection.execute("DELETE FROM idempotency_keys")
        again = await spend(server, "k1", **body)
        if body == {"operation": "greeting"}:
            assert (again.status_code, again.json()["amount"]) == (201, "0")
        else:
            assert_problem(again, 422, "idempotency_mismatch")
    assert await balance(server) == "10"


async def test_a_correction_is_of_its_month(server: TestServer, connection: Connection) -> None:
    first = await adjust(server, "a1", minutes=9, month="2026-01-01")
    assert first.status_code == 201, first.text
    await connection.execute("DELETE FROM idempotency_keys")
    other = await adjust(server, "a1", minutes=9, month="2026-02-01")
    assert_problem(other, 422, "idempotency_mismatch")
    await connection.execute("DELETE FROM idempotency_keys")
    again = await adjust(server, "a1", minutes=9, month="2026-01-01")
    assert (again.status_code, again.json()) == (201, first.json())
    assert await used(server) == 0


@pytest.mark.parametrize("form", [b"9", b"9.0", b"9e0", b"90e-1", b"0.9E+1"])
async def test_minutes_are_corrected_once_however_they_are_written(
    server: TestServer, form: bytes
) -> None:
    first = await adjust(server, "a1", minutes=9)
    assert first.status_code == 201, first.text
    again = await ask(
        server,
        "POST",
        PATH,
        server.token("olga", scope="ops"),
        headers={"Idempotency-Key": "a1"},
        content=b'{"reason": "a recording that failed", "minutes": ' + form + b"}",
    )
    assert (again.status_code, again.content) == (201, first.content)
    assert await used(server) == 9


@pytest.mark.usefixtures("patience")
async def test_twelve_grants_at_once_fill_an_account_and_no_more(
    start_server: StartServer, server: TestServer
) -> None:
    other = await start_server(rates=server.process.settings.rates)
    path = "/v1/accounts/rich/grants"
    body = {"amount": "1000000000", "reason": "x"}
    answers = await asyncio.gather(
        *(post((server, other)[number % 2], path, f"g{number}", body) for number in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * 11
    for number, answer in enumerate(answers):
        if answer.status_code == 422:
            assert_problem(answer, 422, "balance_too_high")
            # It is an answer like any other.
            assert (await post(server, path, f"g{number}", body)).content == answer.content
    refused = await post(other, path, "p1", {"package": "starter"})
    assert_problem(refused, 422, "balance_too_high")
    assert await balance(server, "/v1/accounts/rich") == "1000000000"
    await audited(server)
