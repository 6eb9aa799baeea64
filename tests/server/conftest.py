"""Fixtures that several tests of the server share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server import limits as server_limits
from tests.fixtures.server import StartServer
from tests.server.billed_session import BilledSession, begin_scene


@pytest.fixture
async def scene(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BilledSession]:
    """A session whose bill the events of other sockets must not change.

    Requests are not counted here.
    """
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10_000)
    made = await begin_scene(start_server, tmp_path)
    yield made
    await made.unharmed()
