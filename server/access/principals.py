"""Principals: who a request is from, and what they may do.

A call declares the roles that may make it. :meth:`Principal.admitted` gives the sender as one of
these roles: only such a principal reaches data of others, and only as far as the role does.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal

from protocol.wire.errors import ErrorCode, PeerError

OPERATOR_SCOPE: Final = "ops"
READER_SCOPE: Final = "ops:read"
ORGANIZATION_SCOPE: Final = "org:read"

NO_SCOPES: Final[frozenset[str]] = frozenset()
"""Shared by most users: an empty set of each one's own would take 216 bytes."""

Role = Literal["user", "key", "org:read", "ops:read", "ops"]
"""PROTOCOL section 1: `ops` acts and reads for all tenants, `ops:read` reads, `org:read` reads its
own organisation. A user has their own data, a key is a backend's."""

PUBLIC: Final[tuple[Role, ...]] = ()
"""Of a call for everyone, which shows nothing of a tenant."""
READERS: Final[tuple[Role, ...]] = ("ops:read", "ops")
"""Written `r` in PROTOCOL."""
ACTORS: Final[tuple[Role, ...]] = ("ops",)
"""Written `a` in PROTOCOL."""

Via = Literal["key", "token", "cookie", "proxy", "command"]
"""What proved who the sender is. A browser sends a cookie, or what a proxy needs, of itself, so a
page of another site could have it act: see ``server/http/cookies.py``."""

Reach = Literal["own", "organization", "all"]
"""Whose data a principal reaches: a user's own, one organisation's, or that of every tenant."""


def tenant_of(org_id: str | None, user_id: str) -> str:
    """The tenant: the organisation, or the user who has none."""
    return f"user:{user_id}" if org_id is None else f"org:{org_id}"


