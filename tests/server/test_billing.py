"""What may be charged, by whom, and at which price."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.wire.errors import BadMessageError, PeerError
from server.access.principals import Principal
from server.api.billing import (
    Charge,
    Price,
    check_charge,
    has_succeeded,
    price_of,
    refusal_of,
    user_of,
)
from server.credits.outcomes import Short
from server.http.problems import Problem
from server.process import Process
from storage.redis.spending import AccountName
from tests.simulation.people import RATES

KEY = Principal("key")
ANN = Principal("user", "ann", None, "ann", "user:ann")
PROCESS = cast(Process, SimpleNamespace(rates=RATES))
FAILED = {"success": False}


@pytest.mark.parametrize(
    ("charge", "by_user", "by_key"),
    [
        (Charge(operation="sketch"), None, None),
        (Charge(operation="sketch", user_id="ann"), None, None),
        (Charge(operation="sketch", user_id="ben"), "forbidden", None),
        (Charge(operation="sketch", metadata=FAILED), "forbidden", None),
        (Charge(amount="1"), "forbidden", None),
        (Charge(amount="1", metadata=FAILED), "forbidden", "bad_message"),
        (Charge(amount="0"), "bad_message", "bad_message"),
        (Charge(), "bad_message", "bad_message"),
        (Charge(operation="sketch", amount="1"), "bad_message", "bad_message"),
    ],
)
def test_only_a_backend_names_amounts_failures_and_users(
    charge: Charge, by_user: str | None, by_key: str | None
) -> None:
    for principal, expected in ((ANN, by_user), (KEY, by_key)):
        if expected is None:
            check_charge(charge, principal)
            continue
        with pytest.raises((BadMessageError, PeerError)) as refused:
            check_charge(charge, principal)
        assert refused.value.code == expected, principal


@pytest.mark.parametrize(
    ("metadata", "succeeded"),
    [(None, True), ({}, True), ({"success": True}, True), (FAILED, False)],
)
def test_success_is_assumed_unless_metadata_says_otherwise(
    metadata: dict[str, Any] | None, succeeded: bool
) -> None:
    assert has_succeeded(metadata) is succeeded


@pytest.mark.parametrize("success", [1, "yes", None])
def test_success_is_true_or_false(success: object) -> None:
    with pytest.raises(BadMessageError, match=r"metadata\.success"):
        has_succeeded({"success": success})


def test_operation_was_done_by_the_user_who_is_known() -> None:
    own, shared = AccountName("user:ben", "ben"), AccountName("org:acme", "wallet")
    assert user_of(Charge(operation="sketch", user_id="eve"), ANN, own) == "ann"
    assert user_of(Charge(operation="sketch"), KEY, own) == "ben"
    assert user_of(Charge(operation="sketch", user_id="eve"), KEY, shared) == "eve"
    assert user_of(Charge(operation="sketch"), KEY, shared) is None


def test_price_is_the_rate_cards_or_the_amount() -> None:
    assert price_of(PROCESS, Charge(operation="sketch")) == Price(250_000, "sketch")
    assert price_of(PROCESS, Charge(amount="1.5")) == Price(1_500_000, None)
    with pytest.raises(Problem) as unknown:
        price_of(PROCESS, Charge(operation="nothing"))
    assert (unknown.value.status, unknown.value.code) == (422, "unknown_operation")


async def test_refusal_says_what_is_missing() -> None:
    account = AccountName("user:ann", "ann")
    problem = await refusal_of(PROCESS, account, Price(3_000_000, "film"), Short(1_250_000, 0))
    assert (problem.status, problem.code) == (402, "insufficient_credits")
    assert problem.extensions == {"cost": "3", "missing": "1.25", "credits": "0"}
