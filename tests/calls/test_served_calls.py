"""Calls over real sockets: webhooks in, and the provider's REST asked."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from protocol.metering.records import EntryPosted
from server.calls.service import Calls
from storage.redis.spending import AccountName
from tests.calls import fake_stream
from tests.calls.fake_stream import FakeStream
from tests.calls.site import ProviderSite, served
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, settled

CREDIT = 1_000_000
STEP_MS = 10_000
"""Time that passes at once: longer jumps look like a process that stood still."""
RATES = """
[kinds.call]
credits_per_minute = "1"
increment_seconds = [1, 1]
clock = "provider"
tolerance_seconds = 2
enforce = "participant"
"""


class Scene:
    """A server, and a provider that tells it of calls."""

    def __init__(self, server: TestServer, site: ProviderSite) -> None:
        self.server = server
        self.fake = site.fake
        self.site = site
        self.calls: Calls = server.app.state.calls

    async def pass_time(self, ms: int = 0) -> None:
        """Delivers what the provider has sent, and lets time pass."""
        self.fake.now_ms = self.server.process.clock.now()
        async with httpx.AsyncClient(base_url=self.server.url, trust_env=False) as client:
            for sent in self.fake.take():
                answer = await client.post(sent.path, headers=sent.headers, content=sent.body)
                assert answer.status_code == 200, answer.text
                await self.calls.applier.idle()
        for _ in range(ms // STEP_MS):
            advance(self.server, STEP_MS)
            await settled(self.server)
        self.fake.now_ms = self.server.process.clock.now()

    async def swept(self) -> None:
        """Lets the sweep find what is due."""
        await self.pass_time()
        await self.pass_time(60_000)
        await self.calls.sweep.sweep_due()
        await self.pass_time()

    async def balance(self, user: str = "ann") -> int:
        """Available micro-credits of a user."""
        account = AccountName(f"user:{user}", user)
        return (await self.server.process.ledger.balance(account, None)).available_micros


@pytest.mark.parametrize(("devices", "minutes"), [("union", 5), ("sum", 8)])
async def test_two_devices_count_once_or_each_for_itself(
    start_server: StartServer, tmp_path: Path, devices: str, minutes: int
) -> None:
    path = tmp_path / "rates.toml"
    path.write_text(RATES)
    with served(FakeStream(0)) as site:
        settings: dict[str, Any] = {
            "stream_api_key": fake_stream.API_KEY,
            "stream_secret_key": SecretStr(fake_stream.SECRET),
            "stream_api_url": site.url,
        }
        server = await start_server(rates=path, **settings)
        scene = Scene(server, site)
        grant = EntryPosted(
            tenant="user:ann", account_id="ann", entry_id="grant", entry_kind="grant",
            amount_micros=100 * CREDIT, at=server.process.clock.now(),
        )  # fmt: skip
        await server.process.ledger.enter(grant)
        planned = await ask(
            server, "PUT", "/v1/calls/default:a?provider=stream", json={"devices": devices}
        )
        assert planned.status_code == 200, planned.text
        await scene.pass_time()
        run_ = scene.fake.start("default:a")
        phone = scene.fake.join(run_, "ann")
        await scene.pass_time(60_000)
        laptop = scene.fake.join(run_, "ann")
        await scene.pass_time(180_000)
        scene.fake.leave(run_, phone)
        await scene.pass_time(60_000)
        scene.fake.leave(run_, laptop)
        scene.fake.end(run_)
        await scene.swept()
        (figures,) = await scene.calls.meter.figures("stream", run_.session)
        assert abs(figures.elapsed_ms - 300_000) < 2_000  # ours: each moment once
        assert figures.provider_ms is not None
        assert abs(figures.provider_ms - minutes * 60_000) <= 2_000
        corrected = sum(one.credits_micros for one in figures.corrections)
        paid = 100 * CREDIT - await scene.balance()
        assert abs(paid - minutes * CREDIT) < CREDIT // 15
        # What a second device adds is an entry of its own, which says so.
        assert bool(figures.corrections) == (devices == "sum")
        assert abs(corrected - (minutes - 5) * CREDIT) < CREDIT // 15
        assert any("participant_sessions" in asked for asked in scene.site.asked)
