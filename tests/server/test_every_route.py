"""Every route, called by everybody without the right to it, reveals nothing.

The routes are the application's own, so none can be forgotten: a route without an example here
fails. The examples concern what belongs to ann of acme. Her data contains unique marks that no
request below contains: an answer that shows one of them has leaked. Afterwards all that is hers is
unchanged.
"""

from typing import Any, NamedTuple

import httpx
import pytest
from starlette.routing import Mount, Route

from server import limits as server_limits
from server.access import limits as access_limits
from server.access.tokens import mint_token
from server.hosting.app import create_app
from server.http.openapi import operation_of
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.fixtures.stream_client import StreamClient, StreamRefusedError
from tests.server.api import ask, assert_problem
from tests.server.route_examples import (
    CALL,
    CHAT,
    EXAMPLES,
    KEY,
    MARKS,
    OWN,
    READERS,
    ROLES,
    STUDY,
)


class RouteTargets(NamedTuple):
    """A server on which ann has data, and all the callers."""

    server: TestServer
    holds: dict[str, str]

    def rightful(self, role: str) -> str:
        """The bearer of ann, her backend, her administrator, or an operator."""
        token = self.server.token
        return {
            "user": token("ann", org="acme"),
            "key": API_KEY,
            "org:read": token("adam", org="acme", scope="org:read"),
            "ops:read": token("rita", org="acme", scope="ops:read"),
            "ops": token("olga", org="acme", scope="ops"),
        }[role]

    def strangers(self) -> dict[str, str]:
        """Good tokens of users who are not ann of acme."""
        token = self.server.token
        return {
            "a member of the same organisation": token("ben", org="acme"),
            "a namesake in another organisation": token("ann", org="other"),
            "a namesake without an organisation": token("ann"),
            "somebody else": token("eve", org="other", account="eve", sessions=[CHAT]),
            "an administrator of another organisation": token("ann", org="other", scope="org:read"),
            "an administrator without an organisation": token("ann", scope="org:read"),
            "a bearer of unknown scopes": token(
                "eve", org="other", scope="ops:write ops.read OPS org:ops read admin"
            ),
        }

    async def call(
        self, name: str, bearer: str | None, *, named: bool = True, key: str = "another key"
    ) -> httpx.Response:
        """Makes an example's call, with or without the name of its user."""
        method, example = name.partition(" ")[0], EXAMPLES[name]
        path = example.path.format(**self.holds)
        body = dict(example.body) if example.body is not None else None
        if body and "minute_timestamp" in body:
            body["minute_timestamp"] = self.server.process.clock.now()
        if not named:
            path = path.partition("?")[0]
        method = "GET" if method == "MOUNT" else method
        headers = {"Idempotency-Key": key}
        if name == "GET /v1/stream":
            return await beginning(self.server, bearer)
        return await ask(self.server, method, path, bearer, headers=headers, json=body)

    async def empty(self, name: str, bearer: str) -> httpx.Response:
        """Makes the call of an example without its body."""
        method, path = name.partition(" ")[0], EXAMPLES[name].path.format(**self.holds)
        return await ask(self.server, method, path, bearer, headers={"Idempotency-Key": "empty"})

    async def possessions(self) -> list[Any]:
        """All that ann has, as her backend sees it.

        What changes with time is left out.
        """
        await self.server.flush()  # what is recorded later is no change
        found = []
        for name, example in EXAMPLES.items():
            if name in ("GET /v1/orgs/{id}", "GET /v1/calls"):
                continue  # what all members use together, and all users' calls, are not hers alone
            if name == "GET /api/study-sessions/active-calls":
                continue  # its figures run
            if name.startswith("GET ") and "key" in example.who:
                answer = (await self.call(name, API_KEY)).json()
                for session in answer["items"] if name == "GET /v1/sessions" else ():
                    session.pop("elapsed_ms")
                for changing in ("server_time_at", "elapsed_ms", "duration", "projection"):
                    answer.pop(changing, None)
                for changing in ("projections", "free_remaining_ms", "freeTimeRemaining"):
                    answer.pop(changing, None)
                found.append((name, answer))
        return found


async def beginning(server: TestServer, bearer: str | None) -> httpx.Response:
    """The answer of an event stream, with its first message."""
    client = StreamClient(server.url)
    try:
        await client.open(bearer)
        return httpx.Response(200, json=await client.receive())
    except StreamRefusedError as refused:
        return refused.response
    finally:
        await client.close()


