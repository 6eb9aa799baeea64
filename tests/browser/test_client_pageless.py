"""Tests the client without a page: in Node and in a worker."""

import json
from pathlib import Path

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.node import run_module

__all__ = ["chromium", "client", "mock_server"]


def test_two_users_after_one_another_over_every_interleaving() -> None:
    """Nothing of the first is heard, also inside of a listener."""
    path = Path(__file__).with_name("pages") / "interleavings.js"
    told = run_module(
        f"""
        const {{ Taximeter }} = await import(CORE);
        await import(CORE.replace('taximeter.js', 'live.js'));
        const {{ explore }} = await import({json.dumps(path.as_uri())});
        console.log(await explore(Taximeter));
        """
    )
    assert int(told) > 10_000


def test_a_meter_without_a_page_opens_and_arms_nothing() -> None:
    """A meter in Node throws nothing, and keeps no process alive.

    So it can serve in a server render.
    """
    told = run_module(
        """
        const { Taximeter } = await import(CORE);
        await new Promise(setImmediate); // the file is closed
        const before = process.getActiveResourcesInfo().length;
        const meter = new Taximeter({ token: 'token-1' });
        const found = meter.find('session-1') ?? null;
        console.log(JSON.stringify([
          meter.getSnapshot().connection, meter.getServerSnapshot().connection, found,
          process.getActiveResourcesInfo().length - before]));
        """
    )
    assert json.loads(told) == ["idle", "idle", None, 0]


def test_a_thousand_mounts_leave_nothing_behind() -> None:
    """No session in the heap, no timer, one socket until log-out."""
    path = Path(__file__).with_name("pages") / "mounts.js"
    told = run_module(
        f"""
        const {{ Taximeter }} = await import(CORE);
        const {{ leftovers }} = await import({json.dumps(path.as_uri())});
        console.log(JSON.stringify(await leftovers(Taximeter)));
        """
    )
    assert json.loads(told) == {"kept": 0, "timers": 0, "open": 1, "openAfterwards": 0}


async def test_a_worker_can_import_and_construct(client: ClientPage) -> None:
    state = await client.run(
        """() => new Promise((resolve, reject) => {
          const worker = new Worker('/tests/worker.js', { type: 'module' });
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = (event) => reject(new Error(event.message));
        })"""
    )
    assert state == "idle"
