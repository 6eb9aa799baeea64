"""HTTP heartbeats, for networks that let no WebSocket through."""

from typing import Annotated, ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire import messages
from protocol.wire.codec import check_metadata
from protocol.wire.fields import CounterpartId, KindName, LastSeq, Metadata, describe
from server.gateway.heartbeats import Heartbeats
from server.http.openapi import Operation, described
from server.http.requests import path_id, principal_of, raw_body, read_body
from server.http.responses import answer


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A proof of life; with a kind, it may start the session.

    A session is started when it does not exist yet.
    """

    EMPTY_BODY: ClassVar[bool] = True

    kind: (
        Annotated[KindName, describe("A kind of the rate card: starts the session, or joins it.")]
        | None
    ) = None
    counterpart_id: CounterpartId | None = None
    metadata: Metadata | None = None
    last_seq: LastSeq | None = None


def heartbeats_of(request: Request) -> Heartbeats:
    """The HTTP heartbeat clients of the process that serves the request."""
    found: Heartbeats = request.app.state.heartbeats
    return found


@described(
    Operation(
        tag="sessions",
        roles=("user",),
        path={"id": "The session."},
        body=Heartbeat,
        answers={200: (messages.Session,)},
        errors={
            402: ("limit_reached",),
            404: ("unknown_session",),
            409: ("session_ended",),
            422: ("unknown_kind",),
        },
    )
)
async def heartbeat(request: Request) -> Response:
    """Proves life for 75 s, and answers the snapshot.

    Send the next heartbeat well within that time. Without it the session is suspended, as after a
    lost socket, and its reconnect grace runs. A clean close, `leave` or `stop` of the same user
    ends the proof at once.
    """
    principal = principal_of(request)
    session_id = path_id(request)
    body = read_body(await raw_body(request), Heartbeat)
    start = None
    if body.kind is not None:
        check_metadata(body.metadata)
        start = messages.Start(
            session_id=session_id,
            kind=body.kind,
            counterpart_id=body.counterpart_id,
            metadata=body.metadata,
            last_seq=body.last_seq,
        )
    found = await heartbeats_of(request).beat(principal, session_id, start, body.last_seq)
    return answer(found)


ROUTES = [Route("/v1/sessions/{id}/heartbeat", heartbeat, methods=["POST"])]
