"""What operators do by HTTP is in their log."""

import asyncio
from typing import Any

import pytest
from starlette.routing import Route

from server.hosting.app import create_app
from server.http import acts
from server.http.cookies import UNCHANGING
from server.http.idempotency import KEY_HEADER
from server.http.routes import access_of
from storage.postgres.records import UnavailableError
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import ask, assert_problem, balance, grant
from tests.server.operators import REASON, OperatorPage, add_operator, logged

GRANTS = "/v1/accounts/ann/grants?org=acme"


def operator(server: TestServer, scope: str = "ops") -> str:
    return server.token("olga", scope=scope)


async def test_each_way_to_act_is_in_the_log(server: TestServer) -> None:
    bearer = operator(server)
    ann = await server.login("ann", org="acme")
    await ann.ask("start", kind="chat", session_id="chat-1")
    keyed = {"Idempotency-Key": "k1"}
    calls: list[tuple[str, str, dict[str, Any] | None]] = [
        ("PUT", "/v1/orgs/acme", {"tier": "free", "reason": REASON}),
        ("PUT", "/v1/orgs/acme/members/ann", {"monthly_hours_limit": 5, "reason": REASON}),
        ("POST", GRANTS, {"amount": "2", "reason": REASON}),
        ("POST", "/v1/orgs/acme/members/ann/adjustments", {"minutes": 3, "reason": REASON}),
        ("PUT", "/v1/calls/c1?org=acme&provider=stream", {"reason": REASON}),
        ("POST", "/v1/sessions/chat-1/stop?org=acme", {"reason": REASON}),
    ]
    ids = []
    for method, path, body in calls:
        response = await ask(server, method, path, bearer, headers=keyed, json=body)
        assert response.status_code in (200, 201), response.text
        ids.append(response.headers["x-request-id"])
    rows = await logged(server)
    assert [(row.action, row.target) for row in rows] == [
        ("limits", "organization:acme"),
        ("limits", "member:acme/ann"),
        ("credit", "account:ann"),
        ("adjust", "member:acme/ann"),
        ("map_call", "call:c1"),
        ("end", "session:chat-1"),
    ]
    assert {(row.actor, row.via, row.reason, row.outcome) for row in rows} == {
        ("olga", "token", REASON, "done")
    }
    assert {row.tenant for row in rows} == {"org:acme"}
    assert [row.request_id for row in rows] == ids
    credit, end = rows[2], rows[5]
    assert (credit.before["credits"], credit.after["credits"]) == ("0", "2")
    assert (end.before["state"], end.after["reason"]) == ("active", "operator")
    assert rows[1].before is None
    assert rows[3].before["minutes_used"] + 3 == rows[3].after["minutes_used"]


async def test_others_are_not_in_the_log(server: TestServer) -> None:
    assert (await grant(server, "1", "k1")).status_code == 201
    ann = server.token("ann", org="acme")
    await ask(server, "POST", "/v1/sessions/s1/stop", ann)
    assert_problem(await grant(server, "1", "k1", GRANTS, ann), 403, "forbidden")
    await ask(server, "GET", "/v1/accounts/ann?org=acme", operator(server))
    assert await logged(server) == []