@dataclass(frozen=True, slots=True)
class Principal:
    """The sender of a request. :class:`Authenticator` makes it; everything else trusts it."""

    kind: Literal["user", "key", "operator"]
    """``operator``: a person who signed in as one, and who has no account or sessions."""
    user_id: str | None = None
    """The user, or the operator's name. None: a backend, or the bearer of a cookie of an
    organisation."""
    org_id: str | None = None
    account_id: str | None = None
    tenant: str | None = None
    """The tenant of a user. An API key names a tenant with each call, see :meth:`tenant_for`."""
    scopes: frozenset[str] = frozenset()
    sessions: frozenset[str] | None = None
    """The only sessions that this token may start; None: any."""
    kinds: frozenset[str] | None = None
    """The only kinds that this token may start; None: any."""
    counterparts: frozenset[str] | None = None
    """The only counterparts that this token may name, and that its issuer knows; None: any, and the
    issuer knows none of them."""
    expires_at: int | None = None
    """When the token expires, in epoch milliseconds; None: never."""
    via: Via = "token"
    reach: Reach = "own"
    """What the role reaches as which the sender was admitted."""
    acts: bool = False
    """Admitted as an operator to a call that changes something."""

    @property
    def is_key(self) -> bool:
        """Whether this is a backend with an API key."""
        return self.kind == "key"

    @property
    def is_operator(self) -> bool:
        """Whether the sender is an operator, of whichever role."""
        return not self.scopes.isdisjoint((OPERATOR_SCOPE, READER_SCOPE))

    @property
    def reaches_all(self) -> bool:
        """Whether the sender names the tenant of a call."""
        return self.is_key or self.reach == "all"

    @property
    def reaches_members(self) -> bool:
        """Whether the sender reaches all users of a call's tenant."""
        return self.reaches_all or self.reach == "organization"

    def admitted(self, *roles: Role) -> "Principal":
        """The sender in the widest of ``roles`` that the sender has.

        ``roles`` are those of PROTOCOL's column *who*. Raises ``forbidden`` without one of them. A
        role that is not among them gives nothing: who may only read is a plain user in a call that
        changes something.
        """
        if self.is_key and "key" in roles:
            return self
        acts = "ops" in roles and OPERATOR_SCOPE in self.scopes
        if acts or ("ops:read" in roles and self.is_operator):
            return dataclasses.replace(self, reach="all", acts=acts)
        if "org:read" in roles and ORGANIZATION_SCOPE in self.scopes and self.org_id is not None:
            return dataclasses.replace(self, reach="organization")
        if self.kind == "user" and "user" in roles:
            return self
        raise _forbidden("this call is not for this token")

    def check_organization(self, org_id: str) -> None:
        """Raises ``forbidden`` where the role does not reach an organisation."""
        if not self.reaches_all and (self.reach == "own" or org_id != self.org_id):
            raise _forbidden("this organisation is not the token's own")

    def tenant_for(self, org_id: str | None, owner_id: str) -> str:
        """The tenant of a call about the user or account ``owner_id``.

        ``org_id`` is its ``?org=``. PROTOCOL section 2: "A user's token says its own; calls by key
        or operator name it by ?org=ID, or leave it out for a user without one."
        """
        if self.reaches_all:
            return tenant_of(org_id, owner_id)
        assert self.tenant is not None
        if org_id is not None and org_id != self.org_id:
            raise _forbidden("this organisation is not the token's own")
        return self.tenant

    def tenant_to_watch(self, org_id: str | None, user_id: str | None) -> str:
        """The tenant of a session to watch.

        An operator may choose a tenant. Without ``org_id`` and ``user_id`` the tenant is
        the token's own. Raises ``forbidden`` for a user who names another organisation or user.
        """
        assert self.tenant is not None
        assert self.user_id is not None
        if org_id is None and user_id is None:
            return self.tenant
        if self.reach == "all":
            return tenant_of(org_id, user_id or "")
        if org_id not in (None, self.org_id) or user_id not in (None, self.user_id):
            raise _forbidden("watching in another tenant is for operators")
        return self.tenant

    def refuse_operator(self) -> None:
        """Raises ``forbidden`` for an operator, who may have a user's token too.

        PROTOCOL section 2: existing applications keep their paths "for users and keys, not for
        operators".
        """
        if self.is_operator:
            raise _forbidden("this call is not for operators")

    def may_start(self, session_id: str) -> bool:
        """Whether this user's token may start or join ``session_id``."""
        return self.kind == "user" and (self.sessions is None or session_id in self.sessions)

    def check_start(self, kind: str, counterpart_id: str | None) -> None:
        """Raises ``forbidden`` for an unlisted kind or counterpart.

        A token without a list allows all.
        """
        if self.kinds is not None and kind not in self.kinds:
            raise _forbidden("the token may not start this kind")
        if counterpart_id is None or self.counterparts is None:
            return
        if counterpart_id not in self.counterparts:
            raise _forbidden("the token may not start a session with this counterpart")

    def knows_counterpart(self, counterpart_id: str | None) -> bool:
        """Whether the token's issuer has named this counterpart.

        A name that only the bearer gives does not count.
        """
        return self.counterparts is not None and counterpart_id in self.counterparts

    def may_see_session(self, session_user_id: str) -> bool:
        """Whether they may see a session of their tenant, of ``session_user_id``."""
        return self.reaches_members or self.user_id == session_user_id

    def may_watch(self, session_user_id: str, session_id: str) -> bool:
        """Whether they may watch a session.

        PROTOCOL: "the session's own user, a token whose `sessions` lists it, or `ops`".
        """
        listed = self.sessions is not None and session_id in self.sessions
        return listed or self.reach == "all" or self.user_id == session_user_id

    def may_see_account(self, account_id: str) -> bool:
        """Whether they may see and spend an account of their tenant."""
        return self.reaches_all or self.account_id == account_id

    def check_refresh(self, new: "Principal") -> None:
        """Raises ``forbidden`` unless ``new`` may replace this principal on a socket.

        PROTOCOL: "a new token before the old one expires; same `sub`". The organisation and the
        account must be the same too, because live sessions are counted against them.
        """
        if (self.kind, self.user_id, self.tenant, self.account_id) != (
            new.kind,
            new.user_id,
            new.tenant,
            new.account_id,
        ):
            raise _forbidden("a new token must be for the same user, organisation and account")


def _forbidden(message: str) -> PeerError:
    return PeerError(ErrorCode.FORBIDDEN, message)
