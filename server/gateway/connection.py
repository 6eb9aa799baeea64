"""One socket: authenticates, passes requests to the registry, sends its messages.

This is the shell of PROTOCOL section 1, over a WebSocket or an event stream. Every mistake of a
peer is answered with an ``error``, and the socket goes on, except for mistakes that have their own
close code.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import structlog
from starlette.types import Receive

from protocol.metering.states import Event
from protocol.wire import messages
from protocol.wire.codec import decode, encode, error_message
from protocol.wire.errors import (
    BadMessageError,
    CloseCode,
    ErrorCode,
    PeerError,
    ProtocolError,
    ServiceError,
)
from server import limits as server_limits
from server.access.claims import ExpiredTokenError
from server.access.principals import Principal
from server.access.rate_limits import TokenBucket
from server.counters.accounts import Account
from server.counters.member_months import Member
from server.gateway.account_messages import credit, welcome
from server.gateway.message_roles import MESSAGE_ROLES
from server.gateway.session_start import join_or_start
from server.process import Process
from server.runtime.isolation import failed, isolated
from server.runtime.timers import Timer
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from server.transport.frames import text_frame
from server.transport.open_sockets import Carrier
from server.transport.push import PushSocket
from storage.redis.live import LiveError
from storage.redis.spending import AccountName

log = structlog.get_logger()

SUBPROTOCOL = "taximeter.v1"


class Connection:
    """One socket: a subscriber of each local session that it has joined."""

    __slots__ = (
        "_bucket", "_deadline", "_probe_timer", "_probed_at", "_receive", "account", "address",
        "alive_at", "local_sessions", "member", "principal", "process", "socket", "unsent_usage",
    )  # fmt: skip

    def __init__(
        self, process: Process, socket: PushSocket, receive: Receive, address: str
    ) -> None:
        self.process = process
        self.address = address
        self.socket = socket
        self._receive = receive
        self.principal: Principal | None = None
        self.account: Account | None = None
        self.member: Member | None = None
        """The user's month; None where no kind counts minutes."""
        self.unsent_usage = b""  # a slow socket's newest month
        self.local_sessions: dict[str, LocalSession] = {}
        """The sessions of this socket, by id, also those that it only watches."""
        now_ms = process.clock.now()
        self.alive_at = now_ms
        self._bucket = TokenBucket(now_ms)
        self._probed_at = now_ms - server_limits.PROBE_SPACING_MS
        self._probe_timer: Timer | None = None
        """Sends a ping that waits because the last one was sent a moment ago."""
        self._deadline: Timer | None = None
        """Deadline of authentication, later the expiry of the token."""

    @property
    def carrier(self) -> Carrier:
        """What carries the messages of this socket."""
        return self.socket.carrier

    @property
    def _turn_owner(self) -> Hashable:
        """The owner of this socket's turns: its account, before that its address."""
        return self.account or self.principal or self.address

    # --- The socket's life -----------------------------------------------------------

    async def run(self, bearer: str | None) -> None:
        """Serves an open socket until it is gone.

        ``bearer`` came with the handshake.
        """
        self.process.sockets.add(self)
        self.socket.on_alive = self._alive
        code = int(CloseCode.ABNORMAL)
        self._expire_at(self.process.clock.now() + server_limits.AUTH_TIMEOUT_MS)
        try:
            if bearer is not None:
                await self._answer(messages.Auth(token=bearer))
                if self.principal is None:
                    # The client has no second message to authenticate with, so it should reconnect.
                    self.close(CloseCode.INTERNAL_ERROR, "could not authenticate now")
            # Inline, because a separate coroutine would exist as long as the socket does.
            while (event := await self._receive())["type"] != "websocket.disconnect":
                await self._heard(event.get("text"))
            code = int(event.get("code") or CloseCode.ABNORMAL)
            await self.process.registry.turns.take(
                self._turn_owner
            )  # hundreds may be gone together
        finally:
            await self._close(code)

    async def _heard(self, text: str | None) -> None:
        """Takes a message, unless the socket or its user sends too many."""
        if self._bucket.take(self.process.clock.now()):
            try:
                if self.principal is not None:
                    self.process.messages.check(self.principal)
            except PeerError as error:
                self._refuse(error, _id_of(text))
                return
            await self.process.registry.turns.take(self._turn_owner)
            await self._take(text)
        elif self._bucket.refused <= server_limits.REFUSALS_PER_SOCKET_MAX:
            wait_ms = self._bucket.wait_ms
            refusal = PeerError(ErrorCode.RATE_LIMITED, "too many requests", retry_after_ms=wait_ms)
            self._refuse(refusal, _id_of(text))
        else:
            self.close(CloseCode.PROTOCOL_VIOLATION, "too many requests")

    async def _take(self, text: str | None) -> None:
        """Decodes one message and answers it; a bad message gets an error."""
        try:
            if text is None:
                raise BadMessageError("expected a text frame with JSON")
            request = decode(text)
        except BadMessageError as error:
            self._refuse(error, error.id)
        else:
            await self._answer(request)

    async def _close(self, code: int) -> None:
        """Leaves the sessions of a closed socket, as of its last proof.

        If the client closed the socket, it took leave of its sessions.
        """
        self.socket.on_alive = None
        for timer in (self._deadline, self._probe_timer):
            if timer is not None:
                timer.cancel()
        if self.local_sessions:
            self.process.registry.turns.run(
                self._turn_owner, self._leave_all(list(self.local_sessions.values()))
            )
        self.local_sessions.clear()
        if self.principal is not None:
            self.process.sockets.release_user(self._user)
        self.process.sockets.remove(self, code)
        if self.member is not None:
            self.process.member_months.close(self.member, self)
        if self.account is not None:
            self.account.listeners.pop(self._told, None)
            await self.process.registry.accounts.close(self.account)

    def _leave_all(self, local_sessions: list[LocalSession]) -> Iterator[None]:
        for local in local_sessions:
            isolated("leave", self._leave, local, session=local.key)
            yield

    def _leave(self, local: LocalSession) -> None:
        self.process.registry.unsubscribe(
            local, self, self.alive_at, farewell=self.socket.peer_closed
        )

    def _alive(self, came_at: int | None = None) -> None:
        """Notes a proof of life: a pong, message or peer's close.

        ``came_at`` is its time where another process heard it.
        """
        now_ms = self.process.clock.now()
        proof_at = self.process.stall_detector.proof_at(now_ms)
        if came_at is not None and came_at < proof_at:
            proof_at = came_at
        self.alive_at = max(self.alive_at, proof_at)
        if self.unsent_usage:
            self.show_usage(self.unsent_usage)
        for local in list(self.local_sessions.values()):
            if self not in local.service.passive:
                try:
                    local.service.alive(self.alive_at, now_ms, self)
                except Exception:
                    failed("session", session=local.key)
                    local.recover()

    def _expire_at(self, at: int) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.process.timers.deadline(at, self._expired)

    def _expired(self, _: int) -> None:
        if self.account is None:
            self.close(CloseCode.AUTHENTICATION_TIMEOUT, "no authentication in time")
        else:
            self.close(CloseCode.TOKEN_EXPIRED, "the token has expired")

    # --- Subscriber: what a local session sends ------------------------------------------

    def send(self, frame: bytes) -> None:
        """Sends a frame that must arrive."""
        self.socket.push(frame)

    def send_tick(self, frame: bytes) -> bool:
        """Sends a frame that may be dropped."""
        return self.socket.push_tick(frame)

    def show_usage(self, frame: bytes) -> None:
        """Sends the user's month.

        A slow socket gets the newest with its next proof of life.
        """
        self.unsent_usage = b"" if self.socket.push_tick(frame) else frame

    def probe(self) -> None:
        """Asks the peer for a proof of life, after a minimum spacing.

        One pong is a proof for all sessions of the socket, so few pings serve many sessions.
        """
        if self._probe_timer is not None:
            return
        due_at = self._probed_at + server_limits.PROBE_SPACING_MS
        if self.process.clock.now() >= due_at:
            self._probe()
        else:
            self._probe_timer = self.process.timers.deadline(due_at, self._probe)

    def _probe(self, _: int = 0) -> None:
        self._probe_timer = None
        self._probed_at = self.process.clock.now()
        self.socket.ping_now()

    def farewell(self, at_ms: int) -> None:
        """Does nothing: each socket proves its own life."""

    def left(self, local: LocalSession) -> None:
        """Forgets a session that this socket takes no part in any more."""
        self.local_sessions.pop(local.meter.session.identity.session_id, None)

    def close(self, code: int, reason: str) -> None:
        """Closes the socket from this side."""
        self.socket.close(code, reason)

    def _say(self, message: messages.ServerMessage) -> None:
        self.send(text_frame(encode(message)))

    def _refuse(self, error: ProtocolError, request_id: int | None) -> None:
        error.id = request_id
        self.process.metrics.errors.labels(error.code.value).inc()
        self._say(error_message(error))

    # --- Requests ------------------------------------------------------------------------

    async def _answer(self, request: messages.Request) -> None:
        """Carries out one request; a refusal is answered with an ``error``."""
        self.process.metrics.messages_received.labels(type(request).__name__.lower()).inc()
        try:
            await self._carry_out(request)
        except LiveError as error:
            log.warning("request_unanswered", error=str(error))
            self._refuse(ServiceError("the session store does not answer"), request.id)
        except ProtocolError as error:
            self._refuse(error, request.id)

    async def _carry_out(self, request: messages.Request) -> None:
        if isinstance(request, messages.Auth):
            await self._authenticate(request)
            return
        if self.principal is None:
            raise PeerError(
                ErrorCode.UNAUTHENTICATED, "the first message must be auth, with a token"
            )
        principal = self.principal.admitted(*MESSAGE_ROLES[type(request)])
        match request:
            case messages.Ping():
                now_ms = self.process.clock.now()
                self._say(messages.Pong(id=request.id, server_time_at=now_ms))
            case messages.Refresh():
                await self._refresh(request)
            case messages.Start():
                await self._start(principal, request)
            case messages.Watch():
                await self._watch(principal, request)
            case messages.Pause():
                self._request(request, Event.PAUSE)
            case messages.Resume():
                self._request(request, Event.RESUME)
            case messages.Stop():
                self._request(request, Event.STOP)
            case messages.Leave():
                local = self._local_session_of(request)
                del self.local_sessions[request.session_id]
                self.process.registry.unsubscribe(local, self, self.alive_at, farewell=True)

    async def _authenticate(self, request: messages.Auth) -> None:
        if self.principal is not None:
            raise PeerError(ErrorCode.BAD_MESSAGE, "authenticated already; use refresh")
        principal = await self._principal_of(request)
        if principal is None:
            return
        self.principal = principal
        if not self.process.sockets.claim_user(self._user):
            self.principal = None
            self.close(CloseCode.TOO_MANY_CONNECTIONS, "too many sockets of this user")
            return
        assert principal.tenant is not None
        assert principal.user_id is not None
        assert principal.account_id is not None
        try:
            await self.process.ledger.ensure_monthly_allotment(
                AccountName(principal.tenant, principal.account_id)
            )
            self.account = await self.process.registry.accounts.open(
                principal.tenant, principal.account_id
            )
        except BaseException:
            # The socket may authenticate again once the account can be opened.
            self.process.sockets.release_user(self._user)
            self.principal = None
            raise
        self.account.listeners[self._told] = None
        self._welcome(request.id)
        self.member = self.process.member_months.open(
            principal.tenant, principal.org_id, principal.user_id, self
        )

    async def _refresh(self, request: messages.Refresh) -> None:
        assert self.principal is not None
        renewed = await self._principal_of(request)
        if renewed is not None:
            self.principal.check_refresh(renewed)
            self.principal = renewed
            self._welcome(request.id)

    async def _principal_of(self, request: messages.Auth | messages.Refresh) -> Principal | None:
        """The principal of a token; None if the socket was closed."""
        try:
            principal = await self.process.bad_guesses.counted(
                self.address, self.process.authenticator, request.token
            )
        except ExpiredTokenError:
            self.close(CloseCode.TOKEN_EXPIRED, "the token has expired")
            return None
        except PeerError as error:
            self._refuse(error, request.id)
            self.close(CloseCode.BAD_TOKEN, "the token is invalid")
            return None
        if principal.user_id is None:
            refusal = PeerError(
                ErrorCode.FORBIDDEN, "a socket needs a user's token, not an API key"
            )
            self._refuse(refusal, request.id)
            self.close(CloseCode.BAD_TOKEN, "the token is not a user's")
            return None
        return principal

    def _welcome(self, request_id: int | None) -> None:
        principal, account = self.principal, self.account
        assert principal is not None
        assert account is not None
        now_ms = self.process.clock.now()
        if principal.expires_at is not None:
            # Tokens carry wall time, but the wait is measured by the monotonic clock.
            left_ms = principal.expires_at - self.process.wall_ms()
            self._expire_at(now_ms + left_ms)
        self._say(welcome(principal, account, self.process.node, now_ms, request_id))

    @property
    def _user(self) -> str:
        assert self.principal is not None
        return f"{self.principal.tenant}/{self.principal.user_id}"

    # --- Sessions --------------------------------------------------------------------------

    async def _start(self, principal: Principal, request: messages.Start) -> None:
        assert principal.tenant is not None
        assert principal.user_id is not None
        if not principal.may_start(request.session_id):
            raise PeerError(ErrorCode.FORBIDDEN, "the token may not start this session")
        self._check_room(request)
        pending = PendingRequest(self, request.id)
        local = await join_or_start(
            self.process, principal, self, request.session_id, request, pending
        )
        if self in local.subscribers:
            self.local_sessions[request.session_id] = local

    async def _watch(self, principal: Principal, request: messages.Watch) -> None:
        tenant = principal.tenant_to_watch(request.org, request.user)
        self._check_room(request)
        here = self.local_sessions.get(request.session_id)
        if here is not None and here.meter.session.identity.tenant != tenant:
            raise PeerError(
                ErrorCode.BAD_MESSAGE, "this socket has a session of that id in another tenant"
            )
        local = await self.process.registry.watch(
            self, principal, request.session_id, PendingRequest(self, request.id), tenant
        )
        if local is None:
            raise PeerError(ErrorCode.UNKNOWN_SESSION, "there is no such session")
        self.local_sessions[request.session_id] = local

    def _check_room(self, request: messages.SessionRequest) -> None:
        full = len(self.local_sessions) >= server_limits.SESSIONS_PER_SOCKET_MAX
        if full and request.session_id not in self.local_sessions:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sessions on this socket")

    def _local_session_of(self, request: messages.SessionRequest) -> LocalSession:
        local = self.local_sessions.get(request.session_id)
        if local is None:
            raise PeerError(ErrorCode.UNKNOWN_SESSION, "this socket has no such session")
        return local

    def _request(self, request: messages.SessionRequest, event: Event) -> None:
        local = self._local_session_of(request)
        if self in local.service.passive:
            raise PeerError(ErrorCode.FORBIDDEN, "this socket only watches the session")
        self.process.registry.request(local, event, PendingRequest(self, request.id))

    def _told(self, account: Account, message: dict[str, Any]) -> None:
        """Sends changes of credits other than the time of sessions."""
        change = message.get("credit")
        if change is not None:
            self._say(credit(account, change, self.process.clock.now()))


def _id_of(text: str | None) -> int | None:
    """The id of a refused request, if it can be read."""
    try:
        return None if text is None else decode(text).id
    except BadMessageError as error:
        return error.id
