"""Tests what a page asks for in two minutes: its token."""

import json
from collections.abc import Awaitable, Callable

from tests.browser.element_fixtures import EVERYTHING, ElementsPage, elements, usage
from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, BrowserSocket, snapshot, tick, welcome
from tests.browser.node import run_module
from tests.browser.react_fixtures import react

__all__ = ["chromium", "client", "elements", "mock_server", "react"]

TWO_MINUTES_S = 120
LIFE_MS = 150_000
"""Of a token, which is renewed after half of it."""
RENEWED_S = LIFE_MS // 2_000
ASKING = """() => {
  window.token = async () => (await fetch('/blank')).text();
  window.meter = new Taximeter({ platform, token, fallback: null });
  listenToMeter(meter);
}"""
REACT = """() => {
  const Figures = () => [useCredits(), useConnection()?.connection, useUsage()?.month].join();
  render(app(h(Chat), h(Clock, { session: 'session-1' }), h(Figures)));
}"""


async def pass_two_minutes(
    client: ClientPage, line: BrowserSocket, show: Callable[[], Awaitable[None]]
) -> list[str]:
    """Starts ``session-1`` by ``show``, and ticks for two minutes.

    Returns the paths that the page asks for after it is loaded.
    """
    expiring = welcome(expires_at=SERVER_TIME_AT + LIFE_MS)
    await line.answer(await line.receive("auth"), **expiring)
    await show()
    start = await line.receive("start")
    await line.answer(start, **snapshot())
    await line.send(**usage())
    await client.page.wait_for_function("() => meter.getSnapshot().usage !== null")
    asked: list[str] = []
    client.page.on("request", lambda request: asked.append(request.url))
    for second in range(1, TWO_MINUTES_S + 1):
        await client.advance(1_000)
        await line.send(**tick(second * 1_000, remaining_ms=600_000))
        if second == RENEWED_S:
            await line.answer(await line.receive("refresh"), **expiring)
    await client.page.wait_for_function("() => meter.find('session-1').now().elapsed_ms === 120000")
    await client.mark(line)
    assert not client.server.has_new_line()
    return [url.removeprefix(client.server.url) for url in asked]


async def test_a_page_of_elements_asks_for_its_token_only(elements: ElementsPage) -> None:
    await elements.run(f"() => {{ ({ASKING})(); elements.use(meter); meter.connect(); }}")
    line = await elements.server.line()
    asked = await pass_two_minutes(elements, line, lambda: elements.put(EVERYTHING))
    await elements.page.clock.fast_forward(120_000)
    assert asked == ["/blank"]


async def test_a_page_of_react_asks_for_its_token_only(react: ClientPage) -> None:
    await react.run(f"() => {{ ({ASKING})(); meter.connect(); }}")
    line = await react.server.line()
    assert await pass_two_minutes(react, line, lambda: react.run(REACT)) == ["/blank"]


FALLBACK = """
const { Taximeter } = await import(CORE);
const { StreamSocket } = await import(CORE.replace('taximeter.js', 'fallback.js'));
let [nowMs, number, feed] = [0, 0, null];
const [timers, asked] = [new Map(), []];
const settle = () => new Promise((resolve) => setImmediate(resolve));
const advance = async (ms) => {
  for (const untilMs = nowMs + ms; nowMs < untilMs; nowMs += 100) {
    for (const [id, { atMs, callback }] of [...timers]) {
      if (atMs <= nowMs && timers.delete(id)) callback();
    }
    await settle();
  }
};
const send = async (event, data) => {
  feed.enqueue(new TextEncoder().encode(`event: ${event}\\ndata: ${JSON.stringify(data)}\\n\\n`));
  await settle();
};
class Refused {
  constructor() {
    asked.push('handshake');
    queueMicrotask(() => this.onclose?.({ code: 1006, reason: '' }));
  }
  close() {}
}
globalThis.fetch = async (_, { method, body }) => {
  if (method !== 'POST') {
    asked.push('stream');
    const source = { start: (controller) => { feed = controller; } };
    return { ok: true, body: new ReadableStream(source) };
  }
  for (const { type, id } of [JSON.parse(body)].flat()) {
    asked.push(type);
    const answers = { start: SNAPSHOT, refresh: WELCOME };
    if (answers[type]) setImmediate(() => send('message', { ...answers[type], id }));
  }
  return { ok: true, status: 202 };
};
const platform = {
  WebSocket: Refused,
  now: () => nowMs,
  random: () => 0,
  setTimeout: (callback, delayMs) => {
    timers.set(number += 1, { callback, atMs: nowMs + delayMs });
    return number;
  },
  clearTimeout: (id) => timers.delete(id),
};
const token = () => { asked.push('token'); return 'token-1'; };
const url = 'ws://meter.test/v1/ws';
const meter = new Taximeter({ url, token, platform, fallback: StreamSocket });
const session = meter.start({ kind: 'chat', sessionId: 'session-1' });
while (!feed) await advance(100);
await send('open', { stream_id: 'stream-1' });
await send('message', WELCOME);
await session.ready;
const loaded = asked.splice(0);
for (let second = 1; second <= 121; second += 1) {
  await advance(1_000);
  await send('message', { ...TICK, elapsed_ms: second * 1_000 });
  if (second % 10 === 0) await send('ping', {});
}
console.log(JSON.stringify([loaded, asked, session.now().elapsed_ms]));
"""


def test_a_page_without_websockets_answers_pings_and_asks_for_nothing() -> None:
    """Each minute it tries whether a WebSocket gets through."""
    expiring = welcome(expires_at=SERVER_TIME_AT + LIFE_MS)
    given = {"WELCOME": expiring, "SNAPSHOT": snapshot(), "TICK": tick(0, remaining_ms=600_000)}
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    loaded, asked, elapsed_ms = json.loads(run_module(constants + FALLBACK))
    assert loaded == ["token", "handshake"] * 2 + ["token", "stream", "start"]
    found = {name: asked.count(name) for name in asked}
    assert found == {"pong": 12, "handshake": 2, "token": 1, "refresh": 1}
    assert elapsed_ms == 121_000