@pytest.fixture
async def scene(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> RouteTargets:
    """Ann's possessions: credits, chat, two holds, minutes of a recording, limit."""
    monkeypatch.setattr(server_limits, "AUTH_FAILURES_PER_ADDRESS_PER_MINUTE", 10**9)
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10**9)
    monkeypatch.setattr(access_limits, "LOGIN_TRIES_MAX", 10**9)
    monkeypatch.setattr(access_limits, "LOGIN_CHECK_MS", 0)
    server = await start_server()
    ann = server.token("ann", org="acme")

    async def made(method: str, path: str, bearer: str = API_KEY, **body: Any) -> Any:
        headers = {"Idempotency-Key": f"{KEY} {body.get('metadata', '')}".strip()}
        response = await ask(server, method, path, bearer, headers=headers, json=body)
        assert response.status_code in (200, 201), response.text
        return response.json()

    await made("PUT", "/v1/orgs/acme", tier="free")
    await made("PUT", "/v1/orgs/acme/members/ann", monthly_hours_limit=4242.5)
    await made("POST", f"/v1/accounts/ann/grants{OWN}", amount="77.125", reason="ann's secret")
    holds = {}
    for name in ("hold", "second"):
        held = await made(
            "POST",
            f"/v1/accounts/ann/holds{OWN}",
            amount="0.125",
            ttl_ms=3_600_000,
            metadata={"for": f"ann's secret {name}"},
        )
        holds[name] = held["hold_id"]
    # A chat that costs nothing, or its price would change what she has.
    await made("POST", "/v1/sessions?org=acme", session_id=CHAT, kind="chat", user_id="ann",
               counterpart_id="ann.s-advisor", credits_per_minute="0")  # fmt: skip
    await made("POST", f"/v1/sessions/{CHAT}/heartbeat", ann, kind="chat")
    await made(
        "POST", "/api/usage/track-minute", ann, session_id="rec-1", seconds_recorded=42,
        minute_timestamp=server.process.clock.now() - 300_000,
    )  # fmt: skip
    await made("PUT", f"{CALL}&org=acme", participants={"p1": {"user_id": "ann"}})
    began = {"userId": "ann", "callId": STUDY, "action": "start"}
    await made("POST", "/api/study-sessions/stream-duration", ann, **began)
    ended = {**began, "action": "end"}
    await made("POST", "/api/study-sessions/stream-duration", ann, **ended)
    stream = await server.stream(ann)
    return RouteTargets(server, {**holds, "stream": stream.id})


def routes(server: TestServer) -> dict[str, Route | Mount]:
    """Every route of the application, by its method and path."""
    found: dict[str, Route | Mount] = {}
    for route in create_app(server.process).routes:
        if isinstance(route, Mount):
            found[f"MOUNT {route.path}"] = route
            continue
        assert isinstance(route, Route), route
        for method in (route.methods or set()) - {"HEAD"}:
            assert f"{method} {route.path}" not in found
            found[f"{method} {route.path}"] = route
    return found


def assert_no_leak(name: str, who: str, response: httpx.Response) -> None:
    """Checks that an answer bears none of ann's marks.

    It must be no fault of ours either.
    """
    assert response.status_code < 500, (name, who, response.text)
    for mark in MARKS:
        assert mark not in response.text, (name, who, response.text)


async def test_every_route_has_an_example_that_says_who_may(scene: RouteTargets) -> None:
    found = routes(scene.server)
    assert found.keys() == EXAMPLES.keys()
    for name, route in found.items():
        operation = operation_of(route) if isinstance(route, Route) else None
        if operation is not None:
            assert set(operation.roles) == set(EXAMPLES[name].who), name


async def test_without_a_good_token_nobody_gets_in(scene: RouteTargets) -> None:
    server = scene.server
    settings = server.process.settings
    forged = scene.rightful("user").rpartition(".")[0] + ".c2lnbmVkIGJ5IG5vYm9keQ"
    past_ms = server.process.clock.now() - 7_200_000
    expired = {
        role: mint_token(settings, sub, org="acme", scope=scope, ttl_seconds=60, now_ms=past_ms)
        for role, sub, scope in (
            ("user", "ann", None),
            ("administrator", "adam", "org:read"),
            ("reader", "rita", "ops:read"),
            ("operator", "olga", "ops"),
        )
    }
    before = await scene.possessions()
    for name, example in EXAMPLES.items():
        bearers: dict[str, str | None] = {"nobody": None, "a forger": forged, "a wrong key": "k"}
        bearers |= {f"an expired {role}": token for role, token in expired.items()}
        for who, bearer in bearers.items():
            response = await scene.call(name, bearer)
            if example.who:
                assert_problem(response, 401, "unauthenticated")
            else:
                assert response.status_code == example.status, (name, who, response.text)
            assert_no_leak(name, who, response)
    assert await scene.possessions() == before


