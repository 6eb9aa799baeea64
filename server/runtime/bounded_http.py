"""Requests to slow, huge or hostile peers, bounded in time and bytes.

The requests block: call them in a thread. urllib's time-outs begin anew with each byte; here a
deadline ends the whole exchange.
"""

import contextlib
import http.client
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any, NamedTuple


class HttpFailedError(Exception):
    """There was no answer within the bounds; the message gives the reason."""


class HttpAnswer(NamedTuple):
    """An answer of any status."""

    status: int
    body: bytes


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they would carry credentials elsewhere."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Raises :class:`HttpFailedError`."""
        raise HttpFailedError("it redirects")


def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str],
    body: bytes | None = None,
    redirects: urllib.request.HTTPRedirectHandler,
    timeout_ms: int,
    bytes_max: int,
) -> HttpAnswer:
    """The answer of a peer: its status and its whole body.

    It ends within ``timeout_ms`` after the host's name is resolved. Raises only
    :class:`HttpFailedError`, also for a body over ``bytes_max``. ``url`` is http or https.
    """
    deadline = _Deadline(timeout_ms / 1000)
    opener = urllib.request.build_opener(_Http(deadline), _Https(deadline), redirects)
    asked = urllib.request.Request(  # noqa: S310 -- the settings take http and https alone
        url, data=body, headers=dict(headers), method=method
    )
    try:
        with deadline:
            try:
                response = opener.open(asked, timeout=deadline.seconds)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                answer = HttpAnswer(response.status, response.read(bytes_max + 1))
    except Exception as error:
        reason = "it took too long" if deadline.passed else str(error) or type(error).__name__
        raise HttpFailedError(reason) from error
    if deadline.passed:
        raise HttpFailedError("it took too long")
    if len(answer.body) > bytes_max:
        raise HttpFailedError(f"the answer is over {bytes_max} bytes")
    return answer


class _Deadline:
    """Ends a fetch when its time is over.

    It does so wherever the fetch's thread waits for the peer. Socket time-outs begin anew with each
    byte. This deadline shuts the connection down.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._handles: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """A connection like that of ``socket.create_connection``, ended by the deadline."""
        connection = socket.create_connection(*arguments, **options)
        with self._lock:
            # TLS takes the socket over, so the handle is a descriptor of its own.
            self._handles.append(socket.socket(fileno=os.dup(connection.fileno())))
        if self.passed:
            self._pass()
        return connection

    def _pass(self) -> None:
        self.passed = True
        with self._lock:
            for handle in self._handles:
                with contextlib.suppress(OSError):  # the connection may be gone already
                    handle.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    """Opens http connections under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a request over http."""

        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **options)
            made._create_connection = self._deadline.connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    """Opens https connections under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a request over https."""

        def connection(host: str, **options: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, **options)
            made._create_connection = self._deadline.connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, req)
