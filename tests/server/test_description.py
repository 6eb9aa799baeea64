"""Both served descriptions are valid, complete, and true of real answers."""

from collections.abc import Iterator
from typing import Any

import orjson
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from starlette.applications import Starlette
from starlette.routing import Route

from protocol.wire.messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
)
from protocol.wire.stream_events import STREAM_TYPES
from server.hosting.app import create_app
from server.http.asyncapi import asyncapi
from server.http.openapi import openapi
from tests.fixtures.server import TestServer
from tests.server.api import ask, grant

STREAMED = {
    ("/v1/stream", "200"): "text/event-stream",
    ("/v1/stream/{id}", "202"): "",
    ("/v1/ops/logout", "204"): "",
}
"""Media types of answers that are no documents."""
DEVELOPMENT = {"/demo/token", "/demo/top-up"}
"""Routes that only the demonstration page uses; they are no public interface."""


def routes_of(app: Starlette) -> dict[str, set[str]]:
    """Paths with their methods, as they are routed."""
    found: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route) and route.path not in DEVELOPMENT:
            found.setdefault(route.path, set()).update((route.methods or set()) - {"HEAD"})
    return found


async def document(server: TestServer, path: str) -> dict[str, Any]:
    response = await ask(server, "GET", path, None)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "$ref":
                yield part
            else:
                yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = document
    for part in reference[2:].split("/"):
        found = found[part]
    return found


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """The value matches the schema, and has no unknown field."""
    # AsyncAPI's schemas are a superset of draft 7, OpenAPI's of 2020-12.
    validator = Draft7Validator if "asyncapi" in document else OAS31Validator
    validator({**schema, "components": document["components"]}).validate(value)
    target = resolve(document, schema["$ref"]) if "$ref" in schema else schema
    if "properties" in target:
        assert value.keys() <= target["properties"].keys()


# --- OpenAPI -----------------------------------------------------------------------


async def test_the_http_description_is_valid(server: TestServer) -> None:
    validate(await document(server, "/openapi.json"))
    assert (await document(server, "/openapi.json"))["openapi"] == "3.1.0"


async def test_routes_and_described_paths_are_the_same(
    server: TestServer,
) -> None:
    app = create_app(server.process)
    described_paths = {
        path: {method.upper() for method in operations}
        for path, operations in openapi(app.routes)["paths"].items()
    }
    assert described_paths == routes_of(app)
    for path in ("/healthz", "/openapi.json", "/v1/sessions/{id}/stop"):
        assert path in described_paths


SIGNED = ("/api/webhooks/stream-call-events", "/v1/calls/events/{provider}", "/v1/ops/login")
"""Calls with something else than a bearer: a provider's signature, a password."""


async def test_every_call_says_who_may_and_what_may_go_wrong(server: TestServer) -> None:
    described_document = await document(server, "/openapi.json")
    for path, operations in described_document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["operationId"]
            responses = operation["responses"]
            assert any(status < "300" for status in responses), path
            if not path.startswith(("/v1/", "/api/")) or path in SIGNED:
                assert operation["security"] == []
                continue
            assert operation["security"]
            assert {"400", "401", "403", "429", "503"} <= responses.keys()
            for status, response in responses.items():
                kind = "text/csv" if path.endswith(".csv") else "application/json"
                kind = "application/problem+json" if status >= "400" else kind
                kind = STREAMED.get((path, status), kind)
                assert "".join(response.get("content", {})) == kind, (path, status)


async def test_a_grant_is_described_with_its_key(server: TestServer) -> None:
    described_document = await document(server, "/openapi.json")
    operation = described_document["paths"]["/v1/accounts/{id}/grants"]["post"]
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert parameters["Idempotency-Key"]["required"] is True
    assert parameters["id"]["in"] == "path"
    assert operation["security"] == [{"key": []}, {"ops": []}]
    assert "`idempotency_mismatch`" in operation["responses"]["422"]["description"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    wanted = resolve(described_document, body["$ref"])
    assert {"amount", "package", "reason"} < set(wanted["properties"])
    assert wanted["properties"]["priority"]["default"] == 100


async def test_real_answers_are_what_is_described(server: TestServer) -> None:
    described_document = await document(server, "/openapi.json")
    await grant(server, "5", "k1", "/v1/accounts/ann/grants?org=acme")
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="s1")
    await client.ask("start", kind="recording", session_id="s2")
    calls: list[tuple[str, str, str, int]] = [
        ("GET", "/v1/accounts/{id}", "/v1/accounts/ann?org=acme", 200),
        ("GET", "/v1/accounts/{id}/ledger", "/v1/accounts/ann/ledger?org=acme", 200),
        ("POST", "/v1/accounts/{id}/grants", "/v1/accounts/ann/grants?org=acme", 201),
        ("POST", "/v1/accounts/{id}/grants", "/v1/accounts/ann/grants?org=a/b", 400),
        ("PUT", "/v1/orgs/{id}", "/v1/orgs/acme", 200),
        ("GET", "/v1/orgs/{id}", "/v1/orgs/acme", 200),
        ("GET", "/v1/orgs/{id}", "/v1/orgs/other", 404),
        ("PUT", "/v1/orgs/{id}/members/{user}", "/v1/orgs/acme/members/ann", 200),
        ("GET", "/v1/orgs/{id}/members/{user}", "/v1/orgs/acme/members/ann", 200),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/s1?org=acme", 200),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/s2?org=acme", 200),
        ("GET", "/v1/sessions/{id}/minutes", "/v1/sessions/s2/minutes?org=acme", 200),
        ("POST", "/v1/sessions/{id}/stop", "/v1/sessions/s1/stop?org=acme", 200),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/s1?org=acme", 200),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/s3?org=acme", 404),
    ]
    for method, path, url, status in calls:
        body = {"amount": "1", "reason": "bought"} if method == "POST" else {}
        headers = {"Idempotency-Key": "k2"}
        response = await ask(server, method, url, headers=headers, json=body)
        assert response.status_code == status, (method, url, response.text)
        operation = described_document["paths"][path][method.lower()]
        (content,) = operation["responses"][str(status)]["content"].items()
        media_type, described_content = content
        assert response.headers["content-type"] == media_type
        check(described_document, described_content["schema"], response.json())


# --- AsyncAPI ----------------------------------------------------------------------


async def test_the_sockets_description_is_whole(server: TestServer) -> None:
    described_document = await document(server, "/asyncapi.json")
    assert described_document == orjson.loads(orjson.dumps(asyncapi()))
    assert described_document["asyncapi"] == "3.0.0"
    assert described_document.keys() == {
        "asyncapi",
        "info",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    for reference in references(described_document):
        assert resolve(described_document, reference) is not None
    channel = described_document["channels"]["socket"]
    assert channel["address"] == "/v1/ws"
    tags = {str(m.__struct_config__.tag) for m in (*CLIENT_MESSAGES, *SERVER_MESSAGES)}
    assert channel["messages"].keys() == tags
    stream_tags = {f"stream_{m.__struct_config__.tag}" for m in STREAM_TYPES}
    stream = described_document["channels"]["stream"]
    assert stream["address"] == "/v1/stream"
    assert stream["messages"].keys() == tags | stream_tags
    assert described_document["components"]["messages"].keys() == tags | stream_tags
