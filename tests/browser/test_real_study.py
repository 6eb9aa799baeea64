"""Tests a study page of the old shape beside a call."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page, Route, expect
from pydantic import SecretStr

from tests.browser.bundles import bundle
from tests.browser.fixtures import chromium, context
from tests.browser.mock_server import PATIENCE_S
from tests.browser.test_real_client import RealPage
from tests.calls.fake_stream import API_KEY, SECRET, FakeStream
from tests.calls.site import ProviderSite, served
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask

__all__ = ["chromium", "context"]

MINUTE_MS = 60_000


@pytest.fixture
def site() -> Iterator[ProviderSite]:
    with served(FakeStream(0)) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="session")
async def stream(start_server: StartServer, site: ProviderSite) -> AsyncIterator[TestServer]:
    """A server on which Stream is set up."""
    server = await start_server(
        stream_api_key=API_KEY, stream_secret_key=SecretStr(SECRET), stream_api_url=site.url
    )
    site.fake.now_ms = server.process.clock.now() - 12 * MINUTE_MS
    yield server


async def deliver(server: TestServer, site: ProviderSite) -> None:
    """The provider sends what has happened, and the server has applied it."""
    async with httpx.AsyncClient(base_url=server.url) as provider:
        for sent in site.fake.take():
            response = await provider.post(
                "/api/webhooks/stream-call-events", headers=sent.headers, content=sent.body
            )
            assert response.status_code == 200, response.text
    await server.app.state.calls.applier.idle()


async def open_page(server: TestServer, context: BrowserContext, react: int) -> Page:
    page = RealPage(await context.new_page())
    await page.open(server)
    await page.run(bundle("study.js", react))
    return page.page


async def show(page: Page, state: str = "joined") -> None:
    await page.evaluate("(state) => show(meter, { id: 'abc' }, state)", state)


async def state_is(page: Page, text: str) -> None:
    await expect(page.get_by_test_id("state")).to_have_text(text)


async def hours_of(page: Page) -> float:
    return float(await page.get_by_test_id("hours").inner_text())


async def live(server: TestServer, session_id: str) -> dict[str, Any]:
    response = await ask(server, "GET", f"/v1/sessions/{session_id}", server.token())
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("react", [18, 19])
async def test_a_study_page_beside_a_running_call(
    stream: TestServer, site: ProviderSite, context: BrowserContext, react: int
) -> None:
    fake = site.fake
    run = fake.start("default:abc")
    presence = fake.join(run, "ann")
    fake.now_ms += 12 * MINUTE_MS
    page = await open_page(stream, context, react)
    await show(page, "idle")
    await state_is(page, "Not in a call")
    # The page is faster than the provider's events, and hears of the call when they come.
    await show(page)
    await state_is(page, "Studying")
    assert await hours_of(page) == 0
    await deliver(stream, site)
    await expect(page.get_by_test_id("hours")).to_have_text("0.20", timeout=10_000)

    # The call is metered whether or not a page is open.
    session = f"call:stream:{run.session}:ann"
    await page.evaluate("() => hide()")
    await page.wait_for_function("(id) => !meter.find(id)", arg=session)
    assert (await live(stream, session))["state"] == "active"

    await show(page)
    await state_is(page, "Studying")
    fake.leave(run, presence)
    await deliver(stream, site)
    await page.get_by_role("button").click()
    await state_is(page, "Not in a call")
    await page.wait_for_function("() => window.ended")
    ended = await page.evaluate("() => ended")
    assert (ended["duration"], ended["clock"]) == (12, "provider")
    assert await hours_of(page) == 0.2

    # Tomorrow's page has it from the record.
    fake.end(run)
    await deliver(stream, site)
    await stream.flush()
    other = await open_page(stream, context, react)
    await show(other, "idle")
    await expect(other.get_by_test_id("hours")).to_have_text("0.20")


async def test_a_page_is_the_clock_where_no_provider_is(
    server: TestServer, context: BrowserContext
) -> None:
    page = await open_page(server, context, 19)
    await show(page)
    await state_is(page, "Studying")
    found = await ask(server, "GET", "/api/study-sessions/active-calls", server.token())
    (call,) = found.json()["calls"]
    assert (call["callId"], call["clock"]) == ("default:abc", "page")
    async with page.expect_response("**/stream-duration*") as answered:
        await page.evaluate("() => hide()")
    assert (await (await answered.value).json())["isActive"] is False
    bill = await live(server, call["sessionId"])
    assert bill["reason"] == "call_ended"


async def study_ends(server: TestServer) -> None:
    """Waits until the server has heard of the study's end."""
    calls = server.app.state.calls
    async with asyncio.timeout(PATIENCE_S):
        while (await calls.records.runs_of("default:abc", None, 1))[0].ended_at is None:
            await calls.applier.idle()


async def test_a_page_that_is_closed_ends_its_study(
    server: TestServer, context: BrowserContext
) -> None:
    page = await open_page(server, context, 19)
    await show(page)
    await state_is(page, "Studying")
    await page.goto(f"{server.url}/client/store.js")
    await study_ends(server)


@pytest.mark.parametrize("who", ["null", "'TOKEN'"])
async def test_a_user_who_logs_out_ends_the_study(
    server: TestServer, context: BrowserContext, who: str
) -> None:
    """Also where another user logs in, who sees no error of it."""
    page = await open_page(server, context, 19)
    await show(page)
    await state_is(page, "Studying")
    await page.evaluate(f"() => meter.switchUser({who.replace('TOKEN', server.token('ben'))})")
    await state_is(page, "Not in a call")
    await study_ends(server)
    if who != "null":
        await page.wait_for_function("() => meter.getSnapshot().user_id === 'ben'")
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_a_provider_that_goes_with_its_meter_ends_the_study(
    server: TestServer, context: BrowserContext
) -> None:
    page = await open_page(server, context, 19)
    arguments = ["/v1/ws", server.token(), {"id": "abc"}, "joined"]
    await page.evaluate("(given) => showOwn(...given)", arguments)
    await state_is(page, "Studying")
    await page.evaluate("() => hide()")
    await study_ends(server)


async def test_an_end_does_not_overtake_its_start(
    server: TestServer, context: BrowserContext
) -> None:
    page, said, gate = await open_page(server, context, 19), list[str](), asyncio.Event()

    async def late(route: Route) -> None:
        body: Any = route.request.post_data_json
        said.append(body["action"])
        if body["action"] == "start":
            await gate.wait()
        await route.continue_()

    await page.route("**/stream-duration*", late)
    await show(page)
    await page.wait_for_function("() => meter.getSnapshot().user_id")
    async with asyncio.timeout(PATIENCE_S):
        while not said:
            await page.evaluate("macrotask")
    async with page.expect_response("**/stream-duration*"):
        await page.get_by_role("button").click()
        await page.evaluate("macrotask")
        assert said == ["start"]
        gate.set()
    await page.wait_for_function("() => window.ended")
    assert said == ["start", "end"]
    await study_ends(server)
