"""Tests the client where no WebSocket gets through, against the real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import pytest
from playwright.async_api import BrowserContext, Page, Request

from tests.browser.fixtures import ClientPage, chromium, client, context, mock_server
from tests.browser.mock_server import PATIENCE_S
from tests.fixtures.blocking_proxy import BlockingProxy, Refusal, blocking_proxy
from tests.fixtures.server import TestServer

__all__ = ["chromium", "client", "context", "mock_server"]

OPTIONS = "{ kind: 'chat', sessionId: 'chat-17', tickMs: 250 }"
CONSTRUCT = """async ([token, isSilent]) => {
  const client = await import('/client/taximeter.js');
  // The test takes the timers of a minute. Where the proxy is silent, the client's time jumps
  // until it has given up two attempts.
  let [misses, skippedMs] = [0, 0];
  const minutes = [];
  const skip = (callback, delayMs) => setTimeout(() => { skippedMs += delayMs; callback(); }, 50);
  const platform = {
    now: () => performance.now() + skippedMs,
    setTimeout: (callback, delayMs) => {
      if (delayMs === 60_000) return minutes.push(callback);
      return (isSilent && misses < 2 ? skip : setTimeout)(callback, delayMs);
    },
    clearTimeout: (timer) => clearTimeout(timer),
    random: () => 0,
  };
  const meter = new client.Taximeter({ token, platform });
  meter.addEventListener('connection', ({ detail }) => {
    if (detail.retry_in_ms !== null) misses += 1;
  });
  const ticks = (session, many) => new Promise((resolve) => session.addEventListener(
    'tick', () => { many -= 1; if (!many) resolve(); }));
  const event = (target, type) => new Promise((resolve) => target.addEventListener(
    type, ({ detail }) => resolve(detail), { once: true }));
  Object.assign(window, client, { meter, minutes, ticks, event });
}"""


class BlockedPage:
    """A page behind the proxy, and the requests that it has made."""

    def __init__(self, page: Page, proxy: BlockingProxy) -> None:
        self.page = page
        self.proxy = proxy
        self.requests: list[Request] = []
        page.on("request", self._see)

    def _see(self, request: Request) -> None:
        self.requests.append(request)

    async def run(self, script: str, argument: Any = None) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.page.evaluate(script, argument)

    def sent(self, kind: str) -> int:
        """Messages of a type that the page has sent by POST."""
        return sum((request.post_data or "").count(f'"{kind}"') for request in self.requests)

    @property
    def streams(self) -> int:
        return sum(request.url.endswith("/v1/stream") for request in self.requests)


@asynccontextmanager
async def blocked(
    server: TestServer, context: BrowserContext, refusal: Refusal = "403", token: str | None = None
) -> AsyncIterator[BlockedPage]:
    await server.grant(10_000_000)
    async with blocking_proxy(server.port, refusal) as proxy:
        page = await context.new_page()
        found = BlockedPage(page, proxy)
        await page.goto(f"{proxy.url}/client/taximeter.js")
        await page.evaluate(CONSTRUCT, [token or server.token(), refusal == "silence"])
        yield found
        await page.close()


@pytest.mark.parametrize("refusal", get_args(Refusal))
async def test_a_session_runs_where_no_websocket_gets_through(
    server: TestServer, context: BrowserContext, refusal: Refusal
) -> None:
    """Ticks come only after answers to pings."""
    async with blocked(server, context, refusal) as page:
        receipt = await page.run(
            f"""async () => {{
              const session = meter.start({OPTIONS});
              await ticks(session, 3);
              await session.pause();
              await session.resume();
              return (await session.stop()).receipt;
            }}"""
        )
        assert page.proxy.handshakes == 2 or refusal == "silence"
        assert page.streams == 1
        assert page.sent("pong") >= 1
    assert receipt["reason"] == "client"
    assert receipt["gaps"] == []
    assert receipt["elapsed_ms"] >= 500


async def test_a_websocket_that_gets_through_takes_over_without_a_gap(
    server: TestServer, context: BrowserContext
) -> None:
    async with blocked(server, context) as page:
        await page.run(
            f"async () => {{ window.session = meter.start({OPTIONS}); await ticks(session, 1); }}"
        )
        await page.run("async () => { minutes.shift()(); }")  # still refused
        page.proxy.refusal = None
        receipt = await page.run(
            """async () => {
              const resumed = event(session, 'resumed');
              minutes.shift()();
              await resumed;
              await ticks(session, 1);
              return (await session.stop()).receipt;
            }"""
        )
        assert page.proxy.handshakes == 5, "two fail, one is refused, one knocks, one is used"
        assert page.streams == 1
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])


async def test_a_stream_that_breaks_is_followed_by_a_stream(
    server: TestServer, context: BrowserContext
) -> None:
    async with blocked(server, context) as page:
        await page.run(
            f"async () => {{ window.session = meter.start({OPTIONS}); await ticks(session, 1);"
            " window.resumed = event(session, 'resumed'); }"
        )
        await page.proxy.cut()
        await page.run("async () => { await resumed; await ticks(session, 1); }")
        assert (page.streams, page.proxy.handshakes) == (2, 2)
        await page.run("() => session.stop()")


async def test_a_log_out_takes_leave_of_the_sessions_of_a_stream(
    server: TestServer, context: BrowserContext
) -> None:
    """The end of a stream is no leave to the server."""
    async with blocked(server, context) as page:
        await page.run(
            f"async () => {{ window.session = meter.start({OPTIONS}); await ticks(session, 1); }}"
        )
        async with page.page.expect_request(lambda request: '"leave"' in (request.post_data or "")):
            await page.run("() => meter.switchUser(null)")


async def test_a_refused_token_ends_the_attempts(
    server: TestServer, context: BrowserContext
) -> None:
    async with blocked(server, context, token="no-token") as page:
        found = await page.run(
            f"""async () => {{
              const session = meter.start({OPTIONS});
              const error = await session.ready.catch((error) => error);
              return [error.code, meter.state];
            }}"""
        )
        assert found == ["unauthenticated", "offline"]


@pytest.mark.parametrize("is_taken", [True, False])
async def test_a_new_token_is_used_for_later_requests(
    server: TestServer, context: BrowserContext, is_taken: bool
) -> None:
    """Once the server has taken it: it may be another user's."""
    async with blocked(server, context) as page:
        old = server.token()
        fresh = server.token(ttl_seconds=1_800) if is_taken else server.token("other")
        await page.run(
            """async ([old, fresh]) => {
              const { StreamSocket } = await import('/client/fallback.js');
              const url = `${location.origin.replace('http', 'ws')}/v1/ws`;
              const platform = {
                setTimeout: (callback, delayMs) => setTimeout(callback, delayMs),
                clearTimeout: (timer) => clearTimeout(timer),
              };
              const socket = new StreamSocket(url, 'taximeter.v1', platform);
              const send = (message) => socket.send(JSON.stringify(message));
              const answer = (message) => new Promise((resolve) => {
                socket.onmessage = ({ data }) => {
                  if (JSON.parse(data).id === message.id) resolve();
                };
                send(message);
              });
              await new Promise((resolve) => { socket.onopen = resolve; });
              await answer({ type: 'auth', id: 1, token: old });
              await answer({ type: 'refresh', id: 2, token: fresh });
              await answer({ type: 'ping', id: 3 });
              socket.close(1000);
            }""",
            [old, fresh],
        )
        last = page.requests[-1]
        assert last.headers["authorization"] == f"Bearer {fresh if is_taken else old}"


