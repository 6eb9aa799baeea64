"""Tests what absent pages, networks and servers cost, on the receipt.

Each disturbance begins on a running session, which gets notices before and in it. At the end the
page has heard each notice once, and the receipt has no gap that the kind does not allow.
"""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.browser.fixtures import chromium
from tests.browser.raw_chromium import RawChromium, RawPage, raw_chromium
from tests.faults.processes import Installation
from tests.fixtures.blocking_proxy import BlockingProxy, blocking_proxy
from tests.fixtures.server import API_KEY, SECRET, SocketClient, StartServer, TestServer

__all__ = ["chromium", "raw_chromium"]

Message = dict[str, Any]

RATES = "".join(
    f"""
[kinds.{kind}]
credits_per_minute = "1"
increment_seconds = [1, 1]
warn_at_seconds = [600]
reconnect_grace_seconds = 60
gap = "{gap}"
"""
    for kind, gap in (("free", "skip"), ("charged", "bill"))
)
BOTH_KINDS = pytest.mark.parametrize("kind", ["free", "charged"])
BOTH_KINDS_AT_LENGTH = pytest.mark.parametrize(
    "kind", ["charged", pytest.param("free", marks=pytest.mark.full)]
)
CONSTRUCT = """async ([kind, secret, ttlSeconds, lastSeq]) => {
  const { Taximeter } = await import('/client/taximeter.js');
  const base64 = (bytes) => btoa(String.fromCharCode(...bytes))
    .replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  const encode = (text) => new TextEncoder().encode(text);
  const hash = { name: 'HMAC', hash: 'SHA-256' };
  const key = await crypto.subtle.importKey('raw', encode(secret), hash, false, ['sign']);
  const token = async () => {
    if (window.isRefused) throw new Error('no token now');
    const claims = { sub: 'ann', exp: Math.floor(Date.now() / 1000) + ttlSeconds };
    const text = [{ alg: 'HS256', typ: 'JWT' }, claims]
      .map((part) => base64(encode(JSON.stringify(part)))).join('.');
    const signature = await crypto.subtle.sign('HMAC', key, encode(text));
    return `${text}.${base64(new Uint8Array(signature))}`;
  };
  const meter = new Taximeter({ token, platform: { random: () => 0.2 } });
  const [heard, welcomes, returns, steps] = [[], [], [], { most: 0, back: 0 }];
  meter.addEventListener('welcome', ({ detail }) => welcomes.push(detail));
  meter.addEventListener('resumed', ({ detail }) => returns.push(detail));
  const session = meter.start({ kind, sessionId: 'chat-17', tickMs: 250, lastSeq });
  for (const type of ['free_time', 'limit_warning', 'limit_cleared', 'limit_reached', 'stopped']) {
    session.addEventListener(type, ({ detail }) => heard.push(detail.seq));
  }
  session.addEventListener('tick', () => {
    const { elapsed_ms } = session.now();
    steps.back = Math.max(steps.back, steps.most - elapsed_ms);
    steps.most = Math.max(steps.most, elapsed_ms);
  });
  const ticks = (many) => new Promise((resolve) => session.addEventListener('tick', () => {
    many -= 1;
    if (!many) resolve();
  }));
  Object.assign(window, { token, meter, session, heard, welcomes, returns, steps, ticks });
}"""


