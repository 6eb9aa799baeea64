"""A row runs on by itself, and ends where its limit binds."""

import msgspec

from protocol.metering.states import Phase
from server.ops.live_rows import LiveRow, row_of, stored_row_of
from storage.redis.live_feed import LiveFeed
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.live_row_examples import MINUTE_MS, live_row


def test_figures_run_on_at_their_pace() -> None:
    row = live_row(at=1_000, elapsed_ms=500, remaining_ms=10_000, limit="credits")
    assert row.elapsed_at(3_000) == 2_500
    assert row.remaining_at(3_000) == 8_000
    assert row.credits_at(1_000 + MINUTE_MS) == 9_000_000


def test_time_ends_where_the_limit_binds() -> None:
    row = live_row(remaining_ms=10_000, limit="credits", credits_micros=10)
    assert row.elapsed_at(60_000) == 10_000
    assert row.remaining_at(60_000) == 0
    assert row.credits_at(60_000) == 0


def test_debt_stays_debt_and_a_pause_stands_still() -> None:
    row = live_row(credits_micros=-5, pace=0, burn_micros=0, elapsed_ms=7)
    assert row.credits_at(MINUTE_MS) == -5
    assert row.elapsed_at(MINUTE_MS) == 7
    assert live_row(remaining_ms=None).remaining_at(MINUTE_MS) is None


def test_a_row_is_read_as_it_was_written() -> None:
    row = live_row(metadata={"a": [1]}, nodes=("b", "a"))
    assert msgspec.json.decode(msgspec.json.encode(row), type=LiveRow) == row


async def test_a_row_has_the_figures_that_the_socket_shows(server: TestServer) -> None:
    await server.grant(60_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1", metadata={"room": 1})
    advance(server, 90_000)
    (local,) = server.process.registry
    now_ms = server.process.clock.now()
    shown, row = local.snapshot(), row_of(local, now_ms)
    assert row is not None
    assert (row.elapsed_ms, row.remaining_ms, row.limit) == (
        shown.elapsed_ms,
        shown.remaining_ms,
        shown.limit,
    )
    assert row.credits_micros == local.meter.credits_at(now_ms)
    assert row.burn_micros == local.account.projection.burn_at(now_ms)
    assert (row.metadata, row.nodes) == ({"room": 1}, (server.process.node,))


async def test_redis_gives_the_same_row_as_the_process(server: TestServer) -> None:
    await server.grant(60_000_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    (local,) = server.process.registry
    (stored,) = await LiveFeed(server.process.live).stored([local.key])
    now_ms = server.process.clock.now()
    row, found = row_of(local, now_ms), stored_row_of(stored, now_ms)
    assert row is not None
    assert found is not None
    same = {name: getattr(row, name) for name in LiveRow.__struct_fields__}
    for name in ("limit", "remaining_ms"):  # Redis knows only the limit of a final grant
        same[name] = getattr(found, name)
    assert found == LiveRow(**same)


async def test_an_ended_session_has_no_row(server: TestServer) -> None:
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    (local,) = server.process.registry
    await client.ask("stop", session_id="s1")
    assert local.meter.phase is Phase.ENDED
    assert row_of(local, server.process.clock.now()) is None
