"""Preparations: a backend fixes a session's terms before the browser starts it."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from protocol.rate_card import terms_with
from protocol.wire.codec import check_metadata
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import (
    CounterpartId,
    InstantAt,
    KindName,
    Metadata,
    Price,
    SessionId,
    UserId,
    describe,
    describe_id,
)
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.principals import tenant_of
from server.gateway import preparations
from server.http.openapi import ORG, Operation, described
from server.http.problems import Problem
from server.http.requests import process_of, query_id, raw_body, read_body
from server.http.responses import answer
from storage.rows.sessions import SessionPrepared


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """A session that a user may start, and its terms.

    Missing terms are the kind's.
    """

    session_id: SessionId
    kind: KindName
    user_id: Annotated[UserId, describe("The user who may start it.")]
    counterpart_id: CounterpartId | None = None
    account_id: (
        Annotated[str, describe_id("The credit account; the user's own when left out.")] | None
    ) = None
    credits_per_minute: Annotated[Price, describe("The price of a minute.")] | None = None
    free_seconds: (
        Annotated[int, Meta(ge=0, le=limits.FREE_MS_MAX // 1000, description="Free time.")] | None
    ) = None
    max_session_seconds: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=limits.SESSION_CAP_MS_MAX // 1000,
                description="The longest it may last; 0: no cap.",
            ),
        ]
        | None
    ) = None
    expires_at: (
        Annotated[InstantAt, describe("It may be started before then; a day from now.")] | None
    ) = None
    metadata: Metadata | None = None


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A prepared session, and the terms that it will start with."""

    session_id: str
    kind: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    state: str
    credits_per_minute: str
    free_seconds: int
    max_session_seconds: int
    expires_at: InstantAt
    metadata: dict[str, Any] | None


def _prepared(session: SessionPrepared) -> Prepared:
    terms = session.terms
    return Prepared(
        session_id=session.session_id,
        kind=session.kind,
        user_id=session.user_id,
        org_id=session.org_id,
        account_id=session.account_id,
        counterpart_id=session.counterpart_id,
        state="prepared",
        credits_per_minute=format_credits(terms.price_micros),
        free_seconds=terms.free_ms // 1000,
        max_session_seconds=terms.session_cap_ms // 1000,
        expires_at=session.expires_at,
        metadata=session.metadata,
    )


@described(
    Operation(
        tag="sessions",
        roles=("key",),
        parameters=(ORG,),
        body=Preparation,
        answers={200: (Prepared,), 201: (Prepared,)},
        errors={409: ("session_exists",), 422: ("unknown_kind",)},
    )
)
async def prepare(request: Request) -> Response:
    """Prepares a session with its own price, free time and cap.

    The browser's `start` takes these terms and cannot change them: after the answer 201 or 200 the
    session can only run as prepared. The same preparation again is answered with 200. Another
    preparation under the same id is a conflict, and so is a session that has started. After
    `expires_at` it cannot be started, but can be prepared again.
    """
    process = process_of(request)
    org_id = query_id(request, "org")
    body = read_body(await raw_body(request), Preparation)
    check_metadata(body.metadata)
    terms = terms_with(
        process.rates.terms(body.kind),
        credits_per_minute=body.credits_per_minute,
        free_seconds=body.free_seconds,
        max_session_seconds=body.max_session_seconds,
    )
    if body.counterpart_id is None and terms != terms.with_unknown_counterpart():
        raise BadMessageError(
            "counterpart_id: free time of this kind is a pair's; name it, or set free_seconds to 0"
        )
    wanted = SessionPrepared(
        tenant=tenant_of(org_id, body.user_id),
        session_id=body.session_id,
        user_id=body.user_id,
        org_id=org_id,
        account_id=body.account_id or body.user_id,
        counterpart_id=body.counterpart_id,
        kind=body.kind,
        terms=terms,
        expires_at=_end_of(body, process.clock.now()),
        metadata=body.metadata,
    )
    try:
        prepared, is_new = await preparations.prepare(process, wanted, body.expires_at is None)
    except preparations.SessionExistsError:
        detail = "there is another session of this id already"
        raise Problem(409, "session_exists", detail) from None
    return answer(_prepared(prepared), 201 if is_new else 200)


def _end_of(body: Preparation, now_ms: int) -> int:
    """When the preparation expires, in epoch milliseconds."""
    if body.expires_at is None:
        return now_ms + server_limits.PREPARED_SESSION_KEPT_MS
    if not now_ms < body.expires_at <= now_ms + server_limits.PREPARED_SESSION_KEPT_MS_MAX:
        raise BadMessageError("expires_at: must be in the future, and within 366 days")
    return body.expires_at


ROUTES = [Route("/v1/sessions", prepare, methods=["POST"])]
