"""Tests that nothing of one user goes out under the next."""

from typing import Any

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, welcome
from tests.browser.test_client_away import HIDE_PAGE, hear_stops

__all__ = ["chromium", "client", "mock_server"]

TOKENS = "token: () => window.token ?? 'token-1'"
"""Gives another token without a word."""


def authorizations(requests: list[Any]) -> list[tuple[str, str]]:
    return [
        (request.url.rpartition("/v1/")[2], request.headers["authorization"])
        for request in requests
    ]


A_STOP = [("sessions/session-1/stop", "Bearer token-1")]


@pytest.mark.parametrize("changed", ["user_id", "org_id", "account_id"])
async def test_a_stop_of_the_user_before_goes_with_their_own_token(
    client: ClientPage, changed: str
) -> None:
    """Their token function gives a token of another user or account."""
    requests = await hear_stops(client)
    line = await client.live(TOKENS)
    line.cut()
    await client.take_loss()
    await client.run("() => { window.token = 'token-2'; settled(session.stop()); }")
    other = await client.next_line_now()
    assert (await other.welcome(**{changed: "other"}))["token"] == "token-2"
    assert await other.receive_close() == 1000
    last = await client.server.line()
    await last.welcome(**{changed: "other"})
    await client.take_state("live")
    assert await client.run("() => session.getSnapshot()") == {"status": "off"}
    assert authorizations(requests) == A_STOP
    await client.run("() => { meter.watch('marker'); }")
    assert (await last.receive("watch"))["session_id"] == "marker", "nothing of the old user"


async def test_a_page_that_closes_before_a_welcome_stops_as_the_user_before(
    client: ClientPage,
) -> None:
    await hear_stops(client)
    line = await client.live(TOKENS)
    line.cut()
    await client.take_loss()
    await client.run("() => { window.token = 'token-2'; settled(session.stop()); }")
    other = await client.next_line_now()
    assert (await other.receive("auth"))["token"] == "token-2"
    async with client.page.expect_request("**/v1/sessions/**") as sent:
        await client.run(HIDE_PAGE)
    assert authorizations([await sent.value]) == A_STOP


@pytest.mark.parametrize("is_taken", [False, True])
async def test_a_renewal_counts_once_the_server_has_taken_it(
    client: ClientPage, is_taken: bool
) -> None:
    await hear_stops(client)
    await client.construct(TOKENS)
    await client.start()
    line = await client.server.line()
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
    await line.join()
    await client.take("session")
    await client.run("() => { window.token = 'token-2'; }")
    await client.advance(50_000)
    refresh = await line.receive("refresh")
    assert refresh["token"] == "token-2"
    if is_taken:
        await line.answer(refresh, **welcome(ping_ms=3_600_000))
        await client.run("async () => { while ((await take()).type !== 'welcome'); }")
    else:
        refusal = {"code": "forbidden", "message": "No.", "retryable": False}
        await line.answer(refresh, type="error", **refusal)
        assert (await client.take("error"))["code"] == "forbidden"
    async with client.page.expect_request("**/v1/sessions/**") as sent:
        await client.run(f"() => {{ settled(session.stop()); ({HIDE_PAGE})(); }}")
    path, authorization = authorizations([await sent.value])[0]
    assert path == A_STOP[0][0]
    assert authorization == f"Bearer {'token-2' if is_taken else 'token-1'}"


async def test_a_log_out_is_no_error(client: ClientPage) -> None:
    """Only ``offline`` and ``closed`` have one."""
    line = await client.live()
    await client.run(
        "() => { window.seen = []; meter.subscribe(() => {"
        " const { connection, error } = meter.getSnapshot();"
        " seen.push([connection, error?.code ?? null]); }); meter.switchUser(null); }"
    )
    assert await line.receive_close() == 1000
    assert (await client.take_state("idle"))["error"] is None
    idle = await client.run("() => [meter.getSnapshot(), meter.getServerSnapshot()]")
    assert idle[0] == idle[1]
    await client.run("() => meter.switchUser('token-2')")
    await (await client.server.line()).welcome(user_id="user-2")
    await client.take_state("live")
    states = await client.run("() => seen")
    assert {error for _state, error in states} == {None}
    await client.run("() => meter.close()")
    assert await client.run("() => meter.getSnapshot().error.code") == "closed"
