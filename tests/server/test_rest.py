"""The REST of providers that answer nonsense, much, late or elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from server.calls import limits as call_limits
from server.calls.facts import Presence, ProviderError, RefusedEventError
from server.calls.rest import RestClient, http_url, read_answer, summed_durations_ms, unusable
from tests.calls.fake_stream import FakeStream
from tests.calls.site import ProviderSite, served


@pytest.fixture
def site() -> Iterator[ProviderSite]:
    with served(FakeStream(1)) as made:
        yield made


@pytest.fixture
async def client(site: ProviderSite) -> AsyncIterator[RestClient]:
    made = RestClient("stream", site.url + "/")
    yield made
    made.close()


async def test_answers_of_any_size_and_kind(site: ProviderSite, client: RestClient) -> None:
    site.fixed = (200, {}, b"{}")
    assert await client.ask("GET", "/x", headers={}, query={"a": "b&c"}) == b"{}"
    assert await client.ask("POST", "/x", headers={}, body={"a": 1}) == b"{}"
    site.fixed = (404, {}, b"{}")
    assert await client.ask("GET", "/x", headers={}) is None
    for status, retryable in ((400, False), (401, False), (403, False), (429, True), (503, True)):
        site.fixed = (status, {}, b"secret words")
        with pytest.raises(ProviderError) as failed:
            await client.ask("GET", "/x", headers={"Authorization": "secret"})
        assert failed.value.retryable == retryable
        assert "secret" not in str(failed.value)
    site.fixed = (200, {}, b"x" * (call_limits.CALL_REST_BYTES_MAX + 1))
    with pytest.raises(ProviderError, match="over"):
        await client.ask("GET", "/x", headers={})


async def test_a_redirect_takes_no_token_elsewhere(site: ProviderSite, client: RestClient) -> None:
    site.fixed = (307, {"Location": f"{site.url}/elsewhere"}, b"")
    for method in ("GET", "POST"):
        with pytest.raises(ProviderError, match="redirects"):
            await client.ask(method, "/x", headers={"Authorization": "secret"})
    assert site.asked == ["GET /x", "POST /x"]


async def test_a_provider_that_is_away_is_an_error_that_may_pass() -> None:
    client = RestClient("stream", "http://127.0.0.1:1")
    with pytest.raises(ProviderError) as failed:
        await client.ask("GET", "/x", headers={})
    assert failed.value.retryable
    client.close()


async def test_requests_at_once_are_bounded(site: ProviderSite, client: RestClient) -> None:
    site.fixed = (200, {}, b"{}")
    many = [client.ask("GET", f"/{at}", headers={}) for at in range(50)]
    assert await asyncio.gather(*many) == [b"{}"] * 50
    assert len(client._threads._threads) <= call_limits.CALL_REST_AT_ONCE_MAX


def test_answers_that_are_not_documented() -> None:
    assert read_answer("stream", b"[1]", list[int]) == [1]
    for body in (b"", b"<html>", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(ProviderError):
            read_answer("stream", body, list[int])
    assert "words" in str(unusable("stream", RefusedEventError("event_malformed", "words")))  # type: ignore[arg-type]


def test_figures_are_summed_for_each_participant() -> None:
    def presence(user: str, figure_ms: int | None) -> Presence:
        return Presence(
            participant=user, device="d", from_at_ms=1, to_at_ms=None, duration_ms=figure_ms
        )

    found = summed_durations_ms([presence("a", 5), presence("b", None), presence("a", 6)])
    assert found == {"a": 11}


def test_urls_of_sockets_are_read_as_http() -> None:
    assert http_url("wss://p.livekit.cloud") == "https://p.livekit.cloud"
    assert http_url("ws://localhost:7880/x") == "http://localhost:7880/x"
    assert http_url("https://p.livekit.cloud") == "https://p.livekit.cloud"
