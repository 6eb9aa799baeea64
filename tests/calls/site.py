"""Serves the REST of a fake provider over a real socket."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from tests.calls.fake_calls import FakeCalls


class ProviderSite:
    """A fake's web server."""

    def __init__(self, fake: FakeCalls) -> None:
        self.fake = fake
        self.asked: list[str] = []
        """Methods and paths of all requests."""
        self.bodies: list[bytes] = []
        self.fixed: tuple[int, dict[str, str], bytes] | None = None
        """An answer to everything, instead of the fake's: status, headers, body."""
        site = self

        class ProviderHandler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.serve(self)

            def do_POST(self) -> None:
                site.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ProviderHandler)
        self.server.daemon_threads = True
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base of the provider's REST."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        target = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.asked.append(f"{handler.command} {target.path}")
            self.bodies.append(body)
            if self.fixed is not None:
                status, more, answer = self.fixed
            else:
                query = dict(parse_qsl(target.query))
                status, content_type, answer = self.fake.answer(
                    handler.command, target.path, query, headers, body
                )
                more = {"Content-Type": content_type}
        with contextlib.suppress(OSError):
            handler.send_response(status)
            for name, value in more.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            handler.wfile.write(answer)


@contextlib.contextmanager
def served(fake: FakeCalls) -> Iterator[ProviderSite]:
    """A site of a fake, while the block runs."""
    site = ProviderSite(fake)
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()
