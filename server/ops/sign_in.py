"""How operators sign in: by password, token, or trusted proxy.

A session of a cookie is a row in Postgres, by the hash of the cookie's secret. Each request reads
it, and with it the operator's role of that moment. So a log-out, a removal and a new password count
at once, on every process.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from typing import Final

import msgspec
import structlog

from protocol.wire.errors import ErrorCode, PeerError
from protocol.wire.fields import is_id
from server.access import limits as access_limits
from server.access.bad_guesses import SuspectChecks
from server.access.login_tries import LoginTries
from server.access.passwords import matches
from server.access.principals import (
    OPERATOR_SCOPE,
    ORGANIZATION_SCOPE,
    READER_SCOPE,
    Principal,
    tenant_of,
)
from server.ops import limits as ops_limits
from server.process import Process
from server.transport.connection_limiter import network_of
from storage.postgres.operators import OperatorRecords
from storage.rows.operators import OperatorRow, OperatorSession, SessionVia

log = structlog.get_logger("taximeter.operators")

SCOPE_OF_ROLE: Final = {"act": OPERATOR_SCOPE, "read": READER_SCOPE}


class OpenedSession(msgspec.Struct, frozen=True):
    """A session that was opened just now; its secret is nowhere else."""

    secret: str
    principal: Principal


class SignIn:
    """Opens, finds and closes the sessions of cookies."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.records = OperatorRecords.over(process.records)
        self._tries = LoginTries(process.clock)
        self._checks = SuspectChecks(access_limits.LOGIN_CHECK_MS / 1000)

    async def login(self, name: str, password: str, address: str) -> OpenedSession:
        """Opens a session for a name and its password.

        Raises ``unauthenticated`` for a wrong one, without a word on which of the two is wrong;
        ``rate_limited`` after ten wrong tries; ``unavailable`` for too many tries at once.
        """
        self._tries.begin(name, address)
        await self._checks.turn(network_of(address))
        operator = await self.records.operator(name) if is_id(name) else None
        known_hash = operator.password_hash if operator is not None else None
        is_right = await asyncio.to_thread(matches, known_hash, password)
        if operator is None or not is_right:
            log.warning("login_refused", operator=ascii(name)[1:-1], address=address)
            raise _refused("the name or the password is wrong")
        self._tries.succeeded(name, address)
        return await self.open_named(operator, "password")

    async def open_named(self, operator: OperatorRow, via: SessionVia) -> OpenedSession:
        """Opens a session of a named operator, as ``operator`` was read.

        Raises ``unauthenticated`` where the operator has changed meanwhile.
        """
        expires_at = self.process.wall_ms() + ops_limits.OPERATOR_SESSION_MS
        scope = SCOPE_OF_ROLE[operator.role]
        session = OperatorSession(operator.name, via, scope, None, expires_at)
        return await self._open(session, operator)

    async def open_for_token(self, sender: Principal) -> OpenedSession:
        """Opens a session with the widest role of a token.

        It ends with the token at the latest. It is not the user's, and reaches only what the role
        does.
        """
        assert sender.user_id is not None
        assert sender.expires_at is not None
        scopes = [OPERATOR_SCOPE, READER_SCOPE]
        scopes += [ORGANIZATION_SCOPE] if sender.org_id is not None else []
        scope = next(one for one in scopes if one in sender.scopes)
        org_id = sender.org_id if scope == ORGANIZATION_SCOPE else None
        expires_at = min(sender.expires_at, self.process.wall_ms() + ops_limits.OPERATOR_SESSION_MS)
        return await self._open(OperatorSession(sender.user_id, "token", scope, org_id, expires_at))

    async def _open(
        self, session: OperatorSession, operator: OperatorRow | None = None
    ) -> OpenedSession:
        secret = secrets.token_urlsafe(32)
        now_ms = self.process.wall_ms()
        opened = await self.records.open_session(_hash(secret), session, now_ms, operator=operator)
        if not opened:
            raise _refused("the operator has changed meanwhile")
        return OpenedSession(secret, principal_of_session(session))

    async def by_cookie(self, secret: str, proxied_name: str | None) -> Principal:
        """The sender whose cookie has ``secret``; raises ``unauthenticated``.

        ``proxied_name`` is whom a trusted proxy names, or None. A session that was opened through
        the proxy is good only while the proxy names the same operator.
        """
        session = await self.records.session(_hash(secret), self.process.wall_ms())
        if session is None:
            raise _refused("the session has ended: sign in again")
        if (session.via == "proxy" or proxied_name is not None) and session.actor != proxied_name:
            raise _refused("the session is another operator's: sign in again")
        return principal_of_session(session)

    async def named(self, name: str) -> OperatorRow:
        """The operator whom a trusted proxy names; raises ``forbidden`` for no operator."""
        found = await self.records.operator(name) if is_id(name) else None
        if found is None:
            raise PeerError(ErrorCode.FORBIDDEN, "the proxy's user is no operator here")
        return found

    async def close(self, secret: str) -> None:
        """Ends the session of a cookie."""
        await self.records.close_session(_hash(secret))

    async def is_open(self, secret: str) -> bool:
        """Whether the session of a cookie is good, for connections that last."""
        return await self.records.session(_hash(secret), self.process.wall_ms()) is not None


def principal_of_session(session: OperatorSession) -> Principal:
    """The sender of a request with the cookie of a session."""
    return Principal(
        kind="operator",
        user_id=session.actor,
        org_id=session.org_id,
        tenant=tenant_of(session.org_id, "") if session.org_id is not None else None,
        scopes=frozenset({session.scope}),
        expires_at=session.expires_at,
        via="proxy" if session.via == "proxy" else "cookie",
    )


def principal_of_operator(operator: OperatorRow) -> Principal:
    """The sender of a request for which a proxy names an operator."""
    scopes = frozenset({SCOPE_OF_ROLE[operator.role]})
    return Principal(kind="operator", user_id=operator.name, scopes=scopes, via="proxy")


def csrf_token_of(secret: str) -> str:
    """What a page shows to act.

    It proves that the page read an answer of this server.
    """
    digest = hmac.digest(secret.encode(), b"taximeter csrf", "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _hash(secret: str) -> bytes:
    # The secret has 256 random bits, so a fast hash is enough.
    return hashlib.sha256(secret.encode()).digest()


def _refused(message: str) -> PeerError:
    return PeerError(ErrorCode.UNAUTHENTICATED, message)
