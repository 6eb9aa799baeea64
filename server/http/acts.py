"""Requests by which operators act: logged before they are done.

A route declares its :class:`Act`. The gate of the route calls :func:`serve_logged` in place of the
endpoint, so no endpoint can act without a row in the log.
"""

from collections.abc import Awaitable, Callable

import msgspec
import orjson
import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send

from protocol.wire.errors import BadMessageError, ProtocolError
from protocol.wire.fields import is_id
from server.access.principals import Principal, tenant_of
from server.http.idempotency import KEY_HEADER, canonical_text
from server.http.problems import Problem, problem_of
from server.http.requests import raw_body
from server.ops import limits as ops_limits
from server.ops.log import OperatorsLog, action_id_of, kept_answer
from storage.postgres.records import RejectedError, UnavailableError
from storage.redis.live import LiveError
from storage.rows.operators import Outcome

REQUEST_ID = "taximeter.request_id"
"""The key of a scope under which the middleware leaves the request's id."""
UNDER_WAY = "idempotency_under_way"

log = structlog.get_logger("taximeter.operators")


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator does by a route."""

    name: str
    """As the log names it: ``credit``."""
    target: str
    """What it is done to, with names of the path: ``account:{id}``."""
    is_keyed: bool = False
    """A repeated idempotency key does nothing further, so the attempts are one action. Each request
    to any other call is an action of its own, because it may do something again."""
    before: Callable[[Request], Awaitable[object]] | None = None
    """Reads what the log shows as the state before. Its errors are the endpoint's to answer."""


def log_of(request: Request) -> OperatorsLog:
    """The operators' log."""
    found: OperatorsLog = request.app.state.operators_log
    return found


def request_id_of(request: Request) -> str:
    """The id of the request, as its answer shows it in `X-Request-Id`."""
    found: str = request.scope.get(REQUEST_ID, "")
    return found


async def serve_logged(
    app: ASGIApp, act: Act, request: Request, principal: Principal, send: Send
) -> None:
    """Lets an endpoint act, between intent and outcome in the log.

    Raises ``bad_message`` without a reason, and whatever the endpoint raises. A person gives a
    reason in the body; a program with a token gives one where the call has that field.
    """
    body = await raw_body(request)
    reason = _reason_in(body)
    key = request.headers.get(KEY_HEADER) if act.is_keyed else None
    what = f"{act.name} {request.url.path} {_tenant_in(request)}"
    action_id = action_id_of(principal, what, key, canonical_text(body))
    before = await _before(act, request)
    await _begin(request, act, principal, action_id, reason=reason, before=before)
    answer = _Answer(body, request.receive)
    try:
        if principal.via != "token" and len(reason or "") < ops_limits.REASON_CHARACTERS_MIN:
            raise BadMessageError(
                f"reason: say why, in at least {ops_limits.REASON_CHARACTERS_MIN} characters"
            )
        await app(request.scope, answer.receive, answer.collect)
    except Exception as error:
        problem = problem_of(error)
        await _finish(request, action_id, problem.status, problem.code, None)
        raise
    await _finish(request, action_id, answer.status, answer.code, answer.document)
    for message in answer.messages:
        await send(message)


async def log_refused(
    request: Request, act: Act, sender: Principal, error: Problem | ProtocolError
) -> None:
    """Logs that an operator may not act."""
    action_id = action_id_of(sender, "", None, b"")
    try:
        await _begin(request, act, sender, action_id)
    except (UnavailableError, RejectedError) as failure:
        log.warning("refusal_not_logged", error=str(failure))
        return
    problem = problem_of(error)
    await _finish(request, action_id, problem.status, problem.code, None)


async def _begin(
    request: Request,
    act: Act,
    sender: Principal,
    action_id: str,
    *,
    reason: str | None = None,
    before: object = None,
) -> None:
    await log_of(request).begin(
        sender,
        act.name,
        act.target.format(**request.path_params),
        action_id=action_id,
        request_id=request_id_of(request),
        tenant=_tenant_in(request),
        reason=reason,
        before=before,
    )


async def _finish(
    request: Request, action_id: str, status: int, code: str | None, after: object
) -> None:
    if code == UNDER_WAY:
        return  # the attempt that has the key says what came of it
    outcome: Outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
    await log_of(request).finish(action_id, outcome, code, after)


async def _before(act: Act, request: Request) -> object:
    if act.before is None:
        return None
    try:
        return await act.before(request)
    except (Problem, ProtocolError, LiveError, UnavailableError, RejectedError):
        return None


def _reason_in(body: bytes) -> str | None:
    """The reason in a body that may be malformed."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    reason = found.get("reason") if isinstance(found, dict) else None
    return reason.strip() if isinstance(reason, str) else None


def _tenant_in(request: Request) -> str | None:
    """The tenant that a request names; None: none, or a malformed one."""
    org_id, user_id = request.query_params.get("org"), request.query_params.get("user")
    if request.url.path.startswith("/v1/orgs/"):
        org_id = request.path_params.get("id")
    named = org_id or user_id
    return tenant_of(org_id, user_id or "") if named is not None and is_id(named) else None


class _Answer:
    """An endpoint's answer, kept until the log has its outcome."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.messages: list[Message] = []
        self.status = 500
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        """The request's body, which was read; then what the peer does."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()

    async def collect(self, message: Message) -> None:
        """Keeps a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.messages.append(message)

    @property
    def document(self) -> object:
        """The answer as JSON; None for a long one, and for none."""
        head = next((one for one in self.messages if "headers" in one), None)
        media = Headers(raw=head["headers"]).get("content-type", "") if head else ""
        body = b"".join(one.get("body", b"") for one in self.messages)
        kept = kept_answer(body)
        return orjson.loads(kept) if kept and "json" in media else None

    @property
    def code(self) -> str | None:
        """The stable code of an answer that is an error."""
        document = self.document
        return document.get("code") if self.status >= 400 and isinstance(document, dict) else None
