"""The OpenAPI 3.1 document of the HTTP API, generated from code.

Its sources are the application's routes, the description of each endpoint (:func:`described`, and
its docstring) and the types that the endpoint reads and answers. No fact is written twice, so the
document stays correct.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.routing import BaseRoute, Route

from protocol import limits
from protocol.wire.fields import ID_PATTERN, describe
from server import limits as server_limits
from server.access.principals import Role
from server.http.acts import Act
from server.http.idempotency import KEY_HEADER, REPLAYED_HEADER
from server.http.requests import Endpoint, may_be_empty
from server.http.routes import Access, AnyEndpoint, declared
from server.ops import limits as ops_limits
from storage import limits as storage_limits

VERSION = "1"
"""Version of the interface, as in the paths and in the subprotocol."""
TITLE = "Taximeter"
LICENSE = {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
REFERENCE = "#/components/schemas/{name}"


class ProblemDocument(msgspec.Struct, frozen=True):
    """An error (RFC 9457). Some codes have further members, which are optional."""

    type: Annotated[str, describe("Always `about:blank`: `code` says which error it is.")]
    title: Annotated[str, describe("What the status means.")]
    status: Annotated[int, describe("The status of the response.")]
    code: Annotated[str, describe("Which error it is, for programs; it stays the same.")]
    detail: Annotated[str, describe("The cause, for readers of the log.")]
    limit: (
        Annotated[str | int, describe("Which limit forbids it, or how often a month may be.")]
        | UnsetType
    ) = UNSET
    used: Annotated[int, describe("How often the operation was done this month.")] | UnsetType = (
        UNSET
    )
    resets_at: Annotated[int, describe("When the next month begins.")] | UnsetType = UNSET
    operation: Annotated[str, describe("The operation that was limited.")] | UnsetType = UNSET
    cost: Annotated[str, describe("What it would have cost.")] | UnsetType = UNSET
    missing: Annotated[str, describe("The credits that are missing.")] | UnsetType = UNSET
    credits: Annotated[str, describe("The credits that are there.")] | UnsetType = UNSET
    amount: Annotated[str, describe("The credits that are held.")] | UnsetType = UNSET
    state: Annotated[str, describe("The state of the hold.")] | UnsetType = UNSET
    token: Annotated[str, describe("The part of a filter that is wrong.")] | UnsetType = UNSET
    at: Annotated[int, describe("Its first character's index in the filter.")] | UnsetType = UNSET


ID_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": ID_PATTERN,
    "minLength": 1,
    "maxLength": limits.ID_CHARACTERS_MAX,
}


def query_parameter(
    name: str, description: str, schema: dict[str, Any] = ID_SCHEMA
) -> dict[str, Any]:
    """Describes an optional parameter of the query: by default an id."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


ORG = query_parameter(
    "org",
    "The organisation. A user's token says its own; a backend or an operator "
    "names it here, or leaves it out for a user without one.",
)
USER = query_parameter(
    "user", "The user without an organisation that a backend or an operator means."
)
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": KEY_HEADER,
    "in": "header",
    "required": True,
    "description": "A new key for each intent, the same key for each attempt: the same key and "
    f"body give the stored answer again, with `{REPLAYED_HEADER}: true`.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": server_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX,
    },
}
INSTANT: dict[str, Any] = {
    "type": "integer",
    "minimum": 0,
    "maximum": server_limits.INSTANT_AT_MAX,
}
"""The schema of an instant in the query, as ``requests.query_instant`` reads it."""
CURSOR = query_parameter("cursor", "`next_cursor` of the page before; opaque.", {"type": "string"})
LIMIT = query_parameter(
    "limit",
    "Entries of a page.",
    {
        "type": "integer",
        "minimum": 1,
        "maximum": storage_limits.PAGE_ROWS_MAX,
        "default": server_limits.PAGE_ROWS_DEFAULT,
    },
)

ROLES: dict[Role, dict[str, Any]] = {
    "user": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's token; it reaches that user's data alone.",
    },
    "key": {"type": "http", "scheme": "bearer", "description": "An API key of a backend."},
    "org:read": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token with the scope `org:read`: an organisation's administrator's. It "
        "reads that organisation's data alone.",
    },
    "ops:read": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token with the scope `ops:read`: an operator's who reads only.",
    },
    "ops": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token with the scope `ops`: an operator's.",
    },
}
COMMON_ERRORS: dict[int, tuple[str, ...]] = {
    400: ("bad_message",),
    401: ("unauthenticated",),
    403: ("forbidden",),
    429: ("rate_limited",),
    503: ("unavailable",),
}
"""The errors that every call under ``/v1`` may answer."""
MEANINGS = {
    400: "The request is malformed; `detail` names the field.",
    401: "The token is missing, invalid, or expired.",
    402: "Credits or another need of the call are missing; the document says what.",
    403: "The call is not for this token.",
    404: "The object does not exist, or belongs to another user.",
    409: "The same request is in progress, or the object's state forbids the call.",
    413: f"The body is over {server_limits.BODY_BYTES_MAX} bytes.",
    415: "The body is packed in a way that is not unpacked here.",
    422: "The request is well-formed, but cannot be done.",
    429: "Too many requests; `Retry-After` says when to try again.",
    503: "A service that the server needs does not answer; the same request may succeed later.",
}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a description that code and docstring lack."""

    tag: str
    roles: tuple[Role, ...]
    """The roles that may call it, as PROTOCOL's column *who*; ``PUBLIC``: everyone."""
    budget: Literal["requests", "posts"] = "requests"
    """What the requests of a user count against, as in ``routes.Access``."""
    excludes_operators: bool = False
    """A path of an existing application, as in ``routes.Access``."""
    act: Act | None = None
    """What an operator does by it, as in ``routes.Access``."""
    opens_session: bool = False
    """As in ``routes.Access``."""
    path: dict[str, str] = {}
    """Descriptions of the ids in the path."""
    parameters: tuple[dict[str, Any], ...] = ()
    """Parameters of the query and the header, as OpenAPI writes them."""
    body: Any = None
    """The type of the body, or a union of types."""
    body_rule: dict[str, Any] = {}
    """Rules that the body's type cannot express, as JSON Schema."""
    answers: dict[int, tuple[type, ...] | str] = {}
    """For each status the types of the answer, or its media type; ``""`` for an empty answer."""
    errors: dict[int, tuple[str, ...]] = {}
    """Codes by status, besides :data:`COMMON_ERRORS`."""


