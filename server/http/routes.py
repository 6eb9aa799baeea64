"""Routes declare who may call them; none is served without a declaration.

An endpoint is declared by :func:`declared`, or by ``openapi.described``, which declares it as well.
:func:`gated` puts a gate in front of every route: the gate admits the sender in one of the declared
roles before the endpoint runs, whether the endpoint asks who the sender is or not, and writes what
an operator does by it into the operators' log. A route without a declaration prevents the start.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.wire.errors import PeerError
from server.access.principals import PUBLIC, Role
from server.http.acts import Act, log_refused, serve_logged
from server.http.cookies import UNCHANGING, check_not_forged, check_own_page
from server.http.requests import PRINCIPAL, Endpoint, process_of, sender_of

AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who may make a call."""

    roles: tuple[Role, ...]
    """One of these; :data:`PUBLIC`: everyone, also without a token."""
    budget: Literal["requests", "posts"] = "requests"
    """What the requests of a user count against."""
    excludes_operators: bool = False
    """PROTOCOL section 2: paths of existing applications are "for users and keys, not for
    operators", who may have a user's token too."""
    act: Act | None = None
    """What an operator does by it. Every call that changes something, and is for operators, has
    one."""
    opens_session: bool = False
    """Opens or closes a session of a cookie, and changes nothing else."""


class UndeclaredRouteError(Exception):
    """A route does not declare who may call it."""


_ACCESS: dict[Any, Access] = {}


def declared(access: Access) -> Callable[[AnyEndpoint], AnyEndpoint]:
    """Declares who may call an endpoint."""

    def declare(endpoint: AnyEndpoint) -> AnyEndpoint:
        _ACCESS[endpoint] = access
        return endpoint

    return declare


class PublicMount(Mount):
    """Files for everyone."""


def access_of(route: BaseRoute) -> Access:
    """Who may call a route; raises :class:`UndeclaredRouteError`."""
    if isinstance(route, PublicMount):
        return Access(roles=PUBLIC)
    found = _ACCESS.get(route.endpoint) if isinstance(route, Route) else None
    if found is None:
        raise UndeclaredRouteError(f"{route} does not declare who may call it")
    assert isinstance(route, Route)
    changes = bool((route.methods or set()) - UNCHANGING)
    if changes and "ops" in found.roles and found.act is None and not found.opens_session:
        raise UndeclaredRouteError(f"{route} does not declare what an operator does by it")
    return found


def gated(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The routes, each with its gate; raises :class:`UndeclaredRouteError`."""
    return [_gated(route, access_of(route)) for route in routes]


def _gated(route: BaseRoute, access: Access) -> BaseRoute:
    if not access.roles:
        return route
    assert isinstance(route, Route)
    # A new one, because modules share the list that they declare.
    made = Route(route.path, route.endpoint, methods=list(route.methods or ()), name=route.name)
    made.app = Gate(route.app, access)
    return made


class Gate:
    """Admits the sender of a request, then lets the endpoint answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request (the interface of ASGI).

        Raises ``unauthenticated``, ``forbidden`` without one of the roles, ``csrf`` for a forged
        request, and ``rate_limited`` for a user over the rate.
        """
        request, access = Request(scope, receive), self.access
        sender = await sender_of(request)
        process = process_of(request)
        budget = process.posts if access.budget == "posts" else process.requests
        budget.check(sender)
        changes = scope["method"] not in UNCHANGING
        if changes and sender.via in ("cookie", "proxy"):
            if access.opens_session:
                check_own_page(request)
            else:
                check_not_forged(request, sender)
        if access.excludes_operators:
            sender.refuse_operator()
        try:
            principal = scope[PRINCIPAL] = sender.admitted(*access.roles)
        except PeerError as error:
            if changes and access.act is not None and sender.is_operator:
                await log_refused(request, access.act, sender, error)
            raise
        if changes and access.act is not None and principal.acts:
            await serve_logged(self.app, access.act, request, principal, send)
        else:
            await self.app(scope, receive, send)
