"""Helpers to call a real server's HTTP interface and advance its time."""

import asyncio
from typing import Any

import httpx

from tests.fixtures.server import API_KEY, TIMEOUT_S, TestServer


async def ask(
    server: TestServer,
    method: str,
    path: str,
    bearer: str | None = API_KEY,
    *,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> httpx.Response:
    """Makes one request; with a ``bearer`` of None it sends no token."""
    sent = dict(headers or {})
    if bearer is not None:
        sent["Authorization"] = f"Bearer {bearer}"
    async with httpx.AsyncClient(
        base_url=server.url, timeout=TIMEOUT_S, trust_env=False, verify=False
    ) as client:
        return await client.request(method, path, headers=sent, **options)


async def grant(
    server: TestServer,
    amount: str,
    key: str,
    path: str = "/v1/accounts/ann/grants",
    bearer: str | None = API_KEY,
    **fields: Any,
) -> httpx.Response:
    """Asks for a grant under an idempotency key."""
    body = {"amount": amount, "reason": "bought", **fields}
    return await ask(server, "POST", path, bearer, headers={"Idempotency-Key": key}, json=body)


async def balance(server: TestServer, path: str = "/v1/accounts/ann") -> str:
    """The credits that an account shows."""
    response = await ask(server, "GET", path)
    assert response.status_code == 200, response.text
    return str(response.json()["credits"])


async def ledger(server: TestServer, account_id: str = "ann") -> list[dict[str, Any]]:
    """The newest entries of an account's ledger."""
    response = await ask(server, "GET", f"/v1/accounts/{account_id}/ledger")
    assert response.status_code == 200, response.text
    entries: list[dict[str, Any]] = response.json()["entries"]
    return entries


def advance(server: TestServer, ms: int, *, asleep: bool = False) -> None:
    """Advances the process's clock, and runs what is due by then.

    The process was awake meanwhile, or ``asleep``: it stood still.
    """
    clock, stall_detector = server.process.clock, server.process.stall_detector
    clock._offset_ms += ms
    if not asleep:
        stall_detector._awake_at += ms
        stall_detector._beaten_at += ms
    server.process.timers._arm()


async def settled(server: TestServer) -> None:
    """Waits until all work due by the process's clock is done."""
    process = server.process
    # A turn of the loop, in which timers fire.
    while (at := process.timers.next_at) is not None and at <= process.clock.now():  # noqa: ASYNC110
        await asyncio.sleep(0)
    await process.registry.idle()


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts a problem document with this status and code; returns it."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert problem["status"] == status
    assert problem["detail"]
    return problem
