"""The calls of one process: adapters, inbox, meter and sweep."""

from collections.abc import Mapping

from server.calls.applier import Applier
from server.calls.facts import Adapter
from server.calls.inbox import FactInbox
from server.calls.metering import CallMeter
from server.calls.sweep import Sweep
from server.process import Process
from storage.postgres.calls import CallRecords


class Calls:
    """Everything about calls on one process."""

    def __init__(self, process: Process, adapters: Mapping[str, Adapter]) -> None:
        self.process = process
        self.adapters = dict(adapters)
        self.records = CallRecords.over(process.records)
        self.meter = CallMeter(process, self.adapters)
        self.applier = Applier(process, self.records, self.meter, self.adapters)
        self.inbox = FactInbox(process, self.records, self.adapters, self.applier)
        self.sweep = Sweep(self.inbox, self.applier)

    def start(self) -> None:
        """Applies what waits, and sweeps what is due, until :meth:`stop`."""
        self.applier.start()
        self.sweep.start()

    async def stop(self) -> None:
        """Ends the work; what is not done waits in Postgres."""
        await self.sweep.stop()
        await self.applier.stop()
