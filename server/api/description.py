"""Descriptions of the wire, generated from the code: ``/openapi.json``, ``/asyncapi.json``.

The documents are built once, because one takes 17 ms and anyone may ask for it.
"""

import functools
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import limits as server_limits
from server.access.principals import PUBLIC
from server.api import health, pages
from server.http.asyncapi import asyncapi
from server.http.openapi import Operation, described, openapi
from server.http.responses import json_response

_bodies: dict[tuple[Any, ...], bytes] = {}

DOCUMENT = Operation(tag="descriptions", roles=PUBLIC, answers={200: "application/json"})


@described(DOCUMENT)
async def openapi_document(request: Request) -> Response:
    """The HTTP side of the wire: this document."""
    return json_response(openapi_body(request.app))


@described(DOCUMENT)
async def asyncapi_document(_: Request) -> Response:
    """The WebSocket side of the wire, in AsyncAPI 3.0."""
    return json_response(asyncapi_body())


def openapi_body(app: Starlette) -> bytes:
    """The document of an application's routes.

    Built once for each set of routes.
    """
    routes = [route for route in app.routes if isinstance(route, Route)]
    key = tuple(
        (route.path, tuple(sorted(route.methods or ())), route.endpoint) for route in routes
    )
    body = _bodies.get(key)
    if body is None:
        while len(_bodies) >= server_limits.API_DOCUMENTS_KEPT_MAX:
            del _bodies[next(iter(_bodies))]
        body = _bodies[key] = orjson.dumps(openapi(routes))
    return body


@functools.cache
def asyncapi_body() -> bytes:
    """The document of the socket; built once."""
    return orjson.dumps(asyncapi())


def build(app: Starlette) -> None:
    """Builds both documents before the first request."""
    openapi_body(app)
    asyncapi_body()


# The modules of these routes have their descriptions; only the shape is declared here.
STATE = Operation(tag="process", roles=PUBLIC, answers={200: "application/json"})
READINESS = Operation(
    tag="process", roles=PUBLIC, answers={200: "application/json", 503: "application/json"}
)
described(STATE)(health.healthz)
described(READINESS)(health.readyz)
described(Operation(tag="process", roles=PUBLIC, answers={200: "text/plain"}))(health.metrics)
described(Operation(tag="pages", roles=PUBLIC, answers={200: "text/html"}))(pages.index)
described(
    Operation(
        tag="pages",
        roles=PUBLIC,
        path={"name": "`taximeter.js`, or its types, `taximeter.d.ts`."},
        answers={200: "text/javascript", 404: ""},
    )
)(pages.client)

ROUTES = [
    Route("/openapi.json", openapi_document),
    Route("/asyncapi.json", asyncapi_document),
]