async def test_what_is_refused_and_what_fails_is_in_the_log(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = operator(server, "ops:read")
    assert_problem(await grant(server, "1", "k1", GRANTS, reader), 403, "forbidden")
    bearer = operator(server)
    keyed = {"Idempotency-Key": "k2"}
    wrong = await ask(server, "POST", GRANTS, bearer, headers=keyed, json={"amount": "-1"})
    assert_problem(wrong, 400, "bad_message")
    assert_problem(await ask(server, "POST", "/v1/sessions/s9/stop?org=acme", bearer), 404,
                   "unknown_session")  # fmt: skip

    async def away(*_: Any, **__: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(server.process.ledger, "enter", away)
    assert_problem(await grant(server, "1", "k3", GRANTS, bearer), 503, "unavailable")
    rows = [(row.action, row.outcome, row.code) for row in await logged(server)]
    assert rows == [
        ("credit", "refused", "forbidden"),
        ("credit", "refused", "bad_message"),
        ("end", "refused", "unknown_session"),
        ("credit", "failed", "unavailable"),
    ]


async def test_a_person_says_why(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        for reason in (None, "", "why", "    x     ", 12345, ["because of"]):
            body = {"tier": "free", "reason": reason}
            response = await browser.ask("PUT", "/v1/orgs/acme", json=body)
            assert "reason" in assert_problem(response, 400, "bad_message")["detail"]
        assert (await ask(server, "GET", "/v1/orgs/acme")).status_code == 404
        response = await browser.ask("POST", "/v1/sessions/s1/stop?org=acme")
        assert "reason" in assert_problem(response, 400, "bad_message")["detail"]
        body = {"tier": "free", "reason": REASON}
        assert (await browser.ask("PUT", "/v1/orgs/acme", json=body)).status_code == 200
        assert {row.outcome for row in await logged(server)} == {"refused", "done"}


async def test_an_attempt_after_a_crash_finds_its_row(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process dies between effect and outcome."""
    bearer, real = operator(server), acts._Answer.collect

    async def killed(*_: Any) -> None:
        raise asyncio.CancelledError

    # Here the effect is there, and neither the outcome nor the answer.
    monkeypatch.setattr(acts._Answer, "collect", killed)
    assert (await grant(server, "5", "k1", GRANTS, bearer)).status_code == 500
    (row,) = await logged(server)
    assert row.outcome == "begun"
    monkeypatch.setattr(acts._Answer, "collect", real)
    for _ in range(2):
        assert (await grant(server, "5", "k1", GRANTS, bearer)).status_code == 201
    (row,) = await logged(server)
    assert row.outcome == "done"
    assert await balance(server, "/v1/accounts/ann?org=acme") == "5"
    # The same key for something else is another intent, and is refused.
    assert_problem(await grant(server, "6", "k1", GRANTS, bearer), 422, "idempotency_mismatch")
    assert [row.outcome for row in await logged(server)] == ["done", "refused"]


async def test_a_repeated_attempt_that_fails_leaves_what_is_done(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer, records = operator(server), server.process.records
    assert (await grant(server, "5", "k1", GRANTS, bearer)).status_code == 201

    async def away(*_: Any) -> None:
        raise UnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(records, "begin_idempotent", away)
        assert_problem(await grant(server, "5", "k1", GRANTS, bearer), 503, "unavailable")
    (row,) = await logged(server)
    assert (row.outcome, row.code, row.after["credits"]) == ("done", None, "5")
    # The same amount in other digits is the same act.
    assert (await grant(server, "5.00", "k1", GRANTS, bearer)).status_code == 201
    assert [row.outcome for row in await logged(server)] == ["done"]


async def test_a_call_that_does_a_repeated_request_again_logs_it_again(server: TestServer) -> None:
    """A key that the call ignores hides nothing in the log."""
    bearer, keyed = operator(server), {"Idempotency-Key": "k1"}

    async def put(hours: int) -> None:
        body = {"monthly_hours_limit": hours, "reason": REASON}
        response = await ask(server, "PUT", "/v1/orgs/acme", bearer, headers=keyed, json=body)
        assert response.status_code == 200, response.text

    for hours in (5, 9, 5):
        await put(hours)
    rows = await logged(server)
    assert [row.after["monthly_hours_limit"] for row in rows] == [5, 9, 5]
    assert [row.before["monthly_hours_limit"] for row in rows[1:]] == [5, 9]


async def test_the_acts_that_take_a_key_are_one_action_for_one_key(server: TestServer) -> None:
    paths = (await ask(server, "GET", "/openapi.json", None)).json()["paths"]
    takers = set()
    for route in create_app(server.process).routes:
        if isinstance(route, Route) and access_of(route).act is not None:
            act = access_of(route).act
            for method in (route.methods or set()) - UNCHANGING:
                declared = paths[route.path][method.lower()].get("parameters", [])
                takes_key = any(one["name"] == KEY_HEADER for one in declared)
                assert act is not None
                assert act.is_keyed == takes_key, route.path
                takers |= {route.path} if takes_key else set()
    assert takers


async def test_nothing_is_done_that_cannot_be_logged(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(server.app.state.operators_log.records, "begin_action", away)
    response = await grant(server, "5", "k1", GRANTS, operator(server))
    assert_problem(response, 503, "unavailable")
    reader = operator(server, "ops:read")
    assert_problem(await grant(server, "5", "k1", GRANTS, reader), 403, "forbidden")
    assert await balance(server, "/v1/accounts/ann?org=acme") == "0"


async def test_an_outcome_that_cannot_be_logged_changes_no_answer(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(server.app.state.operators_log.records, "finish_action", away)
    assert (await grant(server, "5", "k1", GRANTS, operator(server))).status_code == 201
    (row,) = await logged(server)
    assert row.outcome == "begun"


async def test_an_operator_and_a_user_of_one_name_have_keys_of_their_own(
    start_server: StartServer,
) -> None:
    server = await start_server()
    await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        assert (await browser.credit("k1")).status_code == 201
        assert (await browser.credit("k1")).headers["idempotent-replayed"] == "true"
        mine = await grant(server, "1", "k1", GRANTS, operator(server))
        assert "idempotent-replayed" not in mine.headers
    assert await balance(server, "/v1/accounts/ann?org=acme") == "2"
    assert (await ask(server, "GET", "/healthz", API_KEY)).headers["x-request-id"]