async def test_who_may_not_is_refused_whatever_else_they_may(scene: RouteTargets) -> None:
    before = await scene.possessions()
    for name, example in EXAMPLES.items():
        # An operator also has a user's token, and may do with their own data what users may. The
        # paths of existing applications are not for operators.
        may = {*example.who}
        if "user" in example.who:
            may |= {"org:read"} if example.path.startswith("/api/") else {"org:read", *READERS}
        for role in ROLES:
            if example.who and role not in may:
                for named in (True, False):
                    response = await scene.call(name, scene.rightful(role), named=named)
                    assert_problem(response, 403, "forbidden")
                    assert_no_leak(name, role, response)
    assert await scene.possessions() == before


async def test_a_users_token_reaches_nothing_of_another_user(scene: RouteTargets) -> None:
    before = await scene.possessions()
    for name, example in EXAMPLES.items():
        for who, bearer in scene.strangers().items():
            if "/ops/" in name and who == "an administrator of another organisation":
                continue  # an administrator's own session
            for named in (True, False):
                for key in (KEY, f"a key of {who}"):
                    response = await scene.call(name, bearer, named=named, key=key)
                    assert_no_leak(name, who, response)
                    if not example.who:
                        continue
                    if "user" not in example.who:
                        assert_problem(response, 403, "forbidden")
                    elif named and "?" in example.path:
                        # The named user is another one.
                        assert response.status_code in (403, 404), (name, who, response.text)
    assert await scene.possessions() == before


@pytest.mark.parametrize("role", ["org:read", "ops:read"])
async def test_who_may_only_read_changes_nothing_of_others(scene: RouteTargets, role: str) -> None:
    """Neither as a reader, nor as the user whom a token names."""
    before = await scene.possessions()
    for name, example in EXAMPLES.items():
        if name.startswith(("GET ", "MOUNT ")) or not example.who or role in example.who:
            continue
        for named in (True, False):
            response = await scene.call(name, scene.rightful(role), named=named)
            assert_no_leak(name, role, response)
            if "user" not in example.who:
                assert_problem(response, 403, "forbidden")
            elif named and "?" in example.path:
                assert response.status_code in (403, 404), (name, response.text)
    assert await scene.possessions() == before


async def test_an_administrator_reads_only_members_and_sessions(scene: RouteTargets) -> None:
    await scene.server.flush()
    bearer = scene.rightful("org:read")
    for name, example in EXAMPLES.items():
        if "org:read" in example.who:
            response = await scene.call(name, bearer)
            assert response.status_code == example.status, (name, response.text)
        elif name.startswith("GET ") and example.who and "?" in example.path:
            assert_no_leak(name, "administrator", await scene.call(name, bearer))
    # All of the organisation's, without accounts and metadata; and of no other.
    listed = (await ask(scene.server, "GET", "/v1/sessions", bearer)).json()["items"]
    assert {one["user_id"] for one in listed} == {"ann"}
    assert not any({"account_id", "metadata"} & one.keys() for one in listed)
    mine = (await ask(scene.server, "GET", "/v1/sessions?user=ben", bearer)).json()["items"]
    assert mine == []
    for path in ("/v1/sessions?org=other", "/v1/orgs/other", "/v1/orgs/other/members/ann"):
        assert_problem(await ask(scene.server, "GET", path, bearer), 403, "forbidden")


async def test_an_operator_who_may_look_may_not_spend(scene: RouteTargets) -> None:
    before = await scene.possessions()
    operator = scene.rightful("ops")
    for name in (
        "POST /v1/accounts/{id}/spend",
        "POST /v1/accounts/{id}/can-perform",
        "POST /v1/sessions/{id}/heartbeat",
        "POST /api/time-tracking/{chat_id}/heartbeat",
    ):
        for named in (True, False):
            response = await scene.call(name, operator, named=named)
            assert_no_leak(name, "ops", response)
            assert response.status_code != 201, (name, response.text)
    assert await scene.possessions() == before


