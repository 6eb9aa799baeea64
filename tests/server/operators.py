"""Operators of a test, and browsers that sign in."""

from typing import Any

import httpx

from server.access.passwords import hash_password
from server.http.cookies import CSRF_HEADER
from storage.postgres.operators import OperatorRecords
from storage.rows.operators import LogFilter, LoggedAction, OperatorRole
from tests.fixtures.server import TIMEOUT_S, TestServer

PASSWORD = "correct horse battery"
REASON = "asked for by a customer"


async def add_operator(
    server: TestServer, name: str = "olga", role: OperatorRole = "act", password: str = PASSWORD
) -> OperatorRecords:
    """Adds an operator; returns the record."""
    records = OperatorRecords.over(server.process.records)
    assert await records.add(name, role, hash_password(password))
    return records


def be_quick(server: TestServer) -> None:
    """Lets the checks of passwords follow each other without a pause."""
    server.app.state.sign_in._checks.pace_s = 0


async def logged(server: TestServer, **wanted: Any) -> list[LoggedAction]:
    """The operators' log, the oldest row first, without log-ins."""
    records = OperatorRecords.over(server.process.records)
    rows = await records.log(LogFilter(**wanted), None, 100)
    return [row for row in reversed(rows) if row.action not in ("login", "logout")]


class OperatorPage:
    """A page of the server, in a browser that keeps cookies."""

    def __init__(self, server: TestServer, **headers: str) -> None:
        self.client = httpx.AsyncClient(
            base_url=server.url, timeout=TIMEOUT_S, trust_env=False, headers=headers
        )
        self.csrf_token: str | None = None

    async def __aenter__(self) -> "OperatorPage":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def login(self, name: str = "olga", password: str = PASSWORD) -> httpx.Response:
        """Signs in with a name and a password."""
        return self._keep(
            await self.client.post("/v1/ops/login", json={"name": name, "password": password})
        )

    async def open(self, token: str | None = None) -> httpx.Response:
        """Makes a cookie of a token, or of what a proxy says."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._keep(await self.client.post("/v1/ops/session", headers=headers))

    def _keep(self, response: httpx.Response) -> httpx.Response:
        if response.status_code == 200:
            self.csrf_token = response.json()["csrf_token"]
            pair, _, attributes = response.headers["set-cookie"].partition("; ")
            if "Secure" in attributes:
                # The connection of a test has no TLS, so the client would not send it.
                self.client.headers["Cookie"] = pair
        return response

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Makes a request with the cookie and the session's token."""
        headers = {CSRF_HEADER: self.csrf_token or "", **options.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **options)

    async def credit(self, key: str = "k1", **body: Any) -> httpx.Response:
        """Grants credits to ann of acme."""
        return await self.ask(
            "POST",
            "/v1/accounts/ann/grants?org=acme",
            headers={"Idempotency-Key": key},
            json={"amount": "1", "reason": REASON, **body},
        )