class DisturbedRide:
    """A running session in a page, behind a proxy."""

    def __init__(self, page: RawPage, proxy: BlockingProxy, url: str, kind: str) -> None:
        self.page = page
        self.proxy = proxy
        self.kind = kind
        self.ttl_seconds = 3_600
        self.heard: list[int] = []
        """Of earlier loads of the page."""
        key = {"Authorization": f"Bearer {API_KEY}"}
        self._backend = httpx.AsyncClient(base_url=f"{url}/v1/accounts/ann", headers=key)
        self._entries = 0

    async def begin(self) -> None:
        """Starts above a threshold, and falls below: the first notice."""
        await self.enter("grants", "100")
        await self.load()
        await self.page.run("() => ticks(1)")
        await self.enter("spend", "95")
        await self.page.until("heard.length === 1")

    async def load(self, last_seq: int | None = None) -> None:
        """Opens the page anew."""
        await self.page.go(f"{self.proxy.url}/client/taximeter.js")
        await self.page.run(CONSTRUCT, [self.kind, SECRET, self.ttl_seconds, last_seq])

    async def enter(self, path: str, amount: str) -> None:
        """Changes the account, which is news to its sessions."""
        self._entries += 1
        body = {"amount": amount, "reason": "a test"}
        headers = {"Idempotency-Key": f"entry-{self._entries}"}
        found = await self._backend.post(f"/{path}", json=body, headers=headers)
        assert found.is_success, found.text

    async def notify(self) -> None:
        """Provides for two notices: the limit goes away and comes back."""
        await self.enter("grants", "50")
        await self.enter("spend", "50")

    async def clear(self, witness: SocketClient) -> None:
        """Waits until the session is suspended, and lets its limit go away."""
        await witness.until("session", lambda message: message["state"] == "suspended")
        await self.enter("grants", "50")

    async def end(self, witness: SocketClient, notices: int = 3) -> Message:
        """Stops the session; returns its receipt after a comparison of all notices."""
        await self.page.run("() => ticks(2)")
        joined = await witness.ask("start", kind=self.kind, session_id="chat-17", last_seq=0)
        receipt: Message = await self.page.run("async () => (await session.stop()).receipt")
        kept = [notice["seq"] for notice in joined["missed"]]
        late: list[int] = await self.page.run("() => heard")
        *heard, _stopped = [*self.heard, *late]
        assert heard == kept, "a notice was missed, or came twice"
        assert len(kept) == notices
        assert await self.page.run("() => steps.back") == 0
        await self._backend.aclose()
        self._check(receipt)
        return receipt

    def _check(self, receipt: Message) -> None:
        """Every instant is counted as its kind says."""
        gaps = receipt["gaps"]
        assert all(gap["billed"] == (self.kind == "charged") for gap in gaps)
        unbilled = [gap for gap in gaps if not gap["billed"]]
        parts = sorted([*receipt["segments"], *unbilled], key=lambda part: part["from_at"])
        # The first segment begins when Redis has answered.
        began_at = parts[0]["from_at"]
        assert receipt["started_at"] <= began_at
        assert 0 <= receipt["ended_at"] - parts[-1]["to_at"] <= 1
        for earlier, later in itertools.pairwise(parts):
            assert earlier["to_at"] == later["from_at"]
        free_ms = sum(gap["to_at"] - gap["from_at"] for gap in unbilled)
        lasted_ms = receipt["ended_at"] - began_at
        assert 0 <= lasted_ms - free_ms - receipt["elapsed_ms"] <= 1, receipt


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(RATES)
    return path


@pytest.fixture
async def real(start_server: StartServer, rates: Path) -> TestServer:
    return await start_server(rates=rates)


@asynccontextmanager
async def riding(
    browser: RawChromium, port: int, kind: str, ttl_seconds: int = 3_600
) -> AsyncIterator[DisturbedRide]:
    async with blocking_proxy(port, None) as proxy:
        page = await browser.open()
        ride = DisturbedRide(page, proxy, f"http://127.0.0.1:{port}", kind)
        ride.ttl_seconds = ttl_seconds
        await ride.begin()
        yield ride
        await page.close()


async def watching(server: TestServer) -> SocketClient:
    witness = await server.login()
    await witness.ask("watch", session_id="chat-17")
    return witness


async def test_a_hidden_page_costs_no_gap(real: TestServer, raw_chromium: RawChromium) -> None:
    async with riding(raw_chromium, real.port, "free") as ride:
        await ride.page.show("minimized")
        await ride.notify()
        await ride.page.until("heard.length === 3")
        await ride.page.run("() => ticks(2)")
        await ride.page.show("normal")
        assert (await ride.end(await real.login()))["gaps"] == []


@BOTH_KINDS
async def test_a_frozen_page_costs_the_moment_of_its_return(
    real: TestServer, raw_chromium: RawChromium, kind: str
) -> None:
    """The browser answers pings until it thaws the page.

    Then it drops the socket, and the client has the next one at once.
    """
    async with riding(raw_chromium, real.port, kind) as ride:
        witness = await watching(real)
        await ride.page.freeze()
        await ride.notify()
        await witness.until("limit_warning")
        assert await ride.page.run("() => heard.length") == 1
        await ride.page.thaw()
        receipt = await ride.end(witness)
        assert len(receipt["gaps"]) <= 1


async def test_a_silent_network_costs_no_gap(real: TestServer, raw_chromium: RawChromium) -> None:
    async with riding(raw_chromium, real.port, "free") as ride:
        witness = await watching(real)
        ride.proxy.flowing.clear()
        await ride.notify()
        await witness.until("limit_warning")
        assert await ride.page.run("() => heard.length") == 1
        ride.proxy.flowing.set()
        assert (await ride.end(witness))["gaps"] == []