async def test_paths_of_existing_applications_are_not_for_operators(scene: RouteTargets) -> None:
    """Neither for themselves, nor for a user they name."""
    before = await scene.possessions()
    names = [name for name, example in EXAMPLES.items() if " /api/" in name and example.who]
    assert len(names) >= 7
    for name in names:
        for operator in (
            scene.rightful("ops"),
            scene.rightful("ops:read"),
            scene.server.token("ann", org="acme", scope="ops"),
            scene.server.token("ann", org="acme", scope="ops:read"),
        ):
            for named in (True, False):
                response = await scene.call(name, operator, named=named)
                assert_problem(response, 403, "forbidden")
    assert await scene.possessions() == before


async def test_who_may_gets_what_is_there(scene: RouteTargets) -> None:
    """A permitted role gets what is there.

    Otherwise a refusal above might come from an example that is merely wrong.
    """
    await scene.server.flush()  # a list shows what is recorded
    reading_first = sorted(EXAMPLES, key=lambda name: not name.startswith("GET"))
    for name in reading_first:
        example = EXAMPLES[name]
        for role in example.who or ("user",):
            response = await scene.call(name, scene.rightful(role), key=f"a key of {role}")
            assert response.status_code == example.status, (name, role, response.text)
            if example.shows:
                assert any(mark in response.text for mark in MARKS), (name, response.text)


async def test_empty_body_changes_nothing(scene: RouteTargets) -> None:
    """Unless the document says that the body may be left out."""
    before = await scene.possessions()
    paths = (await ask(scene.server, "GET", "/openapi.json", None)).json()["paths"]
    optional = set()
    for name, example in EXAMPLES.items():
        method, _, path = name.partition(" ")
        body = paths.get(path, {}).get(method.lower(), {}).get("requestBody")
        if body is None:
            continue
        if not body["required"]:
            optional.add(name)
            continue
        for role in example.who:
            response = await scene.empty(name, scene.rightful(role))
            assert "empty" in assert_problem(response, 400, "bad_message")["detail"], name
    assert optional == {
        "POST /v1/sessions/{id}/heartbeat",
        "POST /api/time-tracking/{chat_id}/heartbeat",
    }
    assert await scene.possessions() == before


async def test_what_is_for_trying_is_not_there_in_production(server: TestServer) -> None:
    assert any("/demo/" in name for name in routes(server))
    settings = server.process.settings
    server.process.settings = settings.model_copy(update={"env": "production"})
    assert not any("/demo/" in name for name in routes(server))


@pytest.mark.parametrize("type_", ["start", "pause", "resume", "stop", "leave", "watch"])
async def test_a_socket_reaches_no_session_of_another_user(scene: RouteTargets, type_: str) -> None:
    before = await scene.possessions()
    for who, bearer in scene.strangers().items():
        client = await scene.server.connect()
        assert (await client.ask("auth", token=bearer))["type"] == "welcome"
        fields = {"kind": "chat", "metadata": {}} if type_ == "start" else {}
        heard = await client.ask(type_, session_id=CHAT, **fields)
        if type_ == "start" and "organisation" in who and "same" not in who:
            # Another tenant's sessions have names of their own.
            assert heard["type"] == "session"
            assert heard["credits"] == "0"
        else:
            assert heard["type"] == "error", (who, heard)
        assert_no_leak(type_, who, httpx.Response(200, json=heard))
    assert await scene.possessions() == before


@pytest.mark.parametrize("role", ["org:read", "ops:read", "ops"])
async def test_on_a_socket_a_role_only_watches_what_it_reaches(
    scene: RouteTargets, role: str
) -> None:
    before = await scene.possessions()

    client = await scene.server.login("zoe", org="other", scope=role)
    for type_ in ("pause", "resume", "stop", "leave"):
        assert (await client.ask(type_, session_id=CHAT))["type"] == "error"
    heard = await client.ask("watch", session_id=CHAT, org="acme")
    if role != "ops":
        assert (heard["type"], heard["code"]) == ("error", "forbidden")
        assert_no_leak("watch", role, httpx.Response(200, json=heard))
    else:
        assert heard["type"] == "session"
        for type_ in ("pause", "resume", "stop"):
            refused = await client.ask(type_, session_id=CHAT)
            assert (refused["type"], refused["code"]) == ("error", "forbidden")
    assert await scene.possessions() == before
