"""Bad tokens and keys are counted by address, their checks paced."""

import asyncio
import hashlib
import re
from typing import Any

import pytest

from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import ErrorCode, PeerError
from server import limits as server_limits
from server.access.bad_guesses import BadGuesses, SuspectChecks
from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import advance, ask, assert_problem


async def test_only_bad_guesses_are_refused_as_too_many(server: TestServer) -> None:
    # The whole test lies in one minute, however slow the machine is.
    advance(server, MINUTE_MS - server.process.clock.now() % MINUTE_MS)
    clock = server.process.clock
    start_at, clock.now = clock.now(), lambda: start_at  # type: ignore[method-assign]
    budget = server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    for _ in range(budget + 1):  # a request without credentials is no guess
        response = await ask(server, "GET", "/v1/accounts/ann", None)
        assert_problem(response, 401, "unauthenticated")
    for _ in range(budget):
        response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
        assert_problem(response, 401, "unauthenticated")
    response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
    assert_problem(response, 429, "rate_limited")
    assert re.fullmatch(r"[1-9]|[1-5][0-9]|60", response.headers["retry-after"])
    # Good credentials pass from the same address, and requests without credentials pass as before.
    for bearer in (server.token(), API_KEY):
        assert (await ask(server, "GET", "/v1/accounts/ann", bearer)).status_code == 200
    response = await ask(server, "GET", "/v1/accounts/ann", None)
    assert_problem(response, 401, "unauthenticated")
    assert (await ask(server, "GET", "/healthz", None)).status_code == 200
    # The next minute is another one.
    clock.now = lambda: start_at + MINUTE_MS  # type: ignore[method-assign]
    response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
    assert_problem(response, 401, "unauthenticated")


class StoppedClock:
    """A clock that stands."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def now(self) -> int:
        return self.now_ms


def fail(failures: BadGuesses, address: str, times: int) -> None:
    for _ in range(times):
        assert failures.wait_ms(address) == 0
        failures.count(address)


def test_addresses_are_counted_each_for_itself_and_by_the_minute() -> None:
    clock = StoppedClock(10 * MINUTE_MS + 45_000)
    failures = BadGuesses(clock)
    fail(failures, "a", server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE)
    assert failures.wait_ms("a") == 15_000
    assert failures.wait_ms("b") == 0
    clock.now_ms += 15_000
    assert failures.wait_ms("a") == 0


def test_a_flood_from_everywhere_does_not_fill_the_memory() -> None:
    failures = BadGuesses(StoppedClock(MINUTE_MS))
    for number in range(server_limits.AUTH_FAILURE_ADDRESSES_MAX + 10):
        fail(failures, f"address {number}", 1)
    assert len(failures._counts) <= server_limits.AUTH_FAILURE_ADDRESSES_MAX + 1


async def test_signatures_of_an_address_that_guesses_are_checked_at_a_pace() -> None:
    failures = BadGuesses(StoppedClock(MINUTE_MS))
    failures._checks = checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    budget = server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    await asyncio.gather(*(guess(failures, authenticator, "bad") for _ in range(budget)))
    assert authenticator.checked == budget
    # From here on there is one check at a time, however many tokens arrive.
    waiting = [asyncio.create_task(guess(failures, authenticator, "bad")) for _ in range(1_000)]
    good = asyncio.create_task(guess(failures, authenticator, "good"))
    elsewhere = asyncio.create_task(guess(failures, authenticator, "good", "b"))
    await asyncio.gather(
        *waiting[: -server_limits.SUSPECT_CHECKS_WAITING_MAX], return_exceptions=True
    )
    assert authenticator.checked == budget + 2  # the first of them, and the one from elsewhere
    assert await elsewhere == "principal"
    # The newest token has the next turn: its sender still waits.
    assert checks._timer is not None
    checks._timer.cancel()
    checks._next()
    assert await good == "principal"
    assert authenticator.checked == budget + 3
    assert sum(len(tokens) for tokens in checks._waiting.values()) < (
        server_limits.SUSPECT_CHECKS_WAITING_MAX
    )
    checks._timer.cancel()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_tokens_with_unknown_keys_keep_no_good_token_waiting() -> None:
    """Tokens with unknown keys keep no good token waiting.

    Such tokens cost no check, so they do not slow the checks of an office that shares the address.
    """
    failures = BadGuesses(StoppedClock(MINUTE_MS))
    failures._checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    budget = server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    flood = (guess(failures, authenticator, f"unknown {number}") for number in range(3 * budget))
    await asyncio.gather(*flood)
    users = (guess(failures, authenticator, f"good {number}") for number in range(1_000))
    assert set(await asyncio.gather(*users)) == {"principal"}


async def test_a_known_good_token_waits_behind_no_bad_signature() -> None:
    failures = BadGuesses(StoppedClock(MINUTE_MS))
    failures._checks = checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    assert await guess(failures, authenticator, "good") == "principal"
    budget = server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    await asyncio.gather(*(guess(failures, authenticator, "bad") for _ in range(budget)))
    waiting = [asyncio.create_task(guess(failures, authenticator, "bad")) for _ in range(10)]
    await asyncio.sleep(0)
    assert await guess(failures, authenticator, "good") == "principal"
    assert checks._timer is not None
    checks._timer.cancel()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_good_tokens_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "GOOD_TOKENS_REMEMBERED_MAX", 3)
    failures = BadGuesses(StoppedClock(MINUTE_MS))
    for number in (1, 2, 3, 1, 4):
        failures._remember(str(number))
    assert len(failures._good) == 3
    assert hashlib.sha256(b"1").digest() in failures._good


class Slow:
    """An authenticator whose checks are counted."""

    def __init__(self) -> None:
        self.checked = 0

    async def authenticate(self, bearer: str, before_signature: Any, network: str) -> str:
        assert network
        if bearer.startswith("unknown"):
            raise PeerError(ErrorCode.UNAUTHENTICATED, "no such key")
        await before_signature()
        self.checked += 1
        if bearer.startswith("good"):
            return "principal"
        raise PeerError(ErrorCode.UNAUTHENTICATED, "the token is not valid")


async def guess(failures: BadGuesses, authenticator: Any, bearer: str, address: str = "a") -> Any:
    try:
        return await failures.counted(address, authenticator, bearer)
    except PeerError as error:
        return error.code
