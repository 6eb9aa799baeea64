"""When Python collects garbage, and that ended sessions leave none."""

import asyncio
import gc

from server.runtime import garbage
from tests.fixtures.server import TestServer
from tests.server.api import settled

CREDIT = 1_000_000
SESSIONS = 20


async def test_a_session_that_ends_leaves_nothing_to_collect(server: TestServer) -> None:
    await server.grant(10 * CREDIT)
    observer = await server.login()

    async def run(number: int) -> None:
        client = await server.login()
        await client.ask("start", kind="chat", session_id=f"chat-{number}", tick_ms=60_000)
        await client.ask("stop", session_id=f"chat-{number}")
        await client.close()

    await run(0)
    found = gc.get_threshold()
    gc.disable()
    for _ in range(3):  # what earlier tests left, and what that held
        gc.collect()
        await asyncio.sleep(0)
    gc.freeze()  # and what they still hold is not looked at
    try:
        for number in range(1, SESSIONS):
            await run(number)
        await settled(server)
        await observer.ask("ping")
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(one).__module__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()
    # Of what is ours, only what spoke HTTP before the handshake.
    ours = {name for name in kinds if name.startswith(("server", "protocol", "storage"))}
    assert ours <= {"server.transport.http_protocol"}
    assert gc.get_threshold() == found


def test_everything_is_looked_at_rarely() -> None:
    before = gc.get_threshold()
    try:
        garbage.look_rarely()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == (700, 2, 715)
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
