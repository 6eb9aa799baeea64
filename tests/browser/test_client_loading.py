"""Tests the client while live.js is loading, and without it."""

import asyncio

from playwright.async_api import Route

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import PATIENCE_S, BrowserSocket, Message, tick, welcome

__all__ = ["chromium", "client", "mock_server"]

LATER = "**/client/live.js"


async def begin(client: ClientPage, options: str = "token: 'token-1'") -> BrowserSocket:
    """Starts a session; returns the line, on which nothing was received."""
    await client.construct(options, is_loaded=False)
    await client.start()
    return await client.server.line()


class HeldModule:
    """The module's request, which waits for the test."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._routes: list[Route] = []

    def take(self, route: Route) -> None:
        self._routes.append(route)
        self.asked.set()

    async def release(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.asked.wait()
        for route in self._routes:
            await route.continue_()


async def hold(client: ClientPage) -> HeldModule:
    """Holds the module back."""
    held = HeldModule()
    await client.page.route(LATER, held.take)
    return held


async def take(client: ClientPage) -> Message:
    event: Message = await client.run("() => take()")
    return event


async def test_nothing_is_loaded_before_the_network_is_there(client: ClientPage) -> None:
    """Browsers may remember that a module could not be loaded."""
    held = await hold(client)
    await client.construct("token: async () => { throw new Error('no network'); }", False)
    await client.start()
    await client.take("error")
    assert not held.asked.is_set()


async def test_a_module_that_cannot_be_loaded_fails_the_attempt(client: ClientPage) -> None:
    """No session starts, and the next attempt asks again."""
    await client.page.route(LATER, lambda route: route.abort())
    line = await begin(client)
    for _ in range(2):
        await line.answer(await line.receive("auth"), **welcome())
        assert await line.receive_close() == 3000
        await client.take_loss()
        await client.advance(10_000)
        line = await client.server.line()
    await line.answer(await line.receive("auth"), **welcome())
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("unreachable", True)
    assert error["message"] == "A module of the client cannot be loaded."
    await client.page.unroute(LATER)
    await client.advance(10_000)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    await line.send(**tick(1_000))
    await client.take("tick")


async def test_messages_wait_for_the_module_in_their_order(client: ClientPage) -> None:
    held = await hold(client)
    line = await begin(client)
    await line.answer(await line.receive("auth"), **welcome())
    await line.send(type="credit", account_id=welcome()["account_id"], credits="7")
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    await client.take("error")  # the one message that needs nothing more
    assert await client.run("() => meter.state") == "connecting"
    assert await client.run("() => meter.getSnapshot().credits") is None
    await held.release()
    await line.join(credits="7")
    heard = [await take(client) for _ in range(4)]
    assert [event["type"] for event in heard] == ["welcome", "connection", "credit", "session"]
    assert await client.run("() => meter.getSnapshot().credits") == 7


async def test_a_line_that_was_heard_waits_for_the_module(client: ClientPage) -> None:
    held = await hold(client)
    line = await begin(client)
    await line.receive("auth")
    await client.run("() => { clock.nowMs += 60_000; }")  # the page slept
    await line.send(**welcome())
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    await client.take("error")
    await held.release()
    await client.take_state("live")
    await line.join()


async def test_nothing_of_a_user_who_left_is_heard_when_the_module_is_there(
    client: ClientPage,
) -> None:
    held = await hold(client)
    old = await begin(client)
    await old.answer(await old.receive("auth"), **welcome(user_id="ann"))
    await old.send(type="credit", account_id=welcome()["account_id"], credits="111")
    await old.send(type="error", code="bad_message", message="Marker.", retryable=False)
    await client.take("error")
    await client.run("() => { meter.switchUser('token-2'); }")
    line = await client.server.line()
    await line.answer(await line.receive("auth"), **welcome(user_id="bob", credits="2"))
    await held.release()
    await client.take_state("live")
    view = await client.run("() => meter.getSnapshot()")
    assert (view["user_id"], view["credits"]) == ("bob", 2)
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9", "the old session is gone"


async def test_a_refused_token_is_told_before_the_module_is_there(client: ClientPage) -> None:
    await hold(client)
    line = await begin(client)
    refusal = {"code": "unauthenticated", "message": "Expired.", "retryable": False}
    await line.answer(await line.receive("auth"), type="error", **refusal)
    line.cut()
    assert (await client.take("error"))["code"] == "unauthenticated"
    await client.take_state("offline")


async def test_a_stop_before_the_module_is_there_is_sent_after_the_start(
    client: ClientPage,
) -> None:
    held = await hold(client)
    line = await begin(client)
    await line.answer(await line.receive("auth"), **welcome())
    await client.run("() => { settled(session.stop()); }")
    await held.release()
    await line.join()
    await line.receive("stop")
