"""Each error code is one side's fault; some allow a retry."""

import pytest

from protocol.wire.errors import (
    CloseCode,
    ErrorCode,
    PeerError,
    RefusedError,
    ServiceError,
    may_reconnect,
)


def test_every_code_is_the_fault_of_exactly_one_side() -> None:
    sides = (PeerError, RefusedError, ServiceError)
    assert sorted(code for side in sides for code in side.codes) == sorted(ErrorCode)
    with pytest.raises(AssertionError):
        PeerError(ErrorCode.UNAVAILABLE, "not the peer's fault")


def test_who_comes_back() -> None:
    assert [code for code in CloseCode if may_reconnect(code)] == [
        1000, 1001, 1006, 1009, 1011, 1012, 4000, 4001, 4002, 4003,
    ]  # fmt: skip
    assert may_reconnect(4499)
    assert not may_reconnect(4500)
    assert not may_reconnect(4999)
    assert all(may_reconnect(code) for code in (1005, 1013, 1014, 1015, 3999))
