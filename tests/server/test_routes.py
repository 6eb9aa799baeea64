"""No route is served without a declaration of who may call it."""

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute

from server.hosting.app import create_app
from server.http.routes import Access, UndeclaredRouteError, declared
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import ask


async def test_a_route_without_a_declared_role_prevents_the_start(server: TestServer) -> None:
    async def forgotten(_: Request) -> Response:
        return Response()

    for route in (
        Route("/v1/forgotten", forgotten),
        Mount("/forgotten", app=Response()),
        WebSocketRoute("/v1/forgotten/ws", forgotten),
    ):
        with pytest.raises(UndeclaredRouteError, match="forgotten"):
            create_app(server.process, [route])


async def test_the_gate_keeps_out_whatever_the_endpoint_asks(start_server: StartServer) -> None:
    """An endpoint may forget to look who asks."""
    asked: list[str] = []

    @declared(Access(roles=("ops:read", "ops")))
    async def careless(request: Request) -> Response:
        asked.append(request.method)
        return Response()

    server = await start_server(routes=[Route("/careless", careless, methods=["GET"])])
    for bearer, status in ((None, 401), (API_KEY, 403), (server.token(), 403)):
        for method in ("GET", "HEAD"):
            response = await ask(server, method, "/careless", bearer)
            assert response.status_code == status
    assert asked == []
    assert (await ask(server, "GET", "/careless", server.token(scope="ops"))).status_code == 200