@pytest.mark.full
@pytest.mark.parametrize("way", ["silent", "cut"])
@BOTH_KINDS
async def test_eight_seconds_without_network(
    real: TestServer, raw_chromium: RawChromium, kind: str, way: str
) -> None:
    """A silence of this length is no loss to the server."""
    async with riding(raw_chromium, real.port, kind) as ride:
        witness = await watching(real)
        ride.proxy.flowing.clear()
        if way == "cut":
            ride.proxy.is_away = True
            await ride.proxy.cut()
        await ride.notify()
        await asyncio.sleep(8)
        ride.proxy.is_away = False
        ride.proxy.flowing.set()
        receipt = await ride.end(witness, notices=3 if way == "silent" else 1)
        assert len(receipt["gaps"]) == (0 if way == "silent" else 1)


@BOTH_KINDS
async def test_a_cut_costs_what_the_kind_says(
    real: TestServer, raw_chromium: RawChromium, kind: str
) -> None:
    async with riding(raw_chromium, real.port, kind) as ride:
        witness = await watching(real)
        ride.proxy.is_away = True
        await ride.proxy.cut()
        await ride.clear(witness)
        ride.proxy.is_away = False
        receipt = await ride.end(witness, notices=2)
        assert len(receipt["gaps"]) == 1
        assert await ride.page.run("() => returns.length") == 1


@BOTH_KINDS
async def test_a_page_back_from_the_cache_of_pages(
    real: TestServer, raw_chromium: RawChromium, kind: str
) -> None:
    """Chromium keeps the page, and would keep its socket."""
    keep = "addEventListener('pageshow', ({ persisted }) => { window.isKept = persisted; });"
    async with riding(raw_chromium, real.port, kind) as ride:
        witness = await watching(real)
        await ride.page.run(f"() => {{ {keep} }}")
        await ride.page.go(f"{ride.proxy.url}/pages/icon.svg")
        await ride.clear(witness)
        await ride.page.run("() => { history.back(); }")
        await ride.page.until("window.isKept")
        receipt = await ride.end(witness, notices=2)
        assert len(receipt["gaps"]) == 1


@BOTH_KINDS
async def test_a_reload_costs_what_the_kind_says(
    real: TestServer, raw_chromium: RawChromium, kind: str
) -> None:
    async with riding(raw_chromium, real.port, kind) as ride:
        witness = await watching(real)
        ride.heard, last_seq = await ride.page.run("() => [heard, session.lastSeq]")
        await ride.page.call("Page.reload")
        await ride.page.until("!window.meter && document.readyState === 'complete'")
        await ride.clear(witness)
        await ride.load(last_seq)
        receipt = await ride.end(witness, notices=2)
        assert len(receipt["gaps"]) == 1


@BOTH_KINDS_AT_LENGTH
async def test_a_server_that_is_killed_costs_what_the_kind_says(
    redis: Redis, redis_url: str, database: str, rates: Path, raw_chromium: RawChromium, kind: str
) -> None:
    del redis  # emptied for this test
    installation = Installation(rates.parent, RATES)
    installation.environment |= {
        "TAXIMETER_REDIS_URL": redis_url,
        "TAXIMETER_DATABASE_URL": database,
        "TAXIMETER_JWT_SECRET": SECRET,
        "TAXIMETER_API_KEYS": API_KEY,
    }
    try:
        server = await installation.serve("web")
        async with riding(raw_chromium, installation.port, kind) as ride:
            await ride.notify()
            await ride.page.until("heard.length === 3")
            await server.kill()
            await ride.page.until("meter.state === 'reconnecting'")
            server = await installation.serve("web")
            await ride.page.until("meter.state === 'live'")
            witness, _ = await installation.connect(await ride.page.run("() => token()"))
            # While it is in doubt whether the page was away, two changes may cancel out.
            await ride.enter("grants", "50")
            await ride.page.until("heard.length === 4")
            await ride.enter("spend", "50")
            await ride.page.until("heard.length === 5")
            receipt = await ride.end(witness, notices=5)
            await witness.close()
        assert len(receipt["gaps"]) == 1
        assert await server.stop(signal.SIGTERM) == 0
    finally:
        await installation.close_processes()


async def test_a_token_that_is_renewed_costs_no_gap(
    real: TestServer, raw_chromium: RawChromium
) -> None:
    async with riding(raw_chromium, real.port, "free", ttl_seconds=3) as ride:
        await ride.notify()
        await ride.page.until("welcomes.length === 3")
        assert (await ride.end(await real.login()))["gaps"] == []


@BOTH_KINDS_AT_LENGTH
async def test_a_token_that_expires_costs_what_the_kind_says(
    real: TestServer, raw_chromium: RawChromium, kind: str
) -> None:
    async with riding(raw_chromium, real.port, kind, ttl_seconds=2) as ride:
        witness = await watching(real)
        await ride.page.run("() => { window.isRefused = true; }")
        await ride.clear(witness)
        await ride.page.run("() => { window.isRefused = false; meter.connect(); }")
        receipt = await ride.end(witness, notices=2)
        assert len(receipt["gaps"]) == 1
