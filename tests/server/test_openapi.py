"""The OpenAPI document is made from the routes and their docstrings."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.errors import ErrorCode
from server.access.principals import PUBLIC
from server.http.openapi import MEANINGS, Operation, described, openapi, operation_of
from server.http.problems import STATUS


def test_an_endpoint_that_says_nothing_is_not_in_the_document() -> None:
    async def silent(_: Request) -> Response:
        """Says nothing."""
        return Response()

    @described(Operation(tag="tests", roles=PUBLIC, answers={200: "text/plain"}))
    async def telling(_: Request) -> Response:
        """Tells what it does.

        In more words
        than fit one line.
        """
        return Response()

    routes = [Route("/silent", silent), Route("/telling", telling, methods=["POST"])]
    assert operation_of(routes[0]) is None
    paths = openapi(routes)["paths"]
    assert paths.keys() == {"/telling"}
    assert paths["/telling"]["post"]["summary"] == "Tells what it does"
    assert paths["/telling"]["post"]["description"] == "In more words than fit one line."


def test_every_error_that_a_peer_may_get_has_a_meaning() -> None:
    assert set(STATUS) == set(ErrorCode)
    described_statuses = set(MEANINGS)
    assert {STATUS[code] for code in ErrorCode} - described_statuses <= {402}
