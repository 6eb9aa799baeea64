"""What a principal may do."""

from typing import Any

import pytest

from protocol.wire.errors import ErrorCode, PeerError
from server.access.principals import Principal, tenant_of

USER = Principal(kind="user", user_id="u1", account_id="u1", tenant="user:u1")

MEMBER = Principal(kind="user", user_id="u1", org_id="o1", account_id="a1", tenant="org:o1")

LISTED = Principal(
    kind="user", user_id="u1", account_id="u1", tenant="user:u1", sessions=frozenset({"s1"})
)

OPERATOR = Principal(
    kind="user", user_id="op", account_id="op", tenant="user:op", scopes=frozenset({"ops"})
)

BACKEND = Principal(kind="key")


def test_tenants() -> None:
    assert tenant_of(None, "u1") == "user:u1"
    assert tenant_of("o1", "u1") == "org:o1"


def test_who_may_call() -> None:
    table: list[tuple[Any, list[Principal]]] = [
        (("user",), [USER, OPERATOR]),
        (("key",), [BACKEND]),
        (("ops",), [OPERATOR]),
        (("user", "key"), [USER, OPERATOR, BACKEND]),
        (("key", "ops"), [OPERATOR, BACKEND]),
        (("user", "key", "ops"), [USER, OPERATOR, BACKEND]),
    ]
    for roles, allowed in table:
        for principal in (USER, OPERATOR, BACKEND):
            if principal in allowed:
                principal.require(*roles)
            else:
                with pytest.raises(PeerError) as caught:
                    principal.require(*roles)
                assert caught.value.code == ErrorCode.FORBIDDEN


def test_whose_tenant_a_call_is_about() -> None:
    assert USER.tenant_for(None, "someone") == "user:u1"
    assert MEMBER.tenant_for(None, "someone") == "org:o1"
    assert MEMBER.tenant_for("o1", "someone") == "org:o1"
    for principal in (BACKEND, OPERATOR):
        assert principal.tenant_for("o2", "someone") == "org:o2"
        assert principal.tenant_for(None, "someone") == "user:someone"
    for principal in (USER, MEMBER):
        with pytest.raises(PeerError, match="organisation"):
            principal.tenant_for("o2", "u1")


def test_who_may_start_what() -> None:
    assert USER.may_start("s1")
    assert LISTED.may_start("s1")
    assert not LISTED.may_start("s2")
    assert OPERATOR.may_start("s1")
    assert not BACKEND.may_start("s1")


@pytest.mark.parametrize(
    ("principal", "see", "watch"),
    [
        (USER, True, True),
        (Principal(kind="user", user_id="u2"), False, False),
        (Principal(kind="user", user_id="u2", sessions=frozenset({"s1"})), False, True),
        (Principal(kind="user", user_id="u2", sessions=frozenset({"s2"})), False, False),
        (OPERATOR, True, True),
        (BACKEND, True, False),
    ],
)
def test_rights_to_a_users_session(principal: Principal, see: bool, watch: bool) -> None:
    assert principal.may_see_session("u1") is see
    assert principal.may_watch("u1", "s1") is watch


def test_whose_account_may_be_seen() -> None:
    assert MEMBER.may_see_account("a1")
    assert not MEMBER.may_see_account("u1")
    assert BACKEND.may_see_account("a1")
    assert OPERATOR.may_see_account("a1")


def test_a_refresh_changes_nothing_that_sessions_hang_on() -> None:
    longer = Principal(
        kind="user",
        user_id="u1",
        account_id="u1",
        tenant="user:u1",
        scopes=frozenset({"ops"}),
        expires_at=9,
    )
    USER.check_refresh(longer)
    for other in (OPERATOR, BACKEND, MEMBER, Principal(kind="user", user_id="u1")):
        with pytest.raises(PeerError) as caught:
            USER.check_refresh(other)
        assert caught.value.code == ErrorCode.FORBIDDEN