async def test_a_stream_keeps_no_socket_that_it_has_tried(
    server: TestServer, context: BrowserContext
) -> None:
    """Not one that never opens, and none after its own end."""
    async with blocked(server, context) as page:
        found = await page.run(
            """async (token) => {
              const { StreamSocket } = await import('/client/fallback.js');
              const url = `${location.origin.replace('http', 'ws')}/v1/ws`;
              const tried = [];
              let due;
              const platform = {
                setTimeout: (callback) => { due = callback; },
                clearTimeout: () => { due = null; },
                WebSocket: class {
                  constructor() { this.isOpen = true; tried.push(this); }
                  close() { this.isOpen = false; }
                },
              };
              const socket = new StreamSocket(url, 'taximeter.v1', platform);
              await new Promise((resolve) => { socket.onopen = resolve; });
              await new Promise((resolve) => {
                socket.onmessage = resolve;
                socket.send(JSON.stringify({ type: 'auth', id: 1, token }));
              });
              for (let i = 0; i < 3; i += 1) due();
              const open = () => tried.filter(({ isOpen }) => isOpen).length;
              const before = open();
              socket.close(1000);
              return [tried.length, before, open(), due, tried.filter((one) => one.onopen).length];
            }""",
            server.token(),
        )
        assert found == [3, 1, 0, None, 0]


# Which way the core takes

FAKE = (
    "token: 'token-1', fallback: class extends WebSocket {"
    " constructor(url, protocol) { super(url + '?stream', protocol); } }"
)
"""In the place of the stream: a WebSocket to an address of its own."""


async def test_the_ways_take_turns_from_the_third_attempt_on(client: ClientPage) -> None:
    await client.construct(FAKE)
    await client.start()
    ways = []
    for _ in range(5):
        line = await client.server.line()
        ways.append(line.path)
        await line.receive("auth")
        line.cut()
        await client.take_loss()
        await client.advance(10_000)
    assert ways == ["/v1/ws", "/v1/ws", "/v1/ws?stream", "/v1/ws", "/v1/ws?stream"]


async def test_the_way_that_worked_is_taken_again(client: ClientPage) -> None:
    await client.construct(FAKE)
    await client.start()
    line = await client.server.line()
    for _ in range(2):
        line.cut()
        line = await client.next_line()
    for _ in range(2):
        assert line.path == "/v1/ws?stream"
        await line.welcome()
        await line.join()
        await client.take("session")
        line.cut()
        line = await client.next_line()
    await line.receive("auth")
