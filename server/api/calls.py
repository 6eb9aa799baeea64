"""Events of call providers: verified here, kept by the inbox."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.fields import describe
from server.access.principals import PUBLIC
from server.calls.event_body import receive_body
from server.calls.facts import Adapter, CallInbox, EventRefusal, RefusedEventError
from server.calls.service import Calls
from server.http.openapi import Operation, described
from server.http.problems import Problem
from server.http.requests import process_of
from server.http.responses import answer

STATUS = {
    EventRefusal.FORGED: 401,
    EventRefusal.ALTERED: 401,
    EventRefusal.OVERSIZED: 413,
    EventRefusal.BOMB: 413,
    EventRefusal.ENCODING: 415,
}
"""Statuses of refusals; 400 for the others."""


class EventTaken(msgspec.Struct, frozen=True):
    """The answer to a provider's event."""

    outcome: Annotated[
        str,
        describe("`kept`; `repeated`: kept before; `ignored`: it says nothing about a call's time"),
    ]


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


ERRORS = {
    400: ("event_malformed", "event_ancient", "event_ahead"),
    401: ("event_forged", "event_altered"),
    404: ("unknown_provider",),
    413: ("event_oversized", "event_bomb"),
    415: ("event_encoding",),
    503: ("unavailable",),
}


@described(
    Operation(
        tag="calls",
        # For providers, who sign their events.
        roles=PUBLIC,
        parameters=(_header("X-Signature", "Stream's signature of the uncompressed body."),),
        answers={200: (EventTaken,)},
        errors=ERRORS,
    )
)
async def receive_stream_event(request: Request) -> Response:
    """Takes an event of Stream Video.

    Kept before the answer; the same event again has no effect.
    """
    return await _receive(request, "stream")


@described(
    Operation(
        tag="calls",
        roles=PUBLIC,
        path={"provider": "`livekit`, `daily`, or `stream`."},
        parameters=(_header("Authorization", "LiveKit's token, with the body's hash."),),
        answers={200: (EventTaken,)},
        errors=ERRORS,
    )
)
async def receive_call_event(request: Request) -> Response:
    """Takes an event of a call provider, signed by the provider.

    Kept before the answer; the same event again has no effect.
    """
    return await _receive(request, request.path_params["provider"])


async def _receive(request: Request, provider: str) -> Response:
    calls: Calls = request.app.state.calls
    adapter = calls.adapters.get(provider)
    if adapter is None:
        raise Problem(404, "unknown_provider", "no such call provider is set up here")
    metrics = process_of(request).metrics
    try:
        outcome = await _take(request, adapter, calls.inbox)
    except RefusedEventError as error:
        metrics.call_events.labels(provider, error.code.value).inc()
        raise Problem(STATUS.get(error.code, 400), error.code.value, error.message) from None
    metrics.call_events.labels(provider, outcome).inc()
    return answer(EventTaken(outcome))


async def _take(request: Request, adapter: Adapter, inbox: CallInbox) -> str:
    """Verifies an event and keeps it; of a refused one nothing."""
    body = await receive_body(request.headers, request.stream())
    adapter.verify(request.headers, body, process_of(request).clock.now())
    if not adapter.facts(body):
        return "ignored"
    is_new = await inbox.receive(adapter.name, request.headers, body)
    return "kept" if is_new else "repeated"


ROUTES = [
    Route("/api/webhooks/stream-call-events", receive_stream_event, methods=["POST"]),
    Route("/v1/calls/events/{provider}", receive_call_event, methods=["POST"]),
]
