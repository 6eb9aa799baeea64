"""Helpers of the tests of spends and holds over HTTP."""

from pathlib import Path
from typing import Any

import httpx

from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import ask

CARD = """
[kinds.chat]
credits_per_minute = "60"

[kinds.recording]
credits_per_minute = "0"
increment_seconds = [60, 60]
counts_minutes = true

[operations]
script_generation = "1"
voice_creation = "5"
greeting = "0"

[tiers.free.operations_per_month]
script_generation = 3

[tiers.pro]
allotment = "100"

[packages.starter]
name = "Starter"
credits = "50"
expires_days = 30

[packages.endless]
credits = "7.5"
"""


def card(directory: Path, text: str = CARD) -> Path:
    """The rate card as a file."""
    path = directory / "charging.toml"
    path.write_text(text)
    return path


async def post(
    server: TestServer,
    path: str,
    key: str,
    body: dict[str, Any] | None = None,
    bearer: str | None = API_KEY,
) -> httpx.Response:
    """A call under an idempotency key, with or without a body."""
    options = {} if body is None else {"json": body}
    return await ask(server, "POST", path, bearer, headers={"Idempotency-Key": key}, **options)


async def spend(
    server: TestServer,
    key: str,
    path: str = "/v1/accounts/ann/spend",
    bearer: str | None = API_KEY,
    **body: Any,
) -> httpx.Response:
    """Charges an account under an idempotency key."""
    return await post(server, path, key, body, bearer)
