"""An example call of each route, and who may make it.

The examples concern what belongs to ann of acme. Her data contains unique marks that no request
contains: an answer that shows one of them has leaked.
"""

from typing import Any, NamedTuple

OWN = "?org=acme&user=ann"
"""The user whom calls of backends and operators concern; a user may name themselves."""
MARKS = ("77.125", "ann's secret", "ann.s-advisor", "4242.5", '"minutes_limit":254550')
CHAT, KEY = "chat-1", "ann's key"
STUDY = "default:study"
CALL = "/v1/calls/ann.s-advisor?provider=stream"
READERS = ("ops:read", "ops")
ALL = ("user", "key", *READERS)
OF_ORG = (*ALL, "org:read")
BOTH = ("user", "key")
ROLES = ("user", "key", "org:read", "ops:read", "ops")


class Example(NamedTuple):
    """A call about ann's data, and the roles that may make it.

    PROTOCOL has the roles in its column *who*.
    """

    path: str
    who: tuple[str, ...] = ()
    body: dict[str, Any] | None = None
    status: int = 200
    shows: bool = False
    """The answer to a permitted caller contains one of her marks."""


EXAMPLES = {
    "GET /healthz": Example("/healthz"),
    "GET /readyz": Example("/readyz"),
    "GET /metrics": Example("/metrics"),
    "GET /openapi.json": Example("/openapi.json"),
    "GET /asyncapi.json": Example("/asyncapi.json"),
    "GET /": Example("/"),
    "GET /client/{name}": Example("/client/taximeter.js"),
    "MOUNT /pages": Example("/pages/style.css"),
    # Only in development: the demonstration page gives a token to every visitor.
    "POST /demo/token": Example("/demo/token", body={"user_id": "visitor-1"}),
    "POST /demo/top-up": Example("/demo/top-up", ("user",), {"amount": "1"}),
    "GET /v1/accounts/{id}": Example(f"/v1/accounts/ann{OWN}", ALL, shows=True),
    "GET /v1/accounts/{id}/estimate": Example(
        f"/v1/accounts/ann/estimate{OWN}&kind=chat", ("user", "key"), shows=True
    ),
    "GET /v1/accounts/{id}/ledger": Example(f"/v1/accounts/ann/ledger{OWN}", ALL, shows=True),
    "GET /v1/accounts/{id}/grants": Example(f"/v1/accounts/ann/grants{OWN}", ALL, shows=True),
    "POST /v1/accounts/{id}/grants": Example(
        f"/v1/accounts/ann/grants{OWN}", ("key", "ops"), {"amount": "1", "reason": "more"}, 201
    ),
    "POST /v1/accounts/{id}/spend": Example(
        f"/v1/accounts/ann/spend{OWN}", ("user", "key"), {"operation": "script_generation"}, 201
    ),
    "POST /v1/accounts/{id}/can-perform": Example(
        f"/v1/accounts/ann/can-perform{OWN}", ("user", "key"), {"operation": "script_generation"}
    ),
    "POST /v1/accounts/{id}/holds": Example(
        f"/v1/accounts/ann/holds{OWN}", ("key",), {"amount": "1", "ttl_ms": 60_000}, 201
    ),
    "GET /v1/holds/{id}": Example("/v1/holds/{hold}?org=acme", ("key",), shows=True),
    "POST /v1/holds/{id}/post": Example(
        "/v1/holds/{hold}/post?org=acme", ("key",), {"amount": "0.125"}
    ),
    "POST /v1/holds/{id}/void": Example("/v1/holds/{second}/void?org=acme", ("key",), {}),
    "POST /v1/sessions": Example(
        "/v1/sessions?org=acme",
        ("key",),
        {"session_id": "chat-2", "kind": "chat", "user_id": "ann"},
        201,
    ),
    "GET /v1/sessions": Example(f"/v1/sessions{OWN}", OF_ORG, shows=True),
    "GET /v1/sessions/{id}": Example(f"/v1/sessions/{CHAT}{OWN}", OF_ORG, shows=True),
    "POST /v1/sessions/{id}/heartbeat": Example(f"/v1/sessions/{CHAT}/heartbeat", ("user",), {}),
    "GET /v1/stream": Example("/v1/stream", ("user",)),
    "POST /v1/stream/{id}": Example("/v1/stream/{stream}", ("user",), {"type": "pong"}, 202),
    "GET /v1/sessions/{id}/minutes": Example(f"/v1/sessions/{CHAT}/minutes{OWN}", OF_ORG),
    "POST /v1/sessions/{id}/stop": Example(
        f"/v1/sessions/{CHAT}/stop{OWN}", ("user", "key", "ops"), shows=True
    ),
    "GET /v1/orgs/{id}": Example("/v1/orgs/acme", ("key", "org:read", *READERS)),
    "PUT /v1/orgs/{id}": Example("/v1/orgs/acme", ("key", "ops"), {}),
    "GET /v1/orgs/{id}/members/{user}": Example(
        "/v1/orgs/acme/members/ann", ("key", "org:read", *READERS), shows=True
    ),
    "PUT /v1/orgs/{id}/members/{user}": Example(
        "/v1/orgs/acme/members/ann", ("key", "ops"), {}, shows=True
    ),
    "POST /v1/orgs/{id}/members/{user}/adjustments": Example(
        "/v1/orgs/acme/members/ann/adjustments", ("ops",), {"minutes": 1, "reason": "wrong"}, 201
    ),
    "GET /v1/ops/reports/calls.csv": Example(
        "/v1/ops/reports/calls.csv?from=2026-01-01&to=2099-12-31&org=acme", READERS
    ),
    "GET /v1/ops/reports/usage.csv": Example(
        "/v1/ops/reports/usage.csv?from=2026-01-01&to=2099-12-31&org=acme", READERS
    ),
    "PUT /v1/calls/{id}": Example(f"{CALL}&org=acme", ("key", "ops"), {}, shows=True),
    "GET /v1/calls/{id}": Example(CALL, ("key", *READERS), shows=True),
    "GET /v1/calls": Example("/v1/calls", ("key", *READERS)),
    "GET /api/usage/check-limit": Example(f"/api/usage/check-limit{OWN}", BOTH, shows=True),
    "POST /api/usage/track-minute": Example(
        f"/api/usage/track-minute{OWN}",
        ("user", "key"),
        {"session_id": "rec-2", "seconds_recorded": 60, "minute_timestamp": 0},
    ),
    "GET /api/usage/current-month": Example(f"/api/usage/current-month{OWN}", BOTH, shows=True),
    "GET /api/users/stats-v2": Example(f"/api/users/stats-v2{OWN}", BOTH, shows=True),
    "GET /api/usage/stats": Example(f"/api/usage/stats{OWN}&account=ann", BOTH, shows=True),
    "POST /api/study-sessions/stream-duration": Example(
        "/api/study-sessions/stream-duration?org=acme",
        BOTH,
        {"userId": "ann", "callId": STUDY, "action": "start"},
    ),
    "GET /api/study-sessions/active-calls": Example(f"/api/study-sessions/active-calls{OWN}", BOTH),
    "GET /api/study-sessions/daily-hours": Example(f"/api/study-sessions/daily-hours{OWN}", BOTH),
    "GET /api/study-sessions/calls/{call_id}": Example(
        f"/api/study-sessions/calls/{STUDY}{OWN}", BOTH
    ),
    "GET /api/time-tracking/{chat_id}": Example(f"/api/time-tracking/{CHAT}{OWN}", BOTH),
    "POST /v1/ops/login": Example(
        "/v1/ops/login", body={"name": "nemo", "password": "a wrong password"}, status=401
    ),
    # These are about the sender, and show nothing of ann's.
    "POST /v1/ops/session": Example("/v1/ops/session", ("org:read", *READERS)),
    "GET /v1/ops/session": Example("/v1/ops/session", ("org:read", *READERS)),
    "POST /v1/ops/logout": Example("/v1/ops/logout", ("org:read", *READERS), status=204),
    "GET /v1/ops/log": Example("/v1/ops/log", READERS),
    "GET /v1/ops/log.csv": Example("/v1/ops/log.csv", READERS),
    "GET /v1/ops/sessions": Example("/v1/ops/sessions?q=user:ann", READERS),
    "GET /v1/ops/sessions.csv": Example("/v1/ops/sessions.csv?q=user:ann", READERS),
    "GET /v1/ops/summary": Example("/v1/ops/summary", READERS),
    "GET /v1/ops/nodes": Example("/v1/ops/nodes", READERS),
    # For providers alone, who sign their events; none is set up here.
    "POST /api/webhooks/stream-call-events": Example(
        "/api/webhooks/stream-call-events", body={"type": "call.ended"}, status=404
    ),
    "POST /v1/calls/events/{provider}": Example(
        "/v1/calls/events/livekit", body={"event": "room_finished"}, status=404
    ),
    "POST /api/time-tracking/{chat_id}/heartbeat": Example(
        f"/api/time-tracking/{CHAT}/heartbeat", ("user",), {}
    ),
}
