"""Both sides of the wire, generated from the code: ``/openapi.json``, ``/asyncapi.json``."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api import health, pages
from server.asyncapi import asyncapi
from server.http import answer
from server.openapi import Operation, described, openapi

DOCUMENT = Operation(tag="descriptions", answers={200: "application/json"})


@described(DOCUMENT)
async def openapi_document(request: Request) -> Response:
    """The HTTP side of the wire: this document."""
    return answer(openapi(request.app.routes))


@described(DOCUMENT)
async def asyncapi_document(_: Request) -> Response:
    """The WebSocket's side of the wire, in AsyncAPI 3.0."""
    return answer(asyncapi())


# The words of these are in their own modules; what is said here is only their shape.
STATE = Operation(tag="process", answers={200: "application/json"})
READINESS = Operation(tag="process", answers={200: "application/json", 503: "application/json"})
described(STATE)(health.healthz)
described(READINESS)(health.readyz)
described(Operation(tag="process", answers={200: "text/plain"}))(health.metrics)
described(Operation(tag="pages", answers={200: "text/html"}))(pages.index)
described(
    Operation(
        tag="pages",
        path={"name": "`taximeter.js`, or its types, `taximeter.d.ts`."},
        answers={200: "text/javascript", 404: ""},
    )
)(pages.client)

ROUTES = [
    Route("/openapi.json", openapi_document),
    Route("/asyncapi.json", asyncapi_document),
]
