"""The user and account that a usage call is about.

They are a token's own, or those that a backend names.
"""

import msgspec
from starlette.requests import Request

from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from server.access.principals import Principal, tenant_of
from server.http.openapi import query_parameter
from server.http.requests import principal_of, query_id, tenant_of_call

USER = query_parameter("user", "The user. A user's token says its own; a backend names one.")
ACCOUNT = query_parameter("account", "The credit account; left out, the token's own or the user's.")
NOT_KEPT = {"Cache-Control": "no-store"}
"""The paths of existing applications are not under ``/v1``, and their answers must not be cached
either."""


class Subject(msgspec.Struct, frozen=True):
    """The user whose usage a call is about."""

    principal: Principal
    user_id: str
    org_id: str | None
    tenant: str
    account_id: str


def subject_of(request: Request, principal: Principal, *, named: str | None = None) -> Subject:
    """The token's user, or the one that a backend names.

    A backend names the user by ``?user=``, or ``named`` has the name that the body gives. The
    account is one of the tenant. Raises ``forbidden`` where a user's token names another user or
    account.
    """
    org_id, user_id = query_id(request, "org"), query_id(request, "user")
    account_id = query_id(request, "account")
    if principal.is_key:
        user_id = named or user_id
        if user_id is None:
            raise BadMessageError("user: name the user whose usage it is")
        tenant = tenant_of(org_id, user_id)
        return Subject(principal, user_id, org_id, tenant, account_id or user_id)
    tenant_of_call(request, principal)
    assert principal.user_id is not None
    assert principal.tenant is not None
    assert principal.account_id is not None
    if account_id is not None and not principal.may_see_account(account_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the account is not this token's")
    return Subject(
        principal,
        principal.user_id,
        principal.org_id,
        principal.tenant,
        account_id or principal.account_id,
    )


def asked_for(request: Request) -> Subject:
    """The subject of a user's or a backend's request."""
    return subject_of(request, principal_of(request))
