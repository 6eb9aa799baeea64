"""Wrong passwords wait, by name and network."""

import pytest

from protocol.wire.errors import ErrorCode, PeerError
from server.access import limits as access_limits
from server.access.login_tries import LoginTries

HERE, THERE = "192.0.2.1", "198.51.100.9"


class Hand:
    """A clock that a test sets."""

    now_ms = 1_000_000

    def now(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def tries(clock: Hand) -> LoginTries:
    return LoginTries(clock)


def begin(tries: LoginTries, name: str = "olga", address: str = HERE, times: int = 1) -> None:
    for _ in range(times):
        tries.begin(name, address)


def test_the_eleventh_wrong_try_waits(tries: LoginTries, clock: Hand) -> None:
    begin(tries, times=10)
    clock.now_ms += 60_000
    for _ in range(3):
        with pytest.raises(PeerError) as caught:
            begin(tries)
        assert caught.value.code is ErrorCode.RATE_LIMITED
        assert caught.value.retry_after_ms == access_limits.LOGIN_WAIT_MS - 60_000
    clock.now_ms += access_limits.LOGIN_WAIT_MS - 60_000
    begin(tries, times=10)


def test_a_stranger_delays_no_one_elsewhere(tries: LoginTries) -> None:
    begin(tries, address=THERE, times=10)
    begin(tries, times=10)
    begin(tries, "rita", times=10)


def test_addresses_of_one_network_are_one(tries: LoginTries) -> None:
    for number in range(10):
        begin(tries, address=f"2001:db8::{number}")
    with pytest.raises(PeerError):
        begin(tries, address="2001:db8::ffff")
    begin(tries, address="2001:db8:0:1::1")


def test_the_right_password_forgets_the_wrong_ones(tries: LoginTries) -> None:
    begin(tries, times=9)
    begin(tries)
    tries.succeeded("olga", HERE)
    begin(tries, times=10)


def test_names_that_are_counted_are_bounded(
    tries: LoginTries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_limits, "LOGIN_TRIES_KEPT_MAX", 3)
    for number in range(50):
        begin(tries, f"name{number}")
    assert len(tries._tries) == 3