_OPERATIONS: dict[Endpoint, Operation] = {}


def described(operation: Operation) -> Callable[[AnyEndpoint], AnyEndpoint]:
    """Describes an endpoint by ``operation``, and declares who may call it.

    The endpoint's docstring has the words.
    """
    access = Access(
        roles=operation.roles,
        budget=operation.budget,
        excludes_operators=operation.excludes_operators,
        act=operation.act,
        opens_session=operation.opens_session,
    )

    def describe_endpoint(endpoint: AnyEndpoint) -> AnyEndpoint:
        assert inspect.getdoc(endpoint), endpoint
        _OPERATIONS[endpoint] = operation
        return declared(access)(endpoint)

    return describe_endpoint


def operation_of(route: Route) -> Operation | None:
    """The description of a route's endpoint; None when it has none."""
    return _OPERATIONS.get(route.endpoint)


def openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of those of ``routes`` that are described."""
    found = [
        (route, operation)
        for route in routes
        if isinstance(route, Route) and (operation := operation_of(route)) is not None
    ]
    types: dict[Any, None] = {ProblemDocument: None}
    for _, operation in found:
        types.update(dict.fromkeys(_types_of(operation)))
    references, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE)
    reference_of = dict(zip(types, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in found:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            item = _path_operation(route, operation, reference_of)
            paths.setdefault(route.path, {})[method.lower()] = item
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "license": LICENSE,
            "description": "The real-time usage meter for chats, recordings and calls. Instants "
            "(`_at`) are Unix epoch milliseconds, durations (`_ms`) milliseconds, credits decimal "
            "strings. The socket `/v1/ws` is described by `/asyncapi.json`.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {_scheme(role): scheme for role, scheme in ROLES.items()},
        },
    }


def _scheme(role: Role) -> str:
    """The name of a role's security scheme, without its colon."""
    return role.replace(":", "_")


def _types_of(operation: Operation) -> list[type]:
    answered = [types for types in operation.answers.values() if not isinstance(types, str)]
    return [*([operation.body] if operation.body else []), *(t for ts in answered for t in ts)]


def _path_operation(
    route: Route, operation: Operation, reference_of: dict[type, dict[str, Any]]
) -> dict[str, Any]:
    summary, _, text = (inspect.getdoc(route.endpoint) or "").partition("\n")
    item: dict[str, Any] = {
        "operationId": route.endpoint.__name__,
        "tags": [operation.tag],
        "summary": summary.rstrip("."),
        "description": _description(summary, text, operation),
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": operation.path[name],
                    "schema": ID_SCHEMA,
                }
                for name in route.param_convertors
            ),
            *operation.parameters,
        ],
        "responses": _responses(operation, reference_of),
        "security": [{_scheme(role): []} for role in operation.roles],
    }
    if operation.body is not None:
        schema = {**reference_of[operation.body], **operation.body_rule}
        content = {"application/json": {"schema": schema}}
        required = not may_be_empty(operation.body)
        item["requestBody"] = {"required": required, "content": content}
    return item


def _description(summary: str, text: str, operation: Operation) -> str:
    said = re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip()) or summary
    if operation.act is not None:
        said += (
            "\n\nAn operator's call is in the operators' log. An operator who signed in gives a "
            f"`reason` of at least {ops_limits.REASON_CHARACTERS_MIN} characters in the body."
        )
    return said


def _responses(operation: Operation, reference_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, answered in operation.answers.items():
        if isinstance(answered, str):
            content: dict[str, Any] = {answered: {}} if answered else {}
        else:
            references = [reference_of[answered_type] for answered_type in answered]
            schema = references[0] if len(references) == 1 else {"oneOf": references}
            content = {"application/json": {"schema": schema}}
        text = "Done." if status < 400 else MEANINGS[status]
        found[str(status)] = {"description": text, **({"content": content} if content else {})}
    errors = dict(operation.errors)
    if operation.roles:
        for status, codes in COMMON_ERRORS.items():
            errors[status] = (*codes, *errors.get(status, ()))
    if operation.body is not None:
        errors[413] = ("bad_message",)
    problem = {"application/problem+json": {"schema": reference_of[ProblemDocument]}}
    for status, codes in sorted(errors.items()):
        shown = ", ".join(f"`{code}`" for code in codes)
        found[str(status)] = {"description": f"{MEANINGS[status]} {shown}", "content": problem}
    return found
