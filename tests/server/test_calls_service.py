"""The calls of a process begin and end with it."""

from server.calls.service import Calls
from storage.postgres.calls import CallRecords
from tests.fixtures.server import TestServer
from tests.server.call_facts import BookMeter, fact


async def test_what_waits_is_applied_at_the_start(server: TestServer) -> None:
    calls = Calls(server.process, {})
    meter = BookMeter()
    calls.applier.meter = meter
    await calls.inbox.keep([fact()])
    await calls.stop()  # the process dies before it applies the fact
    assert meter.applied == []
    server.process.clock._offset_ms += 60_000
    again = Calls(server.process, {})
    again.applier.meter = meter
    again.start()
    records = CallRecords.over(server.process.records)
    while await records.facts_waiting(0, server.process.clock.now()):
        await again.applier.idle()
    await again.stop()
    assert meter.applied == [(fact().key, "ann")]
