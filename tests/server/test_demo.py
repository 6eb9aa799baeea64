"""The calls of the demonstration: for visitors, and for this machine."""

from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem


async def test_a_demonstration_is_for_visitors_alone(server: TestServer) -> None:
    for user_id in ("ann", "auth0|5f7c", "Visitor-1", "xvisitor-1", "visitor"):
        response = await ask(server, "POST", "/demo/token", None, json={"user_id": user_id})
        assert_problem(response, 403, "forbidden")
    for body in ({}, {"user_id": "visitor-1"}, {"user_id": None}):
        response = await ask(server, "POST", "/demo/token", None, json=body)
        assert response.json()["user_id"].startswith("visitor-")
    token = response.json()["token"]
    topped = await ask(server, "POST", "/demo/top-up", token, json={"amount": "1"})
    assert topped.status_code == 200


async def test_strangers_behind_a_proxy_get_nothing_unless_it_is_confirmed(
    start_server: StartServer,
) -> None:
    stranger = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    response = await ask(server, "POST", "/demo/token", None, headers=stranger, json={})
    assert_problem(response, 403, "forbidden")
    server = await start_server(development_confirmed=True)
    response = await ask(server, "POST", "/demo/token", None, headers=stranger, json={})
    assert response.status_code == 200
