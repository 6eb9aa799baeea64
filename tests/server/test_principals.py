"""What a principal may do."""

from typing import Any

import pytest

from protocol.wire.errors import ErrorCode, PeerError
from server.access.principals import Principal, Role, tenant_of

Roles = tuple[Role, ...]

USER = Principal(kind="user", user_id="u1", account_id="u1", tenant="user:u1")

MEMBER = Principal(kind="user", user_id="u1", org_id="o1", account_id="a1", tenant="org:o1")

LISTED = Principal(
    kind="user", user_id="u1", account_id="u1", tenant="user:u1", sessions=frozenset({"s1"})
)

OPERATOR = Principal(
    kind="user", user_id="op", account_id="op", tenant="user:op", scopes=frozenset({"ops"})
)

BACKEND = Principal(kind="key")

ADMITTED = OPERATOR.admitted("ops")


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
                principal.admitted(*roles)
            else:
                with pytest.raises(PeerError) as caught:
                    principal.admitted(*roles)
                assert caught.value.code == ErrorCode.FORBIDDEN


def test_whose_tenant_a_call_is_about() -> None:
    assert USER.tenant_for(None, "someone") == "user:u1"
    assert MEMBER.tenant_for(None, "someone") == "org:o1"
    assert MEMBER.tenant_for("o1", "someone") == "org:o1"
    for principal in (BACKEND, ADMITTED):
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
        (ADMITTED, True, True),
        (OPERATOR, False, False),
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
    assert ADMITTED.may_see_account("a1")
    assert not OPERATOR.may_see_account("a1")


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


READER = Principal(
    kind="user", user_id="rita", account_id="rita", tenant="user:rita",
    scopes=frozenset({"ops:read"}),
)  # fmt: skip
ADMINISTRATOR = Principal(
    kind="user", user_id="adam", org_id="o1", account_id="adam", tenant="org:o1",
    scopes=frozenset({"org:read"}),
)  # fmt: skip
PERSON = Principal(kind="operator", user_id="olga", scopes=frozenset({"ops"}))


def test_a_role_reaches_as_far_as_the_call_admits_it() -> None:
    reads: Roles = ("user", "key", "ops:read", "ops")
    acts: Roles = ("user", "key", "ops")
    assert READER.admitted(*reads).reaches_all
    assert not READER.admitted(*acts).reaches_all
    assert OPERATOR.admitted(*reads).reaches_all
    assert OPERATOR.admitted(*acts).acts
    assert not OPERATOR.admitted("user", "key").reaches_all
    assert ADMINISTRATOR.admitted("user", "org:read", "ops").reach == "organization"
    assert ADMINISTRATOR.admitted(*reads).reach == "own"
    assert PERSON.admitted(*acts).acts


def test_a_role_that_is_not_declared_is_refused() -> None:
    homeless = Principal(kind="user", user_id="a", tenant="user:a", scopes=frozenset({"org:read"}))
    refused: list[tuple[Principal, Roles]] = [
        (READER, ("ops",)),
        (READER, ("key", "ops")),
        (ADMINISTRATOR, ("ops:read", "ops")),
        (PERSON, ("user", "key")),
        (homeless, ("org:read",)),
        (BACKEND, ("user", "org:read", "ops:read", "ops")),
    ]
    for principal, roles in refused:
        with pytest.raises(PeerError) as caught:
            principal.admitted(*roles)
        assert caught.value.code == ErrorCode.FORBIDDEN


def test_an_administrator_reaches_one_organisation() -> None:
    admitted = ADMINISTRATOR.admitted("org:read")
    admitted.check_organization("o1")
    assert admitted.tenant_for("o1", "u1") == admitted.tenant_for(None, "u1") == "org:o1"
    assert admitted.may_see_session("u1")
    assert not admitted.may_see_account("u1")
    for refused in (admitted, ADMINISTRATOR, USER):
        with pytest.raises(PeerError, match="organisation"):
            refused.check_organization("o2")
    with pytest.raises(PeerError, match="organisation"):
        admitted.tenant_for("o2", "u1")
    BACKEND.check_organization("o2")
    ADMITTED.check_organization("o2")
