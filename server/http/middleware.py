"""Middleware around every request: problems, protective headers, and a measurement."""

import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.acts import REQUEST_ID
from server.http.problems import problem_of
from server.runtime.metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
"""Methods that metrics name; a peer could make up any number of others."""

# All code comes from this origin and none is inline, so nothing else may run.
CONTENT_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class RequestObserver:
    """Middleware around every endpoint: problems, protective headers, and a measurement."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request (the interface of ASGI); WebSockets pass unchanged."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 0
        request_id = scope[REQUEST_ID] = secrets.token_hex(8)
        begun_s: float | None = None

        async def respond(message: Message) -> None:
            nonlocal begun_s, status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers["X-Request-Id"] = request_id
                if headers.get("content-type", "").startswith("text/event-stream"):
                    # The answer lives as long as its client, which says nothing of the server.
                    begun_s = time.perf_counter() - started_at
                if not headers.get("content-type", "").startswith("application/"):
                    headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
                if scope["path"].startswith("/v1/") or status >= 400:
                    # Account data must not be cached, and errors are transient.
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, respond)
        except ClientDisconnect:
            pass  # the client left in the middle of its body, so no answer can reach it
        except Exception as error:
            if status:
                raise  # the answer has begun: only the connection's end can show the error
            await problem_of(error).response()(scope, receive, respond)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            taken_s = time.perf_counter() - started_at if begun_s is None else begun_s
            self.metrics.requests.observe(method, route, str(status), taken_s)
