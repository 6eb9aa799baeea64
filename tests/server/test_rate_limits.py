"""Bounds on the requests of a user, and on the users counted."""

import pytest

from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import PeerError
from server import limits as server_limits
from server.access.principals import Principal
from server.access.rate_limits import UserRequests
from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.test_bad_guesses import StoppedClock


async def test_a_user_who_asks_too_much_is_told_to_wait(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 3)
    monkeypatch.setattr(server_limits, "REQUESTS_PER_SECOND", 0)
    token = server.token()
    for _ in range(3):
        assert (await ask(server, "GET", "/v1/accounts/ann", token)).status_code == 200
    refused = await ask(server, "GET", "/v1/accounts/ann", token)
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "3600", "an hour at most"
    # Another token of the same user has the same limit; other users are not affected, and a backend
    # has no limit.
    again = await ask(server, "GET", "/v1/accounts/ann", server.token(ttl_seconds=60))
    assert again.status_code == 429
    assert (await ask(server, "GET", "/v1/accounts/bob", server.token("bob"))).status_code == 200
    for _ in range(5):
        assert (await ask(server, "GET", "/v1/accounts/ann")).status_code == 200
        assert (
            await ask(server, "GET", "/v1/accounts/ann", server.token("op", scope="ops"))
        ).is_success
    monkeypatch.setattr(server_limits, "REQUESTS_PER_SECOND", 10_000_000)
    advance(server, 1_000)
    assert (await ask(server, "GET", "/v1/accounts/ann", token)).status_code == 200


def test_users_who_ask_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "REQUEST_USERS_MAX", 2)
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 1)
    requests = UserRequests(StoppedClock(MINUTE_MS))
    ann, bob, eve = (Principal("user", user_id=name, tenant="t") for name in ("ann", "bob", "eve"))
    requests.check(ann)
    requests.check(bob)
    for name in (ann, bob):
        with pytest.raises(PeerError):
            requests.check(name)
    requests.check(eve)  # ann was silent the longest
    assert len(requests._buckets) == 2
    with pytest.raises(PeerError):
        requests.check(bob)
