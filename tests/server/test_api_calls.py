"""Events of call providers over a real socket: taken, repeated, refused, counted."""

import gzip
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from server.calls import limits as call_limits
from storage.postgres.records import UnavailableError
from tests.calls import fake_livekit, fake_stream
from tests.calls.fake_calls import SentWebhook
from tests.calls.fake_livekit import FakeLiveKit
from tests.calls.fake_stream import FakeStream
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import assert_problem

SETTINGS: dict[str, Any] = {
    "stream_api_key": fake_stream.API_KEY,
    "stream_secret_key": SecretStr(fake_stream.SECRET),
    "livekit_url": "ws://127.0.0.1:1",
    "livekit_api_key": fake_livekit.API_KEY,
    "livekit_api_secret": SecretStr(fake_livekit.SECRET),
}


class KeptEvents:
    """An inbox in memory."""

    def __init__(self, server: TestServer) -> None:
        self.kept: dict[str, bytes] = {}
        self.is_away = False
        self._adapters = server.app.state.calls.adapters

    async def receive(self, provider: str, headers: Mapping[str, str], body: bytes) -> bool:
        if self.is_away:
            raise UnavailableError("Postgres is away")
        key = self._adapters[provider].event_key(body)
        is_new = key not in self.kept
        self.kept[key] = body
        return is_new


@pytest.fixture
async def server(start_server: StartServer) -> TestServer:
    return await start_server(**SETTINGS)


@pytest.fixture
def inbox(server: TestServer) -> KeptEvents:
    made = KeptEvents(server)
    server.app.state.calls.inbox = made
    return made


async def send(server: TestServer, sent: SentWebhook) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        return await client.post(sent.path, headers=sent.headers, content=sent.body)


def now_ms(server: TestServer) -> int:
    return server.process.clock.now()


async def counted(server: TestServer) -> dict[tuple[str, str], float]:
    """Events by provider and outcome, as the metrics show them."""
    return {
        (sample.labels["provider"], sample.labels["outcome"]): sample.value
        for family in server.process.metrics.registry.collect()
        if family.name == "taximeter_call_events"
        for sample in family.samples
        if sample.name.endswith("_total")
    }


async def test_events_are_kept_once(server: TestServer, inbox: KeptEvents) -> None:
    stream = FakeStream(now_ms(server), packed=True)
    livekit = FakeLiveKit(now_ms(server))
    for fake in (stream, livekit):
        run = fake.start("default:maths")
        fake.leave(run, fake.join(run, "ann"))
        fake.end(run)
    events = [*stream.take(), *livekit.take()]
    for outcome in ("kept", "repeated"):
        for sent in events:
            response = await send(server, sent)
            assert response.status_code == 200, response.text
            assert response.json() == {"outcome": outcome}
    assert len(inbox.kept) == len(events)
    # A captured body under a fresh id, unpacked, through the other path.
    again = events[1]._replace(
        path="/v1/calls/events/stream", body=gzip.decompress(events[1].body),
        headers={"x-signature": events[1].headers["x-signature"], "x-webhook-id": "fresh"},
    )  # fmt: skip
    assert (await send(server, again)).json() == {"outcome": "repeated"}
    stream.send("call.updated", call_cid="default:maths", call=stream.call(stream.runs[0]))
    assert (await send(server, stream.take()[0])).json() == {"outcome": "ignored"}
    assert len(inbox.kept) == len(events)
    assert await counted(server) == {
        ("stream", "kept"): 4, ("stream", "repeated"): 5, ("stream", "ignored"): 1,
        ("livekit", "kept"): 4, ("livekit", "repeated"): 4,
    }  # fmt: skip


async def test_refused_events_leave_a_count_alone(server: TestServer, inbox: KeptEvents) -> None:
    stream, livekit = FakeStream(now_ms(server)), FakeLiveKit(now_ms(server))
    stream.start("default:maths")
    livekit.start("room")
    (ours,), (theirs,) = stream.take(), livekit.take()
    ancient = FakeStream(now_ms(server) - call_limits.CALL_EVENT_AGE_MS_MAX - 60_000)
    ancient.start("default:maths")
    ahead = FakeStream(now_ms(server) + call_limits.CALL_EVENT_AHEAD_MS_MAX + 60_000)
    ahead.start("default:maths")
    bomb = ours._replace(
        body=gzip.compress(bytes(100 * 1024 * 1024)),
        headers={**ours.headers, "content-encoding": "gzip"},
    )
    packed = ours._replace(headers={**ours.headers, "content-encoding": "br"})
    huge = ours._replace(body=b"x" * (call_limits.CALL_EVENT_BYTES_MAX + 1))
    unsigned = ours._replace(headers={})
    cases = [
        (ours._replace(body=ours.body + b" "), 401, "event_forged"),
        (unsigned, 401, "event_forged"),
        (theirs._replace(body=theirs.body + b" "), 401, "event_altered"),
        (theirs._replace(headers={}), 401, "event_forged"),
        (ancient.take()[0], 400, "event_ancient"),
        (ahead.take()[0], 400, "event_ahead"),
        (huge, 413, "event_oversized"),
        (bomb, 413, "event_bomb"),
        (packed, 415, "event_encoding"),
        (stream.signed({"type": "call.session_started"}), 400, "event_malformed"),
        (stream.signed(b"words"), 400, "event_malformed"),
    ]
    for sent, status, code in cases:
        assert_problem(await send(server, sent), status, code)
    assert inbox.kept == {}
    found = await counted(server)
    assert sum(found.values()) == len(cases)
    assert found["stream", "event_forged"] == 2
    assert found["livekit", "event_altered"] == 1
    assert (await send(server, ours)).json() == {"outcome": "kept"}


async def test_postgres_away_makes_the_provider_try_again(
    server: TestServer, inbox: KeptEvents
) -> None:
    stream = FakeStream(now_ms(server))
    stream.start("default:maths")
    (sent,) = stream.take()
    inbox.is_away = True
    response = await send(server, sent)
    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"]
    inbox.is_away = False
    assert (await send(server, sent)).json() == {"outcome": "kept"}


async def test_a_provider_that_is_not_set_up_is_unknown(start_server: StartServer) -> None:
    server = await start_server()
    stream = FakeStream(now_ms(server))
    stream.start("default:maths")
    (sent,) = stream.take()
    assert_problem(await send(server, sent), 404, "unknown_provider")
    for path in ("/v1/calls/events/livekit", "/v1/calls/events/nothing"):
        assert_problem(await send(server, sent._replace(path=path)), 404, "unknown_provider")
    assert await counted(server) == {}
